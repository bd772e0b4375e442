//! What every fake has: a port, TLS, a script, a record. **Invariant:** connections, streams, bodies and waits are bounded;
//! nothing outlives [`Host::close`].

use crate::authority::{Authority, H2, HTTP_1_1};
use crate::clock::Clock;
use crate::error::FakeError;
use crate::record::Record;
use crate::rules::Rules;
use crate::script::Script;
use crate::{http1, http2};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The longest that TLS, the preface of HTTP/2 or a request of HTTP/1.1 may take.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// The longest that a connection is kept without an answer.
const BLACK_HOLE_MAX: Duration = Duration::from_mins(10);
/// Bytes that a pipe holds in each direction.
const PIPE_BYTES: usize = 64 * 1024;

/// What every fake is told.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Signs the server's certificate; none: one of its own is made.
    pub authority: Option<Arc<Authority>>,
    /// The provider's time.
    pub clock: Clock,
    /// Where to listen.
    pub address: SocketAddr,
    /// Streams that a client may have open at once; Apple starts with one and raises it to this.
    pub streams_max: u32,
    /// Connections at once; further ones are closed.
    pub connections_max: usize,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            authority: None,
            clock: Clock::system(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            streams_max: 1000,
            connections_max: 1024,
        }
    }
}

/// What happens to new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// They are served.
    Open,
    /// They are closed as soon as they are there.
    Closed,
    /// TLS ends in a fatal alert.
    TlsFailure,
    /// Nothing is ever said, for ten minutes at most.
    BlackHole,
}

pub(crate) struct Shared {
    pub(crate) rules: Arc<dyn Rules>,
    pub(crate) script: Script,
    pub(crate) login_script: Script,
    pub(crate) record: Arc<Record>,
    pub(crate) clock: Clock,
    pub(crate) streams_max: u32,
    pub(crate) tracker: TaskTracker,
    pub(crate) runtime: Handle,
    tls: TlsAcceptor,
    places: Arc<Semaphore>,
    places_max: usize,
    connections: AtomicU64,
    closing: CancellationToken,
    entrance: Mutex<Entrance>,
}

struct Entrance {
    door: Door,
    /// How often the door was set: an opening that was planned before a later change is void.
    turn: u64,
    /// Cuts all connections of now.
    now: CancellationToken,
}

/// What every fake has. Dropped, it ends.
pub struct Host {
    shared: Arc<Shared>,
    address: SocketAddr,
    authority: Arc<Authority>,
}

/// Which versions of HTTP are agreed upon.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Versions {
    Http2,
    Both,
}

