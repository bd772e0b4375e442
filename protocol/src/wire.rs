//! The generated types of the schemas in `proto/`, private to this crate: others know [`crate::frame`] and [`crate::internode`].
//! **Invariant:** the files in `src/wire/` are what `cargo run -p chappe-protocol --example regenerate` writes; a test compares.
#![allow(missing_docs, unreachable_pub, clippy::pedantic, reason = "generated code")]

include!("wire/chappe.v1.rs");

/// Between nodes.
pub mod internode {
    include!("wire/chappe.internode.v1.rs");
}
