//! The generated types of `proto/chappe/v1/chappe.proto`, private to this crate: others know the frames of [`crate::frame`].
//! **Invariant:** `src/wire/chappe.v1.rs` is what `cargo run -p chappe-protocol --example regenerate` writes; a test compares.
#![allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated code")]

include!("wire/chappe.v1.rs");
