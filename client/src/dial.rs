//! From an address to a carrier. **Invariant:** one carrier comes out of a race; the other is closed before a word is said on
//! either, so a device never says Hello twice at a time.

use crate::builder::Settings;
use crate::carrier::{Carrier, Wire, stream, websocket};
use crate::endpoint::Way;
use crate::reconnect::End;
use crate::socket;
use crate::udp::{Udp, local_ip};
use chappe_protocol::time::{Millis, Time};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::time::timeout;
use web_transport_quinn::proto::ConnectRequest;
use web_transport_quinn::{ClientError as WebTransportFailed, ConnectError, Session, proto};

/// The head start of the carrier that is tried first (RFC 8305 §5 recommends it).
const STAGGER: Millis = Millis(250);
/// WebSocket's head start where QUIC failed lately: only if TCP hangs, too, is UDP worth a try.
const STAGGER_BAD: Millis = Millis::from_secs(3);
/// Names are looked up within this, or the system's own way of WebSocket has to do.
const RESOLVE_TIMEOUT: Millis = Millis::from_secs(2);
/// A network where QUIC lost is remembered so long.
const REMEMBERED: Millis = Millis::from_secs(600);
const NETWORKS_MAX: usize = 16;

/// Dials, and remembers what worked where.
#[derive(Default)]
pub(crate) struct Dialer {
    pub(crate) udp: Udp,
    memory: Mutex<Memory>,
}

/// Networks, named by our address in them, in which QUIC is not the first choice.
#[derive(Debug, Default)]
struct Memory {
    bad_until: BTreeMap<IpAddr, Time>,
    /// Where the automatic choice was made last.
    here: Option<IpAddr>,
}

impl Memory {
    fn prefers_websocket(&self, now: Time) -> bool {
        self.here.and_then(|here| self.bad_until.get(&here)).is_some_and(|until| now < *until)
    }

    fn won(&mut self, carrier: Carrier, now: Time) {
        let Some(here) = self.here else { return };
        match carrier {
            Carrier::Quic | Carrier::WebTransport => {
                self.bad_until.remove(&here);
            }
            Carrier::WebSocket => {
                // Not prolonged: after its time QUIC gets its chance again.
                if !self.prefers_websocket(now) {
                    self.bad_until.insert(here, now + REMEMBERED);
                }
                if self.bad_until.len() > NETWORKS_MAX
                    && let Some(oldest) =
                        self.bad_until.iter().min_by_key(|(_, until)| **until).map(|(ip, _)| *ip)
                {
                    self.bad_until.remove(&oldest);
                }
            }
        }
    }
}

impl Dialer {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// QUIC was taken and has failed: in this network WebSocket goes first for a while.
    pub(crate) fn on_bad_quic(&self, now: Time) {
        self.memory().won(Carrier::WebSocket, now);
    }

    /// Makes a carrier of the kind that the address asks for. The caller bounds the time.
    pub(crate) async fn dial(&self, settings: &Settings) -> Result<Wire, End> {
        match settings.endpoint.way {
            Way::WebSocket => web_socket(settings).await,
            Way::Quic => self.quic(settings, Carrier::Quic, &resolve(settings).await?).await,
            Way::WebTransport => self.quic(settings, Carrier::WebTransport, &resolve(settings).await?).await,
            Way::Automatic => self.race(settings).await,
        }
    }

    async fn race(&self, settings: &Settings) -> Result<Wire, End> {
        let addresses = timeout(RESOLVE_TIMEOUT.to_std(), resolve(settings)).await;
        let addresses = addresses.unwrap_or_else(|_| Err(End::Lost("the name is not resolved".to_owned())));
        let here = addresses.iter().flatten().find_map(|to| local_ip(*to).ok());
        let websocket_first = {
            let mut memory = self.memory();
            memory.here = here;
            memory.prefers_websocket(settings.world.now())
        };
        let quic = async { self.quic(settings, Carrier::Quic, &addresses?).await };
        let websocket = web_socket(settings);
        let won = if websocket_first {
            staggered(websocket, quic, STAGGER_BAD).await.map_err(|(websocket, _)| websocket)
        } else {
            staggered(quic, websocket, STAGGER).await.map_err(|(_, websocket)| websocket)
        };
        // WebSocket's failure says more: a status, a hint when to come again.
        let wire = won?;
        self.memory().won(wire.carrier, settings.world.now());
        tracing::debug!(carrier = wire.carrier.as_str(), "the automatic choice");
        Ok(wire)
    }

    async fn quic(
        &self,
        settings: &Settings,
        carrier: Carrier,
        addresses: &[SocketAddr],
    ) -> Result<Wire, End> {
        let Some(quic) = &settings.quic else { return Err(End::Lost("QUIC needs TLS".to_owned())) };
        let (config, endpoint) = (quic.config(carrier), &settings.endpoint);
        let connection = self.udp.connect(addresses, config, &endpoint.host).await?;
        let line = stream::Line::new(connection.clone(), carrier);
        let session = match carrier {
            Carrier::WebTransport => {
                let request = ConnectRequest::new(quic.url.clone());
                Session::connect(connection, request).await.map_err(|error| refused(&error))?
            }
            Carrier::Quic | Carrier::WebSocket => Session::raw(connection),
        };
        stream::open(carrier, session, line, settings.tuning.message_bytes_max).await
    }
}

