//! Wakes devices that sleep, through their push providers. **Invariant:** a wake says nothing but "sync".

pub mod answers;
pub mod apns;
pub mod breaker;
mod gate;
pub mod provider;
pub mod transport;
