//! Ports. **Invariant:** an error says which setting to change.

use anyhow::Result;
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Binds the address of a setting.
pub async fn bind(address: SocketAddr, setting: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
            format!(
                "port_in_use: {address} is taken; end the other process or choose another with --{setting}"
            )
        } else {
            format!("port_unusable: {address} cannot be bound; choose another with --{setting}")
        };
        anyhow::Error::new(error).context(hint)
    })
}
