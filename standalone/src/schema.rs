//! `chappe schema`: the tables of the slot log in a CQL database. **Invariant:** nothing but `apply` changes anything.

use anyhow::{Result, anyhow};
use chappe_node::clock::SystemWorld;
use chappe_router::settings::CqlSettings;
use chappe_storage::scylla::{ConnectError, ScyllaConfig, schema};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// What to do with the schema.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  chappe schema plan  --cql cql://127.0.0.1:9042/chappe
  chappe schema apply --cql cql://db-1,db-2,db-3/chappe --user chappe --password /run/secrets/cql
  chappe schema check --cql cql://127.0.0.1:9042/chappe && router --config router.toml")]
pub enum SchemaCommand {
    /// Print the statements that `apply` would run
    Plan(CqlArgs),
    /// Create the tables, or bring them up to date; safe to repeat, and beside running routers
    Apply {
        /// Copies of every row; only for a keyspace that is created now
        #[arg(long, default_value_t = 3)]
        replication: u8,
        /// Where
        #[command(flatten)]
        cql: CqlArgs,
    },
    /// End with 0 if this binary can work with the tables, else with 1 and the reason
    Check(CqlArgs),
}

/// Where the database is.
#[derive(Debug, Args)]
pub struct CqlArgs {
    /// cql://host[:port][,host…]/keyspace
    #[arg(long, value_name = "URL", default_value = "cql://127.0.0.1:9042/chappe")]
    cql: String,
    /// The role; none if the database asks for none
    #[arg(long, requires = "password")]
    user: Option<String>,
    /// File with its password
    #[arg(long, value_name = "FILE", requires = "user")]
    password: Option<PathBuf>,
    /// PEM file of the authority that signed the nodes' certificates; without it no TLS
    #[arg(long, value_name = "FILE")]
    authority: Option<PathBuf>,
    /// The data centre that holds the rows; else that of the first node reached
    #[arg(long)]
    datacenter: Option<String>,
}

impl CqlArgs {
    fn open(self) -> Result<ScyllaConfig> {
        let settings = CqlSettings {
            url: self.cql,
            user: self.user.unwrap_or_default(),
            password: self.password.unwrap_or_default(),
            authority: self.authority.unwrap_or_default(),
            datacenter: self.datacenter.unwrap_or_default(),
            ..CqlSettings::default()
        };
        settings.check()?;
        settings.open()
    }
}

fn told(error: &ConnectError) -> anyhow::Error {
    anyhow!("{}: {error}; {}", error.code(), error.hint())
}

/// Does it.
pub async fn run(command: SchemaCommand) -> Result<ExitCode> {
    chappe_node::tls::install_crypto_provider();
    match command {
        SchemaCommand::Plan(cql) => {
            let statements = schema::plan(&cql.open()?).await.map_err(|error| told(&error))?;
            for statement in &statements {
                println!("{statement};\n");
            }
            if statements.is_empty() {
                eprintln!("nothing to do: the schema is up to date");
            }
        }
        SchemaCommand::Apply { replication, cql } => {
            let mut config = cql.open()?;
            config.replication = replication;
            eprintln!("applying the schema to keyspace {} …", config.keyspace);
            let done = schema::apply(&config, &SystemWorld::new()).await.map_err(|error| told(&error))?;
            if done.from == done.to {
                println!("up to date: version {}", done.to);
            } else {
                println!("applied: version {} (it was {})", done.to, done.from);
            }
        }
        SchemaCommand::Check(cql) => {
            schema::check(&cql.open()?).await.map_err(|error| told(&error))?;
            println!("good");
        }
    }
    Ok(ExitCode::SUCCESS)
}
