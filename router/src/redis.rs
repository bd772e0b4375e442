//! Presence in Redis: one hash per mailbox, a field per device, compared by a script inside Redis.
//! **Invariant:** a lease changes only where the new one is not older; what Redis does not answer in time changes nothing here:
//! a lease counts as kept, a mailbox as nobody's, and the probes find what no doorbell told.
//!
//! A value is `order ‖ gateway ‖ until`: the order (epoch, resumes, connection) in 56 digits of hex, the gateway in 32, then the
//! end of the lease in milliseconds of Redis's own clock. Digits compare like the numbers they stand for in any locale, which
//! decides how Lua compares strings. Every write renews the time to live of the whole hash, so that an empty cluster leaves
//! an empty Redis. Nothing here needs Redis to keep anything.

mod pushers;

use crate::metrics::PresenceMetrics;
use crate::presence::{DeviceLease, LEASE_MS, Lease, Presence};
use ::redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use ::redis::{
    Client, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, Script, TlsCertificates,
};
use async_trait::async_trait;
use chappe_protocol::id::{DeviceId, GatewayId, MailboxId};
use chappe_protocol::time::Millis;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Leases of one pipeline.
const BATCH_MAX: usize = 128;
/// Digits of a lease's order.
const ORDER: usize = 56;
/// Digits of a gateway.
const GATEWAY: usize = 32;
/// Between two attempts to connect, at most; the driver adds jitter.
const RECONNECT_MAX: Duration = Duration::from_secs(2);

/// KEYS: the mailbox. ARGV: device, order, gateway, milliseconds. 1: taken; 0: a newer one is there.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there and tonumber(string.sub(there, 89)) > now and string.sub(there, 1, 56) > ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ARGV[3] .. string.format('%.0f', now + ARGV[4]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
";

/// KEYS: the mailbox. ARGV: device, order and gateway. Removes exactly this lease.
const RELEASE: &str = r"
local there = redis.call('HGET', KEYS[1], ARGV[1])
if there and string.sub(there, 1, 88) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 1
";

/// KEYS: the mailbox. Of each live lease: device, gateway, milliseconds left.
const DEVICES: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local all = redis.call('HGETALL', KEYS[1])
local found = {}
for at = 1, #all, 2 do
  local left = tonumber(string.sub(all[at + 1], 89)) - now
  if left > 0 then
    found[#found + 1] = all[at]
    found[#found + 1] = string.sub(all[at + 1], 57, 88)
    found[#found + 1] = string.format('%.0f', left)
  end
end
return found
";

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisConfig {
    /// `redis://host:port/db` or `rediss://…`; without a password, which belongs into `password`.
    pub url: String,
    /// The user; empty: Redis's default one.
    pub username: String,
    /// Its password; empty: none.
    pub password: String,
    /// PEM of the authority that signed Redis's certificate; `None`: the system's authorities.
    pub authority_pem: Option<Vec<u8>>,
    /// First part of every key: several clusters may share one Redis.
    pub cluster: String,
    /// No call takes longer; 500 ms.
    pub timeout: Millis,
    /// Calls at once; one more is treated as unanswered. 1,024.
    pub calls_max: usize,
}

impl RedisConfig {
    /// The defaults for a server and a cluster.
    pub fn new(url: impl Into<String>, cluster: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            username: String::new(),
            password: String::new(),
            authority_pem: None,
            cluster: cluster.into(),
            timeout: Millis(500),
            calls_max: 1024,
        }
    }
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A URL may hold a password, against our advice.
        f.debug_struct("RedisConfig").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Why presence cannot be had from this Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisPresenceError {
    /// The settings make no sense.
    #[error("redis_url: {0}; write redis://host:port/db, or rediss:// for TLS")]
    Url(String),
    /// Redis is there and refuses.
    #[error(
        "redis_refused: {0}; check user, password and permissions (the role needs EVALSHA, SCRIPT LOAD, TIME and hashes; a pusher sorted sets and PTTL too)"
    )]
    Refused(String),
    /// Nobody answers.
    #[error(
        "redis_unreachable: {0}; presence is only a hint, so sessions go on and live on probes until Redis is back"
    )]
    Unreachable(String),
}

