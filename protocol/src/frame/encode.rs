//! Frames to bytes. **Invariant:** the same frame always becomes the same bytes: fields in the order of their numbers,
//! default values left out.

use super::push;
use super::{
    ClientFrame, Deliver, GoAway, GoAwayClass, Hello, Limits, Reply, Role, ServerFrame, Submit, SubmitResult,
    Target, TargetResult, TruncatedReason, Welcome,
};
use crate::close::{ErrorFrame, ErrorScope};
use crate::envelope::{DeviceFilter, Sender, Urgency};
use crate::id::DeviceId;
use crate::internode::Outcome;
use crate::time::Millis;
use crate::wire;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use bytes::Bytes;
use prost::Message;

impl ClientFrame {
    /// The frame's bytes: one binary message.
    pub fn encode(&self) -> Vec<u8> {
        self.to_wire().encode_to_vec()
    }

    /// Appends the frame's bytes, as [`ClientFrame::encode`] has them.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        append(&self.to_wire(), out);
    }

    fn to_wire(&self) -> wire::ClientFrame {
        use wire::client_frame::Frame;
        let frame = match self {
            Self::Hello(hello) => Frame::Hello(self::hello(hello)),
            Self::Submit(submit) => Frame::Submit(self::submit(submit)),
            Self::Ack { upto } => Frame::Ack(wire::Ack { upto: upto.0 }),
            Self::Ping { nonce } => Frame::Ping(wire::Ping { nonce: *nonce }),
            Self::Refresh { token } => Frame::Refresh(wire::Refresh { token: token.0.clone() }),
            Self::Request { id, request } => Frame::Request(push::request_to_wire(*id, request)),
        };
        wire::ClientFrame { frame: Some(frame) }
    }
}

impl ServerFrame {
    /// The frame's bytes: one binary message.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode_into(&mut out);
        out
    }

    /// Appends the frame's bytes, as [`ServerFrame::encode`] has them. A [`Deliver`] is written without any copy but the one
    /// into `out`; the other kinds go through the generated types (their payloads are still copied only once).
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        if let Self::Deliver(deliver) = self {
            deliver.encode_into(out);
        } else {
            append(&self.to_wire(), out);
        }
    }

    /// The frame as the generated type.
    pub(super) fn to_wire(&self) -> wire::ServerFrame {
        use wire::server_frame::Frame;
        let frame = match self {
            Self::Welcome(welcome) => Frame::Welcome(self::welcome(welcome)),
            Self::Deliver(deliver) => Frame::Deliver(self::deliver(deliver)),
            Self::BacklogEnd { upto } => Frame::BacklogEnd(wire::BacklogEnd { upto: upto.0 }),
            Self::Truncated { from, to, why } => Frame::Truncated(wire::Truncated {
                from: from.0,
                to: to.0,
                why: truncated_reason(*why).into(),
            }),
            Self::SubmitResult(result) => Frame::SubmitResult(submit_result(result)),
            Self::Ephemeral { sender, payload, urgency } => Frame::Ephemeral(wire::Ephemeral {
                sender: sender.as_ref().map(self::sender),
                payload: payload.clone(),
                urgency: self::urgency(*urgency).into(),
            }),
            Self::GoAway(go_away) => Frame::GoAway(self::go_away(go_away)),
            Self::Error(error) => Frame::Error(self::error(error)),
            Self::Pong { nonce, upto } => Frame::Pong(wire::Pong { nonce: *nonce, upto: upto.0 }),
            Self::Reply { id, reply } => {
                let body = match reply {
                    Reply::PushSet => wire::reply::Body::PushSet(wire::PushSet {}),
                    Reply::Error(error) => wire::reply::Body::Error(self::error(error)),
                };
                Frame::Reply(wire::Reply { id: *id, body: Some(body) })
            }
        };
        wire::ServerFrame { frame: Some(frame) }
    }
}

/// Appends a message; the buffer grows once at most.
fn append(message: &impl Message, out: &mut Vec<u8>) {
    out.reserve(message.encoded_len());
    message.encode_raw(out);
}

fn hello(hello: &Hello) -> wire::Hello {
    let role = match hello.role {
        Role::Main => wire::Role::Main,
        Role::Peek => wire::Role::Peek,
    };
    wire::Hello {
        token: hello.token.0.clone(),
        device: hello.device.as_str().to_string(),
        resume_token: hello.resume_token.clone(),
        cursor: hello.cursor.map(|cursor| wire::Cursor { tag: id(&cursor.tag.0), seq: cursor.seq.0 }),
        role: role.into(),
    }
}

fn submit(submit: &Submit) -> wire::Submit {
    wire::Submit {
        submit_id: id(&submit.submit_id.0),
        attempt: submit.attempt,
        payloads: submit.payloads.clone(),
        targets: submit.targets.iter().map(target).collect(),
        ttl_ms: submit.ttl.0,
        urgency: urgency(submit.urgency).into(),
        ephemeral: submit.ephemeral,
    }
}

fn target(target: &Target) -> wire::Target {
    let list = |ids: &[DeviceId]| wire::DeviceList { devices: devices(ids) };
    let filter = match &target.devices {
        DeviceFilter::All => None,
        DeviceFilter::Only(ids) => Some(wire::target::Devices::Only(list(ids))),
        DeviceFilter::AllBut(ids) => Some(wire::target::Devices::AllBut(list(ids))),
    };
    wire::Target {
        number: target.number,
        user: target.user.as_str().to_string(),
        devices: filter,
        device_set_version: target.device_set_version,
        // An index beyond 32 bits is refused by every reader, as it should be.
        payload: u32::try_from(target.payload).unwrap_or(u32::MAX),
    }
}

