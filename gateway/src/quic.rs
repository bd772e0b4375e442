//! The UDP port: QUIC and WebTransport from the first packet to a session's stream.
//! **Invariant:** a packet from an address that nobody has proven costs little: while many handshakes are under way, each
//! new one must first come back with a token (RFC 9000 §8.1); what a connection may hold is bounded by its limits.

mod ids;
mod socket;

use crate::TlsSource;
use crate::accept::{self, Admission};
use crate::shared::Gateway;
use crate::sources::Knock;
use crate::transport::Carrier;
use crate::transport::quic::Quic;
use crate::transport::websocket::HandshakeLimits;
use aws_lc_rs::{hkdf, hmac};
use chappe_protocol::close::CloseCode;
use ids::Ids;
pub use ids::ServerId;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Endpoint, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use socket::Socket;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use web_transport_quinn::http::{StatusCode, header};
use web_transport_quinn::{Request, Session};

/// What a native client asks for (RFC 7301).
pub const ALPN: &[u8] = b"chappe/1";
/// What a browser asks for.
const ALPN_H3: &[u8] = b"h3";
/// Bidirectional streams of a client: its session, and for WebTransport the CONNECT request before it.
const BIDI_STREAMS: u32 = 2;
/// Unidirectional ones: HTTP/3's control stream and the two of QPACK (RFC 9114 §6.2).
const UNI_STREAMS: u32 = 3;
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const WINDOW_BYTES: u32 = 128 * 1024;
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;
/// Handshakes that quinn holds for us, and their bytes.
const INCOMING_MAX: usize = 2_048;
const INCOMING_BYTES_MAX: u64 = 4 * 1024 * 1024;
const RETRY_TOKEN_LIFETIME: Duration = Duration::from_secs(15);
/// The kernel's buffers of the one socket; it may give less.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// For the last packets of a gateway that ends.
const CLOSING: Duration = Duration::from_secs(1);

/// A bound UDP port that answers as soon as a gateway runs with it.
pub struct QuicDoor {
    endpoint: Endpoint,
    tls: Arc<dyn TlsSource>,
    keys: Keys,
    /// What the present TLS configuration was made into.
    made: Mutex<Made>,
}

struct Made {
    of: Arc<rustls::ServerConfig>,
    config: Arc<ServerConfig>,
}

/// Keys that all gateways of a cluster share: another one's Retry is honoured, and a packet that was led to the wrong one is
/// answered with a reset that its client believes.
struct Keys {
    retry: Arc<hkdf::Prk>,
    reset: Arc<hmac::Key>,
}

impl Keys {
    fn of(secret: &[u8; 32]) -> Self {
        let derive = |label: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), label);
        let retry = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(derive(b"chappe quic retry").as_ref());
        let reset = hmac::Key::new(hmac::HMAC_SHA256, derive(b"chappe quic reset").as_ref());
        Self { retry: Arc::new(retry), reset: Arc::new(reset) }
    }
}

/// Why a UDP port cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The certificate's configuration has no cipher suite that QUIC can begin with.
    #[error("quic_tls: {0}")]
    Tls(String),
    /// The socket.
    #[error("quic_socket: {0}")]
    Io(#[from] io::Error),
}

