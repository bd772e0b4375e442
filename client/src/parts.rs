//! The rules of a client without its sockets, for programs that hold very many sessions. No stability is promised: whoever uses
//! them moves with them. **Invariant:** the same code decides here and in [`crate::Client`].
//!
//! [`Outbox`] says what is submitted next, [`Link`] when one connection pings, acks, renews its token and ends, [`Reconnect`]
//! what follows an [`End`], and `chappe_protocol::receiver::Receiver` what is new and what is acked.

pub use crate::endpoint::{Endpoint, Security};
pub use crate::frames::{Greeted, decoded, greeted, on_error};
pub use crate::link::{Link, Roam, Urgent, sane};
pub use crate::outbox::Outbox;
pub use crate::reconnect::{End, Reconnect, Verdict};
pub use crate::socket::{Upgraded, open};
pub use crate::token::expiry;
