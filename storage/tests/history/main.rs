//! Seeded histories: several routers over one failing database, senders that try again, devices that read, trims, crashes,
//! time; checked against what every party was told. I1 (accepted is in the log), I2 (dense), I4, I7, I14, sender order; no two
//! readers see different slots; what was trimmed is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod memory;
mod quorum;
mod run;
