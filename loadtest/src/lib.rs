//! The load harness of Chappe. **Invariant:** a run says *passed* only if it saw every accepted envelope arrive, once,
//! in order, where it was addressed to, and if it really put load on a server that was really hurt.

pub mod agents;
pub mod audit;
pub mod balancer;
pub mod carriers;
pub mod cli;
pub mod cost;
pub mod faults;
mod lean;
pub mod measure;
pub mod payload;
pub mod proxy;
pub mod pulse;
pub mod report;
pub mod run;
pub mod scenario;
pub mod scrape;
pub mod server;
pub mod thresholds;
pub mod tokens;
pub mod wake;
pub mod watch;
