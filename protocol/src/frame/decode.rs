//! Bytes to frames. **Invariant:** whatever is not checked here is checked nowhere: each bound that the schema states holds
//! for every decoded frame; payloads are slices of the incoming buffer, not copies.

use super::{
    ClientFrame, Cursor, Deliver, FrameError, GoAway, GoAwayClass, Hello, Limits, RESUME_TOKEN_BYTES_MAX,
    Reply, Role, Secret, ServerFrame, Submit, SubmitResult, TOKEN_BYTES_MAX, Target, TargetResult,
    TruncatedReason, Welcome,
};
use super::{push, shape};
use crate::close::{ErrorFrame, ErrorScope};
use crate::envelope::{DeviceFilter, Sender, Urgency};
use crate::id::{ConnectionId, CursorTag, DeviceId, EnvelopeId, Epoch, Seq, SubmitId, UserId};
use crate::internode::Outcome;
use crate::time::{Millis, UnixMillis};
use crate::wire;
use alloc::string::String;
use alloc::vec::Vec;
use bytes::Bytes;
use prost::Message;

type Result<T> = core::result::Result<T, FrameError>;

impl ClientFrame {
    /// Reads one frame and checks every bound of the schema. Limits that an operator sets (`Limits`) are the gateway's to check.
    ///
    /// Payloads share the memory of `bytes`. Never panics; allocates at most some 200 bytes per target, and never for a length
    /// that the bytes only claim.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        use wire::client_frame::Frame;
        shape::check(&bytes, shape::CLIENT)?;
        let frame = wire::ClientFrame::decode(bytes).map_err(|_| FrameError::Garbage)?;
        Ok(match frame.frame.ok_or(FrameError::UnknownFrame)? {
            Frame::Hello(hello) => Self::Hello(self::hello(hello)?),
            Frame::Submit(submit) => Self::Submit(self::submit(submit)?),
            Frame::Ack(ack) => Self::Ack { upto: Seq(ack.upto) },
            Frame::Ping(ping) => Self::Ping { nonce: ping.nonce },
            Frame::Refresh(refresh) => Self::Refresh { token: token(refresh.token)? },
            Frame::Request(request) => {
                let id = request.id;
                let request = push::request(request).map_err(|why| FrameError::Request { id, why })?;
                Self::Request { id, request }
            }
        })
    }
}

impl ServerFrame {
    /// Reads one frame and checks every bound of the schema. Payloads share the memory of `bytes`. Never panics.
    pub fn decode(bytes: Bytes) -> Result<Self> {
        use wire::server_frame::Frame;
        shape::check(&bytes, shape::SERVER)?;
        let frame = wire::ServerFrame::decode(bytes).map_err(|_| FrameError::Garbage)?;
        Ok(match frame.frame.ok_or(FrameError::UnknownFrame)? {
            Frame::Welcome(welcome) => Self::Welcome(self::welcome(welcome)?),
            Frame::Deliver(deliver) => Self::Deliver(self::deliver(deliver)?),
            Frame::BacklogEnd(end) => Self::BacklogEnd { upto: Seq(end.upto) },
            Frame::Truncated(t) => {
                let why = truncated_reason(t.why());
                Self::Truncated { from: Seq(t.from), to: Seq(t.to), why }
            }
            Frame::SubmitResult(result) => Self::SubmitResult(submit_result(&result)?),
            Frame::Ephemeral(ephemeral) => Self::Ephemeral {
                urgency: urgency(ephemeral.urgency()),
                sender: ephemeral.sender.as_ref().map(sender).transpose()?,
                payload: ephemeral.payload,
            },
            Frame::GoAway(go_away) => Self::GoAway(self::go_away(go_away)),
            Frame::Error(error) => Self::Error(self::error(error)?),
            Frame::Pong(pong) => Self::Pong { nonce: pong.nonce, upto: Seq(pong.upto) },
            Frame::Reply(reply) => {
                let id = reply.id;
                // Like a frame of a newer peer: ours are answered in words that we know.
                let reply = match reply.body.ok_or(FrameError::UnknownFrame)? {
                    wire::reply::Body::PushSet(wire::PushSet {}) => Reply::PushSet,
                    wire::reply::Body::Error(error) => Reply::Error(self::error(error)?),
                };
                Self::Reply { id, reply }
            }
        })
    }
}

