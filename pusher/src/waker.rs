//! The pusher's core: hints and sweeps become looks, looks become wakes. **Invariant:** whoever is to be woken stands in a note of
//! the store that is younger than two minutes, or of a minute to come, for as long as anything here waits; so that the
//! process may die at any moment.

mod guard;
mod local;
mod send;
mod settled;
mod sweep;

pub use guard::{Finish, Hinted};
pub use local::{LocalHints, local_hints};

use crate::clock::StoreClock;
use crate::look::{Ask, Eyes, Look, Sleeper};
use crate::looks::{Looks, Waiting};
use crate::metrics::PusherMetrics;
use crate::outbox::{Next, Offered, Outbox, OutboxConfig, Parked};
use crate::provider::{AppKey, Waking};
use crate::schedule::Intervals;
use crate::shards::Members;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::push::{ApnsKind, PushAddress, PushSettings, PushTarget};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_router::presence::Presence;
use chappe_storage::Store;
use chappe_storage::sealed::PushKeys;
use futures_util::{Stream, StreamExt};
use guard::Guard;
use settled::Settled;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A hint that is due within this is looked at by whoever gets it.
const SOON: Millis = Millis::from_secs(2);
/// What is due later than this does not wait in memory but in a note of its minute.
const MEMORY: Millis = Millis::from_secs(60);
/// A look that failed, since the store is away, is tried again after this.
const RETRY: Millis = Millis::from_secs(2);
/// A wake that is due later than this lets its hint go: the note is enough, and the hint would come again meanwhile.
const HINT_HOLDS: Millis = Millis::from_secs(12);
/// The keeper's round, and the age of a note that it renews.
const KEEP: (Millis, Millis) = (Millis::from_secs(20), Millis::from_secs(60));

/// Bounds of a pusher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WakerConfig {
    /// Wakes on their way.
    pub outbox: OutboxConfig,
    /// The least time between two wakes of one device.
    pub intervals: Intervals,
    /// Mailboxes that wait to be looked at.
    pub looks_max: usize,
    /// Mailboxes that are looked at, at once.
    pub looks_at_once_max: usize,
    /// Between two sweeps of a shard.
    pub sweep_every: Millis,
}

impl Default for WakerConfig {
    fn default() -> Self {
        Self {
            outbox: OutboxConfig::default(),
            intervals: Intervals::default(),
            looks_max: 100_000,
            looks_at_once_max: 128,
            sweep_every: Millis::from_secs(5),
        }
    }
}

/// What a pusher works with.
pub struct WakerParts {
    /// Time and randomness.
    pub world: Arc<dyn World>,
    /// The truth.
    pub store: Arc<dyn Store>,
    /// Who is attached.
    pub presence: Arc<dyn Presence>,
    /// Opens push targets, and seals them when one is dead.
    pub keys: Arc<PushKeys>,
    /// The providers.
    pub waking: Arc<dyn Waking>,
    /// The other pushers.
    pub members: Arc<dyn Members>,
    /// What is counted.
    pub metrics: Arc<PusherMetrics>,
}

/// A pusher. Clones are the same one.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

struct Shared {
    config: WakerConfig,
    world: Arc<dyn World>,
    eyes: Eyes,
    waking: Arc<dyn Waking>,
    members: Arc<dyn Members>,
    metrics: Arc<PusherMetrics>,
    outbox: Mutex<Outbox<Guard>>,
    outbox_changed: Notify,
    looks: Mutex<Looks<Guard>>,
    looks_changed: Notify,
    look_permits: Arc<Semaphore>,
    settled: Mutex<Settled>,
    /// The shards that this pusher sweeps, ascending.
    owned: Mutex<Vec<u16>>,
    tasks: TaskTracker,
    stop: CancellationToken,
    killed: CancellationToken,
    /// What is let go from now on goes back to the queue of hints.
    leaving: Arc<AtomicBool>,
}

