//! What the server lets each role do, with the rules of `dev/conf/nats-users.conf`.

use crate::common::{lists, outcomes, submit_of};
use crate::server::Server;
use crate::support::{BUDGET, Cluster, soon, until};
use async_nats::{Client, ConnectOptions, Event};
use chappe_protocol::internode::{Outcome, Request};
use chappe_protocol::time::Millis;
use chappe_router::nats::{Credentials, WakeConfig};
use futures_util::StreamExt;
use std::sync::{Arc, Mutex};

/// A server with the rules, and a cluster on it with the credentials.
pub(crate) async fn start() -> (Server, Cluster, String) {
    let router = nkeys::KeyPair::new_user();
    let router_seed = router.seed().unwrap();
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/conf/nats-users.conf");
    let name = crate::support::cluster_name();
    let rules = std::fs::read_to_string(rules).unwrap();
    let (head, rules) = rules.split_once("authorization {").unwrap();
    assert!(head.lines().all(|line| line.starts_with('#')));
    let rules = rules
        .replace("{{cluster}}", &name)
        .replace("{{gateway}}", "user: gateway, password: secret")
        .replace("{{router}}", &format!("nkey: {}", router.public_key()))
        .replace("{{pusher}}", "user: pusher, password: secret");
    let jetstream = "jetstream { store_dir: \"{{folder}}/js\" }";
    let server = Server::start(&format!("max_payload: 8MB\n{jetstream}\nauthorization {{{rules}")).await;
    let mut cluster = Cluster::named(&server.url(), &name);
    // It looks for its stream all the while.
    cluster.wakes = Some(WakeConfig { look_every: Millis(20), ..crate::wakes::quick() });
    let (password, seed) = (server.folder.path().join("password"), server.folder.path().join("seed"));
    std::fs::write(&password, "gateway:secret\n").unwrap();
    std::fs::write(&seed, format!("{router_seed}\n")).unwrap();
    let pusher = server.folder.path().join("pusher");
    std::fs::write(&pusher, "pusher:secret\n").unwrap();
    cluster.pusher_config.credentials = Credentials::UserPasswordFile(pusher);
    cluster.gateway_config.credentials = Credentials::UserPasswordFile(password);
    cluster.router_config.credentials = Credentials::NkeySeedFile(seed);
    (server, cluster, router_seed)
}

/// A client with a role's credentials and without our code, and what the server forbade it.
async fn raw(options: ConnectOptions, server: &Server) -> (Client, Arc<Mutex<Vec<String>>>) {
    let denied = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&denied);
    let options = options.event_callback(move |event| {
        let noted = Arc::clone(&noted);
        async move {
            if let Event::ServerError(error) = event {
                noted.lock().unwrap().push(error.to_string().to_lowercase());
            }
        }
    });
    (options.connect(server.url()).await.unwrap(), denied)
}

async fn is_denied(denied: &Mutex<Vec<String>>, what: &str, subject: &str) {
    let wanted = format!("permissions violation for {what} to \"{}", subject.to_lowercase());
    until(&format!("{what} to {subject} is denied"), || {
        let mut denied = denied.lock().unwrap();
        let at = denied.iter().position(|line| line.contains(&wanted));
        at.map(|at| denied.remove(at)).is_some()
    })
    .await;
}

#[tokio::test]
async fn each_role_can_do_its_work_and_nothing_else() {
    let (server, cluster, router_seed) = start().await;
    let name = cluster.gateway_config.cluster_name.clone();

    // The work.
    let gateway = cluster.gateway().await;
    let mut bells = gateway.bus.doorbells(gateway.id, 8).await.unwrap();
    let router = cluster.router(1).await;
    gateway.hears(1).await;
    let ben = cluster.mailbox("ben").await;
    cluster.lease(ben, gateway.id).await;
    let request = Request::Submit(submit_of("ana", ben, None, &[1]));
    let reply = gateway.links.request(ben, request, BUDGET).await.unwrap();
    assert_eq!(outcomes(&lists(reply)), [Outcome::Accepted]);
    soon("the bell", bells.recv()).await.unwrap();
    crate::wakes::is_up(&router).await;
    let request = Request::Submit(submit_of("ana", ben, None, &[2]));
    gateway.links.request(ben, request, BUDGET).await.unwrap();
    soon("the bell", bells.recv()).await.unwrap();
    until("the hint is stored", || router.wakes.stored.get() > 0).await;

    // Not as a gateway: ring, announce, beat, answer, hint, touch the stream, take requests.
    let (client, denied) =
        raw(ConnectOptions::with_user_and_password("gateway".into(), "secret".into()), &server).await;
    let bell = format!("chappe.{name}.bell.{}", gateway.id);
    let answer = format!("chappe.{name}.reply.someone.1");
    let stream = crate::wakes::stream_of(&cluster);
    let hint = format!("chappe.{name}.wake.3");
    let gone = format!("$JS.API.STREAM.DELETE.{stream}");
    let (up, beat) = (format!("chappe.{name}.up"), format!("chappe.{name}.router.1.beat"));
    for subject in [&bell, &up, &beat, &answer, &hint, &gone, &format!("$JS.API.STREAM.INFO.{stream}")] {
        client.publish(subject.clone(), "x".into()).await.unwrap();
        is_denied(&denied, "publish", subject).await;
    }
    for subject in [
        format!("chappe.{name}.ask"),
        format!("chappe.{name}.router.*.ask"),
        format!("chappe.{name}.wake.*"),
        ">".to_owned(),
    ] {
        let _subscription = client.subscribe(subject.clone()).await.unwrap();
        is_denied(&denied, "subscription", &subject).await;
    }
    let ask = format!("chappe.{name}.ask");
    let _group = client.queue_subscribe(ask.clone(), "routers".to_owned()).await.unwrap();
    is_denied(&denied, "subscription", &ask).await;
    assert!(bells.try_recv().is_err(), "no bell came of it");
    assert_eq!(gateway.metrics.invalid.get(), 0, "nothing reached our gateway");

    // Not as a router: ask, answer who did not ask, hear answers and bells, read hints, empty the stream, make or delete another.
    let (client, denied) = raw(ConnectOptions::with_nkey(router_seed), &server).await;
    let purge = format!("$JS.API.STREAM.PURGE.{stream}");
    let read = format!("$JS.API.CONSUMER.CREATE.{stream}");
    let other = "$JS.API.STREAM.CREATE.other".to_owned();
    let others = "$JS.API.STREAM.DELETE.other".to_owned();
    let job = format!("chappe.{name}.job.someone.1");
    let router_ask = format!("chappe.{name}.router.1.ask");
    for subject in [&router_ask, &ask, &answer, &purge, &read, &other, &others, &job] {
        client.publish(subject.clone(), "x".into()).await.unwrap();
        is_denied(&denied, "publish", subject).await;
    }
    let heard = [
        format!("chappe.{name}.reply.>"),
        hint,
        format!("chappe.{name}.wake.*"),
        bell,
        ask.clone(),
        format!("chappe.{name}.job.>"),
        ">".to_owned(),
    ];
    for subject in heard {
        let _subscription = client.subscribe(subject.clone()).await.unwrap();
        is_denied(&denied, "subscription", &subject).await;
    }
    assert_eq!(
        (gateway.metrics.denied.get(), router.metrics.denied.get()),
        (0, 0),
        "our own code tries nothing else"
    );
}

