//! The wire: generated types, vectors, properties and the document agree with the code.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod generate;

#[test]
fn the_generated_types_are_those_of_the_schema() {
    let checked_in = std::fs::read_to_string(generate::wire_types_path()).unwrap();
    assert!(
        checked_in == generate::wire_types(),
        "the schema has changed: run `cargo run -p chappe-protocol --example regenerate`"
    );
}
