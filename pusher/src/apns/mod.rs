//! Apple Push Notification service, with token authentication. **Invariant:** a payload says "sync" and nothing else, and a
//! token that Apple may refuse never shares a connection with those that it takes.
//!
//! **Why probation.** After one refused token Apple allows one stream on that connection until the next success: a run of
//! dead tokens would slow every device of the app to one wake per round trip. So a token whose last answer was a refusal goes
//! over a connection of its own kind, and so does one that was registered less than a day ago and was never taken: that is
//! where a flood of invented registrations would be. Tokens registered longer ago are trusted without memory of them, since
//! dead ones are removed when they are found out; so a pusher that starts anew does not squeeze everybody through one
//! connection. The memory is bounded; what is forgotten is judged by its registration again.

mod standing;
mod table;
mod token;

pub use table::TABLE;
pub use token::{ApnsSigner, BadKey};

use crate::answers::{
    BAD_TARGET, BAD_WAKE, CALLS_ONLY, EXPIRED, SIGNING_FAILED, UNKNOWN_APP, decide, unanswered,
};
use crate::gate::{Budget, Gate};
use crate::provider::{Answer, Provider, Verdict, Wake};
use crate::transport::{Origin, Pool, Post, Reply, SendError, Wires};
use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{ApnsKind, PushAddress, PushTarget};
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use http::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use standing::Standing;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

/// Where Apple listens.
pub const PRODUCTION: &str = "https://api.push.apple.com";
/// And for builds from Xcode.
pub const SANDBOX: &str = "https://api.sandbox.push.apple.com";

/// How a message wakes an app of Apple's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageWake {
    /// A notification with a localised text of the app's own choice, which its notification extension replaces. Always
    /// arrives.
    #[default]
    Alert,
    /// In silence. iOS lets a few an hour through, none if the person has ended the app.
    Background,
}

/// What one app is to Apple.
#[derive(Debug, Clone)]
pub struct ApnsApp {
    /// The bundle id; `.voip` is appended for calls.
    pub topic: String,
    /// How a message wakes it.
    pub message: MessageWake,
    /// The `loc-key` of an alert: the same for every wake.
    pub alert_key: String,
}

/// One app at Apple.
pub struct Apns {
    topic: HeaderValue,
    voip_topic: HeaderValue,
    message: MessageWake,
    alert: Bytes,
    signer: Arc<ApnsSigner>,
    proven: Pool,
    probation: Pool,
    gate: Gate,
    standing: Mutex<Standing>,
    world: Arc<dyn World>,
}

const BACKGROUND: &[u8] = br#"{"aps":{"content-available":1},"sync":1}"#;
const VOIP: &[u8] = br#"{"aps":{},"sync":1}"#;

impl Apns {
    /// `None` if the topic cannot stand in a header.
    pub fn new(app: &ApnsApp, signer: Arc<ApnsSigner>, origin: &Origin, wires: &Wires) -> Option<Self> {
        let alert = serde_json::json!({
            "aps": {"alert": {"loc-key": app.alert_key}, "mutable-content": 1},
            "sync": 1,
        });
        Some(Self {
            topic: HeaderValue::try_from(&app.topic).ok()?,
            voip_topic: HeaderValue::try_from(format!("{}.voip", app.topic)).ok()?,
            message: app.message,
            alert: alert.to_string().into(),
            signer,
            proven: wires.pool(origin.clone(), wires.limits.connections_max),
            probation: wires.pool(origin.clone(), 1),
            gate: Gate::new(wires.world.clone()),
            standing: Mutex::new(Standing::new(&*wires.world)),
            world: wires.world.clone(),
        })
    }

