//! What happens by itself while nothing comes from outside: probes, outright reads of heads, leases, in paused time.
//! **Invariant:** nothing that was committed waits for the next doorbell, and no older socket for the next probe.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use async_trait::async_trait;
use chappe_protocol::close::CloseCode;
use chappe_protocol::envelope::DeviceFilter;
use chappe_protocol::frame::{ClientFrame, ServerFrame};
use chappe_protocol::id::{MailboxId, Seq, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use chappe_router::Directory;
use chappe_router::presence::{DeviceLease, Lease, Presence};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::Cluster;
use support::carrier::every_carrier;
use support::client::{Client, In, device, submit_to};

/// Pings every five seconds for so many seconds, until `want` is seen.
async fn sees(client: &mut Client, seconds: u64, want: impl Fn(&In) -> bool) -> bool {
    for nonce in 0..seconds / 5 {
        if !client.try_send_bytes(&ClientFrame::Ping { nonce }.encode()).await {
            return false;
        }
        while let Some(event) = client.next_within(5000).await {
            if want(&event) {
                return true;
            }
        }
    }
    false
}

fn is_deliver(event: &In) -> bool {
    matches!(event, In::Frame(ServerFrame::Deliver(_)))
}

every_carrier! {
async fn a_slot_that_nobody_noted_is_found_by_the_outright_read() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    // Past the time for which an attach makes the routers look at the mailbox.
    assert!(!sees(&mut ben, 300, is_deliver).await);
    let entry = cluster.entry();
    // No doorbell, and no pending row: whoever was to write them died.
    cluster.store.append(cluster.mailbox("ben").await, &[entry], None).await.unwrap();
    assert!(sees(&mut ben, 900, is_deliver).await, "within 10 min and a third");
}
}

every_carrier! {
async fn every_mailbox_is_probed_however_many_there_are() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.probe_every = Millis::from_secs(15));
    let names: Vec<String> = (0..501).map(|n| format!("user{n}")).collect();
    let mut clients = Vec::new();
    for name in &names {
        clients.push(Client::connect(&cluster, &gateway, name, "phone").await);
    }
    cluster.links.deaf.store(true, Ordering::Relaxed);
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let result = ada.submit(submit_to(1, &names, b"x")).await;
    assert!(result.results.iter().all(|result| result.outcome == Outcome::Accepted));
    for client in &mut clients {
        assert_eq!(client.deliver().await.seq, Seq(1));
        client.ack(1).await;
    }
}
}

every_carrier! {
async fn without_bells_and_probes_the_lease_ends_the_older_socket() {
    let cluster = Cluster::new();
    let rarely = |config: &mut chappe_gateway::GatewayConfig| config.probe_every = Millis::from_secs(86_400);
    let (one, two) = (cluster.gateway_with(1, rarely), cluster.gateway_with(2, rarely));
    cluster.links.deaf.store(true, Ordering::Relaxed);
    let mut older = Client::connect(&cluster, &one, "ben", "phone").await;
    let _newer = Client::connect(&cluster, &two, "ben", "phone").await;
    assert!(sees(&mut older, 30, |event| *event == In::Close(4409)).await, "leases are renewed every 20 s");
}
}

/// Presence that grants every lease, as one that has lost its memory does.
struct Generous(Arc<Directory>);

#[async_trait]
impl Presence for Generous {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        self.0.lease(leases).await;
        vec![true; leases.len()]
    }
    async fn release(&self, lease: &Lease) {
        self.0.release(lease).await;
    }
    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        self.0.devices(mailbox).await
    }
}

every_carrier! {
async fn without_bells_and_leases_the_probe_ends_the_older_socket() {
    let mut cluster = Cluster::new();
    cluster.leases = Arc::new(Generous(cluster.presence.clone()));
    let (one, two) = (cluster.gateway(1), cluster.gateway(2));
    cluster.links.deaf.store(true, Ordering::Relaxed);
    let mut older = Client::connect(&cluster, &one, "ben", "phone").await;
    let _newer = Client::connect(&cluster, &two, "ben", "phone").await;
    assert!(sees(&mut older, 65, |event| *event == In::Close(4409)).await, "within one probe");
}
}

every_carrier! {
async fn a_gateway_that_was_paused_probes_at_once() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.probe_every = Millis::from_secs(86_400));
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.links.deaf.store(true, Ordering::Relaxed);
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    // Nothing runs meanwhile.
    tokio::time::advance(std::time::Duration::from_secs(40)).await;
    assert!(sees(&mut ben, 5, is_deliver).await);
}
}

every_carrier! {
async fn who_stays_attached_can_be_rung_for_as_long() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.probe_every = Millis::from_secs(86_400));
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    assert!(!sees(&mut ben, 300, is_deliver).await);
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert!(sees(&mut ben, 5, is_deliver).await, "by its doorbell, at once");
}
}

every_carrier! {
async fn a_whisper_is_heard_by_the_devices_that_it_names() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut phone = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut laptop = Client::connect(&cluster, &gateway, "ben", "laptop").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    let mut whisper = submit_to(1, &["ben"], b"typing");
    whisper.ephemeral = true;
    whisper.targets[0].devices = DeviceFilter::Only(vec![device("phone")]);
    assert_eq!(ada.outcome(whisper).await, Outcome::Accepted);
    let is_whisper = |event: &In| matches!(event, In::Frame(ServerFrame::Ephemeral { .. }));
    assert!(sees(&mut phone, 5, is_whisper).await);
    assert!(!sees(&mut laptop, 60, is_whisper).await);
}
}

every_carrier! {
async fn without_bells_the_probe_ends_the_session_of_an_erased_user() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    assert!(!sees(&mut ben, 300, |_| false).await, "long after the attach was noted");
    cluster.store.erase(&UserId::new("ben").unwrap()).await.unwrap();
    let ended = In::Close(CloseCode::UserErased.code());
    assert!(sees(&mut ben, 65, |event| *event == ended).await, "within one probe");
}
}

every_carrier! {
async fn a_bus_that_may_have_lost_doorbells_makes_the_gateway_probe_at_once() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.probe_every = Millis::from_secs(86_400));
    let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    cluster.links.deaf.store(true, Ordering::Relaxed);
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert!(!sees(&mut ben, 60, is_deliver).await);
    cluster.alarms.send_modify(|alarms| *alarms += 1);
    assert!(sees(&mut ben, 5, is_deliver).await);
}
}
