//! The delivery protocol as models: every wrong rule is found wrong, every right one holds in every reachable state.
//! What each model shows stands in `README.md` beside this file.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod buckets;
mod senders;
mod sessions;
mod slotlog;
mod targets;
mod variant;
mod window;

use variant::{Size, Variant};

fn check(variants: Vec<Variant>) {
    for variant in variants {
        let (finding, good) = variant.judge();
        assert!(
            good,
            "{}: {}: expected {:?} to break, found (reached: {}, {} states) {:#?}",
            variant.model, variant.name, variant.breaks, finding.reached, finding.states, finding.broken
        );
    }
}

#[test]
fn the_window_design_loses_and_reorders() {
    check(window::variants(Size::Short));
}

#[test]
fn the_slot_log_holds() {
    check(slotlog::variants(Size::Short));
}

#[test]
fn idempotence_holds_across_buckets_and_trimming() {
    check(buckets::variants(Size::Short));
}

#[test]
fn a_sender_that_sends_ahead_keeps_its_order() {
    check(senders::variants(Size::Short));
}

#[test]
fn a_cursor_passes_only_what_its_device_has() {
    check(targets::variants(Size::Short));
}

#[test]
fn the_newer_session_wins() {
    check(sessions::variants(Size::Short));
}
