//! `chappe chat`: two people talk in two terminals, end-to-end encrypted.
//! **Invariant:** what was read from the input is on disk before it is sent, and what came is on disk before it is acked.
//!
//! Lines of the conversation go to the standard output, everything in (brackets) to the standard error.

mod conversation;
mod safety;
mod saved;
mod wire;

use crate::connect::ConnectArgs;
use crate::pipe::{stdin_lines, truncated_word};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use chappe_client::{Client, ClientError, Envelope, Event, Outcome, Outgoing, Receipt, State, UserId};
use clap::Args;
use conversation::{Conversation, News};
use futures_util::future::{BoxFuture, OptionFuture};
use futures_util::{FutureExt, StreamExt};
use sha2::{Digest as _, Sha256};
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// A line is at most so long.
const LINE_BYTES_MAX: usize = 32 * 1024;
/// The input waits while so many are not sent.
const OPEN_ITEMS_MAX: usize = 256;
/// After a refusal: the other may never have been here.
const RETRY: Duration = Duration::from_secs(1);
/// With `--exit-after`: the input has been silent for so long.
const SILENCE: Duration = Duration::from_millis(300);

/// Arguments of `chappe chat`.
#[derive(Debug, Args)]
#[command(after_help = "\
Type a line to send it. /safety shows the safety number: compare it over another channel. /quit leaves.
Both sides run `chappe chat`; what is typed before the other has come is kept and sent then. Every line is encrypted with
MLS (RFC 9420) between the two; the server sees neither text nor keys. The key of the other is pinned on first use.
State is kept in the data directory: after a restart the conversation goes on.

Examples:
  chappe chat --as anna --to ben
  chappe chat --as ben --to anna
  echo hello | chappe chat --as anna --to ben
  chappe chat --as ben --to anna --exit-after 1 < /dev/null")]
pub struct ChatArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// With whom
    #[arg(long, value_name = "USER")]
    to: String,
    /// Leave after so many lines of the other, once all of one's own are sent
    #[arg(long, value_name = "N")]
    exit_after: Option<u64>,
    /// The other has a new key, and you have compared the safety number: take it
    #[arg(long)]
    accept_new_key: bool,
}

/// `chappe chat`.
pub async fn chat(mut args: ChatArgs) -> Result<ExitCode> {
    ensure!(UserId::new(&args.to).is_ok(), "--to: a user name has 1 to 128 bytes and no control characters");
    ensure!(args.to != args.connect.user, "--to: a chat needs two people");
    args.connect.device.get_or_insert_with(|| device_for(&args.to));
    let builder = args.connect.builder()?;
    let folder = args.connect.state_dir();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = std::fs::File::create(folder.join("chat.lock"))?;
    ensure!(lock.try_lock().is_ok(), "this conversation is open in another terminal");
    let file = folder.join(format!("chat-{}", short_hash(&args.to)));
    let mut conversation = Conversation::open(&file, &args.connect.user, &args.to)?;
    if args.accept_new_key {
        let news = conversation.accept_new_key()?;
        conversation.save()?;
        note(match news {
            News::Nothing => "no changed key is waiting to be accepted",
            News::Text(_) | News::Established | News::StartsAnew | News::KeyChanged | News::Unreadable => {
                "the new key is accepted; compare the safety number with /safety"
            }
        });
    }
    let client = builder.state_dir(&folder).start();
    let chat = Chat {
        args,
        client,
        conversation,
        sending: None,
        typing: true,
        received: 0,
        connected_before: false,
        told_absent: false,
    };
    chat.run().await
}

/// A conversation has a device of its own: its envelopes are acked by nobody else.
fn device_for(peer: &str) -> String {
    let plain = peer.len() <= 48 && peer.bytes().all(|byte| byte.is_ascii_alphanumeric());
    format!("chat-{}", if plain { peer.to_owned() } else { short_hash(peer) })
}

fn short_hash(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let mut eight = [0; 8];
    eight.copy_from_slice(&digest[..8]);
    format!("{:016x}", u64::from_be_bytes(eight))
}

struct Chat {
    args: ChatArgs,
    client: Client,
    conversation: Conversation,
    /// One at a time: the order in the mailbox is the order of typing whatever is refused.
    sending: Option<BoxFuture<'static, Result<Receipt, ClientError>>>,
    /// The input has not ended.
    typing: bool,
    received: u64,
    connected_before: bool,
    told_absent: bool,
}

impl Chat {
    async fn run(mut self) -> Result<ExitCode> {
        let ended = self.converse().await;
        let saved = self.conversation.save();
        self.client.close().await;
        ended?;
        saved?;
        Ok(ExitCode::SUCCESS)
    }

    async fn converse(&mut self) -> Result<()> {
        let mut lines = stdin_lines();
        let mut states = Box::pin(self.client.states());
        let client = self.client.clone();
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        if !self.conversation.is_established() {
            note("waiting for the other side; what you type is kept until it is here");
        }
        loop {
            self.send_next(Duration::ZERO);
            let enough = self.has_enough();
            if enough && !self.typing {
                return Ok(());
            }
            let room = self.typing && self.conversation.open_items() < OPEN_ITEMS_MAX;
            tokio::select! {
                biased;
                _ = &mut interrupted => return Ok(()),
                _ = terminated.recv() => return Ok(()),
                Some(receipt) = OptionFuture::from(self.sending.as_mut()) => {
                    self.sending = None;
                    self.on_receipt(receipt)?;
                }
                event = client.next_event() => match event {
                    Some(event) => self.on_event(event)?,
                    None => return self.ended(),
                },
                Some(state) = states.next() => self.on_state(state)?,
                line = lines.recv(), if room => match line {
                    Some(line) => {
                        if !self.on_line(&line?)? {
                            return Ok(());
                        }
                    }
                    None => self.typing = false,
                },
                // The input is open, and nobody writes.
                () = tokio::time::sleep(SILENCE), if enough => return Ok(()),
            }
        }
    }

