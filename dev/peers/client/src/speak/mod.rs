//! The three languages, as little of each as the load needs. **Invariant:** a message that is taken was whole; an error of the
//! server ends the measurement.

mod chappe;
mod mqtt;
mod nats;

use bytes::{Bytes, BytesMut};
use clap::ValueEnum;
use std::ops::Range;
use std::sync::Arc;

pub use nats::Nats;

/// Whom we talk to, and which service of it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Server {
    /// MQTT 3.1.1, QoS 0.
    Mqtt0,
    /// MQTT 3.1.1, QoS 1.
    Mqtt1,
    /// NATS core.
    Nats,
    /// NATS JetStream, one durable push consumer with explicit acks for each receiver.
    Jetstream,
    Chappe,
}

/// What a server told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The session stands.
    Ready,
    /// A message of ours was acknowledged.
    Accepted,
    /// A message came.
    Delivered,
    /// Nothing that counts.
    Nothing,
}

/// What a session listens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hears {
    Nothing,
    /// What is sent to its own number.
    Own,
    /// What is sent to everybody. With Chappe that is its own mailbox, too.
    All,
}

/// A session of the load.
#[derive(Debug, Clone)]
pub struct Who {
    pub number: usize,
    pub hears: Hears,
    /// Whom it sends to: one number, or everybody.
    pub sends_to: Range<usize>,
}

/// One end of a connection, without the socket.
pub trait Speaker: Send {
    /// What is sent first.
    fn open(&mut self, out: &mut Vec<u8>);

    /// Takes one message off the input and answers it, if it is whole.
    fn take(&mut self, input: &mut BytesMut, out: &mut Vec<u8>) -> Option<Event>;

    /// Whether the server's limits allow a message more.
    fn may_publish(&self) -> bool {
        true
    }

    /// Sends one message.
    fn publish(&mut self, payload: &Bytes, out: &mut Vec<u8>);

    /// Whether messages wait for an acknowledgement that may cover several.
    fn owes(&self) -> bool {
        false
    }

    /// That acknowledgement.
    fn settle(&mut self, _out: &mut Vec<u8>) {}
}

impl Server {
    pub fn speaker(self, who: Who, tokens: &[Arc<str>]) -> Box<dyn Speaker> {
        match self {
            Self::Mqtt0 => Box::new(mqtt::Mqtt::new(who, 0)),
            Self::Mqtt1 => Box::new(mqtt::Mqtt::new(who, 1)),
            Self::Nats => Box::new(Nats::core(&who)),
            Self::Jetstream => Box::new(Nats::jetstream(&who)),
            Self::Chappe => {
                let token = Arc::clone(&tokens[who.number]);
                Box::new(chappe::Chappe::new(who, token))
            }
        }
    }
}
