//! Pulls hints and hands them to whoever works. **Invariant:** it asks for more only when what it got was taken, and whatever ends a pull
//! it begins again, for ever, with pauses that grow and are jittered.

use super::consumer::Wanted;
use super::{Reader, WakeJob};
use crate::nats::wakestream::{PAUSE_MAX, PAUSE_MIN, Trouble, jittered};
use async_nats::jetstream::ContextBuilder;
use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use chappe_protocol::internode::WakeHint;
use chappe_protocol::time::Millis;
use futures_util::{FutureExt, StreamExt};
use serde::Serialize;
use std::sync::Arc;
use tokio::sync::mpsc;

/// What is asked of the consumer; spans in nanoseconds.
#[derive(Serialize)]
struct Pull {
    batch: usize,
    expires: u128,
    idle_heartbeat: u128,
}

/// Why a run of pulls ended.
enum End {
    /// Nobody wants jobs any more.
    Unwanted,
    /// The connection is another one; what was asked for over the old one is gone.
    Reconnected,
    /// Something is wrong.
    Trouble(Trouble),
}

/// What a message in the inbox is.
enum Heard {
    Job(WakeJob),
    /// A hint that is of no use; answered.
    Refused,
    /// The pull stands.
    Heartbeat,
    /// The pull has ended; another may follow.
    Over,
    Trouble(Trouble),
}

/// Runs until the bus is closed or nobody wants jobs any more.
pub(super) async fn run(reader: Arc<Reader>, jobs: mpsc::Sender<WakeJob>) {
    let shared = &reader.shared;
    let wanted = Wanted::new(&reader.config, shared.subjects.wake_stream(), shared.subjects.wakes());
    let context =
        ContextBuilder::new().timeout(reader.config.answer_max.to_std()).build(shared.client.clone());
    let mut connections = shared.status.connections();
    let (mut first, mut pause) = (true, PAUSE_MIN);
    loop {
        connections.mark_unchanged();
        let looked = tokio::select! {
            biased;
            () = jobs.closed() => return,
            looked = wanted.look(&context, first) => looked,
        };
        let end = match looked {
            Err(trouble) => End::Trouble(trouble),
            Ok(created) => {
                first = false;
                if created {
                    reader.metrics.created.inc();
                }
                let mut pulls =
                    Pulls { reader: &reader, next: wanted.next(), pulled: 0, left: 0, pause: &mut pause };
                pulls.run(&jobs, &mut connections).await
            }
        };
        let trouble = match end {
            End::Unwanted => return,
            End::Reconnected => continue,
            End::Trouble(trouble) => trouble,
        };
        reader.fails(&trouble);
        let wait = jittered(&*shared.world, pause);
        pause = Millis((pause.0 * 2).min(PAUSE_MAX.0));
        tokio::select! {
            biased;
            () = jobs.closed() => return,
            Ok(()) = connections.changed() => pause = PAUSE_MIN,
            () = tokio::time::sleep(wait.to_std()) => {}
        }
    }
}

/// Pulls over one subscription.
struct Pulls<'a> {
    reader: &'a Arc<Reader>,
    next: String,
    /// How many there were; stands in the subject that the answers to one come on.
    pulled: u64,
    /// Hints that may still come for the latest.
    left: usize,
    /// Short again as soon as the consumer answers.
    pause: &'a mut Millis,
}

