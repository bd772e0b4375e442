//! Devices and users that an operator bars, with the bus and without it, in paused time.
//! **Invariant:** within 60 s of the call their open sockets are closed, wherever they are, and no token of theirs opens another.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use bytes::Bytes;
use chappe_node::admin::{AdminCall, Method, StatusCode};
use chappe_protocol::frame::{ClientFrame, Hello, Role, ServerFrame};
use chappe_protocol::id::{Seq, UserId};
use chappe_protocol::internode::Outcome;
use chappe_router::operations::{Operations, handler};
use chappe_storage::StoreError;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use support::Cluster;
use support::carrier::every_carrier;
use support::client::{Client, In, code, device, submit_to};

const REVOKED: u16 = 4501;

/// An operator's call on a router's admin port.
async fn operate(cluster: &Cluster, path: &str, body: serde_json::Value) -> StatusCode {
    let (store, links) = (cluster.store.clone(), cluster.links.clone());
    let operations = Arc::new(OnceLock::new());
    let set =
        operations.set(Operations { store, links, traces: Arc::default(), token: "the admin token".into() });
    assert!(set.is_ok());
    let call = AdminCall {
        method: Method::POST,
        path: path.into(),
        bearer: Some("the admin token".into()),
        body: Bytes::from(body.to_string()),
    };
    handler(operations)(call).await.expect("there is such a call").status
}

async fn revoke_device(cluster: &Cluster, user: &str, device: &str) {
    let body = serde_json::json!({ "user": user, "device": device });
    assert_eq!(operate(cluster, "/v1/devices/revoke", body).await, StatusCode::OK);
}

async fn revoke_user(cluster: &Cluster, user: &str) -> StatusCode {
    operate(cluster, "/v1/users/revoke", serde_json::json!({ "user": user })).await
}

/// Pings until the close, and tells its code.
async fn closed(client: &mut Client) -> u16 {
    for nonce in 0.. {
        if !client.try_send_bytes(&ClientFrame::Ping { nonce }.encode()).await {
            break;
        }
        while let Some(event) = client.next_within(5000).await {
            if let In::Close(code) = event {
                return code;
            }
        }
    }
    client.closed().await
}

/// All ways in that a token of this user and device could open, resuming included.
fn ways_in(cluster: &Cluster, before: &Client, user: &str, name: &str) -> Vec<Hello> {
    let attach = Client::hello(cluster, user, name);
    let peek = Hello { role: Role::Peek, ..attach.clone() };
    vec![before.again(cluster, user, name, 0), attach, peek]
}

async fn settle() {
    // Past the time for which an attach makes the routers look at the mailbox.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

every_carrier! {
async fn a_revoked_device_is_out_at_once_and_stays_out_everywhere() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    let mut phone = Client::connect(&cluster, &one, "ben", "phone").await;
    let mut laptop = Client::connect(&cluster, &two, "ben", "laptop").await;
    let same_token = phone.again(&cluster, "ben", "phone", 0);
    settle().await;
    let before = cluster.world_now();
    revoke_device(&cluster, "ben", "phone").await;
    assert_eq!(phone.closed().await, REVOKED);
    assert!(cluster.world_now() - before < 1000, "by its doorbell");
    for gateway in [&one, &two] {
        for hello in ways_in(&cluster, &phone, "ben", "phone").into_iter().chain([same_token.clone()]) {
            assert_eq!(code(gateway, hello).await, REVOKED);
        }
    }
    laptop.send(&ClientFrame::Ping { nonce: 1 }).await;
    while laptop.next().await != In::Frame(ServerFrame::Pong { nonce: 1, upto: Seq(0) }) {}
}
}

every_carrier! {
/// The bus loses doorbells; then it is not there at all.
async fn without_its_doorbell_and_without_a_bus_a_revoked_device_is_out_within_a_minute() {
    for cut in [false, true] {
        // Wherever in the rhythm of the probes it falls.
        for offset in 0..150 {
            let cluster = Cluster::new();
            let (one, two) = (cluster.gateway(1), cluster.gateway(2));
            let mut ben = Client::connect(&cluster, &one, "ben", "phone").await;
            for nonce in 0..30 + offset {
                ben.send(&ClientFrame::Ping { nonce }).await;
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            cluster.links.deaf.store(true, Ordering::Relaxed);
            cluster.links.cut.store(cut, Ordering::Relaxed);
            let before = cluster.world_now();
            revoke_device(&cluster, "ben", "phone").await;
            assert_eq!(closed(&mut ben).await, REVOKED);
            let took = cluster.world_now() - before;
            assert!(took <= 60_000, "cut {cut}, offset {offset}: {took} ms");
            for hello in ways_in(&cluster, &ben, "ben", "phone") {
                assert_eq!(code(&two, hello).await, REVOKED);
            }
        }
    }
}
}

every_carrier! {
async fn without_a_bus_the_session_of_an_erased_user_ends_within_a_minute() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    cluster.links.cut.store(true, Ordering::Relaxed);
    let before = cluster.world_now();
    assert_eq!(
        operate(&cluster, "/v1/users/erase", serde_json::json!({ "user": "ben" })).await,
        StatusCode::OK
    );
    assert_eq!(closed(&mut ben).await, 4503);
    assert!(cluster.world_now() - before <= 60_000);
}
}

