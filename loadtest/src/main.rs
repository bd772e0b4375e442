//! The binary `loadtest`. **Invariant:** the exit code is the verdict.

use chappe_loadtest::cli::{Cli, EXIT_USAGE};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(told) => {
            // Nobody to tell if the terminal is gone.
            let _ = told.print();
            // Help and version are told as errors too; they go to standard output. clap's own 2 would be a verdict here.
            return if told.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadtest: {error:#}");
            // Not 1: no promise was seen broken, the run just did not come about.
            ExitCode::from(2)
        }
    }
}
