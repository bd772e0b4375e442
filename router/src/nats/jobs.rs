//! Wake hints as a work queue: one durable pull consumer, which all pushers of a cluster share, gives each hint to one of them.
//! **Invariant:** a hint that is not done comes again to somebody, a bounded number of times; nothing here is waited for by whoever
//! finishes one. What is lost all the same stands in the store's `pending` rows.
//!
//! One pull asks for many hints and stays open while there are none: a quiet cluster costs a heartbeat now and then, a busy one no
//! round trip per hint. Hints that were taken and not yet asked for by [`WakeJobs::next`] are at most two pulls' worth; what has
//! waited there for as long as the server waits for an answer is skipped, for somebody else has it by then.

mod consumer;
mod feed;
mod metrics;

pub use metrics::WakeJobMetrics;

use super::config::BusRole;
use super::{BusError, NatsBus, Shared};
use async_nats::jetstream::AckKind;
use async_nats::{Subject, client::Client};
use bytes::Bytes;
use chappe_protocol::internode::WakeHint;
use chappe_protocol::time::{Millis, Time};
use futures_util::FutureExt;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Answers that wait for the connection; more are lost, and their hints come again.
const ANSWERS_MAX: usize = 4096;

/// How one pusher takes hints. What the stream may hold is the routers' to say (see [`super::WakeConfig`], same names); a pusher makes it
/// with these only where it is missing.
#[derive(Debug, Clone)]
pub struct WakeJobsConfig {
    /// Copies of the stream, 1 to 5; more than one needs as many servers.
    pub replicas: usize,
    /// Bytes of the stream; the oldest hints go first.
    pub stream_bytes_max: u64,
    /// The age at which a hint goes, done or not.
    pub stream_age_max: Millis,
    /// Hints of one pull; at most twice as many wait in this process.
    pub batch: usize,
    /// How long a pull stays open while there are no hints; at least twice `heartbeat`.
    pub pull_every: Millis,
    /// The server says so often that a pull still stands; twice as long without a word, and everything is looked for anew.
    pub heartbeat: Millis,
    /// A hint that is not answered for so long comes again.
    pub ack_wait: Millis,
    /// A hint comes at most so often, [`WakeJob::later`] included; after that the sweep of `pending` has it.
    pub deliver_max: u32,
    /// Hints of the whole cluster that are with pushers or come again later; with so many no pusher gets more.
    pub ack_pending_max: u32,
    /// An answer of JetStream that has not come after so long is not waited for.
    pub answer_max: Millis,
}

impl Default for WakeJobsConfig {
    fn default() -> Self {
        let stream = super::WakeConfig::default();
        Self {
            replicas: stream.replicas,
            stream_bytes_max: stream.stream_bytes_max,
            stream_age_max: stream.stream_age_max,
            batch: 128,
            pull_every: Millis::from_secs(30),
            heartbeat: Millis::from_secs(5),
            ack_wait: Millis::from_secs(15),
            deliver_max: 5,
            ack_pending_max: 65_536,
            answer_max: stream.answer_max,
        }
    }
}

/// The hints that this pusher is given. Dropped, it gives back what nobody has asked for yet.
pub struct WakeJobs {
    reader: Arc<Reader>,
    jobs: mpsc::Receiver<WakeJob>,
}

/// A hint that this pusher has to see to. Dropped without [`WakeJob::done`] or [`WakeJob::later`], it comes again to somebody after
/// `ack_wait`.
pub struct WakeJob {
    /// Which mailbox grew.
    pub hint: WakeHint,
    /// Where the answer goes.
    reply: Subject,
    arrived: Time,
    answers: Arc<Answers>,
}

/// What `WakeJobs` and its task share.
struct Reader {
    shared: Arc<Shared>,
    config: WakeJobsConfig,
    answers: Arc<Answers>,
    metrics: Arc<WakeJobMetrics>,
    /// Why no hints come.
    trouble: watch::Sender<Option<&'static str>>,
}

/// Gives answers to the connection without waiting for it.
struct Answers {
    client: Client,
    queue: mpsc::Sender<(Subject, Bytes)>,
    metrics: Arc<WakeJobMetrics>,
}

