//! The operators' calls of a pusher, and their caller. **Invariant:** without the admin token nobody is woken and nothing is shown;
//! no token, key or endpoint is in an answer.

use crate::provider::{ProviderKind, Scope, Verdict, Wake};
use crate::waker::{Waker, pick};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chappe_node::admin::{AdminCall, AdminHandler, AdminReply, StatusCode};
use chappe_protocol::envelope::Urgency;
use chappe_protocol::id::{DeviceId, UserId};
use chappe_protocol::push::{ApnsKind, PushAddress, PushTarget};
use chappe_protocol::time::Millis;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

/// All paths begin so.
pub const PREFIX: &str = "/v1/push/";
/// The path of a test.
const TEST: &str = "/v1/push/test";
/// The path of what is parked.
const PARKED: &str = "/v1/push/parked";
/// A test's wake is given up after this.
const TEST_LIFE: Millis = Millis::from_secs(300);

/// What the calls work on.
pub struct Operations {
    /// The pusher.
    pub waker: Waker,
    /// The admin token; never empty.
    pub token: String,
}

/// Body of a test.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestCall {
    /// Whose device.
    pub user: String,
    /// Which device.
    pub device: String,
    /// `call`, `message` or `background`.
    #[serde(default = "message")]
    pub urgency: String,
    /// Explain all, send nothing.
    #[serde(default)]
    pub dry_run: bool,
}

fn message() -> String {
    "message".into()
}

/// One step of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Whether it went as it should.
    pub good: bool,
    /// What was looked at: `user`, `device`, `attached`, `targets`, `app`, `quiet`, `wake`.
    pub step: String,
    /// What was found, and what to do if it is not good.
    pub found: String,
}

/// What a test found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestReport {
    /// Whether the device can be woken.
    pub good: bool,
    /// In order; the last one is where it ended.
    pub steps: Vec<Step>,
}

/// A wake that will never pass, as it is shown to operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkedWake {
    /// Since when, Unix milliseconds.
    pub at_ms: u64,
    /// Whose mailbox, in hexadecimal.
    pub mailbox: String,
    /// Which device.
    pub device: String,
    /// At which provider.
    pub provider: String,
    /// Of which app.
    pub app: String,
    /// Why.
    pub reason: String,
}

/// The handler for the admin port. Until the operations are set, there are no such calls.
pub fn handler(operations: Arc<OnceLock<Operations>>) -> AdminHandler {
    Arc::new(move |call| {
        let operations = Arc::clone(&operations);
        Box::pin(async move {
            let known = [TEST, PARKED].contains(&call.path.as_str());
            Some(operations.get().filter(|_| known)?.answer(&call).await)
        })
    })
}

impl Operations {
    async fn answer(&self, call: &AdminCall) -> AdminReply {
        if let Err(refused) = chappe_router::operations::admit(call, &self.token) {
            return refused;
        }
        if call.path == PARKED {
            return json(&self.parked());
        }
        let Ok(test) = serde_json::from_slice::<TestCall>(&call.body) else {
            let message = r#"the body must be {"user": …, "device": …, "urgency": …, "dry_run": …}"#;
            return chappe_router::operations::reply(StatusCode::BAD_REQUEST, "body", message);
        };
        json(&self.test(&test).await)
    }

    fn parked(&self) -> Vec<ParkedWake> {
        let shown = self.waker.parked().into_iter().map(|parked| ParkedWake {
            at_ms: parked.at.0,
            mailbox: parked.key.0.to_string(),
            device: parked.key.1.as_str().to_owned(),
            provider: parked.app.provider.label().to_owned(),
            app: parked.app.app.as_str().to_owned(),
            reason: parked.reason.to_owned(),
        });
        shown.collect()
    }

    async fn test(&self, call: &TestCall) -> TestReport {
        let mut steps = Vec::new();
        let good = self.walk(call, &mut steps).await.is_ok();
        TestReport { good, steps }
    }

