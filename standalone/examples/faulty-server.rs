//! A server with one deliberate fault, made of the product's own parts and a bad link between gateway and router: what the load
//! harness has to find. **Invariant:** the parts are the real ones; the fault is in the link, or is one of the gateway's planted
//! bugs, which no build for users has.
//!
//! `cargo run -p chappe-standalone --example faulty-server -- --fault swapped-pair --listen 127.0.0.1:7540 --data /tmp/faulty`

use anyhow::{Context, Result};
use async_trait::async_trait;
use chappe_gateway::GatewayConfig;
use chappe_gateway::faults::Bug;
use chappe_gateway::listen::accepted;
use chappe_node::clock::SystemWorld;
use chappe_node::listen::bind;
use chappe_protocol::id::{EnvelopeId, GatewayId, MailboxId, SubmitId, UserId};
use chappe_protocol::internode::{
    Doorbell, EntryResult, ListReply, Outcome, Reply, Request, Ring, Submit, SubmitList,
};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_router::links::{LinkError, Links};
use chappe_router::{LocalLinks, RouterConfig};
use chappe_standalone::cluster::{Cluster, Doors};
use chappe_standalone::development::DataDir;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use clap::{Parser, ValueEnum};
use futures_util::StreamExt;
use prometheus::Registry;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Of so many submits, one meets the fault.
const ONE_OF: u64 = 20;
/// Of so many doorbells, one is dropped: what comes later makes a single one good.
const DROPPED_OF: u64 = 3;
/// How long after the word *accepted* it is written, where the fault is that.
const WRITTEN_LATE: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fault {
    /// None: the harness has to pass it
    None,
    /// Accepted is said half a second before anything is written: a kill loses it
    AckBeforeCommit,
    /// Doorbells are dropped, and no probe makes it good
    DroppedDoorbell,
    /// Each two envelopes for one mailbox change places
    SwappedPair,
    /// An envelope goes into somebody else's mailbox
    WrongMailbox,
    /// An envelope is written twice
    Twice,
    /// Bytes of the payload are changed
    ChangedBytes,
    /// An envelope comes in another's name
    WrongSender,
}

#[derive(Debug, Parser)]
struct Options {
    #[arg(long, value_enum)]
    fault: Fault,
    #[arg(long)]
    listen: SocketAddr,
    /// As of `chappe serve`: keys and the store
    #[arg(long)]
    data: PathBuf,
}

/// The link between gateway and router.
struct BadLink {
    fault: Fault,
    good: Arc<LocalLinks>,
    count: AtomicU64,
    /// Somebody who was written to before.
    other: Mutex<Option<MailboxId>>,
    /// Doorbells that wait for the next one of their mailbox.
    held: Mutex<HashMap<(GatewayId, MailboxId), Doorbell>>,
    tasks: TaskTracker,
}

impl BadLink {
    fn hits(&self, one_of: u64) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) % one_of == one_of - 1
    }

    /// Says that all is well, and writes it later.
    fn written_later(&self, mailbox: MailboxId, submit: Submit, budget: Millis) -> Reply {
        let told = |list: &SubmitList| ListReply {
            mailbox: list.mailbox,
            head_bucket: None,
            results: list
                .entries
                .iter()
                .map(|entry| EntryResult {
                    envelope_id: EnvelopeId::derive(entry.submit_id, list.mailbox, entry.number),
                    outcome: Outcome::Accepted,
                })
                .collect(),
        };
        let reply = Reply::Submit(submit.lists.iter().map(told).collect());
        let good = Arc::clone(&self.good);
        self.tasks.spawn(async move {
            tokio::time::sleep(WRITTEN_LATE).await;
            // Whether it was written, nobody will ever hear.
            let _ = good.request(mailbox, Request::Submit(submit), budget).await;
        });
        reply
    }

    /// Rings what was held and this one, each with the other's envelope.
    fn ring_swapped(&self, gateway: GatewayId, mut bell: Doorbell) {
        let key = (gateway, bell.mailbox);
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut first) = held.remove(&key) else { return drop(held.insert(key, bell)) };
        if let (Ring::Grew { slot: Some(one), .. }, Ring::Grew { slot: Some(two), .. }) =
            (&mut first.ring, &mut bell.ring)
        {
            std::mem::swap(one, two);
            std::mem::swap(&mut one.seq, &mut two.seq);
        }
        self.good.ring(gateway, first);
        self.good.ring(gateway, bell);
    }

    /// The same once more, under another number.
    async fn again(&self, mailbox: MailboxId, submit: &Submit, budget: Millis) {
        let mut submit = submit.clone();
        for entry in submit.lists.iter_mut().flat_map(|list| &mut list.entries) {
            entry.submit_id = SubmitId(entry.submit_id.0.map(|byte| byte ^ 0x55));
        }
        let _ = self.good.request(mailbox, Request::Submit(submit), budget).await;
    }

    /// To somebody else, and told as if it were not.
    async fn elsewhere(
        &self,
        mailbox: MailboxId,
        mut submit: Submit,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        let before = self.other.lock().unwrap_or_else(PoisonError::into_inner).replace(mailbox);
        let Some(other) = before.filter(|other| *other != mailbox && self.hits(ONE_OF)) else {
            return self.good.request(mailbox, Request::Submit(submit), budget).await;
        };
        let meant: Vec<MailboxId> = submit.lists.iter().map(|list| list.mailbox).collect();
        submit.lists.iter_mut().for_each(|list| (list.mailbox, list.base) = (other, None));
        let mut reply = self.good.request(other, Request::Submit(submit.clone()), budget).await?;
        if let Reply::Submit(lists) = &mut reply {
            for (list, (meant, sent)) in lists.iter_mut().zip(meant.into_iter().zip(&submit.lists)) {
                (list.mailbox, list.head_bucket) = (meant, None);
                for (result, entry) in list.results.iter_mut().zip(&sent.entries) {
                    result.envelope_id = EnvelopeId::derive(entry.submit_id, meant, entry.number);
                }
            }
        }
        Ok(reply)
    }
}

