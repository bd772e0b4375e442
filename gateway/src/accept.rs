//! From a fresh socket to a welcomed connection. **Invariant:** what is refused for load is refused before any TLS work;
//! every step has a deadline.

use crate::attach::{Beginning, attach};
use crate::config::Incoming;
use crate::connection::{Connection, part, queue_frame, say_goodbye};
use crate::drain;
use crate::proxied;
use crate::shared::Gateway;
use crate::sources::Knock;
use crate::transport::websocket;
use crate::transport::{Inbound, Transport, TransportError};
use bytes::Bytes;
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::{ClientFrame, FrameError, GoAway, GoAwayClass, Hello, ServerFrame};
use chappe_protocol::time::Millis;
use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};

/// For the store and the presence to answer an attach.
const ATTACH_MAX: Millis = Millis::from_secs(10);
/// Sockets beyond `sessions_max` that are still heard, so that they can be told to go away.
const HEADROOM: usize = 256;

/// The right to exist of one socket; counted until dropped.
pub(crate) struct Admission(Arc<Gateway>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets a socket of TCP in, if the rates of handshakes and the ceiling of connections allow. Whom a load balancer speaks for is
/// known later.
pub(crate) fn admit_tcp(gateway: &Arc<Gateway>, peer: IpAddr) -> Option<Admission> {
    if proxied::is_trusted(peer, &gateway.config.proxies) || is_within(gateway, peer) {
        return admit(gateway);
    }
    gateway.metrics.accepted_total.inc();
    gateway.metrics.refused_total.inc();
    None
}

/// Whether its source may begin another handshake.
fn is_within(gateway: &Gateway, source: IpAddr) -> bool {
    gateway.sources.knock(gateway.world.now(), source) == Knock::Within
}

/// Lets a connection in, if the rate of handshakes and the ceiling of connections allow.
pub(crate) fn admit(gateway: &Arc<Gateway>) -> Option<Admission> {
    gateway.metrics.accepted_total.inc();
    let config = &gateway.config;
    let here = gateway.connections.fetch_add(1, Ordering::Relaxed);
    let admission = Admission(Arc::clone(gateway));
    let room = here < config.sessions_max.saturating_add(HEADROOM);
    let allowed = room && {
        let mut bucket = gateway.admission.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.take(gateway.world.now(), config.handshakes_per_second, config.handshakes_burst).is_ok()
    };
    if !allowed {
        gateway.metrics.refused_total.inc();
    }
    allowed.then_some(admission)
}

impl Admission {
    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.0
    }
}

/// Serves one socket to its end.
pub(crate) async fn serve<IO>(admission: Admission, incoming: Incoming<IO>)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let gateway = Arc::clone(&admission.0);
    let handshake = Box::pin(async move {
        let Incoming { mut io, peer } = incoming;
        if proxied::is_trusted(peer.ip(), &gateway.config.proxies) && !is_let_through(&gateway, &mut io).await
        {
            return None;
        }
        let tls = gateway.tls.as_ref().map(|tls| tls.current());
        match websocket::accept(io, tls, &gateway.config.handshake).await {
            Ok(transport) => Some(transport),
            Err(error) => {
                gateway.metrics.handshake_failed_total.inc();
                tracing::debug!(%error, "a handshake failed");
                None
            }
        }
    });
    serve_with(admission, handshake).await;
}

/// Reads whose connection a load balancer brings, and judges it as if it had come by itself.
async fn is_let_through<IO: AsyncRead + Unpin>(gateway: &Gateway, io: &mut IO) -> bool {
    match tokio::time::timeout(gateway.config.handshake.deadline, proxied::read_source(io)).await {
        Ok(Ok(Some(source))) if !is_within(gateway, source) => {
            gateway.metrics.refused_total.inc();
            return false;
        }
        Ok(Ok(_)) => return true,
        Ok(Err(error)) => tracing::debug!(%error, "a trusted load balancer sent no header"),
        Err(_) => tracing::debug!("a trusted load balancer sent no header in time"),
    }
    gateway.metrics.handshake_failed_total.inc();
    false
}

/// What makes a transport of a connection. Boxed: what is needed once does not stay in the long-lived task.
pub(crate) type Handshake<T> = Pin<Box<dyn Future<Output = Option<T>> + Send>>;

/// Serves what the handshake makes of a connection, to its end.
pub(crate) async fn serve_with<T: Transport>(admission: Admission, handshake: Handshake<T>) {
    let Some(connection) = Box::pin(open(&admission.0, handshake)).await else { return };
    let (connection, end) = connection.live().await;
    Box::pin(connection.finish(end)).await;
}

async fn open<T: Transport>(gateway: &Arc<Gateway>, handshake: Handshake<T>) -> Option<Box<Connection<T>>> {
    gateway.metrics.handshakes.inc();
    let opened = tokio::select! {
        biased;
        () = gateway.drain.cancelled() => None,
        () = gateway.killed.cancelled() => None,
        opened = async { greet(gateway, handshake.await?).await } => opened,
    };
    gateway.metrics.handshakes.dec();
    opened
}

