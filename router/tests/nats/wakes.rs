//! Wake hints on JetStream: what is in the stream, what bounds it, and that appends do not care what becomes of it.

use crate::common::{lists, outcomes, submit_of};
use crate::server::Server;
use crate::support::{BUDGET, Cluster, Gateway, RouterProcess, soon, until};
use async_nats::jetstream::stream::{DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, Context};
use chappe_protocol::id::{ClusterId, MailboxId};
use chappe_protocol::internode::{InternodeError, Outcome, Request, WakeHint};
use chappe_protocol::time::Millis;
use chappe_router::nats::{Credentials, WakeConfig};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) const JETSTREAM: &str = "max_payload: 8MB\njetstream { store_dir: \"{{folder}}/js\", sync_interval: always, max_file_store: 256MB }";

/// Quick, for tests.
pub(crate) fn quick() -> WakeConfig {
    WakeConfig {
        linger: Millis(10),
        linger_later: Millis(30),
        answer_max: Millis(1500),
        look_every: Millis(300),
        ..WakeConfig::default()
    }
}

pub(crate) async fn start(config: &str) -> (Server, Cluster) {
    let server = Server::start(config).await;
    let mut cluster = Cluster::at(&server.url());
    cluster.wakes = Some(quick());
    (server, cluster)
}

pub(crate) async fn accepted(gateway: &Gateway, mailbox: MailboxId, id: u64) {
    let request = Request::Submit(submit_of("ana", mailbox, None, &[id]));
    let reply = gateway.links.request(mailbox, request, BUDGET).await.unwrap();
    assert_eq!(outcomes(&lists(reply)), [Outcome::Accepted]);
}

pub(crate) fn stream_of(cluster: &Cluster) -> String {
    format!("chappe-{}-wake", cluster.gateway_config.cluster_name)
}

/// JetStream, without our code.
pub(crate) async fn jetstream(server: &Server) -> Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

/// The subjects and hints in the stream.
async fn hints(context: &Context, cluster: &Cluster) -> Vec<(String, WakeHint)> {
    let mut stream = context.get_stream(stream_of(cluster)).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    let mut found = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let hint = WakeHint::decode(&message.payload, cluster.gateway_config.cluster).unwrap();
        found.push((message.subject.to_string(), hint));
    }
    found
}

pub(crate) async fn is_up(router: &RouterProcess) {
    until("the stream takes hints", || router.wakes.up.get() == 1).await;
}

async fn has_trouble(router: &RouterProcess, code: &str) {
    until(code, || router.trouble() == Some(code)).await;
    assert_eq!(router.wakes.up.get(), 0);
}

#[tokio::test]
async fn a_commit_leaves_a_hint_in_the_stream() {
    let (server, cluster) = start(JETSTREAM).await;
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    until("it is stored", || router.wakes.stored.get() == 1).await;
    cluster.lease(ben, gateway.id).await;
    accepted(&gateway, ben, 2).await;
    until("the other is stored", || router.wakes.stored.get() == 2).await;
    let found = hints(&jetstream(&server).await, &cluster).await;
    let name = &cluster.gateway_config.cluster_name;
    for (seq, (subject, hint)) in (1..).zip(&found) {
        assert_eq!((hint.mailbox, hint.from.0, hint.upto.0), (ben, seq, seq));
        assert_eq!(*subject, format!("chappe.{name}.wake.{}", ben.shard()), "it names nobody");
    }
    let due: Vec<u64> = found.iter().map(|(_, hint)| hint.due.0 - hint.at.0).collect();
    assert_eq!(due, [0, 20_000], "at once; when the device has had time to ack");
    until("nothing is in flight", || router.wakes.in_flight.get() == 0).await;
}

#[tokio::test]
async fn every_slot_is_in_some_hint_and_hints_of_one_mailbox_collapse() {
    let (server, mut cluster) = start(JETSTREAM).await;
    cluster.wakes = Some(WakeConfig { linger: Millis(200), ..quick() });
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let ben = cluster.mailbox("ben").await;
    for id in 1..=20 {
        accepted(&gateway, ben, id).await;
    }
    let made = || router.wakes.stored.get() + router.wakes.merged.get();
    until("all went", || made() == 20 && router.wakes.queue.get() == 0).await;
    let found = hints(&jetstream(&server).await, &cluster).await;
    let slots: BTreeSet<u64> = found.iter().flat_map(|(_, hint)| hint.from.0..=hint.upto.0).collect();
    assert_eq!(slots, (1..=20).collect());
    assert!(found.len() < 20 && router.wakes.merged.get() > 0, "{found:?}");
}

