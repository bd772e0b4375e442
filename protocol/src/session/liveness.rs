//! Is the device still there? **Invariant:** a session ends within `ack_timeout` of owing an ack and within two heartbeats
//! in any case, unless frames come in; a peek ends within `peek_max`.

use super::SessionConfig;
use crate::close::CloseCode;
use crate::frame::Role;
use crate::time::{Millis, Time};

/// The last signs of life.
#[derive(Debug, Clone)]
pub(super) struct Liveness {
    started: Time,
    last_frame: Time,
    /// Since when something is un-acked.
    owed_since: Option<Time>,
}

impl Liveness {
    pub(super) fn new(now: Time) -> Self {
        Self { started: now, last_frame: now, owed_since: None }
    }

    pub(super) fn frame(&mut self, now: Time) {
        self.last_frame = self.last_frame.max(now);
    }

    /// Something is un-acked, or nothing is.
    pub(super) fn owed(&mut self, now: Time, owed: bool) {
        self.owed_since = if owed { self.owed_since.or(Some(now)) } else { None };
    }

    /// The next time at which a silent device is given up, and why.
    pub(super) fn deadline(&self, role: Role, config: &SessionConfig) -> (Time, CloseCode) {
        let heartbeat = self.last_frame + Millis(config.limits.ping_every.0.saturating_mul(2));
        let mut first = (heartbeat, CloseCode::HeartbeatMissed);
        if let Some(since) = self.owed_since {
            let ack = since.max(self.last_frame) + config.ack_timeout;
            if ack <= first.0 {
                first = (ack, CloseCode::AckTimeout);
            }
        }
        let peek = self.started + config.peek_max;
        if role == Role::Peek && peek <= first.0 {
            first = (peek, CloseCode::PeekEnded);
        }
        first
    }
}
