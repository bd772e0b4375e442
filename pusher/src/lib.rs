//! Wakes devices that sleep, through their push providers. **Invariant:** a wake says nothing but "sync".

pub mod provider;