#[tokio::test]
async fn the_stream_is_bounded_and_follows_the_settings_of_the_router_that_starts() {
    let (server, mut cluster) = start(JETSTREAM).await;
    let router = cluster.router(1).await;
    is_up(&router).await;
    let context = jetstream(&server).await;
    let config = async || context.get_stream(stream_of(&cluster)).await.unwrap().cached_info().config.clone();
    let found = config().await;
    let name = &cluster.gateway_config.cluster_name;
    assert_eq!(found.subjects, [format!("chappe.{name}.wake.*")]);
    assert_eq!((found.max_bytes, found.max_age), (64 << 20, Duration::from_mins(1)));
    assert_eq!((found.discard, found.storage), (DiscardPolicy::Old, StorageType::File));
    assert_eq!(found.retention, RetentionPolicy::WorkQueue, "what is done goes");
    assert_eq!((found.num_replicas, router.wakes.created.get()), (1, 1));
    let narrow = WakeConfig { stream_bytes_max: 1 << 20, ..quick() };
    cluster.wakes = Some(narrow);
    let second = cluster.router(2).await;
    is_up(&second).await;
    let config = context.get_stream(stream_of(&cluster)).await.unwrap().cached_info().config.clone();
    assert_eq!((config.max_bytes, second.wakes.created.get()), (1 << 20, 0));
}

#[tokio::test]
async fn a_full_stream_drops_the_oldest() {
    let (server, mut cluster) = start(JETSTREAM).await;
    cluster.wakes = Some(WakeConfig { stream_bytes_max: 4096, ..quick() });
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let mut last = MailboxId::default();
    for n in 0..60 {
        last = cluster.mailbox(&format!("user{n}")).await;
        accepted(&gateway, last, 1).await;
    }
    until("all were taken", || router.wakes.stored.get() == 60).await;
    let context = jetstream(&server).await;
    let state = context.get_stream(stream_of(&cluster)).await.unwrap().cached_info().state.clone();
    assert!(state.bytes <= 4096 && state.messages < 60, "{state:?}");
    let found = hints(&context, &cluster).await;
    assert!(found.iter().any(|(_, hint)| hint.mailbox == last), "the newest is there");
    assert_eq!(router.wakes.lost_refused.get(), 0);
}

