//! One wake: checked once more, handed to its provider, and what follows from the answer. **Invariant:** `woken` is written after
//! the provider's final answer, and the note of the next attempt before `woken`, so that no crash loses a repeat.

use super::{MEMORY, Shared, pick};
use crate::look::{repeat, still};
use crate::looks::Waiting;
use crate::outbox::{After, Key, Parked, WakeId};
use crate::provider::{Answer, AppKey, ProviderKind, Scope, Verdict, Wake};
use crate::schedule::backoff;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::id::Seq;
use chappe_protocol::push::{PushSettings, PushTarget};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_storage::sealed::SealedError;
use chappe_storage::{Result, StoreError, Woken};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// A wake that waited for longer is checked against the store before it is sent.
const STALE: Millis = Millis(1000);
/// An app whose configuration its provider refuses is tried again after this, or when the configuration is read anew.
const REFUSED_PAUSE: Millis = Millis::from_secs(300);
/// A whole app waits 8 to 16 s at most unless its provider asks for more: a provider that is back is told of everybody within
/// the bound. Few are asked meanwhile, since one answer makes all wait.
const PAUSE_DOUBLINGS: u32 = 5;
/// Tries of a write that follows an answer, and the pause after the first; it doubles.
const WRITE_TRIES: (u32, Millis) = (5, Millis(200));

/// A wake as it is sent.
struct Sending {
    id: WakeId,
    key: Key,
    app: AppKey,
    upto: Seq,
    attempt: u8,
    urgency: Urgency,
    since: UnixMillis,
    expires_at: UnixMillis,
    settings: PushSettings,
    failures: u32,
    waited: Millis,
}

impl Shared {
    pub(super) async fn send(self: Arc<Self>, id: WakeId) {
        let now = self.world.now();
        let sending = self.outbox().job(id).map(|job| Sending {
            id,
            key: job.key.clone(),
            app: job.app.clone(),
            upto: job.upto,
            attempt: job.attempt,
            urgency: job.due.urgency,
            since: job.since,
            expires_at: job.due.expires_at,
            settings: job.settings.clone(),
            failures: job.failures,
            waited: now - job.queued_at,
        });
        let Some(mut sending) = sending else { return };
        if sending.waited >= STALE {
            let (mailbox, device) = &sending.key;
            match still(&self.eyes, *mailbox, device, sending.upto, sending.attempt).await {
                Ok(Some(settings)) => sending.settings = settings,
                Ok(None) => {
                    self.metrics.skipped("acked");
                    return self.conclude(&sending, After::Over { given: false }, false);
                }
                // It says nothing but "sync": rather one for nothing than none.
                Err(error) => tracing::debug!(%error, "a wake could not be checked once more"),
            }
        }
        if sending.expires_at <= self.clock().now() {
            self.metrics.skipped("expired");
            return self.conclude(&sending, After::Over { given: false }, false);
        }
        let picked = pick(&sending.settings, sending.urgency, self.waking.as_ref());
        let Some((target, _)) = picked.filter(|(_, app)| *app == sending.app) else {
            // The device has registered elsewhere meanwhile, or the app is gone from the configuration.
            return self.conclude(&sending, After::Over { given: false }, true);
        };
        let target = target.clone();
        let wake = Wake {
            urgency: sending.urgency,
            collapse: collapse(&sending.key),
            expires_at: sending.expires_at,
        };
        let answer = self.waking.wake(&target, &wake).await;
        self.metrics.answered(sending.app.provider, &answer);
        self.answered(&sending, &target, answer).await;
    }

    async fn answered(&self, sending: &Sending, target: &PushTarget, answer: Answer) {
        let now = self.world.now();
        match answer.verdict {
            Verdict::Done => {
                let latency = self.clock().now().0.saturating_sub(sending.since.0);
                self.metrics.woken(sending.app.provider, sending.attempt, latency);
                self.given(sending, sending.attempt).await;
                self.measure_noise(sending).await;
                self.conclude(sending, After::Over { given: true }, false);
            }
            Verdict::Retry { after, scope } => {
                let random = self.world.random_below(u64::MAX);
                let backoff = |failures| now + backoff(failures, after, random);
                let after = match scope {
                    Scope::Device => After::Again(backoff(sending.failures + 1)),
                    Scope::App | Scope::Provider => {
                        After::Pause(backoff((sending.failures + 1).min(PAUSE_DOUBLINGS)))
                    }
                };
                self.conclude(sending, after, false);
            }
            Verdict::Held { span, scope } => {
                self.conclude(sending, After::Held { at: now + span, app: scope != Scope::Device }, false);
            }
            Verdict::Drop { since } => self.dead(sending, target, since).await,
            Verdict::FixConfiguration if sending.app.provider != ProviderKind::WebPush => {
                let (provider, app) = (sending.app.provider.label(), sending.app.app.as_str());
                tracing::error!(
                    provider,
                    app,
                    reason = answer.reason,
                    "push_refused: the provider refuses this app; nobody of it is woken until its configuration is mended"
                );
                self.conclude(sending, After::Pause(now + REFUSED_PAUSE), false);
            }
            Verdict::FixConfiguration | Verdict::Park => {
                let parked = Parked {
                    at: self.clock().now(),
                    key: sending.key.clone(),
                    app: sending.app.clone(),
                    reason: answer.reason,
                };
                self.outbox().park(parked);
                self.metrics.parked.inc();
                self.given(sending, Woken::ATTEMPT_MAX).await;
                self.conclude(sending, After::Over { given: true }, false);
            }
        }
    }

