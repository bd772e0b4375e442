//! `loadtest agent`: puts on the load that a run elsewhere asks for. **Invariant:** it takes orders from whoever has its secret,
//! one run at a time, and aims only where it was allowed to.

use super::wrong_use;
use crate::agents::{Keys, SECRET_BYTES, Side, Worker, open};
use anyhow::{Context, Result};
use chappe_node::clock::SystemWorld;
use chappe_protocol::world::World;
use clap::Args;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// Whoever comes has so long to show the secret.
const SHAKE_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "\
What is said between a run and its agents is signed with the secret and not encrypted; it holds no token and no key.

Example:
  head -c 32 /dev/urandom > secret
  loadtest agent --listen 10.0.0.7:7460 --secret secret --token-key issuer.pem --allow gateway.staging:443")]
pub(super) struct AgentArgs {
    /// Where runs come to
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// A file of at least 32 bytes that the run has, too
    #[arg(long, value_name = "FILE")]
    secret: PathBuf,
    /// Sign tokens with this key: Ed25519 (PEM), or a secret for HS256
    #[arg(long, value_name = "FILE")]
    token_key: PathBuf,
    /// Trust these roots (PEM) instead of the public ones
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A server that it may aim at, as in --server; as often as wanted
    #[arg(long, value_name = "HOST:PORT", required = true)]
    allow: Vec<String>,
}

impl AgentArgs {
    pub(super) fn run(self) -> Result<ExitCode> {
        let secret =
            std::fs::read(&self.secret).with_context(|| format!("cannot read {}", self.secret.display()))?;
        if secret.len() < SECRET_BYTES {
            return Ok(wrong_use(&format!("--secret: at least {SECRET_BYTES} bytes")));
        }
        chappe_node::tls::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(self.serve(&secret))
    }

    async fn serve(self, secret: &[u8]) -> Result<ExitCode> {
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("port_unusable: cannot listen on {}", self.listen))?;
        eprintln!("loadtest agent: listens on {}", listener.local_addr()?);
        let keys = Keys::Own { token_key: self.token_key, ca: self.ca, allowed: self.allow };
        loop {
            let (stream, from) = listener.accept().await?;
            // One after the other: two runs at once would measure each other.
            match attend(stream, secret, keys.clone()).await {
                Ok(()) => eprintln!("loadtest agent: a run from {from} has ended"),
                Err(error) => eprintln!("loadtest agent: {from}: {error:#}"),
            }
        }
    }
}

async fn attend(stream: TcpStream, secret: &[u8], keys: Keys) -> Result<()> {
    stream.set_nodelay(true)?;
    let (from, to) = stream.into_split();
    let shaking = open(from, to, secret, Side::Worker, random());
    let (from, to) = tokio::time::timeout(SHAKE_MAX, shaking).await.context("it said nothing")??;
    Worker::serve(keys, from, to).await
}

fn random() -> [u8; 32] {
    let mut random = [0; 32];
    SystemWorld::new().fill_random(&mut random);
    random
}

/// A worker process of a run on this machine, asked over standard input; the first bytes are the secret.
pub(super) fn worker() -> Result<ExitCode> {
    chappe_node::tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut from, to) = (tokio::io::stdin(), tokio::io::stdout());
        let mut secret = [0; SECRET_BYTES];
        from.read_exact(&mut secret).await?;
        let (from, to) = open(from, to, &secret, Side::Worker, random()).await?;
        Worker::serve(Keys::Named, from, to).await
    })?;
    Ok(ExitCode::SUCCESS)
}
