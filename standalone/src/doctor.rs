//! `chappe doctor`: could a process with these settings work here? **Invariant:** it changes nothing that anybody relies on, and tells of
//! everything that it looked at how it found it.

mod machine;
mod parts;

use crate::config::ServeConfig;
use anyhow::Result;
use chappe_gateway::process::GatewaySettings;
use chappe_node::clock::SystemWorld;
use chappe_node::config::{ConfigError, EXIT_BAD_CONFIG, environment, load_with};
use chappe_node::process::Settings;
use chappe_protocol::world::World;
use chappe_pusher::settings::PusherSettings;
use chappe_router::nats::BusRole;
use chappe_router::parts::PartSettings;
use chappe_router::settings::{QuotaConfig, RouterSettings};
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// What to look at.
#[derive(Debug, Args)]
#[command(after_help = "\
Looks at settings, files, limits and every part that the process would use, and ends with 0 if nothing is bad, with 1 if
something is, with 64 if the settings themselves are refused. It leaves nothing behind.

Examples:
  chappe doctor
  chappe doctor gateway --config /etc/chappe/gateway.toml
  chappe doctor router --set nats.urls=nats://nats-1:4222 --json | jq '.findings[] | select(.verdict != \"good\")'")]
pub struct DoctorArgs {
    /// Whose settings
    #[arg(value_enum, default_value_t = Role::Serve)]
    role: Role,
    /// Settings file (TOML); else `CHAPPE_CONFIG`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, such as listen=127.0.0.1:7443; repeatable
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// The process that has the settings.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Role {
    /// `chappe serve`
    Serve,
    /// `gateway`
    Gateway,
    /// `router`
    Router,
    /// `pusher`
    Pusher,
}

/// How something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    /// It works, and somebody should know.
    Warn,
    /// It does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    /// With the hint what to do, unless it is good.
    message: String,
}

/// All that was found, in the order in which it was looked at.
#[derive(Debug, Default, Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, what: &str, verdict: Verdict, message: impl Into<String>) {
        self.findings.push(Finding { what: what.to_owned(), verdict, message: message.into() });
    }

    fn good(&mut self, what: &str, message: impl Into<String>) {
        self.add(what, Verdict::Good, message);
    }

    fn warn(&mut self, what: &str, message: impl Into<String>) {
        self.add(what, Verdict::Warn, message);
    }

    fn bad(&mut self, what: &str, message: impl Into<String>) {
        self.add(what, Verdict::Bad, message);
    }

    fn count(&self, verdict: Verdict) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == verdict).count()
    }

    fn tell(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string(self)?);
            return Ok(());
        }
        for Finding { what, verdict, message } in &self.findings {
            let verdict = match verdict {
                Verdict::Good => "good",
                Verdict::Warn => "WARN",
                Verdict::Bad => "BAD ",
            };
            println!("{verdict}  {what:<18} {message}");
        }
        let (good, warn, bad) =
            (self.count(Verdict::Good), self.count(Verdict::Warn), self.count(Verdict::Bad));
        println!("{good} good, {warn} to look at, {bad} bad");
        Ok(())
    }
}

