//! `loadtest run`: from the command line to a report. **Invariant:** what the command line says comes before what the scenario
//! says.

use super::scenarios::read;
use super::{duration, wrong_use};
use crate::agents::Workers;
use crate::carriers::Choice;
use crate::cost::{Cost, Machine, Spread};
use crate::faults::{Parts, schedule};
use crate::pulse::Board;
use crate::report::{Report, compare, page};
use crate::run::{self, Plan, Target};
use crate::scenario::{Happening, Scenario, USERS_MAX};
use crate::scrape::Scrape;
use crate::server::Spawned;
use crate::tokens::Issuer;
use crate::wake::{self, Provider, Wake};
use crate::watch::Watch;
use anyhow::{Context, Result, ensure};
use chappe_node::admin;
use chappe_node::clock::SystemWorld;
use chappe_node::listen::bind;
use chappe_protocol::world::World;
use clap::Args;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// What to run: one of `loadtest scenarios`, or a file of your own that ends in .toml
    #[arg(default_value = "chat")]
    scenario: String,
    /// Users, one device each; in wake: devices that sleep
    #[arg(long)]
    users: Option<u32>,
    /// Submits per second over all users
    #[arg(long)]
    rate: Option<u32>,
    /// How long, such as 30s or 5m
    #[arg(long, value_parser = duration)]
    duration: Option<Duration>,
    /// Decides who writes to whom, who is disconnected and what is broken
    #[arg(long)]
    seed: Option<u64>,
    /// What users connect with, whatever the scheme of --server says
    #[arg(long, value_enum)]
    carrier: Option<Choice>,
    /// Let the SDK drive the users of WebSocket, too: some 20 times the memory of a session and twice the CPU time of an envelope
    #[arg(long)]
    sdk: bool,
    /// Kill the server so often with SIGKILL; needs the server's command behind --
    #[arg(long, requires = "command")]
    kills: Option<u32>,
    /// Break a cluster that `dev/cluster up` started with these parts: kill and pause by a schedule from the seed
    #[arg(long, value_name = "PARTS", conflicts_with = "kills")]
    faults: Option<Parts>,
    /// Any other line of the scenario, as in its file: traffic.fan-out=20, path.latency="50ms"; as often as wanted
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Besides those of the scenario: lost==0, deliver.p99<250ms; as often as wanted
    #[arg(long, value_name = "FIGURE<VALUE")]
    threshold: Vec<String>,
    /// Names of the users begin with this
    #[arg(long, default_value = "load-")]
    prefix: String,
    /// The server (wss://, chappe://, chappe+quic://, chappe+webtransport:// with a port), or several gateways with commas
    /// between them: each new connection goes to the next one. Needed, unless the server's command stands behind --; then it
    /// is wss://127.0.0.1:7440
    #[arg(long, value_delimiter = ',', required_unless_present = "command")]
    server: Vec<String>,
    /// Where the scripts `cluster` and `deps` are; dev, if --faults is given
    #[arg(long, value_name = "FOLDER")]
    scripts: Option<PathBuf>,
    /// The server's data directory: its development certificate is trusted, its development key signs
    #[arg(long, default_value = "chappe-data")]
    data: PathBuf,
    /// Trust these roots (PEM) instead
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Sign tokens with this key instead: Ed25519 (PEM), or a secret for HS256
    #[arg(long, value_name = "FILE")]
    token_key: Option<PathBuf>,
    /// Put the load on with so many processes of this machine; each holds at most 19,000 sessions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    processes: u32,
    /// Put the load on with `loadtest agent` at these addresses instead, with commas between them
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        requires = "secret",
        conflicts_with = "processes"
    )]
    agents: Vec<String>,
    /// What the agents and this run have in common: a file of at least 32 bytes
    #[arg(long, value_name = "FILE", requires = "agents")]
    secret: Option<PathBuf>,
    /// A process of the server on this machine, whose memory and CPU time are measured; as often as wanted
    #[arg(long, value_name = "NUMBER")]
    pid: Vec<u32>,
    /// An admin port of the server: its metrics go into the report; as often as wanted
    #[arg(long, value_name = "ADDRESS:PORT")]
    scrape: Vec<SocketAddr>,
    /// Wait so long for the last deliveries
    #[arg(long, default_value = "60s", value_parser = duration)]
    settle: Duration,
    /// Serve /metrics for Prometheus here while it runs
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics_listen: Option<SocketAddr>,
    /// Say what it would take of this machine, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Write the report here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report here as a page that opens offline
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Compare with the report of an earlier run (--json)
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Of wake: where the provider (a strict fake of APNs) listens; pushers must reach it
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    provider_listen: SocketAddr,
    /// Of wake: write the settings of the pushers here; start them with it. A server behind -- gets it by itself
    #[arg(long, value_name = "FILE", default_value = "chappe-loadtest/push.toml")]
    provider_settings: PathBuf,
    /// Start this server first, and end it afterwards
    #[arg(last = true, value_name = "SERVER COMMAND")]
    command: Vec<String>,
}

