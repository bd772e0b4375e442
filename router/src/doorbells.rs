//! Rings the gateways, and hints whoever wakes devices. **Invariant:** no append waits for a doorbell or a hint; too many of them are
//! dropped and counted.

use crate::Shared;
use crate::planted::PlantedBug;
use crate::presence::{self, DeviceLease};
use crate::submit::{filter_bytes, names_bytes};
use chappe_protocol::envelope::SlotBody;
use chappe_protocol::id::{DeviceId, EnvelopeId, MailboxId, Seq};
use chappe_protocol::internode::{Attached, Doorbell, EphemeralSubmit, Reply, Ring, WakeHint};
use chappe_protocol::time::{Millis, UnixMillis};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// Presence that does not answer within this time does not answer.
const PRESENCE_WAIT: Millis = Millis(2000);
/// An attached device has so long to ack before it counts as gone (gateways close it then) and is to be woken.
pub(crate) const ACK_TIME: Millis = Millis(20_000);
/// What a doorbell counts beside its payload and the names in its filter.
const BELL_BYTES: usize = 256;

/// What whoever wakes devices is told.
pub(crate) struct Waking {
    /// Due when attached devices have had time to ack.
    pub(crate) hint: WakeHint,
    /// The devices that the slots are for; `None`: no device set is at hand.
    pub(crate) targets: Option<Vec<DeviceId>>,
}

impl Waking {
    /// At once if one of the devices sleeps, as far as is known; later if all are attached. Where that is not known (presence does
    /// not answer, or no device set is at hand: one of more than 64 devices, or from before a slow append) at once too: nobody
    /// is woken late, the reader of the hint asks presence again, and it costs the router no read.
    fn due(&self, leases: Option<&[DeviceLease]>) -> UnixMillis {
        let (Some(leases), Some(targets)) = (leases, &self.targets) else { return self.hint.at };
        let has_lease = |device: &DeviceId| leases.iter().any(|lease| lease.device == *device);
        if targets.iter().all(has_lease) { self.hint.due } else { self.hint.at }
    }
}

/// A mailbox grew: rings, and hints. Which of several devices sleeps the reader of the hint finds out.
pub(crate) fn grew(
    shared: &Arc<Shared>,
    mailbox: MailboxId,
    rings: Vec<Ring>,
    envelopes: Vec<EnvelopeId>,
    waking: Option<Waking>,
) {
    let Some(rings) = plant(shared, rings) else { return };
    let _nobody_waits = start(shared, mailbox, rings, envelopes, waking);
}

/// Rings every gateway that leases a device of the mailbox.
fn ring(shared: &Arc<Shared>, mailbox: MailboxId, rings: Vec<Ring>) -> Option<Ringing> {
    start(shared, mailbox, rings, Vec::new(), None)
}

/// Where the ringing is.
enum Ringing {
    /// Over: presence is in this process.
    Done,
    /// In a task of its own.
    Running(JoinHandle<Option<()>>),
}

/// What is to be rung.
struct Bells {
    mailbox: MailboxId,
    rings: Vec<Ring>,
    /// The envelopes that it is about.
    envelopes: Vec<EnvelopeId>,
    waking: Option<Waking>,
}

/// Rings every gateway that leases a device of the mailbox, in the order given, for these envelopes; in a task of its own if presence
/// has to be waited for. `None`: too much is being rung, or the router was killed.
fn start(
    shared: &Arc<Shared>,
    mailbox: MailboxId,
    rings: Vec<Ring>,
    envelopes: Vec<EnvelopeId>,
    waking: Option<Waking>,
) -> Option<Ringing> {
    let count = rings.len();
    let names = waking.iter().filter_map(|waking| waking.targets.as_deref()).map(names_bytes);
    let bytes = rings.iter().map(ring_bytes).chain(names).sum();
    let Some(permit) = shared.bells.try_take(count, bytes) else {
        shared.metrics.doorbells_dropped_router.inc_by(count as u64);
        if let Some(waking) = waking {
            wake(shared, waking.hint);
        }
        return None;
    };
    if shared.killed.is_cancelled() {
        return None;
    }
    let bells = Bells { mailbox, rings, envelopes, waking };
    if let Some(leases) = shared.presence.devices_at_hand(mailbox) {
        bells.ring(shared, Some(&leases));
        return Some(Ringing::Done);
    }
    let (task_of, killed) = (Arc::clone(shared), shared.killed.clone());
    let task = async move {
        let leases = task_of.presence.devices(mailbox);
        let leases = tokio::time::timeout(PRESENCE_WAIT.to_std(), leases).await.unwrap_or_default();
        bells.ring(&task_of, leases.as_deref());
        drop(permit);
    };
    Some(Ringing::Running(shared.tasks.spawn(async move { killed.run_until_cancelled(task).await })))
}

