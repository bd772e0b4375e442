//! How often a real database is asked for one envelope (`CHAPPE_TEST_CQL_URL`): counted by the driver, not timed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and tell what they counted"
)]

use bytes::Bytes;
use chappe_node::clock::SystemWorld;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{Bucket, ConnectionId, DeviceId, MailboxId, SubmitId, UserId};
use chappe_protocol::internode::{Outcome, Reply, Request, Submit, SubmitEntry, SubmitList};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_router::{Directory, LocalLinks, Router, RouterConfig, RouterMetrics};
use chappe_storage::scylla::{ScyllaConfig, ScyllaRows, ScyllaStats, schema};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Store};
use std::sync::Arc;
use tokio::task::JoinSet;

/// A router as a process has it: a store, and the caches of the slot log, of its own.
struct Process {
    world: Arc<dyn World>,
    rows: Arc<ScyllaRows>,
    store: Arc<dyn Store>,
    router: Router,
    metrics: Arc<RouterMetrics>,
}

#[allow(clippy::disallowed_methods, reason = "tests are told by the environment where the real parts are")]
async fn process() -> Arc<Process> {
    let url = std::env::var("CHAPPE_TEST_CQL_URL")
        .expect("CHAPPE_TEST_CQL_URL is not set: run ./test, or what dev/README.md says under Tests");
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let mut config = ScyllaConfig::from_url(&url).unwrap();
    // Dropped by the store's tests once this process is gone.
    config.keyspace = format!("test_{}_trips", std::process::id());
    config.replication = 1;
    config.request_timeout = Millis(10_000);
    schema::apply(&config, &*world).await.unwrap();
    let rows = Arc::new(ScyllaRows::connect(config, Arc::clone(&world)).await.unwrap());
    let store: Arc<dyn Store> =
        Arc::new(SlotLog::new(Arc::clone(&rows), Arc::clone(&world), LogConfig::default()));
    let metrics = Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap());
    let links = Arc::new(LocalLinks::new(Arc::clone(&metrics)));
    let directory = Arc::new(Directory::new(Arc::clone(&world), 100, Arc::clone(&metrics)));
    let config = RouterConfig::default();
    let (own, shared) = (Arc::clone(&store), Arc::clone(&metrics));
    let router = Router::new(config, Arc::clone(&world), own, links, directory, shared);
    Arc::new(Process { world, rows, store, router, metrics })
}

impl Process {
    /// A user with one device.
    async fn mailbox(&self, name: &str) -> MailboxId {
        let mailbox = self.store.create_user(&UserId::new(name).unwrap()).await.unwrap().mailbox;
        let attach = Attach { connection: ConnectionId::mint(&*self.world), cursor: None };
        self.store.attach(mailbox, &DeviceId::new("phone").unwrap(), attach).await.unwrap();
        mailbox
    }

    /// One envelope, taken; the head's bucket, which a gateway would remember.
    async fn submit(&self, from: &str, mailbox: MailboxId, base: Option<Bucket>) -> Option<Bucket> {
        let request = Submit {
            sender: Sender { user: UserId::new(from).unwrap(), device: DeviceId::new("phone").unwrap() },
            budget: Millis(20_000),
            payloads: vec![Bytes::from_static(&[7; 200])],
            lists: vec![SubmitList { base, ..list(SubmitId::random(&*self.world), 0, mailbox) }],
        };
        let Reply::Submit(replies) = self.router.handle(Request::Submit(request)).await else {
            panic!("no answer to a submit");
        };
        assert_eq!(replies[0].results[0].outcome, Outcome::Accepted);
        replies[0].head_bucket
    }
}

/// All statements, and the appends among them.
fn statements(before: &ScyllaStats, after: &ScyllaStats) -> (u64, u64) {
    let all = |stats: &ScyllaStats| {
        stats.reads + stats.serial_reads + stats.writes + stats.conditionals + stats.appends
    };
    (all(after) - all(before), after.appends - before.appends)
}

