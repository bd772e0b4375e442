//! The loop over connections. **Invariant:** one task per client owns everything but the handles.

use crate::builder::Settings;
use crate::error::ClientError;
use crate::inbox::Inbox;
use crate::outgoing::Receipt;
use crate::state::State;
use chappe_protocol::frame::{Limits, Submit};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// What a handle asks for.
pub(crate) enum Command {
    Submit(Box<NewSubmit>),
    Ephemeral(Submit),
    Disconnect,
    Reconnect,
    Close,
}

/// A submit with its room in the outbox.
pub(crate) struct NewSubmit {
    pub(crate) submit: Submit,
    pub(crate) reply: oneshot::Sender<Result<Receipt, ClientError>>,
    pub(crate) permits: [OwnedSemaphorePermit; 2],
}

/// The driver's ends of the handles' channels.
pub(crate) struct Seams {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) inbox: Inbox,
    pub(crate) states: watch::Sender<State>,
    pub(crate) limits: watch::Sender<Limits>,
    pub(crate) stop: CancellationToken,
}

pub(crate) async fn run(settings: Settings, seams: Seams) {
    let _ = (&settings.endpoint, &seams.limits);
    seams.stop.cancelled().await;
    seams.states.send_replace(State::Closed);
}
