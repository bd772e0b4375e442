//! Explores the models and prints their verdicts: `cargo run --release -p chappe-storage --example model [-- --long]`.
//! Ends with an error if a verdict is not the expected one.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a tool for developers"
)]

#[path = "../tests/model/buckets.rs"]
mod buckets;
#[path = "../tests/model/senders.rs"]
mod senders;
#[path = "../tests/model/sessions.rs"]
mod sessions;
#[path = "../tests/model/slotlog.rs"]
mod slotlog;
#[path = "../tests/model/targets.rs"]
mod targets;
#[path = "../tests/model/variant.rs"]
mod variant;
#[path = "../tests/model/window.rs"]
mod window;

use std::process::ExitCode;
use variant::Size;

fn main() -> ExitCode {
    let size = if std::env::args().any(|argument| argument == "--long") { Size::Long } else { Size::Short };
    let all = [
        window::variants(size),
        slotlog::variants(size),
        buckets::variants(size),
        senders::variants(size),
        targets::variants(size),
        sessions::variants(size),
    ];
    let mut good = true;
    for variant in all.into_iter().flatten() {
        let (finding, as_expected) = variant.judge();
        good &= as_expected;
        let verdict = if as_expected { "as expected" } else { "NOT AS EXPECTED" };
        println!("{}: {} ({verdict}, {} states)", variant.model, variant.name, finding.states);
        println!("    reached: {}; expected to break: {:?}", finding.reached, variant.breaks);
        for (name, path) in finding.broken {
            println!("    {name} breaks by {path}");
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
