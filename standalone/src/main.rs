//! The binary `chappe`. **Invariant:** a bad command line or configuration ends it before a port is bound.

use clap::Parser;
use std::process::ExitCode;

/// The system's allocator on Linux keeps an arena per thread; payloads and pages that pass from thread to thread leave each
/// of them full of holes. This one has two, and gives freed pages back within a second (`.cargo/config.toml`).
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