#[tokio::test]
async fn a_pusher_takes_hints_and_nothing_else() {
    let (server, cluster, _seed) = start().await;
    let name = cluster.gateway_config.cluster_name.clone();
    let stream = crate::wakes::stream_of(&cluster);

    // The work: it makes stream and consumer, takes a hint, gives it back, takes it again, and is done.
    let mut pusher = crate::jobs::pusher(&cluster, crate::jobs::quick()).await;
    until("hints can come", || pusher.metrics.up.get() == 1).await;
    let gateway = cluster.gateway().await;
    let router = cluster.router(1).await;
    gateway.hears(1).await;
    crate::wakes::is_up(&router).await;
    let ben = cluster.mailbox("ben").await;
    crate::wakes::accepted(&gateway, ben, 1).await;
    let job = soon("the hint", pusher.jobs.next()).await.unwrap();
    assert_eq!(job.hint.mailbox, ben);
    job.later(Millis(0));
    soon("the hint again", pusher.jobs.next()).await.unwrap().done();
    assert_eq!(pusher.jobs.trouble(), None);
    assert_eq!(pusher.bus_metrics.denied.get(), 0, "our own code tries nothing else");

    // Not: hint, ask, ring, announce; set, empty, delete or read the stream; touch the consumer beyond making it.
    let options = ConnectOptions::with_user_and_password("pusher".into(), "secret".into());
    let (client, denied) = raw(options, &server).await;
    for subject in [
        format!("chappe.{name}.wake.3"),
        format!("chappe.{name}.ask"),
        format!("chappe.{name}.bell.{}", gateway.id),
        format!("chappe.{name}.up"),
        format!("chappe.{name}.job.someone.1"),
        format!("$JS.API.STREAM.UPDATE.{stream}"),
        format!("$JS.API.STREAM.DELETE.{stream}"),
        format!("$JS.API.STREAM.PURGE.{stream}"),
        format!("$JS.API.STREAM.MSG.GET.{stream}"),
        format!("$JS.API.STREAM.MSG.DELETE.{stream}"),
        format!("$JS.API.CONSUMER.DELETE.{stream}.pushers"),
        format!("$JS.API.CONSUMER.CREATE.{stream}.other"),
        "$JS.API.STREAM.CREATE.other".to_owned(),
    ] {
        client.publish(subject.clone(), "x".into()).await.unwrap();
        is_denied(&denied, "publish", &subject).await;
    }
    for subject in [
        format!("chappe.{name}.wake.*"),
        format!("chappe.{name}.ask"),
        format!("chappe.{name}.bell.*"),
        format!("chappe.{name}.stored.>"),
        format!("chappe.{name}.reply.>"),
        ">".to_owned(),
    ] {
        let _subscription = client.subscribe(subject.clone()).await.unwrap();
        is_denied(&denied, "subscription", &subject).await;
    }
}

#[tokio::test]
async fn nobody_gets_on_the_bus_without_credentials() {
    let (server, _cluster, _seed) = start().await;
    assert!(async_nats::connect(server.url()).await.is_err());
}

#[tokio::test]
async fn a_subscriber_of_another_cluster_hears_nothing() {
    let (server, cluster, router_seed) = start().await;
    let (client, denied) = raw(ConnectOptions::with_nkey(router_seed), &server).await;
    let mut other = client.subscribe("chappe.other.who").await.unwrap();
    is_denied(&denied, "subscription", "chappe.other.who").await;
    let gateway = cluster.gateway().await;
    gateway.bus.close().await;
    assert!(tokio::time::timeout(std::time::Duration::ZERO, other.next()).await.is_err());
}
