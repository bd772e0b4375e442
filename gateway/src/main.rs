//! The binary `gateway`. **Invariant:** a bad command line or configuration ends it before a port is bound.

use chappe_node::process::{ProcessArgs, main as process};
use clap::Parser;
use std::process::ExitCode;

/// Holds the connections of devices: delivers from the slot log, takes submits to the routers over NATS.
#[derive(Debug, Parser)]
#[command(
    name = "gateway",
    version,
    after_help = "\
Settings come from defaults, then the file, then the environment (CHAPPE_LISTEN, CHAPPE_NATS__URLS, …), then --set.

Examples:
  gateway --print-config > gateway.toml
  gateway --config gateway.toml
  gateway --set listen=127.0.0.1:7440 --set tls.off=true --set token.key=issuer.pem"
)]
struct Cli {
    #[command(flatten)]
    process: ProcessArgs,
}

fn main() -> ExitCode {
    process("gateway", &Cli::parse().process, chappe_gateway::process::run)
}
