//! What every Chappe process does at its door: clock, configuration, signals, drain, admin port, telemetry, TLS.
//! **Invariant:** nothing here knows what an envelope is.

pub mod admin;
pub mod alarms;
pub mod clock;
pub mod config;
pub mod console;
pub mod drain;
pub mod fetch;
pub mod listen;
pub mod metrics;
pub mod process;
pub mod signal;
pub mod spans;
pub mod telemetry;
pub mod tls;
pub mod vitals;
