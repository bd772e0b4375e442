//! Bytes from another node to messages. **Invariant:** whatever is not checked here is checked nowhere before a router's own
//! bounds: ids have 16 bytes, names are names, counts are bounded before anything is allocated for them; never a panic.

use super::{
    Announcement, Answer, Attached, DEVICES_MAX, DeviceNews, Doorbell, ENTRIES_MAX, EntryResult,
    EphemeralSubmit, InternodeError, LISTS_MAX, ListReply, MailboxNews, Outcome, Probe, ProbeReply, Refusal,
    Reply, Request, Ring, RouterState, Stamp, Submit, SubmitEntry, SubmitList, VERSION_MAJOR, WakeHint,
};
use crate::envelope::{DeviceFilter, Sender, Slot, SlotBody, Urgency};
use crate::frame::shape::{self, Shape};
use crate::id::{
    Bucket, ClusterId, ConnectionId, DeviceId, EnvelopeId, Epoch, MailboxId, Seq, SubmitId, TraceId, UserId,
};
use crate::time::{Millis, UnixMillis};
use crate::wire::internode as wire;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use prost::Message;

type Result<T> = core::result::Result<T, InternodeError>;

const fn counted(field: u64, name: &'static str, max: usize, inner: &'static [Shape]) -> Shape {
    Shape { field, name, max, inner }
}

const NAMES: &[Shape] = &[counted(1, "devices", DEVICES_MAX, &[])];
const ENTRY: &[Shape] = &[counted(3, "only", 1, NAMES), counted(4, "all_but", 1, NAMES)];
const TARGET: &[Shape] = &[counted(2, "only", 1, NAMES), counted(3, "all_but", 1, NAMES)];
const SLOT: &[Shape] = &[counted(4, "only", 1, NAMES), counted(5, "all_but", 1, NAMES)];
const LIST: &[Shape] = &[counted(3, "entries", ENTRIES_MAX, ENTRY)];
const RESULT: &[Shape] = &[counted(4, "devices", DEVICES_MAX, &[])];

const REQUEST: &[Shape] = &[
    counted(8, "submit", 1, &[counted(2, "payloads", LISTS_MAX, &[]), counted(3, "lists", LISTS_MAX, LIST)]),
    counted(
        9,
        "ephemeral",
        1,
        &[counted(2, "payloads", LISTS_MAX, &[]), counted(3, "targets", LISTS_MAX, TARGET)],
    ),
    counted(10, "probe", 1, &[counted(2, "known", LISTS_MAX, &[])]),
];

const ANSWER: &[Shape] = &[
    counted(8, "submit", 1, &[counted(1, "lists", LISTS_MAX, &[counted(3, "results", ENTRIES_MAX, RESULT)])]),
    counted(10, "probe", 1, &[counted(2, "news", LISTS_MAX, &[counted(3, "devices", DEVICES_MAX, &[])])]),
];

const DOORBELL: &[Shape] =
    &[counted(8, "grew", 1, &[counted(2, "slot", 1, SLOT)]), counted(10, "ephemeral", 1, TARGET)];

impl Request {
    /// Reads a request for this cluster. Payloads share the memory of `bytes`. A submit gets the stamp's budget.
    pub fn decode(bytes: Bytes, cluster: ClusterId) -> Result<(Stamp, Self)> {
        use wire::request::Body;
        shape::check(&bytes, REQUEST)?;
        let message = wire::Request::decode(bytes).map_err(|_| InternodeError::Garbage)?;
        ours(message.major, &message.cluster, cluster)?;
        let trace = match message.trace.len() {
            0 => TraceId::default(),
            _ => TraceId::from_slice(&message.trace).ok_or(InternodeError::Field("trace"))?,
        };
        let stamp = Stamp { budget: Millis(message.budget_ms), trace };
        let request = match message.body.ok_or(InternodeError::UnknownKind)? {
            Body::Submit(submit) => Self::Submit(self::submit(submit, stamp.budget)?),
            Body::Ephemeral(submit) => Self::Ephemeral(ephemeral_submit(submit)?),
            Body::Probe(probe) => Self::Probe(self::probe(&probe)?),
            Body::Base(mailbox) => Self::Base(self::mailbox(&mailbox)?),
            Body::Attached(attached) => Self::Attached(Attached {
                mailbox: mailbox(&attached.mailbox)?,
                news: device_news(&attached.news.ok_or(InternodeError::Field("news"))?)?,
            }),
        };
        Ok((stamp, request))
    }
}

