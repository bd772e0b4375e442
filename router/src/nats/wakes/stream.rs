//! Keeps the stream of wake hints there: made at start, looked for ever after. **Invariant:** a router serves without it.
//!
//! A router that starts sets the stream to its own settings; later it only makes it where it is missing, so that two routers
//! with different settings do not take turns.

use super::Publisher;
use crate::nats::wakestream::{self, Limits, Manner, PAUSE_MAX, PAUSE_MIN, Trouble};
use async_nats::jetstream::ContextBuilder;
use chappe_protocol::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// However often somebody asks for it, it is looked for at most so often.
const GAP_MIN: Duration = Duration::from_millis(100);
/// Makes the stream and looks for it until the bus is closed.
pub(super) async fn keep(publisher: Arc<Publisher>) {
    let shared = &publisher.shared;
    let context =
        ContextBuilder::new().timeout(publisher.config.answer_max.to_std()).build(shared.client.clone());
    let limits = Limits {
        replicas: publisher.config.replicas,
        bytes_max: publisher.config.stream_bytes_max,
        age_max: publisher.config.stream_age_max,
    };
    let wanted = wakestream::wanted(&limits, shared.subjects.wake_stream(), shared.subjects.wakes());
    let mut connections = shared.status.connections();
    let (mut manner, mut pause) = (Manner::Sets, PAUSE_MIN);
    loop {
        connections.mark_unchanged();
        let wait = match wakestream::look(&context, &wanted, manner).await {
            Ok(created) => {
                manner = Manner::Keeps;
                pause = PAUSE_MIN;
                publisher.stands(created);
                publisher.config.look_every
            }
            Err(trouble) => {
                publisher.fails(&trouble);
                let wait = pause;
                pause = Millis((pause.0 * 2).min(PAUSE_MAX.0));
                wait
            }
        };
        let jittered = wakestream::jittered(&*shared.world, wait);
        tokio::select! {
            biased;
            Ok(()) = connections.changed() => pause = PAUSE_MIN,
            () = publisher.look.notified() => tokio::time::sleep(GAP_MIN).await,
            () = tokio::time::sleep(jittered.to_std()) => {}
        }
    }
}

impl Publisher {
    fn stands(&self, created: bool) {
        if created {
            self.metrics.created.inc();
        }
        let was_told = self.trouble.send_replace(None).is_some();
        if created || was_told {
            tracing::info!(created, "the stream of wake hints is there");
        }
        self.set_up(true);
    }

    fn fails(&self, trouble: &Trouble) {
        self.set_up(false);
        let code = trouble.code();
        if self.trouble.send_replace(Some(code)) != Some(code) {
            tracing::warn!(
                "{code}: {trouble}; wake hints are lost until this ends, and nothing else: devices are woken later; {}",
                trouble.hint()
            );
        }
    }
}