impl Pulls<'_> {
    /// Pulls until something is in the way. What has arrived and nobody takes is given back.
    async fn run(
        &mut self,
        jobs: &mpsc::Sender<WakeJob>,
        connections: &mut tokio::sync::watch::Receiver<u64>,
    ) -> End {
        let shared = &self.reader.shared;
        let inbox = shared.client.new_inbox();
        let Ok(mut answers) = shared.subscribe(format!("{inbox}.*")).await else {
            return End::Trouble(Trouble::Silent);
        };
        let end = tokio::select! {
            biased;
            () = jobs.closed() => End::Unwanted,
            Ok(()) = connections.changed() => End::Reconnected,
            end = self.feed(&inbox, &mut answers, jobs) => end,
        };
        let _ = answers.unsubscribe().await;
        while let Some(Some(message)) = answers.next().now_or_never() {
            if let Heard::Job(job) = self.hear(message) {
                job.give_back();
            }
        }
        end
    }

    async fn feed(&mut self, inbox: &str, answers: &mut Subscriber, jobs: &mpsc::Sender<WakeJob>) -> End {
        // One heartbeat may be lost, and the next late.
        let silence_max = Millis(self.reader.config.heartbeat.0 * 2 + self.reader.config.answer_max.0);
        loop {
            if self.left == 0 && !self.pull(inbox).await {
                return End::Trouble(Trouble::Silent);
            }
            // Room first: a job in hand would be lost for a while if this were dropped.
            let Ok(room) = jobs.reserve().await else { return End::Unwanted };
            let Ok(message) = tokio::time::timeout(silence_max.to_std(), answers.next()).await else {
                return End::Trouble(Trouble::Silent);
            };
            let Some(message) = message else { return End::Trouble(Trouble::Silent) };
            let heard = self.hear(message);
            if !matches!(heard, Heard::Trouble(_)) {
                *self.pause = PAUSE_MIN;
                self.reader.stands();
            }
            match heard {
                Heard::Job(job) => {
                    self.left = self.left.saturating_sub(1);
                    room.send(job);
                }
                Heard::Refused => self.left = self.left.saturating_sub(1),
                Heard::Heartbeat => {}
                Heard::Over => self.left = 0,
                Heard::Trouble(trouble) => return End::Trouble(trouble),
            }
        }
    }

    /// Asks for hints. `false`: the connection does not take it.
    async fn pull(&mut self, inbox: &str) -> bool {
        let config = &self.reader.config;
        let pull = Pull {
            batch: config.batch,
            expires: config.pull_every.to_std().as_nanos(),
            idle_heartbeat: config.heartbeat.to_std().as_nanos(),
        };
        let Ok(bytes) = serde_json::to_vec(&pull) else { return false };
        self.pulled += 1;
        self.left = config.batch;
        let reply = format!("{inbox}.{}", self.pulled);
        let asking =
            self.reader.shared.client.publish_with_reply(self.next.clone(), reply, Bytes::from(bytes));
        matches!(tokio::time::timeout(config.answer_max.to_std(), asking).await, Ok(Ok(())))
    }

    fn hear(&self, message: Message) -> Heard {
        let Some(status) = message.status else { return self.reader.hint(message) };
        let pull = message.subject.as_str().rsplit('.').next().and_then(|last| last.parse().ok());
        if pull != Some(self.pulled) || status == StatusCode::IDLE_HEARTBEAT {
            return Heard::Heartbeat;
        }
        match status {
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => Heard::Over,
            StatusCode::NO_RESPONDERS => Heard::Trouble(Trouble::Missing),
            _ => {
                let why = message.description.unwrap_or_default();
                if why.eq_ignore_ascii_case("batch completed") {
                    Heard::Over
                } else if why.to_ascii_lowercase().contains("deleted") {
                    Heard::Trouble(Trouble::Missing)
                } else {
                    // The consumer's server ends or is another now, or it has too many pulls.
                    Heard::Trouble(Trouble::Consumer(why))
                }
            }
        }
    }
}

impl Reader {
    fn hint(&self, message: Message) -> Heard {
        let metrics = &self.metrics;
        let Some(reply) = message.reply else {
            self.shared.metrics.invalid.inc();
            return Heard::Refused;
        };
        let (delivered, waiting) = counts(&reply);
        metrics.waiting.set(waiting);
        if delivered > 1 {
            metrics.repeated.inc();
        }
        match WakeHint::decode(&message.payload, self.shared.config.cluster) {
            Ok(hint) => {
                let arrived = self.shared.world.now();
                Heard::Job(WakeJob { hint, reply, arrived, answers: Arc::clone(&self.answers) })
            }
            Err(error) => {
                metrics.refused.inc();
                self.shared.useless(error);
                // It would be no better another time.
                self.answers.send(&reply, async_nats::jetstream::AckKind::Term);
                Heard::Refused
            }
        }
    }

    /// The consumer has answered.
    fn stands(&self) {
        if self.trouble.borrow().is_some() {
            self.trouble.send_replace(None);
            tracing::info!("wake hints come again");
        }
        self.metrics.up.set(1);
    }

    fn fails(&self, trouble: &Trouble) {
        self.metrics.up.set(0);
        let code = trouble.code();
        if self.trouble.send_replace(Some(code)) != Some(code) {
            tracing::warn!(
                "{code}: {trouble}; no wake hints come until this ends, and devices are woken by the sweep alone; {}",
                trouble.hint()
            );
        }
    }
}

/// How often the hint was given to somebody, and how many are behind it, as the subject for its answer tells (NATS ADR-15):
/// `$JS.ACK.<stream>.<consumer>.<delivered>.<…>.<…>.<…>.<waiting>`, or with domain and account in front of the stream.
fn counts(reply: &str) -> (u64, i64) {
    let tokens: Vec<&str> = reply.split('.').collect();
    let (delivered, waiting) = if tokens.len() > 9 { (6, 10) } else { (4, 8) };
    let number = |at: usize| tokens.get(at).and_then(|token| token.parse::<i64>().ok()).unwrap_or_default();
    (number(delivered).unsigned_abs(), number(waiting))
}

#[cfg(test)]
mod tests {
    use super::counts;

    #[test]
    fn the_subject_for_an_answer_tells_how_often_and_how_many() {
        assert_eq!(counts("$JS.ACK.chappe-a-wake.pushers.2.17.5.1767225600000000000.40"), (2, 40));
        assert_eq!(counts("$JS.ACK.hub.ACC.chappe-a-wake.pushers.3.17.5.1767225600000000000.7.x"), (3, 7));
        assert_eq!(counts("else"), (0, 0));
    }
}