impl QuicDoor {
    /// Takes a bound socket. `secret` is the same on all gateways of a cluster; `server_id`: connection ids lead a load balancer
    /// to this gateway. Needs a tokio runtime.
    pub fn new(
        socket: UdpSocket,
        tls: Arc<dyn TlsSource>,
        secret: &[u8; 32],
        server_id: Option<ServerId>,
    ) -> Result<Self, QuicError> {
        let buffers = socket2::SockRef::from(&socket);
        // A smaller buffer costs packets in a burst, not correctness.
        let _ = (
            buffers.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
            buffers.set_send_buffer_size(SOCKET_BUFFER_BYTES),
        );
        let socket = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket)?;
        Self::over(socket, tls, secret, server_id)
    }

    /// As [`new`](Self::new), over anything that carries packets.
    pub fn over(
        socket: Arc<dyn quinn::AsyncUdpSocket>,
        tls: Arc<dyn TlsSource>,
        secret: &[u8; 32],
        server_id: Option<ServerId>,
    ) -> Result<Self, QuicError> {
        let keys = Keys::of(secret);
        let of = tls.current();
        let config = Arc::new(server_config(&of, &keys)?);
        let mut endpoint = EndpointConfig::new(Arc::clone(&keys.reset) as _);
        endpoint.cid_generator(move || Box::new(Ids(server_id)));
        let runtime = Arc::new(quinn::TokioRuntime);
        let server = Some(ServerConfig::clone(&config));
        let socket = Arc::new(Socket(socket));
        let endpoint = Endpoint::new_with_abstract_socket(endpoint, server, socket, runtime)?;
        Ok(Self { endpoint, tls, keys, made: Mutex::new(Made { of, config }) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// The configuration for the next handshake; a certificate that QUIC cannot use leaves the one before.
    fn config(&self) -> Arc<ServerConfig> {
        let current = self.tls.current();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&made.of, &current) {
            match server_config(&current, &self.keys) {
                Ok(config) => made.config = Arc::new(config),
                Err(error) => tracing::error!(%error, "QUIC keeps the certificate that it has"),
            }
            made.of = current;
        }
        Arc::clone(&made.config)
    }

    /// Takes handshakes until the gateway is dropped; refuses them from the beginning of a drain.
    pub(crate) async fn serve(&self, gateway: &Arc<Gateway>) {
        while let Some(incoming) = self.endpoint.accept().await {
            self.knock(gateway, incoming);
        }
    }

    fn knock(&self, gateway: &Arc<Gateway>, incoming: quinn::Incoming) {
        if gateway.drain.is_cancelled() {
            return incoming.refuse();
        }
        let under_way = usize::try_from(gateway.metrics.handshakes.get()).unwrap_or(0);
        let (now, source) = (gateway.world.now(), incoming.remote_address().ip());
        let knock = if incoming.remote_address_validated() {
            gateway.sources.knock(now, source)
        } else if under_way >= gateway.config.quic_unproven_max {
            Knock::Prove
        } else {
            gateway.sources.knock_unproven(now, source)
        };
        match knock {
            Knock::Within => {}
            Knock::Prove => {
                gateway.metrics.quic_retries_total.inc();
                // An error is impossible: an address that is not validated may be asked.
                let _ = incoming.retry();
                return;
            }
            Knock::Beyond => {
                gateway.metrics.accepted_total.inc();
                gateway.metrics.refused_total.inc();
                return incoming.refuse();
            }
        }
        let Some(admission) = accept::admit(gateway) else { return incoming.refuse() };
        match incoming.accept_with(self.config()) {
            Ok(connecting) => {
                gateway.tasks.spawn(serve(admission, connecting));
            }
            Err(error) => {
                gateway.metrics.handshake_failed_total.inc();
                tracing::debug!(%error, "a QUIC handshake failed at its first packet");
            }
        }
    }

    /// Lets the last closes out.
    pub(crate) async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(0), b"");
        let _ = tokio::time::timeout(CLOSING, self.endpoint.wait_idle()).await;
    }
}

impl std::fmt::Debug for QuicDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicDoor").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

async fn serve(admission: Admission, connecting: quinn::Connecting) {
    let gateway = Arc::clone(admission.gateway());
    let handshake = Box::pin(async move {
        let opened = open(&gateway, connecting).await;
        if let Err(why) = &opened {
            gateway.metrics.handshake_failed_total.inc();
            tracing::debug!(why, "a QUIC handshake failed");
        }
        opened.ok()
    });
    accept::serve_with(admission, handshake).await;
}

