//! Writes what this crate keeps checked in and generated: the wire types and the test vectors.
//! Run `cargo run -p chappe-protocol --example regenerate` after a change of the schema; the tests compare.
#![allow(
    missing_docs,
    clippy::expect_used,
    unreachable_pub,
    reason = "a tool for developers, sharing modules with the tests"
)]

#[path = "../tests/wire/generate.rs"]
mod generate;

fn main() -> std::io::Result<()> {
    std::fs::write(generate::wire_types_path(), generate::wire_types())?;
    Ok(())
}
