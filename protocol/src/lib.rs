//! The pure core of Chappe: its words, its wire, its session state machine.
//! **Invariant:** no runtime, no sockets, no clock, no environment; `no_std` lets the compiler prove it.
#![no_std]

extern crate alloc;

pub mod close;
pub mod delimited;
pub mod envelope;
pub mod frame;
pub mod id;
pub mod internode;
pub mod push;
pub mod receiver;
pub mod session;
#[cfg(feature = "testing")]
pub mod testing;
pub mod time;
pub mod world;

mod wire;
