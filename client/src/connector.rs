//! How a byte stream to the gateway is made, and where its UDP port is. **Invariant:** the only place that knows about TCP.

use async_trait::async_trait;
use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream to a gateway, below TLS.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Makes byte streams; the simulation and tests give their own.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects to `host` (a name or an address, without brackets) on `port`. The SDK gives it the time it has left.
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>>;

    /// The addresses of `host`, the best first, for QUIC and WebTransport. By default the system's answer.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// TCP with `TCP_NODELAY`, names resolved by the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpConnector;

#[async_trait]
impl Connector for TcpConnector {
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>> {
        let stream = not_itself(TcpStream::connect((host, port)).await?)?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// Refuses a socket that met itself. The system may give a connection to a port of this machine that very port to
/// leave from; if nobody listens there, the two ends are one (RFC 9293, section 3.5: simultaneous open).
fn not_itself(stream: TcpStream) -> io::Result<TcpStream> {
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpSocket};

    #[tokio::test]
    async fn a_connection_that_met_itself_is_refused() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let itself = socket.local_addr().unwrap();
        let stream = socket.connect(itself).await.unwrap();
        assert_eq!(not_itself(stream).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);

        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(server.local_addr().unwrap()).await.unwrap();
        assert!(not_itself(stream).is_ok());
    }
}
