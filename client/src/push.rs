//! What the application has said about being woken, until the server has it. **Invariant:** the newest call is what is sent,
//! on each connection anew until it is answered; every call is answered once.

use crate::error::ClientError;
use chappe_protocol::frame::{ClientFrame, Reply, Request};
use chappe_protocol::push::{PUSH_TARGETS_MAX, PushSettings};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use tokio::sync::oneshot;

/// An error that names no time is tried again after this.
const RETRY: Millis = Millis::from_secs(2);

/// A call of `set_push`.
pub(crate) struct NewPush {
    pub(crate) settings: PushSettings,
    pub(crate) reply: oneshot::Sender<Result<(), ClientError>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Push {
    wanted: Option<Wanted>,
    last_id: u64,
}

struct Wanted {
    new: NewPush,
    not_before: Time,
    /// The transmission on this connection that is not answered: its id, and when it was sent.
    flight: Option<(u64, Time)>,
}

/// What the server would refuse anyway.
pub(crate) fn check(settings: &PushSettings) -> Result<(), ClientError> {
    if settings.targets.len() > PUSH_TARGETS_MAX {
        return Err(ClientError::Invalid("at most 4 push targets"));
    }
    if settings.targets.iter().any(|target| target.address.check().is_err()) {
        return Err(ClientError::Invalid("a push target holds what no provider gives out"));
    }
    Ok(())
}

impl Push {
    /// Takes the place of what is under way.
    pub(crate) fn set(&mut self, new: NewPush) {
        let wanted = Wanted { new, not_before: Time(0), flight: None };
        if let Some(old) = self.wanted.replace(wanted) {
            // The application may have stopped waiting, here and below.
            let _ = old.new.reply.send(Err(ClientError::Replaced));
        }
    }

    /// Whether there is something to send.
    pub(crate) fn wants(&self, now: Time) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| wanted.flight.is_none() && wanted.not_before <= now)
    }

    /// When there will be.
    pub(crate) fn next_time(&self, now: Time) -> Option<Time> {
        let wanted = self.wanted.as_ref().filter(|wanted| wanted.flight.is_none())?;
        Some(wanted.not_before).filter(|at| *at > now)
    }

    /// The frame to send, if there is one.
    pub(crate) fn poll_send(&mut self, now: Time) -> Option<ClientFrame> {
        if !self.wants(now) {
            return None;
        }
        self.last_id += 1;
        let wanted = self.wanted.as_mut()?;
        wanted.flight = Some((self.last_id, now));
        let request = Request::SetPush(wanted.new.settings.clone());
        Some(ClientFrame::Request { id: self.last_id, request })
    }

    /// Since when an answer is waited for.
    pub(crate) fn oldest_flight(&self) -> Option<Time> {
        self.wanted.as_ref()?.flight.map(|(_, sent_at)| sent_at)
    }

    /// The connection is gone, and what was not answered with it.
    pub(crate) fn on_disconnect(&mut self) {
        if let Some(wanted) = &mut self.wanted {
            wanted.flight = None;
        }
    }

    /// An answer; one to a call that was replaced says nothing any more.
    pub(crate) fn on_reply(&mut self, now: Time, id: u64, reply: Reply, world: &dyn World) {
        let ours = |wanted: &mut Wanted| wanted.flight.is_some_and(|(flight, _)| flight == id);
        let Some(mut wanted) = self.wanted.take_if(ours) else { return };
        let result = match reply {
            Reply::PushSet => Ok(()),
            Reply::Error(error) if error.retryable => {
                let asked = Millis(error.retry_after_ms.into()).max(RETRY);
                wanted.not_before = now + asked + Millis(world.random_below(asked.0 / 2 + 1));
                wanted.flight = None;
                self.wanted = Some(wanted);
                return;
            }
            Reply::Error(error) => {
                Err(ClientError::Refused { code: error.code, message: error.message, retryable: false })
            }
        };
        let _ = wanted.new.reply.send(result);
    }
}
