//! Messages between nodes to bytes. **Invariant:** the same message always becomes the same bytes.

use super::{
    Announcement, Answer, DeviceNews, Doorbell, EntryResult, EphemeralSubmit, ListReply, MailboxNews,
    Outcome, ProbeReply, Refusal, Reply, Request, Ring, RouterState, Stamp, Submit, SubmitEntry, SubmitList,
    VERSION_MAJOR, VERSION_MINOR, WakeHint,
};
use crate::envelope::{DeviceFilter, Sender, Slot, SlotBody, Urgency};
use crate::id::{ClusterId, DeviceId, TraceId};
use crate::wire::internode as wire;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use prost::Message;

impl Request {
    /// The request's bytes. A submit's own budget is not written: the stamp's stands for it.
    pub fn encode(&self, cluster: ClusterId, stamp: Stamp) -> Vec<u8> {
        use wire::request::Body;
        let body = match self {
            Self::Submit(submit) => Body::Submit(self::submit(submit)),
            Self::Ephemeral(submit) => Body::Ephemeral(ephemeral_submit(submit)),
            Self::Probe(probe) => Body::Probe(wire::Probe {
                as_of_ms: probe.as_of.map(|at| at.0),
                known: probe
                    .known
                    .iter()
                    .map(|(mailbox, head)| wire::KnownHead { mailbox: id(&mailbox.0), head: head.0 })
                    .collect(),
            }),
            Self::Base(mailbox) => Body::Base(id(&mailbox.0)),
            Self::Attached(attached) => Body::Attached(wire::Attached {
                mailbox: id(&attached.mailbox.0),
                news: Some(device_news(&attached.news)),
            }),
        };
        let trace = if stamp.trace == TraceId::default() { Bytes::new() } else { id(&stamp.trace.0) };
        wire::Request {
            major: VERSION_MAJOR,
            minor: VERSION_MINOR,
            cluster: id(&cluster.0),
            budget_ms: stamp.budget.0,
            trace,
            body: Some(body),
        }
        .encode_to_vec()
    }
}

impl Answer {
    /// The answer's bytes.
    pub fn encode(&self, cluster: ClusterId) -> Vec<u8> {
        use wire::answer::Body;
        let body = match self {
            Self::Reply(Reply::Submit(lists)) => {
                Body::Submit(wire::SubmitReply { lists: lists.iter().map(list_reply).collect() })
            }
            Self::Reply(Reply::Ephemeral) => Body::Ephemeral(wire::Empty {}),
            Self::Reply(Reply::Probe(reply)) => Body::Probe(probe_reply(reply)),
            Self::Reply(Reply::Base(bucket)) => Body::Base(wire::Base { bucket: bucket.0 }),
            Self::Reply(Reply::Attached) => Body::Attached(wire::Empty {}),
            Self::Reply(Reply::Unavailable) => Body::Unavailable(wire::Empty {}),
            Self::Refused(refusal) => Body::Refused(self::refusal(*refusal).into()),
        };
        wire::Answer { major: VERSION_MAJOR, minor: VERSION_MINOR, cluster: id(&cluster.0), body: Some(body) }
            .encode_to_vec()
    }
}

impl Doorbell {
    /// The doorbell's bytes.
    pub fn encode(&self, cluster: ClusterId) -> Vec<u8> {
        use wire::doorbell::Ring as Wire;
        let ring = match &self.ring {
            Ring::Grew { seq, slot } => {
                Wire::Grew(wire::Grew { seq: seq.0, slot: slot.as_ref().map(self::slot) })
            }
            Ring::Session(news) => Wire::Session(device_news(news)),
            Ring::Ephemeral { sender, devices, payload, urgency } => Wire::Ephemeral(wire::EphemeralRing {
                sender: Some(self::sender(sender)),
                devices: match devices {
                    DeviceFilter::All => None,
                    DeviceFilter::Only(ids) => Some(wire::ephemeral_ring::Devices::Only(list(ids))),
                    DeviceFilter::AllBut(ids) => Some(wire::ephemeral_ring::Devices::AllBut(list(ids))),
                },
                payload: payload.clone(),
                urgency: self::urgency(*urgency).into(),
            }),
        };
        wire::Doorbell {
            major: VERSION_MAJOR,
            minor: VERSION_MINOR,
            cluster: id(&cluster.0),
            mailbox: id(&self.mailbox.0),
            ring: Some(ring),
        }
        .encode_to_vec()
    }
}