/// From the first packet to the session's stream.
async fn open(gateway: &Gateway, connecting: quinn::Connecting) -> Result<Quic, &'static str> {
    let config = &gateway.config;
    let shaken = tokio::time::timeout(config.handshake.deadline, shake_hands(&config.handshake, connecting));
    let (carrier, session) = shaken.await.map_err(|_| "it took too long")??;
    // A stream is there with its first byte, which is that of the Hello.
    match tokio::time::timeout(config.hello_timeout.to_std(), session.accept_bi()).await {
        Ok(Ok(stream)) => Ok(Quic::new(carrier, session, stream, config.session.limits.frame_bytes_max)),
        Ok(Err(_)) => Err("the connection ended without a stream"),
        Err(_) => {
            let code = CloseCode::HelloTimeout;
            gateway.metrics.closed_total.with_label_values(&[code.reason()]).inc();
            session.close(u32::from(code.code()), code.reason().as_bytes());
            let _ = tokio::time::timeout(CLOSING, session.closed()).await;
            Err("no stream was opened in time")
        }
    }
}

/// The handshake of either kind of client.
async fn shake_hands(
    handshake: &HandshakeLimits,
    mut connecting: quinn::Connecting,
) -> Result<(Carrier, Session), &'static str> {
    let data = connecting.handshake_data().await.map_err(|_| "the connection broke")?;
    let protocol = data.downcast::<HandshakeData>().ok().and_then(|data| data.protocol).unwrap_or_default();
    if protocol == ALPN {
        let connection = connecting.await.map_err(|_| "the connection broke")?;
        return Ok((Carrier::Quic, Session::raw(connection)));
    }
    // HTTP/3's settings, which a client waits for, go out with our half of the handshake instead of a round trip later (RFC 9114
    // §7.2.4.2). They are no secret, and nothing is taken from the client before its half.
    let (connection, _) = connecting.into_0rtt().map_err(|_| "the connection broke")?;
    Ok((Carrier::WebTransport, web_transport(handshake, connection).await?))
}

/// The request of a browser, judged as the WebSocket handshake's is.
async fn web_transport(
    handshake: &HandshakeLimits,
    connection: quinn::Connection,
) -> Result<Session, &'static str> {
    let request = Request::accept(connection).await.map_err(|_| "no WebTransport request")?;
    let refusal = match &handshake.path {
        Some(path) if request.url.path() != path => Some(StatusCode::NOT_FOUND),
        Some(_) if request.url.query().is_some() => Some(StatusCode::BAD_REQUEST),
        Some(_) | None => {
            let mut origins = request.headers.get_all(header::ORIGIN).iter();
            let listed = |origin: &header::HeaderValue| {
                handshake.origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes())
            };
            (!origins.all(listed)).then_some(StatusCode::FORBIDDEN)
        }
    };
    let Some(status) = refusal else {
        return request.ok().await.map_err(|_| "the answer was not taken");
    };
    // The answer must be read before its streams go; the deadline of the handshake bounds the wait.
    if let Ok(refused) = request.respond(status).await {
        refused.closed().await;
    }
    Err("the request was refused")
}

/// QUIC's side of a certificate's configuration.
fn server_config(tls: &rustls::ServerConfig, keys: &Keys) -> Result<ServerConfig, QuicError> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN.to_vec(), ALPN_H3.to_vec()];
    // Nothing that a session says is safe to repeat.
    tls.max_early_data_size = 0;
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| QuicError::Tls(error.to_string()))?;
    let mut config = ServerConfig::new(Arc::new(crypto), Arc::clone(&keys.retry) as _);
    config.transport_config(Arc::new(transport_config()));
    config.max_incoming(INCOMING_MAX).incoming_buffer_size_total(INCOMING_BYTES_MAX);
    config.retry_token_lifetime(RETRY_TOKEN_LIFETIME).migration(true);
    // A token for the next visit would save one round trip under load; it is not worth a table of those already used.
    let mut tokens = quinn::ValidationTokenConfig::default();
    tokens.sent(0);
    config.validation_token_config(tokens);
    Ok(config)
}

fn transport_config() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDI_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(u64::from(WINDOW_BYTES))
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        // The protocol's own pings keep a session; silence beyond two of their intervals ends it anyway.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(None)
        // 1,200 bytes hold most envelopes; probing for more costs packets and memory on every connection.
        .mtu_discovery_config(None);
    config
}

/// Longer than two intervals of pings, milliseconds.
const IDLE_MS: u32 = 60_000;
