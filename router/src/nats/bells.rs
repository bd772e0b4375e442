//! Doorbells, out and in. **Invariant:** nobody waits for a doorbell; what does not fit is dropped and counted; those that
//! arrive at one gateway from one router stand in the order in which they were rung.

use super::Shared;
use super::config::NatsConfig;
use super::metrics::BusMetrics;
use crate::permits::{Bound, Permit};
use async_nats::Subscriber;
use bytes::Bytes;
use chappe_protocol::internode::Doorbell;
use futures_util::StreamExt;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// A doorbell that waits to be written.
pub(super) struct Bell {
    pub(super) subject: String,
    pub(super) payload: Bytes,
}

/// The doorbells of this process that wait to be written.
pub(super) struct Bells {
    bound: Bound,
    queue: mpsc::Sender<(Bell, Permit)>,
}

/// The other end.
pub(super) type Queued = mpsc::Receiver<(Bell, Permit)>;

impl Bells {
    pub(super) fn new(config: &NatsConfig, metrics: &BusMetrics) -> (Self, Queued) {
        let (bells_max, bytes_max) = (config.bells_max.max(1), config.bell_bytes_max);
        let (queue, queued) = mpsc::channel(bells_max);
        let gauges = (metrics.bell_queue.clone(), metrics.bell_queue_bytes.clone());
        (Self { bound: Bound::new(bells_max, bytes_max, gauges.0, gauges.1), queue }, queued)
    }

    /// Never waits.
    pub(super) fn push(&self, bell: Bell, metrics: &BusMetrics) {
        let permit = self.bound.try_take(1, bell.payload.len());
        let taken = permit.is_some_and(|permit| self.queue.try_send((bell, permit)).is_ok());
        if !taken {
            metrics.bells_dropped_full.inc();
        }
    }
}

/// Writes what waits, in order. While the connection is down this waits in the driver, and what comes is dropped at the door.
pub(super) async fn write(shared: Arc<Shared>, mut queued: Queued) {
    while let Some((bell, permit)) = queued.recv().await {
        if !shared.is_connected() {
            shared.metrics.bells_dropped_disconnected.inc();
        } else if shared.client.publish(bell.subject, bell.payload).await.is_ok() {
            shared.metrics.bells_sent.inc();
        }
        drop(permit);
    }
}

/// Hands the gateway's doorbells over. One that does not fit is dropped: a waiting reader would only move the loss.
pub(super) async fn hear(shared: Arc<Shared>, mut subscription: Subscriber, gateway: mpsc::Sender<Doorbell>) {
    while let Some(message) = subscription.next().await {
        let bell = match Doorbell::decode(message.payload, shared.config.cluster) {
            Ok(bell) => bell,
            Err(error) => {
                shared.useless(error);
                continue;
            }
        };
        match gateway.try_send(bell) {
            Ok(()) => shared.metrics.bells_heard.inc(),
            Err(TrySendError::Full(_)) => {
                shared.metrics.bells_dropped_full.inc();
                shared.status.alarm();
            }
            Err(TrySendError::Closed(_)) => return,
        }
    }
}