    /// Whether there is nothing to wait for but more input.
    fn has_enough(&self) -> bool {
        let heard = match self.args.exit_after {
            Some(count) => self.received >= count,
            None => !self.typing,
        };
        heard && !self.conversation.has_open_lines()
    }

    fn send_next(&mut self, after: Duration) {
        if self.sending.is_some() {
            return;
        }
        if let Some(payload) = self.conversation.next_unsent() {
            let (client, outgoing) = (self.client.clone(), Outgoing::new(payload).to(&self.args.to));
            let send = async move {
                tokio::time::sleep(after).await;
                client.submit(outgoing).await
            };
            self.sending = Some(send.boxed());
        }
    }

    fn on_receipt(&mut self, receipt: Result<Receipt, ClientError>) -> Result<()> {
        let outcome = match receipt {
            Ok(receipt) => {
                receipt.targets.into_iter().next().map_or(Outcome::Unknown, |target| target.outcome)
            }
            Err(ClientError::GaveUp) => Outcome::Unknown,
            Err(error) => return Err(error.into()),
        };
        if outcome == Outcome::Accepted {
            let line = self.conversation.has_open_lines();
            self.conversation.sent();
            self.conversation.save()?;
            if line && self.conversation.open_items() == 0 {
                note("delivered to the server");
            }
            return Ok(());
        }
        if !std::mem::replace(&mut self.told_absent, true) {
            match outcome {
                Outcome::UnknownUser | Outcome::NoDevice => {
                    note("the other side has never been here; waiting");
                }
                Outcome::Accepted
                | Outcome::DevicesChanged { .. }
                | Outcome::Quota
                | Outcome::Unavailable
                | Outcome::NotAttempted
                | Outcome::Unknown => {
                    note(&format!("not accepted ({}); trying again", outcome.word()));
                }
            }
        }
        self.send_next(RETRY);
        Ok(())
    }

    fn on_event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Envelope(envelope) => self.on_envelope(envelope),
            Event::Truncated { why, .. } => {
                note(&format!(
                    "some messages are gone before they could be fetched ({})",
                    truncated_word(why)
                ));
                Ok(())
            }
            Event::BacklogEnd | Event::Ephemeral { .. } | _ => Ok(()),
        }
    }

    fn on_envelope(&mut self, envelope: Envelope) -> Result<()> {
        let is_peer = envelope.sender.as_ref().is_some_and(|sender| sender.user.as_str() == self.args.to);
        // Somebody else's: their conversation has its own device.
        if is_peer {
            let payload: Bytes = envelope.payload.clone();
            let news = self.conversation.receive(&payload)?;
            self.show(&news)?;
            self.conversation.save()?;
        }
        envelope.ack();
        Ok(())
    }

    fn show(&mut self, news: &News) -> Result<()> {
        match news {
            News::Nothing => {}
            News::Text(text) => {
                self.received += 1;
                say(&format!("{}: {}", printable(&self.args.to), printable(text)))?;
            }
            News::Established => note("encrypted between the two of you; /safety shows the safety number"),
            News::StartsAnew => {
                note(
                    "the other side has lost its state and starts anew; what it has not read by now is lost to it",
                );
            }
            News::KeyChanged => {
                eprintln!("******************************************************************************");
                eprintln!("WARNING: the other side shows ANOTHER KEY than before. Either it has a new");
                eprintln!("device, or someone in between is reading along. Nothing was accepted. Ask over");
                eprintln!("another channel; if it is all right, start again with --accept-new-key.");
                eprintln!("******************************************************************************");
            }
            News::Unreadable => {
                note("an envelope could not be read: damaged, or encrypted for a state that is lost");
            }
        }
        Ok(())
    }

    fn on_state(&mut self, state: State) -> Result<()> {
        match state {
            State::Connected { carrier, .. } => {
                self.connected_before = true;
                note(&format!("connected by {}", carrier.as_str()));
                Ok(())
            }
            State::Waiting { .. } if self.connected_before => {
                self.connected_before = false;
                note("connection lost, resuming…");
                Ok(())
            }
            State::Waiting { why, .. } => {
                note(&format!("not connected: {why}; trying again"));
                Ok(())
            }
            State::Connecting { .. } | State::Closed => Ok(()),
            State::Superseded => bail!("superseded: this device has connected elsewhere"),
            State::Failed(error) => Err(error.into()),
        }
    }

    /// Returns false if it says to leave.
    fn on_line(&mut self, line: &[u8]) -> Result<bool> {
        let line = String::from_utf8_lossy(line);
        match line.trim_end_matches('\r') {
            "" => {}
            "/quit" => return Ok(false),
            "/safety" => match self.conversation.safety_number() {
                Some(number) => say(&format!("safety number: {number}"))?,
                None => note("no safety number yet: the other side has not come"),
            },
            text if text.len() > LINE_BYTES_MAX => note("that line is too long; nothing was sent"),
            text => {
                self.conversation.say(text)?;
                self.conversation.save()?;
            }
        }
        Ok(true)
    }

    fn ended(&self) -> Result<()> {
        match self.client.state() {
            State::Failed(error) => Err(error.into()),
            State::Connecting { .. }
            | State::Connected { .. }
            | State::Waiting { .. }
            | State::Superseded
            | State::Closed => Ok(()),
        }
    }
}

/// A remark of ours.
fn note(text: &str) {
    eprintln!("({text})");
}

/// A line of the conversation.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("cannot write to the standard output")
}

/// Control characters of the other do not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { char::REPLACEMENT_CHARACTER } else { c }).collect()
}
