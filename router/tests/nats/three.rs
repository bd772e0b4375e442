//! Three NATS servers, each killed in turn: nothing accepted is lost, and requests, doorbells and wake hints go on.

use crate::common::{lists, outcomes, submit_of};
use crate::server::{Server, free_port};
use crate::support::{BUDGET, Cluster, Gateway, until};
use crate::wakes::{is_up, quick};
use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::{Outcome, Request, Ring};
use chappe_router::nats::WakeConfig;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Three servers in a cluster, each with JetStream.
async fn servers() -> Vec<Server> {
    let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
    let urls: Vec<String> = routes.iter().map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).collect();
    let mut servers = Vec::new();
    for (n, port) in routes.iter().enumerate() {
        let config = format!(
            "server_name: n{n}\nmax_payload: 8MB\n\
             jetstream {{ store_dir: \"{{{{folder}}}}/js\", sync_interval: always, max_file_store: 256MB }}\n\
             cluster {{ name: three, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
            urls.join(", ")
        );
        servers.push(Server::start(&config).await);
    }
    servers
}

/// What a sender knows of its submits.
#[derive(Default)]
struct Told {
    accepted: Mutex<Vec<u64>>,
    last: AtomicU64,
    rung: AtomicU64,
}

impl Told {
    fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }
}

/// Sends one after another, each until it is decided under its id, as a gateway's lane does.
async fn send(gateway: &Gateway, mailbox: MailboxId, told: &Told, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let id = told.last.fetch_add(1, Ordering::Relaxed) + 1;
        loop {
            let request = Request::Submit(submit_of("ana", mailbox, None, &[id]));
            let reply = gateway.links.request(mailbox, request, BUDGET).await;
            let done = reply.ok().map(|reply| outcomes(&lists_of(reply)));
            match done.as_deref() {
                Some([Outcome::Accepted]) => break told.accepted.lock().unwrap().push(id),
                // Nobody did it, or perhaps somebody did.
                None | Some([Outcome::Unavailable | Outcome::Unknown]) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A router that takes nothing answers for all lists at once.
fn lists_of(reply: chappe_protocol::internode::Reply) -> Vec<chappe_protocol::internode::ListReply> {
    if reply == chappe_protocol::internode::Reply::Unavailable {
        return Vec::new();
    }
    lists(reply)
}

#[tokio::test]
async fn each_of_three_servers_may_die_while_envelopes_and_bells_are_under_way() {
    let mut servers = servers().await;
    let mut cluster = Cluster::at(&servers[0].url());
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    cluster.gateway_config.urls.clone_from(&urls);
    cluster.router_config.urls.clone_from(&urls);
    cluster.wakes = Some(WakeConfig { replicas: 3, ..quick() });
    let gateway = cluster.gateway().await;
    let mut bells = gateway.bus.doorbells(gateway.id, 65_536).await.unwrap();
    let (first, second) = (cluster.router(1).await, cluster.router(2).await);
    gateway.hears(2).await;
    is_up(&first).await;
    is_up(&second).await;
    let mut mailboxes = Vec::new();
    for n in 0..4 {
        let mailbox = cluster.mailbox(&format!("user{n}")).await;
        cluster.lease(mailbox, gateway.id).await;
        mailboxes.push(mailbox);
    }
    let (stop, told): (_, Vec<Told>) = (AtomicBool::new(false), (0..4).map(|_| Told::default()).collect());
    let sending = mailboxes.iter().zip(&told).map(|(mailbox, told)| send(&gateway, *mailbox, told, &stop));
    let sending = futures_util::future::join_all(sending);
    let hearing = async {
        while let Some(bell) = bells.recv().await {
            let Ring::Grew { seq, .. } = bell.ring else { panic!("{bell:?}") };
            let at = mailboxes.iter().position(|mailbox| *mailbox == bell.mailbox).unwrap();
            told[at].rung.fetch_max(seq.0, Ordering::Relaxed);
        }
    };
    let stored = || first.wakes.stored.get() + second.wakes.stored.get();
    let all_go_on = async |what: &str| {
        let (counts, hints): (Vec<usize>, u64) = (told.iter().map(Told::count).collect(), stored());
        until(&format!("{what}: requests are answered"), || {
            told.iter().zip(&counts).all(|(told, before)| told.count() > before + 5)
        })
        .await;
        let heads: Vec<u64> = told.iter().map(|told| told.count() as u64).collect();
        until(&format!("{what}: bells ring"), || {
            told.iter().zip(&heads).all(|(told, head)| told.rung.load(Ordering::Relaxed) > *head)
        })
        .await;
        until(&format!("{what}: hints are stored"), || stored() > hints + 3).await;
    };
    let breaking = async {
        all_go_on("before").await;
        for (n, server) in servers.iter_mut().enumerate() {
            server.down();
            all_go_on(&format!("without n{n}")).await;
            server.up().await;
            // The copies must be whole before the next one goes.
            all_go_on(&format!("with n{n} again")).await;
            until("the stream is there", || first.wakes.up.get() == 1 && second.wakes.up.get() == 1).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::select! {
        biased;
        _ = async { tokio::join!(sending, breaking) } => {}
        () = hearing => panic!("the bells ended"),
    }
    assert!(gateway.metrics.reconnects.get() > 0, "it was on one of those that died");
    for (mailbox, told) in mailboxes.iter().zip(&told) {
        let accepted = told.accepted.lock().unwrap().clone();
        assert_eq!(cluster.numbers(*mailbox).await, accepted, "each once, in order, and nothing else");
    }
}