impl Answer {
    /// Reads a router's answer.
    pub fn decode(bytes: Bytes, cluster: ClusterId) -> Result<Self> {
        use wire::answer::Body;
        shape::check(&bytes, ANSWER)?;
        let message = wire::Answer::decode(bytes).map_err(|_| InternodeError::Garbage)?;
        ours(message.major, &message.cluster, cluster)?;
        Ok(match message.body.ok_or(InternodeError::UnknownKind)? {
            Body::Submit(reply) => {
                Self::Reply(Reply::Submit(reply.lists.iter().map(list_reply).collect::<Result<_>>()?))
            }
            Body::Ephemeral(_) => Self::Reply(Reply::Ephemeral),
            Body::Probe(reply) => Self::Reply(Reply::Probe(ProbeReply {
                as_of: UnixMillis(reply.as_of_ms),
                news: reply.news.iter().map(mailbox_news).collect::<Result<_>>()?,
            })),
            Body::Base(base) => Self::Reply(Reply::Base(Bucket(base.bucket))),
            Body::Attached(_) => Self::Reply(Reply::Attached),
            Body::Unavailable(_) => Self::Reply(Reply::Unavailable),
            Body::Refused(code) => Self::Refused(refusal(code)),
        })
    }
}

impl Doorbell {
    /// Reads a router's doorbell. The payload shares the memory of `bytes`.
    pub fn decode(bytes: Bytes, cluster: ClusterId) -> Result<Self> {
        use wire::doorbell::Ring as Wire;
        shape::check(&bytes, DOORBELL)?;
        let message = wire::Doorbell::decode(bytes).map_err(|_| InternodeError::Garbage)?;
        ours(message.major, &message.cluster, cluster)?;
        let ring = match message.ring.ok_or(InternodeError::UnknownKind)? {
            Wire::Grew(grew) => {
                let slot = grew.slot.map(self::slot).transpose()?;
                if slot.as_ref().is_some_and(|slot| slot.seq.0 != grew.seq) {
                    return Err(InternodeError::Field("slot"));
                }
                Ring::Grew { seq: Seq(grew.seq), slot }
            }
            Wire::Session(news) => Ring::Session(device_news(&news)?),
            Wire::Ephemeral(ring) => Ring::Ephemeral {
                urgency: urgency(ring.urgency()),
                sender: sender(ring.sender.as_ref())?,
                devices: match &ring.devices {
                    None => DeviceFilter::All,
                    Some(wire::ephemeral_ring::Devices::Only(list)) => {
                        DeviceFilter::Only(names(&list.devices)?)
                    }
                    Some(wire::ephemeral_ring::Devices::AllBut(list)) => {
                        DeviceFilter::AllBut(names(&list.devices)?)
                    }
                },
                payload: ring.payload,
            },
        };
        Ok(Self { mailbox: mailbox(&message.mailbox)?, ring })
    }
}

impl Announcement {
    /// Reads a router's announcement.
    pub fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Self> {
        let message = wire::Announcement::decode(bytes).map_err(|_| InternodeError::Garbage)?;
        ours(message.major, &message.cluster, cluster)?;
        let state = match message.state() {
            wire::RouterState::Live => RouterState::Live,
            wire::RouterState::Draining => RouterState::Draining,
            wire::RouterState::Gone => RouterState::Gone,
        };
        Ok(Self { router: message.router, state })
    }
}

impl WakeHint {
    /// Reads a router's hint.
    pub fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Self> {
        let message = wire::WakeHint::decode(bytes).map_err(|_| InternodeError::Garbage)?;
        ours(message.major, &message.cluster, cluster)?;
        if message.upto < message.from {
            return Err(InternodeError::Field("upto"));
        }
        if message.due_ms < message.at_ms {
            return Err(InternodeError::Field("due"));
        }
        Ok(Self {
            mailbox: mailbox(&message.mailbox)?,
            from: Seq(message.from),
            upto: Seq(message.upto),
            urgency: urgency(message.urgency()),
            at: UnixMillis(message.at_ms),
            due: UnixMillis(message.due_ms),
        })
    }
}

