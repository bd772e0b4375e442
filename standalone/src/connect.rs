//! How the command line's own clients reach a server: address, trust, token, state.
//! **Invariant:** a token and a key are read from files only, and are never printed.

use crate::development::DataDir;
use anyhow::{Context, Result, bail};
use chappe_client::{Builder, Client, DeviceId, TokenError, TokenReason, UserId};
use chappe_node::clock::SystemWorld;
use chappe_protocol::world::World;
use clap::Args;
use std::path::PathBuf;

/// Self-issued tokens are good for so long; the SDK asks for the next one in time.
const TOKEN_SECONDS: u64 = 3600;

/// Who speaks, and with which server.
#[derive(Debug, Clone, Args)]
pub struct ConnectArgs {
    /// Who you are
    #[arg(long = "as", value_name = "USER")]
    pub user: String,
    /// Which of your devices [default: cli; each chat has its own]
    #[arg(long)]
    pub device: Option<String>,
    /// The server: wss://host:port, or chappe:// (QUIC or WebSocket, whichever is there first), chappe+quic://,
    /// chappe+webtransport://
    #[arg(long, value_name = "URL", default_value = "wss://127.0.0.1:7440")]
    pub server: String,
    /// The server's data directory: its certificate is trusted, its development key signs, clients keep their state in it
    #[arg(long, value_name = "DIRECTORY", default_value = "chappe-data")]
    pub data: PathBuf,
    /// Take the token from this file (read at each connect) instead of signing one
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Trust these roots (PEM) instead
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

impl ConnectArgs {
    /// The SDK's settings, without state directory and role.
    pub fn builder(&self) -> Result<Builder> {
        self.check()?;
        chappe_node::tls::install_crypto_provider();
        let data = DataDir::new(&self.data);
        let mut builder = Client::builder(&self.server).device(self.device());
        let own = data.certificate();
        let roots = self.ca.clone().or_else(|| (self.is_tls() && own.exists()).then_some(own));
        if let Some(path) = roots {
            let pem = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            builder = builder.root_certificates_pem(&pem);
        }
        // The first token now: what is wrong with it is told before anything else happens.
        self.token(&data)?;
        let this = self.clone();
        Ok(builder.token(move |_: TokenReason| {
            let token = this.token(&data).map_err(|error| TokenError::Refused(format!("{error:#}")));
            std::future::ready(token)
        }))
    }

    /// Where this device keeps its state.
    pub fn state_dir(&self) -> PathBuf {
        DataDir::new(&self.data).client_state(&self.user, self.device())
    }

    fn device(&self) -> &str {
        self.device.as_deref().unwrap_or("cli")
    }

    fn is_tls(&self) -> bool {
        !self.server.starts_with("ws:")
    }

    fn check(&self) -> Result<()> {
        if UserId::new(&self.user).is_err() {
            bail!("--as: a user name has 1 to 128 bytes and no control characters");
        }
        // A device names a folder too.
        if DeviceId::new(self.device()).is_err() || self.device().starts_with('.') {
            bail!("--device: a device has 1 to 64 letters, digits and . _ : - and does not begin with a dot");
        }
        Ok(())
    }

    fn token(&self, data: &DataDir) -> Result<String> {
        if let Some(path) = &self.token_file {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(text.trim().to_owned());
        }
        crate::token::issue(data, &self.user, self.device(), TOKEN_SECONDS, SystemWorld::new().wall())
    }
}