    /// Walks the way of a wake and tells of each step; ends at the first that is not good.
    async fn walk(&self, call: &TestCall, steps: &mut Vec<Step>) -> Result<(), ()> {
        let eyes = self.waker.eyes();
        let away =
            |error: chappe_storage::StoreError| format!("the store does not answer ({error}); try again");
        let urgency = match call.urgency.as_str() {
            "call" => Urgency::Call,
            "message" => Urgency::Message,
            "background" => Urgency::Background,
            _ => return tell(steps, "urgency", Err("one of call, message and background".into())),
        };
        let found = match UserId::new(&call.user) {
            Err(error) => Err(error.to_string()),
            Ok(user) => match eyes.store.user(&user).await {
                Err(error) => Err(away(error)),
                Ok(Some(user)) if !user.erased => Ok(user.mailbox),
                Ok(_) => {
                    Err("there is no such user; `chappe user add` makes one, so does the first sign-in"
                        .into())
                }
            },
        };
        let mailbox = told(steps, "user", found, |_| "exists".into())?;
        let found = match DeviceId::new(&call.device) {
            Err(error) => Err(error.to_string()),
            Ok(device) => match eyes.store.devices(mailbox).await {
                Err(error) => Err(away(error)),
                Ok(set) => match set.devices.into_iter().find(|row| row.device == device) {
                    Some(row) if row.revoked => Err("revoked: it is never woken".into()),
                    Some(_) => Ok(device),
                    None => Err("the user has no such device; it comes to be when it first attaches".into()),
                },
            },
        };
        let device = told(steps, "device", found, |_| "live".into())?;
        let leases = eyes.presence.devices(mailbox).await;
        let attached = match &leases {
            None => "presence does not answer; wakes wait until envelopes are 20 s old",
            Some(leases) if leases.iter().any(|lease| lease.device == device) => {
                "attached now: it is woken only if it leaves something un-acked for 20 s"
            }
            Some(_) => "not attached",
        };
        tell(steps, "attached", Ok(attached.into()))?;
        let found = match eyes.store.push_targets(mailbox, &device).await {
            Err(error) => Err(away(error)),
            Ok(None) => Err("nothing is registered: the app must call set_push after it has attached".into()),
            Ok(Some(sealed)) => match eyes.keys.open(&sealed, mailbox, &device) {
                Err(error) => Err(error.to_string()),
                Ok(settings) if settings.targets.is_empty() => Err("nothing is registered any more".into()),
                Ok(settings) => Ok(settings),
            },
        };
        let settings = told(steps, "targets", found, |settings| {
            settings.targets.iter().map(name).collect::<Vec<_>>().join(", ")
        })?;
        let waking = self.waker.waking();
        let found = pick(&settings, urgency, waking.as_ref()).ok_or_else(|| {
            "no provider is configured for these apps, or they are for calls only; see the pusher's [providers]".to_owned()
        });
        let (target, _) = told(steps, "app", found, |(target, app)| {
            format!("{} goes to {} at {}", call.urgency, name(target), app.provider.label())
        })?;
        let now = eyes.clock.now();
        let due = settings.quiet.due(urgency, now);
        let quiet = if due > now {
            format!(
                "quiet hours or a mute: a real wake would wait {} s; this one does not",
                (due.0 - now.0) / 1000
            )
        } else {
            "not now".into()
        };
        tell(steps, "quiet", Ok(quiet))?;
        if call.dry_run {
            return Ok(());
        }
        let wake = Wake { urgency, collapse: "chappe-test".into(), expires_at: now + TEST_LIFE };
        let answer = waking.wake(target, &wake).await;
        let reason = answer.reason;
        let found = match answer.verdict {
            Verdict::Done => Ok(format!("taken ({reason})")),
            Verdict::Retry { after, scope } => {
                let whom = match scope {
                    Scope::Device => "this device",
                    Scope::App => "the app",
                    Scope::Provider => "the provider",
                };
                let after = after
                    .map_or_else(|| "some seconds".into(), |after| format!("{} s", after.0.div_ceil(1000)));
                Err(format!("not now ({reason}): {whom} would be tried again after {after}"))
            }
            Verdict::Drop { .. } => Err(format!("the token is dead ({reason}): the app must register anew")),
            Verdict::FixConfiguration => Err(format!(
                "the provider refuses the app ({reason}): mend its configuration; see docs/push-answers.md"
            )),
            Verdict::Held { span, scope: _ } => Err(format!(
                "not sent ({reason}): the provider failed a moment ago; ask again in {} s",
                span.0.div_ceil(1000)
            )),
            Verdict::Park => Err(format!("it will never pass ({reason}); see docs/push-answers.md")),
        };
        tell(steps, "wake", found)
    }
}

fn told<T>(
    steps: &mut Vec<Step>,
    step: &str,
    found: Result<T, String>,
    good: impl Fn(&T) -> String,
) -> Result<T, ()> {
    match found {
        Ok(value) => {
            tell(steps, step, Ok(good(&value)))?;
            Ok(value)
        }
        Err(message) => tell(steps, step, Err(message)).and(Err(())),
    }
}

fn tell(steps: &mut Vec<Step>, step: &str, found: Result<String, String>) -> Result<(), ()> {
    let good = found.is_ok();
    let (Ok(found) | Err(found)) = found;
    steps.push(Step { good, step: step.into(), found });
    if good { Ok(()) } else { Err(()) }
}

/// Its provider and app.
fn name(target: &PushTarget) -> String {
    let provider = ProviderKind::of(&target.address).label();
    let kind = match &target.address {
        PushAddress::Apns { kind: ApnsKind::Voip, .. } => " (VoIP)",
        PushAddress::Apns { kind: ApnsKind::Alert, .. }
        | PushAddress::Fcm { .. }
        | PushAddress::WebPush { .. } => "",
    };
    format!("{provider}{kind} for {}", target.app.as_str())
}

fn json(value: &impl Serialize) -> AdminReply {
    AdminReply { status: StatusCode::OK, json: serde_json::to_string(value).unwrap_or_default() }
}

/// Asks the admin port of a pusher, or of `chappe serve`, to wake a device and to tell how that went.
pub async fn ask_test(admin: SocketAddr, token: &str, call: &TestCall) -> Result<TestReport> {
    ask(admin, token, TEST, serde_json::to_vec(call)?).await
}

/// Asks what was parked lately.
pub async fn ask_parked(admin: SocketAddr, token: &str) -> Result<Vec<ParkedWake>> {
    ask(admin, token, PARKED, b"{}".to_vec()).await
}

async fn ask<T: for<'a> Deserialize<'a>>(
    admin: SocketAddr,
    token: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<T> {
    let asked = chappe_node::admin::request(admin, "POST", path, Some(token.trim()), Bytes::from(body)).await;
    let (status, text) = asked.with_context(|| {
        format!("cannot reach the admin port {admin}; is a pusher (or `chappe serve`) running, and is this its admin address?")
    })?;
    if !status.is_success() {
        let answer = chappe_router::operations::refusal(text);
        bail!("{admin} answers {}: {}", answer.code, answer.message);
    }
    Ok(serde_json::from_str(&text)?)
}