impl Waker {
    /// One that does nothing until it [runs](Self::run).
    pub fn new(config: WakerConfig, parts: WakerParts) -> Self {
        let clock = Arc::new(StoreClock::new(parts.world.clone()));
        let eyes = Eyes {
            store: parts.store,
            presence: parts.presence,
            keys: parts.keys,
            intervals: config.intervals,
            clock,
        };
        parts.metrics.bounds(&config.outbox);
        let shared = Shared {
            world: parts.world,
            eyes,
            waking: parts.waking,
            members: parts.members,
            metrics: parts.metrics,
            outbox: Mutex::new(Outbox::new(config.outbox)),
            outbox_changed: Notify::new(),
            looks: Mutex::new(Looks::new(config.looks_max)),
            looks_changed: Notify::new(),
            look_permits: Arc::new(Semaphore::new(config.looks_at_once_max.clamp(1, Semaphore::MAX_PERMITS))),
            settled: Mutex::default(),
            owned: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            killed: CancellationToken::new(),
            leaving: Arc::default(),
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Wakes whom hints and sweeps tell of until `drain`; then wakes in flight end, and what waits goes back. Returns when
    /// all has ended: within 20 s, the time of one wake.
    pub async fn run(&self, hints: impl Stream<Item = Hinted> + Send, drain: CancellationToken) {
        let shared = &self.shared;
        let (looking, sending) = (Arc::clone(shared), Arc::clone(shared));
        let (keeping, sweeping) = (Arc::clone(shared), Arc::clone(shared));
        shared.spawn(async move { looking.look_on().await });
        shared.spawn(async move { sending.send_on().await });
        shared.spawn(async move { keeping.keep_on().await });
        shared.spawn(async move { sweeping.sweep_on().await });
        let mut hints = pin!(hints);
        while let Some(Some(hinted)) = drain.run_until_cancelled(hints.next()).await {
            shared.hinted(hinted);
        }
        drain.cancelled().await;
        shared.leaving.store(true, Ordering::Relaxed);
        shared.stop.cancel();
        shared.looks().clear();
        shared.tasks.close();
        shared.tasks.wait().await;
        shared.looks().clear();
        shared.outbox().clear();
    }

    /// Ends as a killed process does: at once, without a word to anybody.
    pub fn kill(&self) {
        self.shared.killed.cancel();
        self.shared.stop.cancel();
    }

    /// What was parked lately, oldest first.
    pub fn parked(&self) -> Vec<Parked> {
        self.shared.outbox().parked().cloned().collect()
    }

    /// The configuration of the providers has changed: what waits for a pause to end goes on.
    pub fn resume(&self) {
        let now = self.shared.world.now();
        self.shared.outbox().resume(now);
        self.shared.outbox_changed.notify_one();
    }

    /// What looks look with.
    pub fn eyes(&self) -> &Eyes {
        &self.shared.eyes
    }

    /// The providers.
    pub fn waking(&self) -> &Arc<dyn Waking> {
        &self.shared.waking
    }
}

/// Which target a wake of this urgency goes to: the latest registered one that an app is configured for. Calls go to a VoIP
/// token if there is one, and nothing else does (iOS ends an app that is woken so and does not ring).
pub fn pick<'a>(
    settings: &'a PushSettings,
    urgency: Urgency,
    waking: &dyn Waking,
) -> Option<(&'a PushTarget, AppKey)> {
    let rings =
        |target: &PushTarget| matches!(target.address, PushAddress::Apns { kind: ApnsKind::Voip, .. });
    let served = |target: &&PushTarget| waking.app_of(target).is_some();
    let fit = settings.targets.iter().filter(|target| urgency == Urgency::Call || !rings(target));
    let target = fit.filter(served).max_by_key(|target| (rings(target), target.registered_at))?;
    Some((target, waking.app_of(target)?))
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox<Guard>> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looks(&self) -> MutexGuard<'_, Looks<Guard>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let killed = self.killed.clone();
        self.tasks.spawn(async move { killed.run_until_cancelled(task).await });
    }

    fn clock(&self) -> &StoreClock {
        &self.eyes.clock
    }

    /// Whether the mailbox is this pusher's to look at later. Two that both did would wake at the same moment.
    fn owns(&self, mailbox: MailboxId) -> bool {
        let owned = self.owned.lock().unwrap_or_else(PoisonError::into_inner);
        owned.binary_search(&mailbox.shard().into()).is_ok()
    }

    fn hinted(&self, Hinted { hint, finish }: Hinted) {
        self.metrics.hints.inc();
        let guards = finish.map(|finish| Guard::new(finish, &self.leaving)).into_iter().collect();
        if hint.due > self.clock().now() + SOON && !self.owns(hint.mailbox) {
            // It is done with: whoever sweeps the mailbox's shard sees it long before it is due.
            return;
        }
        let ask = Waiting { mailbox: hint.mailbox, hinted: hint.upto, guards };
        self.look_at(ask, self.clock().monotonic(hint.due));
    }

    fn look_at(&self, ask: Waiting<Guard>, at: Time) {
        let mut looks = self.looks();
        if !looks.push(ask, at) {
            self.metrics.looks_lost.inc();
        }
        drop(looks);
        self.looks_changed.notify_one();
    }

    /// Looks at mailboxes when their time has come.
    async fn look_on(self: Arc<Self>) {
        while let Some(ask) = self.next_look().await {
            let permit = self.stop.run_until_cancelled(Arc::clone(&self.look_permits).acquire_owned()).await;
            let Some(Ok(permit)) = permit else { return };
            let shared = Arc::clone(&self);
            self.spawn(async move {
                let stop = shared.stop.clone();
                stop.run_until_cancelled(shared.look(ask)).await;
                drop(permit);
            });
        }
    }

