//! Ports. **Invariant:** an error says which setting to change.

use anyhow::Result;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use tokio::net::TcpListener;

/// Binds a TCP address; `flag` is how it is set on the command line.
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| explained(error, &format!("{address}"), flag))
}

/// Binds a UDP address; `flag` is how it is set on the command line.
pub fn bind_udp(address: SocketAddr, flag: &str) -> Result<UdpSocket> {
    UdpSocket::bind(address).map_err(|error| explained(error, &format!("{address} (UDP)"), flag))
}

fn explained(error: io::Error, address: &str, flag: &str) -> anyhow::Error {
    let hint = if error.kind() == io::ErrorKind::AddrInUse {
        format!("port_in_use: {address} is taken; end the other process or choose another with {flag}")
    } else {
        format!("port_unusable: {address} cannot be bound; choose another with {flag}")
    };
    anyhow::Error::new(error).context(hint)
}
