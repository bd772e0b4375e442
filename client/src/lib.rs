//! The Rust SDK of Chappe, the delivery network under a secure messaging app.
//! **Invariant:** an accepted submit is durable; an envelope reaches the application once, in order, until acked.

mod builder;
mod carrier;
mod client;
mod connection;
mod connector;
mod disk;
mod driver;
mod endpoint;
mod error;
mod establish;
mod event;
mod inbox;
mod journal;
mod link;
mod outbox;
mod outgoing;
mod reconnect;
mod socket;
mod state;
#[cfg(test)]
mod testing;
mod token;
mod world;

pub use builder::{Builder, Tuning};
pub use client::{Client, Pending};
pub use connector::{Connector, Io, TcpConnector};
pub use error::ClientError;
pub use event::{Envelope, Event};
pub use outgoing::{Outgoing, Receipt, TargetReceipt};
pub use state::State;
pub use token::{TokenError, TokenReason, TokenSource};
pub use world::SystemWorld;

pub use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
pub use chappe_protocol::frame::{Limits, Role, TruncatedReason};
pub use chappe_protocol::id::{DeviceId, EnvelopeId, Epoch, Seq, SubmitId, UserId};
pub use chappe_protocol::internode::Outcome;
pub use chappe_protocol::time::{Millis, UnixMillis};
pub use chappe_protocol::world::World;
