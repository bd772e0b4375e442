//! The command line of the harness. **Invariant:** it aims at an address that was named, or at a server that it started.

mod proxy;
mod waking;

use crate::carriers::Choice;
use crate::checker::Verdict;
use crate::faults::{Parts, schedule};
use crate::run::{self, Plan};
use crate::scenario::Chat;
use crate::server::Spawned;
use crate::tokens::Issuer;
use crate::wake::{self, Provider, Wake};
use anyhow::{Context, Result};
use chappe_node::clock::SystemWorld;
use chappe_protocol::world::World;
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Puts load on Chappe and proves that nothing accepted is lost; makes the path there bad.
#[derive(Debug, Parser)]
#[command(
    name = "loadtest",
    version,
    after_help = "\
Exit codes: 0 passed, 1 a promise was broken (the entries are listed), 2 the run proves nothing, 64 wrong use.

Examples:
  loadtest run --scenario chat --users 1000 --rate 2000 --duration 30s
  loadtest run --kills 5 --duration 30s -- chappe serve --data /tmp/chappe-test
  loadtest run --scenario wake --users 2000 --rate 100 --duration 60s --kills 2 -- chappe serve --data /tmp/chappe-test
  loadtest run --server wss://staging.example --token-key issuer.pem --json report.json
  loadtest proxy --listen 127.0.0.1:7450 --target 127.0.0.1:7440 --latency 50ms --jitter 20ms --loss 2%"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a scenario and audit it
    Run(Box<RunArgs>),
    /// Pass TCP and UDP on to a server over a bad path: late, lossy, narrow, dead, re-bound
    Proxy(Box<proxy::ProxyArgs>),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scenario {
    /// People write to each other, lose their connections, come back
    Chat,
    /// Devices sleep, are woken through a provider, and come back
    Wake,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// What to run
    #[arg(long, value_enum, default_value = "chat")]
    scenario: Scenario,
    /// Users, one device each; in wake: devices that sleep
    #[arg(long, default_value_t = 100)]
    users: u32,
    /// Submits per second over all users
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How long, such as 30s or 5m
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Bytes of a payload
    #[arg(long, default_value_t = 256)]
    payload: usize,
    /// Of 100 submits, how many go to 5 people at once
    #[arg(long, default_value_t = 5)]
    fan_out_percent: u8,
    /// Of 100 users, how many lose their connection per second
    #[arg(long, default_value_t = 1.0)]
    disconnects_percent: f64,
    /// Decides who writes to whom and who is disconnected
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Names of the users begin with this
    #[arg(long, default_value = "load-")]
    prefix: String,
    /// The server (wss://, chappe://, chappe+quic://, chappe+webtransport:// with a port), or several gateways with commas
    /// between them: each new connection goes to the next one
    #[arg(long, default_value = "wss://127.0.0.1:7440", value_delimiter = ',')]
    server: Vec<String>,
    /// What users connect with, whatever the scheme of --server says
    #[arg(long, value_enum)]
    carrier: Option<Choice>,
    /// Break a cluster that `dev/cluster up` started with these parts: kill and pause by a schedule from the seed
    #[arg(long, value_name = "PARTS", conflicts_with = "kills")]
    faults: Option<Parts>,
    /// Where the scripts `cluster` and `deps` are
    #[arg(long, value_name = "FOLDER", default_value = "dev")]
    scripts: PathBuf,
    /// The server's data directory: its development certificate is trusted, its development key signs
    #[arg(long, default_value = "chappe-data")]
    data: PathBuf,
    /// Trust these roots (PEM) instead
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Sign tokens with this key instead: Ed25519 (PEM), or a secret for HS256
    #[arg(long, value_name = "FILE")]
    token_key: Option<PathBuf>,
    /// Kill the server so often with SIGKILL; needs the server's command behind --
    #[arg(long, default_value_t = 0, requires = "command")]
    kills: u32,
    /// Wait so long for the last deliveries
    #[arg(long, default_value = "60s", value_parser = duration)]
    settle: Duration,
    /// Write the report here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    wake: waking::WakeArgs,
    /// Start this server first, and end it afterwards
    #[arg(last = true, value_name = "SERVER COMMAND")]
    command: Vec<String>,
}

/// Exit code for wrong use (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

impl Cli {
    /// Does what was asked; the exit code is the process's.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Run(args) => args.run(),
            Command::Proxy(args) => args.run(),
        }
    }
}

