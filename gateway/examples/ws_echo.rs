//! Echoes WebSocket messages through the gateway's own transport, so that public conformance suites can be pointed at
//! it. **Invariant:** nothing but the transport stands between the suite and the socket.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use chappe_gateway::transport::websocket::{CodecLimits, Event, HandshakeLimits, WebSocket, accept};
use chappe_gateway::transport::{Transport, TransportError};
use clap::Parser;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// Echoes that may wait for a peer that does not read; beyond them nothing is read from it.
const QUEUE_BYTES_MAX: usize = 1024 * 1024;

/// Echo every WebSocket message through the gateway's transport. Ctrl-C ends it.
#[derive(Debug, Parser)]
struct Options {
    /// The address to listen on.
    #[arg(long, default_value = "127.0.0.1:9001")]
    listen: SocketAddr,
    /// Serve this path only; any path without it.
    #[arg(long)]
    path: Option<String>,
    /// Demand this subprotocol; none without it.
    #[arg(long)]
    subprotocol: Option<String>,
    /// An origin that browsers may come from; may be repeated.
    #[arg(long = "origin")]
    origins: Vec<String>,
    /// The largest message, in bytes.
    #[arg(long, default_value_t = 64 * 1024 * 1024)]
    message_bytes_max: u32,
    /// Fragments of one message.
    #[arg(long, default_value_t = 1_000_000)]
    fragments_max: u32,
    /// Refuse text messages, as the gateway does.
    #[arg(long)]
    binary_only: bool,
    /// Serve TLS 1.3 with this certificate chain (PEM).
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// The key of the certificate (PEM).
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let tls = match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .with_context(|| format!("cannot read {}", certificate.display()))?;
            let key = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("cannot read {}", key.display()))?;
            Some(Arc::new(chappe_node::tls::server_config(chain, key)?))
        }
        _ => None,
    };
    let limits = Arc::new(HandshakeLimits {
        path: options.path,
        subprotocol: options.subprotocol,
        origins: options.origins,
        codec: CodecLimits {
            message_bytes_max: options.message_bytes_max,
            fragments_max: options.fragments_max,
            // Suites send bursts of pings and count the pongs.
            pongs_max: u8::MAX,
            text: !options.binary_only,
        },
        ..HandshakeLimits::default()
    });
    let listener = TcpListener::bind(options.listen).await.context("cannot listen")?;
    println!("echoing on {}", listener.local_addr()?);
    let connections = TaskTracker::new();
    loop {
        let (socket, _) = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Ok(()),
            accepted = listener.accept() => accepted?,
        };
        let (tls, limits) = (tls.clone(), Arc::clone(&limits));
        connections.spawn(async move {
            if let Ok(socket) = accept(socket, tls, &limits).await {
                serve(socket).await;
            }
        });
    }
}

async fn serve(mut socket: WebSocket<TcpStream>) {
    match std::future::poll_fn(|cx| poll_echo(&mut socket, cx)).await {
        TransportError::Closed => {}
        TransportError::Violation(violation) => socket.queue_close(violation.code, violation.reason),
        TransportError::Gone | TransportError::Io(_) => return,
    }
    let finish = std::future::poll_fn(|cx| socket.poll_finish(cx));
    let _ = tokio::time::timeout(Duration::from_secs(5), finish).await;
}

/// Echoes for ever; what it returns is why it ended.
fn poll_echo(socket: &mut WebSocket<TcpStream>, cx: &mut Context<'_>) -> Poll<TransportError> {
    loop {
        if socket.queued_bytes() > 0 {
            match socket.poll_flush(cx) {
                Poll::Ready(Err(error)) => return Poll::Ready(error),
                Poll::Pending if socket.queued_bytes() > QUEUE_BYTES_MAX => return Poll::Pending,
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let mut echoes = Vec::new();
        let received = socket.poll_events(cx, &mut |event| match event {
            Event::Binary(message) => echoes.push(Echo::Binary(message.to_vec())),
            Event::Text(message) => echoes.push(Echo::Text(message.to_owned())),
            Event::Ping(_) | Event::Pong(_) | Event::Close(_) => {}
        });
        for echo in &echoes {
            match echo {
                Echo::Binary(message) => socket.queue(message),
                Echo::Text(message) => socket.queue_text(message),
            }
        }
        match received {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(error),
            Poll::Pending => return Poll::Pending,
        }
    }
}

enum Echo {
    Binary(Vec<u8>),
    Text(String),
}
