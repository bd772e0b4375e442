//! The frame of every server process: settings, logs, signals, runtime, exit code.
//! **Invariant:** bad settings end it with exit code 64 before anything is opened.

use crate::config::{ConfigError, EXIT_BAD_CONFIG, environment, load_with};
use crate::signal::Signals;
use crate::telemetry::LogConfig;
use anyhow::{Context, Result};
use clap::Args;
use serde::{Serialize, de::DeserializeOwned};
use std::path::PathBuf;
use std::process::ExitCode;

/// What every server process can be told on its command line.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Settings file (TOML); else CHAPPE_CONFIG
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, such as listen=127.0.0.1:7443 or tls.off=true; repeatable. Secrets are never arguments: name their files
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print every setting with its value, as a file to start from, and end
    #[arg(long)]
    print_config: bool,
}

/// Settings of a process.
pub trait Settings: Serialize + DeserializeOwned + Default {
    /// Refuses what cannot work or must not be.
    fn check(&self) -> Result<(), ConfigError>;

    /// How it logs.
    fn log(&self) -> &LogConfig;
}

/// Loads the settings and runs the process to its end. `run` says whether its drain ended in time.
pub fn main<C, F>(name: &str, args: &ProcessArgs, run: impl FnOnce(C, Signals) -> F) -> ExitCode
where
    C: Settings,
    F: Future<Output = Result<bool>>,
{
    let bad = |message: String| {
        eprintln!("{name}: {message}");
        ExitCode::from(u8::try_from(EXIT_BAD_CONFIG).unwrap_or(1))
    };
    let settings: C = match load_with(args.config.as_deref(), &environment(), &args.set) {
        Ok(settings) => settings,
        Err(error) => return bad(error.to_string()),
    };
    if args.print_config {
        return match toml::to_string_pretty(&settings) {
            Ok(text) => {
                println!("# Every setting of `{name}`.\n{text}");
                ExitCode::SUCCESS
            }
            Err(error) => bad(error.to_string()),
        };
    }
    let checked = settings.check().map_err(|error| error.to_string());
    if let Err(message) = checked.and_then(|()| crate::telemetry::init(settings.log())) {
        return bad(message);
    }
    crate::tls::install_crypto_provider();
    let ended = serve(|signals| run(settings, signals));
    match ended {
        Ok(in_time) => {
            tracing::info!(in_time, "ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            // The whole chain on one line: what failed, why, what to do.
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve<F: Future<Output = Result<bool>>>(run: impl FnOnce(Signals) -> F) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.context("cannot start the runtime")?.block_on(async {
        let signals = crate::signal::install().context("cannot listen for signals")?;
        run(signals).await
    })
}
