//! Spans of sampled work on their way to an OpenTelemetry collector (OTLP 1 over HTTP, protobuf). **Invariant:** nobody waits for a
//! collector: what it does not take in time is dropped and counted, and no span names people or payloads.

mod message;

use crate::config::{ConfigError, between, read_secret};
use crate::fetch::{FetchError, Fetcher, is_allowed, is_postable};
use crate::metrics::Family;
use crate::tls::trusting;
use bytes::Bytes;
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use prometheus::{IntCounter, Registry};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Spans that wait for the collector at most; some 200 bytes each.
const QUEUE_MAX: usize = 8_192;
/// Spans of one request.
const BATCH_MAX: usize = 512;
/// A span waits so long for others to share its request.
const LINGER: Duration = Duration::from_secs(2);
/// Attempts at a batch, with pauses that double from this one on, where the collector asks to come again (OTLP, "Failures").
const ATTEMPTS_MAX: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// For what is left when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(2);
/// Where a collector takes traces, unless the endpoint has a path.
const PATH: &str = "/v1/traces";
/// The media type of OTLP's messages.
const KIND: &str = "application/x-protobuf";

/// Which steps of which envelopes a collector is told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// An OpenTelemetry collector that takes OTLP over HTTP, such as `http://127.0.0.1:4318`; empty: none is told.
    pub otlp: String,
    /// One envelope in so many is traced, the same ones by all processes that have the same number.
    pub one_in: u32,
    /// PEM file of the authority that signed the collector's certificate; empty: a public one.
    pub authority: PathBuf,
    /// File with what the `Authorization` field says, such as `Bearer …`; empty: there is no such field.
    pub authorization: PathBuf,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self { otlp: String::new(), one_in: 1_000, authority: PathBuf::new(), authorization: PathBuf::new() }
    }
}

impl TracesConfig {
    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !self.otlp.is_empty() && !is_postable(&self.url()) {
            let hint =
                "give http://host:port or https://host:port of a collector, without a name and password";
            return Err(ConfigError::value("traces.otlp", hint));
        }
        if !self.authorization.as_os_str().is_empty() && !is_allowed(&self.url()) {
            let hint = "the secret goes by https:// or to this machine only";
            return Err(ConfigError::value("traces.authorization", hint));
        }
        between("traces.one_in", self.one_in, 1, 1_000_000_000)
    }

    /// Opens the way to the collector; [`Exporter::run`] goes it.
    /// Errors: a file cannot be read; the registry has these metrics already.
    pub fn open(
        &self,
        from: &Origin<'_>,
        world: &Arc<dyn World>,
        registry: &Registry,
    ) -> anyhow::Result<(Spans, Option<Exporter>)> {
        if self.otlp.is_empty() {
            return Ok((Spans::default(), None));
        }
        let counted = Counted::new(registry)?;
        let authorization = read_secret(&self.authorization, "traces.authorization")?;
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let sampling = Sampling {
            one_in: u64::from(self.one_in.max(1)),
            queue,
            dropped: counted.dropped.clone(),
            world: Arc::clone(world),
        };
        let exporter = Exporter {
            waiting,
            fetcher: Fetcher::new(trusting(&self.authority)?),
            url: self.url(),
            authorization,
            resource: message::resource(from),
            counted,
        };
        Ok((Spans(Some(Arc::new(sampling))), Some(exporter)))
    }

    /// Whether the collector takes a request without spans.
    /// Errors: a file cannot be read, or it does not.
    pub async fn try_out(&self) -> anyhow::Result<()> {
        let authorization = read_secret(&self.authorization, "traces.authorization")?;
        let fetcher = Fetcher::new(trusting(&self.authority)?);
        fetcher.post(&self.url(), KIND, &authorization, Bytes::new()).await?;
        Ok(())
    }

    fn url(&self) -> String {
        let bare = self.otlp.trim_end_matches('/');
        let has_path = bare.split_once("://").is_some_and(|(_, place)| place.contains('/'));
        if has_path { bare.to_owned() } else { format!("{bare}{PATH}") }
    }
}

/// Which process tells.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Its role.
    pub role: &'a str,
    /// The cluster's name; empty: there is none.
    pub cluster: &'a str,
    /// Its admin port: its name among its like.
    pub at: SocketAddr,
}

/// What a span stands for, in the words of OpenTelemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within.
    Internal = 1,
    /// A client's request.
    Server = 2,
    /// What somebody gets later than it was sent.
    Consumer = 5,
}

/// The value of an attribute. There is none for text that a client chose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// A count.
    Count(u64),
    /// A word of ours.
    Word(&'static str),
    /// Yes or no.
    Flag(bool),
}

impl From<u32> for Value {
    fn from(count: u32) -> Self {
        Self::Count(u64::from(count))
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

/// Where in its trace a span stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The one that all others of the trace have above them.
    Root,
    /// Below it.
    Child,
}

/// Work that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The trace's id; the root's is made of it, so that nobody has to be told.
    pub trace: [u8; 16],
    /// Where in it.
    pub place: Place,
    /// What was done.
    pub name: &'static str,
    /// For whom.
    pub kind: SpanKind,
    /// When it began.
    pub began: UnixMillis,
    /// When it ended.
    pub ended: UnixMillis,
    /// What else is to be said.
    pub attributes: Vec<(&'static str, Value)>,
}

/// A span with its own id.
#[derive(Debug)]
struct Named {
    span: Span,
    id: [u8; 8],
}

/// Where spans go; cheap to ask, and nowhere by default.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Sampling>>);

struct Sampling {
    one_in: u64,
    queue: mpsc::Sender<Named>,
    dropped: IntCounter,
    world: Arc<dyn World>,
}

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Spans(on)" } else { "Spans(off)" })
    }
}

