//! The laws that every backend obeys, as plain generic functions. **Invariant:** a law asserts what a caller would notice;
//! it runs on a backend that fails now and then as well, since every call is repeated as the trait allows.
//!
//! Buckets hold 4 slots here (the first one 3: slot 0 does not exist), so edges are crossed all the time.
//! A backend implements [`Backend`] and says `chappe_storage::conformance!(MyBackend);` in a test file.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "laws fail by panicking"
)]

mod bench;
mod devices;
mod idempotence;
mod log;
mod retention;
mod rows;
mod wakes;

pub use bench::{Backend, Bench, Patient, again};
pub use devices::*;
pub use idempotence::*;
pub use log::*;
pub use retention::*;
pub use rows::*;
pub use wakes::*;

/// Runs every law on a backend, each as a test of its own, on paused time; with `seeds`, in as many worlds; `real`: on the
/// machine's time, for backends that are servers.
#[macro_export]
macro_rules! conformance {
    ($backend:ty) => {
        $crate::conformance! { $backend, seeds: 7..8 }
    };
    ($backend:ty, seeds: $seeds:expr) => {
        $crate::conformance! { $backend, seeds: $seeds, runtime: (start_paused = true) }
    };
    ($backend:ty, real) => {
        $crate::conformance! { $backend, seeds: 7..8, runtime: (flavor = "current_thread") }
    };
    ($backend:ty, seeds: $seeds:expr, runtime: $runtime:tt) => {
        $crate::conformance! { @ $backend, $seeds, $runtime;
            // log
            the_log_is_dense, a_batch_is_split_at_edges_in_order, slots_keep_every_field, pages_are_bounded,
            two_routers_cross_an_edge, many_appenders_are_dense_and_once, a_cold_head_is_found_in_few_reads,
            reading_beyond_the_head_is_empty, the_log_is_read_whole, lost_slots_are_reported, lost_payloads_are_reported, a_slot_ends_at_its_own_time,
            quota_refuses,
            calls_that_make_no_sense_are_invalid, a_payload_is_stored_once,
            // idempotence
            a_retry_is_a_duplicate, a_retry_across_buckets_is_a_duplicate, a_retry_across_a_trim_is_a_duplicate,
            a_retry_across_a_restart_is_a_duplicate, a_late_first_attempt_is_a_duplicate,
            the_same_id_twice_is_one_slot, an_id_lives_two_days, the_look_back_is_bounded,
            // devices
            a_new_device_sees_nothing_old, attach_raises_the_epoch_and_takes_the_cursor, glance_writes_nothing,
            cursors_only_rise, cursors_survive_a_restart, a_cursor_ahead_is_refused, the_revoked_stay_out,
            users_agree_on_one_mailbox, pending_names_what_moved, tags_name_mailbox_and_store,
            // retention
            a_zombie_after_a_trim_is_refused, a_fully_trimmed_mailbox_has_a_head, a_trim_waits_for_every_live_device,
            the_silent_and_the_revoked_do_not_hold_a_trim, a_trim_by_age, a_trim_is_bounded_and_finishes_another,
            the_payload_expires_and_the_slot_stays, erase_stops_a_paused_router, erase_at_an_edge,
            the_erased_come_back_as_new, an_erase_leaves_no_device_and_no_cursor,
            an_erase_beside_appends_closes_the_log, without_a_device_only_age_trims,
            a_trim_by_age_looks_at_every_slot, a_trim_beside_a_reader_loses_nothing,
            // rows
            a_register_is_compared, a_batch_is_all_or_nothing, sessions_are_a_max_register,
            a_device_is_added_to_the_set_that_was_seen, registers_survive_a_restart,
            a_slot_that_is_there_is_not_lost,
            // wakes
            push_targets_live_with_their_device, a_registration_survives_a_dead_token, the_revoked_have_no_push_targets,
            a_revocation_beside_a_registration_leaves_none, an_erase_leaves_no_push_targets_and_no_wakes,
            wakes_only_rise, wakes_are_for_slots_that_are_there, a_shards_notes_are_paged_without_gap,
            all_shards_together_are_what_is_pending, a_scan_reads_no_future_and_no_past,
            a_note_for_later_is_found_in_its_minute, a_note_is_for_now_to_tomorrow, notes_for_later_do_not_hold_a_scan,
            a_watermark_only_rises, a_watermark_hides_no_notes_to_come,
        }
    };
    (@ $backend:ty, $seeds:expr, $runtime:tt; $($law:ident),+ $(,)?) => {
        $(
            #[tokio::test $runtime]
            async fn $law() {
                for seed in $seeds {
                    // Seen when the test fails.
                    println!("seed {seed}");
                    $crate::conformance::$law($crate::conformance::Bench::<$backend>::open_seeded(seed).await).await;
                }
            }
        )+
    };
}