impl Host {
    pub(crate) async fn start(
        config: HostConfig,
        versions: Versions,
        rules: impl FnOnce(SocketAddr) -> Result<Arc<dyn Rules>, FakeError>,
    ) -> Result<Self, FakeError> {
        let authority = match config.authority {
            Some(authority) => authority,
            None => Arc::new(Authority::new()?),
        };
        let protocols: &[&[u8]] = match versions {
            Versions::Http2 => &[H2],
            Versions::Both => &[H2, HTTP_1_1],
        };
        let listener = TcpListener::bind(config.address).await?;
        let address = listener.local_addr()?;
        let closing = CancellationToken::new();
        let entrance = Entrance { door: Door::Open, turn: 0, now: closing.child_token() };
        let shared = Arc::new(Shared {
            rules: rules(address)?,
            script: Script::default(),
            login_script: Script::default(),
            record: Arc::new(Record::new()),
            clock: config.clock,
            streams_max: config.streams_max,
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            tls: TlsAcceptor::from(authority.server_config(protocols)?),
            places: Arc::new(Semaphore::new(config.connections_max)),
            places_max: config.connections_max,
            connections: AtomicU64::new(0),
            closing,
            entrance: Mutex::new(entrance),
        });
        shared.tracker.spawn(listen(Arc::clone(&shared), listener));
        Ok(Self { shared, address, authority })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:port`, without a slash at its end.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Who signed its certificate.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// The certificate that a client has to trust.
    pub fn certificate_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// Its time.
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// What is to happen.
    pub fn script(&self) -> &Script {
        &self.shared.script
    }

    pub(crate) fn login_script(&self) -> &Script {
        &self.shared.login_script
    }

    /// What came in.
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// Connections that are open now.
    pub fn connections_open(&self) -> usize {
        self.shared.places_max - self.shared.places.available_permits()
    }

    /// Sets what happens to new connections. Those that are open stay.
    pub fn set_door(&self, door: Door) {
        self.shared.set_door(door);
    }

    /// Closes every connection at once, without a word.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Down: every connection is cut, new ones are closed, for this long.
    pub fn down_for(&self, how_long: Duration) {
        self.shared.cut();
        let turn = self.shared.set_door(Door::Closed);
        let shared = Arc::clone(&self.shared);
        let up = async move {
            tokio::select! {
                biased;
                () = shared.closing.cancelled() => (),
                () = tokio::time::sleep(how_long) => shared.open_door_of(turn),
            }
        };
        self.shared.tracker.spawn_on(up, &self.shared.runtime);
    }

    /// A connection without a socket: TLS and HTTP run over it as over TCP. For tests with paused time.
    pub fn pipe(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.shared.admit(ours);
        theirs
    }

    /// Ends: closes the port and every connection, waits for the tasks.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.closing.cancel();
    }
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn entrance(&self) -> std::sync::MutexGuard<'_, Entrance> {
        self.entrance.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_door(&self, door: Door) -> u64 {
        let mut entrance = self.entrance();
        entrance.turn += 1;
        entrance.door = door;
        entrance.turn
    }

    fn open_door_of(&self, turn: u64) {
        let mut entrance = self.entrance();
        if entrance.turn == turn {
            entrance.door = Door::Open;
        }
    }

    fn cut(&self) {
        let mut entrance = self.entrance();
        let next = self.closing.child_token();
        std::mem::replace(&mut entrance.now, next).cancel();
    }

    fn admit<IO>(self: &Arc<Self>, io: IO)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (door, cut) = {
            let entrance = self.entrance();
            (entrance.door, entrance.now.child_token())
        };
        let number = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        self.record.count(|counts| counts.connections += 1);
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        let shared = Arc::clone(self);
        let connection = async move {
            match door {
                Door::Open => shared.serve(io, number, cut).await,
                Door::Closed => (),
                Door::TlsFailure => alert(io, &cut).await,
                Door::BlackHole => silent(io, &cut).await,
            }
            drop(place);
        };
        self.tracker.spawn_on(connection, &self.runtime);
    }

    async fn serve<IO>(self: Arc<Self>, io: IO, number: u64, cut: CancellationToken)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let agreed = tokio::select! {
            biased;
            () = cut.cancelled() => return,
            agreed = tokio::time::timeout(HANDSHAKE_MAX, self.tls.accept(io)) => agreed,
        };
        let protocol = |stream: &tokio_rustls::server::TlsStream<IO>| {
            stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
        };
        match agreed {
            Ok(Ok(stream)) if protocol(&stream).as_deref() == Some(H2) => {
                http2::serve(self, stream, number, cut).await;
            }
            Ok(Ok(stream)) if protocol(&stream).as_deref() == Some(HTTP_1_1) => {
                http1::serve(self, stream, number, cut).await;
            }
            // No ALPN at all is the client's mistake too: HTTP/2 over TLS demands it (RFC 9113 §3.2).
            Ok(Ok(_) | Err(_)) | Err(_) => self.record.count(|counts| counts.handshakes_failed += 1),
        }
    }
}

async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => {
                let _ = socket.set_nodelay(true);
                shared.admit(socket);
            }
            // Out of descriptors: wait for one.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Answers the client's first bytes with a fatal alert, `handshake_failure` (RFC 8446 §6).
async fn alert<IO: AsyncRead + AsyncWrite + Unpin>(mut io: IO, cut: &CancellationToken) {
    let refuse = async {
        let mut hello = [0_u8; 4096];
        let _ = io.read(&mut hello).await;
        let _ = io.write_all(&[21, 3, 3, 0, 2, 2, 40]).await;
        let _ = io.shutdown().await;
        // The client's side may still be sending; a reset would overtake the alert.
        let _ = io.read(&mut hello).await;
    };
    tokio::select! {
        biased;
        () = cut.cancelled() => (),
        _ = tokio::time::timeout(HANDSHAKE_MAX, refuse) => (),
    }
}

/// Reads and says nothing, until the client goes.
async fn silent<IO: AsyncRead + Unpin>(mut io: IO, cut: &CancellationToken) {
    let listen = async {
        let mut scratch = [0_u8; 4096];
        while io.read(&mut scratch).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        biased;
        () = cut.cancelled() => (),
        _ = tokio::time::timeout(BLACK_HOLE_MAX, listen) => (),
    }
}
