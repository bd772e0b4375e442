//! The Rust SDK of Chappe, the delivery network under a secure messaging app.
//! **Invariant:** an accepted submit is durable; an envelope reaches the application once, in order, until acked.
//!
//! ```no_run
//! use chappe_client::{Client, Event, Outgoing};
//!
//! # async fn example(token: String) -> Result<(), chappe_client::ClientError> {
//! let client = Client::builder("wss://chat.example").device("phone").token(token).connect().await?;
//! let receipt = client.submit(Outgoing::new("already encrypted").to("ben")).await?;
//! assert!(receipt.all_accepted());
//! while let Some(event) = client.next_event().await {
//!     if let Event::Envelope(envelope) = event {
//!         // Store it first: after the ack the server forgets it.
//!         envelope.ack();
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **Carriers.** The address names them: `chappe://host[:port]` takes QUIC or WebSocket, whichever is there first, and goes
//! over to WebSocket within 10 seconds where a network begins to swallow UDP; `wss://`, `chappe+quic://` and
//! `chappe+webtransport://` take one only. [`State::Connected`] tells which is used. A session over QUIC outlives a change of the
//! device's address; say [`Client::network_changed`] when the system reports one.
//! **Sending.** [`Client::submit`] resolves when every target is decided; the SDK retries the same submit over lost
//! connections for at most 24 hours. Submits to one recipient arrive in the order of the calls.
//! **Receiving.** Take events, store what they bring, ack. What is dropped without an ack comes again after the next
//! connect. While the application is slow the server waits; nothing is lost.
//! **State directory.** With [`Builder::state_dir`] undecided submits, the cursor and the ids of the last 4,096 acked
//! envelopes survive the process. Its files hold payloads as they were submitted: encrypt them before.
//! **Waking.** [`Client::set_push`] tells the server where a push provider reaches this device while it sleeps, and when it shall
//! not. A wake says nothing but "there is something". On a live connection it needs nothing: what it stands for comes by itself. A
//! sleeping application connects, takes the events up to [`Event::BacklogEnd`], acks them and closes.
//! **States.** [`Client::states`] tells what goes on; [`State::Superseded`] and [`State::Failed`] need the application.

mod builder;
mod carrier;
mod client;
mod connection;
mod connector;
mod dial;
mod disk;
mod driver;
mod endpoint;
mod error;
mod establish;
mod event;
mod frames;
mod inbox;
mod journal;
mod link;
mod outbox;
mod outgoing;
pub mod parts;
mod push;
mod reconnect;
mod socket;
mod state;
#[cfg(test)]
mod testing;
mod token;
mod udp;
mod world;

pub use builder::{Builder, Tuning};
pub use carrier::Carrier;
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
pub use chappe_protocol::push::{
    ApnsKind, AppName, PushAddress, PushSettings, PushTarget, Quiet, QuietHours,
};
pub use chappe_protocol::time::{Millis, UnixMillis};
pub use chappe_protocol::world::World;
