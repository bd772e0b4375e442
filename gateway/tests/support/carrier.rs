//! On which carrier a test runs, and its client's half of QUIC and WebTransport.
//! **Invariant:** a law is written once; `every_carrier!` runs it on all three.

use super::Gateway;
use super::net::Net;
use chappe_gateway::TlsSource;
use chappe_gateway::quic::{ALPN, QuicDoor, ServerId};
use chappe_gateway::transport::Carrier;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Endpoint, EndpointConfig, TransportConfig, VarInt};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use web_transport_quinn::{RecvStream, SendStream, Session, SessionError, WebTransportError};

tokio::task_local! {
    static CARRIER: Carrier;
}

/// Runs a law on a carrier.
pub(crate) async fn on(carrier: Carrier, law: impl Future<Output = ()>) {
    CARRIER.scope(carrier, law).await;
}

/// The carrier of the law that runs; WebSocket where none was named.
pub(crate) fn carrier() -> Carrier {
    CARRIER.try_with(|carrier| *carrier).unwrap_or(Carrier::WebSocket)
}

/// A law on one carrier, in paused time.
#[allow(unused_macros, reason = "some test files have laws of their own only")]
macro_rules! on_one {
    ($name:ident, $carrier:ident) => {
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let carrier = chappe_gateway::transport::Carrier::$carrier;
            crate::support::carrier::on(carrier, law()).await;
        }
    };
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use on_one;

/// Each law becomes a module with a test per carrier.
#[allow(unused_macros, reason = "as above")]
macro_rules! every_carrier {
    ($($(#[doc = $doc:literal])* async fn $name:ident() $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $name {
            #[allow(unused_imports, reason = "a law may stand on its own")]
            use super::*;

            async fn law() $body

            crate::support::carrier::on_one!(websocket, WebSocket);
            crate::support::carrier::on_one!(quic, Quic);
            crate::support::carrier::on_one!(webtransport, WebTransport);
        }
    )+};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use every_carrier;

/// As [`every_carrier`], for what only those on UDP have.
#[allow(unused_macros, reason = "as above")]
macro_rules! on_udp {
    ($($(#[doc = $doc:literal])* async fn $name:ident() $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $name {
            #[allow(unused_imports, reason = "a law may stand on its own")]
            use super::*;

            async fn law() $body

            crate::support::carrier::on_one!(quic, Quic);
            crate::support::carrier::on_one!(webtransport, WebTransport);
        }
    )+};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use on_udp;

/// One certificate for all tests of a process.
pub(crate) struct Identity {
    server: Arc<rustls::ServerConfig>,
    roots: rustls::RootCertStore,
}

pub(crate) static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    Identity { server: Arc::new(server), roots }
});

impl TlsSource for &'static Identity {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// A door on a socket of this net.
pub(crate) fn door(net: &Net) -> (QuicDoor, SocketAddr) {
    door_with(net, None)
}

/// As [`door`], with this name in its connection ids.
pub(crate) fn door_with(net: &Net, server_id: Option<ServerId>) -> (QuicDoor, SocketAddr) {
    let socket = net.socket();
    let address = socket.address;
    (QuicDoor::over(socket, Arc::new(&*IDENTITY), &[5; 32], server_id).unwrap(), address)
}

/// A client's configuration for this protocol; its windows are as small as the pipes of WebSocket's tests.
pub(crate) fn client_config(alpn: &[u8]) -> quinn::ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(IDENTITY.roots.clone())
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    // A client that would repeat itself, if it were let.
    tls.enable_early_data = true;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(u32::try_from(super::PIPE_BYTES).unwrap()));
    transport.max_idle_timeout(None);
    config.transport_config(Arc::new(transport));
    config
}

/// An endpoint of a client on a socket of its own.
pub(crate) fn endpoint(net: &Net) -> (Endpoint, SocketAddr) {
    let socket = net.socket();
    let address = socket.address;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = Endpoint::new_with_abstract_socket(EndpointConfig::default(), None, socket, runtime);
    (endpoint.unwrap(), address)
}

/// A stream to a gateway, and what keeps it.
pub(crate) struct QuicWire {
    pub(crate) endpoint: Endpoint,
    pub(crate) address: SocketAddr,
    pub(crate) session: Session,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// Datagrams that came.
    pub(crate) datagrams: usize,
}

impl QuicWire {
    pub(crate) async fn open(gateway: &Gateway, carrier: Carrier) -> Self {
        let (endpoint, address) = endpoint(&gateway.net);
        let alpn = if carrier == Carrier::Quic { ALPN } else { b"h3" };
        let to = gateway.udp.expect("a gateway with a UDP port");
        let connecting = endpoint.connect_with(client_config(alpn), to, "gateway.test").unwrap();
        let connection = connecting.await.expect("a QUIC handshake");
        let session = match carrier {
            Carrier::WebSocket | Carrier::Quic => Session::raw(connection),
            Carrier::WebTransport => {
                let url: url::Url = "https://gateway.test/v1/connect".parse().unwrap();
                let request = web_transport_quinn::proto::ConnectRequest::new(url);
                Session::connect(connection, request).await.expect("a WebTransport session")
            }
        };
        let (send, recv) = session.open_bi().await.unwrap();
        Self { endpoint, address, session, send, recv, datagrams: 0 }
    }

    /// The code of the close that follows the end of the stream.
    pub(crate) async fn code(&self) -> Option<u16> {
        match self.session.closed().await {
            // 0 is what quinn says for those who went without a word.
            SessionError::WebTransportError(WebTransportError::Closed(code @ 1.., _)) => {
                u16::try_from(code).ok()
            }
            _ => None,
        }
    }
}