#[async_trait]
impl Links for BadLink {
    async fn request(
        &self,
        mailbox: MailboxId,
        request: Request,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        let Request::Submit(mut submit) = request else {
            return self.good.request(mailbox, request, budget).await;
        };
        match self.fault {
            Fault::AckBeforeCommit => return Ok(self.written_later(mailbox, submit, budget)),
            Fault::WrongMailbox => return self.elsewhere(mailbox, submit, budget).await,
            Fault::Twice if self.hits(ONE_OF) => self.again(mailbox, &submit, budget).await,
            Fault::ChangedBytes if self.hits(ONE_OF) => {
                if let Some(payload) = submit.payloads.first_mut() {
                    *payload = payload.iter().map(|byte| byte ^ 1).collect();
                }
            }
            Fault::WrongSender if self.hits(ONE_OF) => {
                if let Ok(user) = UserId::new("somebody-else") {
                    submit.sender.user = user;
                }
            }
            Fault::None
            | Fault::DroppedDoorbell
            | Fault::SwappedPair
            | Fault::Twice
            | Fault::ChangedBytes
            | Fault::WrongSender => {}
        }
        self.good.request(mailbox, Request::Submit(submit), budget).await
    }

    fn ring(&self, gateway: GatewayId, bell: Doorbell) {
        match (&bell.ring, self.fault) {
            (Ring::Grew { .. }, Fault::DroppedDoorbell) if self.hits(DROPPED_OF) => {}
            (Ring::Grew { .. }, Fault::SwappedPair) => self.ring_swapped(gateway, bell),
            _ => self.good.ring(gateway, bell),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    chappe_node::tls::install_crypto_provider();
    let options = Options::parse();
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let data = DataDir::new(&options.data);
    data.prepare(world.as_ref())?;
    let config = chappe_standalone::config::ServeConfig::default();
    let verifier = Arc::new(config.token.open(Some(&data.token_public()))?);
    let rows = EmbeddedRows::open(&data.store(), Arc::clone(&world), EmbeddedConfig::default())
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let store = Arc::new(SlotLog::new(Arc::new(rows), Arc::clone(&world), LogConfig::default()));
    let fault = options.fault;
    let cluster = Cluster::new(Arc::clone(&world), store, &Registry::new(), |good| {
        Arc::new(BadLink {
            fault,
            good,
            count: AtomicU64::new(0),
            other: Mutex::default(),
            held: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    })?;
    let _router = cluster.add_router(0, RouterConfig::default());
    let mut gateway = GatewayConfig::new(GatewayId::random(world.as_ref()), data.read_resume_key()?);
    gateway.bug = (fault == Fault::DroppedDoorbell).then_some(Bug::SkipProbe);
    let clients = bind(options.listen, "--listen").await.context("no port, no server")?;
    let never = CancellationToken::new();
    cluster.run_gateway(gateway, verifier, Doors::default(), accepted(clients).boxed(), never).await;
    Ok(())
}