fn welcome(welcome: &Welcome) -> wire::Welcome {
    wire::Welcome {
        session: id(&welcome.session.0),
        epoch: welcome.epoch.0,
        from: welcome.from.0,
        tag: id(&welcome.tag.0),
        resume_token: welcome.resume_token.clone(),
        limits: Some(limits(&welcome.limits)),
        resumed: welcome.resumed,
        server_time_ms: welcome.server_time.0,
    }
}

fn limits(limits: &Limits) -> wire::Limits {
    wire::Limits {
        envelope_bytes_max: limits.envelope_bytes_max,
        frame_bytes_max: limits.frame_bytes_max,
        targets_max: limits.targets_max,
        ttl_ms_max: limits.ttl_max.0,
        window_envelopes_max: limits.window_envelopes_max,
        window_bytes_max: limits.window_bytes_max,
        frames_per_second_max: limits.frames_per_second_max,
        frames_burst_max: limits.frames_burst_max,
        ping_every_ms: millis32(limits.ping_every),
        submits_in_flight_max: limits.submits_in_flight_max,
        ephemeral_bytes_max: limits.ephemeral_bytes_max,
    }
}

/// As the generated type: what [`Deliver::encode_into`] is checked against.
fn deliver(deliver: &Deliver) -> wire::Deliver {
    wire::Deliver {
        seq: deliver.seq.0,
        prev: deliver.prev.0,
        envelope_id: id(&deliver.envelope_id.0),
        sender: deliver.sender.as_ref().map(sender),
        at_ms: deliver.at.0,
        expires_at_ms: deliver.expires_at.0,
        payload: deliver.payload.clone(),
        urgency: urgency(deliver.urgency).into(),
    }
}

fn submit_result(result: &SubmitResult) -> wire::SubmitResult {
    wire::SubmitResult {
        submit_id: id(&result.submit_id.0),
        attempt: result.attempt,
        results: result.results.iter().map(target_result).collect(),
    }
}

fn target_result(result: &TargetResult) -> wire::TargetResult {
    let (outcome, device_set_version, devices) = match &result.outcome {
        Outcome::Accepted => (wire::Outcome::Accepted, 0, Vec::new()),
        Outcome::UnknownUser => (wire::Outcome::UnknownUser, 0, Vec::new()),
        Outcome::NoDevice => (wire::Outcome::NoDevice, 0, Vec::new()),
        Outcome::DevicesChanged { version, devices } => {
            (wire::Outcome::DevicesChanged, *version, self::devices(devices))
        }
        Outcome::Quota => (wire::Outcome::Quota, 0, Vec::new()),
        Outcome::Unavailable => (wire::Outcome::Unavailable, 0, Vec::new()),
        Outcome::NotAttempted => (wire::Outcome::NotAttempted, 0, Vec::new()),
        Outcome::Unknown => (wire::Outcome::Unknown, 0, Vec::new()),
    };
    wire::TargetResult {
        number: result.number,
        outcome: outcome.into(),
        envelope_id: result.envelope_id.map_or_else(Bytes::new, |envelope| id(&envelope.0)),
        device_set_version,
        devices,
    }
}

fn go_away(go_away: &GoAway) -> wire::GoAway {
    let class = match go_away.class {
        GoAwayClass::Drain => wire::GoAwayClass::Drain,
        GoAwayClass::Shed => wire::GoAwayClass::Shed,
        GoAwayClass::Rebalance => wire::GoAwayClass::Rebalance,
        GoAwayClass::Kick => wire::GoAwayClass::Kick,
    };
    wire::GoAway {
        class: class.into(),
        retry_after_ms: millis32(go_away.retry_after),
        jitter_ms: millis32(go_away.jitter),
        endpoints: go_away.endpoints.clone(),
    }
}

fn error(error: &ErrorFrame) -> wire::Error {
    let scope = match error.scope {
        ErrorScope::Frame => wire::ErrorScope::Frame,
        ErrorScope::Submit => wire::ErrorScope::Submit,
        ErrorScope::Connection => wire::ErrorScope::Connection,
    };
    wire::Error {
        code: error.code.clone(),
        message: error.message.clone(),
        retryable: error.retryable,
        limit_name: error.limit_name.clone(),
        retry_after_ms: error.retry_after_ms,
        scope: scope.into(),
        submit_id: error.submit_id.map_or_else(Bytes::new, |submit| id(&submit.0)),
    }
}

/// The word on the wire.
pub(super) fn urgency(urgency: Urgency) -> wire::Urgency {
    match urgency {
        Urgency::Background => wire::Urgency::Background,
        Urgency::Message => wire::Urgency::Message,
        Urgency::Call => wire::Urgency::Call,
    }
}

fn truncated_reason(why: TruncatedReason) -> wire::TruncatedReason {
    match why {
        TruncatedReason::Expired => wire::TruncatedReason::Expired,
        TruncatedReason::Trimmed => wire::TruncatedReason::Trimmed,
        TruncatedReason::Lost => wire::TruncatedReason::Lost,
        TruncatedReason::ForeignCursor => wire::TruncatedReason::ForeignCursor,
    }
}

fn sender(sender: &Sender) -> wire::Sender {
    wire::Sender { user: sender.user.as_str().to_string(), device: sender.device.as_str().to_string() }
}

fn devices(ids: &[DeviceId]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_string()).collect()
}

fn id(bytes: &[u8; 16]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

/// Spans of more than 49 days are told as 49 days.
fn millis32(span: Millis) -> u32 {
    u32::try_from(span.0).unwrap_or(u32::MAX)
}
