//! The binary `pusher`. **Invariant:** a bad command line or configuration ends it before a port is bound.

use chappe_node::process::{ProcessArgs, main as process};
use clap::Parser;
use std::process::ExitCode;

/// Wakes devices that sleep through APNs, FCM and Web Push: takes the routers' hints, and sweeps the store for whom no hint told of.
#[derive(Debug, Parser)]
#[command(
    name = "pusher",
    version,
    after_help = "\
Settings come from defaults, then the file, then the environment (CHAPPE_ADMIN, CHAPPE_NATS__URLS, …), then --set.
Key files of providers are read anew on SIGHUP and when they change.

Examples:
  pusher --print-config > pusher.toml
  pusher --config pusher.toml
  pusher --set push.key=push.key --set providers.log=*"
)]
struct Cli {
    #[command(flatten)]
    process: ProcessArgs,
}

fn main() -> ExitCode {
    process("pusher", &Cli::parse().process, chappe_pusher::process::run)
}