every_carrier! {
async fn without_a_bus_what_was_committed_is_found_all_the_same() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    cluster.links.cut.store(true, Ordering::Relaxed);
    let entry = cluster.entry();
    let mailbox = cluster.mailbox("ben").await;
    cluster.store.add_pending(mailbox).await.unwrap();
    cluster.store.append(mailbox, &[entry], None).await.unwrap();
    let before = cluster.world_now();
    let found = loop {
        assert!(cluster.world_now() - before <= 60_000, "within one probe");
        ben.send(&ClientFrame::Ping { nonce: 0 }).await;
        match ben.next_within(5000).await {
            Some(In::Frame(ServerFrame::Deliver(deliver))) => break deliver.seq,
            Some(In::Frame(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            None => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(found, Seq(1));
    assert!(gateway.metrics.probes_alone_total.get() > 0);
}
}

every_carrier! {
async fn a_barred_user_is_out_with_all_devices_and_with_those_that_never_were_here() {
    for cut in [false, true] {
        let cluster = Cluster::new();
        let (one, two) = (cluster.gateway(1), cluster.gateway(2));
        let mut phone = Client::connect(&cluster, &one, "ben", "phone").await;
        let mut laptop = Client::connect(&cluster, &two, "ben", "laptop").await;
        let mut ada = Client::connect(&cluster, &one, "ada", "laptop").await;
        assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
        cluster.links.cut.store(cut, Ordering::Relaxed);
        let before = cluster.world_now();
        assert_eq!(revoke_user(&cluster, "ben").await, StatusCode::OK);
        let (a, b) = tokio::join!(closed(&mut phone), closed(&mut laptop));
        assert_eq!((a, b), (REVOKED, REVOKED));
        assert!(cluster.world_now() - before <= if cut { 60_000 } else { 6_000 });
        for (client, name) in [(&phone, "phone"), (&laptop, "laptop"), (&phone, "tablet")] {
            for hello in ways_in(&cluster, client, "ben", name) {
                assert_eq!(code(&two, hello).await, REVOKED, "{name}");
            }
        }
        // Others do not suffer, and nothing is accepted for nobody.
        let mut ada = Client::connect(&cluster, &two, "ada", "laptop").await;
        if !cut {
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(ada.outcome(submit_to(2, &["ben"], b"x")).await, Outcome::NoDevice);
        }
        assert_eq!(revoke_user(&cluster, "ben").await, StatusCode::OK, "twice is once");
    }
}
}

every_carrier! {
async fn an_erased_user_can_be_barred_and_a_stranger_cannot() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    drop(Client::connect(&cluster, &gateway, "ben", "phone").await);
    assert_eq!(revoke_user(&cluster, "nobody").await, StatusCode::NOT_FOUND);
    cluster.store.erase(&UserId::new("ben").unwrap()).await.unwrap();
    assert_eq!(revoke_user(&cluster, "ben").await, StatusCode::OK);
    assert_eq!(code(&gateway, Client::hello(&cluster, "ben", "phone")).await, REVOKED);
    // The way back: whom nobody remembers nobody bars.
    cluster.store.erase(&UserId::new("ben").unwrap()).await.unwrap();
    assert_eq!(code(&gateway, Client::hello(&cluster, "ben", "phone")).await, 0);
    let one_device = serde_json::json!({ "user": "ben", "device": "phone" });
    assert_eq!(operate(&cluster, "/v1/users/revoke", one_device).await, StatusCode::BAD_REQUEST);
}
}

every_carrier! {
async fn nobody_attaches_as_the_device_that_stands_for_all() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let name = chappe_storage::every_device();
    assert_eq!(code(&gateway, Client::hello(&cluster, "ben", name.as_str())).await, REVOKED);
    assert_eq!(code(&gateway, Client::hello(&cluster, "ben", "phone")).await, 0, "and bars nobody by it");
}
}

every_carrier! {
/// A peek has no lease to ring: it ends by itself, however busy it is.
async fn a_peek_of_a_revoked_device_that_goes_on_submitting_is_out_within_a_minute() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    drop(Client::connect(&cluster, &gateway, "ben", "phone").await);
    let _ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    settle().await;
    let hello = Hello { role: Role::Peek, ..Client::hello(&cluster, "ben", "phone") };
    let mut peek = Client::connect_with(&gateway, hello).await;
    let before = cluster.world_now();
    revoke_device(&cluster, "ben", "phone").await;
    let ended = 'submitting: loop {
        let id = u8::try_from((cluster.world_now() - before) / 1000).expect("within minutes");
        let submit = ClientFrame::Submit(submit_to(id, &["ada"], b"x"));
        let _perhaps_gone = peek.try_send_bytes(&submit.encode()).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        while let Some(event) = peek.next_within(1).await {
            match event {
                In::Close(code) => break 'submitting code,
                In::End => panic!("it ended without a code"),
                In::Frame(_) => {}
            }
        }
    };
    assert!([REVOKED, 3008].contains(&ended), "{ended}");
    assert!(cluster.world_now() - before <= 60_000);
    assert_eq!(
        code(&gateway, Hello { role: Role::Peek, ..Client::hello(&cluster, "ben", "phone") }).await,
        REVOKED
    );
}
}

every_carrier! {
async fn the_store_itself_keeps_the_barred_out() {
    let cluster = Cluster::new();
    let user = cluster.store.create_user(&UserId::new("ben").unwrap()).await.unwrap();
    chappe_storage::bar(&*cluster.store, user.mailbox).await.unwrap();
    let glanced = cluster.store.glance(user.mailbox, &device("phone"), None).await;
    assert_eq!(glanced, Err(StoreError::Revoked));
}
}
