//! Ports. **Invariant:** an error says which setting to change.

use anyhow::Result;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Binds an address; `flag` is how it is set on the command line.
pub async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
            format!("port_in_use: {address} is taken; end the other process or choose another with {flag}")
        } else {
            format!("port_unusable: {address} cannot be bound; choose another with {flag}")
        };
        anyhow::Error::new(error).context(hint)
    })
}