/// The cluster comes first: what another cluster sends is not ours to understand.
fn ours(major: u32, of: &[u8], cluster: ClusterId) -> Result<()> {
    let of = ClusterId::from_slice(of).ok_or(InternodeError::Field("cluster"))?;
    if of != cluster {
        return Err(InternodeError::Foreign);
    }
    if major == VERSION_MAJOR { Ok(()) } else { Err(InternodeError::Version(major)) }
}

fn submit(submit: wire::Submit, budget: Millis) -> Result<Submit> {
    let payloads = submit.payloads.len();
    let lists = submit.lists.iter().map(|list| submit_list(list, payloads)).collect::<Result<_>>()?;
    Ok(Submit { sender: sender(submit.sender.as_ref())?, budget, payloads: submit.payloads, lists })
}

fn submit_list(list: &wire::SubmitList, payloads: usize) -> Result<SubmitList> {
    Ok(SubmitList {
        mailbox: mailbox(&list.mailbox)?,
        base: list.base.map(Bucket),
        entries: list.entries.iter().map(|one| entry(one, payloads)).collect::<Result<_>>()?,
    })
}

fn entry(entry: &wire::SubmitEntry, payloads: usize) -> Result<SubmitEntry> {
    Ok(SubmitEntry {
        submit_id: SubmitId::from_slice(&entry.submit_id).ok_or(InternodeError::Field("submit_id"))?,
        number: entry.number,
        devices: match &entry.devices {
            None => DeviceFilter::All,
            Some(wire::submit_entry::Devices::Only(list)) => DeviceFilter::Only(names(&list.devices)?),
            Some(wire::submit_entry::Devices::AllBut(list)) => DeviceFilter::AllBut(names(&list.devices)?),
        },
        device_set_version: entry.device_set_version,
        payload: index(entry.payload, payloads)?,
        ttl: Millis(entry.ttl_ms),
        urgency: urgency(entry.urgency()),
    })
}

fn ephemeral_submit(submit: wire::EphemeralSubmit) -> Result<EphemeralSubmit> {
    let payloads = submit.payloads.len();
    let urgency = urgency(submit.urgency());
    let targets = submit.targets.iter().map(|target| {
        let devices = match &target.devices {
            None => DeviceFilter::All,
            Some(wire::ephemeral_target::Devices::Only(list)) => DeviceFilter::Only(names(&list.devices)?),
            Some(wire::ephemeral_target::Devices::AllBut(list)) => {
                DeviceFilter::AllBut(names(&list.devices)?)
            }
        };
        Ok((mailbox(&target.mailbox)?, devices, index(target.payload, payloads)?))
    });
    let targets = targets.collect::<Result<_>>()?;
    Ok(EphemeralSubmit {
        sender: sender(submit.sender.as_ref())?,
        targets,
        payloads: submit.payloads,
        urgency,
    })
}

fn probe(probe: &wire::Probe) -> Result<Probe> {
    let known = probe.known.iter().map(|known| Ok((mailbox(&known.mailbox)?, Seq(known.head))));
    Ok(Probe { as_of: probe.as_of_ms.map(UnixMillis), known: known.collect::<Result<_>>()? })
}

fn list_reply(reply: &wire::ListReply) -> Result<ListReply> {
    Ok(ListReply {
        mailbox: mailbox(&reply.mailbox)?,
        head_bucket: reply.head_bucket.map(Bucket),
        results: reply.results.iter().map(entry_result).collect::<Result<_>>()?,
    })
}