impl RunArgs {
    pub(super) fn run(self) -> Result<ExitCode> {
        let scenario = match self.scenario() {
            Ok(scenario) => scenario,
            Err(message) => return Ok(wrong_use(&message)),
        };
        let lean = self.server.iter().all(|url| url.starts_with("ws://") || url.starts_with("wss://"));
        let asked = Scenario { sdk: scenario.sdk || !lean, ..scenario.clone() };
        let cost = Cost::of(&asked, self.spread(), Machine::this());
        if self.dry_run {
            print!("{}", cost.text());
        }
        if !cost.refusals.is_empty() {
            return Ok(wrong_use(&format!("this machine cannot carry that: {}", cost.refusals.join("; "))));
        }
        if self.dry_run {
            return Ok(ExitCode::SUCCESS);
        }
        let before = self.compare.as_deref().map(read).transpose()?;
        chappe_node::tls::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (json, html) = (self.json.clone(), self.html.clone());
        let report = runtime.block_on(self.execute(scenario))?;
        print!("{}", report.text());
        let compared = match before.map(|before| compare::compare(&report, &before)) {
            None => Vec::new(),
            Some(Ok(ratios)) => {
                print!("{}", compare::text(&ratios));
                ratios
            }
            Some(Err(why)) => {
                println!("not compared: {why}");
                Vec::new()
            }
        };
        if let Some(path) = json {
            write(&path, &serde_json::to_string_pretty(&report)?)?;
        }
        if let Some(path) = html {
            write(&path, &page(&report, &compared))?;
        }
        Ok(ExitCode::from(report.exit_code()))
    }

    /// What is run: the file, and what was said here.
    fn scenario(&self) -> Result<Scenario, String> {
        let mut scenario = Scenario::find(&self.scenario)?;
        for line in &self.set {
            scenario = scenario.with(line)?;
        }
        scenario.users = self.users.unwrap_or(scenario.users);
        scenario.rate = self.rate.unwrap_or(scenario.rate);
        scenario.duration = self.duration.unwrap_or(scenario.duration);
        scenario.seed = self.seed.unwrap_or(scenario.seed);
        scenario.kills = self.kills.unwrap_or(scenario.kills);
        scenario.carrier = self.carrier.or(scenario.carrier);
        scenario.sdk |= self.sdk;
        scenario.faults = self.faults.or(scenario.faults);
        scenario.thresholds.extend(self.threshold.iter().cloned());
        scenario.check()?;
        let workers = if self.agents.is_empty() { self.processes as usize } else { self.agents.len() };
        if scenario.wake.is_some() && workers > 1 {
            return Err("wake: one process puts this load on; leave --processes and --agents out".into());
        }
        if scenario.users as usize > USERS_MAX as usize * workers {
            return Err(format!(
                "users: one process holds at most {USERS_MAX} sessions; take more --processes, or --agents"
            ));
        }
        if (scenario.users as usize) < 2 * workers && scenario.wake.is_none() {
            return Err(format!("users: {workers} workers need 2 users each"));
        }
        if scenario.kills > 0 && self.command.is_empty() {
            return Err("kills: needs the server's command behind --".into());
        }
        let drains = scenario.events.iter().any(|event| event.what == Happening::Drain);
        if drains && self.command.is_empty() && self.scripts().is_none() {
            return Err(format!("drain: {}", run::DRAIN_HINT));
        }
        Ok(scenario)
    }

    fn spread(&self) -> Spread {
        match u32::try_from(self.agents.len()) {
            Ok(0) => {
                let own_address = self.processes > 1 && self.server.iter().all(|url| url.contains("://127."));
                Spread::Processes { count: self.processes, own_address }
            }
            count => Spread::Agents(count.unwrap_or(u32::MAX)),
        }
    }

    fn scripts(&self) -> Option<PathBuf> {
        self.scripts.clone().or_else(|| self.faults.map(|_| PathBuf::from("dev")))
    }

    async fn execute(self, scenario: Scenario) -> Result<Report> {
        let board = Board::new(self.agents.len().max(self.processes as usize))?;
        let stop = CancellationToken::new();
        let listener = match self.metrics_listen {
            Some(address) => {
                let listener = bind(address, "--metrics-listen").await?;
                let admin = board.admin(listener.local_addr()?, &stop)?;
                Some((listener, admin))
            }
            None => None,
        };
        let serving = async {
            if let Some((listener, admin)) = listener {
                admin::serve(listener, admin, stop.clone(), TaskTracker::new()).await;
            }
        };
        let running = async {
            let report = self.watched(scenario, &board).await;
            stop.cancel();
            report
        };
        let (report, ()) = tokio::join!(running, serving);
        board.finish();
        report
    }

    async fn watched(self, scenario: Scenario, board: &Arc<Board>) -> Result<Report> {
        let report = if scenario.wake.is_some() {
            let wake = Wake::new(&scenario, self.provider_listen, self.provider_settings.clone());
            let provider = Provider::start(&wake, &SystemWorld::new()).await?;
            let command = with_settings(&self.command, &self.provider_settings)?;
            wake::run(self.plan(&scenario, wake, &command, board).await?, provider).await?
        } else {
            let command = self.command.clone();
            run::run(self.plan(&scenario, scenario.clone(), &command, board).await?).await?
        };
        Ok(report)
    }

