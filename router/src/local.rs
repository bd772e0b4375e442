//! Links inside one process: gateways and routers meet through channels and tasks.
//! **Invariant:** a caller that gives up leaves the request running, as a message bus would; a full queue drops the doorbell and raises
//! the alarm.

use crate::Router;
use crate::links::{LinkError, Links};
use crate::metrics::RouterMetrics;
use async_trait::async_trait;
use chappe_protocol::id::{GatewayId, MailboxId};
use chappe_protocol::internode::{Doorbell, Reply, Request};
use chappe_protocol::time::Millis;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, watch};

/// The routers and gateways of one process. Routers hold the links and the links hold the routers: remove the routers
/// (or [`LocalLinks::clear`]) when they end.
pub struct LocalLinks {
    metrics: Arc<RouterMetrics>,
    /// Counts doorbells that were dropped.
    alarms: watch::Sender<u64>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    routers: BTreeMap<u64, Router>,
    gateways: BTreeMap<GatewayId, mpsc::Sender<Doorbell>>,
}

impl LocalLinks {
    /// Links without routers and gateways.
    pub fn new(metrics: Arc<RouterMetrics>) -> Self {
        Self { metrics, alarms: watch::Sender::default(), inner: Mutex::default() }
    }

    /// Adds a router under a name of the caller's choice; the name decides its affinity.
    pub fn add_router(&self, name: u64, router: Router) {
        self.lock().routers.insert(name, router);
    }

    /// Takes a router out: it gets no more requests and finishes those it has.
    pub fn remove_router(&self, name: u64) -> Option<Router> {
        self.lock().routers.remove(&name)
    }

    /// Adds a gateway; its doorbells come out of the receiver, at most `bells_max` wait (each holds at most one payload
    /// of [`RouterConfig::ephemeral_bytes_max`](crate::RouterConfig) bytes).
    pub fn add_gateway(&self, gateway: GatewayId, bells_max: usize) -> mpsc::Receiver<Doorbell> {
        let (sender, receiver) = mpsc::channel(bells_max.max(1));
        self.lock().gateways.insert(gateway, sender);
        receiver
    }

    /// Takes a gateway out.
    pub fn remove_gateway(&self, gateway: GatewayId) {
        self.lock().gateways.remove(&gateway);
    }

    /// Changes when a doorbell was dropped: a gateway that hears of it asks for the heads of its mailboxes.
    pub fn alarms(&self) -> watch::Receiver<u64> {
        self.alarms.subscribe()
    }

    /// Takes everything out.
    pub fn clear(&self) {
        *self.lock() = Inner::default();
    }

    /// Sets the gauge of waiting doorbells; call it before the metrics are read.
    pub fn measure(&self) {
        let waiting: usize = self.lock().gateways.values().map(|g| g.max_capacity() - g.capacity()).sum();
        self.metrics.gateway_queue_bells.set(waiting.try_into().unwrap_or(i64::MAX));
    }

    /// The live router with the greatest weight for this mailbox (rendezvous hashing: Thaler and Ravishankar, 1998).
    fn router_for(&self, mailbox: MailboxId) -> Option<Router> {
        let inner = self.lock();
        let live = inner.routers.iter().filter(|(_, router)| !router.is_closed());
        live.max_by_key(|(name, _)| weight(**name, mailbox)).map(|(_, router)| router.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Mixes a router's name with a mailbox (the finalizer of MurmurHash3, over both halves).
pub(crate) fn weight(name: u64, mailbox: MailboxId) -> u64 {
    let id = u128::from_be_bytes(*mailbox.as_bytes());
    let halves = [(id >> 64) & u128::from(u64::MAX), id & u128::from(u64::MAX)];
    halves.into_iter().fold(mix(name ^ 0x9e37_79b9_7f4a_7c15), |sum, half| {
        mix(sum ^ u64::try_from(half).unwrap_or_default())
    })
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[async_trait]
impl Links for LocalLinks {
    async fn request(
        &self,
        mailbox: MailboxId,
        request: Request,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        let router = self.router_for(mailbox).ok_or(LinkError::NoRouter)?;
        let reply = router.serve(request).ok_or(LinkError::NoRouter)?;
        let answer = async {
            match reply.await {
                Some(reply) => reply,
                // A router that was killed does not say so.
                None => std::future::pending().await,
            }
        };
        tokio::time::timeout(budget.to_std(), answer).await.map_err(|_| LinkError::Timeout)
    }

    fn ring(&self, gateway: GatewayId, bell: Doorbell) {
        let inner = self.lock();
        let rung = inner.gateways.get(&gateway).is_some_and(|sender| sender.try_send(bell).is_ok());
        if !rung {
            self.metrics.doorbells_dropped_link.inc();
            self.alarms.send_modify(|alarms| *alarms += 1);
        }
    }
}
