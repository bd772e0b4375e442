//! The wire: generated types, vectors, properties and the document agree with the code.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod document;
mod generate;
mod internode;
mod properties;
mod requests;
mod samples;
mod vectors;

use std::collections::BTreeSet;
use std::fs;

#[test]
fn the_generated_types_are_those_of_the_schema() {
    for schema in generate::SCHEMAS {
        let checked_in = fs::read_to_string(schema.types_path()).unwrap();
        assert!(
            checked_in == schema.types(),
            "the schema has changed: run `cargo run -p chappe-protocol --example regenerate`"
        );
    }
}

#[test]
fn the_vectors_are_those_of_the_cases() {
    let mut names = BTreeSet::new();
    for case in vectors::cases() {
        let path = vectors::dir().join(format!("{}.txt", case.name));
        let checked_in = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            checked_in == vectors::text(&case),
            "{}: run `cargo run -p chappe-protocol --example regenerate`",
            case.name
        );
        assert!(names.insert(format!("{}.txt", case.name)), "{} stands twice", case.name);
    }
    let files: BTreeSet<String> = fs::read_dir(vectors::dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, names, "a file without a case");
}

#[test]
fn the_vectors_decode_as_they_say() {
    for case in vectors::cases() {
        let decoded = vectors::decode(case.from, &case.bytes);
        assert_eq!(decoded.clone().map(drop), case.expect, "{}", case.name);
        if let Ok(again) = decoded {
            assert_eq!(again == case.bytes, case.canonical, "{}", case.name);
        }
    }
}
