//! The command line. **Invariant:** no secret is ever an argument.

use crate::config::ServeConfig;
use crate::development::DataDir;
use crate::serve::Server;
use anyhow::{Context, Result};
use chappe_node::clock::SystemWorld;
use chappe_node::config::{ConfigError, EXIT_BAD_CONFIG};
use chappe_protocol::world::World;
use chappe_router::operations::{self, Verb};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use toml::Value;

/// The delivery network under a secure messaging app, in one process.
#[derive(Debug, Parser)]
#[command(
    name = "chappe",
    version,
    after_help = "\
Examples:
  chappe                                       serve on this machine, data in ./chappe-data
  chappe chat --as anna --to ben               talk, end-to-end encrypted
  chappe send --as anna --to ben < letter      put bytes into ben's mailbox
  chappe listen --as ben                       print what arrives, one JSON object a line
  chappe status                                is it up, and what does it do?"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: gateway, router and store in this process (what `chappe` alone does)
    Serve(ServeArgs),
    /// Talk with another user, end-to-end encrypted
    Chat(crate::chat::ChatArgs),
    /// Put the standard input into a mailbox
    Send(crate::pipe::SendArgs),
    /// Print what arrives, one JSON object a line
    Listen(crate::pipe::ListenArgs),
    /// Print a development token for a device
    Token(TokenArgs),
    /// Show whether a server is up and its figures
    Status(StatusArgs),
    /// Add or erase users, bar devices
    #[command(subcommand)]
    User(UserCommand),
    /// Register a device to be woken, try its wake out, show wakes that will never pass
    #[command(subcommand)]
    Push(crate::push::PushCommand),
    /// Tell where an envelope is, by the id that its sender got
    Trace(crate::trace::TraceArgs),
    /// Make the development certificate and keys of a data directory, as `serve` does before it serves
    #[command(after_help = "Example:\n  chappe keys --data cluster-data")]
    Keys(DataArgs),
    /// The tables of a cluster's CQL database
    #[command(subcommand)]
    Schema(crate::schema::SchemaCommand),
    /// Look at settings, files, limits and parts before a process is started, or when one does not work
    Doctor(crate::doctor::DoctorArgs),
    /// Print the settings of `serve` with their defaults, as a file to start from
    Config,
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  chappe completions bash > ~/.local/share/bash-completion/completions/chappe"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Default, Args)]
#[command(after_help = "\
Settings come from defaults, then the file, then the environment (CHAPPE_LISTEN, CHAPPE_TLS__KEY, …), then flags.
`chappe config` prints all of them.

Examples:
  chappe serve
  chappe serve --listen 127.0.0.1:9000 --admin 127.0.0.1:9001 --data /var/lib/chappe
  chappe serve --config chappe.toml")]
struct ServeArgs {
    /// Settings file (TOML); else CHAPPE_CONFIG
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// Health, metrics and operators' calls [default: 127.0.0.1:7441]
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<String>,
    /// The data directory [default: chappe-data]
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
    /// Plain WebSocket instead of TLS; on loopback only
    #[arg(long)]
    no_tls: bool,
    /// What is logged, such as info or chappe_gateway=debug,info [default: info]
    #[arg(long, value_name = "DIRECTIVES")]
    log: Option<String>,
}

