//! Gateways and routers over NATS: requests to the router with affinity, doorbells to gateways, both without any promise.
//! **Invariant:** core NATS loses what is on its way when a server or a reader fails; so nothing rests on a message but time,
//! and whatever may have lost a doorbell raises the alarm ([`NatsBus::alarms`]).

mod asking;
mod bells;
mod config;
mod error;
mod jobs;
mod members;
mod metrics;
mod pending;
mod pulse;
mod routers;
mod server;
mod status;
mod subjects;
pub mod sync;
mod wakes;
mod wakestream;

pub use config::{BusRole, Credentials, NatsConfig};
pub use error::BusError;
pub use jobs::{WakeJob, WakeJobMetrics, WakeJobs, WakeJobsConfig};
pub use metrics::BusMetrics;
pub use server::RouterServer;
pub use status::BusHealth;
pub use wakes::{JetStreamWakes, WakeConfig, WakeMetrics};

use crate::Router;
use crate::links::{LinkError, Links};
use crate::permits::Bound;
use async_nats::{Client, ConnectOptions};
use async_trait::async_trait;
use bells::{Bell, Bells};
use chappe_protocol::id::{ClusterId, GatewayId, MailboxId};
use chappe_protocol::internode::{Announcement, Doorbell, InternodeError, Reply, Request};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use futures_util::StreamExt;
use pending::Pending;
use routers::{Patience, Routers};
use status::Status;
use std::sync::Arc;
use std::time::Duration;
use subjects::Subjects;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The oldest server that was tried.
const SERVER_MIN: (i64, i64) = (2, 12);
/// Commands between us and the driver. What is in there when the connection breaks is sent late, so it is short.
const COMMANDS_MAX: usize = 64;
/// How often silence is looked for.
const TICK: Millis = Millis(250);
/// A tick that comes so late tells that this process was paused.
const PAUSED: Millis = Millis(1000);
/// The longest wait for the driver when the bus is closed.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// The connection of one process to the bus.
pub struct NatsBus {
    shared: Arc<Shared>,
    inbox: Option<String>,
}

/// What all tasks of the bus share.
pub(crate) struct Shared {
    pub(crate) config: NatsConfig,
    pub(crate) subjects: Subjects,
    pub(crate) world: Arc<dyn World>,
    pub(crate) metrics: Arc<BusMetrics>,
    pub(crate) client: Client,
    pub(crate) status: Arc<Status>,
    pub(crate) routers: Routers,
    pub(crate) pending: Pending,
    /// Requests of this process that wait.
    pub(crate) asking: Bound,
    /// Requests that this process answers.
    pub(crate) serving: Bound,
    bells: Bells,
    pub(crate) tasks: TaskTracker,
    pub(crate) closed: CancellationToken,
}

impl NatsBus {
    /// Connects and subscribes to what the role needs. Tries every address once; later it reconnects for ever by itself.
    pub async fn connect(
        config: NatsConfig,
        world: Arc<dyn World>,
        metrics: Arc<BusMetrics>,
    ) -> Result<Arc<Self>, BusError> {
        let subjects = Subjects::new(&config.cluster_name).ok_or(BusError::Config("cluster_name"))?;
        let status = Arc::new(Status::new(Arc::clone(&world), Arc::clone(&metrics)));
        let client = connect(&config, &subjects, &world, &status).await?;
        check(&client, &config)?;
        // The driver's own event comes a moment later.
        status.set(true);
        let (bells, queued) = Bells::new(&config, &metrics);
        let patience = Patience {
            silent_after: config.silent_after,
            forgotten_after: config.forgotten_after,
            suspected_for: config.suspected_for,
            routers_max: config.routers_max,
        };
        let m = &metrics;
        let shared = Arc::new(Shared {
            routers: Routers::new(patience, Arc::clone(m)),
            pending: Pending::default(),
            asking: Bound::new(
                config.requests_max,
                config.request_bytes_max,
                m.in_flight.clone(),
                m.in_flight_bytes.clone(),
            ),
            serving: Bound::new(
                config.serving_max,
                config.serving_bytes_max,
                m.serving.clone(),
                m.serving_bytes.clone(),
            ),
            bells,
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
            config,
            subjects,
            world,
            metrics,
            client,
            status,
        });
        let inbox = match shared.config.role {
            BusRole::Gateway => Some(listen(&shared).await?),
            BusRole::Router | BusRole::Pusher => None,
        };
        shared.start(bells::write(Arc::clone(&shared), queued));
        Ok(Arc::new(Self { shared, inbox }))
    }

