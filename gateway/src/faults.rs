//! Planted defects: a simulation that does not find them is no simulation. **Invariant:** only with feature `testing`.

/// A defect that a gateway can be told to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A doorbell's slot is taken for targeting whoever hears it (breaks I6).
    DeliverToWrongDevice,
    /// No probe is ever sent (a lost doorbell is never made good).
    SkipProbe,
    /// News of a newer session are dropped (breaks I6: two sockets are served).
    IgnoreSupersede,
    /// A slot is acked in the device's name as soon as it was queued (breaks I3).
    AckOnSend,
}
