//! Each planted defect of a gateway is noticed by one story, which goes well without it.
//! **Invariant:** a story tells by what a device or a store would see, never by the defect.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_gateway::faults::Bug;
use chappe_protocol::envelope::DeviceFilter;
use chappe_protocol::frame::{ClientFrame, ServerFrame};
use chappe_protocol::id::Seq;
use chappe_protocol::internode::Outcome;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::carrier::every_carrier;
use support::client::{Client, In, device, submit_to};
use support::{Cluster, Gateway};

fn gateway(cluster: &Cluster, number: u8, bug: Option<Bug>) -> Gateway {
    cluster.gateway_with(number, |config| config.bug = bug)
}

/// Pings for five minutes, so that the connection stands, until `want` is seen.
async fn sees(client: &mut Client, want: impl Fn(&In) -> bool) -> bool {
    for nonce in 0..60 {
        let _perhaps_gone = client.try_send_bytes(&ClientFrame::Ping { nonce }.encode()).await;
        while let Some(event) = client.next_within(5000).await {
            if want(&event) {
                return true;
            }
            if matches!(event, In::Close(_) | In::End) {
                return false;
            }
        }
    }
    false
}

/// Only the named device gets what is for it (I6), told by its doorbell or read.
async fn only_the_named_device_gets_it(bug: Option<Bug>) -> bool {
    let cluster = Cluster::new();
    let gateway = gateway(&cluster, 1, bug);
    let mut phone = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut laptop = Client::connect(&cluster, &gateway, "ben", "laptop").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let mut submit = submit_to(1, &["ben"], b"for the phone");
    submit.targets[0].devices = DeviceFilter::Only(vec![device("phone")]);
    assert_eq!(ada.outcome(submit).await, Outcome::Accepted);
    assert_eq!(phone.deliver().await.payload[..], *b"for the phone");
    !sees(&mut laptop, |event| matches!(event, In::Frame(ServerFrame::Deliver(_)))).await
}

/// What no doorbell told is delivered within one probe.
async fn a_lost_doorbell_is_made_good(bug: Option<Bug>) -> bool {
    let cluster = Cluster::new();
    let gateway = gateway(&cluster, 1, bug);
    cluster.links.deaf.store(true, Ordering::Relaxed);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { upto: Seq(0) }));
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    sees(&mut ben, |event| matches!(event, In::Frame(ServerFrame::Deliver(_)))).await
}

/// The older of two sockets is closed: told by a doorbell, or, without any, by the probe or its lease (I6).
async fn the_older_socket_is_closed(bug: Option<Bug>, deaf: bool) -> bool {
    let cluster = Cluster::new();
    let (one, two) = (gateway(&cluster, 1, bug), gateway(&cluster, 2, None));
    cluster.links.deaf.store(deaf, Ordering::Relaxed);
    let mut older = Client::connect(&cluster, &one, "ben", "phone").await;
    let _newer = Client::connect(&cluster, &two, "ben", "phone").await;
    sees(&mut older, |event| *event == In::Close(4409)).await
}

/// What the device never acked is delivered again, and the stored cursor stays before it (I3).
async fn what_was_not_acked_comes_again(bug: Option<Bug>) -> bool {
    let cluster = Cluster::new();
    let gateway = gateway(&cluster, 1, bug);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    // The phone dies before it has persisted it.
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(ben);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let stored = cluster.store.cursor(cluster.mailbox("ben").await, &device("phone")).await.unwrap();
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let again = sees(&mut ben, |event| matches!(event, In::Frame(ServerFrame::Deliver(_)))).await;
    assert_eq!(again, stored == Seq(0), "what is stored and what is delivered say the same");
    again
}

every_carrier! {
async fn delivering_to_the_wrong_device_is_noticed() {
    assert!(only_the_named_device_gets_it(None).await);
    assert!(!only_the_named_device_gets_it(Some(Bug::DeliverToWrongDevice)).await);
}
}

every_carrier! {
async fn skipping_probes_is_noticed() {
    assert!(a_lost_doorbell_is_made_good(None).await);
    assert!(!a_lost_doorbell_is_made_good(Some(Bug::SkipProbe)).await);
}
}

every_carrier! {
async fn ignoring_a_newer_session_is_noticed() {
    for deaf in [false, true] {
        assert!(the_older_socket_is_closed(None, deaf).await);
        assert!(!the_older_socket_is_closed(Some(Bug::IgnoreSupersede), deaf).await);
    }
}
}

every_carrier! {
async fn acking_in_the_name_of_the_device_is_noticed() {
    assert!(what_was_not_acked_comes_again(None).await);
    assert!(!what_was_not_acked_comes_again(Some(Bug::AckOnSend)).await);
}
}
