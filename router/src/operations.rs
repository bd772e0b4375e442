//! The operators' calls on the admin port, and their caller. **Invariant:** without the admin token nothing changes.

pub mod trace;

use crate::links::Links;
use crate::trace::Traces;
use anyhow::{Context, Result, bail};
use base64::Engine as _;
use bytes::Bytes;
use chappe_node::admin::{AdminCall, AdminHandler, AdminReply, StatusCode};
use chappe_protocol::id::{DeviceId, UserId};
use chappe_protocol::internode::{Attached, DeviceNews, Request};
use chappe_protocol::time::Millis;
use chappe_storage::{Store, StoreError};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// What the calls work on.
pub struct Operations {
    /// The slot log.
    pub store: Arc<dyn Store>,
    /// For doorbells to the sessions of a revoked device.
    pub links: Arc<dyn Links>,
    /// What the roles of this process remember.
    pub traces: Arc<Traces>,
    /// The admin token; never empty.
    pub token: String,
}

/// Body of every call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Subject {
    user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

/// A call's answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// `ok` or the word of an error.
    pub code: String,
    /// For people.
    pub message: String,
}

/// The calls that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Creates a user, so that others can write before the first sign-in.
    AddUser,
    /// Erases a user: unreadable at once, and for ever.
    EraseUser,
    /// Bars a device for ever.
    RevokeDevice,
    /// Bars a user with all devices, those included that never were here.
    RevokeUser,
    /// Tells where an envelope is.
    Trace,
}

impl Verb {
    const ALL: [Self; 5] =
        [Self::AddUser, Self::EraseUser, Self::RevokeDevice, Self::RevokeUser, Self::Trace];

    const fn path(self) -> &'static str {
        match self {
            Self::AddUser => "/v1/users/add",
            Self::EraseUser => "/v1/users/erase",
            Self::RevokeDevice => "/v1/devices/revoke",
            Self::RevokeUser => "/v1/users/revoke",
            Self::Trace => "/v1/trace",
        }
    }
}

/// The handler for the admin port. Until the operations are set, there are no such calls.
pub fn handler(operations: Arc<OnceLock<Operations>>) -> AdminHandler {
    Arc::new(move |call| {
        let operations = Arc::clone(&operations);
        Box::pin(async move {
            let verb = Verb::ALL.into_iter().find(|verb| verb.path() == call.path)?;
            Some(operations.get()?.answer(verb, &call).await)
        })
    })
}

impl Operations {
    async fn answer(&self, verb: Verb, call: &AdminCall) -> AdminReply {
        if let Err(refused) = admit(call, &self.token) {
            return refused;
        }
        match verb {
            Verb::Trace => self.trace(&call.body).await,
            Verb::AddUser | Verb::EraseUser | Verb::RevokeDevice | Verb::RevokeUser => {
                self.change(verb, &call.body).await
            }
        }
    }

    async fn change(&self, verb: Verb, body: &[u8]) -> AdminReply {
        let Ok(subject) = serde_json::from_slice::<Subject>(body) else {
            let message = r#"the body must be {"user": …} or {"user": …, "device": …}"#;
            return reply(StatusCode::BAD_REQUEST, "body", message);
        };
        let Ok(user) = UserId::new(&subject.user) else {
            return reply(
                StatusCode::BAD_REQUEST,
                "user",
                "a user name has 1 to 128 bytes and no control characters",
            );
        };
        let device = subject.device.as_deref().map(DeviceId::new).transpose();
        let done = match (verb, device) {
            (_, Err(error)) => return reply(StatusCode::BAD_REQUEST, "device", &error.to_string()),
            (Verb::AddUser, Ok(_)) => self.store.create_user(&user).await.map(|_| true),
            (Verb::EraseUser, Ok(_)) => self.erase(&user).await,
            (Verb::RevokeUser, Ok(None)) => self.bar(&user).await,
            (Verb::RevokeUser, Ok(Some(_))) => {
                return reply(
                    StatusCode::BAD_REQUEST,
                    "device",
                    "this call is about all devices of the user",
                );
            }
            (Verb::RevokeDevice, Ok(Some(device))) => self.revoke(&user, &device).await,
            (Verb::RevokeDevice | Verb::Trace, Ok(_)) => {
                return reply(StatusCode::BAD_REQUEST, "device", "name the device to revoke");
            }
        };
        match done {
            Ok(true) => reply(StatusCode::OK, "ok", "done"),
            Ok(false) => reply(StatusCode::NOT_FOUND, "unknown_user", "there is no such user or device"),
            Err(error) => reply(StatusCode::SERVICE_UNAVAILABLE, "store", &error.to_string()),
        }
    }

