//! The binary `router`. **Invariant:** a bad command line or configuration ends it before a port is bound.

use chappe_node::process::{ProcessArgs, main as process};
use clap::Parser;
use std::process::ExitCode;

/// Takes submits from gateways over NATS to the slot log, and rings the gateways.
#[derive(Debug, Parser)]
#[command(
    name = "router",
    version,
    after_help = "\
Settings come from defaults, then the file, then the environment (CHAPPE_ADMIN, CHAPPE_NATS__URLS, …), then --set.

Examples:
  router --print-config > router.toml
  router --config router.toml
  router --set nats.urls=nats://127.0.0.1:4222 --set cql.url=cql://127.0.0.1:9042/chappe"
)]
struct Cli {
    #[command(flatten)]
    process: ProcessArgs,
}

fn main() -> ExitCode {
    process("router", &Cli::parse().process, chappe_router::process::run)
}