#[tokio::test]
async fn a_stream_that_is_deleted_is_made_again_and_appends_go_on() {
    let (server, mut cluster) = start(JETSTREAM).await;
    // A hint that nobody takes is what tells.
    cluster.wakes = Some(WakeConfig { look_every: Millis::from_secs(600), ..quick() });
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let ben = cluster.mailbox("ben").await;
    let stop = AtomicBool::new(false);
    let sender = async {
        let mut id = 0;
        while !stop.load(Ordering::Relaxed) {
            id += 1;
            accepted(&gateway, ben, id).await;
        }
        id
    };
    let delete = async {
        until("hints are stored", || router.wakes.stored.get() > 5).await;
        let context = jetstream(&server).await;
        context.delete_stream(stream_of(&cluster)).await.unwrap();
        until("it is made again", || router.wakes.created.get() == 2).await;
        let stored = router.wakes.stored.get();
        until("hints are stored again", || router.wakes.stored.get() > stored + 5).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (count, ()) = tokio::join!(sender, delete);
    assert_eq!(cluster.numbers(ben).await, (1..=count).collect::<Vec<u64>>(), "each once, in order");
}

#[tokio::test]
async fn a_stream_that_is_deleted_while_nobody_writes_is_found_missing() {
    let (server, cluster) = start(JETSTREAM).await;
    let router = cluster.router(1).await;
    is_up(&router).await;
    jetstream(&server).await.delete_stream(stream_of(&cluster)).await.unwrap();
    until("it is made again", || router.wakes.created.get() == 2).await;
}

#[tokio::test]
async fn a_server_that_comes_back_empty_gets_its_stream_again() {
    let (mut server, mut cluster) = start(JETSTREAM).await;
    // The new connection is what tells.
    cluster.wakes = Some(WakeConfig { look_every: Millis::from_secs(600), ..quick() });
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    until("it is stored", || router.wakes.stored.get() == 1).await;
    server.down();
    std::fs::remove_dir_all(server.folder.path().join("js")).unwrap();
    until("the router has noticed", || router.metrics.connected.get() == 0).await;
    server.up().await;
    until("it is made again", || router.wakes.created.get() == 2).await;
    gateway.hears(1).await;
    accepted(&gateway, ben, 2).await;
    until("it is stored", || router.wakes.stored.get() == 2).await;
    let found = hints(&jetstream(&server).await, &cluster).await;
    assert_eq!(found.iter().map(|(_, hint)| hint.upto.0).collect::<Vec<_>>(), [2]);
}

#[tokio::test]
async fn without_jetstream_a_router_serves_and_uses_it_when_it_comes() {
    crate::logs::keep();
    let (mut server, cluster) = start("max_payload: 8MB").await;
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    has_trouble(&router, "wakes_no_jetstream").await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    assert_eq!((router.wakes.lost_no_stream.get(), router.wakes.stored.get()), (1, 0));
    assert!(
        crate::logs::tell(&["wakes_no_jetstream", "nothing else", "enable `jetstream`"]),
        "with what to do"
    );
    server.down();
    until("the router has noticed", || router.metrics.connected.get() == 0).await;
    server.reconfigure(JETSTREAM);
    server.up().await;
    is_up(&router).await;
    assert_eq!(router.trouble(), None);
    gateway.hears(1).await;
    accepted(&gateway, ben, 2).await;
    until("it is stored", || router.wakes.stored.get() == 1).await;
}

#[tokio::test]
async fn where_there_is_no_room_for_the_stream_a_router_serves() {
    let (mut server, cluster) = start(&JETSTREAM.replace("256MB", "1MB")).await;
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    has_trouble(&router, "wakes_stream_refused").await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    server.down();
    until("the router has noticed", || router.metrics.connected.get() == 0).await;
    server.reconfigure(JETSTREAM);
    server.up().await;
    is_up(&router).await;
}

#[tokio::test]
async fn more_copies_than_servers_are_refused_and_told() {
    let (_server, mut cluster) = start(JETSTREAM).await;
    cluster.wakes = Some(WakeConfig { replicas: 3, ..quick() });
    let router = cluster.router(1).await;
    has_trouble(&router, "wakes_stream_refused").await;
}

/// A server on which a router may do everything but this.
async fn forbidding(subjects: &str) -> (Server, Cluster) {
    let users = format!(
        "authorization {{ users: [
            {{ user: router, password: x, permissions: {{ publish: {{ deny: [{subjects}] }} }} }}
            {{ user: other, password: x }}
        ] }}\n{JETSTREAM}"
    );
    let (server, mut cluster) = start(&users).await;
    for (config, user) in [(&mut cluster.router_config, "router"), (&mut cluster.gateway_config, "other")] {
        let file = server.folder.path().join(user);
        std::fs::write(&file, format!("{user}:x")).unwrap();
        config.credentials = Credentials::UserPasswordFile(file);
    }
    (server, cluster)
}