/// 100 envelopes, one after the other.
#[tokio::test]
async fn an_uncontended_envelope_is_one_conditional_batch() {
    let process = process().await;
    let mailbox = process.mailbox("ben").await;
    let mut base = process.submit("anna", mailbox, None).await;
    let before = process.rows.stats();
    for _ in 0..100 {
        base = process.submit("anna", mailbox, base).await;
    }
    let after = process.rows.stats();
    let (all, appends) = statements(&before, &after);
    println!(
        "100 envelopes, one after the other: {appends} conditional batches, {} transactions beside, {} serial reads, \
         {} reads, {} writes",
        after.conditionals - before.conditionals,
        after.serial_reads - before.serial_reads,
        after.reads - before.reads,
        after.writes - before.writes
    );
    assert_eq!(appends, 100);
    assert_eq!((after.serial_reads, after.conditionals), (before.serial_reads, before.conditionals));
    // Device sets once a second, pending rows once in ten.
    assert!(all <= 130, "{all} statements");
}

/// Submitters that wait for each answer, spread over so many routers; the conditional batches they took.
async fn contend(routers: usize, name: &str) -> f64 {
    let mut processes = Vec::new();
    for _ in 0..routers {
        processes.push(process().await);
    }
    let mailbox = processes[0].mailbox(name).await;
    let base = processes[0].submit("anna", mailbox, None).await;
    let before: Vec<ScyllaStats> = processes.iter().map(|process| process.rows.stats()).collect();
    let mut submitters = JoinSet::new();
    for n in 0..100 {
        let process = Arc::clone(&processes[n % routers]);
        submitters.spawn(async move {
            let (from, mut base) = (format!("sender-{n}"), base);
            for _ in 0..20 {
                base = process.submit(&from, mailbox, base).await;
            }
        });
    }
    while let Some(done) = submitters.join_next().await {
        done.unwrap();
    }
    let (mut appends, mut refused) = (0, 0);
    for (process, before) in processes.iter().zip(&before) {
        let after = process.rows.stats();
        appends += after.appends - before.appends;
        refused += after.appends_refused - before.appends_refused;
    }
    let each = f64::from(u32::try_from(appends).unwrap()) / 2000.0;
    println!(
        "100 submitters, one mailbox, {routers} routers: {each:.3} conditional batches an envelope, {refused} refused of {appends}"
    );
    each
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_submitters_share_batches() {
    assert!(contend(1, "carl").await <= 0.1);
    // Only while routers change: a mailbox has affinity to one.
    assert!(contend(2, "dora").await <= 0.2);
}

/// One payload for 1,024 mailboxes: stored once, a result for each; a retry writes no slot twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fan_out_to_1024_mailboxes_stores_its_payload_once() {
    let process = process().await;
    let mut mailboxes: Vec<MailboxId> = Vec::new();
    for first in (0..1024).step_by(64) {
        let made = (first..first + 64).map(|n| {
            let process = Arc::clone(&process);
            async move { process.mailbox(&format!("member-{n}")).await }
        });
        mailboxes.extend(futures_util::future::join_all(made).await);
    }
    let submit_id = SubmitId::random(&*process.world);
    let request = || Submit {
        sender: Sender { user: UserId::new("anna").unwrap(), device: DeviceId::new("phone").unwrap() },
        budget: Millis(30_000),
        payloads: vec![Bytes::from(vec![7; 4_000])],
        lists: (0..).zip(&mailboxes).map(|(number, mailbox)| list(submit_id, number, *mailbox)).collect(),
    };
    for attempt in 1..=2 {
        let before = process.rows.stats();
        let Reply::Submit(replies) = process.router.handle(Request::Submit(request())).await else {
            panic!("no answer to a submit");
        };
        let outcomes = replies.iter().flat_map(|reply| &reply.results).map(|result| &result.outcome);
        assert_eq!(outcomes.filter(|outcome| **outcome == Outcome::Accepted).count(), 1024);
        let (all, appends) = statements(&before, &process.rows.stats());
        println!("1,024 targets, attempt {attempt}: {appends} conditional batches of {all} statements");
    }
    assert_eq!(process.metrics.shared_payloads.get(), 2, "once for each attempt");
    let heads = mailboxes.iter().map(|mailbox| process.store.head(*mailbox, true));
    for head in futures_util::future::join_all(heads.take(100)).await {
        assert_eq!(head.unwrap().0, 1, "the retry wrote no slot");
    }
}

fn list(submit_id: SubmitId, number: u32, mailbox: MailboxId) -> SubmitList {
    let entry = SubmitEntry {
        submit_id,
        number,
        devices: DeviceFilter::All,
        device_set_version: None,
        payload: 0,
        ttl: Millis(0),
        urgency: Urgency::Message,
    };
    SubmitList { mailbox, base: Some(Bucket(0)), entries: vec![entry] }
}