    /// With the server started, if it is ours to start.
    async fn plan<S>(
        self,
        of: &Scenario,
        scenario: S,
        command: &[String],
        board: &Arc<Board>,
    ) -> Result<Plan<S>> {
        let scripts = self.scripts();
        let servers =
            if self.server.is_empty() { vec!["wss://127.0.0.1:7440".to_owned()] } else { self.server };
        let world: Arc<dyn World> = Arc::new(SystemWorld::new());
        let spawned = if command.is_empty() {
            None
        } else {
            Some(Spawned::start(command.to_vec(), address(&servers)?).await?)
        };
        let development = self.data.join("development");
        let key = self.token_key.unwrap_or_else(|| development.join("token-private.pem"));
        let issuer = Issuer::read(&key, Arc::clone(&world))?;
        let made = development.join("certificate.pem");
        let ca = self.ca.or_else(|| made.exists().then_some(made));
        let read =
            |path: &PathBuf| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let roots_pem = ca.as_ref().map(read).transpose()?;
        let workers = match &self.secret {
            Some(secret) => Workers::Agents { addresses: self.agents, secret: read(secret)? },
            None if self.processes > 1 => Workers::Processes { count: self.processes, token_key: key, ca },
            None => Workers::Here,
        };
        Ok(Plan {
            target: Target {
                servers,
                carrier: of.carrier,
                roots_pem,
                issuer,
                prefix: self.prefix,
                first: 0,
                source: None,
            },
            workers,
            kills: of.kills,
            faults: of.faults.map(|parts| schedule(of.seed, of.duration, parts)).unwrap_or_default(),
            scripts,
            watch: Watch::new(self.pid, spawned.as_ref()),
            scrape: Scrape::new(self.scrape),
            spawned,
            settle: self.settle,
            world,
            progress: board.progress(),
            scenario,
        })
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The server's command, such that it asks our provider.
fn with_settings(command: &[String], settings: &Path) -> Result<Vec<String>> {
    if command.is_empty() {
        return Ok(Vec::new());
    }
    let own = command.iter().any(|word| word == "--config" || word.starts_with("--config="));
    ensure!(!own, "the server's command has a --config of its own; it would not hear of the provider");
    let variable = format!("CHAPPE_CONFIG={}", settings.display());
    Ok(["env".to_owned(), variable].into_iter().chain(command.iter().cloned()).collect())
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

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use super::*;
    use clap::Parser;

    fn scenario(words: &str) -> Result<Scenario, String> {
        let cli = Cli::try_parse_from(words.split(' ')).map_err(|error| error.to_string())?;
        let Command::Run(args) = cli.command else { unreachable!() };
        args.scenario()
    }

    #[test]
    fn what_is_said_on_the_command_line_comes_first() {
        let server = "--server wss://127.0.0.1:1";
        let storm = scenario(&format!("loadtest run storm --users 7 {server}")).unwrap();
        assert_eq!((storm.users, storm.rate), (7, 100));
        let set = scenario(&format!(
            "loadtest run chat --set traffic.fan-out=20 --set path.latency=\"50ms\" --threshold p99<1s {server}"
        ))
        .unwrap();
        assert_eq!(set.traffic.fan_out, 20);
        assert_eq!(set.path.unwrap().latency, Duration::from_millis(50));
        assert_eq!(set.thresholds, ["lost==0", "p99<1s"]);
        for (wrong, told) in [
            ("run chat --set traffic.fanout=20", "fanout"),
            ("run chat --set traffic", "KEY=VALUE"),
            ("run nothing", "there is no scenario"),
            ("run chat --users 19001", "19000"),
            ("run drain", "--scripts"),
            ("run chat --kills 1", "SERVER COMMAND"),
        ] {
            let error = scenario(&format!("loadtest {wrong} {server}")).unwrap_err();
            assert!(error.contains(told), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_address_is_named_or_a_server_is_ours() {
        assert!(scenario("loadtest run chat").unwrap_err().contains("--server"));
        scenario("loadtest run chat --kills 1 -- chappe serve").unwrap();
        scenario("loadtest run drain -- chappe serve").unwrap();
        assert_eq!(address(&["wss://127.0.0.1:7440/v1".into()]).unwrap().port(), 7440);
        assert!(address(&["wss://staging.example".into()]).is_err());
    }

    #[test]
    fn a_server_of_ours_hears_of_the_provider() {
        let words = |text: &str| text.split(' ').map(String::from).collect::<Vec<_>>();
        let with = with_settings(&words("chappe serve"), Path::new("p.toml")).unwrap();
        assert_eq!(with, words("env CHAPPE_CONFIG=p.toml chappe serve"));
        assert!(with_settings(&words("chappe serve --config x"), Path::new("p.toml")).is_err());
        assert!(with_settings(&[], Path::new("p.toml")).unwrap().is_empty());
    }
}
