//! Each planted defect turns a law red: so the laws can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::{self as laws, Backend, Bench};
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::planted::Planted;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

type Rows = Faulty<MemoryRows>;

/// Without delays and errors, but for reads that miss rows.
struct Stale(Arc<Rows>);

#[async_trait]
impl Backend for Stale {
    type Rows = Rows;

    async fn open(world: Arc<dyn World>) -> Self {
        let seed = world.random_below(u64::MAX);
        let faults = Faults { delay_ms_max: 0, unavailable: 0, lost_reply: 0, late: 0, stale: 200 };
        Self(Arc::new(Faulty::new(Arc::new(MemoryRows::new(world)), seed, faults)))
    }

    fn rows(&self) -> Arc<Rows> {
        self.0.clone()
    }

    async fn reopen(self, _world: Arc<dyn World>) -> Self {
        self
    }

    fn fails() -> bool {
        true
    }
}

/// Runs a law with a defect, or without one; whether it held.
fn holds<F: Future<Output = ()>>(planted: Option<Planted>, law: impl FnOnce(Bench<Stale>) -> F) -> bool {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let run = async {
        let mut bench = Bench::<Stale>::open().await;
        bench.planted = planted;
        bench.rows().inner().plant(planted);
        law(bench).await;
    };
    catch_unwind(AssertUnwindSafe(|| runtime.block_on(run))).is_ok()
}

macro_rules! turns_red {
    ($($test:ident: $planted:ident breaks $law:ident;)+) => {
        $(
            #[test]
            fn $test() {
                assert!(holds(None, laws::$law), "the law holds without the defect");
                assert!(!holds(Some(Planted::$planted), laws::$law), "the law does not notice the defect");
            }
        )+
    };
}

turns_red! {
    skip_look_back: SkipLookBack breaks a_retry_across_buckets_is_a_duplicate;
    look_back_only_on_retry: LookBackOnlyOnRetry breaks a_late_first_attempt_is_a_duplicate;
    look_back_stops_at_floor: LookBackStopsAtFloor breaks a_retry_across_a_trim_is_a_duplicate;
    opens_unsealed: OpensUnsealed breaks the_log_is_dense;
    holes_skipped: HolesSkipped breaks lost_slots_are_reported;
    holes_believed: HolesBelieved breaks the_log_is_read_whole;
    erase_without_seal: EraseWithoutSeal breaks erase_stops_a_paused_router;
    trim_ignores_cursors: TrimIgnoresCursors breaks a_trim_waits_for_every_live_device;
    expect_ignored: ExpectIgnored breaks a_register_is_compared;
    expect_ignored_zombie: ExpectIgnored breaks a_zombie_after_a_trim_is_refused;
    ids_ignored: IdsIgnored breaks a_retry_is_a_duplicate;
    trim_drops_head: TrimDropsHead breaks a_fully_trimmed_mailbox_has_a_head;
    trim_drops_head_zombie: TrimDropsHead breaks a_zombie_after_a_trim_is_refused;
    trim_drops_ids: TrimDropsIds breaks a_retry_across_a_trim_is_a_duplicate;
    cursors_go_back: CursorsGoBack breaks cursors_only_rise;
    sessions_go_back: SessionsGoBack breaks sessions_are_a_max_register;
    slots_expire: SlotsExpire breaks the_payload_expires_and_the_slot_stays;
}
