//! How a byte stream to the gateway is made. **Invariant:** the only place that knows about TCP.

use async_trait::async_trait;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to a gateway, below TLS.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Makes byte streams; the simulation and tests give their own.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to `host` (a name or an address, without brackets) on `port`. The SDK gives it the time it has left.
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>>;
}

/// TCP with `TCP_NODELAY`, names resolved by the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>> {
        let stream = tokio::net::TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
