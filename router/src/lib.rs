//! Takes submits to the slot log and rings the gateways.
//! **Invariant:** *accepted* is answered only for what the store has answered as committed or duplicate: durable before visible.

pub mod links;
pub mod presence;
