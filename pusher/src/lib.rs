//! Wakes devices that sleep, through their push providers. **Invariant:** a wake says nothing but "sync".

pub mod answers;
pub mod apns;
pub mod breaker;
mod clock;
pub mod config;
pub mod fcm;
mod gate;
pub mod log;
pub mod look;
mod looks;
pub mod metrics;
pub mod operations;
pub mod outbox;
pub mod process;
pub mod provider;
pub mod schedule;
pub mod settings;
pub mod shards;
pub mod transport;
pub mod waker;
pub mod webpush;

pub use clock::StoreClock;