impl Announcement {
    /// The announcement's bytes.
    pub fn encode(&self, cluster: ClusterId) -> Vec<u8> {
        let state = match self.state {
            RouterState::Live => wire::RouterState::Live,
            RouterState::Draining => wire::RouterState::Draining,
            RouterState::Gone => wire::RouterState::Gone,
        };
        wire::Announcement {
            major: VERSION_MAJOR,
            minor: VERSION_MINOR,
            cluster: id(&cluster.0),
            router: self.router,
            state: state.into(),
        }
        .encode_to_vec()
    }
}

impl WakeHint {
    /// The hint's bytes.
    pub fn encode(&self, cluster: ClusterId) -> Vec<u8> {
        wire::WakeHint {
            major: VERSION_MAJOR,
            minor: VERSION_MINOR,
            cluster: id(&cluster.0),
            mailbox: id(&self.mailbox.0),
            from: self.from.0,
            upto: self.upto.0,
            urgency: urgency(self.urgency).into(),
            at_ms: self.at.0,
            due_ms: self.due.0,
        }
        .encode_to_vec()
    }
}

fn submit(submit: &Submit) -> wire::Submit {
    wire::Submit {
        sender: Some(sender(&submit.sender)),
        payloads: submit.payloads.clone(),
        lists: submit.lists.iter().map(submit_list).collect(),
    }
}

fn submit_list(list: &SubmitList) -> wire::SubmitList {
    wire::SubmitList {
        mailbox: id(&list.mailbox.0),
        base: list.base.map(|bucket| bucket.0),
        entries: list.entries.iter().map(submit_entry).collect(),
    }
}

fn submit_entry(entry: &SubmitEntry) -> wire::SubmitEntry {
    wire::SubmitEntry {
        submit_id: id(&entry.submit_id.0),
        number: entry.number,
        devices: match &entry.devices {
            DeviceFilter::All => None,
            DeviceFilter::Only(ids) => Some(wire::submit_entry::Devices::Only(list(ids))),
            DeviceFilter::AllBut(ids) => Some(wire::submit_entry::Devices::AllBut(list(ids))),
        },
        device_set_version: entry.device_set_version,
        payload: index(entry.payload),
        ttl_ms: entry.ttl.0,
        urgency: urgency(entry.urgency).into(),
    }
}

fn ephemeral_submit(submit: &EphemeralSubmit) -> wire::EphemeralSubmit {
    let targets = submit.targets.iter().map(|(mailbox, devices, payload)| wire::EphemeralTarget {
        mailbox: id(&mailbox.0),
        devices: match devices {
            DeviceFilter::All => None,
            DeviceFilter::Only(ids) => Some(wire::ephemeral_target::Devices::Only(list(ids))),
            DeviceFilter::AllBut(ids) => Some(wire::ephemeral_target::Devices::AllBut(list(ids))),
        },
        payload: index(*payload),
    });
    wire::EphemeralSubmit {
        sender: Some(sender(&submit.sender)),
        payloads: submit.payloads.clone(),
        targets: targets.collect(),
        urgency: urgency(submit.urgency).into(),
    }
}

fn list_reply(reply: &ListReply) -> wire::ListReply {
    wire::ListReply {
        mailbox: id(&reply.mailbox.0),
        head_bucket: reply.head_bucket.map(|bucket| bucket.0),
        results: reply.results.iter().map(entry_result).collect(),
    }
}

