//! The order in which a push service asks (RFC 8030 §5). **Invariant:** 201 means that the browser will read the message.

use super::subscription::Subscriptions;
use super::{aes128gcm, vapid};
use crate::answer::{Answer, Reply};
use crate::codec;
use crate::record::Kind;
use crate::rules::{Incoming, Judgement, Memory, Rules};
use crate::tokens::{TokenState, Tokens};
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;

/// Longest body, in bytes (RFC 8030 §7.2: at least this must pass; services take no more).
const BODY_BYTES_MAX: usize = 4096;
const TOPIC_BYTES_MAX: usize = 32;

pub(super) struct WebPushRules {
    pub(super) origin: String,
    pub(super) vapid_demanded: bool,
    pub(super) subscriptions: Arc<Subscriptions>,
    pub(super) tokens: Arc<Tokens>,
}

struct Complaint(u16, &'static str, String);

fn complaint<T>(status: u16, reason: &'static str, why: impl Into<String>) -> Result<T, Complaint> {
    Err(Complaint(status, reason, why.into()))
}

impl WebPushRules {
    fn endpoint(&self, request: &Incoming) -> String {
        format!("{}{}", self.origin, request.path)
    }

    fn check(&self, request: &Incoming) -> Result<(Option<Bytes>, u64), Complaint> {
        let endpoint = self.endpoint(request);
        let held = self.subscriptions.get(&endpoint);
        let Some(held) = held.filter(|_| self.tokens.get(&endpoint) != TokenState::NeverValid) else {
            return complaint(404, "NotFound", "no subscription has this path");
        };
        if request.method != http::Method::POST {
            return complaint(405, "MethodNotAllowed", "the method is POST");
        }
        self.authorize(request, held.only.as_deref())?;
        if request.too_long || request.body.len() > BODY_BYTES_MAX {
            return complaint(413, "PayloadTooLarge", format!("{BODY_BYTES_MAX} bytes are allowed"));
        }
        let ttl = match request.number("ttl") {
            Ok(Some(ttl)) => ttl,
            Ok(None) => return complaint(400, "MissingTtl", "there is no TTL (RFC 8030 §5.2)"),
            Err(why) => return complaint(400, "BadTtl", why),
        };
        Self::urgency_and_topic(request)?;
        if let TokenState::DeadSince(_) = self.tokens.get(&endpoint) {
            return complaint(410, "Gone", "this subscription was set to be dead");
        }
        if request.body.is_empty() {
            return Ok((None, ttl));
        }
        match request.header("content-encoding") {
            Ok(Some("aes128gcm")) => (),
            Ok(Some(_) | None) => {
                return complaint(415, "BadEncoding", "content-encoding is aes128gcm (RFC 8291 §4)");
            }
            Err(why) => return complaint(415, "BadEncoding", why),
        }
        match aes128gcm::decrypt(&request.body, &held) {
            Ok(plain) => Ok((Some(Bytes::from(plain)), ttl)),
            // A real service cannot see this; the browser would drop the message.
            Err(why) => complaint(400, "Undecryptable", why),
        }
    }

    fn authorize(&self, request: &Incoming, only: Option<&str>) -> Result<(), Complaint> {
        let header = match request.header("authorization") {
            Ok(header) => header,
            Err(why) => return complaint(403, "BadVapid", why),
        };
        let Some(header) = header else {
            if self.vapid_demanded || only.is_some() {
                return complaint(401, "MissingVapid", "there is no authorization (RFC 8292 §4.2)");
            }
            return Ok(());
        };
        match vapid::check(header, &self.origin, request.now_ms / 1000) {
            Err(why) => complaint(403, "BadVapid", why),
            Ok(key) if only.is_some_and(|only| only != key) => {
                complaint(403, "OtherVapidKey", "the subscription was made for another key (RFC 8292 §4.2)")
            }
            Ok(_) => Ok(()),
        }
    }

    fn urgency_and_topic(request: &Incoming) -> Result<(), Complaint> {
        match request.header("urgency") {
            Ok(None | Some("very-low" | "low" | "normal" | "high")) => (),
            Ok(Some(_)) => {
                return complaint(
                    400,
                    "BadUrgency",
                    "urgency is very-low, low, normal or high (RFC 8030 §5.3)",
                );
            }
            Err(why) => return complaint(400, "BadUrgency", why),
        }
        let topic = match request.header("topic") {
            Ok(topic) => topic,
            Err(why) => return complaint(400, "BadTopic", why),
        };
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let fits = |topic: &str| (1..=TOPIC_BYTES_MAX).contains(&topic.len()) && topic.bytes().all(letters);
        if topic.is_none_or(fits) {
            Ok(())
        } else {
            complaint(400, "BadTopic", "topic has 1 to 32 letters of base64url (RFC 8030 §5.4)")
        }
    }

    fn refusal(status: u16, reason: &str, why: &str) -> Reply {
        Reply::json(status, &json!({ "code": status, "error": reason, "message": why }))
    }

    fn created(&self, ttl: u64) -> (Reply, String) {
        let id = format!("{}/message/{}", self.origin, codec::base64url(&codec::random::<18>()));
        let reply = Reply::empty(201).with("location", &id).with("ttl", &ttl.to_string());
        (reply, id)
    }
}

impl Rules for WebPushRules {
    fn kind(&self, _: &Incoming) -> Kind {
        Kind::Wake
    }

    fn target(&self, request: &Incoming) -> Option<String> {
        Some(self.endpoint(request))
    }

    fn judge(&self, request: &Incoming, _: &mut Memory) -> Judgement {
        match self.check(request) {
            Ok((plain, ttl)) => {
                let (reply, id) = self.created(ttl);
                Judgement { plain, ..Judgement::accepted(reply, id) }
            }
            Err(Complaint(status, reason, why)) => {
                let mut reply = Self::refusal(status, reason, &why);
                if status == 401 {
                    reply = reply.with("www-authenticate", "vapid");
                }
                Judgement::refused(reply, reason, why)
            }
        }
    }

    fn scripted(&self, answer: &Answer, _: &Incoming) -> Reply {
        if answer.status == 201 {
            return self.created(0).0;
        }
        Self::refusal(answer.status, &answer.reason, "")
    }

    fn starts_with_one_stream(&self) -> bool {
        false
    }
}
