//! Holds the connections of devices: accepts, checks tokens, delivers, takes submits to the routers.
//! **Invariant:** a gateway owns nothing durable. It may die at any moment and no accepted envelope is lost.

mod accept;
mod attach;
pub mod auth;
mod bases;
pub mod config;
mod connection;
mod core;
mod cursors;
mod doorbells;
mod drain;
#[cfg(feature = "testing")]
pub mod faults;
mod handle;
mod lanes;
mod limits;
pub mod listen;
pub mod metrics;
mod pace;
mod probe;
pub mod process;
mod proxied;
pub mod quic;
mod reads;
mod recent;
mod registry;
mod requests;
mod resume;
pub mod settings;
mod shared;
mod sources;
mod submits;
mod timers;
pub mod transport;
mod users;

pub use auth::{KeySource, SetAlgorithm, TokenKey, TokenVerifier};
use chappe_protocol::time::Millis;
use chappe_router::presence::LEASE_MS;
pub use config::{DrainConfig, GatewayConfig, Incoming, Parts, TlsSource};
use futures_core::Stream;
use futures_util::StreamExt;
pub use metrics::GatewayMetrics;
use shared::Gateway;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Serves connections until `drain` is cancelled and the drain is over, or `incoming` ends and the last session with it.
/// Needs a tokio runtime with time enabled. Dropping the future drops every connection where it is.
pub async fn run<S, IO>(config: GatewayConfig, parts: Parts, incoming: S, drain: CancellationToken)
where
    S: Stream<Item = io::Result<Incoming<IO>>> + Send,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (gateway, bells, alarms) = Gateway::new(config, parts, drain);
    let _dropped = Killer(Arc::clone(&gateway));
    let pause_max = Millis(LEASE_MS / 2);
    let sessions_max = i64::try_from(gateway.config.sessions_max).unwrap_or(i64::MAX);
    gateway.metrics.sessions_max.set(sessions_max);
    let timers = gateway.timers.run(&*gateway.world, |pause| {
        gateway.metrics.timers.set(i64::try_from(gateway.timers.len()).unwrap_or(i64::MAX));
        if pause > pause_max {
            tracing::warn!(pause_ms = pause.0, "the process was paused: probing at once");
            gateway.probe_now.notify_one();
        }
    });
    // In this order of priority, all on this task; the connections have their own.
    tokio::select! {
        biased;
        () = serve(&gateway, incoming) => {}
        () = timers => {}
        () = serve_quic(&gateway) => {}
        () = doorbells::run(&gateway, bells) => {}
        () = probe::heed(&gateway, alarms) => {}
        () = probe::run(&gateway) => {}
        () = probe::renew_leases(&gateway) => {}
        () = gateway.verifier.run(&*gateway.world, &gateway.metrics) => {}
    }
    if let Some(door) = &gateway.quic {
        door.close().await;
    }
}

/// Takes QUIC handshakes for as long as the gateway runs.
async fn serve_quic(gateway: &Arc<Gateway>) {
    if let Some(door) = &gateway.quic {
        door.serve(gateway).await;
    }
    std::future::pending::<()>().await;
}

/// Accepts, then drains.
async fn serve<S, IO>(gateway: &Arc<Gateway>, incoming: S)
where
    S: Stream<Item = io::Result<Incoming<IO>>> + Send,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut incoming = pin!(incoming);
    loop {
        let next = tokio::select! {
            biased;
            () = gateway.drain.cancelled() => break,
            next = incoming.next() => next,
        };
        match next {
            Some(Ok(incoming)) => {
                if let Some(admission) = accept::admit_tcp(gateway, incoming.peer.ip()) {
                    gateway.tasks.spawn(accept::serve(admission, incoming));
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "a connection could not be accepted"),
            None => break,
        }
    }
    gateway.tasks.close();
    tokio::select! {
        biased;
        () = gateway.tasks.wait() => return,
        () = gateway.drain.cancelled() => {}
    }
    let budget = gateway.config.drain.budget;
    let emptied = tokio::time::timeout(budget.to_std(), async {
        drain::tell_all(gateway).await;
        gateway.tasks.wait().await;
    });
    if emptied.await.is_err() {
        tracing::warn!(sessions = gateway.registry.len(), "the drain took too long: dropping the rest");
    }
}

/// Ends what is left when the gateway ends or is dropped.
struct Killer(Arc<Gateway>);

impl Drop for Killer {
    fn drop(&mut self) {
        self.0.killed.cancel();
        for handle in self.0.registry.all() {
            handle.kill();
        }
    }
}
