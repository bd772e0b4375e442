//! The binary `loadtest`. **Invariant:** the exit code is the verdict.

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match chappe_loadtest::cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            // Not 1: no promise was seen broken, the run just did not come about.
            ExitCode::from(2)
        }
    }
}
