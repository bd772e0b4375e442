//! One HTTP/1.1 connection, for clients that speak nothing newer. **Invariant:** a request meets the same judgement as
//! over HTTP/2.

use crate::answer::Reply;
use crate::flow::{self, BODY_BYTES_MAX, HOLD_MAX, Link, Outcome};
use crate::host::{HANDSHAKE_MAX, Shared};
use crate::record::Carrier;
use crate::rules::Incoming;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming as Arriving, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Serves a connection until it ends.
pub(crate) async fn serve<IO>(shared: Arc<Shared>, io: IO, number: u64, cut: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let link = Arc::new(Link::new(number, Carrier::Http1, cut, None));
    let requests = AtomicU32::new(0);
    let service = service_fn(|request| {
        let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
        answer(Arc::clone(&shared), Arc::clone(&link), number, request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_MAX)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(io), service);
    tokio::select! {
        biased;
        () = link.cut.cancelled() => (),
        _ = connection => (),
    }
    link.cut.cancel();
}

async fn answer(
    shared: Arc<Shared>,
    link: Arc<Link>,
    number: u32,
    request: hyper::Request<Arriving>,
) -> Result<hyper::Response<Part>, io::Error> {
    let (head, body) = request.into_parts();
    let read = tokio::time::timeout(HANDSHAKE_MAX, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    let (body, too_long) = match read {
        Ok(Ok(body)) => (body.to_bytes(), false),
        Ok(Err(_)) => (Bytes::new(), true),
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let incoming = Incoming {
        method: head.method,
        path: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        headers: head.headers,
        body,
        too_long,
        now_ms: shared.clock.now_ms(),
    };
    link.open(number);
    match flow::decide(&shared, &link, number, &incoming) {
        Outcome::Reply(reply) => Ok(respond(reply, false)),
        Outcome::ReplyAndLeave(reply) => Ok(respond(reply.with("connection", "close"), false)),
        Outcome::ReplyAfter(by, reply) => {
            tokio::time::sleep(by).await;
            Ok(respond(reply, false))
        }
        Outcome::HalfReply(reply) => Ok(respond(reply, true)),
        Outcome::Hold => {
            tokio::time::sleep(HOLD_MAX).await;
            Err(io::ErrorKind::TimedOut.into())
        }
        Outcome::LeaveAlone | Outcome::Refuse | Outcome::Close => {
            link.cut.cancel();
            Err(io::ErrorKind::ConnectionAborted.into())
        }
    }
}

fn respond(reply: Reply, half: bool) -> hyper::Response<Part> {
    let whole = reply.body.len();
    let sent = if half { reply.body.slice(..whole / 2) } else { reply.body };
    let part = Part { sent: Some(sent).filter(|sent| !sent.is_empty()), whole, half };
    let mut response = hyper::Response::new(part);
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    response
}

/// A body, or the first half of one whose rest never comes.
struct Part {
    sent: Option<Bytes>,
    whole: usize,
    half: bool,
}

impl Body for Part {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match self.sent.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            // Ends with its connection.
            None if self.half => Poll::Pending,
            None => Poll::Ready(None),
        }
    }

    fn size_hint(&self) -> SizeHint {
        // A body that never ends has at least a byte to wait for.
        SizeHint::with_exact(u64::try_from(self.whole.max(usize::from(self.half))).unwrap_or(u64::MAX))
    }

    fn is_end_stream(&self) -> bool {
        !self.half && self.sent.is_none()
    }
}