fn hello(hello: wire::Hello) -> Result<Hello> {
    let role = match hello.role() {
        wire::Role::Unspecified | wire::Role::Main => Role::Main,
        wire::Role::Peek => Role::Peek,
    };
    if hello.resume_token.len() > RESUME_TOKEN_BYTES_MAX {
        return Err(FrameError::Field("resume_token"));
    }
    let cursor = match hello.cursor {
        Some(cursor) => Some(Cursor { tag: tag(&cursor.tag)?, seq: Seq(cursor.seq) }),
        None => None,
    };
    Ok(Hello {
        token: token(hello.token)?,
        device: device(&hello.device)?,
        resume_token: hello.resume_token,
        cursor,
        role,
    })
}

fn token(token: String) -> Result<Secret> {
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(FrameError::Field("token"));
    }
    Ok(Secret(token))
}

fn submit(submit: wire::Submit) -> Result<Submit> {
    let urgency = urgency(submit.urgency());
    let submit_id = SubmitId::from_slice(&submit.submit_id).ok_or(FrameError::Field("submit_id"))?;
    if submit.attempt == 0 {
        return Err(FrameError::Field("attempt"));
    }
    if submit.targets.is_empty() {
        return Err(FrameError::Field("targets"));
    }
    let mut numbers: Vec<u32> = submit.targets.iter().map(|target| target.number).collect();
    numbers.sort_unstable();
    if numbers.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(FrameError::Field("number"));
    }
    let payloads = submit.payloads.len();
    let targets = submit.targets.iter().map(|one| target(one, payloads)).collect::<Result<_>>()?;
    Ok(Submit {
        submit_id,
        attempt: submit.attempt,
        payloads: submit.payloads,
        targets,
        ttl: Millis(submit.ttl_ms),
        urgency,
        ephemeral: submit.ephemeral,
    })
}

fn target(target: &wire::Target, payloads: usize) -> Result<Target> {
    let payload = usize::try_from(target.payload).map_err(|_| FrameError::Field("payload"))?;
    if payload >= payloads {
        return Err(FrameError::Field("payload"));
    }
    let filter = match &target.devices {
        None => DeviceFilter::All,
        Some(wire::target::Devices::Only(list)) => DeviceFilter::Only(devices(&list.devices)?),
        Some(wire::target::Devices::AllBut(list)) => DeviceFilter::AllBut(devices(&list.devices)?),
    };
    Ok(Target {
        number: target.number,
        user: user(&target.user)?,
        devices: filter,
        device_set_version: target.device_set_version,
        payload,
    })
}

fn welcome(welcome: wire::Welcome) -> Result<Welcome> {
    if welcome.resume_token.len() > RESUME_TOKEN_BYTES_MAX {
        return Err(FrameError::Field("resume_token"));
    }
    let limits = welcome.limits.ok_or(FrameError::Field("limits"))?;
    Ok(Welcome {
        session: ConnectionId::from_slice(&welcome.session).ok_or(FrameError::Field("session"))?,
        epoch: Epoch(welcome.epoch),
        from: Seq(welcome.from),
        tag: tag(&welcome.tag)?,
        resume_token: welcome.resume_token,
        limits: Limits {
            envelope_bytes_max: limits.envelope_bytes_max,
            frame_bytes_max: limits.frame_bytes_max,
            targets_max: limits.targets_max,
            ttl_max: Millis(limits.ttl_ms_max),
            window_envelopes_max: limits.window_envelopes_max,
            window_bytes_max: limits.window_bytes_max,
            frames_per_second_max: limits.frames_per_second_max,
            frames_burst_max: limits.frames_burst_max,
            ping_every: Millis(u64::from(limits.ping_every_ms)),
            submits_in_flight_max: limits.submits_in_flight_max,
            ephemeral_bytes_max: limits.ephemeral_bytes_max,
        },
        resumed: welcome.resumed,
        server_time: UnixMillis(welcome.server_time_ms),
    })
}

fn deliver(deliver: wire::Deliver) -> Result<Deliver> {
    if deliver.prev >= deliver.seq {
        return Err(FrameError::Field("prev"));
    }
    Ok(Deliver {
        seq: Seq(deliver.seq),
        prev: Seq(deliver.prev),
        envelope_id: EnvelopeId::from_slice(&deliver.envelope_id).ok_or(FrameError::Field("envelope_id"))?,
        at: UnixMillis(deliver.at_ms),
        expires_at: UnixMillis(deliver.expires_at_ms),
        urgency: urgency(deliver.urgency()),
        sender: deliver.sender.as_ref().map(sender).transpose()?,
        payload: deliver.payload,
    })
}