    /// Ends or puts off; looks at the mailbox once more where that is wanted, or where something came for the device meanwhile.
    fn conclude(&self, sending: &Sending, after: After, look: bool) {
        let now = self.world.now();
        let (guards, again) = self.outbox().answered(sending.id, after, now);
        self.outbox_changed.notify_one();
        if look || again {
            let ask = Waiting { mailbox: sending.key.0, hinted: sending.upto, guards };
            self.look_at(ask, now);
        }
    }

    /// Writes down that a wake was given, and when the next is due.
    async fn given(&self, sending: &Sending, attempt: u8) {
        let (mailbox, device) = &sending.key;
        let woken = Woken { seq: sending.upto, attempt, at: self.clock().now() };
        if let Some(at) = repeat(*mailbox, device, woken) {
            self.write(|| self.eyes.store.add_pending_at(*mailbox, at)).await;
            self.settled().hasten(*mailbox, at);
            if at <= woken.at + MEMORY && self.owns(*mailbox) {
                let ask = Waiting { mailbox: *mailbox, hinted: Seq(0), guards: Vec::new() };
                self.look_at(ask, self.clock().monotonic(at));
            }
        }
        self.write(|| self.eyes.store.raise_woken(*mailbox, device, woken)).await;
    }

    /// Tries a few times. What fails for good costs a wake too many.
    async fn write<F: Future<Output = Result<()>> + Send>(&self, write: impl Fn() -> F + Send) {
        let (tries, mut pause) = WRITE_TRIES;
        for _ in 0..tries {
            match write().await {
                Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => {
                    tokio::time::sleep(pause.to_std()).await;
                    pause = Millis(pause.0 * 2);
                }
                // Done, or the mailbox or the device is gone.
                Ok(())
                | Err(
                    StoreError::Quota
                    | StoreError::Erased
                    | StoreError::Revoked
                    | StoreError::CursorAhead { .. }
                    | StoreError::Invalid(_),
                ) => return,
            }
        }
        self.metrics.unwritten.inc();
    }

    /// The device had everything by the time the provider took the wake.
    async fn measure_noise(&self, sending: &Sending) {
        let (mailbox, device) = &sending.key;
        if let Ok(cursor) = self.eyes.store.cursor(*mailbox, device).await
            && cursor >= sending.upto
        {
            self.metrics.noise(sending.app.provider);
        }
    }

    /// The provider calls the token dead. If that was before it was registered, it speaks of an earlier life of the token.
    async fn dead(&self, sending: &Sending, target: &PushTarget, since: Option<UnixMillis>) {
        if since.is_some_and(|since| since < target.registered_at) {
            self.metrics.skipped("reborn");
            self.given(sending, sending.attempt).await;
            return self.conclude(sending, After::Over { given: true }, false);
        }
        match self.bury(&sending.key, target).await {
            Ok(rest) => {
                self.metrics.buried(sending.app.provider);
                self.conclude(sending, After::Over { given: false }, rest);
            }
            Err(error) => {
                tracing::debug!(%error, "a dead push target could not be removed");
                let random = self.world.random_below(u64::MAX);
                let at = self.world.now() + backoff(sending.failures + 1, None, random);
                self.conclude(sending, After::Again(at), false);
            }
        }
    }

    /// Removes a target, if it still is registered as it was. Returns whether another look is due: there are others, or new
    /// ones.
    async fn bury(&self, key: &Key, dead: &PushTarget) -> Result<bool> {
        let (mailbox, device) = key;
        let store = &self.eyes.store;
        let Some(old) = store.push_targets(*mailbox, device).await? else { return Ok(false) };
        let unsealed = self.eyes.keys.open(&old, *mailbox, device);
        let Ok(mut settings) = unsealed else { return Ok(false) };
        let before = settings.targets.len();
        settings.targets.retain(|target| target != dead);
        if settings.targets.len() == before {
            return Ok(true);
        }
        let rest = !settings.targets.is_empty();
        let new = match rest.then(|| self.eyes.keys.seal(&settings, *mailbox, device, self.world.as_ref())) {
            None => None,
            Some(Ok(sealed)) => Some(sealed),
            Some(Err(error)) => return Err(unsealable(error)),
        };
        let replaced = store.replace_push_targets(*mailbox, device, &old, new).await?;
        Ok(rest || !replaced)
    }
}

fn unsealable(error: SealedError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// What a later wake of the same device replaces an earlier one by. The mailbox's id is random: nobody learns anything from it.
fn collapse((mailbox, device): &Key) -> String {
    let digest = Sha256::new().chain_update(mailbox.as_bytes()).chain_update(device.as_str()).finalize();
    let digest: [u8; 32] = digest.into();
    URL_SAFE_NO_PAD.encode(&digest[..16])
}
