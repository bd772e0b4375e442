//! All roles of Chappe in one process: the product for a newcomer, the cluster for a test.
//! **Invariant:** nothing here decides what is delivered; it only puts the roles together.

pub mod chat;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connect;
pub mod development;
pub mod doctor;
pub mod pipe;
pub mod push;
pub mod pushing;
pub mod schema;
pub mod serve;
pub mod status;
pub mod store_metrics;
pub mod token;
pub mod trace;
