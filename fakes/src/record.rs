//! What came in, and what was made of it. **Invariant:** every request that was read whole is here once, in the order in
//! which it was judged.

use crate::error::FakeError;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Entries kept at most; the oldest goes first. Counts go on.
const ENTRIES_MAX: usize = 200_000;
/// Bytes of bodies kept at most.
const BODIES_BYTES_MAX: usize = 128 * 1024 * 1024;
/// How long [`Record::wait_for`] waits.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// How a request came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
}

/// What a request wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To wake a device.
    Wake,
    /// An access token (FCM's token endpoint).
    Login,
}

/// What was made of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was right: a real provider would have taken it.
    Accepted {
        /// The provider's id of the message.
        id: String,
    },
    /// Something was wrong.
    Refused {
        /// HTTP status of the answer.
        status: u16,
        /// The provider's word.
        reason: String,
        /// In plain words: what was expected, what was found. Without tokens, keys or payload.
        why: String,
    },
    /// Not judged: the script decided.
    Scripted {
        /// Name of the step.
        step: &'static str,
        /// HTTP status, if there was an answer.
        status: Option<u16>,
    },
    /// Not judged: on a stream after the last one that GOAWAY named, or over the stream limit.
    Unprocessed,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Counts from 1, over wakes and logins.
    pub number: u64,
    /// What it wanted.
    pub kind: Kind,
    /// Which connection it came on; counts from 1.
    pub connection: u64,
    /// HTTP/2 stream id; in HTTP/1.1 the number of the request on its connection.
    pub stream: u32,
    /// How it came.
    pub carrier: Carrier,
    /// When it was judged, by the fake's clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Headers in order, names in lower case. Authorizations are among them: not for logs.
    pub headers: Vec<(String, String)>,
    /// The body as it came.
    pub body: Bytes,
    /// Web Push: the body decrypted, without padding. APNs and FCM: nothing.
    pub plain: Option<Bytes>,
    /// Whom it was for: device token, FCM token or endpoint.
    pub target: Option<String>,
    /// The step of the script that it met.
    pub step: Option<&'static str>,
    /// What was made of it.
    pub verdict: Verdict,
}

impl Entry {
    /// The first header of this name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(held, _)| held == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; `Null` if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Whether it was accepted.
    pub fn accepted(&self) -> bool {
        matches!(self.verdict, Verdict::Accepted { .. })
    }

    /// The reason it was refused for.
    pub fn refused_for(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Refused { reason, .. } => Some(reason),
            Verdict::Accepted { .. } | Verdict::Scripted { .. } | Verdict::Unprocessed => None,
        }
    }
}

/// How many of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Wakes of every verdict.
    pub wakes: u64,
    /// Wakes accepted.
    pub accepted: u64,
    /// Wakes refused.
    pub refused: u64,
    /// Wakes that the script decided.
    pub scripted: u64,
    /// Wakes not processed.
    pub unprocessed: u64,
    /// Of those, the ones on streams over the limit that the client had acknowledged.
    pub over_limit: u64,
    /// Requests for access tokens.
    pub logins: u64,
    /// Connections accepted by the listener.
    pub connections: u64,
    /// Connections whose TLS or HTTP/2 could not be agreed upon.
    pub handshakes_failed: u64,
    /// HTTP/2 PINGs received, acknowledgements not counted.
    pub pings: u64,
}

/// What came in.
#[derive(Debug)]
pub struct Record {
    held: Mutex<Held>,
    counts: watch::Sender<Counts>,
}

#[derive(Debug, Default)]
struct Held {
    entries: VecDeque<Entry>,
    bytes: usize,
    number: u64,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::default(), counts: watch::Sender::new(Counts::default()) }
    }

    /// All entries that are kept, oldest first.
    pub fn entries(&self) -> Vec<Entry> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).entries.iter().cloned().collect()
    }

    /// The wakes among the entries.
    pub fn wakes(&self) -> Vec<Entry> {
        let mut entries = self.entries();
        entries.retain(|entry| entry.kind == Kind::Wake);
        entries
    }

    /// Entries after this number, oldest first: for whoever follows along.
    pub fn after(&self, number: u64) -> Vec<Entry> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = held.entries.iter().rev().take_while(|entry| entry.number > number);
        let mut newer: Vec<Entry> = newer.cloned().collect();
        newer.reverse();
        newer
    }

    /// How many of what.
    pub fn counts(&self) -> Counts {
        *self.counts.borrow()
    }

    /// Waits until `count` wakes came since the start, of every verdict, and gives all that are kept. After 30 s:
    /// [`FakeError::Late`].
    pub async fn wait_for(&self, count: u64) -> Result<Vec<Entry>, FakeError> {
        self.wait(count, |counts| counts.wakes).await
    }

    /// Waits until `count` wakes were accepted since the start, as [`Record::wait_for`].
    pub async fn wait_for_accepted(&self, count: u64) -> Result<Vec<Entry>, FakeError> {
        self.wait(count, |counts| counts.accepted).await
    }

    /// Changes with every count.
    pub fn follow(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    async fn wait(&self, wanted: u64, of: impl Fn(&Counts) -> u64) -> Result<Vec<Entry>, FakeError> {
        let mut follow = self.follow();
        let reached = tokio::time::timeout(WAIT_MAX, follow.wait_for(|counts| of(counts) >= wanted)).await;
        match reached {
            Ok(Ok(_)) => Ok(self.wakes()),
            Ok(Err(_)) | Err(_) => {
                Err(FakeError::Late { wanted, seen: of(&self.counts()), waited: WAIT_MAX })
            }
        }
    }

    /// Counts something that is no request.
    pub(crate) fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.counts.send_modify(change);
    }

    /// Adds an entry and gives it its number.
    pub(crate) fn add(&self, mut entry: Entry) {
        let (kind, verdict) = (entry.kind, entry.verdict.clone());
        {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.number += 1;
            entry.number = held.number;
            held.bytes += entry.body.len();
            held.entries.push_back(entry);
            while held.entries.len() > ENTRIES_MAX || held.bytes > BODIES_BYTES_MAX {
                let Some(oldest) = held.entries.pop_front() else { break };
                held.bytes -= oldest.body.len();
            }
        }
        self.counts.send_modify(|counts| match kind {
            Kind::Login => counts.logins += 1,
            Kind::Wake => {
                counts.wakes += 1;
                match verdict {
                    Verdict::Accepted { .. } => counts.accepted += 1,
                    Verdict::Refused { .. } => counts.refused += 1,
                    Verdict::Scripted { .. } => counts.scripted += 1,
                    Verdict::Unprocessed => counts.unprocessed += 1,
                }
            }
        });
    }
}
