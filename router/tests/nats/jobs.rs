//! Wake hints as jobs of pushers: each to one of them, again if it is not finished, and again when JetStream has lost everything.

use crate::support::{Cluster, Gateway, RouterProcess, bus_metrics, soon, until};
use crate::wakes::{JETSTREAM, accepted, is_up, jetstream, start, stream_of};
use async_nats::jetstream::Context;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::id::{ClusterId, MailboxId, Seq};
use chappe_protocol::internode::WakeHint;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_router::nats::{
    BusMetrics, NatsBus, NatsConfig, WakeJob, WakeJobMetrics, WakeJobs, WakeJobsConfig,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Quick, for tests.
pub(crate) fn quick() -> WakeJobsConfig {
    WakeJobsConfig {
        batch: 8,
        pull_every: Millis(1000),
        heartbeat: Millis(200),
        answer_max: Millis(1500),
        ..WakeJobsConfig::default()
    }
}

pub(crate) struct Pusher {
    pub(crate) bus: Arc<NatsBus>,
    pub(crate) jobs: WakeJobs,
    pub(crate) metrics: Arc<WakeJobMetrics>,
    pub(crate) bus_metrics: Arc<BusMetrics>,
}

pub(crate) async fn pusher(cluster: &Cluster, config: WakeJobsConfig) -> Pusher {
    pusher_with(cluster, cluster.pusher_config.clone(), config).await
}

async fn pusher_with(cluster: &Cluster, bus: NatsConfig, config: WakeJobsConfig) -> Pusher {
    let bus_metrics = bus_metrics();
    let bus = NatsBus::connect(bus, Arc::clone(&cluster.world), Arc::clone(&bus_metrics)).await.unwrap();
    let metrics = Arc::new(WakeJobMetrics::new(&prometheus::Registry::new()).unwrap());
    let jobs = bus.wake_jobs(config, Arc::clone(&metrics)).await.unwrap();
    Pusher { bus, jobs, metrics, bus_metrics }
}

impl Pusher {
    async fn up(&self) {
        until("hints can come", || self.metrics.up.get() == 1).await;
    }

    async fn next(&mut self) -> WakeJob {
        soon("a job", self.jobs.next()).await.unwrap()
    }
}

async fn router(cluster: &Cluster) -> (Gateway, RouterProcess) {
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    gateway.hears(1).await;
    is_up(&router).await;
    (gateway, router)
}

/// Messages in the stream.
async fn left(context: &Context, cluster: &Cluster) -> u64 {
    context.get_stream(stream_of(cluster)).await.unwrap().cached_info().state.messages
}

async fn is_empty(context: &Context, cluster: &Cluster) {
    let looking = async { while left(context, cluster).await > 0 {} };
    soon("the stream is empty", looking).await;
}

/// What a router of this cluster would publish, of `n` mailboxes.
async fn publish(context: &Context, cluster: &Cluster, of: ClusterId, mailboxes: std::ops::Range<u8>) {
    for n in mailboxes {
        let mailbox = MailboxId([n; 16]);
        let (from, upto, at, due) = (Seq(1), Seq(1), UnixMillis(1), UnixMillis(1));
        let hint = WakeHint { mailbox, from, upto, urgency: Urgency::Message, at, due };
        raw(context, cluster, hint.encode(of)).await;
    }
}

async fn raw(context: &Context, cluster: &Cluster, payload: Vec<u8>) {
    let subject = format!("chappe.{}.wake.3", cluster.gateway_config.cluster_name);
    context.publish(subject, payload.into()).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn two_pushers_share_what_a_router_hints() {
    let (server, cluster) = start(JETSTREAM).await;
    let (gateway, router) = router(&cluster).await;
    let (mut one, mut two) = (pusher(&cluster, quick()).await, pusher(&cluster, quick()).await);
    one.up().await;
    two.up().await;
    let mut mailboxes = BTreeSet::new();
    for n in 0..60 {
        let mailbox = cluster.mailbox(&format!("user{n}")).await;
        mailboxes.insert(mailbox);
        accepted(&gateway, mailbox, 1).await;
    }
    until("all are stored", || router.wakes.stored.get() == 60).await;
    let (mut took, mut taken) = ([0, 0], Vec::new());
    while taken.len() < 60 {
        let (by, job) = soon("all come", async {
            tokio::select! {
                biased;
                job = one.jobs.next() => (0, job.unwrap()),
                job = two.jobs.next() => (1, job.unwrap()),
            }
        })
        .await;
        took[by] += 1;
        assert_eq!((job.hint.from, job.hint.upto), (Seq(1), Seq(1)));
        taken.push(job.hint.mailbox);
        job.done();
    }
    assert_eq!(taken.iter().copied().collect::<BTreeSet<_>>(), mailboxes, "each once");
    assert!(took.iter().all(|took| *took > 0), "both had work: {took:?}");
    is_empty(&jetstream(&server).await, &cluster).await;
    assert_eq!(one.metrics.repeated.get() + two.metrics.repeated.get(), 0);
    assert_eq!(one.metrics.done.get() + two.metrics.done.get(), 60);
}

#[tokio::test]
async fn what_is_not_finished_comes_again_and_what_is_done_does_not() {
    let (server, cluster) = start(JETSTREAM).await;
    let config = WakeJobsConfig { ack_wait: Millis(300), ..quick() };
    let (mut one, context) = (pusher(&cluster, config.clone()).await, jetstream(&server).await);
    one.up().await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 0..1).await;
    // Forgotten.
    let first = one.next().await.hint;
    // Given back, for somebody else.
    let again = one.next().await;
    assert_eq!(again.hint, first);
    again.later(Millis(0));
    let once_more = one.next().await;
    assert_eq!((once_more.hint, one.metrics.repeated.get()), (first, 2));
    // The process dies with it.
    let mut two = pusher(&cluster, config).await;
    two.up().await;
    drop(one);
    let last = two.next().await;
    assert_eq!(last.hint, first);
    last.done();
    is_empty(&context, &cluster).await;
    drop(once_more);
}

/// `later` holds a hint back for its time: what was published behind it comes first.
#[tokio::test]
async fn later_is_later() {
    let (server, cluster) = start(JETSTREAM).await;
    let (mut pusher, context) = (pusher(&cluster, quick()).await, jetstream(&server).await);
    pusher.up().await;
    let own = cluster.pusher_config.cluster;
    publish(&context, &cluster, own, 1..2).await;
    pusher.next().await.later(Millis(700));
    publish(&context, &cluster, own, 2..5).await;
    for n in [2, 3, 4, 1] {
        let job = pusher.next().await;
        assert_eq!(job.hint.mailbox, MailboxId([n; 16]));
        job.done();
    }
    assert_eq!((pusher.metrics.later.get(), pusher.metrics.repeated.get()), (1, 1));
    is_empty(&context, &cluster).await;
}

#[tokio::test]
async fn what_comes_again_and_again_ends() {
    let (server, cluster) = start(JETSTREAM).await;
    let config = WakeJobsConfig { deliver_max: 3, ack_wait: Millis(300), ..quick() };
    let (mut pusher, context) = (pusher(&cluster, config).await, jetstream(&server).await);
    pusher.up().await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 1..2).await;
    for _ in 0..3 {
        assert_eq!(pusher.next().await.hint.mailbox, MailboxId([1; 16]));
    }
    publish(&context, &cluster, cluster.pusher_config.cluster, 2..3).await;
    for _ in 0..2 {
        assert_eq!(pusher.next().await.hint.mailbox, MailboxId([2; 16]), "the other is for whoever sweeps");
    }
}

