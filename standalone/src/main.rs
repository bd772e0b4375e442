//! The binary `chappe`. **Invariant:** a bad command line or configuration ends it before a port is bound.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match chappe_standalone::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // The whole chain on one line: what failed, why, what to do.
            eprintln!("chappe: {error:#}");
            ExitCode::FAILURE
        }
    }
}