    /// The links: gateways ask through them, routers ring through them.
    pub fn links(&self) -> Arc<dyn Links> {
        Arc::new(NatsLinks { shared: Arc::clone(&self.shared), inbox: self.inbox.clone() })
    }

    /// The doorbells of a gateway; at most `bells_max` of them wait. What does not fit is dropped and raises the alarm.
    pub async fn doorbells(
        &self,
        gateway: GatewayId,
        bells_max: usize,
    ) -> Result<mpsc::Receiver<Doorbell>, BusError> {
        let subscription = self.shared.subscribe(self.shared.subjects.bells(gateway)).await?;
        let (sender, receiver) = mpsc::channel(bells_max.max(1));
        self.shared.start(bells::hear(Arc::clone(&self.shared), subscription, sender));
        Ok(receiver)
    }

    /// Answers requests with this router until the server is closed. The name decides the router's affinity and must be its
    /// own: a random number per process. Returns when requests can arrive.
    pub async fn serve(&self, router: Router, name: u64) -> Result<RouterServer, BusError> {
        server::start(Arc::clone(&self.shared), router, name).await
    }

    /// How the connection is, for readiness.
    pub fn health(&self) -> BusHealth {
        self.shared.status.health()
    }

    /// Changes whenever doorbells may have been lost: after a reconnect as soon as a router is heard again, and when this
    /// process read too slowly. A gateway then probes at once.
    pub fn alarms(&self) -> watch::Receiver<u64> {
        self.shared.status.alarms()
    }

    /// Writes what waits and ends the tasks; requests and doorbells after it go nowhere.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(CLOSE_MAX, self.shared.client.flush()).await;
        self.shared.closed.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        let _ = tokio::time::timeout(CLOSE_MAX, self.shared.client.drain()).await;
    }
}

impl Drop for NatsBus {
    fn drop(&mut self) {
        self.shared.closed.cancel();
    }
}

impl Shared {
    /// Runs a task until the bus is closed.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closed = self.closed.clone();
        self.tasks.spawn(async move {
            closed.run_until_cancelled(task).await;
        });
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<async_nats::Subscriber, BusError> {
        self.client.subscribe(subject).await.map_err(|error| BusError::HungUp(error.to_string()))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.status.health().connected && !self.closed.is_cancelled()
    }

    /// Counts a message that is of no use.
    pub(crate) fn useless(&self, error: InternodeError) {
        match error {
            InternodeError::Foreign => self.status.foreign(),
            InternodeError::Version(_)
            | InternodeError::Garbage
            | InternodeError::UnknownKind
            | InternodeError::Field(_) => {
                self.metrics.invalid.inc();
                self.status.complain(&format!("a message on the bus is refused: {error}"));
            }
        }
    }
}

/// The links of one process.
struct NatsLinks {
    shared: Arc<Shared>,
    /// Where answers arrive; `None`: this process sends no requests.
    inbox: Option<String>,
}

#[async_trait]
impl Links for NatsLinks {
    async fn request(
        &self,
        mailbox: MailboxId,
        request: Request,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        let inbox = self.inbox.as_deref().ok_or(LinkError::NoRouter)?;
        asking::ask(&self.shared, inbox, mailbox, &request, budget).await
    }

    fn ring(&self, gateway: GatewayId, bell: Doorbell) {
        let shared = &self.shared;
        let payload = bell.encode(shared.config.cluster);
        if payload.len() > shared.config.message_bytes_max {
            shared.metrics.bells_dropped_oversize.inc();
        } else if !shared.is_connected() {
            shared.metrics.bells_dropped_disconnected.inc();
        } else {
            let subject = shared.subjects.bells(gateway);
            shared.bells.push(Bell { subject, payload: payload.into() }, &shared.metrics);
        }
    }
}

