//! `chappe send` and `chappe listen`: bytes in, bytes out, for scripts.
//! **Invariant:** `send` ends well only when everything it read is durable; `listen` acks only what it has written out.

use crate::connect::ConnectArgs;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chappe_client::{
    Client, ClientError, Envelope, Event, Millis, Outcome, Outgoing, Receipt, Role, State, TruncatedReason,
    Urgency, UserId,
};
use clap::Args;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{BufRead, Write};
use std::process::ExitCode;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

/// Envelopes on their way at once; their payloads are kept here too.
const WAITING_MAX: usize = 128;

/// Arguments of `chappe send`.
#[derive(Debug, Args)]
#[command(after_help = "\
All of the standard input is one envelope; with --lines each line is one. The bytes go as they are: encrypt them before.
The exit code is 0 only when every envelope is durably in the mailbox.

Examples:
  chappe send --as anna --to ben < letter
  printf 'one\\ntwo\\n' | chappe send --as anna --to ben --lines --json
  chappe send --as anna --to ben --ttl 60 --server wss://chat.example --token-file token --ca roots.pem < letter")]
pub struct SendArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Whose mailbox; every device of that user gets it
    #[arg(long, value_name = "USER")]
    to: String,
    /// Keep it for so many seconds at most [default: the server's maximum]
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u64>,
    /// One envelope per line, without its line break
    #[arg(long)]
    lines: bool,
    /// Print {"to", "outcome", "envelope_id"} for each envelope
    #[arg(long)]
    json: bool,
}

/// Arguments of `chappe listen`.
#[derive(Debug, Args)]
#[command(after_help = "\
One JSON object a line, written out before it is acked: what was printed does not come again, whatever was not does.
Only when the process is killed between the two, the last lines come once more, with the same envelope_id.
A device gets what is sent after it was first seen. One listen or chat of a device at a time.

Examples:
  chappe listen --as ben
  chappe listen --as ben --count 1 | jq -r .payload")]
pub struct ListenArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// End after so many envelopes
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// `chappe send`.
pub async fn send(args: SendArgs) -> Result<ExitCode> {
    if UserId::new(&args.to).is_err() {
        bail!("--to: a user name has 1 to 128 bytes and no control characters");
    }
    let mut sending = Sending { args, client: None, tasks: TaskTracker::new(), waiting: VecDeque::new() };
    if sending.args.lines {
        sending.send_lines().await?;
    } else {
        let mut all = Vec::new();
        tokio::io::stdin().read_to_end(&mut all).await.context("cannot read the standard input")?;
        sending.submit(Bytes::from(all)).await?;
    }
    while let Some((_, receipt)) = sending.waiting.front_mut() {
        let receipt = receipt.await;
        sending.settle(receipt).await?;
    }
    if let Some(client) = sending.client {
        client.close().await;
    }
    Ok(ExitCode::SUCCESS)
}

