//! What a node must know to reach the bus. **Invariant:** secrets are named by file; none of them is ever printed.

use super::error::BusError;
use async_nats::ConnectOptions;
use chappe_protocol::id::ClusterId;
use chappe_protocol::time::Millis;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a process does on the bus; decides what it subscribes to, and its prefix for replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BusRole {
    /// Sends requests, hears announcements and its own doorbells.
    Gateway,
    /// Answers requests, announces itself, rings.
    Router,
    /// Takes wake hints.
    Pusher,
}

impl BusRole {
    /// The word for it in subjects and connection names.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Router => "router",
            Self::Pusher => "pusher",
        }
    }
}

/// How a process proves to NATS who it is. Each names a file; white space around its content is ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// Not at all.
    #[default]
    None,
    /// The seed of a user's NKey (`SU…`); the server knows the public half only.
    NkeySeedFile(PathBuf),
    /// A shared token.
    TokenFile(PathBuf),
    /// `user:password`; the password may hold colons.
    UserPasswordFile(PathBuf),
}

/// How to reach the bus, and how much of it one process may use.
#[derive(Clone)]
pub struct NatsConfig {
    /// `nats://host:port` or `tls://host:port`, at least one.
    pub urls: Vec<String>,
    /// What this process does.
    pub role: BusRole,
    /// The cluster's name in subjects: 1 to 32 characters of `[a-z0-9-]`.
    pub cluster_name: String,
    /// Stands in every message; what bears another is refused and counted. Made of the store's own identity
    /// ([`ClusterId::of_store`]), so that two clusters of one name tell each other apart.
    pub cluster: ClusterId,
    /// Who this process is to NATS.
    pub credentials: Credentials,
    /// TLS to the server, required where it is given.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The longest wait for one server at connect.
    pub connect_max: Millis,
    /// A server that does not answer two pings in a row is left.
    pub ping_every: Millis,
    /// The longest pause between two attempts to reconnect; half of each pause is random.
    pub reconnect_pause_max: Millis,
    /// The largest message that is sent; the server must take as much.
    pub message_bytes_max: usize,
    /// Messages that wait between the connection and whoever reads a subscription; more are dropped, counted, and raise an alarm.
    pub subscription_messages_max: usize,
    /// Requests of this process that wait for an answer; beyond it a request is answered *unavailable*.
    pub requests_max: usize,
    /// Their bytes.
    pub request_bytes_max: usize,
    /// Requests that this process is answering; beyond it a request is answered *unavailable*.
    pub serving_max: usize,
    /// Their bytes.
    pub serving_bytes_max: usize,
    /// Doorbells that wait to be written; beyond it bells are dropped.
    pub bells_max: usize,
    /// Their bytes.
    pub bell_bytes_max: usize,
    /// A router says so often that it is there, a third more or less.
    pub announce_every: Millis,
    /// A router that was not heard for so long is avoided, and what waits for it is asked of another.
    pub silent_after: Millis,
    /// A router that was not heard for so long is forgotten.
    pub forgotten_after: Millis,
    /// A router that let a request run into its deadline is avoided for so long.
    pub suspected_for: Millis,
    /// Routers that are remembered.
    pub routers_max: usize,
    /// A router that ends still takes requests for so long after it has said so.
    pub drain_linger: Millis,
}

impl NatsConfig {
    /// The defaults for a role, with one server and no credentials. Without a cluster's id, which the caller sets, nobody gets on
    /// the bus.
    pub fn new(role: BusRole, url: &str, cluster_name: &str) -> Self {
        Self {
            urls: vec![url.to_owned()],
            role,
            cluster_name: cluster_name.to_owned(),
            cluster: ClusterId::default(),
            credentials: Credentials::None,
            tls: None,
            connect_max: Millis::from_secs(5),
            ping_every: Millis::from_secs(3),
            reconnect_pause_max: Millis::from_secs(4),
            message_bytes_max: 8 * 1024 * 1024,
            subscription_messages_max: 4096,
            requests_max: 16_384,
            request_bytes_max: 128 * 1024 * 1024,
            serving_max: 16_384,
            serving_bytes_max: 128 * 1024 * 1024,
            bells_max: 16_384,
            bell_bytes_max: 32 * 1024 * 1024,
            announce_every: Millis(500),
            silent_after: Millis(1750),
            forgotten_after: Millis::from_secs(15),
            suspected_for: Millis::from_secs(5),
            routers_max: 1024,
            drain_linger: Millis(300),
        }
    }
}

impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // An address may hold a password.
        f.debug_struct("NatsConfig")
            .field("role", &self.role)
            .field("cluster_name", &self.cluster_name)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Adds them to the driver's options.
    pub(crate) async fn apply(&self, options: ConnectOptions) -> Result<ConnectOptions, BusError> {
        Ok(match self {
            Self::None => options,
            Self::NkeySeedFile(file) => {
                let seed = read(file).await?;
                if !seed.starts_with("SU") {
                    return Err(bad(file, "this is not the seed of a user's NKey"));
                }
                options.nkey(seed)
            }
            Self::TokenFile(file) => options.token(read(file).await?),
            Self::UserPasswordFile(file) => {
                let text = read(file).await?;
                let (user, password) =
                    text.split_once(':').ok_or_else(|| bad(file, "there is no colon in it"))?;
                options.user_and_password(user.to_owned(), password.to_owned())
            }
        })
    }
}

async fn read(file: &Path) -> Result<String, BusError> {
    let text = tokio::fs::read_to_string(file).await.map_err(|error| bad(file, &error.to_string()))?;
    let text = text.trim();
    if text.is_empty() { Err(bad(file, "it is empty")) } else { Ok(text.to_owned()) }
}

fn bad(file: &Path, why: &str) -> BusError {
    BusError::Credentials { file: file.to_owned(), why: why.to_owned() }
}
