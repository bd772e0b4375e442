//! What a server's frames mean, whoever holds the socket. **Invariant:** pure; what a newer server says is passed over.

use crate::outbox::Outbox;
use crate::reconnect::{End, Reconnect};
use bytes::Bytes;
use chappe_protocol::close::{ErrorFrame, ErrorScope};
use chappe_protocol::frame::{FrameError, ServerFrame, Welcome};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;

/// What a message before the Welcome says.
#[derive(Debug, PartialEq, Eq)]
pub enum Greeted {
    /// The connection stands.
    Welcome(Welcome),
    /// It will be closed: come again after so long.
    Hint(Millis),
    /// Nothing that matters yet.
    Nothing,
}

/// Reads a message; `None`: of a kind that this version does not know. Errors: the connection is to be given up.
pub fn decoded(message: Bytes) -> Result<Option<ServerFrame>, End> {
    match ServerFrame::decode(message) {
        Ok(frame) => Ok(Some(frame)),
        Err(FrameError::UnknownFrame) => Ok(None),
        Err(error @ (FrameError::Garbage | FrameError::Field(_) | FrameError::Request { .. })) => {
            Err(End::Lost(error.to_string()))
        }
    }
}

/// Reads a message between Hello and Welcome.
pub fn greeted(message: Bytes) -> Result<Greeted, End> {
    let Some(frame) = decoded(message)? else { return Ok(Greeted::Nothing) };
    Ok(match frame {
        ServerFrame::Welcome(welcome) => Greeted::Welcome(welcome),
        ServerFrame::Error(error) if error.scope == ErrorScope::Connection => {
            Greeted::Hint(Millis(error.retry_after_ms.into()))
        }
        ServerFrame::Deliver(_)
        | ServerFrame::BacklogEnd { .. }
        | ServerFrame::Truncated { .. }
        | ServerFrame::SubmitResult(_)
        | ServerFrame::Ephemeral { .. }
        | ServerFrame::GoAway(_)
        | ServerFrame::Error(_)
        | ServerFrame::Pong { .. }
        | ServerFrame::Reply { .. } => Greeted::Nothing,
    })
}

/// The server reports an error after the Welcome.
pub fn on_error(
    now: Time,
    error: &ErrorFrame,
    reconnect: &mut Reconnect,
    outbox: &mut Outbox,
    world: &dyn World,
) {
    tracing::debug!(code = %error.code, scope = ?error.scope, "the server reports an error");
    match (error.scope, error.submit_id) {
        (ErrorScope::Connection, _) => reconnect.on_retry_after(Millis(error.retry_after_ms.into())),
        (ErrorScope::Submit, Some(id)) => outbox.on_refused(now, id, error, world),
        (ErrorScope::Submit, None) | (ErrorScope::Frame, _) => {}
    }
}
