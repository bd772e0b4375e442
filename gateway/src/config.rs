//! What a gateway is given to run with. **Invariant:** every queue, rate and time that a peer can touch has its bound here.

use crate::auth::TokenVerifier;
use crate::metrics::GatewayMetrics;
use crate::quic::QuicDoor;
use crate::transport::websocket::HandshakeLimits;
use chappe_protocol::id::GatewayId;
use chappe_protocol::internode::Doorbell;
use chappe_protocol::session::SessionConfig;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_router::links::Links;
use chappe_router::presence::Presence;
use chappe_router::trace::Traces;
use chappe_storage::Store;
use chappe_storage::sealed::PushKeys;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// A socket that has just been accepted, before any handshake.
#[derive(Debug)]
pub struct Incoming<IO> {
    /// Bytes in, bytes out.
    pub io: IO,
    /// Where from: the bound of its source; never logged.
    pub peer: SocketAddr,
}

/// The present TLS configuration; whoever owns the certificate may replace it at any time.
pub trait TlsSource: Send + Sync + 'static {
    /// What the next handshake uses.
    fn current(&self) -> Arc<rustls::ServerConfig>;
}

/// All that [`run`](crate::run) needs beside its settings.
pub struct Parts {
    /// Clock and randomness.
    pub world: Arc<dyn World>,
    /// The slot log.
    pub store: Arc<dyn Store>,
    /// The way to the routers.
    pub links: Arc<dyn Links>,
    /// Leases.
    pub presence: Arc<dyn Presence>,
    /// Doorbells rung for this gateway.
    pub bells: mpsc::Receiver<Doorbell>,
    /// Changes when doorbells may have been lost: the gateway probes at once. A closed one never changes.
    pub alarms: watch::Receiver<u64>,
    /// Checks tokens.
    pub verifier: Arc<TokenVerifier>,
    /// TLS; `None`: plain sockets.
    pub tls: Option<Arc<dyn TlsSource>>,
    /// The UDP port for QUIC and WebTransport; `None`: WebSocket only.
    pub quic: Option<QuicDoor>,
    /// Counters and gauges.
    pub metrics: Arc<GatewayMetrics>,
    /// Remembers for operators what was delivered.
    pub traces: Arc<Traces>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// How a gateway empties itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DrainConfig {
    /// All sessions are told and closed within this.
    pub budget: Millis,
    /// Sessions per second, unless the budget asks for more.
    pub sessions_per_second: u32,
    /// A session may finish what it was doing for so long after its `GoAway`.
    pub grace: Millis,
    /// Told in `GoAway`: wait at least this before the reconnect.
    pub retry_after: Millis,
    /// Told in `GoAway`: and at most so much more.
    pub jitter: Millis,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self {
            budget: Millis::from_secs(25),
            sessions_per_second: 500,
            grace: Millis(500),
            retry_after: Millis(200),
            jitter: Millis(2_000),
        }
    }
}

/// Settings of one gateway.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Names this process (an incarnation, not a host).
    pub id: GatewayId,
    /// Limits and times of sessions, as told in `Welcome`.
    pub session: Arc<SessionConfig>,
    /// Path, subprotocol, allowed origins, deadline and frame size.
    pub handshake: HandshakeLimits,
    /// Signs resume tokens; the same on every gateway that should honour them.
    pub resume_key: [u8; 32],
    /// A resume token is honoured for so long after its `Welcome`.
    pub resume_max: Millis,
    /// TLS, WebSocket and QUIC handshakes per second, sustained; what is beyond is closed before any work.
    pub handshakes_per_second: u32,
    /// Handshakes at once.
    pub handshakes_burst: u32,
    /// The same of one source (an address of IPv4, a network of 64 bits of IPv6), twice as many at once; 0: no bound of its own.
    pub source_handshakes_per_second: u32,
    /// Load balancers whose connections begin with a header of the PROXY protocol.
    pub proxies: Vec<IpNet>,
    /// While so many handshakes are under way, a QUIC client must prove its address before its own begins.
    pub quic_unproven_max: usize,
    /// Sessions at once; beyond it a new one is told `GoAway{Shed}` and closed.
    pub sessions_max: usize,
    /// From the end of the handshake to the `Hello`.
    pub hello_timeout: Millis,
    /// Bytes may wait for a reader that takes none for so long.
    pub write_timeout: Millis,
    /// For one request to a router; after it an append is *unknown*.
    pub request_budget: Millis,
    /// Payload bytes of submits in work per connection; beyond it the socket is not read.
    pub submit_bytes_max: usize,
    /// Ephemeral submits per second, sustained.
    pub ephemerals_per_second: u32,
    /// Ephemeral submits at once.
    pub ephemerals_burst: u32,
    /// Seals what devices say about being woken; `None`: this gateway takes no such registrations.
    pub push_keys: Option<Arc<PushKeys>>,
    /// Requests of a session that set something, per minute: sustained, and at once.
    pub requests_per_minute: u32,
    /// Known heads are probed this often, ± 33 %.
    pub probe_every: Millis,
    /// Heads are read outright this often, ± 33 %.
    pub probe_outright_every: Millis,
    /// How a drain goes.
    pub drain: DrainConfig,
    /// Planted defects, for the tests of the tests.
    #[cfg(feature = "testing")]
    pub bug: Option<crate::faults::Bug>,
}

impl GatewayConfig {
    /// The settings of a fresh installation under this id and key.
    pub fn new(id: GatewayId, resume_key: [u8; 32]) -> Self {
        Self {
            id,
            session: Arc::new(SessionConfig::default()),
            handshake: HandshakeLimits::default(),
            resume_key,
            resume_max: Millis::from_secs(24 * 3600),
            handshakes_per_second: 2_000,
            handshakes_burst: 4_000,
            source_handshakes_per_second: 0,
            proxies: Vec::new(),
            quic_unproven_max: 64,
            sessions_max: 100_000,
            hello_timeout: Millis::from_secs(5),
            write_timeout: Millis::from_secs(20),
            request_budget: Millis::from_secs(10),
            submit_bytes_max: 4 * 1024 * 1024,
            ephemerals_per_second: 20,
            ephemerals_burst: 40,
            push_keys: None,
            requests_per_minute: 10,
            // So that a revocation whose doorbell was lost is seen within 60 s, the router's own few seconds included.
            probe_every: Millis::from_secs(40),
            probe_outright_every: Millis::from_secs(600),
            drain: DrainConfig::default(),
            #[cfg(feature = "testing")]
            bug: None,
        }
    }
}

impl std::fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayConfig").field("id", &self.id).finish_non_exhaustive()
    }
}
