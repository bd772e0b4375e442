//! Wakes devices that sleep, through their push providers. **Invariant:** a wake says nothing but "sync".

pub mod answers;
pub mod apns;
pub mod breaker;
pub mod config;
pub mod fcm;
mod gate;
pub mod log;
pub mod provider;
pub mod schedule;
pub mod transport;
pub mod webpush;