impl Bells {
    /// By these leases; `None`: presence does not answer.
    fn ring(self, shared: &Shared, leases: Option<&[DeviceLease]>) {
        let gateways = presence::gateways(leases.unwrap_or_default());
        for ring in self.rings {
            for gateway in &gateways {
                shared.links.ring(*gateway, Doorbell { mailbox: self.mailbox, ring: ring.clone() });
                shared.metrics.doorbells.inc();
            }
        }
        let at = shared.world.wall();
        for envelope in self.envelopes {
            shared.config.traces.rung(envelope, gateways.len(), at);
        }
        if let Some(waking) = self.waking {
            let due = waking.due(leases);
            wake(shared, WakeHint { due, ..waking.hint });
        }
    }
}

fn wake(shared: &Shared, hint: WakeHint) {
    shared.metrics.wake_hints.inc();
    shared.wakes.hint(hint);
}

/// A device has attached or was revoked: its other gateways close the older sessions. The answer comes when they have been rung:
/// the newer session's lease, which follows it, takes the place of the one by which they are found.
pub(crate) async fn attached(shared: &Arc<Shared>, attached: Attached) -> Reply {
    shared.device_sets.forget(attached.mailbox);
    if let Some(Ringing::Running(task)) = ring(shared, attached.mailbox, vec![Ring::Session(attached.news)]) {
        let _killed = task.await;
    }
    Reply::Attached
}

/// Rings with a payload that is stored nowhere. Who sends too much was stopped by the gateway.
pub(crate) fn ephemeral(shared: &Arc<Shared>, submit: EphemeralSubmit) -> Reply {
    let EphemeralSubmit { sender, targets, payloads, urgency } = submit;
    let config = &shared.config;
    let good = targets.len() <= config.lists_max
        && targets.iter().all(|(_, devices, payload)| {
            payloads.get(*payload).is_some_and(|bytes| bytes.len() <= config.ephemeral_bytes_max)
                && crate::submit::filter_is_bounded(devices, config.filter_devices_max)
        });
    if !good {
        return crate::submit::refuse_invalid(shared, "ephemeral");
    }
    for (mailbox, devices, payload) in targets {
        let Some(payload) = payloads.get(payload).cloned() else { continue };
        let ephemeral = Ring::Ephemeral { sender: sender.clone(), devices, payload, urgency };
        let _nobody_waits = ring(shared, mailbox, vec![ephemeral]);
    }
    Reply::Ephemeral
}

fn ring_bytes(ring: &Ring) -> usize {
    let content = match ring {
        Ring::Grew { slot: Some(slot), .. } => match &slot.body {
            SlotBody::Present(payload) => payload.len() + filter_bytes(&slot.devices),
            SlotBody::Expired | SlotBody::Lost => filter_bytes(&slot.devices),
        },
        Ring::Grew { slot: None, .. } | Ring::Session(_) => 0,
        Ring::Ephemeral { devices, payload, .. } => payload.len() + filter_bytes(devices),
    };
    BELL_BYTES + content
}

/// What a planted bug makes of the rings; `None`: nothing rings.
fn plant(shared: &Shared, rings: Vec<Ring>) -> Option<Vec<Ring>> {
    let grew = matches!(rings.first(), Some(Ring::Grew { .. }));
    if grew && shared.config.has_bug(PlantedBug::DropDoorbells) {
        return None;
    }
    if !shared.config.has_bug(PlantedBug::BellAhead) {
        return Some(rings);
    }
    let ahead = |ring| match ring {
        Ring::Grew { seq, slot } => {
            let seq = Seq(seq.0 + 1);
            let slot = slot.map(|slot| chappe_protocol::envelope::Slot { seq, ..slot });
            Ring::Grew { seq, slot }
        }
        other @ (Ring::Session(_) | Ring::Ephemeral { .. }) => other,
    };
    Some(rings.into_iter().map(ahead).collect())
}
