//! Resident memory of one idle connection: this transport beside a bare socket and beside fastwebsockets. **Invariant:**
//! server and clients are separate processes, every variant is measured the same way, and rounds are interleaved.
//!
//! `cargo bench -p chappe-gateway --bench idle_memory -- --rounds 3`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::future::poll_fn;
use std::sync::Arc;

use chappe_gateway::transport::websocket::{HandshakeLimits, accept};
use chappe_gateway::transport::{Inbound, Transport};
use clap::{Parser, Subcommand, ValueEnum};
use support::{Baseline, Clients, Dial, hold, listen, median, runtime, server_part};
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Variant {
    Bare,
    Plain,
    FastwebsocketsTls,
    Tls,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Bare, Self::Plain, Self::FastwebsocketsTls, Self::Tls];

    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Plain => "plain",
            Self::FastwebsocketsTls => "fastwebsockets-tls",
            Self::Tls => "tls",
        }
    }

    const fn is_tls(self) -> bool {
        matches!(self, Self::FastwebsocketsTls | Self::Tls)
    }
}

/// Measure the resident memory of idle connections.
#[derive(Debug, Parser)]
struct Options {
    /// Plain connections per variant.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// TLS connections per variant.
    #[arg(long, default_value_t = 4_000)]
    tls_connections: usize,
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true)]
    Server { variant: Variant },
    #[command(hide = true)]
    Client { variant: Variant, port: u16, certificate: String, count: usize },
}

fn main() {
    let options = Options::parse();
    match options.part {
        Some(Part::Server { variant }) => runtime().block_on(serve(variant)),
        Some(Part::Client { variant, port, ref certificate, count }) => {
            let dial = Dial::said(port, certificate, variant.is_tls(), !matches!(variant, Variant::Bare));
            runtime().block_on(hold(&dial, count));
        }
        None => measure(&options),
    }
}

fn measure(options: &Options) {
    let mut figures = vec![(Vec::new(), Vec::new()); Variant::ALL.len()];
    for _ in 0..options.rounds {
        for (variant, (idle, after)) in Variant::ALL.into_iter().zip(&mut figures) {
            let count = if variant.is_tls() { options.tls_connections } else { options.connections };
            let (server, port, certificate) = server_part(&["server", variant.name()]);
            let clients =
                Clients::start(&["client", variant.name(), &port, &certificate, &count.to_string()]);
            let (one, two) = clients.measure(server.0.id(), count);
            idle.push(one);
            after.push(two);
        }
    }
    println!("{:<20} {:>12} {:>16} {:>18}", "variant", "connections", "idle, B/conn", "after 4 KB, B/conn");
    for (variant, (idle, after)) in Variant::ALL.into_iter().zip(&mut figures) {
        let count = if variant.is_tls() { options.tls_connections } else { options.connections };
        println!("{:<20} {count:>12} {:>16} {:>18}", variant.name(), median(idle), median(after));
    }
}

async fn serve(variant: Variant) {
    let (listener, config) =
        listen(|certificate, key| chappe_node::tls::server_config(vec![certificate], key.into()).unwrap())
            .await;
    let tls = match variant {
        Variant::Bare => return Baseline::Bare.serve(listener, config).await,
        Variant::FastwebsocketsTls => return Baseline::Fastwebsockets.serve(listener, config).await,
        Variant::Plain => None,
        Variant::Tls => Some(config),
    };
    let limits = Arc::new(HandshakeLimits {
        deadline: std::time::Duration::from_mins(1),
        ..HandshakeLimits::default()
    });
    let connections = TaskTracker::new();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        drop(connections.spawn(echo_ours(socket, tls.clone(), Arc::clone(&limits))));
    }
}

async fn echo_ours(
    socket: TcpStream,
    config: Option<Arc<rustls::ServerConfig>>,
    limits: Arc<HandshakeLimits>,
) {
    let Ok(mut socket) = accept(socket, config, &limits).await else { return };
    drop(limits);
    loop {
        let mut echoes = Vec::new();
        let received = poll_fn(|cx| {
            socket.poll_receive(cx, &mut |inbound| {
                if let Inbound::Message(message) = inbound {
                    echoes.push(message.to_vec());
                }
            })
        });
        if received.await.is_err() {
            return;
        }
        for message in &echoes {
            socket.queue(message);
        }
        drop(echoes);
        if poll_fn(|cx| socket.poll_flush(cx)).await.is_err() {
            return;
        }
    }
}
