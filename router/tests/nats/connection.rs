//! The connection: what is wrong with it is told, and what breaks is made whole.

use crate::common::flaky::Fault;
use crate::common::{lists, outcomes, submit_of};
use crate::server::{Server, free_port};
use crate::support::{BUDGET, Cluster, RealWorld, bus_metrics, soon, until};
use chappe_protocol::id::{ClusterId, MailboxId, Seq};
use chappe_protocol::internode::{Doorbell, Outcome, Request, Ring};
use chappe_protocol::time::Millis;
use chappe_router::links::LinkError;
use chappe_router::nats::{BusError, BusRole, Credentials, NatsBus, NatsConfig};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SERVER: &str = "max_payload: 8MB";

async fn connect(config: NatsConfig) -> Result<Arc<NatsBus>, BusError> {
    soon("an answer", NatsBus::connect(config, RealWorld::shared(), bus_metrics())).await
}

async fn refused(config: NatsConfig) -> BusError {
    let Err(error) = connect(config).await else { panic!("connected") };
    assert!(!error.hint().is_empty());
    error
}

fn config(url: &str) -> NatsConfig {
    NatsConfig { cluster: ClusterId([1; 16]), ..NatsConfig::new(BusRole::Gateway, url, "test") }
}

fn submit(mailbox: MailboxId, id: u64) -> Request {
    Request::Submit(submit_of("ana", mailbox, None, &[id]))
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_the_alarm_is_raised() {
    let mut server = Server::start(SERVER).await;
    let cluster = Cluster::at(&server.url());
    let gateway = cluster.gateway().await;
    let mut bells = gateway.bus.doorbells(gateway.id, 64).await.unwrap();
    let router = cluster.router(1).await;
    gateway.hears(1).await;
    let ben = cluster.mailbox("ben").await;
    cluster.lease(ben, gateway.id).await;
    let mut alarms = gateway.bus.alarms();
    assert!(gateway.bus.health().connected);
    let connected_at = gateway.bus.health().since;

    // One is under way when the server dies; its answer has no way back.
    router.store.script(&[Fault::Slow(400)]);
    let under_way = gateway.links.request(ben, submit(ben, 1), BUDGET);
    let restart = async {
        until("it is under way", || router.asked() == 1).await;
        server.down();
        until("the gateway has noticed", || !gateway.bus.health().connected).await;
        until("the router has noticed", || router.metrics.connected.get() == 0).await;
        assert!(gateway.bus.health().since > connected_at);
        // Nobody hears this, and certainly nothing is done.
        let asked = gateway.links.request(ben, submit(ben, 2), BUDGET).await;
        assert_eq!(asked, Err(LinkError::NoRouter));
        let bell = Doorbell { mailbox: ben, ring: Ring::Grew { seq: Seq(1), slot: None } };
        let dropped = gateway.metrics.bells_dropped_disconnected.get();
        gateway.links.ring(gateway.id, bell);
        assert_eq!(gateway.metrics.bells_dropped_disconnected.get(), dropped + 1);
        until("it is written all the same", || router.metrics.served.unanswered.get() == 1).await;
        assert_eq!(*alarms.borrow_and_update(), 0);
        server.up().await;
    };
    let (reply, ()) = tokio::join!(under_way, restart);
    assert_eq!(outcomes(&lists(reply.unwrap())), [Outcome::Accepted], "asked again");
    soon("the alarm", alarms.changed()).await.unwrap();
    assert_eq!(gateway.metrics.reconnects.get(), 1);
    assert!(gateway.bus.health().connected);
    let reply = gateway.links.request(ben, submit(ben, 3), BUDGET).await.unwrap();
    assert_eq!(outcomes(&lists(reply)), [Outcome::Accepted]);
    assert_eq!(cluster.numbers(ben).await, [1, 3]);
    let last = async { while !matches!(bells.recv().await.unwrap().ring, Ring::Grew { seq: Seq(2), .. }) {} };
    soon("bells ring again", last).await;
}

#[tokio::test]
async fn nobody_there_is_told_as_such() {
    let error = refused(config(&format!("nats://127.0.0.1:{}", free_port()))).await;
    assert_eq!((error.code(), error.is_retryable()), ("nats_unreachable", true));
    let error = refused(config("nats://no such host")).await;
    assert_eq!((error.code(), error.is_retryable()), ("nats_config", false));
    let mut silent = config("");
    silent.urls.clear();
    assert_eq!(refused(silent).await.code(), "nats_config");
    let mut named = config("nats://127.0.0.1:1");
    named.cluster_name = "a.b".into();
    assert_eq!(refused(named).await.code(), "nats_config");
    // Whoever forgets the store's identity would take another cluster's messages for its own.
    let nobody = NatsConfig { cluster: ClusterId::default(), ..config(&crate::support::url()) };
    let error = refused(nobody).await;
    assert!(error.code() == "nats_config" && error.to_string().contains("cluster"), "{error}");
}

#[tokio::test]
async fn a_server_that_takes_less_than_we_send_is_refused() {
    let server = Server::start("max_payload: 1MB").await;
    let error = refused(config(&server.url())).await;
    assert_eq!(error.code(), "nats_max_payload");
    assert!(error.to_string().contains("1048576"), "{error}");
    assert!(error.hint().contains("8MB"));
}

#[tokio::test]
async fn an_old_server_is_refused() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let old = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let info = r#"{"server_id":"x","version":"2.9.10","max_payload":8388608,"headers":true,"proto":1}"#;
        socket.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        let mut read = [0; 4096];
        let _ = socket.read(&mut read).await;
        socket.write_all(b"PONG\r\n").await.unwrap();
        while socket.read(&mut read).await.is_ok_and(|n| n > 0) {}
    };
    let error = async { refused(config(&url)).await };
    let error = tokio::select! { biased; error = error => error, () = old => panic!("hung up") };
    assert_eq!(error.code(), "nats_too_old");
    assert!(error.to_string().contains("2.9.10"), "{error}");
}

