//! A small chat on the SDK, in plain text: NOT encrypted, so for learning only. The real one is `chappe chat`.
//! **Invariant:** an envelope is acked only after it was printed.

use anyhow::Context as _;
use chappe_client::{Client, Event, Outgoing, State};
use clap::Parser;
use std::path::PathBuf;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// A chat in plain text over Chappe. It is NOT encrypted: every operator on the way can read it. For secret words use
/// `chappe chat`.
///
/// Type a line to send it; end with Ctrl-D.
#[derive(Parser)]
struct Arguments {
    /// The gateway: chappe://host[:port] (QUIC or WebSocket), wss://host[:port], or ws:// to this host.
    #[arg(long, default_value = "ws://127.0.0.1:7440")]
    url: String,
    /// A file that holds the token (`chappe token` makes one); secrets do not belong into arguments.
    #[arg(long)]
    token_file: PathBuf,
    /// The device id in the token.
    #[arg(long)]
    device: String,
    /// Whom to write to.
    #[arg(long)]
    to: String,
    /// Roots to trust instead of the public ones, for instance the development certificate.
    #[arg(long)]
    roots: Option<PathBuf>,
    /// Keeps unsent lines and the cursor over restarts.
    #[arg(long)]
    state_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let token = std::fs::read_to_string(&arguments.token_file).context("cannot read the token file")?;
    let mut builder = Client::builder(arguments.url).device(arguments.device).token(token.trim().to_owned());
    if let Some(path) = &arguments.roots {
        builder = builder.root_certificates_pem(&std::fs::read(path).context("cannot read the roots")?);
    }
    if let Some(path) = arguments.state_dir {
        builder = builder.state_dir(path);
    }
    let client = builder.connect().await?;
    if let State::Connected { carrier, .. } = client.state() {
        eprintln!("connected by {}; lines go to {} in plain text", carrier.as_str(), arguments.to);
    }
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        tokio::select! {
            biased;
            event = client.next_event() => match event {
                Some(Event::Envelope(envelope)) => {
                    let from = envelope.sender.as_ref().map_or("?", |sender| sender.user.as_str());
                    println!("{from}: {}", String::from_utf8_lossy(&envelope.payload));
                    envelope.ack();
                }
                Some(Event::Truncated { from, to, .. }) => eprintln!("lines {from} to {to} are gone"),
                Some(_) => {}
                None => break,
            },
            line = lines.next_line() => {
                let Some(line) = line? else { break };
                let receipt = client.submit(Outgoing::new(line).to(&arguments.to)).await?;
                for target in receipt.targets.iter().filter(|_| !receipt.all_accepted()) {
                    eprintln!("not delivered: {:?}", target.outcome);
                }
            }
        }
    }
    client.close().await;
    match client.state() {
        State::Failed(error) => Err(error.into()),
        State::Closed
        | State::Connecting { .. }
        | State::Connected { .. }
        | State::Waiting { .. }
        | State::Superseded => Ok(()),
    }
}