/// Looks, tells, and gives the exit code.
pub async fn run(args: DoctorArgs) -> Result<ExitCode> {
    chappe_node::tls::install_crypto_provider();
    let mut found = Findings::default();
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let looked = match args.role {
        Role::Serve => serve(&mut found, &args, world.as_ref()).await,
        Role::Gateway => gateway(&mut found, &args, &world).await,
        Role::Router => router(&mut found, &args, &world).await,
        Role::Pusher => pusher(&mut found, &args, &world).await,
    };
    if let Err(error) = looked {
        found.bad("settings", error.to_string());
        found.tell(args.json)?;
        return Ok(ExitCode::from(u8::try_from(EXIT_BAD_CONFIG).unwrap_or(1)));
    }
    found.tell(args.json)?;
    Ok(if found.count(Verdict::Bad) == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn load<C: Serialize + DeserializeOwned + Default>(args: &DoctorArgs) -> Result<C, ConfigError> {
    load_with(args.config.as_deref(), &environment(), &args.set)
}

fn settings(found: &mut Findings, args: &DoctorArgs) {
    let from =
        args.config.as_deref().map_or_else(|| "defaults and environment".into(), Path::to_string_lossy);
    found.good("settings", format!("of {from}, as chappe {} reads them", env!("CARGO_PKG_VERSION")));
}

async fn serve(found: &mut Findings, args: &DoctorArgs, world: &dyn World) -> Result<(), ConfigError> {
    let config: ServeConfig = load(args)?;
    config.check()?;
    settings(found, args);
    machine::open_files(found, config.limits.sessions_max);
    machine::certificate(found, &config.tls.certificate, world.wall());
    let secrets =
        [("tls.key", &config.tls.key), ("token.key", &config.token.key), ("push.key", &config.push.key)];
    machine::secrets(found, &secrets);
    machine::directory(found, &config.data, world);
    machine::port(found, "listen", config.listen);
    machine::port(found, "admin", config.admin);
    parts::collector(found, &config.traces).await;
    Ok(())
}

async fn gateway(found: &mut Findings, args: &DoctorArgs, world: &Arc<dyn World>) -> Result<(), ConfigError> {
    let config: GatewaySettings = load(args)?;
    config.check()?;
    settings(found, args);
    machine::open_files(found, config.limits.sessions_max);
    machine::certificate(found, &config.tls.certificate, world.wall());
    let secrets = [
        ("tls.key", &config.tls.key),
        ("token.key", &config.token.key),
        ("resume_key", &config.resume_key),
        ("push.key", &config.push.key),
        ("admin_token", &config.admin_token),
        ("nats.nkey_seed", &config.nats.nkey_seed),
        ("redis.password", &config.redis.password),
        ("cql.password", &config.cql.password),
        ("traces.authorization", &config.traces.authorization),
    ];
    machine::secrets(found, &secrets);
    if config.resume_key.as_os_str().is_empty() {
        found.warn(
            "resume_key",
            "not set: a session attaches anew on any other gateway; give all gateways the same file",
        );
    }
    machine::port(found, "listen", config.listen);
    machine::port(found, "admin", config.admin);
    parts::token_keys(found, &config.token, world).await;
    parts::collector(found, &config.traces).await;
    let quota = QuotaConfig::default();
    let GatewaySettings { cluster, nats, redis, cql, .. } = &config;
    parts::look(found, PartSettings { cluster, nats, redis, cql, quota: &quota }, BusRole::Gateway, world)
        .await;
    Ok(())
}

async fn router(found: &mut Findings, args: &DoctorArgs, world: &Arc<dyn World>) -> Result<(), ConfigError> {
    let config: RouterSettings = load(args)?;
    config.check()?;
    settings(found, args);
    let RouterSettings { cluster, nats, redis, cql, quota, wakes, admin, admin_token, .. } = &config;
    let secrets = [
        ("admin_token", admin_token),
        ("nats.nkey_seed", &nats.nkey_seed),
        ("redis.password", &redis.password),
        ("cql.password", &cql.password),
        ("traces.authorization", &config.traces.authorization),
    ];
    machine::secrets(found, &secrets);
    machine::port(found, "admin", *admin);
    parts::collector(found, &config.traces).await;
    parts::look(found, PartSettings { cluster, nats, redis, cql, quota }, BusRole::Router, world).await;
    parts::synced(found, &wakes.monitors).await;
    Ok(())
}

async fn pusher(found: &mut Findings, args: &DoctorArgs, world: &Arc<dyn World>) -> Result<(), ConfigError> {
    let config: PusherSettings = load(args)?;
    config.check()?;
    settings(found, args);
    let PusherSettings { cluster, nats, redis, cql, wakes, push, admin, admin_token, .. } = &config;
    let secrets = [
        ("admin_token", admin_token),
        ("push.key", &push.key),
        ("nats.nkey_seed", &nats.nkey_seed),
        ("redis.password", &redis.password),
        ("cql.password", &cql.password),
    ];
    machine::secrets(found, &secrets);
    machine::port(found, "admin", *admin);
    let quota = QuotaConfig::default();
    parts::look(found, PartSettings { cluster, nats, redis, cql, quota: &quota }, BusRole::Pusher, world)
        .await;
    parts::synced(found, &wakes.monitors).await;
    Ok(())
}