fn entry_result(result: &wire::EntryResult) -> Result<EntryResult> {
    let envelope_id =
        EnvelopeId::from_slice(&result.envelope_id).ok_or(InternodeError::Field("envelope_id"))?;
    let outcome = match result.outcome() {
        wire::Outcome::Unknown => Outcome::Unknown,
        wire::Outcome::Accepted => Outcome::Accepted,
        wire::Outcome::UnknownUser => Outcome::UnknownUser,
        wire::Outcome::NoDevice => Outcome::NoDevice,
        wire::Outcome::DevicesChanged => {
            Outcome::DevicesChanged { version: result.device_set_version, devices: names(&result.devices)? }
        }
        wire::Outcome::Quota => Outcome::Quota,
        wire::Outcome::Unavailable => Outcome::Unavailable,
        wire::Outcome::NotAttempted => Outcome::NotAttempted,
    };
    Ok(EntryResult { envelope_id, outcome })
}

fn mailbox_news(news: &wire::MailboxNews) -> Result<MailboxNews> {
    Ok(MailboxNews {
        mailbox: mailbox(&news.mailbox)?,
        head: Seq(news.head),
        devices: news.devices.iter().map(device_news).collect::<Result<_>>()?,
        erased: news.erased,
    })
}

fn device_news(news: &wire::DeviceNews) -> Result<DeviceNews> {
    Ok(DeviceNews {
        device: device(&news.device)?,
        epoch: Epoch(news.epoch),
        connection: ConnectionId::from_slice(&news.connection).ok_or(InternodeError::Field("connection"))?,
        revoked: news.revoked,
    })
}

fn slot(slot: wire::Slot) -> Result<Slot> {
    let urgency = urgency(slot.urgency());
    Ok(Slot {
        seq: Seq(slot.seq),
        envelope_id: EnvelopeId::from_slice(&slot.envelope_id).ok_or(InternodeError::Field("envelope_id"))?,
        sender: slot.sender.as_ref().map(|one| sender(Some(one))).transpose()?,
        devices: match &slot.devices {
            None => DeviceFilter::All,
            Some(wire::slot::Devices::Only(list)) => DeviceFilter::Only(names(&list.devices)?),
            Some(wire::slot::Devices::AllBut(list)) => DeviceFilter::AllBut(names(&list.devices)?),
        },
        at: UnixMillis(slot.at_ms),
        expires_at: UnixMillis(slot.expires_at_ms),
        urgency,
        body: match slot.body.ok_or(InternodeError::Field("body"))? {
            wire::slot::Body::Present(payload) => SlotBody::Present(payload),
            wire::slot::Body::Expired(_) => SlotBody::Expired,
            wire::slot::Body::Lost(_) => SlotBody::Lost,
        },
    })
}

fn refusal(code: i32) -> Refusal {
    match wire::Refusal::try_from(code).unwrap_or_default() {
        wire::Refusal::Invalid => Refusal::Invalid,
        wire::Refusal::Draining => Refusal::Draining,
        wire::Refusal::Stale => Refusal::Stale,
        wire::Refusal::Foreign => Refusal::Foreign,
        wire::Refusal::Version => Refusal::Version,
    }
}

fn sender(sender: Option<&wire::Sender>) -> Result<Sender> {
    let sender = sender.ok_or(InternodeError::Field("sender"))?;
    let user = UserId::new(&sender.user).map_err(|_| InternodeError::Field("user"))?;
    Ok(Sender { user, device: device(&sender.device)? })
}

fn urgency(urgency: wire::Urgency) -> Urgency {
    match urgency {
        wire::Urgency::Message => Urgency::Message,
        wire::Urgency::Background => Urgency::Background,
        wire::Urgency::Call => Urgency::Call,
    }
}

fn mailbox(bytes: &[u8]) -> Result<MailboxId> {
    MailboxId::from_slice(bytes).ok_or(InternodeError::Field("mailbox"))
}

fn device(id: &str) -> Result<DeviceId> {
    DeviceId::new(id).map_err(|_| InternodeError::Field("device"))
}

fn names(ids: &[String]) -> Result<Vec<DeviceId>> {
    ids.iter().map(|id| device(id)).collect()
}

fn index(payload: u32, payloads: usize) -> Result<usize> {
    let payload = usize::try_from(payload).map_err(|_| InternodeError::Field("payload"))?;
    if payload < payloads { Ok(payload) } else { Err(InternodeError::Field("payload")) }
}