#[tokio::test]
async fn a_stream_deleted_under_pushers_is_made_again() {
    let (server, cluster) = start(JETSTREAM).await;
    let (mut one, mut two) = (pusher(&cluster, quick()).await, pusher(&cluster, quick()).await);
    one.up().await;
    two.up().await;
    let context = jetstream(&server).await;
    let made = || one.metrics.created.get() + two.metrics.created.get();
    for _ in 0..2 {
        let before = made();
        context.delete_stream(stream_of(&cluster)).await.unwrap();
        until("the consumer is made again", || made() > before).await;
    }
    let (gateway, _router) = router(&cluster).await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    let job = soon("a later hint", async {
        tokio::select! {
            biased;
            job = one.jobs.next() => job.unwrap(),
            job = two.jobs.next() => job.unwrap(),
        }
    })
    .await;
    assert_eq!(job.hint.mailbox, ben);
    job.done();
    until("both take hints", || one.metrics.up.get() + two.metrics.up.get() == 2).await;
    assert_eq!((one.jobs.trouble(), two.jobs.trouble()), (None, None));
}

#[tokio::test]
async fn a_consumer_deleted_alone_is_made_again() {
    let (server, cluster) = start(JETSTREAM).await;
    let mut pusher = pusher(&cluster, quick()).await;
    pusher.up().await;
    let context = jetstream(&server).await;
    let stream = context.get_stream(stream_of(&cluster)).await.unwrap();
    stream.delete_consumer("pushers").await.unwrap();
    publish(&context, &cluster, cluster.pusher_config.cluster, 1..2).await;
    assert_eq!(pusher.next().await.hint.mailbox, MailboxId([1; 16]), "what came meanwhile comes");
    assert_eq!(pusher.metrics.created.get(), 2);
}

