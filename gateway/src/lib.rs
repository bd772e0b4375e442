//! Holds the connections of Chappe. **Invariant:** a transport carries frames and knows nothing of what they mean.

pub mod transport;