async fn web_socket(settings: &Settings) -> Result<Wire, End> {
    let endpoint = &settings.endpoint;
    let io = settings.connector.connect(&endpoint.host, endpoint.port).await;
    let io = io.map_err(|error| End::Lost(format!("connect: {error}")))?;
    let upgraded = socket::open(io, endpoint, &settings.security, &*settings.world).await?;
    Ok(websocket::over(upgraded, settings.tuning.message_bytes_max, settings.world.clone()))
}

async fn resolve(settings: &Settings) -> Result<Vec<SocketAddr>, End> {
    let endpoint = &settings.endpoint;
    let addresses = settings.connector.resolve(&endpoint.host, endpoint.port).await;
    addresses.map_err(|error| End::Lost(format!("resolve: {error}")))
}

fn refused(error: &WebTransportFailed) -> End {
    // Not in the 200s; another one in the 200s than 200.
    if let WebTransportFailed::HttpError(
        ConnectError::ProtoError(proto::ConnectError::WrongStatus(Some(status)))
        | ConnectError::ErrorStatus(status),
    ) = error
    {
        return End::Http { status: status.as_u16(), retry_after: Millis(0) };
    }
    End::Lost(format!("WebTransport: {error}"))
}

/// Starts the second after a while, or as soon as the first has failed; the first success is it, and the other is dropped.
async fn staggered<T, E>(
    first: impl Future<Output = Result<T, E>>,
    second: impl Future<Output = Result<T, E>>,
    stagger: Millis,
) -> Result<T, (E, E)> {
    let (mut first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    let first_failed = tokio::select! {
        biased;
        result = &mut first => match result {
            Ok(won) => return Ok(won),
            Err(error) => error,
        },
        () = tokio::time::sleep(stagger.to_std()) => tokio::select! {
            biased;
            result = &mut first => match result {
                Ok(won) => return Ok(won),
                Err(error) => error,
            },
            result = &mut second => return match result {
                Ok(won) => Ok(won),
                Err(second_failed) => first.await.map_err(|first_failed| (first_failed, second_failed)),
            },
        },
    };
    second.await.map_err(|second_failed| (first_failed, second_failed))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn after(
        ms: u64,
        result: Result<&'static str, &'static str>,
    ) -> Result<&'static str, &'static str> {
        tokio::time::sleep(Millis(ms).to_std()).await;
        result
    }

    #[tokio::test(start_paused = true)]
    #[allow(clippy::disallowed_methods, reason = "the paused clock of the test's runtime")]
    async fn the_first_success_wins_and_a_failure_hurries_the_second() {
        for (first, second, want, at) in [
            ((10, Ok("first")), (1, Ok("second")), Ok("first"), 10),
            ((9000, Ok("first")), (100, Ok("second")), Ok("second"), 350),
            ((300, Ok("first")), (100, Ok("second")), Ok("first"), 300),
            ((10, Err("a")), (100, Ok("second")), Ok("second"), 110),
            ((300, Err("a")), (100, Ok("second")), Ok("second"), 350),
            ((900, Ok("first")), (100, Err("b")), Ok("first"), 900),
            ((900, Err("a")), (100, Err("b")), Err(("a", "b")), 900),
            ((10, Err("a")), (100, Err("b")), Err(("a", "b")), 110),
        ] {
            let start = tokio::time::Instant::now();
            let got = staggered(after(first.0, first.1), after(second.0, second.1), STAGGER).await;
            assert_eq!((got, start.elapsed().as_millis()), (want, at), "{first:?} {second:?}");
        }
    }

    #[test]
    fn a_refused_request_is_told_with_its_status() {
        for status in [403, 404] {
            let status = web_transport_quinn::http::StatusCode::from_u16(status).unwrap();
            let wrong = proto::ConnectError::WrongStatus(Some(status));
            let end = refused(&WebTransportFailed::HttpError(ConnectError::ProtoError(wrong)));
            assert_eq!(end, End::Http { status: status.as_u16(), retry_after: Millis(0) });
        }
    }

    #[test]
    fn a_network_where_quic_lost_is_remembered_for_ten_minutes() {
        let mut memory = Memory { here: Some([10, 0, 0, 1].into()), ..Memory::default() };
        assert!(!memory.prefers_websocket(Time(0)), "QUIC first in a network that is not known");
        memory.won(Carrier::WebSocket, Time(0));
        assert!(memory.prefers_websocket(Time(599_999)));
        memory.won(Carrier::WebSocket, Time(500_000));
        assert!(!memory.prefers_websocket(Time(600_000)), "not prolonged by WebSocket's own wins");
        memory.won(Carrier::WebSocket, Time(700_000));
        memory.here = Some([10, 0, 0, 2].into());
        assert!(!memory.prefers_websocket(Time(700_001)), "another network");
        memory.here = Some([10, 0, 0, 1].into());
        memory.won(Carrier::Quic, Time(700_001));
        assert!(!memory.prefers_websocket(Time(700_002)), "QUIC won here");
        memory.here = None;
        memory.won(Carrier::WebSocket, Time(0));
        assert!(!memory.prefers_websocket(Time(1)), "no network is no network");
    }

    #[test]
    fn so_many_networks_are_remembered_and_no_more() {
        let mut memory = Memory::default();
        for number in 0..40u8 {
            memory.here = Some([10, 0, 0, number].into());
            memory.won(Carrier::WebSocket, Time(number.into()));
        }
        assert_eq!(memory.bad_until.len(), NETWORKS_MAX);
        assert!(memory.prefers_websocket(Time(40)), "the newest is among them");
    }
}
