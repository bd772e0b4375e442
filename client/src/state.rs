//! What the client is doing now. **Invariant:** after `Failed` and `Closed` no other state follows.

use crate::carrier::Carrier;
use crate::error::ClientError;
use chappe_protocol::id::Epoch;
use chappe_protocol::time::Millis;

/// The state of a client. The newest is always there (`Client::state`); slow watchers skip states, never the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Dialling, or waiting for the Welcome.
    Connecting {
        /// Attempts since the last Welcome, from 1.
        attempt: u32,
    },
    /// Welcomed: envelopes flow.
    Connected {
        /// The session of before goes on: nothing was missed and nothing is repeated but what was not acked.
        resumed: bool,
        /// The session's number; 0 for a peek.
        epoch: Epoch,
        /// What carries it.
        carrier: Carrier,
    },
    /// Not connected; tries again by itself.
    Waiting {
        /// In so long, counted from when the state was entered.
        retry_in: Millis,
        /// For people.
        why: String,
    },
    /// Another socket of this device took over. `Client::reconnect` takes it back.
    Superseded,
    /// Ended for good; only a new client helps, and often only new settings.
    Failed(ClientError),
    /// `Client::close` was called, the last handle was dropped, or a peek has seen everything.
    Closed,
}

impl State {
    /// Whether no other state will follow.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Failed(_) | Self::Closed => true,
            Self::Connecting { .. } | Self::Connected { .. } | Self::Waiting { .. } | Self::Superseded => {
                false
            }
        }
    }
}
