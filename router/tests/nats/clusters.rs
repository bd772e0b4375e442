//! Two clusters on one NATS under one name, by mistake: neither does anything for the other, and both are told.

use crate::common::{lists, outcomes, submit_of};
use crate::logs;
use crate::server::Server;
use crate::support::{BUDGET, Cluster, Gateway, soon, until};
use crate::wakes::{is_up, jetstream, quick, stream_of};
use chappe_protocol::id::{GatewayId, MailboxId};
use chappe_protocol::internode::{InternodeError, Outcome, Request, WakeHint};

/// Whichever router the queue group chooses: a foreign one refuses, and the gateway asks on.
async fn accepted(gateway: &Gateway, mailbox: MailboxId, id: u64) {
    let request = Request::Submit(submit_of("ana", mailbox, None, &[id]));
    let reply = gateway.links.request(mailbox, request, BUDGET).await.unwrap();
    assert_eq!(outcomes(&lists(reply)), [Outcome::Accepted]);
}

#[tokio::test]
async fn two_clusters_with_one_name_work_beside_each_other_and_are_told() {
    logs::keep();
    let server = Server::start("max_payload: 8MB\njetstream { store_dir: \"{{folder}}/js\" }").await;
    let (mut ours, mut theirs) =
        (Cluster::named(&server.url(), "same"), Cluster::named(&server.url(), "same"));
    assert_ne!(ours.gateway_config.cluster, theirs.gateway_config.cluster, "each has a store of its own");
    (ours.wakes, theirs.wakes) = (Some(quick()), Some(quick()));
    let our_gateway = ours.gateway().await;
    let mut their_gateway = theirs.gateway().await;
    their_gateway.id = GatewayId([8; 16]);
    let mut our_bells = our_gateway.bus.doorbells(our_gateway.id, 64).await.unwrap();
    let mut their_bells = their_gateway.bus.doorbells(their_gateway.id, 64).await.unwrap();
    let (our_router, their_router) = (ours.router(1).await, theirs.router(2).await);
    our_gateway.hears(1).await;
    their_gateway.hears(1).await;
    is_up(&our_router).await;
    is_up(&their_router).await;
    let (ben, eve) = (ours.mailbox("ben").await, theirs.mailbox("eve").await);
    ours.lease(ben, our_gateway.id).await;
    theirs.lease(eve, their_gateway.id).await;
    for id in 1..=5 {
        accepted(&our_gateway, ben, id).await;
        accepted(&their_gateway, eve, 100 + id).await;
        assert_eq!(soon("our bell", our_bells.recv()).await.unwrap().mailbox, ben);
        assert_eq!(soon("their bell", their_bells.recv()).await.unwrap().mailbox, eve);
    }
    assert_eq!(ours.numbers(ben).await, [1, 2, 3, 4, 5]);
    assert_eq!(theirs.numbers(eve).await, [101, 102, 103, 104, 105]);
    assert!(ours.numbers(eve).await.is_empty() && theirs.numbers(ben).await.is_empty());
    assert_eq!((our_gateway.metrics.routers.get(), their_gateway.metrics.routers.get()), (1, 1));
    let foreign = || our_gateway.metrics.foreign.get().min(their_gateway.metrics.foreign.get());
    until("both count what is not theirs", || foreign() > 0).await;
    until("both are told", || logs::tell(&["nats_foreign", "give each cluster its own name"])).await;

    // One stream holds the hints of both; each knows its own.
    let stored = || (our_router.wakes.stored.get() > 0) && (their_router.wakes.stored.get() > 0);
    until("hints of both are stored", stored).await;
    let mut stream = jetstream(&server).await.get_stream(stream_of(&ours)).await.unwrap();
    let state = stream.info().await.unwrap().state.clone();
    for sequence in state.first_sequence..=state.last_sequence {
        let payload = stream.get_raw_message(sequence).await.unwrap().payload;
        let read = |cluster: &Cluster| WakeHint::decode(&payload, cluster.gateway_config.cluster);
        match (read(&ours), read(&theirs)) {
            (Ok(hint), Err(InternodeError::Foreign)) => assert_eq!(hint.mailbox, ben),
            (Err(InternodeError::Foreign), Ok(hint)) => assert_eq!(hint.mailbox, eve),
            other => panic!("{other:?}"),
        }
    }
}