    fn post(&self, token: &[u8], kind: ApnsKind, wake: &Wake) -> Option<Post> {
        let (push_type, topic, body, priority) = match (kind, wake.urgency, self.message) {
            (ApnsKind::Voip, _, _) => ("voip", &self.voip_topic, Bytes::from_static(VOIP), "10"),
            (ApnsKind::Alert, Urgency::Call, _) | (ApnsKind::Alert, Urgency::Message, MessageWake::Alert) => {
                ("alert", &self.topic, self.alert.clone(), "10")
            }
            // Apple refuses priority 10 for these.
            (ApnsKind::Alert, Urgency::Background, _)
            | (ApnsKind::Alert, Urgency::Message, MessageWake::Background) => {
                ("background", &self.topic, Bytes::from_static(BACKGROUND), "5")
            }
        };
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert("apns-push-type", HeaderValue::from_static(push_type));
        headers.insert("apns-topic", topic.clone());
        headers.insert("apns-priority", HeaderValue::from_static(priority));
        headers.insert("apns-expiration", HeaderValue::from(wake.expires_at.0 / 1000));
        headers.insert("apns-collapse-id", HeaderValue::try_from(&wake.collapse).ok()?);
        headers.insert("apns-id", HeaderValue::try_from(self.uuid()).ok()?);
        let mut path = String::with_capacity(10 + token.len() * 2);
        path += "/3/device/";
        for byte in token {
            write!(path, "{byte:02x}").ok()?;
        }
        Some(Post { path, headers, body })
    }

    /// Version 4 (RFC 9562 §5.4).
    fn uuid(&self) -> String {
        let mut bytes = [0; 16];
        self.world.fill_random(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut uuid = String::with_capacity(36);
        for (index, byte) in bytes.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            let _ = write!(uuid, "{dash}{byte:02x}"); // to a string: never fails
        }
        uuid
    }

    /// Once more with a fresh token if Apple calls the one used expired: it has processed nothing then.
    async fn send(&self, pool: &Pool, post: &mut Post) -> Option<Result<Reply, SendError>> {
        let (authorization, number) = self.signer.current()?;
        post.headers.insert("authorization", authorization);
        let budget = Budget::start(&*self.world);
        let reply = pool.send_within(post, budget.left()).await;
        let expired = matches!(&reply, Ok(reply) if reply.status == 403 && Said::read(reply).is("ExpiredProviderToken"));
        if !expired || !self.signer.expired(number) {
            return Some(reply);
        }
        post.headers.insert("authorization", self.signer.current()?.0);
        Some(pool.send_within(post, budget.left()).await)
    }
}

#[async_trait]
impl Provider for Apns {
    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer {
        let (token, kind) = match &target.address {
            PushAddress::Apns { token, kind } => (token, *kind),
            PushAddress::Fcm { .. } | PushAddress::WebPush { .. } => return UNKNOWN_APP.answer(None, None),
        };
        if target.address.check().is_err() {
            return BAD_TARGET.answer(None, None);
        }
        if kind == ApnsKind::Voip && wake.urgency != Urgency::Call {
            return CALLS_ONLY.answer(None, None);
        }
        let wall = self.world.wall();
        if wake.expires_at <= wall {
            return EXPIRED.answer(None, None);
        }
        if !wake.is_sound() {
            return BAD_WAKE.answer(None, None);
        }
        let Some(mut post) = self.post(token, kind, wake) else { return BAD_WAKE.answer(None, None) };
        let ticket = match self.gate.admit() {
            Ok(ticket) => ticket,
            Err(answer) => return answer,
        };
        let standing = || self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let probation = standing().on_probation(token, target.registered_at, wall);
        let pool = if probation { &self.probation } else { &self.proven };
        let Some(outcome) = self.send(pool, &mut post).await else {
            return SIGNING_FAILED.answer(None, None);
        };
        self.gate.note(ticket, &outcome);
        let answer = match outcome {
            Ok(reply) => {
                let said = Said::read(&reply);
                decide(TABLE, &reply, said.reason.as_deref(), said.timestamp.map(UnixMillis))
            }
            Err(error) => unanswered(error),
        };
        match answer.verdict {
            Verdict::Done => standing().note(token, true),
            Verdict::Drop { .. } | Verdict::Park => standing().note(token, false),
            Verdict::Retry { .. } | Verdict::Held { .. } | Verdict::FixConfiguration => {}
        }
        answer
    }
}

/// The body of a refusal. Whatever it is, reading it does not fail.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    reason: Option<String>,
    /// Milliseconds of Apple's clock: since when the token is dead.
    timestamp: Option<u64>,
}

impl Said {
    fn read(reply: &Reply) -> Self {
        serde_json::from_slice(&reply.body).unwrap_or_default()
    }

    fn is(&self, reason: &str) -> bool {
        self.reason.as_deref() == Some(reason)
    }
}
