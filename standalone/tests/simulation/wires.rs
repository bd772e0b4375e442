//! The message bus between gateways and routers, with faults. **Invariant:** `NoRouter` is said only of what was not done.

use async_trait::async_trait;
use chappe_client::Millis;
use chappe_protocol::id::{GatewayId, MailboxId};
use chappe_protocol::internode::{Doorbell, Reply, Request};
use chappe_protocol::testing::Rng;
use chappe_router::links::{LinkError, Links};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

/// A request on its way to a router.
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Reply>,
}

/// All wires of a cluster.
pub(crate) struct Wires {
    on: AtomicBool,
    deaf: bool,
    random: Mutex<Rng>,
    inner: Mutex<Inner>,
    pub(crate) bells_lost: AtomicU64,
    pub(crate) replies_lost: AtomicU64,
}

#[derive(Default)]
struct Inner {
    routers: BTreeMap<u64, mpsc::Sender<Job>>,
    gateways: BTreeMap<GatewayId, (u64, mpsc::Sender<Doorbell>)>,
    cut: BTreeSet<(u64, u64)>,
}

/// What becomes of a request.
enum Fate {
    Pass,
    Refused,
    Lost,
    ReplyLost,
    Late(u64),
}

impl Wires {
    /// `deaf`: every doorbell is lost, from the beginning to the end.
    pub(crate) fn new(seed: u64, deaf: bool) -> Arc<Self> {
        Arc::new(Self {
            on: AtomicBool::new(false),
            deaf,
            random: Mutex::new(Rng::new(seed)),
            inner: Mutex::default(),
            bells_lost: AtomicU64::new(0),
            replies_lost: AtomicU64::new(0),
        })
    }

    /// Switches the faults; off heals every cut.
    pub(crate) fn switch(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
        if !on {
            self.inner.lock().unwrap().cut.clear();
        }
    }

    pub(crate) fn cut(&self, gateway: u64, router: u64, cut: bool) {
        let mut inner = self.inner.lock().unwrap();
        if cut {
            inner.cut.insert((gateway, router));
        } else {
            inner.cut.remove(&(gateway, router));
        }
    }

    pub(crate) fn add_router(&self, router: u64) -> mpsc::Receiver<Job> {
        let (sender, jobs) = mpsc::channel(1024);
        self.inner.lock().unwrap().routers.insert(router, sender);
        jobs
    }

    pub(crate) fn add_gateway(&self, gateway: u64, id: GatewayId) -> mpsc::Receiver<Doorbell> {
        let (sender, bells) = mpsc::channel(1024);
        self.inner.lock().unwrap().gateways.insert(id, (gateway, sender));
        bells
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.lock().unwrap().below(bound)
    }

    fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    fn fate(&self) -> Fate {
        match self.below(1000) {
            _ if !self.is_on() => Fate::Pass,
            0..20 => Fate::Refused,
            20..40 => Fate::Lost,
            40..80 => Fate::ReplyLost,
            80..120 => Fate::Late(self.below(2500)),
            _ => Fate::Pass,
        }
    }

    /// A live router, the mailbox's own in most cases.
    fn router(&self, gateway: u64, mailbox: MailboxId) -> Option<mpsc::Sender<Job>> {
        let stray = self.is_on() && self.below(100) < 15;
        let inner = self.inner.lock().unwrap();
        let reachable = inner
            .routers
            .iter()
            .filter(|(router, sender)| !sender.is_closed() && !inner.cut.contains(&(gateway, **router)));
        let reachable: Vec<_> = reachable.map(|(_, sender)| sender).collect();
        let own = usize::from(mailbox.0[0]) + usize::from(stray);
        let at = own.checked_rem(reachable.len())?;
        reachable.get(at).copied().cloned()
    }
}

/// The end of the wires in one process.
pub(crate) struct WireEnd {
    wires: Arc<Wires>,
    /// The gateway or router that holds it.
    host: u64,
    under_way: TaskTracker,
}

impl WireEnd {
    pub(crate) fn new(wires: Arc<Wires>, host: u64) -> Arc<Self> {
        Arc::new(Self { wires, host, under_way: TaskTracker::new() })
    }

    async fn delay(&self) {
        if self.wires.is_on() {
            tokio::time::sleep(Duration::from_millis(self.wires.below(20))).await;
        }
    }
}

#[async_trait]
impl Links for WireEnd {
    async fn request(
        &self,
        mailbox: MailboxId,
        request: Request,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { request, reply };
        let wires = self.wires.clone();
        let gateway = self.host;
        let pass = move || {
            let router = wires.router(gateway, mailbox).ok_or(LinkError::NoRouter)?;
            router.try_send(job).map_err(|_| LinkError::NoRouter)
        };
        let fate = self.wires.fate();
        self.delay().await;
        match fate {
            Fate::Refused => return Err(LinkError::NoRouter),
            Fate::Lost => drop(pass),
            Fate::Late(ms) => {
                self.under_way.spawn(async move {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    // Nobody is told.
                    let _ = pass();
                });
            }
            Fate::Pass | Fate::ReplyLost => pass()?,
        }
        let lost = matches!(fate, Fate::ReplyLost);
        let reply = async {
            match answer.await {
                Ok(reply) if !lost => {
                    self.delay().await;
                    reply
                }
                // Lost, or the router died: nobody says so.
                Ok(_) | Err(_) => {
                    self.wires.replies_lost.fetch_add(1, Ordering::Relaxed);
                    std::future::pending().await
                }
            }
        };
        tokio::time::timeout(budget.to_std(), reply).await.map_err(|_| LinkError::Timeout)
    }

    fn ring(&self, gateway: GatewayId, bell: Doorbell) {
        let wires = &self.wires;
        let inner = wires.inner.lock().unwrap();
        let Some((name, sender)) = inner.gateways.get(&gateway) else { return };
        let is_cut = inner.cut.contains(&(*name, self.host));
        if wires.deaf || is_cut || (wires.is_on() && wires.below(100) < 20) {
            wires.bells_lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if !wires.is_on() {
            let _ = sender.try_send(bell);
            return;
        }
        for _ in 0..=u64::from(wires.below(100) < 10) {
            let (sender, bell, ms) = (sender.clone(), bell.clone(), wires.below(100));
            self.under_way.spawn(async move {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                let _ = sender.try_send(bell);
            });
        }
    }
}
