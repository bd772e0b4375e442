//! FCM's rules in their order, and Google's form of errors. **Invariant:** every refusal of a message carries HTTP status,
//! canonical status and `FcmError` where FCM gives one.

use super::message;
use super::oauth::Logins;
use crate::answer::{Answer, Reply};
use crate::codec;
use crate::record::Kind;
use crate::rules::{Incoming, Judgement, Memory, Rules};
use crate::tokens::{TokenState, Tokens};
use serde_json::{Value, json};
use std::sync::Arc;

pub(super) struct FcmRules {
    pub(super) project: String,
    pub(super) tokens: Arc<Tokens>,
    pub(super) logins: Arc<Logins>,
}

/// An error of the API (Google, "Errors" of the Cloud APIs; Firebase, "ErrorCode").
struct Refusal<'a> {
    status: u16,
    canonical: &'a str,
    /// FCM's own code, in `details`.
    code: Option<&'a str>,
    field: Option<&'a str>,
    message: &'a str,
}

impl Refusal<'_> {
    fn reply(&self) -> Reply {
        let mut details = Vec::new();
        if let Some(code) = self.code {
            details.push(json!({
                "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError",
                "errorCode": code,
            }));
        }
        if let Some(field) = self.field {
            details.push(json!({
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [{ "field": field, "description": self.message }],
            }));
        }
        let mut error = json!({ "code": self.status, "message": self.message, "status": self.canonical });
        if !details.is_empty() {
            error["details"] = Value::Array(details);
        }
        Reply::json(self.status, &json!({ "error": error }))
    }

    fn judgement(&self) -> Box<Judgement> {
        Box::new(Judgement::refused(
            self.reply(),
            self.code.unwrap_or(self.canonical),
            self.message.to_owned(),
        ))
    }
}

/// The canonical status that belongs to an HTTP status (google.rpc.Code).
fn canonical(status: u16) -> &'static str {
    match status {
        400 => "INVALID_ARGUMENT",
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        429 => "RESOURCE_EXHAUSTED",
        503 => "UNAVAILABLE",
        504 => "DEADLINE_EXCEEDED",
        _ => "INTERNAL",
    }
}

/// The codes that FCM puts into `details`; any other word is none of them.
const CODES: [&str; 8] = [
    "UNSPECIFIED_ERROR",
    "INVALID_ARGUMENT",
    "UNREGISTERED",
    "SENDER_ID_MISMATCH",
    "QUOTA_EXCEEDED",
    "UNAVAILABLE",
    "INTERNAL",
    "THIRD_PARTY_AUTH_ERROR",
];

impl FcmRules {
    fn check(&self, request: &Incoming) -> Result<String, Box<Judgement>> {
        let refuse = |status: u16, message: &str| {
            let canonical = canonical(status);
            Refusal { status, canonical, code: None, field: None, message }.judgement()
        };
        let path = format!("/v1/projects/{}/messages:send", self.project);
        if request.path != path || request.method != http::Method::POST {
            return Err(refuse(404, "the request is POST /v1/projects/{project}/messages:send"));
        }
        self.authorize(request).map_err(|why| refuse(401, &why))?;
        let kind = request.header("content-type").ok().flatten().unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            return Err(refuse(400, "the content type is application/json"));
        }
        if request.too_long {
            return Err(refuse(400, "Request payload size exceeds the limit"));
        }
        let Ok(body) = serde_json::from_slice::<Value>(&request.body) else {
            return Err(refuse(400, "Invalid JSON payload received."));
        };
        // Google's examples: a wrong field has BadRequest alone, a wrong token has FcmError alone.
        let invalid = |field: Option<&str>, message: &str| {
            let canonical = "INVALID_ARGUMENT";
            let code = field.is_none().then_some(canonical);
            Refusal { status: 400, canonical, code, field, message }.judgement()
        };
        let token = message::check(&body).map_err(|wrong| invalid(wrong.field.as_deref(), &wrong.why))?;
        match self.tokens.get(&token) {
            TokenState::Live => {
                Ok(format!("projects/{}/messages/0:{}", self.project, codec::hex(&codec::random::<12>())))
            }
            TokenState::NeverValid => {
                Err(invalid(None, "The registration token is not a valid FCM registration token"))
            }
            TokenState::DeadSince(_) => {
                let (canonical, code) = ("NOT_FOUND", Some("UNREGISTERED"));
                let message = "Requested entity was not found.";
                Err(Refusal { status: 404, canonical, code, field: None, message }.judgement())
            }
        }
    }

    fn authorize(&self, request: &Incoming) -> Result<(), String> {
        let header = request.header("authorization")?;
        let token = match header.and_then(|header| header.split_once(' ')) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token,
            Some(_) | None => return Err("authorization is: Bearer <access token>".to_owned()),
        };
        self.logins.holds(token, request.now_ms).map_err(str::to_owned)
    }
}

impl Rules for FcmRules {
    fn kind(&self, request: &Incoming) -> Kind {
        if request.path == "/token" { Kind::Login } else { Kind::Wake }
    }

    fn target(&self, request: &Incoming) -> Option<String> {
        let body: Value = serde_json::from_slice(&request.body).ok()?;
        body.get("message")?.get("token")?.as_str().map(str::to_owned)
    }

    fn judge(&self, request: &Incoming, _: &mut Memory) -> Judgement {
        if self.kind(request) == Kind::Login {
            return self.logins.judge(request);
        }
        match self.check(request) {
            Ok(name) => Judgement::accepted(Reply::json(200, &json!({ "name": name })), name),
            Err(refused) => *refused,
        }
    }

    fn scripted(&self, answer: &Answer, request: &Incoming) -> Reply {
        if self.kind(request) == Kind::Login {
            return Reply::json(answer.status, &json!({ "error": answer.reason }));
        }
        if answer.status == 200 {
            return Reply::json(200, &json!({ "name": format!("projects/{}/messages/0:0", self.project) }));
        }
        let code = CODES.contains(&answer.reason.as_str()).then_some(answer.reason.as_str());
        let canonical = canonical(answer.status);
        Refusal { status: answer.status, canonical, code, field: None, message: &answer.reason }.reply()
    }

    fn starts_with_one_stream(&self) -> bool {
        false
    }
}