#[tokio::test]
async fn credentials_are_read_from_files_and_wrong_ones_are_told() {
    let server =
        Server::start("authorization { user: ana, password: \"pass:word\" }\nmax_payload: 8MB").await;
    let file = server.folder.path().join("secret");
    let with = |credentials| NatsConfig { credentials, ..config(&server.url()) };
    let user = || with(Credentials::UserPasswordFile(file.clone()));
    std::fs::write(&file, "ana:pass:word\n").unwrap();
    assert!(connect(user()).await.is_ok());
    std::fs::write(&file, "ana:other\n").unwrap();
    let error = refused(user()).await;
    assert_eq!((error.code(), error.is_retryable()), ("nats_refused", false));
    assert!(!format!("{error} {error:?}").contains("other"), "no secret in errors");
    assert_eq!(refused(with(Credentials::None)).await.code(), "nats_refused");
    std::fs::write(&file, "no colon").unwrap();
    assert_eq!(refused(user()).await.code(), "nats_credentials");
    std::fs::write(&file, " \n").unwrap();
    assert_eq!(refused(user()).await.code(), "nats_credentials");
    let nkey = with(Credentials::NkeySeedFile(file.clone()));
    std::fs::write(&file, "no seed").unwrap();
    assert_eq!(refused(nkey).await.code(), "nats_credentials");
    let missing = with(Credentials::TokenFile(server.folder.path().join("missing")));
    let error = refused(missing).await;
    assert_eq!(error.code(), "nats_credentials");
    assert!(error.to_string().contains("missing"), "{error}");
}

#[tokio::test]
async fn a_token_is_enough_where_the_server_wants_one() {
    let server = Server::start("authorization { token: \"open sesame\" }\nmax_payload: 8MB").await;
    let file = server.folder.path().join("token");
    std::fs::write(&file, "open sesame\n").unwrap();
    let credentials = Credentials::TokenFile(file);
    assert!(connect(NatsConfig { credentials, ..config(&server.url()) }).await.is_ok());
}

#[tokio::test]
async fn tls_is_required_where_it_is_configured() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let trusting = |certificate: &rcgen::Certificate| {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        Some(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
    };
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}\nmax_payload: 8MB");
    let server = Server::start(&tls).await;
    let with = |tls| NatsConfig { tls, ..config(&server.url()) };
    assert!(connect(with(trusting(&made.cert))).await.is_ok());
    let error = refused(with(trusting(&other.cert))).await;
    assert_eq!(error.code(), "nats_tls", "{error}");
    let plain = Server::start(SERVER).await;
    let tls = trusting(&made.cert);
    let error = refused(NatsConfig { tls, ..config(&plain.url()) }).await;
    assert_eq!(error.code(), "nats_tls", "{error}");
}

#[tokio::test]
async fn a_closed_bus_answers_nobody() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let _router = cluster.router(1).await;
    gateway.hears(1).await;
    let ben = cluster.mailbox("ben").await;
    soon("it is closed", gateway.bus.close()).await;
    let reply = gateway.links.request(ben, submit(ben, 1), Millis(500)).await;
    assert_eq!(reply, Err(LinkError::NoRouter));
    assert!(cluster.numbers(ben).await.is_empty());
}
