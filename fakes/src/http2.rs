//! One HTTP/2 connection. **Invariant:** what the client may have open at once is what SETTINGS said, and a stream over
//! that is refused (RFC 9113 §5.1.2).

use crate::answer::Reply;
use crate::flow::{self, BODY_BYTES_MAX, HOLD_MAX, Link, Outcome};
use crate::host::{HANDSHAKE_MAX, Shared};
use crate::record::Carrier;
use crate::rules::Incoming;
use crate::wire::Wire;
use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// Longest head of a request, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
/// How long a client may take to close its connection after GOAWAY, once it has all answers.
const LEAVE_MAX: Duration = Duration::from_secs(5);
/// How long a client may take to send a body.
const BODY_MAX: Duration = Duration::from_mins(1);

/// Serves a connection until it ends.
pub(crate) async fn serve<IO>(shared: Arc<Shared>, io: IO, number: u64, cut: CancellationToken)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let first = if shared.rules.starts_with_one_stream() { 1 } else { shared.streams_max };
    let (wire, lever) = Wire::new(io, first, Arc::clone(&shared.record));
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(shared.streams_max).max_header_list_size(HEADERS_BYTES_MAX);
    let handshake = tokio::time::timeout(HANDSHAKE_MAX, builder.handshake::<_, Bytes>(wire));
    let Ok(Ok(mut connection)) = handshake.await else {
        shared.record.count(|counts| counts.handshakes_failed += 1);
        return;
    };
    let bell = Arc::clone(&lever.bell);
    let link = Arc::new(Link::new(number, Carrier::Http2, cut, Some(lever)));
    let left = async {
        link.leaving.cancelled().await;
        tokio::time::sleep(LEAVE_MAX).await;
        while link.owed.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(LEAVE_MAX).await;
        }
    };
    tokio::pin!(left);
    loop {
        let accepted = tokio::select! {
            biased;
            () = link.cut.cancelled() => break,
            () = &mut left => break,
            // The next turn polls the connection, and that sends what waits.
            () = bell.notified() => continue,
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, mut respond))) = accepted else { break };
        let stream = respond.stream_id().as_u32();
        if link.open(stream) {
            shared.tracker.spawn_on(
                stream_to_end(Arc::clone(&shared), Arc::clone(&link), request, respond),
                &shared.runtime,
            );
        } else {
            flow::refuse_over_limit(&shared, &link, stream, &incoming(&shared, &request, Some(Bytes::new())));
            respond.send_reset(Reason::REFUSED_STREAM);
        }
    }
    link.cut.cancel();
}

fn incoming<B>(shared: &Shared, request: &Request<B>, body: Option<Bytes>) -> Incoming {
    Incoming {
        method: request.method().clone(),
        path: request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        headers: request.headers().clone(),
        too_long: body.is_none(),
        body: body.unwrap_or_default(),
        now_ms: shared.clock.now_ms(),
    }
}

async fn stream_to_end(
    shared: Arc<Shared>,
    link: Arc<Link>,
    mut request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let read = tokio::select! {
        biased;
        () = link.cut.cancelled() => return,
        read = tokio::time::timeout(BODY_MAX, read(request.body_mut())) => read,
    };
    let Ok(Ok(body)) = read else {
        respond.send_reset(Reason::CANCEL);
        return;
    };
    let stream = respond.stream_id().as_u32();
    match flow::decide(&shared, &link, stream, &incoming(&shared, &request, body)) {
        Outcome::Reply(reply) | Outcome::ReplyAndLeave(reply) => send(respond, reply),
        Outcome::ReplyAfter(by, reply) => {
            link.owed.fetch_add(1, Ordering::Relaxed);
            if hold(&link, &mut respond, by).await {
                send(respond, reply);
            }
            link.owed.fetch_sub(1, Ordering::Relaxed);
        }
        Outcome::HalfReply(reply) => half(&link, respond, reply).await,
        Outcome::Hold | Outcome::LeaveAlone => {
            hold(&link, &mut respond, HOLD_MAX).await;
        }
        Outcome::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
        Outcome::Close => link.cut.cancel(),
    }
}

/// The body; `None` if it is longer than a fake reads.
async fn read(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let (mut whole, mut too_long) = (BytesMut::new(), false);
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        too_long |= whole.len() + part.len() > BODY_BYTES_MAX;
        if !too_long {
            whole.extend_from_slice(&part);
        }
    }
    body.trailers().await?;
    Ok((!too_long).then(|| whole.freeze()))
}

fn head(reply: &Reply) -> Response<()> {
    let mut head = Response::new(());
    *head.status_mut() = reply.status;
    *head.headers_mut() = reply.headers.clone();
    head
}

/// Sends a whole answer. A client that is gone gets none.
fn send(mut respond: SendResponse<Bytes>, reply: Reply) {
    let empty = reply.body.is_empty();
    if let Ok(mut stream) = respond.send_response(head(&reply), empty)
        && !empty
    {
        let _ = stream.send_data(reply.body, true);
    }
}

/// Sends the head and half of the body, and holds the rest.
async fn half(link: &Link, mut respond: SendResponse<Bytes>, reply: Reply) {
    let Ok(mut stream) = respond.send_response(head(&reply), false) else { return };
    if !reply.body.is_empty() {
        let _ = stream.send_data(reply.body.slice(..reply.body.len() / 2), false);
    }
    tokio::select! {
        biased;
        () = link.cut.cancelled() => (),
        _ = std::future::poll_fn(|cx| stream.poll_reset(cx)) => (),
        () = tokio::time::sleep(HOLD_MAX) => (),
    }
}

/// Waits; `false` if the stream or its connection ended meanwhile.
async fn hold(link: &Link, respond: &mut SendResponse<Bytes>, by: Duration) -> bool {
    tokio::select! {
        biased;
        () = link.cut.cancelled() => false,
        _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => false,
        () = tokio::time::sleep(by) => true,
    }
}
