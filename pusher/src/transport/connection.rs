//! Opens one HTTP/2 connection and keeps it going. **Invariant:** a connection whose peer has stopped to answer PINGs takes
//! no further request.

use super::slots::{LaneId, Slots};
use super::{Dialer, Io, Origin, PoolLimits, SendError};
use bytes::Bytes;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use h2::client::{Builder, Connection, SendRequest};
use rustls_pki_types::ServerName;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Bytes of an answer's headers, decoded.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// Streams that we gave up and the peer may still send on.
const RESET_STREAMS_MAX: usize = 64;

type Driver = Connection<TlsStream<Box<dyn Io>>, Bytes>;

/// TCP, TLS, HTTP/2. The caller bounds its time.
pub(super) async fn open(
    dialer: &dyn Dialer,
    tls: &Arc<rustls::ClientConfig>,
    origin: &Origin,
) -> Result<(SendRequest<Bytes>, Driver), SendError> {
    let name = ServerName::try_from(origin.host().to_owned()).map_err(|_| SendError::Unreachable)?;
    let io = dialer.dial(origin.host(), origin.port()).await.map_err(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied {
            SendError::NotPublic
        } else {
            SendError::Unreachable
        }
    })?;
    let stream =
        TlsConnector::from(tls.clone()).connect(name, io).await.map_err(|error| tls_error(&error))?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(SendError::NoHttp2);
    }
    Builder::new()
        .enable_push(false)
        .initial_max_send_streams(1)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_concurrent_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(Some(RESET_STREAMS_MAX))
        .handshake(stream)
        .await
        .map_err(|_| SendError::Unreachable)
}

fn tls_error(error: &io::Error) -> SendError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol)) => {
            SendError::NoHttp2
        }
        Some(_) => SendError::Tls,
        None => SendError::Unreachable,
    }
}

/// Drives the connection until it ends, telling the table what the peer allows.
pub(super) async fn drive(
    mut connection: Driver,
    slots: Arc<Slots>,
    id: LaneId,
    limits: PoolLimits,
    world: Arc<dyn World>,
) {
    let mut pings = pin!(ping(connection.ping_pong(), limits, world));
    poll_fn(|cx| {
        if Pin::new(&mut connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        slots.allow(id, connection.max_concurrent_send_streams());
        pings.as_mut().poll(cx)
    })
    .await;
    slots.retire(id);
}

/// Ends when a PING was not answered in time.
async fn ping(pings: Option<h2::PingPong>, limits: PoolLimits, world: Arc<dyn World>) {
    let Some(mut pings) = pings else { return };
    loop {
        let early = world.random_below(limits.ping_every.0 / 10);
        tokio::time::sleep(Millis(limits.ping_every.0 - early).to_std()).await;
        let pong = tokio::time::timeout(limits.ping_deadline.to_std(), pings.ping(h2::Ping::opaque())).await;
        if !matches!(pong, Ok(Ok(_))) {
            return;
        }
    }
}