/// A `send` under way.
struct Sending {
    args: SendArgs,
    client: Option<Client>,
    tasks: TaskTracker,
    /// In order, each with its payload in case its client ended before it was sent.
    waiting: VecDeque<(Bytes, BoxFuture<'static, Result<Receipt, ClientError>>)>,
}

impl Sending {
    async fn send_lines(&mut self) -> Result<()> {
        let mut lines = stdin_lines();
        loop {
            let room = self.waiting.len() < WAITING_MAX;
            let receipt = async {
                match self.waiting.front_mut() {
                    Some((_, receipt)) => receipt.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                receipt = receipt => self.settle(receipt).await?,
                line = lines.recv(), if room => match line {
                    Some(line) => self.submit(Bytes::from(line?)).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn submit(&mut self, payload: Bytes) -> Result<()> {
        loop {
            let mut outgoing = Outgoing::new(payload.clone()).to(&self.args.to);
            if let Some(seconds) = self.args.ttl {
                outgoing = outgoing.ttl(Millis::from_secs(seconds));
            }
            match self.client()?.submit_queued(outgoing).await {
                Ok(pending) => {
                    self.waiting.push_back((payload, pending.receipt().boxed()));
                    return Ok(());
                }
                Err(ClientError::Closed) => self.client = None,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes the oldest off. A peek ends by itself when there is nothing to send: what it had not taken yet, and all that
    /// came after, goes with the next one.
    async fn settle(&mut self, receipt: Result<Receipt, ClientError>) -> Result<()> {
        match receipt {
            Ok(receipt) => {
                self.waiting.pop_front();
                self.report(&receipt)
            }
            Err(ClientError::Closed) => {
                self.client = None;
                let again: Vec<Bytes> = self.waiting.drain(..).map(|(payload, _)| payload).collect();
                for payload in again {
                    self.submit(payload).await?;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn client(&mut self) -> Result<Client> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        // A peek: it does not displace a chat or a listen of the same device.
        let client = self.args.connect.builder()?.role(Role::Peek).start();
        let (events, states) = (client.events(), client.states());
        // What the device has in its mailbox is not for us, and must not fill the room. A peek's acks count for nothing.
        self.tasks.spawn(events.for_each(async |event| {
            if let Event::Envelope(envelope) = event {
                envelope.ack();
            }
        }));
        self.tasks.spawn(states.for_each(async |state| tell_trouble(&state)));
        self.client = Some(client.clone());
        Ok(client)
    }

    fn report(&self, receipt: &Receipt) -> Result<()> {
        for target in &receipt.targets {
            let outcome = target.outcome.word();
            let id = target.envelope_id.map(|id| id.to_string());
            if self.args.json {
                line(&json!({ "to": self.args.to, "outcome": outcome, "envelope_id": id }))?;
            } else if let (Outcome::Accepted, Some(id)) = (&target.outcome, id) {
                println!("accepted {id}");
            }
            if target.outcome != Outcome::Accepted {
                bail!("not accepted: {outcome}: {}", outcome_hint(&target.outcome));
            }
        }
        Ok(())
    }
}

/// `chappe listen`.
pub async fn listen(args: ListenArgs) -> Result<ExitCode> {
    let client = args.connect.builder()?.state_dir(args.connect.state_dir()).start();
    let mut states = Box::pin(client.states());
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut left = args.count;
    while left != Some(0) {
        tokio::select! {
            biased;
            _ = &mut interrupted => break,
            _ = terminated.recv() => break,
            event = client.next_event() => match event {
                Some(event) => {
                    if write_out(event)? {
                        left = left.map(|left| left - 1);
                    }
                }
                None => break,
            },
            Some(state) = states.next() => {
                tell_trouble(&state);
                match state {
                    State::Failed(error) => return Err(error.into()),
                    State::Superseded => bail!("superseded: another client of this device has connected"),
                    State::Connecting { .. } | State::Connected { .. } | State::Waiting { .. } | State::Closed => {}
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
        | State::Superseded => Ok(ExitCode::SUCCESS),
    }
}

/// Prints an event, then acks it. Returns whether it was an envelope.
fn write_out(event: Event) -> Result<bool> {
    match event {
        Event::Envelope(envelope) => {
            line(&describe(&envelope))?;
            envelope.ack();
            Ok(true)
        }
        Event::BacklogEnd => line(&json!({ "event": "backlog_end" })).map(|()| false),
        Event::Truncated { from, to, why } => {
            let notice =
                json!({ "event": "truncated", "from": from.0, "to": to.0, "why": truncated_word(why) });
            line(&notice).map(|()| false)
        }
        // And whatever a later SDK tells.
        Event::Ephemeral { .. } | _ => Ok(false),
    }
}

fn describe(envelope: &Envelope) -> Value {
    let mut object = json!({
        "event": "envelope",
        "envelope_id": envelope.id.to_string(),
        "seq": envelope.seq.0,
        "from": envelope.sender.as_ref().map(|sender| sender.user.as_str()),
        "from_device": envelope.sender.as_ref().map(|sender| sender.device.as_str()),
        "at_ms": envelope.at.0,
        "expires_at_ms": envelope.expires_at.0,
        "urgency": match envelope.urgency {
            Urgency::Background => "background",
            Urgency::Message => "message",
            Urgency::Call => "call",
        },
        "payload_base64": STANDARD.encode(&envelope.payload),
    });
    if let Ok(text) = std::str::from_utf8(&envelope.payload) {
        object["payload"] = text.into();
    }
    object
}

/// One JSON line, out of our hands when this returns.
fn line(object: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{object}").and_then(|()| out.flush()).context("cannot write to the standard output")
}

/// The lines of the standard input, without their breaks. A thread reads them: it does not keep the process from ending
/// while nobody writes.
pub(crate) fn stdin_lines() -> mpsc::Receiver<Result<Vec<u8>>> {
    let (lines, out) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            if lines.blocking_send(line.context("cannot read the standard input")).is_err() {
                return;
            }
        }
    });
    out
}

fn tell_trouble(state: &State) {
    if let State::Waiting { why, retry_in } = state {
        eprintln!("chappe: not connected: {why}; trying again in {} ms", retry_in.0);
    }
}

pub(crate) fn truncated_word(why: TruncatedReason) -> &'static str {
    match why {
        TruncatedReason::Expired => "expired",
        TruncatedReason::Trimmed => "trimmed",
        TruncatedReason::Lost => "lost",
        TruncatedReason::ForeignCursor => "foreign_cursor",
    }
}

fn outcome_hint(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::UnknownUser => {
            "nobody has that name yet; it exists once that user has connected, or after `chappe user add`"
        }
        Outcome::NoDevice => "that user has no device yet; send again after the first sign-in",
        Outcome::Quota => "that mailbox is full; send again after its owner has read",
        Outcome::DevicesChanged { .. } => "the user's devices have changed; send again",
        Outcome::Accepted | Outcome::Unavailable | Outcome::NotAttempted | Outcome::Unknown => "send again",
    }
}
