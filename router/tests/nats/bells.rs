//! Doorbells: in order, never waited for, and their loss is noticed.

use crate::common::submit_of;
use crate::support::{BUDGET, Cluster, bus_metrics, soon, until};
use chappe_protocol::id::{GatewayId, MailboxId, Seq};
use chappe_protocol::internode::{Doorbell, Request, Ring};
use chappe_router::nats::NatsBus;
use std::sync::Arc;

fn bell(seq: u64) -> Doorbell {
    Doorbell { mailbox: MailboxId([2; 16]), ring: Ring::Grew { seq: Seq(seq), slot: None } }
}

fn seq(bell: &Doorbell) -> u64 {
    match &bell.ring {
        Ring::Grew { seq, .. } => seq.0,
        Ring::Session(_) | Ring::Ephemeral { .. } => panic!("not {bell:?}"),
    }
}

#[tokio::test]
async fn a_commit_rings_the_gateway_with_the_slot() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let mut bells = gateway.bus.doorbells(gateway.id, 8).await.unwrap();
    let _router = cluster.router(1).await;
    let ben = cluster.mailbox("ben").await;
    cluster.lease(ben, gateway.id).await;
    let request = Request::Submit(submit_of("ana", ben, None, &[5]));
    gateway.links.request(ben, request, BUDGET).await.unwrap();
    let bell = soon("the bell", bells.recv()).await.unwrap();
    assert_eq!(bell.mailbox, ben);
    let Ring::Grew { seq, slot: Some(slot) } = bell.ring else { panic!("a slot, not {bell:?}") };
    assert_eq!((seq, crate::common::number(&slot)), (Seq(1), 5));
    assert_eq!(slot.sender, Some(crate::common::sender("ana")));
}

#[tokio::test]
async fn bells_of_one_router_arrive_in_order() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let mut bells = gateway.bus.doorbells(gateway.id, 4096).await.unwrap();
    let other = gateway.bus.doorbells(GatewayId([8; 16]), 4096).await.unwrap();
    let metrics = bus_metrics();
    let bus =
        NatsBus::connect(cluster.router_config.clone(), Arc::clone(&cluster.world), Arc::clone(&metrics))
            .await
            .unwrap();
    let links = bus.links();
    for n in 0..1000 {
        links.ring(gateway.id, bell(n));
    }
    for n in 0..1000 {
        assert_eq!(seq(&soon("the bell", bells.recv()).await.unwrap()), n);
    }
    assert!(other.is_empty(), "each gateway hears its own");
    assert_eq!(metrics.bells_sent.get(), 1000);
    assert_eq!(metrics.bell_queue.get(), 0);
}

#[tokio::test]
async fn a_full_queue_drops_the_bell_and_raises_the_alarm() {
    let mut cluster = Cluster::new();
    cluster.router_config.bells_max = 10;
    let gateway = cluster.gateway().await;
    let mut alarms = gateway.bus.alarms();
    let mut bells = gateway.bus.doorbells(gateway.id, 3).await.unwrap();
    let metrics = bus_metrics();
    let bus =
        NatsBus::connect(cluster.router_config.clone(), Arc::clone(&cluster.world), Arc::clone(&metrics))
            .await
            .unwrap();
    let links = bus.links();
    // The writer has no turn in between: what does not fit is dropped, and nobody waits.
    for n in 0..50 {
        links.ring(gateway.id, bell(n));
    }
    assert_eq!(metrics.bells_dropped_full.get(), 40);
    soon("the gateway's own queue overflows", alarms.changed()).await.unwrap();
    until("ten were sent", || {
        gateway.metrics.bells_heard.get() + gateway.metrics.bells_dropped_full.get() == 10
    })
    .await;
    let heard: Vec<u64> = std::iter::from_fn(|| bells.try_recv().ok().as_ref().map(seq)).collect();
    assert_eq!(heard, [0, 1, 2]);
}

#[tokio::test]
async fn a_slow_reader_loses_messages_and_knows_it() {
    let mut cluster = Cluster::new();
    cluster.gateway_config.subscription_messages_max = 4;
    let gateway = cluster.gateway().await;
    let mut alarms = gateway.bus.alarms();
    let _bells = gateway.bus.doorbells(gateway.id, 100_000).await.unwrap();
    let bus = NatsBus::connect(cluster.router_config.clone(), Arc::clone(&cluster.world), bus_metrics())
        .await
        .unwrap();
    let links = bus.links();
    for n in 0..5000 {
        links.ring(gateway.id, bell(n));
    }
    soon("the alarm", alarms.changed()).await.unwrap();
    assert!(gateway.metrics.slow_consumers.get() > 0);
}