#[tokio::test]
async fn a_server_that_comes_back_empty_serves_pushers_again() {
    let (mut server, cluster) = start(JETSTREAM).await;
    let mut pusher = pusher(&cluster, quick()).await;
    pusher.up().await;
    server.down();
    std::fs::remove_dir_all(server.folder.path().join("js")).unwrap();
    until("it is noticed", || pusher.bus_metrics.connected.get() == 0).await;
    server.up().await;
    until("the consumer is made again", || pusher.metrics.created.get() == 2).await;
    publish(&jetstream(&server).await, &cluster, cluster.pusher_config.cluster, 1..2).await;
    pusher.next().await.done();
}

#[tokio::test]
async fn without_jetstream_a_pusher_waits_for_it_and_tells() {
    crate::logs::keep();
    let (mut server, cluster) = start("max_payload: 8MB").await;
    let mut pusher = pusher(&cluster, quick()).await;
    until("it is told", || pusher.jobs.trouble() == Some("wakes_no_jetstream")).await;
    assert!(crate::logs::tell(&["wakes_no_jetstream", "by the sweep alone", "enable `jetstream`"]));
    assert_eq!(pusher.metrics.up.get(), 0);
    server.down();
    until("it is noticed", || pusher.bus_metrics.connected.get() == 0).await;
    server.reconfigure(JETSTREAM);
    server.up().await;
    pusher.up().await;
    assert_eq!(pusher.jobs.trouble(), None);
    publish(&jetstream(&server).await, &cluster, cluster.pusher_config.cluster, 1..2).await;
    pusher.next().await.done();
}

#[tokio::test]
async fn what_cannot_be_read_is_counted_and_gone() {
    let (server, cluster) = start(JETSTREAM).await;
    let (mut pusher, context) = (pusher(&cluster, quick()).await, jetstream(&server).await);
    pusher.up().await;
    publish(&context, &cluster, ClusterId([9; 16]), 1..3).await;
    raw(&context, &cluster, b"no hint".to_vec()).await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 3..4).await;
    let job = pusher.next().await;
    assert_eq!(job.hint.mailbox, MailboxId([3; 16]));
    job.done();
    assert_eq!(pusher.metrics.refused.get(), 3);
    assert_eq!((pusher.bus_metrics.foreign.get(), pusher.bus_metrics.invalid.get()), (2, 1));
    is_empty(&context, &cluster).await;
}

/// More than one pull's worth, and more than one pusher holds at a time, for a pusher that takes them slowly.
#[tokio::test]
async fn a_pusher_holds_no_more_than_it_asked_for() {
    let (server, cluster) = start(JETSTREAM).await;
    let context = jetstream(&server).await;
    let mut slow = pusher(&cluster, quick()).await;
    slow.up().await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 0..100).await;
    let first = slow.next().await;
    let consumer = async || {
        let stream = context.get_stream(stream_of(&cluster)).await.unwrap();
        stream.consumer_info("pushers").await.unwrap()
    };
    let settled = async { while consumer().await.num_ack_pending < 9 {} };
    soon("it has taken what fits", settled).await;
    assert!(consumer().await.num_ack_pending <= 17, "two pulls and the one in hand");
    first.done();
    for _ in 1..100 {
        slow.next().await.done();
    }
    is_empty(&context, &cluster).await;
    assert_eq!((slow.metrics.given.get(), slow.metrics.repeated.get()), (100, 0));
}