/// From the carrier's handshake to Welcome.
async fn greet<T: Transport>(gateway: &Arc<Gateway>, mut transport: T) -> Option<Box<Connection<T>>> {
    let started = gateway.world.now();
    let mut early = Early::default();
    let hello = poll_fn(|cx| early.poll_first(&mut transport, cx));
    let hello = match tokio::time::timeout(gateway.config.hello_timeout.to_std(), hello).await {
        Ok(Ok(first)) => read_hello(first),
        Ok(Err(code)) => code.map_or(Err(None), |code| Err(Some(code))),
        Err(_) => Err(Some(CloseCode::HelloTimeout)),
    };
    let begun = match hello {
        Err(None) => {
            part(&mut transport).await;
            return None;
        }
        Err(Some(code)) => Err(code),
        Ok(_) if gateway.registry.len() >= gateway.config.sessions_max => Err(CloseCode::Overloaded),
        Ok(hello) => {
            let attach = attach(gateway, transport.carrier(), hello);
            match tokio::time::timeout(ATTACH_MAX.to_std(), attach).await {
                Ok(begun) => begun,
                Err(_) => Err(CloseCode::StoreUnavailable),
            }
        }
    };
    match begun {
        Ok(beginning) => {
            gateway.metrics.attach_seconds.observe((gateway.world.now() - started).to_std().as_secs_f64());
            gateway.metrics.welcomed_total.with_label_values(&[transport.carrier().word()]).inc();
            Some(begin(transport, beginning, early.rest))
        }
        Err(code) => {
            if code == CloseCode::Overloaded {
                let drain = &gateway.config.drain;
                let (retry_after, jitter) = (drain.retry_after, Millis(drain.jitter.0.saturating_mul(5)));
                let go_away = GoAway { class: GoAwayClass::Shed, retry_after, jitter, endpoints: Vec::new() };
                queue_frame(&mut transport, &ServerFrame::GoAway(go_away));
            }
            say_goodbye(gateway, &mut transport, code, code.reason()).await;
            None
        }
    }
}

fn begin<T: Transport>(mut transport: T, beginning: Beginning, early: Vec<Bytes>) -> Box<Connection<T>> {
    let Beginning { mut core, welcome } = beginning;
    queue_frame(&mut transport, &ServerFrame::Welcome(welcome));
    for message in early {
        core.on_message(&message);
    }
    // The drain has perhaps counted its sessions before this one stood there.
    let drain = &core.gateway().config.drain;
    if core.gateway().drain.is_cancelled() {
        core.handle().go_away(drain::go_away(drain), drain.grace);
    }
    Box::new(Connection { transport, core })
}

fn read_hello(first: Bytes) -> Result<Hello, Option<CloseCode>> {
    match ClientFrame::decode(first) {
        Ok(ClientFrame::Hello(hello)) => Ok(hello),
        Ok(
            ClientFrame::Submit(_)
            | ClientFrame::Ack { .. }
            | ClientFrame::Ping { .. }
            | ClientFrame::Refresh { .. }
            | ClientFrame::Request { .. },
        )
        | Err(FrameError::UnknownFrame | FrameError::Request { .. }) => Err(Some(CloseCode::HelloExpected)),
        Err(FrameError::Garbage | FrameError::Field(_)) => Err(Some(CloseCode::BadFrame)),
    }
}

/// Frames that came with the first one, in the same read.
#[derive(Default)]
struct Early {
    first: Option<Bytes>,
    rest: Vec<Bytes>,
    closed: bool,
}

impl Early {
    /// The first message; `Err(None)`: the peer is gone.
    fn poll_first<T: Transport>(
        &mut self,
        transport: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Bytes, Option<CloseCode>>> {
        loop {
            if let Some(first) = self.first.take() {
                return Poll::Ready(Ok(first));
            }
            if self.closed {
                return Poll::Ready(Err(None));
            }
            if transport.queued_bytes() > 0
                && let Poll::Ready(Err(_)) = transport.poll_flush(cx)
            {
                return Poll::Ready(Err(None));
            }
            let received = transport.poll_receive(cx, &mut |inbound| match inbound {
                Inbound::Message(message) if self.first.is_none() => {
                    self.first = Some(Bytes::copy_from_slice(message));
                }
                Inbound::Message(message) => self.rest.push(Bytes::copy_from_slice(message)),
                // What may be lost is lost before the session stands.
                Inbound::Control | Inbound::Datagram(_) => {}
                Inbound::Close(_) => self.closed = true,
            });
            match received {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(TransportError::Violation(_))) => {
                    return Poll::Ready(Err(Some(CloseCode::BadFrame)));
                }
                Poll::Ready(Err(TransportError::Closed | TransportError::Gone | TransportError::Io(_))) => {
                    return Poll::Ready(Err(None));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
