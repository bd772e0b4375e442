//! How a client is made. **Invariant:** what is wrong in the settings is told before anything is sent.

use crate::client::Client;
use crate::connector::{Connector, TcpConnector};
use crate::endpoint::{Endpoint, Quic, Security};
use crate::error::ClientError;
use crate::token::TokenSource;
use crate::world::SystemWorld;
use chappe_protocol::frame::Role;
use chappe_protocol::id::DeviceId;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use std::path::PathBuf;
use std::sync::Arc;

/// Settings of a [`Client`].
#[must_use = "a builder does nothing until `start` or `connect`"]
pub struct Builder {
    url: String,
    device: String,
    token: Option<Arc<dyn TokenSource>>,
    state_dir: Option<PathBuf>,
    tls: Option<Arc<rustls::ClientConfig>>,
    roots_pem: Option<Vec<u8>>,
    allow_plaintext: bool,
    role: Role,
    connector: Arc<dyn Connector>,
    world: Arc<dyn World>,
    tuning: Tuning,
}

/// Bounds and times of a client. The defaults suit a phone and a server alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tuning {
    /// Submits that are not yet decided.
    pub outbox_items_max: usize,
    /// Their bytes.
    pub outbox_bytes_max: usize,
    /// Submits in flight to one recipient. More than one relies on a gateway that holds a recipient's lane behind an
    /// undecided entry until that entry comes again, as Chappe's does; 1 keeps the order with any gateway.
    pub lane_depth: usize,
    /// Envelopes and other events that the application has not taken or not acked; beyond it the socket is not read.
    pub inbox_items_max: usize,
    /// Their bytes.
    pub inbox_bytes_max: usize,
    /// Bytes of one message from the server; a larger one ends the connection before memory is taken for it.
    pub message_bytes_max: usize,
    /// From dialling to Welcome.
    pub connect_timeout: Millis,
    /// First and smallest bound of the backoff between attempts.
    pub backoff_min: Millis,
    /// Its largest bound.
    pub backoff_max: Millis,
    /// A submit that is not decided after so long is given up.
    pub give_up_after: Millis,
    /// Acks wait at most so long for company.
    pub ack_delay: Millis,
    /// `Client::close` waits at most so long for the last acks to leave.
    pub close_timeout: Millis,
    /// A token is renewed so long before it expires.
    pub token_margin: Millis,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            outbox_items_max: 1024,
            outbox_bytes_max: 16 * 1024 * 1024,
            lane_depth: 16,
            inbox_items_max: 512,
            inbox_bytes_max: 4 * 1024 * 1024,
            message_bytes_max: 1024 * 1024 + 4096,
            connect_timeout: Millis::from_secs(15),
            backoff_min: Millis(500),
            backoff_max: Millis::from_secs(20),
            give_up_after: Millis::from_secs(24 * 3600),
            ack_delay: Millis(20),
            close_timeout: Millis::from_secs(5),
            token_margin: Millis::from_secs(60),
        }
    }
}

/// The checked settings that the driver works with.
pub(crate) struct Settings {
    pub(crate) endpoint: Endpoint,
    pub(crate) device: DeviceId,
    pub(crate) token: Arc<dyn TokenSource>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) security: Security,
    /// For addresses that ask for it.
    pub(crate) quic: Option<Quic>,
    pub(crate) role: Role,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) world: Arc<dyn World>,
    pub(crate) tuning: Tuning,
}

impl Builder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            device: String::new(),
            token: None,
            state_dir: None,
            tls: None,
            roots_pem: None,
            allow_plaintext: false,
            role: Role::Main,
            connector: Arc::new(TcpConnector),
            world: Arc::new(SystemWorld::default()),
            tuning: Tuning::default(),
        }
    }

    /// The id of this device: 1 to 64 bytes of `[A-Za-z0-9._:-]`, as in the token; required.
    pub fn device(mut self, device: impl Into<String>) -> Self {
        self.device = device.into();
        self
    }

    /// Where tokens come from; required.
    pub fn token(mut self, source: impl TokenSource) -> Self {
        self.token = Some(Arc::new(source));
        self
    }

    /// Keeps cursor, outbox and seen ids in this directory, which belongs to one device of one user. Without it a new
    /// client starts at the cursor that the server knows, and undecided submits die with the process.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = Some(path.into());
        self
    }

    /// A TLS configuration of your own; QUIC and WebTransport need TLS 1.3 in it.
    pub fn tls(mut self, config: Arc<rustls::ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Trusts these roots (PEM) instead of the public ones.
    pub fn root_certificates_pem(mut self, pem: &[u8]) -> Self {
        self.roots_pem = Some(pem.to_vec());
        self
    }

    /// Allows `ws://` to other hosts than this one: tokens travel readable by everyone on the way.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// The one session of the device, or a peek beside it; default [`Role::Main`].
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// How byte streams are made and names resolved; default TCP and the system.
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = connector;
        self
    }

    /// Clock and randomness; default the system's.
    pub fn world(mut self, world: Arc<dyn World>) -> Self {
        self.world = world;
        self
    }

    /// Bounds and times.
    pub fn tuning(mut self, tuning: Tuning) -> Self {
        self.tuning = tuning;
        self
    }

    /// Starts the client, which connects in the background. A wrong setting shows as `State::Failed`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(self) -> Client {
        let world = self.world.clone();
        let tuning = self.tuning.clone();
        Client::start(self.check(), &world, &tuning)
    }

    /// Starts the client and waits for its first Welcome; network trouble is waited out, a terminal error is returned.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let client = self.start();
        client.connected().await?;
        Ok(client)
    }

    fn check(self) -> Result<Settings, ClientError> {
        let endpoint = Endpoint::parse(&self.url)?;
        endpoint.check_plaintext(self.allow_plaintext)?;
        let device = DeviceId::new(&self.device).map_err(|_| {
            ClientError::Invalid("a device id has 1 to 64 bytes of letters, digits and . _ : -")
        })?;
        let token = self.token.ok_or(ClientError::Invalid("a token source is required"))?;
        if self.tuning.lane_depth == 0
            || self.tuning.inbox_items_max == 0
            || self.tuning.outbox_items_max == 0
        {
            return Err(ClientError::Invalid("bounds must be at least 1"));
        }
        let security = Security::new(&endpoint, self.tls, self.roots_pem.as_deref())?;
        let quic = Quic::new(&endpoint, &security)?;
        Ok(Settings {
            endpoint,
            device,
            token,
            state_dir: self.state_dir,
            security,
            quic,
            role: self.role,
            connector: self.connector,
            world: self.world,
            tuning: self.tuning,
        })
    }
}
