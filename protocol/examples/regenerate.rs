//! Writes what this crate keeps checked in and generated: the wire types and the test vectors.
//! Run `cargo run -p chappe-protocol --example regenerate` after a change of the schema or the cases; the tests compare.
#![allow(
    missing_docs,
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a tool for developers, sharing modules with the tests"
)]

#[path = "../tests/wire/generate.rs"]
mod generate;
#[path = "../tests/wire/requests.rs"]
mod requests;
#[path = "../tests/wire/samples.rs"]
mod samples;
#[path = "../tests/wire/vectors.rs"]
mod vectors;

use std::fs;

fn main() -> std::io::Result<()> {
    for schema in generate::SCHEMAS {
        fs::write(schema.types_path(), schema.types())?;
    }
    fs::create_dir_all(vectors::dir())?;
    for case in vectors::cases() {
        fs::write(vectors::dir().join(format!("{}.txt", case.name)), vectors::text(&case))?;
    }
    Ok(())
}