fn entry_result(result: &EntryResult) -> wire::EntryResult {
    let (outcome, device_set_version, devices) = match &result.outcome {
        Outcome::Accepted => (wire::Outcome::Accepted, 0, Vec::new()),
        Outcome::UnknownUser => (wire::Outcome::UnknownUser, 0, Vec::new()),
        Outcome::NoDevice => (wire::Outcome::NoDevice, 0, Vec::new()),
        Outcome::DevicesChanged { version, devices } => {
            (wire::Outcome::DevicesChanged, *version, names(devices))
        }
        Outcome::Quota => (wire::Outcome::Quota, 0, Vec::new()),
        Outcome::Unavailable => (wire::Outcome::Unavailable, 0, Vec::new()),
        Outcome::NotAttempted => (wire::Outcome::NotAttempted, 0, Vec::new()),
        Outcome::Unknown => (wire::Outcome::Unknown, 0, Vec::new()),
    };
    wire::EntryResult {
        envelope_id: id(&result.envelope_id.0),
        outcome: outcome.into(),
        device_set_version,
        devices,
    }
}

fn probe_reply(reply: &ProbeReply) -> wire::ProbeReply {
    wire::ProbeReply { as_of_ms: reply.as_of.0, news: reply.news.iter().map(mailbox_news).collect() }
}

fn mailbox_news(news: &MailboxNews) -> wire::MailboxNews {
    wire::MailboxNews {
        mailbox: id(&news.mailbox.0),
        head: news.head.0,
        devices: news.devices.iter().map(device_news).collect(),
        erased: news.erased,
    }
}

fn device_news(news: &DeviceNews) -> wire::DeviceNews {
    wire::DeviceNews {
        device: news.device.as_str().to_string(),
        epoch: news.epoch.0,
        connection: id(&news.connection.0),
        revoked: news.revoked,
    }
}

fn slot(slot: &Slot) -> wire::Slot {
    wire::Slot {
        seq: slot.seq.0,
        envelope_id: id(&slot.envelope_id.0),
        sender: slot.sender.as_ref().map(sender),
        devices: match &slot.devices {
            DeviceFilter::All => None,
            DeviceFilter::Only(ids) => Some(wire::slot::Devices::Only(list(ids))),
            DeviceFilter::AllBut(ids) => Some(wire::slot::Devices::AllBut(list(ids))),
        },
        at_ms: slot.at.0,
        expires_at_ms: slot.expires_at.0,
        urgency: urgency(slot.urgency).into(),
        body: Some(match &slot.body {
            SlotBody::Present(payload) => wire::slot::Body::Present(payload.clone()),
            SlotBody::Expired => wire::slot::Body::Expired(wire::Empty {}),
            SlotBody::Lost => wire::slot::Body::Lost(wire::Empty {}),
        }),
    }
}

fn refusal(refusal: Refusal) -> wire::Refusal {
    match refusal {
        Refusal::Invalid => wire::Refusal::Invalid,
        Refusal::Draining => wire::Refusal::Draining,
        Refusal::Stale => wire::Refusal::Stale,
        Refusal::Foreign => wire::Refusal::Foreign,
        Refusal::Version => wire::Refusal::Version,
    }
}

fn sender(sender: &Sender) -> wire::Sender {
    wire::Sender { user: sender.user.as_str().to_string(), device: sender.device.as_str().to_string() }
}

fn urgency(urgency: Urgency) -> wire::Urgency {
    match urgency {
        Urgency::Background => wire::Urgency::Background,
        Urgency::Message => wire::Urgency::Message,
        Urgency::Call => wire::Urgency::Call,
    }
}

fn list(ids: &[DeviceId]) -> wire::DeviceList {
    wire::DeviceList { devices: names(ids) }
}

fn names(ids: &[DeviceId]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_string()).collect()
}

fn id(bytes: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// An index beyond 32 bits is refused by every reader, as it should be.
fn index(payload: usize) -> u32 {
    u32::try_from(payload).unwrap_or(u32::MAX)
}
