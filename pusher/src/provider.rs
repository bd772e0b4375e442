//! What every push provider offers to the pusher. **Invariant:** an answer says what to do next, whatever the provider
//! called it.

use async_trait::async_trait;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{AppName, PushAddress, PushTarget};
use chappe_protocol::time::{Millis, UnixMillis};

/// "Sync", and how soon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wake {
    /// How soon it matters.
    pub urgency: Urgency,
    /// A later wake with the same takes the place of an earlier one that the provider still holds. Random to the
    /// provider; at most 32 of `A-Z a-z 0-9 - _` (RFC 8030 §5.4 is the narrowest).
    pub collapse: String,
    /// The provider gives it up then.
    pub expires_at: UnixMillis,
}

impl Wake {
    /// Whether every provider takes its collapse key.
    pub fn is_sound(&self) -> bool {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        (1..=32).contains(&self.collapse.len()) && self.collapse.bytes().all(good)
    }
}

/// What became of a wake, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What to do.
    pub verdict: Verdict,
    /// The provider's word for it, or ours, from the fixed lists of [`crate::answers`]; by the status where its word is not
    /// on them. A metric label.
    pub reason: &'static str,
}

/// What to do after an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The provider has it.
    Done,
    /// Try again, not before this has passed; `None`: by the backoff. Whether this holds for the device alone or for all
    /// of the app says `scope`.
    Retry {
        /// What the provider asked for, bounded.
        after: Option<Millis>,
        /// For whom.
        scope: Scope,
    },
    /// The token is dead, since then if the provider said so: to be removed if it was not registered anew later.
    Drop {
        /// Of the provider's clock.
        since: Option<UnixMillis>,
    },
    /// Nothing of this app will pass until a person mends its configuration. In Web Push that is the word of one push
    /// service, which a device chose: not to be believed for the others.
    FixConfiguration,
    /// This wake will never pass; kept where it is seen.
    Park,
    /// Nothing was sent: the provider failed just now, and others find out whether it works again. Ask again then.
    Held {
        /// So long.
        span: Millis,
        /// For whom.
        scope: Scope,
    },
}

/// How far an answer reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One device.
    Device,
    /// All devices of the app: its quota.
    App,
    /// All apps of the provider: it says that it is down.
    Provider,
}

/// Who takes wakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProviderKind {
    /// Apple Push Notification service.
    Apns,
    /// Firebase Cloud Messaging.
    Fcm,
    /// Any push service of RFC 8030.
    WebPush,
    /// The log, and nobody else.
    Log,
}

impl ProviderKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Apns, Self::Fcm, Self::WebPush, Self::Log];

    /// Whom an address belongs to.
    pub fn of(address: &PushAddress) -> Self {
        match address {
            PushAddress::Apns { .. } => Self::Apns,
            PushAddress::Fcm { .. } => Self::Fcm,
            PushAddress::WebPush { .. } => Self::WebPush,
        }
    }

    /// A metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::Fcm => "fcm",
            Self::WebPush => "webpush",
            Self::Log => "log",
        }
    }
}

/// What wakes queue for: one tenant's trouble with it is no other's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppKey {
    /// At whom.
    pub provider: ProviderKind,
    /// Which app, as configured.
    pub app: AppName,
}

/// All apps at all providers, as the pusher's core sees them.
#[async_trait]
pub trait Waking: Send + Sync + 'static {
    /// The app that the target belongs to; `None`: none such is configured. As many as there are in the configuration.
    fn app_of(&self, target: &PushTarget) -> Option<AppKey>;

    /// Hands one wake over. Ends within 20 s. Never fails: what goes wrong is an [`Answer`].
    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer;
}

/// One app at one provider.
#[async_trait]
pub trait Provider: Send + Sync {
    /// Hands one wake over. Ends within 20 s. Never fails: what goes wrong is an [`Answer`].
    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer;
}