/// Leases in Redis.
pub struct RedisPresence {
    client: Client,
    connection: ConnectionManager,
    cluster: String,
    timeout: Duration,
    permits: Semaphore,
    scripts: Scripts,
    metrics: Arc<PresenceMetrics>,
}

struct Scripts {
    take: String,
    release: String,
    devices: String,
    join_pushers: String,
    leave_pushers: String,
}

fn hash(script: &str) -> String {
    Script::new(script).get_hash().to_owned()
}

/// Not answered, or not well.
#[derive(Debug)]
enum Failure {
    Busy,
    TimedOut,
    Redis(RedisError),
}

impl Failure {
    fn word(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::TimedOut => "timeout",
            Self::Redis(error) if error.is_timeout() => "timeout",
            Self::Redis(_) => "error",
        }
    }
}

impl RedisPresence {
    /// Connects when it is first used, and again for ever. Needs a runtime.
    pub fn open(config: &RedisConfig, metrics: Arc<PresenceMetrics>) -> Result<Self, RedisPresenceError> {
        // The driver's message may repeat the URL, and with it a password.
        let unreadable = |_: RedisError| RedisPresenceError::Url("the URL cannot be read".into());
        let info = config.url.as_str().into_connection_info().map_err(unreadable)?;
        let mut settings = info.redis_settings().clone().set_lib_name("chappe", env!("CARGO_PKG_VERSION"));
        if !config.username.is_empty() {
            settings = settings.set_username(&config.username);
        }
        if !config.password.is_empty() {
            settings = settings.set_password(&config.password);
        }
        let tcp = info.tcp_settings().clone().set_nodelay(true);
        let info = info.set_redis_settings(settings).set_tcp_settings(tcp);
        let certificates = TlsCertificates { client_tls: None, root_cert: config.authority_pem.clone() };
        let unusable = |error: RedisError| RedisPresenceError::Url(error.category().to_owned());
        let encrypted = matches!(info.addr(), ::redis::ConnectionAddr::TcpTls { .. });
        let client = if encrypted { Client::build_with_tls(info, certificates) } else { Client::open(info) };
        let timeout = config.timeout.to_std();
        let manager = ConnectionManagerConfig::new()
            .set_response_timeout(Some(timeout))
            .set_connection_timeout(Some(timeout))
            .set_max_delay(RECONNECT_MAX)
            .set_number_of_retries(usize::MAX)
            .set_pipeline_buffer_size(512);
        let client = client.map_err(unusable)?;
        let connection =
            ConnectionManager::new_lazy_with_config(client.clone(), manager).map_err(unusable)?;
        let scripts = Scripts {
            take: hash(TAKE),
            release: hash(RELEASE),
            devices: hash(DEVICES),
            join_pushers: hash(pushers::JOIN),
            leave_pushers: hash(pushers::LEAVE),
        };
        Ok(Self {
            client,
            connection,
            cluster: config.cluster.clone(),
            timeout,
            permits: Semaphore::new(config.calls_max.clamp(1, Semaphore::MAX_PERMITS)),
            scripts,
            metrics,
        })
    }

    /// Whether Redis answers and lets us do what we need, asked over a connection of its own: the shared one tries again
    /// for ever and does not say why.
    pub async fn check(&self) -> Result<(), RedisPresenceError> {
        let mut pipeline = Pipeline::new();
        self.ask(&mut pipeline, &self.scripts.devices, MailboxId([0; 16]));
        let asked = async {
            let mut connection = self.client.get_multiplexed_async_connection().await?;
            send::<Vec<Vec<String>>>(&mut connection, &pipeline).await
        };
        match tokio::time::timeout(2 * self.timeout, asked).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if error.is_io_error() || error.is_timeout() => {
                Err(RedisPresenceError::Unreachable(error.to_string()))
            }
            Ok(Err(error)) => Err(RedisPresenceError::Refused(error.to_string())),
            Err(_) => Err(RedisPresenceError::Unreachable("no answer in time".into())),
        }
    }

    fn key(&self, mailbox: MailboxId) -> String {
        let mut key = format!("chappe:{}:lease:", self.cluster);
        hex(&mut key, mailbox.as_bytes());
        key
    }

    fn ask<'a>(&self, pipeline: &'a mut Pipeline, script: &str, mailbox: MailboxId) -> &'a mut Pipeline {
        pipeline.cmd("EVALSHA").arg(script).arg(1).arg(self.key(mailbox))
    }

    /// Sends a pipeline and waits at most the timeout, scripts included if Redis has forgotten them.
    async fn call<T: FromRedisValue>(&self, call: &str, pipeline: &Pipeline) -> Result<T, Failure> {
        let timer = self.metrics.seconds.start_timer();
        let answered = match self.permits.try_acquire() {
            Err(_) => Err(Failure::Busy),
            Ok(_permit) => {
                let mut connection = self.connection.clone();
                let answer = tokio::time::timeout(self.timeout, send(&mut connection, pipeline)).await;
                answer.map_err(|_| Failure::TimedOut).and_then(|answer| answer.map_err(Failure::Redis))
            }
        };
        timer.observe_duration();
        let word = answered.as_ref().err().map_or("ok", Failure::word);
        self.metrics.calls.with_label_values(&[call, word]).inc();
        answered
    }
}

