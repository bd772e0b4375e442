//! The order in which APNs' rules are asked, and its answers (Apple, "Handling notification responses from APNs").
//! **Invariant:** every answer names the id of its message; every refusal has a reason of Apple's list.

use super::payload;
use crate::answer::{Answer, Reply};
use crate::codec;
use crate::record::Kind;
use crate::rules::{Incoming, Judgement, Memory, Rules, Streams};
use crate::tokens::{TokenState, Tokens};
use serde_json::json;
use std::sync::Arc;

/// Device tokens have at least this many hex digits.
const TOKEN_DIGITS_MIN: usize = 64;
/// And at most this many.
const TOKEN_DIGITS_MAX: usize = 200;

pub(super) struct ApnsRules {
    pub(super) key_id: String,
    pub(super) team_id: String,
    pub(super) public_key: Vec<u8>,
    pub(super) topics: Vec<String>,
    pub(super) tokens: Arc<Tokens>,
}

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Complaint {
    status: u16,
    reason: &'static str,
    why: String,
    /// Since when the token is dead, in milliseconds since 1970.
    since_ms: Option<u64>,
}

impl Complaint {
    pub(super) fn new(status: u16, reason: &'static str, why: String) -> Self {
        Self { status, reason, why, since_ms: None }
    }
}

impl ApnsRules {
    fn check(&self, request: &Incoming, memory: &mut Memory) -> Result<(), Complaint> {
        if request.method != http::Method::POST {
            return Err(Complaint::new(405, "MethodNotAllowed", "the method is POST".to_owned()));
        }
        let Some(token) = device_token(request) else {
            return Err(Complaint::new(404, "BadPath", "the path is /3/device/<device token>".to_owned()));
        };
        if token.is_empty() {
            return Err(Complaint::new(400, "MissingDeviceToken", "the path ends before it".to_owned()));
        }
        self.authorize(request, memory)?;
        let digits = (TOKEN_DIGITS_MIN..=TOKEN_DIGITS_MAX).contains(&token.len());
        if !digits || token.len() % 2 != 0 || !codec::is_lower_hex(token) {
            let why = "a device token is bytes in lower-case hex".to_owned();
            return Err(Complaint::new(400, "BadDeviceToken", why));
        }
        if let Err(why) = message_id(request) {
            return Err(Complaint::new(400, "BadMessageId", why));
        }
        let (push_type, ending) = payload::push_type(request)?;
        payload::topic(request, &self.topics, ending)?;
        payload::delivery(request, push_type)?;
        payload::payload(request, push_type)?;
        match self.tokens.get(token) {
            TokenState::Live => Ok(()),
            TokenState::NeverValid => {
                Err(Complaint::new(400, "BadDeviceToken", "this token was set to be never valid".to_owned()))
            }
            TokenState::DeadSince(at) => {
                let why = "this token was set to be dead".to_owned();
                Err(Complaint { since_ms: Some(at), ..Complaint::new(410, "Unregistered", why) })
            }
        }
    }
}

/// The path after `/3/device/`.
fn device_token(request: &Incoming) -> Option<&str> {
    request.path.strip_prefix("/3/device/").or_else(|| (request.path == "/3/device").then_some(""))
}

/// `apns-id`: as the client gave it, or a new one.
fn message_id(request: &Incoming) -> Result<String, String> {
    match request.header("apns-id")? {
        None => Ok(codec::uuid()),
        Some(id) if codec::is_uuid(id) => Ok(id.to_owned()),
        Some(_) => Err("apns-id is a UUID: 32 lower-case hex digits in five groups".to_owned()),
    }
}

fn refusal(status: u16, reason: &str, since_ms: Option<u64>, id: &str) -> Reply {
    let mut body = json!({ "reason": reason });
    if let Some(since_ms) = since_ms {
        body["timestamp"] = since_ms.into();
    }
    Reply::json(status, &body).with("apns-id", id)
}

impl Rules for ApnsRules {
    fn kind(&self, _: &Incoming) -> Kind {
        Kind::Wake
    }

    fn target(&self, request: &Incoming) -> Option<String> {
        device_token(request).map(str::to_owned)
    }

    fn judge(&self, request: &Incoming, memory: &mut Memory) -> Judgement {
        let id = message_id(request).unwrap_or_else(|_| codec::uuid());
        match self.check(request, memory) {
            Ok(()) => Judgement::accepted(Reply::empty(200).with("apns-id", &id), id),
            Err(Complaint { status, reason, why, since_ms }) => {
                let reply = refusal(status, reason, since_ms, &id);
                let streams = if status == 403 { Streams::One } else { Streams::Unchanged };
                Judgement { streams, ..Judgement::refused(reply, reason, why) }
            }
        }
    }

    fn scripted(&self, answer: &Answer, request: &Incoming) -> Reply {
        let id = message_id(request).unwrap_or_else(|_| codec::uuid());
        if answer.status == 200 {
            return Reply::empty(200).with("apns-id", &id);
        }
        refusal(answer.status, &answer.reason, answer.timestamp_ms, &id)
    }

    fn starts_with_one_stream(&self) -> bool {
        true
    }
}
