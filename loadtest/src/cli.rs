//! The command line of the harness. **Invariant:** it aims at an address that was named, or at a server that it started.

mod agent;
mod proxy;
mod run;
mod scenarios;

use crate::scenario::duration;
use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Puts load on Chappe and proves that nothing accepted is lost; makes the path there bad.
#[derive(Debug, Parser)]
#[command(
    name = "loadtest",
    version,
    after_help = "\
Exit codes: 0 passed, 1 a promise was broken (the entries are listed), 2 the run proves nothing, 3 a threshold did not hold,
64 wrong use.

Examples:
  loadtest scenarios
  loadtest run chat --users 1000 --rate 2000 --duration 30s -- chappe serve --data /tmp/chappe-test
  loadtest run storm --html storm.html -- chappe serve --data /tmp/chappe-test
  loadtest run idle --users 60000 --processes 4 --server wss://127.0.0.1:7440
  loadtest run ours.toml --server wss://staging.example:443 --token-key issuer.pem --json new.json --compare old.json
  loadtest proxy --listen 127.0.0.1:7450 --target 127.0.0.1:7440 --latency 50ms --jitter 20ms --loss 2%"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario and audit it
    Run(Box<run::RunArgs>),
    /// The scenarios that are ready, and what a threshold can be about
    Scenarios(scenarios::ScenariosArgs),
    /// Two reports of the same scenario: ratios with their confidence
    Compare(scenarios::CompareArgs),
    /// Put on the load that a run elsewhere asks for
    Agent(agent::AgentArgs),
    /// A process of a run with --processes
    #[command(hide = true)]
    Worker,
    /// Pass TCP and UDP on to a server over a bad path: late, lossy, narrow, dead, re-bound
    Proxy(Box<proxy::ProxyArgs>),
}

/// Exit code for wrong use (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

impl Cli {
    /// Does what was asked; the exit code is the process's.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Run(args) => args.run(),
            Command::Scenarios(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Agent(args) => args.run(),
            Command::Worker => agent::worker(),
            Command::Proxy(args) => args.run(),
        }
    }
}

/// What was asked for makes no sense; says why.
fn wrong_use(message: &str) -> ExitCode {
    eprintln!("loadtest: {message}");
    ExitCode::from(EXIT_USAGE)
}
