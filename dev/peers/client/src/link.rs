//! A connection and the one who speaks on it. **Invariant:** waiting for bytes may be given up at any time without losing one.

use crate::count::now;
use crate::speak::{Event, Speaker};
use bytes::{Bytes, BytesMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::aws_lc_rs::{self, kx_group};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Loopback addresses that clients come from, so that ports of closed connections do not run out.
const SOURCES: usize = 16;
/// Room for one read.
const READ_BYTES: usize = 16 * 1024;
/// Acknowledgements that may cover several messages are gathered for so long, as the SDK of Chappe does by default.
const ACK_DELAY: Duration = Duration::from_millis(20);

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// How the server is reached.
pub struct Dial {
    server: SocketAddr,
    tls: Option<TlsConnector>,
    agreed: OnceLock<String>,
}

impl Dial {
    /// TLS 1.3 without resumption, if a certificate is given. The key exchange is X25519, unless `hybrid`.
    pub fn new(port: u16, ca: Option<&Path>, hybrid: bool) -> Self {
        let tls = ca.map(|path| {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(path).expect("a certificate in PEM")).unwrap();
            let mut provider = aws_lc_rs::default_provider();
            provider.kx_groups = vec![kx_group::X25519];
            if hybrid {
                provider.kx_groups.insert(0, kx_group::X25519MLKEM768);
            }
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[&TLS13])
                .unwrap();
            let mut config = config.with_root_certificates(roots).with_no_client_auth();
            config.resumption = Resumption::disabled();
            TlsConnector::from(Arc::new(config))
        });
        Self { server: (Ipv4Addr::LOCALHOST, port).into(), tls, agreed: OnceLock::new() }
    }

    /// `plaintext`, or the key exchange that was agreed on.
    pub fn agreed(&self) -> &str {
        self.agreed.get().map_or("plaintext", String::as_str)
    }

    async fn connect(&self, number: usize) -> Box<dyn Io> {
        let socket = TcpSocket::new_v4().unwrap();
        let source = Ipv4Addr::new(127, 0, 0, u8::try_from(2 + number % SOURCES).unwrap());
        socket.bind((source, 0).into()).unwrap();
        let socket = socket.connect(self.server).await.expect("the server takes connections");
        socket.set_nodelay(true).unwrap();
        let Some(tls) = &self.tls else { return Box::new(socket) };
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tls.connect(name, socket).await.expect("TLS");
        let agreed = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
        self.agreed.get_or_init(|| format!("{agreed:?}"));
        Box::new(stream)
    }
}

/// What arrived with one read.
#[derive(Debug, Default, Clone, Copy)]
pub struct Arrived {
    pub accepted: u64,
    pub delivered: u64,
}

pub struct Link {
    io: Box<dyn Io>,
    speaker: Box<dyn Speaker>,
    input: BytesMut,
    out: Vec<u8>,
    settle_at: Option<Instant>,
}

impl Link {
    /// Connects, opens a session and waits until it stands.
    pub async fn open(dial: &Dial, number: usize, speaker: Box<dyn Speaker>) -> Self {
        let io = dial.connect(number).await;
        let mut link = Self { io, speaker, input: BytesMut::new(), out: Vec::new(), settle_at: None };
        link.speaker.open(&mut link.out);
        link.flush().await;
        loop {
            link.read().await;
            let mut ready = false;
            while let Some(event) = link.speaker.take(&mut link.input, &mut link.out) {
                ready |= event == Event::Ready;
            }
            link.flush().await;
            if ready {
                return link;
            }
        }
    }

    /// Waits for bytes, or until an acknowledgement has waited for long enough; may be cancelled.
    pub async fn read(&mut self) {
        if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
            self.input.reserve(READ_BYTES);
        }
        let reading = self.io.read_buf(&mut self.input);
        let read = match self.settle_at {
            None => reading.await,
            Some(at) => match tokio::time::timeout_at(at.into(), reading).await {
                Ok(read) => read,
                Err(_) => return,
            },
        };
        let read = read.expect("a connection that stands");
        assert!(read > 0, "the server closed a connection; its log may say why");
    }

    /// Takes what was read; answers wait for `flush`.
    pub fn work(&mut self) -> Arrived {
        let mut arrived = Arrived::default();
        while let Some(event) = self.speaker.take(&mut self.input, &mut self.out) {
            match event {
                Event::Accepted => arrived.accepted += 1,
                Event::Delivered => arrived.delivered += 1,
                Event::Ready | Event::Nothing => {}
            }
        }
        if self.speaker.owes() {
            let at = *self.settle_at.get_or_insert_with(|| now() + ACK_DELAY);
            if at <= now() {
                self.speaker.settle(&mut self.out);
                self.settle_at = None;
            }
        }
        arrived
    }

    /// Whether the server's limits allow a message more.
    pub fn may_publish(&self) -> bool {
        self.speaker.may_publish()
    }

    /// Writes a message into the out buffer.
    pub fn publish(&mut self, payload: &Bytes) {
        self.speaker.publish(payload, &mut self.out);
    }

    /// Sends what waits, in one write.
    pub async fn flush(&mut self) {
        if !self.out.is_empty() {
            self.io.write_all(&self.out).await.expect("a connection that stands");
            self.io.flush().await.expect("a connection that stands");
            self.out.clear();
        }
    }

    /// Ends the connection in order.
    pub async fn close(mut self) {
        // The server may have been quicker.
        let _ = self.io.shutdown().await;
    }
}