    async fn next_look(&self) -> Option<Waiting<Guard>> {
        loop {
            let changed = self.looks_changed.notified();
            let popped = {
                let mut looks = self.looks();
                let popped = looks.pop(self.world.now());
                self.metrics.looks_waiting.set(i64::try_from(looks.len()).unwrap_or(i64::MAX));
                popped
            };
            let at = match popped {
                Ok(ask) => return Some(ask),
                Err(at) => at,
            };
            let wait = at.map(|at| at - self.world.now());
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                () = changed => {}
                () = tokio::time::sleep(wait.unwrap_or_default().to_std()), if wait.is_some() => {}
            }
        }
    }

    async fn look(&self, waiting: Waiting<Guard>) {
        if waiting.hinted == Seq(0) && !self.owns(waiting.mailbox) {
            // It was this pusher's when the look was put off; by now its new owner has looked, and put it off too.
            return;
        }
        let ask = Ask { mailbox: waiting.mailbox, hinted: waiting.hinted };
        match self.eyes.look(ask).await {
            Ok(look) => {
                self.act(ask.mailbox, look, waiting.guards, true).await;
            }
            Err(error) => {
                tracing::debug!(%error, "a mailbox could not be looked at");
                self.metrics.looks_failed.inc();
                self.look_at(waiting, self.world.now() + RETRY);
            }
        }
    }

    /// Does what a look has found. `noted`: the mailbox has a note of these two minutes. `false`: a note could not be written.
    async fn act(&self, mailbox: MailboxId, look: Look, guards: Vec<Guard>, noted: bool) -> bool {
        self.metrics.looked(&look);
        let (now, started) = (self.clock().now(), self.world.now());
        let mut later: Option<UnixMillis> = None;
        let mut note_now = look.alive > 0;
        for sleeper in look.sleepers {
            let due = sleeper.due;
            if due > now + MEMORY {
                self.metrics.deferred.inc();
                later = Some(later.map_or(due, |later| later.min(due)));
                continue;
            }
            match self.offer(mailbox, sleeper, &guards, started) {
                Some(Offered::Full) => {
                    self.metrics.deferred.inc();
                    let at = now + MEMORY + Millis(self.world.random_below(MEMORY.0));
                    later = Some(later.map_or(at, |later| later.min(at)));
                }
                Some(Offered::Queued | Offered::Merged | Offered::InFlight) => note_now |= !noted,
                Some(Offered::Known) | None => {}
            }
        }
        // What lies further has its note since whoever put it off wrote one; what is another's shard is seen by its sweep.
        let again = look.again.filter(|again| *again <= now + MEMORY && self.owns(mailbox));
        if let Some(again) = again {
            let ask = Waiting { mailbox, hinted: Seq(0), guards: Vec::new() };
            self.look_at(ask, self.clock().monotonic(again));
        }
        self.settled().settle(mailbox, look.head, look.again.unwrap_or(now + MEMORY).min(now + MEMORY));
        let now_noted = if note_now { self.eyes.store.add_pending(mailbox).await } else { Ok(()) };
        let later_noted = match later {
            Some(at) => self.eyes.store.add_pending_at(mailbox, at).await,
            None => Ok(()),
        };
        now_noted.is_ok() && later_noted.is_ok()
    }

    fn offer(&self, mailbox: MailboxId, sleeper: Sleeper, guards: &[Guard], now: Time) -> Option<Offered> {
        let picked = pick(&sleeper.settings, sleeper.urgency, self.waking.as_ref());
        let Some((_, app)) = picked else {
            self.metrics.skipped("no_target");
            return None;
        };
        let at = self.clock().monotonic(sleeper.due).max(now);
        let guards = if at <= now + HINT_HOLDS { guards.to_vec() } else { Vec::new() };
        let offered = self.outbox().offer(mailbox, sleeper, app, at, guards, now);
        self.outbox_changed.notify_one();
        Some(offered)
    }

    /// Sends wakes when their time has come.
    async fn send_on(self: Arc<Self>) {
        loop {
            let changed = self.outbox_changed.notified();
            let now = self.world.now();
            let next = self.outbox().next(now);
            match next {
                Next::Send(id) => {
                    let shared = Arc::clone(&self);
                    self.spawn(async move { shared.send(id).await });
                    if self.stop.is_cancelled() {
                        return;
                    }
                }
                Next::Wait(at) => {
                    let wait = at.map(|at| at - now);
                    tokio::select! {
                        biased;
                        () = self.stop.cancelled() => return,
                        () = changed => {}
                        () = tokio::time::sleep(wait.unwrap_or_default().to_std()), if wait.is_some() => {}
                    }
                }
            }
        }
    }

    /// Renews the notes of what waits here, and tells the sizes of things.
    async fn keep_on(self: Arc<Self>) {
        while self.stop.run_until_cancelled(tokio::time::sleep(KEEP.0.to_std())).await.is_some() {
            let now = self.world.now();
            let old = Time(now.0.saturating_sub(KEEP.1.0));
            let unnoted = self.outbox().unnoted(old);
            let mut noted = std::collections::BTreeSet::new();
            let notes = futures_util::stream::iter(unnoted.into_iter().map(|mailbox| {
                let store = Arc::clone(&self.eyes.store);
                async move { (mailbox, store.add_pending(mailbox).await.is_ok()) }
            }));
            let mut notes = pin!(notes.buffer_unordered(16));
            while let Some(Some((mailbox, written))) = self.stop.run_until_cancelled(notes.next()).await {
                if written {
                    noted.insert(mailbox);
                }
            }
            let mut outbox = self.outbox();
            outbox.noted(&noted, now);
            let sizes = outbox.sizes(now);
            drop(outbox);
            self.metrics.sizes(&sizes);
        }
    }
}