fn submit_result(result: &wire::SubmitResult) -> Result<SubmitResult> {
    Ok(SubmitResult {
        submit_id: SubmitId::from_slice(&result.submit_id).ok_or(FrameError::Field("submit_id"))?,
        attempt: result.attempt,
        results: result.results.iter().map(target_result).collect::<Result<_>>()?,
    })
}

fn target_result(result: &wire::TargetResult) -> Result<TargetResult> {
    let envelope_id = match result.envelope_id.len() {
        0 => None,
        _ => Some(EnvelopeId::from_slice(&result.envelope_id).ok_or(FrameError::Field("envelope_id"))?),
    };
    let outcome = match result.outcome() {
        wire::Outcome::Accepted => Outcome::Accepted,
        wire::Outcome::UnknownUser => Outcome::UnknownUser,
        wire::Outcome::NoDevice => Outcome::NoDevice,
        wire::Outcome::DevicesChanged => {
            Outcome::DevicesChanged { version: result.device_set_version, devices: devices(&result.devices)? }
        }
        wire::Outcome::Quota => Outcome::Quota,
        wire::Outcome::Unavailable => Outcome::Unavailable,
        wire::Outcome::NotAttempted => Outcome::NotAttempted,
        wire::Outcome::Unknown | wire::Outcome::Unspecified => Outcome::Unknown,
    };
    Ok(TargetResult { number: result.number, outcome, envelope_id })
}

fn go_away(go_away: wire::GoAway) -> GoAway {
    let class = match go_away.class() {
        wire::GoAwayClass::Unspecified | wire::GoAwayClass::Drain => GoAwayClass::Drain,
        wire::GoAwayClass::Shed => GoAwayClass::Shed,
        wire::GoAwayClass::Rebalance => GoAwayClass::Rebalance,
        wire::GoAwayClass::Kick => GoAwayClass::Kick,
    };
    GoAway {
        class,
        retry_after: Millis(u64::from(go_away.retry_after_ms)),
        jitter: Millis(u64::from(go_away.jitter_ms)),
        endpoints: go_away.endpoints,
    }
}

fn error(error: wire::Error) -> Result<ErrorFrame> {
    let scope = match error.scope() {
        wire::ErrorScope::Unspecified | wire::ErrorScope::Frame => ErrorScope::Frame,
        wire::ErrorScope::Submit => ErrorScope::Submit,
        wire::ErrorScope::Connection => ErrorScope::Connection,
    };
    let submit_id = match error.submit_id.len() {
        0 => None,
        _ => Some(SubmitId::from_slice(&error.submit_id).ok_or(FrameError::Field("submit_id"))?),
    };
    Ok(ErrorFrame {
        code: error.code,
        message: error.message,
        retryable: error.retryable,
        limit_name: error.limit_name,
        retry_after_ms: error.retry_after_ms,
        scope,
        submit_id,
    })
}

fn urgency(urgency: wire::Urgency) -> Urgency {
    match urgency {
        wire::Urgency::Background => Urgency::Background,
        wire::Urgency::Unspecified | wire::Urgency::Message => Urgency::Message,
        wire::Urgency::Call => Urgency::Call,
    }
}

fn truncated_reason(why: wire::TruncatedReason) -> TruncatedReason {
    match why {
        wire::TruncatedReason::Unspecified | wire::TruncatedReason::Expired => TruncatedReason::Expired,
        wire::TruncatedReason::Trimmed => TruncatedReason::Trimmed,
        wire::TruncatedReason::Lost => TruncatedReason::Lost,
        wire::TruncatedReason::ForeignCursor => TruncatedReason::ForeignCursor,
    }
}

fn sender(sender: &wire::Sender) -> Result<Sender> {
    Ok(Sender { user: user(&sender.user)?, device: device(&sender.device)? })
}

fn user(name: &str) -> Result<UserId> {
    UserId::new(name).map_err(|_| FrameError::Field("user"))
}

fn device(id: &str) -> Result<DeviceId> {
    DeviceId::new(id).map_err(|_| FrameError::Field("device"))
}

fn devices(ids: &[String]) -> Result<Vec<DeviceId>> {
    ids.iter().map(|id| DeviceId::new(id).map_err(|_| FrameError::Field("devices"))).collect()
}

fn tag(bytes: &[u8]) -> Result<CursorTag> {
    CursorTag::from_slice(bytes).ok_or(FrameError::Field("tag"))
}
