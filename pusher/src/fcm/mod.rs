//! Firebase Cloud Messaging, HTTP v1. **Invariant:** a message carries `{"sync":"1"}` as its data and nothing else, and no
//! notification that Google could show.

mod oauth;
mod table;

pub use oauth::{BadServiceAccount, ServiceAccount};
pub use table::TABLE;

use crate::answers::{BAD_TARGET, BAD_WAKE, EXPIRED, UNKNOWN_APP, decide, unanswered};
use crate::gate::{Budget, Gate};
use crate::provider::{Answer, Provider, Wake};
use crate::transport::{Origin, Pool, Post, Reply, SendError, Wires};
use async_trait::async_trait;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{PushAddress, PushTarget};
use chappe_protocol::world::World;
use http::{HeaderMap, HeaderValue};
use oauth::Tokens;
use serde_json::{Value, json};
use std::sync::Arc;

/// Where Google listens.
pub const GOOGLE: &str = "https://fcm.googleapis.com";
/// Google keeps no message longer.
const TTL_S_MAX: u64 = 28 * 24 * 3600;

/// One project at Google.
pub struct Fcm {
    path: String,
    tokens: Tokens,
    pool: Pool,
    gate: Gate,
    world: Arc<dyn World>,
}

impl Fcm {
    /// `project`: if not that of the service account. `None` if it is not 1 to 64 of `a-z`, `0-9`, `-`, `.`, `:`.
    pub fn new(
        account: ServiceAccount,
        project: Option<&str>,
        origin: Origin,
        wires: &Wires,
    ) -> Option<Self> {
        let project = project.unwrap_or(&account.project);
        let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:".contains(&byte);
        if !(1..=64).contains(&project.len()) || !project.bytes().all(good) {
            return None;
        }
        let path = format!("/v1/projects/{project}/messages:send");
        let pool = wires.pool(origin, wires.limits.connections_max);
        let gate = Gate::new(wires.world.clone());
        Some(Self { path, tokens: Tokens::new(account, wires)?, pool, gate, world: wires.world.clone() })
    }

    /// Once more with a fresh access token if Google refuses the one used.
    async fn send(&self, post: &mut Post) -> Result<Result<Reply, SendError>, Answer> {
        let budget = Budget::start(&*self.world);
        let mut again = false;
        loop {
            let bearer = tokio::time::timeout(budget.left().to_std(), self.tokens.bearer()).await;
            let (authorization, number) = match bearer {
                Ok(bearer) => bearer?,
                Err(_) => return Err(crate::answers::TOKEN_UNAVAILABLE.answer(None, None)),
            };
            post.headers.insert("authorization", authorization);
            let reply = self.pool.send_within(post, budget.left()).await;
            let refused = matches!(&reply, Ok(reply) if reply.status == 401 && reason(reply) != Some("THIRD_PARTY_AUTH_ERROR"));
            if !refused || again {
                return Ok(reply);
            }
            self.tokens.refused(number);
            again = true;
        }
    }
}

fn post(path: &str, token: &str, wake: &Wake, ttl_s: u64) -> Post {
    let priority = match wake.urgency {
        Urgency::Call | Urgency::Message => "HIGH",
        Urgency::Background => "NORMAL",
    };
    let ttl = format!("{}s", ttl_s.min(TTL_S_MAX));
    let android = json!({"priority": priority, "ttl": ttl, "collapse_key": wake.collapse});
    let body = json!({"message": {"token": token, "data": {"sync": "1"}, "android": android}});
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert("content-type", HeaderValue::from_static("application/json"));
    Post { path: path.to_owned(), headers, body: body.to_string().into() }
}

#[async_trait]
impl Provider for Fcm {
    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer {
        let token = match &target.address {
            PushAddress::Fcm { token } => token,
            PushAddress::Apns { .. } | PushAddress::WebPush { .. } => return UNKNOWN_APP.answer(None, None),
        };
        if target.address.check().is_err() {
            return BAD_TARGET.answer(None, None);
        }
        let wall = self.world.wall();
        if wake.expires_at <= wall {
            return EXPIRED.answer(None, None);
        }
        if !wake.is_sound() {
            return BAD_WAKE.answer(None, None);
        }
        let mut post = post(&self.path, token, wake, (wake.expires_at.0 - wall.0).div_ceil(1000));
        let ticket = match self.gate.admit() {
            Ok(ticket) => ticket,
            Err(answer) => return answer,
        };
        let outcome = match self.send(&mut post).await {
            Ok(outcome) => outcome,
            Err(answer) => return answer,
        };
        self.gate.note(ticket, &outcome);
        match outcome {
            Ok(reply) => decide(TABLE, &reply, reason(&reply), None),
            Err(error) => unanswered(error),
        }
    }
}

/// The error's code as the table spells it, whatever the body is.
fn reason(reply: &Reply) -> Option<&'static str> {
    let body: Value = serde_json::from_slice(&reply.body).ok()?;
    let error = body.get("error")?;
    let details = error.get("details").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let code = details.iter().find_map(|detail| detail.get("errorCode")?.as_str());
    let code = code.or_else(|| error.get("status")?.as_str())?;
    let bad_token = details
        .iter()
        .filter_map(|detail| detail.get("fieldViolations")?.as_array())
        .flatten()
        .any(|violation| violation.get("field").and_then(Value::as_str) == Some("message.token"));
    let code = if bad_token && code == "INVALID_ARGUMENT" { table::BAD_TOKEN } else { code };
    TABLE.iter().filter_map(|row| row.reason).find(|reason| *reason == code)
}
