//! Sessions that are held by the rules of the SDK and by a shell that costs little: one small task each, no channels, no timers of
//! their own. **Invariant:** what is submitted, acked, resumed and given up when is decided by `chappe_client::parts` alone.

mod codec;
mod core;
mod line;
mod session;
#[cfg(test)]
mod tests;

pub(crate) use session::Session;

use crate::run::Target;
use chappe_client::parts::{Endpoint, Security};
use chappe_client::{ClientError, Connector, DeviceId, Tuning};
use chappe_protocol::frame::Deliver;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use rustls::client::Resumption;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Timers are looked at so often; it is half of what acks wait for company.
const TICK: Duration = Duration::from_millis(10);

/// A submit that was decided.
#[derive(Debug)]
pub(crate) struct Decided {
    /// As it was given to [`Session::submit`].
    pub(crate) order: u64,
    /// The same.
    pub(crate) intended_us: u64,
    pub(crate) receipt: chappe_client::Receipt,
}

/// Whoever uses the sessions. It is called with a session locked, so it must not call one.
pub(crate) trait Host: Send + Sync {
    /// The clock of the run, µs.
    fn now_us(&self) -> u64;
    /// These have come to the application, in order, and these were decided. The acks have not left.
    fn took(&self, user: u32, envelopes: &[Deliver], decided: &[Decided]);
    /// A session stands again that was lost then.
    fn resumed(&self, lost_us: u64);
    /// How long this user takes for an envelope now; 0: no time.
    fn pause(&self, user: u32) -> Millis;
}

/// How sessions get to their server.
pub(crate) struct Way {
    endpoint: Endpoint,
    security: Security,
    connector: Arc<dyn Connector>,
}

impl Way {
    /// To this address, `ws://` or `wss://`. Every connection is a full handshake of TLS: what sessions share would otherwise
    /// make one device of them in the eyes of the server.
    pub(crate) fn new(
        url: &str,
        roots_pem: Option<&[u8]>,
        connector: Arc<dyn Connector>,
    ) -> Result<Arc<Self>, ClientError> {
        let endpoint = Endpoint::parse(url)?;
        endpoint.check_plaintext(false)?;
        let mut security = Security::new(&endpoint, None, roots_pem)?;
        if let Security::Tls { config, .. } = &mut security {
            Arc::make_mut(config).resumption = Resumption::disabled();
        }
        Ok(Arc::new(Self { endpoint, security, connector }))
    }
}

/// What sessions have in common.
struct Shared {
    target: Target,
    device: DeviceId,
    tuning: Tuning,
    world: Arc<dyn World>,
    host: OnceLock<Weak<dyn Host>>,
    /// Which session wants to be looked at when.
    alarms: Mutex<BinaryHeap<Reverse<(Time, u32)>>>,
    /// Sessions that stand.
    connected: AtomicU64,
}

impl Shared {
    fn host(&self) -> Option<Arc<dyn Host>> {
        self.host.get()?.upgrade()
    }

    fn alarm(&self, at: Time, session: u32) {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).push(Reverse((at, session)));
    }

    /// Those whose time has come.
    fn due(&self, now: Time, into: &mut Vec<(Time, u32)>) {
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(Reverse(first)) = alarms.peek().copied().filter(|Reverse((at, _))| *at <= now) {
            alarms.pop();
            into.push(first);
        }
    }
}

/// All sessions of a worker. Dropped, it ends them.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    sessions: Arc<RwLock<Vec<Arc<Session>>>>,
    tasks: TaskTracker,
    _stop: DropGuard,
}

impl Engine {
    /// No session yet. Errors: the device has a bad name.
    pub(crate) fn new(
        target: Target,
        device: &str,
        tuning: Tuning,
        world: Arc<dyn World>,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            target,
            device: DeviceId::new(device)?,
            tuning,
            world,
            host: OnceLock::new(),
            alarms: Mutex::default(),
            connected: AtomicU64::new(0),
        });
        let sessions = Arc::new(RwLock::new(Vec::new()));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(tick(Arc::clone(&shared), Arc::clone(&sessions), stop.clone()));
        Ok(Self { shared, sessions, tasks, _stop: stop.drop_guard() })
    }

    /// From now on this one is told what comes; until then it is kept.
    pub(crate) fn serve(&self, host: Weak<dyn Host>) {
        // Only the first one is served.
        let _ = self.shared.host.set(host);
    }

    /// A session of this user, which connects now.
    pub(crate) fn start(&self, user: u32, way: &Arc<Way>) -> Arc<Session> {
        let mut sessions = self.sessions.write().unwrap_or_else(PoisonError::into_inner);
        let index = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
        let session = Arc::new(Session::new(Arc::clone(&self.shared), Arc::clone(way), user, index));
        sessions.push(Arc::clone(&session));
        drop(sessions);
        let polled = Arc::clone(&session);
        self.tasks.spawn(std::future::poll_fn(move |cx| polled.poll(cx)));
        session
    }

    /// Sessions that stand.
    pub(crate) fn connected(&self) -> u64 {
        self.shared.connected.load(Ordering::Relaxed)
    }

    /// Cuts and ends all.
    pub(crate) fn end(&self) {
        let sessions = std::mem::take(&mut *self.sessions.write().unwrap_or_else(PoisonError::into_inner));
        for session in &sessions {
            session.end();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end();
    }
}

/// Looks at the sessions whose time has come, until the end.
async fn tick(shared: Arc<Shared>, sessions: Arc<RwLock<Vec<Arc<Session>>>>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut due = Vec::new();
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        shared.due(shared.world.now(), &mut due);
        for (at, index) in due.drain(..) {
            let session =
                sessions.read().unwrap_or_else(PoisonError::into_inner).get(index as usize).cloned();
            if let Some(session) = session {
                session.on_alarm(at);
            }
        }
    }
}