/// Sends a pipeline, and the scripts first if Redis has forgotten them.
async fn send<T: FromRedisValue>(
    connection: &mut impl ConnectionLike,
    pipeline: &Pipeline,
) -> Result<T, RedisError> {
    match pipeline.query_async(connection).await {
        Err(error) if error.kind() == ErrorKind::Server(::redis::ServerErrorKind::NoScript) => {
            let mut load = Pipeline::new();
            for script in [TAKE, RELEASE, DEVICES, pushers::JOIN, pushers::LEAVE] {
                load.cmd("SCRIPT").arg("LOAD").arg(script).ignore();
            }
            load.query_async::<()>(connection).await?;
            pipeline.query_async(connection).await
        }
        answer => answer,
    }
}

#[async_trait]
impl Presence for RedisPresence {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        let mut kept = Vec::with_capacity(leases.len());
        for batch in leases.chunks(BATCH_MAX) {
            let mut pipeline = Pipeline::with_capacity(batch.len());
            for lease in batch {
                self.ask(&mut pipeline, &self.scripts.take, lease.mailbox)
                    .arg(lease.device.as_str())
                    .arg(order(lease))
                    .arg(gateway(lease))
                    .arg(LEASE_MS);
            }
            let answer = self.call::<Vec<u8>>("lease", &pipeline).await;
            let answer = answer.ok().filter(|answer| answer.len() == batch.len());
            match answer {
                Some(answer) => kept.extend(answer.into_iter().map(|taken| taken != 0)),
                None => kept.extend(std::iter::repeat_n(true, batch.len())),
            }
        }
        kept
    }

    async fn release(&self, lease: &Lease) {
        let mut pipeline = Pipeline::new();
        self.ask(&mut pipeline, &self.scripts.release, lease.mailbox)
            .arg(lease.device.as_str())
            .arg(order(lease) + &gateway(lease))
            .ignore();
        // Not released: it ends by its own time.
        let _ = self.call::<()>("release", &pipeline).await;
    }

    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        let mut pipeline = Pipeline::new();
        self.ask(&mut pipeline, &self.scripts.devices, mailbox);
        let answer = self.call::<Vec<Vec<String>>>("devices", &pipeline).await.ok()?;
        let mut leases: Vec<DeviceLease> =
            answer.iter().flat_map(|found| found.chunks_exact(3)).filter_map(parse_lease).collect();
        leases.sort_unstable_by(|a, b| a.device.cmp(&b.device));
        Some(leases)
    }
}

/// Device, gateway, milliseconds left; `None`: not written by us.
fn parse_lease(words: &[String]) -> Option<DeviceLease> {
    let [device, gateway, left] = words else { return None };
    let left: u64 = left.parse().ok()?;
    Some(DeviceLease {
        device: DeviceId::new(device).ok()?,
        gateway: GatewayId::from_hex(gateway)?,
        age: Millis(LEASE_MS.saturating_sub(left)),
    })
}

fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
}

/// The lease's order, as text that compares like it.
fn order(lease: &Lease) -> String {
    let (epoch, resumes, connection) = lease.order();
    let mut text = String::with_capacity(ORDER + GATEWAY);
    let _ = write!(text, "{:016x}{resumes:08x}", epoch.0);
    hex(&mut text, &connection.0);
    text
}

fn gateway(lease: &Lease) -> String {
    let mut text = String::with_capacity(GATEWAY);
    hex(&mut text, &lease.gateway.0);
    text
}