async fn connect(
    config: &NatsConfig,
    subjects: &Subjects,
    world: &Arc<dyn World>,
    status: &Arc<Status>,
) -> Result<Client, BusError> {
    if config.urls.is_empty() {
        return Err(BusError::Config("urls"));
    }
    if config.cluster == ClusterId::default() {
        return Err(BusError::Config("cluster"));
    }
    let (world, pause_max) = (Arc::clone(world), config.reconnect_pause_max);
    let pause = move |attempt: usize| reconnect_pause(&*world, pause_max, attempt);
    let on_event = Arc::clone(status);
    let mut options = ConnectOptions::new()
        .name(format!("chappe-{}", config.role.word()))
        .connection_timeout(config.connect_max.to_std())
        .ping_interval(config.ping_every.to_std())
        .subscription_capacity(config.subscription_messages_max.max(1))
        .client_capacity(COMMANDS_MAX)
        .custom_inbox_prefix(match config.role {
            BusRole::Gateway => subjects.inbox(),
            BusRole::Router => subjects.stored(),
            BusRole::Pusher => subjects.jobs(),
        })
        .request_timeout(None)
        .reconnect_delay_callback(pause)
        .event_callback(move |event| {
            let status = Arc::clone(&on_event);
            async move { status.on_event(&event) }
        });
    if let Some(tls) = &config.tls {
        options = options.require_tls(true).tls_client_config((**tls).clone());
    }
    options = config.credentials.apply(options).await?;
    Ok(options.connect(&config.urls[..]).await?)
}

/// Doubles from 50 ms; half of it is random, so that the nodes of a cluster do not come back together.
fn reconnect_pause(world: &dyn World, pause_max: Millis, attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let pause = Millis((50_u64 << doublings).min(pause_max.0));
    Millis(pause.0 / 2 + world.random_below(pause.0 / 2 + 1)).to_std()
}

fn check(client: &Client, config: &NatsConfig) -> Result<(), BusError> {
    if !client.is_server_compatible(SERVER_MIN.0, SERVER_MIN.1, 0) {
        return Err(BusError::TooOld(client.server_info().version));
    }
    let (server, ours) = (client.max_payload(), config.message_bytes_max);
    if server < ours { Err(BusError::MaxPayload { server, ours }) } else { Ok(()) }
}

/// What a gateway hears beside doorbells: answers and announcements. Returns where answers arrive.
async fn listen(shared: &Arc<Shared>) -> Result<String, BusError> {
    let inbox = shared.client.new_inbox();
    let mut answers = shared.subscribe(format!("{inbox}.*")).await?;
    let mut announcements = shared.subscribe(shared.subjects.announcements()).await?;
    let of = Arc::clone(shared);
    shared.start(async move {
        while let Some(message) = answers.next().await {
            of.pending.answered(message);
        }
    });
    let of = Arc::clone(shared);
    shared.start(async move {
        let mut heard_on = *of.status.connections().borrow();
        while let Some(message) = announcements.next().await {
            match Announcement::decode(&message.payload, of.config.cluster) {
                Ok(announcement) => {
                    of.routers.announced(announcement, of.world.now());
                    // Only now a probe can be answered.
                    let connection = *of.status.connections().borrow();
                    if connection > heard_on.max(1) {
                        of.status.alarm();
                    }
                    heard_on = connection;
                }
                Err(error) => of.useless(error),
            }
        }
    });
    shared.start(watch_routers(Arc::clone(shared)));
    who_is_there(shared).await;
    Ok(inbox)
}

/// Notices silent routers; forgives them when this process could not hear them.
async fn watch_routers(shared: Arc<Shared>) {
    let mut last = shared.world.now();
    let mut connections = shared.status.connections();
    loop {
        tokio::time::sleep(TICK.to_std()).await;
        let now = shared.world.now();
        let connection_is_new = connections.has_changed().unwrap_or_default();
        if connection_is_new {
            connections.mark_unchanged();
            who_is_there(&shared).await;
        }
        if connection_is_new || !shared.is_connected() || now - last > PAUSED {
            shared.routers.forgive(now);
        }
        shared.routers.tick(now);
        last = now;
    }
}

/// Asks the routers to announce themselves. A question that is lost costs one announcement's time.
async fn who_is_there(shared: &Shared) {
    let ask = shared.client.publish(shared.subjects.who(), bytes::Bytes::new());
    let _ = tokio::time::timeout(TICK.to_std(), ask).await;
}
