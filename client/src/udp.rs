//! The UDP side of a client: one socket per address family, and QUIC connections on it. **Invariant:** a socket is made by the
//! first connection that needs it and kept over reconnects; no packet leaves a client that was told `ws://` or `wss://`.

use crate::reconnect::End;
use chappe_protocol::time::Millis;
use quinn::{Endpoint, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longer than two intervals of pings.
const IDLE_MS: u32 = 60_000;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const DATAGRAM_BUFFER_BYTES: usize = 64 * 1024;
/// An address that does not answer, though there are others.
const ADDRESS_PATIENCE: Millis = Millis::from_secs(2);
/// Addresses that one attempt tries.
const ADDRESSES_MAX: usize = 4;
/// For the last packets of a client that ends.
const PARTING: Millis = Millis(300);

/// How QUIC behaves on our side.
pub(crate) fn transport() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        // The server opens nothing but HTTP/3's own streams (RFC 9114 §6.2).
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(3))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES + STREAM_WINDOW_BYTES / 4))
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        // The protocol's own pings keep a session.
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(None)
        .mtu_discovery_config(None);
    config
}

/// The sockets.
#[derive(Default)]
pub(crate) struct Udp(Mutex<Sockets>);

#[derive(Default)]
struct Sockets {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

impl Udp {
    fn sockets(&self) -> MutexGuard<'_, Sockets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the first of these addresses that answers.
    pub(crate) async fn connect(
        &self,
        addresses: &[SocketAddr],
        config: &quinn::ClientConfig,
        name: &str,
    ) -> Result<quinn::Connection, End> {
        // An address without a route would swallow a packet without a word.
        let routed = addresses.iter().filter(|to| local_ip(**to).is_ok());
        let addresses: Vec<SocketAddr> = routed.take(ADDRESSES_MAX).copied().collect();
        let mut failed = End::Lost("QUIC: no address that can be reached".to_owned());
        for (place, address) in addresses.iter().enumerate() {
            let one = self.connect_to(*address, config, name);
            let result = if place + 1 < addresses.len() {
                let late = || Err(End::Lost("QUIC: no answer".to_owned()));
                tokio::time::timeout(ADDRESS_PATIENCE.to_std(), one).await.unwrap_or_else(|_| late())
            } else {
                one.await
            };
            match result {
                Ok(connection) => return Ok(connection),
                Err(end) => failed = end,
            }
        }
        Err(failed)
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
        config: &quinn::ClientConfig,
        name: &str,
    ) -> Result<quinn::Connection, End> {
        let endpoint = self.endpoint(address.is_ipv6()).map_err(|error| lost(&error))?;
        let connecting = endpoint.connect_with(config.clone(), address, name);
        connecting.map_err(|error| lost(&error))?.await.map_err(|error| lost(&error))
    }

    fn endpoint(&self, v6: bool) -> io::Result<Endpoint> {
        let mut sockets = self.sockets();
        let place = if v6 { &mut sockets.v6 } else { &mut sockets.v4 };
        if let Some(endpoint) = place {
            return Ok(endpoint.clone());
        }
        let endpoint = Endpoint::new(EndpointConfig::default(), None, bind(v6)?, Arc::new(TokioRuntime))?;
        *place = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// Moves every connection to a fresh socket: the device has another address.
    pub(crate) fn rebind(&self) -> io::Result<()> {
        let sockets = self.sockets();
        for (endpoint, v6) in [(&sockets.v4, false), (&sockets.v6, true)] {
            if let Some(endpoint) = endpoint {
                endpoint.rebind(bind(v6)?)?;
            }
        }
        Ok(())
    }

    /// Lets the last packets out, of clients that used UDP at all.
    pub(crate) async fn part(&self) {
        let endpoints = {
            let sockets = self.sockets();
            [sockets.v4.clone(), sockets.v6.clone()]
        };
        for endpoint in endpoints.into_iter().flatten() {
            let _ = tokio::time::timeout(PARTING.to_std(), endpoint.wait_idle()).await;
        }
    }
}

fn lost(error: &dyn std::error::Error) -> End {
    End::Lost(format!("QUIC: {error}"))
}

fn bind(v6: bool) -> io::Result<UdpSocket> {
    let any = if v6 { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    UdpSocket::bind(SocketAddr::new(any, 0))
}

/// The address from which this host would speak to that one; no packet is sent. It names the network that we are in.
pub(crate) fn local_ip(to: SocketAddr) -> io::Result<IpAddr> {
    let socket = bind(to.is_ipv6())?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}