    async fn erase(&self, user: &UserId) -> Result<bool, StoreError> {
        let Some(found) = self.store.user(user).await?.filter(|found| !found.erased) else {
            return Ok(false);
        };
        let devices = self.store.devices(found.mailbox).await?;
        self.store.erase(user).await?;
        for device in devices.devices {
            self.ring(found.mailbox, &device).await;
        }
        Ok(true)
    }

    async fn revoke(&self, user: &UserId, device: &DeviceId) -> Result<bool, StoreError> {
        let Some(found) = self.store.user(user).await?.filter(|found| !found.erased) else {
            return Ok(false);
        };
        let devices = self.store.devices(found.mailbox).await?;
        let Some(row) = devices.devices.iter().find(|row| row.device == *device) else { return Ok(false) };
        self.store.revoke(found.mailbox, device).await?;
        self.ring(found.mailbox, row).await;
        Ok(true)
    }

    /// Also one who was erased: who would come back to a new mailbox is barred from that one.
    async fn bar(&self, user: &UserId) -> Result<bool, StoreError> {
        let Some(found) = self.store.user(user).await? else { return Ok(false) };
        let mailbox = if found.erased { self.store.create_user(user).await?.mailbox } else { found.mailbox };
        let devices = chappe_storage::bar(&*self.store, mailbox).await?;
        for device in devices.devices {
            self.ring(mailbox, &device).await;
        }
        Ok(true)
    }

    /// Closes the device's open sessions now; if this gets lost, the next probe does it.
    async fn ring(&self, mailbox: chappe_protocol::id::MailboxId, device: &chappe_storage::Device) {
        let news = DeviceNews {
            device: device.device.clone(),
            epoch: device.epoch,
            connection: device.connection,
            revoked: true,
        };
        let request = Request::Attached(Attached { mailbox, news });
        if self.links.request(mailbox, request, Millis::from_secs(2)).await.is_err() {
            tracing::warn!("no router to ring for a revoked device: its sessions end with the next probe");
        }
    }
}

/// Refuses whoever does not show the admin token, and whatever is no POST.
pub fn admit(call: &AdminCall, token: &str) -> Result<(), AdminReply> {
    let given = call.bearer.as_deref().unwrap_or_default();
    if aws_lc_rs::constant_time::verify_slices_are_equal(given.as_bytes(), token.as_bytes()).is_err() {
        let message = "send `Authorization: Bearer` with the content of the admin token's file";
        return Err(reply(StatusCode::UNAUTHORIZED, "admin_token", message));
    }
    if call.method != chappe_node::admin::Method::POST {
        return Err(reply(StatusCode::METHOD_NOT_ALLOWED, "method", "use POST"));
    }
    Ok(())
}

/// An answer with a word for machines and a hint for people.
pub fn reply(status: StatusCode, code: &str, message: &str) -> AdminReply {
    let answer = Answer { code: code.into(), message: message.into() };
    AdminReply { status, json: serde_json::to_string(&answer).unwrap_or_default() }
}

/// Calls the admin port of a running server to change something.
pub async fn call(
    admin: SocketAddr,
    token: &str,
    verb: Verb,
    user: &str,
    device: Option<&str>,
) -> Result<()> {
    let subject = Subject { user: user.into(), device: device.map(Into::into) };
    let (status, text) = post(admin, token, verb, serde_json::to_vec(&subject)?).await?;
    if !status.is_success() {
        let answer = refusal(text);
        bail!("{}: {}", answer.code, answer.message);
    }
    Ok(())
}

/// Asks the admin port of a running server where an envelope is; `None`: it does not know the envelope.
pub async fn ask_trace(
    admin: SocketAddr,
    token: &str,
    call: &trace::TraceCall,
) -> Result<Option<trace::TraceReport>> {
    let (status, text) = post(admin, token, Verb::Trace, serde_json::to_vec(call)?).await?;
    if status.is_success() {
        return Ok(Some(serde_json::from_str(&text)?));
    }
    let answer = refusal(text);
    if answer.code == "unknown_envelope" {
        return Ok(None);
    }
    bail!("{admin} answers {}: {}", answer.code, answer.message)
}

async fn post(admin: SocketAddr, token: &str, verb: Verb, body: Vec<u8>) -> Result<(StatusCode, String)> {
    chappe_node::admin::request(admin, "POST", verb.path(), Some(token.trim()), Bytes::from(body))
        .await
        .with_context(|| {
            format!(
                "cannot reach the admin port {admin}; is the server running, and is this its admin address?"
            )
        })
}

/// What stands in an answer that is not good.
pub fn refusal(text: String) -> Answer {
    serde_json::from_str(&text).unwrap_or(Answer { code: "answer".into(), message: text })
}

/// A fresh admin token: 32 random bytes as text.
pub fn fresh_token(world: &dyn chappe_protocol::world::World) -> String {
    let mut secret = [0; 32];
    world.fill_random(&mut secret);
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(secret)
}