#[derive(Debug, Args)]
struct DataArgs {
    /// The server's data directory: its development key signs
    #[arg(long, value_name = "DIRECTORY", default_value = "chappe-data")]
    data: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  chappe token --user anna --device phone")]
struct TokenArgs {
    /// Claim sub
    #[arg(long)]
    user: String,
    /// Claim device
    #[arg(long)]
    device: String,
    /// Good for so many seconds
    #[arg(long, default_value_t = 3600)]
    ttl: u64,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  chappe status --json | jq .ready")]
struct StatusArgs {
    /// The server's admin port
    #[arg(long, default_value = "127.0.0.1:7441")]
    admin: SocketAddr,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  chappe user add ben")]
enum UserCommand {
    /// Create a user, so that others can write before the first sign-in
    Add(UserArgs),
    /// Erase a user for ever: mailbox, devices, name
    Erase(UserArgs),
    /// Bar a user, with all devices, and close their sessions
    Revoke(UserArgs),
    /// Bar a device for ever and close its sessions
    RevokeDevice {
        /// The device
        #[arg(long)]
        device: String,
        #[command(flatten)]
        user: UserArgs,
    },
}

#[derive(Debug, Args)]
struct UserArgs {
    /// The user's name
    user: String,
    /// The server's admin port
    #[arg(long, default_value = "127.0.0.1:7441")]
    admin: SocketAddr,
    #[command(flatten)]
    data: DataArgs,
}

impl Cli {
    /// Does what was asked; the exit code is the process's.
    pub fn run(self) -> Result<ExitCode> {
        match self.command.unwrap_or_else(|| Command::Serve(ServeArgs::default())) {
            Command::Serve(args) => serve(args),
            Command::Chat(args) => runtime()?.block_on(crate::chat::chat(args)),
            Command::Send(args) => runtime()?.block_on(crate::pipe::send(args)),
            Command::Listen(args) => runtime()?.block_on(crate::pipe::listen(args)),
            Command::Token(args) => {
                let (data, now) = (DataDir::new(&args.data.data), SystemWorld::new().wall());
                let token = crate::token::issue(&data, &args.user, &args.device, args.ttl, now)?;
                println!("{token}");
                Ok(ExitCode::SUCCESS)
            }
            Command::Status(args) => runtime()?.block_on(status(args)),
            Command::User(command) => runtime()?.block_on(user(command)),
            Command::Push(command) => runtime()?.block_on(crate::push::run(command)),
            Command::Trace(args) => runtime()?.block_on(crate::trace::trace(args)),
            Command::Keys(args) => {
                DataDir::new(&args.data).prepare(&SystemWorld::new())?;
                println!("keys in {}", args.data.display());
                Ok(ExitCode::SUCCESS)
            }
            Command::Schema(command) => runtime()?.block_on(crate::schema::run(command)),
            Command::Doctor(args) => runtime()?.block_on(crate::doctor::run(args)),
            Command::Config => {
                println!(
                    "# Every setting of `chappe serve` with its default.\n{}",
                    toml::to_string_pretty(&ServeConfig::default())?
                );
                Ok(ExitCode::SUCCESS)
            }
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "chappe", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

fn load(args: ServeArgs) -> Result<ServeConfig, ConfigError> {
    let text = |path: PathBuf| Value::String(path.to_string_lossy().into_owned());
    let flags = [
        ("listen", args.listen.map(Value::String)),
        ("admin", args.admin.map(Value::String)),
        ("data", args.data.map(text)),
        ("tls.off", args.no_tls.then_some(Value::Boolean(true))),
        ("log.level", args.log.map(Value::String)),
    ];
    let flags = flags.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let config: ServeConfig =
        chappe_node::config::load(args.config.as_deref(), &chappe_node::config::environment(), flags)?;
    config.check()?;
    Ok(config)
}

fn serve(args: ServeArgs) -> Result<ExitCode> {
    let checked = load(args).map_err(|error| error.to_string());
    let started = checked.and_then(|config| chappe_node::telemetry::init(&config.log).map(|()| config));
    let config = match started {
        Ok(config) => config,
        Err(message) => {
            eprintln!("chappe: {message}");
            return Ok(ExitCode::from(u8::try_from(EXIT_BAD_CONFIG).unwrap_or(1)));
        }
    };
    chappe_node::tls::install_crypto_provider();
    runtime()?.block_on(async {
        let signals = chappe_node::signal::install().context("cannot listen for signals")?;
        let (data, plain) = (config.data.clone(), config.tls.off);
        let server = Server::open(config).await?;
        let (clients, admin) = server.addresses()?;
        greet(clients, admin, &data, plain, server.serves_quic());
        let in_time = server.run(signals).await?;
        tracing::info!(in_time, "ended");
        Ok(ExitCode::SUCCESS)
    })
}

fn greet(clients: SocketAddr, admin: SocketAddr, data: &std::path::Path, plain: bool, quic: bool) {
    let scheme = if plain { "ws" } else { "wss" };
    let defaults = ServeConfig::default();
    let server = if clients != defaults.listen || plain {
        format!(" --server {scheme}://{clients}")
    } else {
        String::new()
    };
    let place = if *data == defaults.data { String::new() } else { format!(" --data {}", data.display()) };
    let more = server + &place;
    eprintln!(
        "Chappe serves {scheme}://{clients}/v1/connect, admin port http://{admin}, data in {}",
        data.display()
    );
    if quic {
        eprintln!("QUIC and WebTransport: UDP port {} of the same address", clients.port());
    }
    eprintln!("Try, in two other terminals:");
    eprintln!("  chappe chat --as anna --to ben{more}");
    eprintln!("  chappe chat --as ben --to anna{more}");
    eprintln!("(from a checkout: cargo run --release -- chat --as anna --to ben{more})");
}

async fn status(args: StatusArgs) -> Result<ExitCode> {
    let status = crate::status::ask(args.admin).await?;
    if args.json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        println!("{}", if status.ready { "ready" } else { "not ready: starting or draining" });
        for (name, value) in status.figures.iter().filter(|(_, value)| *value != 0.0) {
            println!("{value:>14} {name}");
        }
    }
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn user(command: UserCommand) -> Result<ExitCode> {
    let (verb, device, args) = match command {
        UserCommand::Add(args) => (Verb::AddUser, None, args),
        UserCommand::Erase(args) => (Verb::EraseUser, None, args),
        UserCommand::Revoke(args) => (Verb::RevokeUser, None, args),
        UserCommand::RevokeDevice { device, user } => (Verb::RevokeDevice, Some(device), user),
    };
    let path = DataDir::new(&args.data.data).admin_token();
    let token = std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}; name the server's data directory with --data", path.display())
    })?;
    operations::call(args.admin, &token, verb, &args.user, device.as_deref()).await?;
    println!("done");
    Ok(ExitCode::SUCCESS)
}