/// What nobody has asked for yet goes to another at once, not after the wait for an answer.
#[tokio::test]
async fn a_pusher_that_ends_gives_back_what_it_holds() {
    let (server, cluster) = start(JETSTREAM).await;
    let context = jetstream(&server).await;
    let config = WakeJobsConfig { ack_wait: Millis::from_secs(600), ..quick() };
    let mut one = pusher(&cluster, config.clone()).await;
    one.up().await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 0..30).await;
    one.next().await.done();
    let Pusher { bus, jobs, .. } = one;
    drop(jobs);
    let mut two = pusher(&cluster, config).await;
    let mut seen = BTreeSet::new();
    while seen.len() < 29 {
        let job = two.next().await;
        seen.insert(job.hint.mailbox);
        job.done();
    }
    is_empty(&context, &cluster).await;
    bus.close().await;
}

#[tokio::test]
async fn a_job_that_waited_too_long_here_is_somebody_elses() {
    let (server, cluster) = start(JETSTREAM).await;
    let config = WakeJobsConfig { ack_wait: Millis(200), ..quick() };
    let (mut one, context) = (pusher(&cluster, config).await, jetstream(&server).await);
    one.up().await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 0..1).await;
    until("it came twice", || one.metrics.repeated.get() > 0).await;
    assert_eq!(one.next().await.hint.mailbox, MailboxId([0; 16]));
    assert!(one.metrics.stale.get() > 0);
}

#[tokio::test]
async fn a_closed_bus_ends_the_jobs() {
    let (server, cluster) = start(JETSTREAM).await;
    let (mut pusher, context) = (pusher(&cluster, quick()).await, jetstream(&server).await);
    pusher.up().await;
    publish(&context, &cluster, cluster.pusher_config.cluster, 0..2).await;
    pusher.next().await.done();
    pusher.bus.close().await;
    assert!(soon("the end", pusher.jobs.next()).await.is_none());
    let done = async { while left(&context, &cluster).await > 1 {} };
    soon("what was done before the end is done", done).await;
}

#[tokio::test]
async fn only_pushers_take_jobs_and_bad_settings_are_refused() {
    let (_server, cluster) = start(JETSTREAM).await;
    let gateway = cluster.gateway().await;
    let metrics = || Arc::new(WakeJobMetrics::new(&prometheus::Registry::new()).unwrap());
    let refused = gateway.bus.wake_jobs(quick(), metrics()).await;
    assert_eq!(refused.err().map(|error| error.code()), Some("nats_config"));
    let pusher = pusher(&cluster, quick()).await;
    for config in [
        WakeJobsConfig { batch: 0, ..quick() },
        WakeJobsConfig { heartbeat: Millis(600), ..quick() },
        WakeJobsConfig { deliver_max: 0, ..quick() },
        WakeJobsConfig { ack_pending_max: 0, ..quick() },
    ] {
        let refused = pusher.bus.wake_jobs(config, metrics()).await;
        assert_eq!(refused.err().map(|error| error.code()), Some("nats_config"));
    }
}

/// A consumer that somebody made so that hints would come for ever is not used.
#[tokio::test]
async fn a_consumer_without_its_bound_is_told() {
    let (server, cluster) = start(JETSTREAM).await;
    let pusher = pusher(&cluster, quick()).await;
    pusher.up().await;
    let context = jetstream(&server).await;
    let stream = context.get_stream(stream_of(&cluster)).await.unwrap();
    let endless = async_nats::jetstream::consumer::pull::Config {
        durable_name: Some("pushers".to_owned()),
        max_deliver: -1,
        ack_wait: Duration::from_secs(1),
        ..Default::default()
    };
    stream.delete_consumer("pushers").await.unwrap();
    stream.create_consumer(endless).await.unwrap();
    until("it is told", || pusher.jobs.trouble() == Some("wakes_consumer_refused")).await;
}
