//! A TCP port as a stream of sockets.

use crate::Incoming;
use futures_util::{Stream, stream};
use tokio::net::{TcpListener, TcpStream};

/// The listener as a stream of sockets without Nagle's delay.
pub fn accepted(listener: TcpListener) -> impl Stream<Item = std::io::Result<Incoming<TcpStream>>> + Send {
    stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.and_then(|(io, peer)| {
            io.set_nodelay(true)?;
            Ok(Incoming { io, peer })
        });
        Some((accepted, listener))
    })
}