impl Spans {
    /// Whether this trace is told of. Ids are digests, so their end is as good as drawn.
    pub fn samples(&self, trace: [u8; 16]) -> bool {
        let end = u128::from_be_bytes(trace) & u128::from(u64::MAX);
        self.0.as_ref().is_some_and(|sampling| end.is_multiple_of(u128::from(sampling.one_in)))
    }

    /// Tells of a span of a trace that [is sampled](Self::samples).
    pub fn tell(&self, span: Span) {
        let Some(sampling) = &self.0 else { return };
        let id = match span.place {
            Place::Root => root(span.trace),
            Place::Child => {
                let mut id = [0; 8];
                sampling.world.fill_random(&mut id);
                not_zero(id)
            }
        };
        if sampling.queue.try_send(Named { span, id }).is_err() {
            sampling.dropped.inc();
        }
    }
}

/// The root's id: the first half of the trace's.
fn root(trace: [u8; 16]) -> [u8; 8] {
    let (&half, _) = trace.split_first_chunk().unwrap_or((&[0; 8], &[]));
    not_zero(half)
}

/// An id of zeros is none.
fn not_zero(mut id: [u8; 8]) -> [u8; 8] {
    if id == [0; 8] {
        id[7] = 1;
    }
    id
}

/// How many spans came where.
struct Counted {
    sent: IntCounter,
    dropped: IntCounter,
    refused: IntCounter,
}

impl Counted {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe" };
        let spans = family.counters(
            "spans_total",
            "Spans for the collector: it took them, they were dropped since too many waited, or it took them in no attempt.",
            &["result"],
        )?;
        let of = |word| spans.with_label_values(&[word]);
        Ok(Self { sent: of("sent"), dropped: of("dropped"), refused: of("refused") })
    }
}

/// The way to a collector.
pub struct Exporter {
    waiting: mpsc::Receiver<Named>,
    fetcher: Fetcher,
    url: String,
    authorization: String,
    resource: message::Resource,
    counted: Counted,
}

impl Exporter {
    /// Sends batches until `ended`, then what is left.
    pub async fn run(mut self, ended: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        while ended.run_until_cancelled(self.fill(&mut batch)).await.is_some() {
            if batch.is_empty() {
                return;
            }
            let body = self.encode(&mut batch);
            if ended.run_until_cancelled(self.send(&body)).await.is_none() {
                self.settle(body.spans, false);
            }
        }
        let flushed = tokio::time::timeout(FLUSH_MAX, async {
            self.waiting.close();
            loop {
                while batch.len() < BATCH_MAX
                    && let Ok(span) = self.waiting.try_recv()
                {
                    batch.push(span);
                }
                if batch.is_empty() {
                    return;
                }
                let body = self.encode(&mut batch);
                self.send(&body).await;
            }
        });
        if flushed.await.is_err() {
            tracing::debug!("the collector did not take the last spans in time");
        }
    }

    /// Waits for a first span, and a little for more; none: nobody will tell of any.
    async fn fill(&mut self, batch: &mut Vec<Named>) {
        if batch.is_empty() && self.waiting.recv_many(batch, BATCH_MAX).await == 0 {
            return;
        }
        let more = async {
            while batch.len() < BATCH_MAX {
                let room = BATCH_MAX - batch.len();
                if self.waiting.recv_many(batch, room).await == 0 {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LINGER, more).await;
    }

    fn encode(&self, batch: &mut Vec<Named>) -> Body {
        let spans = batch.len();
        let request = message::request(&self.resource, batch.drain(..));
        Body { spans, bytes: request.encode_to_vec().into() }
    }

    async fn send(&self, body: &Body) {
        let mut pause = PAUSE;
        for attempt in 1..=ATTEMPTS_MAX {
            let bytes = body.bytes.clone();
            match self.fetcher.post(&self.url, KIND, &self.authorization, bytes).await {
                Ok(_) => return self.settle(body.spans, true),
                Err(error) if attempt < ATTEMPTS_MAX && may_pass(&error) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => {
                    tracing::warn!(%error, spans = body.spans, "the collector of traces did not take them");
                    break;
                }
            }
        }
        self.settle(body.spans, false);
    }

    fn settle(&self, spans: usize, taken: bool) {
        let counter = if taken { &self.counted.sent } else { &self.counted.refused };
        counter.inc_by(u64::try_from(spans).unwrap_or(u64::MAX));
    }
}

/// One request.
struct Body {
    spans: usize,
    bytes: Bytes,
}

/// Whether another attempt is allowed (OTLP/HTTP: 429, 502, 503, 504, and where there was no answer).
fn may_pass(error: &FetchError) -> bool {
    match error {
        FetchError::Status(_, status) => matches!(status.as_u16(), 429 | 502..=504),
        FetchError::Unreachable(..) | FetchError::Slow(_) => true,
        FetchError::Url | FetchError::Redirect(..) | FetchError::TooLarge(_) | FetchError::Page(_) => false,
    }
}

#[cfg(test)]
mod tests;