#[tokio::test]
async fn hints_that_get_no_answer_hold_no_append_and_no_more_than_their_bound() {
    let (_server, mut cluster) = forbidding(r#""chappe.*.wake.*""#).await;
    cluster.wakes = Some(WakeConfig { in_flight_max: 2, mailboxes_max: 3, ..quick() });
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let mut mailboxes = Vec::new();
    for n in 0..12 {
        mailboxes.push(cluster.mailbox(&format!("user{n}")).await);
    }
    for mailbox in &mailboxes {
        accepted(&gateway, *mailbox, 1).await;
    }
    until("what does not fit is dropped", || router.wakes.lost_full.get() > 0).await;
    assert!(router.wakes.in_flight.get() <= 2 && router.wakes.queue.get() <= 3);
    // The same again while nothing moves: nobody waits for it.
    for mailbox in &mailboxes {
        accepted(&gateway, *mailbox, 2).await;
    }
    until("they are given up", || router.wakes.lost_unanswered.get() >= 5).await;
    until("the places are free", || router.wakes.in_flight.get() == 0 && router.wakes.queue.get() == 0).await;
    assert_eq!(router.wakes.stored.get(), 0);
}

#[tokio::test]
async fn a_router_that_may_not_make_the_stream_serves_and_tells() {
    let (_server, cluster) = forbidding(r#""$JS.API.>""#).await;
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    has_trouble(&router, "wakes_no_answer").await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
}

#[tokio::test]
async fn a_stream_that_somebody_made_endless_is_not_used() {
    let (server, cluster) = start(JETSTREAM).await;
    let router = cluster.router(1).await;
    is_up(&router).await;
    let context = jetstream(&server).await;
    let mut config = context.get_stream(stream_of(&cluster)).await.unwrap().cached_info().config.clone();
    config.max_age = Duration::ZERO;
    context.update_stream(&config).await.unwrap();
    has_trouble(&router, "wakes_stream_differs").await;
    context.delete_stream(stream_of(&cluster)).await.unwrap();
    is_up(&router).await;
}

/// As routers made it before there were pushers.
#[tokio::test]
async fn a_stream_of_the_old_kind_is_replaced() {
    let (server, cluster) = start(JETSTREAM).await;
    let context = jetstream(&server).await;
    let old = async_nats::jetstream::stream::Config {
        name: stream_of(&cluster),
        subjects: vec![format!("chappe.{}.wake.*", cluster.gateway_config.cluster_name)],
        max_bytes: 64 << 20,
        max_age: Duration::from_mins(1),
        discard: DiscardPolicy::Old,
        ..Default::default()
    };
    let retention = async || {
        let stream = context.get_stream(stream_of(&cluster)).await.unwrap();
        stream.cached_info().config.retention
    };
    context.create_stream(old.clone()).await.unwrap();
    assert_eq!(retention().await, RetentionPolicy::Limits);
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    assert_eq!((retention().await, router.wakes.created.get()), (RetentionPolicy::WorkQueue, 1));
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    until("it is stored", || router.wakes.stored.get() == 1).await;
    // A router of that time, on its first day beside us.
    // Ours may be quicker with a new stream than it is.
    let mut tries = 0;
    loop {
        // Fails where there is none at the moment: the next creation decides.
        let _ = context.delete_stream(stream_of(&cluster)).await;
        let created = context.create_stream(old.clone()).await;
        tries += 1;
        if created.is_ok() {
            break;
        }
        assert!(tries < 20, "{created:?}");
    }
    until("it is replaced again", || router.wakes.created.get() >= 2).await;
    assert_eq!(retention().await, RetentionPolicy::WorkQueue);
}

#[tokio::test]
async fn a_router_without_wakes_makes_no_stream() {
    let (server, mut cluster) = start(JETSTREAM).await;
    cluster.wakes = None;
    let (gateway, _router) = (cluster.gateway().await, cluster.router(1).await);
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    assert!(jetstream(&server).await.get_stream(stream_of(&cluster)).await.is_err());
}

#[tokio::test]
async fn a_gateway_publishes_no_hints() {
    let (_server, cluster) = start(JETSTREAM).await;
    let gateway = cluster.gateway().await;
    let metrics = crate::support::wake_metrics();
    let refused = soon("an answer", gateway.bus.wakes(quick(), metrics)).await;
    assert_eq!(refused.err().map(|error| error.code()), Some("nats_config"));
}

#[tokio::test]
async fn hints_of_another_cluster_are_known_as_such() {
    let (server, cluster) = start(JETSTREAM).await;
    let (gateway, router) = (cluster.gateway().await, cluster.router(1).await);
    is_up(&router).await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    until("it is stored", || router.wakes.stored.get() == 1).await;
    let context = jetstream(&server).await;
    let message = context.get_stream(stream_of(&cluster)).await.unwrap().get_raw_message(1).await.unwrap();
    let theirs = WakeHint::decode(&message.payload, ClusterId([9; 16]));
    assert_eq!(theirs, Err(InternodeError::Foreign));
}