impl RunArgs {
    fn run(self) -> Result<ExitCode> {
        let checked = match self.scenario {
            Scenario::Chat => self.chat().check(),
            Scenario::Wake => self.waking().check(),
        };
        if let Err(message) = checked {
            eprintln!("loadtest: {message}");
            return Ok(ExitCode::from(EXIT_USAGE));
        }
        chappe_node::tls::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let json = self.json.clone();
        let (verdict, text, document) = runtime.block_on(self.execute())?;
        print!("{text}");
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(&document)?;
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(ExitCode::from(verdict.exit_code()))
    }

    fn chat(&self) -> Chat {
        Chat {
            users: self.users,
            rate: self.rate,
            duration: self.duration,
            payload_bytes: self.payload,
            fan_out_percent: self.fan_out_percent,
            disconnects_percent: self.disconnects_percent,
            seed: self.seed,
            ..Chat::default()
        }
    }

    fn waking(&self) -> Wake {
        self.wake.wake(self.users, self.rate, self.duration, self.payload, self.seed)
    }

    /// The verdict, for people, and for programs.
    async fn execute(self) -> Result<(Verdict, String, serde_json::Value)> {
        let bar = progress_bar();
        let told = match self.scenario {
            Scenario::Chat => {
                let (chat, command) = (self.chat(), self.command.clone());
                let report = run::run(self.plan(chat, &command, &bar).await?).await?;
                (report.verdict, report.text(), serde_json::to_value(&report)?)
            }
            Scenario::Wake => {
                let wake = self.waking();
                let provider = Provider::start(&wake, &SystemWorld::new()).await?;
                let command = waking::with_settings(&self.command, &wake.provider_settings)?;
                let report = wake::run(self.plan(wake, &command, &bar).await?, provider).await?;
                (report.verdict, report.text(), serde_json::to_value(&report)?)
            }
        };
        bar.finish_and_clear();
        Ok(told)
    }

    /// With the server started, if it is ours to start.
    async fn plan<S>(self, scenario: S, command: &[String], bar: &ProgressBar) -> Result<Plan<S>> {
        let world: Arc<dyn World> = Arc::new(SystemWorld::new());
        let spawned = if self.command.is_empty() {
            None
        } else {
            Some(Spawned::start(command.to_vec(), address(&self.server)?).await?)
        };
        let development = self.data.join("development");
        let key = self.token_key.clone().unwrap_or_else(|| development.join("token-private.pem"));
        let issuer = Issuer::read(&key, Arc::clone(&world))?;
        let ca = match &self.ca {
            Some(path) => {
                Some(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?)
            }
            None => std::fs::read(development.join("certificate.pem")).ok(),
        };
        let shown = bar.clone();
        let progress = Arc::new(move |line: &str, share: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 1000")]
            shown.set_position((share.clamp(0.0, 1.0) * 1000.0) as u64);
            shown.set_message(line.to_owned());
        });
        let faults = self.faults.map(|parts| schedule(self.seed, self.duration, parts)).unwrap_or_default();
        Ok(Plan {
            scenario,
            servers: self.server,
            carrier: self.carrier,
            faults,
            scripts: self.scripts,
            roots_pem: ca,
            issuer,
            prefix: self.prefix,
            spawned,
            kills: self.kills,
            settle: self.settle,
            world,
            progress,
        })
    }
}

/// On a terminal only.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3} % {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar
}

/// The socket address in a server's URL: a spawned server is always on this machine, under a number.
fn address(urls: &[String]) -> Result<SocketAddr> {
    let [url] = urls else { anyhow::bail!("with a server command, name one --server") };
    let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    authority.parse().with_context(|| {
        format!("--server {url}: with a server command, name its address and port in numbers")
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("\"{text}\" is no duration; try 30s or 5m"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err(format!("\"{unit}\" is no unit of time; there are ms, s, m and h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_addresses_are_read() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert!(duration("soon").is_err() && duration("5y").is_err());
        assert_eq!(address(&["wss://127.0.0.1:7440/v1".into()]).unwrap().port(), 7440);
        assert!(address(&["wss://staging.example".into()]).is_err());
    }

    #[test]
    fn kills_need_a_server_of_our_own() {
        assert!(Cli::try_parse_from(["loadtest", "run", "--kills", "1"]).is_err());
        assert!(Cli::try_parse_from(["loadtest", "run", "--kills", "1", "--", "chappe", "serve"]).is_ok());
    }
}
