//! HTTP/2 frame by frame (RFC 9113 §4), for what a well-behaved library does not let a server do. **Invariant:** it sends
//! nothing by itself but the answer to SETTINGS.

use super::{NAMES, Server, acceptor};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::server::TlsStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Peer(TlsStream<DuplexStream>);

impl Peer {
    pub(crate) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // The client may have gone; the test sees that elsewhere.
        let _ = self.0.write_all(&frame).await;
        let _ = self.0.flush().await;
    }

    /// A byte each second.
    pub(crate) async fn trickle(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let _ = self.0.write_all(&[*byte]).await;
            let _ = self.0.flush().await;
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }

    /// SETTINGS_MAX_CONCURRENT_STREAMS.
    pub(crate) async fn allow(&mut self, streams: u32) {
        let mut payload = vec![0, 3];
        payload.extend(streams.to_be_bytes());
        self.write(SETTINGS, 0, 0, &payload).await;
    }

    /// `:status: 200` and the end of the stream: index 8 of HPACK's static table (RFC 7541 appendix A).
    pub(crate) async fn answer_200(&mut self, stream: u32) {
        self.write(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88]).await;
    }

    /// GOAWAY with NO_ERROR.
    pub(crate) async fn go_away(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend([0; 4]);
        self.write(GOAWAY, 0, 0, &payload).await;
    }

    pub(crate) async fn pong(&mut self, ping: &Frame) {
        self.write(PING, ACK, 0, &ping.payload).await;
    }

    /// The next frame that is neither SETTINGS nor a window update nor an answer to a PING; `None` at the end.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let (kind, flags) = (head[3], head[4]);
            let number = |high, at: usize| u32::from_be_bytes([high, head[at], head[at + 1], head[at + 2]]);
            let mut payload = vec![0; number(0, 0) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.write(SETTINGS, ACK, 0, &[]).await,
                DATA | HEADERS | GOAWAY => {
                    return Some(Frame { kind, flags, stream: number(head[5], 6), payload });
                }
                PING if flags & ACK == 0 => return Some(Frame { kind, flags, stream: 0, payload }),
                _ => {}
            }
        }
    }

    /// The stream of the next request that is complete.
    pub(crate) async fn request(&mut self) -> Option<u32> {
        loop {
            let frame = self.read().await?;
            if frame.flags & END_STREAM != 0 && frame.kind != GOAWAY {
                return Some(frame.stream);
            }
        }
    }
}

/// A server whose nth connection is in the hands of `script`; the preface is read, SETTINGS are not sent.
pub(crate) fn server<F>(script: impl Fn(usize, Peer) -> F + Send + Sync + 'static) -> Arc<Server>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (acceptor, root_pem) = acceptor(&NAMES, &[b"h2"]);
    let script = Arc::new(script);
    Server::raw(
        root_pem,
        Box::new(move |number, io| {
            let (acceptor, script) = (acceptor.clone(), script.clone());
            let serve = async move {
                let Ok(mut stream) = acceptor.accept(io).await else { return };
                let mut preface = [0; 24];
                if stream.read_exact(&mut preface).await.is_ok() {
                    script(number, Peer(stream)).await;
                }
            };
            Box::pin(serve) as Pin<Box<dyn Future<Output = ()> + Send>>
        }),
    )
}
