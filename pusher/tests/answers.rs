//! The page of answers is the tables. **Invariant:** nobody edits `docs/push-answers.md` by hand.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[test]
#[allow(clippy::disallowed_methods, reason = "a switch for the person who runs the test")]
fn the_page_is_what_the_tables_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/push-answers.md");
    let page = chappe_pusher::answers::page();
    if std::env::var_os("CHAPPE_BLESS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        written == page,
        "run CHAPPE_BLESS=1 cargo test -p chappe-pusher --test answers, and read what changed"
    );
}
