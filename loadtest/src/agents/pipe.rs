//! Messages between a run and its workers, over any stream of bytes. **Invariant:** a message that was not made with the common
//! secret, that was made for another connection or comes a second time ends the connection; what is sent can be read by whoever
//! listens (it holds no secret).
//!
//! Each side begins with 32 random bytes; the key of the connection is HMAC-SHA-256 of both under the secret, its own for each
//! direction. A message is its length (u32, big-endian), HMAC-SHA-256 over its number and its bytes, and JSON.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::hmac::{self, HMAC_SHA256, Key};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of the secret at least.
pub(crate) const SECRET_BYTES: usize = 32;
/// A result has a histogram for each second.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const NONCE_BYTES: usize = 32;
const MAC_BYTES: usize = 32;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The one that decides what is done.
    Run,
    /// The one that does it.
    Worker,
}

/// What comes.
pub(crate) struct Incoming<R> {
    io: R,
    key: Key,
    number: u64,
}

/// What goes.
pub(crate) struct Outgoing<W> {
    io: W,
    key: Key,
    number: u64,
}

/// Makes sure that the other side knows the secret, by the first message on.
pub(crate) async fn open<R, W>(
    mut from: R,
    mut to: W,
    secret: &[u8],
    side: Side,
    random: [u8; NONCE_BYTES],
) -> Result<(Incoming<R>, Outgoing<W>)>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    ensure!(secret.len() >= SECRET_BYTES, "the secret has fewer than {SECRET_BYTES} bytes");
    to.write_all(&random).await?;
    to.flush().await?;
    let mut theirs = [0; NONCE_BYTES];
    from.read_exact(&mut theirs).await.context("the other side ended at once")?;
    let (run, worker) = if side == Side::Run { (random, theirs) } else { (theirs, random) };
    let key = |of: Side| {
        let name: &[u8] = if of == Side::Run { b"chappe-loadtest run" } else { b"chappe-loadtest worker" };
        let mut context = hmac::Context::with_key(&Key::new(HMAC_SHA256, secret));
        for part in [name, &run, &worker] {
            context.update(part);
        }
        Key::new(HMAC_SHA256, context.sign().as_ref())
    };
    let other = if side == Side::Run { Side::Worker } else { Side::Run };
    let incoming = Incoming { io: from, key: key(other), number: 0 };
    Ok((incoming, Outgoing { io: to, key: key(side), number: 0 }))
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    /// The next message; `None`: the other side has ended.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let length = match self.io.read_u32().await {
            Ok(length) => length as usize,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        ensure!(length <= MESSAGE_BYTES_MAX, "a message of {length} bytes, more than {MESSAGE_BYTES_MAX}");
        let mut mac = [0; MAC_BYTES];
        self.io.read_exact(&mut mac).await?;
        let mut bytes = Vec::new();
        // Memory is taken as bytes come, not as a stranger announces them.
        (&mut self.io).take(length as u64).read_to_end(&mut bytes).await?;
        ensure!(bytes.len() == length, "the other side ended in the middle of a message");
        hmac::verify(&self.key, &signed(self.number, &bytes), &mac)
            .map_err(|_| anyhow::anyhow!("the other side has another secret"))?;
        self.number += 1;
        Ok(Some(serde_json::from_slice(&bytes).context("a message of another version")?))
    }
}

impl<W: AsyncWrite + Unpin> Outgoing<W> {
    /// Sends a message.
    pub(crate) async fn send<T: Serialize + ?Sized>(&mut self, message: &T) -> Result<()> {
        let bytes = serde_json::to_vec(message)?;
        ensure!(bytes.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes is too large", bytes.len());
        let mac = hmac::sign(&self.key, &signed(self.number, &bytes));
        self.number += 1;
        self.io.write_u32(u32::try_from(bytes.len())?).await?;
        self.io.write_all(mac.as_ref()).await?;
        self.io.write_all(&bytes).await?;
        self.io.flush().await?;
        Ok(())
    }
}

fn signed(number: u64, bytes: &[u8]) -> Vec<u8> {
    number.to_be_bytes().iter().chain(bytes).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, ReadHalf, WriteHalf};

    type End = (Incoming<ReadHalf<DuplexStream>>, Outgoing<WriteHalf<DuplexStream>>);

    async fn pair(one: &[u8], two: &[u8]) -> (End, End) {
        let (a, b) = tokio::io::duplex(1 << 20);
        let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
        let ends =
            tokio::join!(open(ar, aw, one, Side::Run, [1; 32]), open(br, bw, two, Side::Worker, [2; 32]));
        (ends.0.unwrap(), ends.1.unwrap())
    }

    #[tokio::test]
    async fn messages_come_both_ways_in_order() {
        let (mut run, mut worker) = pair(&[7; 32], &[7; 32]).await;
        for number in 0..3u32 {
            run.1.send(&number).await.unwrap();
            worker.1.send(&format!("got {number}")).await.unwrap();
        }
        for number in 0..3u32 {
            assert_eq!(worker.0.next::<u32>().await.unwrap(), Some(number));
            assert_eq!(run.0.next::<String>().await.unwrap(), Some(format!("got {number}")));
        }
        drop(run);
        assert_eq!(worker.0.next::<u32>().await.unwrap(), None);
    }

    #[tokio::test]
    async fn another_secret_a_replay_and_an_echo_are_refused() {
        let (mut run, mut worker) = pair(&[7; 32], &[8; 32]).await;
        run.1.send(&1).await.unwrap();
        assert!(worker.0.next::<u32>().await.unwrap_err().to_string().contains("another secret"));

        let (mut run, mut worker) = pair(&[7; 32], &[7; 32]).await;
        run.1.send(&1).await.unwrap();
        assert_eq!(worker.0.next::<u32>().await.unwrap(), Some(1));
        run.1.number = 0;
        run.1.send(&1).await.unwrap();
        assert!(worker.0.next::<u32>().await.is_err(), "the same message once more");

        let (mut run, mut worker) = pair(&[7; 32], &[7; 32]).await;
        worker.1.key = run.1.key.clone();
        worker.1.send(&1).await.unwrap();
        assert!(run.0.next::<u32>().await.is_err(), "its own message sent back");
        assert!(open(tokio::io::empty(), tokio::io::sink(), b"short", Side::Run, [0; 32]).await.is_err());
    }

    #[tokio::test]
    async fn a_stranger_makes_no_memory_go() {
        let (mut run, mut worker) = pair(&[7; 32], &[7; 32]).await;
        run.1.io.write_u32(u32::MAX).await.unwrap();
        assert!(worker.0.next::<u32>().await.unwrap_err().to_string().contains("more than"));
    }
}