impl NatsBus {
    /// The wake hints of the cluster, shared with all other pushers. Makes stream and consumer in the background, and again when
    /// they are gone; JetStream need not be there. Once per pusher.
    #[allow(
        clippy::unused_async,
        reason = "like what else a role asks of the bus; the first subscription may move here"
    )]
    pub async fn wake_jobs(
        &self,
        config: WakeJobsConfig,
        metrics: Arc<WakeJobMetrics>,
    ) -> Result<WakeJobs, BusError> {
        let shared = Arc::clone(&self.shared);
        if shared.config.role != BusRole::Pusher {
            return Err(BusError::Config("role"));
        }
        config.check()?;
        let (queue, queued) = mpsc::channel(ANSWERS_MAX);
        let answers = Answers { client: shared.client.clone(), queue, metrics: Arc::clone(&metrics) };
        let answers = Arc::new(answers);
        shared.start(write_answers(shared.client.clone(), queued));
        let (sender, jobs) = mpsc::channel(config.batch);
        let trouble = watch::channel(None).0;
        let reader = Arc::new(Reader { shared, config, answers, metrics, trouble });
        reader.shared.start(feed::run(Arc::clone(&reader), sender));
        Ok(WakeJobs { reader, jobs })
    }
}

impl WakeJobsConfig {
    fn check(&self) -> Result<(), BusError> {
        let checks = [
            ((1..=4096).contains(&self.batch), "batch"),
            (self.heartbeat >= Millis(100), "heartbeat"),
            (self.pull_every.0 >= self.heartbeat.0.saturating_mul(2), "pull_every"),
            (self.ack_wait >= Millis(100), "ack_wait"),
            (self.deliver_max >= 1, "deliver_max"),
            (self.ack_pending_max >= 1, "ack_pending_max"),
        ];
        checks
            .into_iter()
            .try_for_each(|(good, name)| if good { Ok(()) } else { Err(BusError::Config(name)) })
    }
}

impl WakeJobs {
    /// The next hint; `None`: the bus was closed. May be dropped at any time.
    pub async fn next(&mut self) -> Option<WakeJob> {
        let shared = &self.reader.shared;
        loop {
            let job = tokio::select! {
                biased;
                () = shared.closed.cancelled() => None,
                job = self.jobs.recv() => job,
            }?;
            if shared.world.now() - job.arrived < self.reader.config.ack_wait {
                self.reader.metrics.given.inc();
                return Some(job);
            }
            self.reader.metrics.stale.inc();
        }
    }

    /// The code of what keeps hints from coming, as it was logged; `None`: nothing known.
    pub fn trouble(&self) -> Option<&'static str> {
        *self.reader.trouble.borrow()
    }
}

impl Drop for WakeJobs {
    fn drop(&mut self) {
        self.jobs.close();
        while let Ok(job) = self.jobs.try_recv() {
            job.give_back();
        }
    }
}

impl WakeJob {
    /// It is seen to, and comes no more. Does not wait; should the answer be lost, it comes again.
    pub fn done(self) {
        self.answers.metrics.done.inc();
        self.answers.send(&self.reply, AckKind::Ack);
    }

    /// Let it come again, to whichever pusher, after this time. Does not wait.
    pub fn later(self, after: Millis) {
        self.answers.metrics.later.inc();
        self.answers.send(&self.reply, AckKind::Nak((after > Millis(0)).then(|| after.to_std())));
    }

    fn give_back(self) {
        self.answers.send(&self.reply, AckKind::Nak(None));
    }
}

impl std::fmt::Debug for WakeJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A mailbox's id is not for logs.
        f.debug_struct("WakeJob").finish_non_exhaustive()
    }
}

impl Answers {
    /// At once where the connection's own queue has room, so that an answer is out before the bus is closed behind it.
    fn send(&self, reply: &Subject, kind: AckKind) {
        let bytes = Bytes::from(kind);
        let sending = self.client.publish(reply.clone(), bytes.clone());
        let lost = match sending.now_or_never() {
            Some(sent) => sent.is_err(),
            None => self.queue.try_send((reply.clone(), bytes)).is_err(),
        };
        if lost {
            self.metrics.answers_lost.inc();
        }
    }
}

async fn write_answers(client: Client, mut queued: mpsc::Receiver<(Subject, Bytes)>) {
    while let Some((reply, bytes)) = queued.recv().await {
        // Its hint comes again.
        let _ = client.publish(reply, bytes).await;
    }
}
