//! Takes doorbells to the sessions they are for. **Invariant:** one task, never waiting for a session.

use crate::handle::Whisper;
use crate::shared::Gateway;
use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::{DeviceNews, Doorbell, Ring};
use tokio::sync::mpsc;

/// Doorbells of one turn: with fewer, thousands of busy sessions would have theirs between two turns, and the queue would run over.
const TURN_MAX: usize = 1024;

/// Hears doorbells until the links drop the gateway.
pub(crate) async fn run(gateway: &Gateway, mut bells: mpsc::Receiver<Doorbell>) {
    let mut turn = Vec::new();
    while bells.recv_many(&mut turn, TURN_MAX).await > 0 {
        gateway.metrics.doorbells_total.inc_by(turn.len() as u64);
        gateway.metrics.doorbell_queue.set(i64::try_from(bells.len()).unwrap_or(i64::MAX));
        for bell in turn.drain(..) {
            hear(gateway, bell);
        }
    }
}

fn hear(gateway: &Gateway, bell: Doorbell) {
    match bell.ring {
        Ring::Grew { seq, slot } => {
            #[cfg(feature = "testing")]
            let slot = slot.map(|mut slot| {
                if gateway.has_bug(crate::faults::Bug::DeliverToWrongDevice) {
                    slot.devices = chappe_protocol::envelope::DeviceFilter::All;
                }
                slot
            });
            for handle in gateway.registry.of(bell.mailbox) {
                if !handle.ring(seq, slot.clone()) {
                    gateway.metrics.doorbell_payloads_dropped_total.inc();
                }
            }
        }
        Ring::Session(news) => tell_news(gateway, bell.mailbox, &news),
        Ring::Ephemeral { sender, devices, payload, urgency } => {
            let whisper = Whisper { sender, devices, payload, urgency };
            for handle in gateway.registry.of(bell.mailbox) {
                if whisper.devices.names(&handle.device) && !handle.whisper(whisper.clone()) {
                    gateway.metrics.ephemerals_dropped_total.inc();
                }
            }
        }
    }
}

/// Tells the sessions of a device of its newest one.
pub(crate) fn tell_news(gateway: &Gateway, mailbox: MailboxId, news: &DeviceNews) {
    #[cfg(feature = "testing")]
    if gateway.has_bug(crate::faults::Bug::IgnoreSupersede) {
        return;
    }
    for handle in gateway.registry.of(mailbox) {
        if handle.device == news.device {
            handle.news(news);
        }
    }
}
