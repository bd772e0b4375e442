//! Which apps a pusher wakes, and with what. **Invariant:** secrets come from files, and no error tells their content.

mod open;
mod watch;

pub use open::{Parts, Providers, Reloaded};

use crate::apns::MessageWake;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// All providers, by app name (the `app` of a push target); one app may be at several providers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvidersConfig {
    /// At Apple.
    pub apns: BTreeMap<String, ApnsConfig>,
    /// At Google.
    pub fcm: BTreeMap<String, FcmConfig>,
    /// At any push service.
    pub webpush: BTreeMap<String, WebPushConfig>,
    /// Apps whose wakes are told to the log and to nobody else; `*`: every app that is not configured otherwise.
    pub log: Vec<String>,
}

/// Which of Apple's two worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ApnsEnvironment {
    /// Apps from the store and `TestFlight`.
    #[default]
    Production,
    /// Builds from Xcode.
    Sandbox,
}

/// One app at Apple.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApnsConfig {
    /// The `.p8` file.
    pub key_file: PathBuf,
    /// The key's id, 10 letters and digits.
    pub key_id: String,
    /// The team's id, 10 letters and digits.
    pub team_id: String,
    /// The bundle id.
    pub topic: String,
    /// Which of Apple's two worlds.
    #[serde(default)]
    pub environment: ApnsEnvironment,
    /// How a message wakes the app.
    #[serde(default)]
    pub message: MessageWake,
    /// The `loc-key` of an alert.
    #[serde(default = "sync")]
    pub alert_key: String,
    /// Instead of Apple's own address.
    pub base_url: Option<String>,
    /// Certificates in PEM that are trusted instead of the public ones.
    pub roots_file: Option<PathBuf>,
}

fn sync() -> String {
    "sync".into()
}

/// One project at Google.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FcmConfig {
    /// The key file of a service account that may send.
    pub service_account_file: PathBuf,
    /// If not that of the service account.
    pub project: Option<String>,
    /// Instead of Google's own address.
    pub base_url: Option<String>,
    /// Instead of the key file's `token_uri`.
    pub token_url: Option<String>,
    /// Certificates in PEM that are trusted instead of the public ones.
    pub roots_file: Option<PathBuf>,
}

/// One app at push services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebPushConfig {
    /// The VAPID key: PKCS #8 in PEM, or 32 bytes in base64url.
    pub vapid_key_file: PathBuf,
    /// Whom a push service may write to: `mailto:` or `https:`.
    pub subject: String,
    /// Hosts, domains with a leading dot, or `*`.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
    /// Hosts that may have an address that is not public.
    #[serde(default)]
    pub private_hosts: Vec<String>,
    /// Push services that are held at once.
    #[serde(default = "services_max")]
    pub services_max: usize,
    /// Certificates in PEM that are trusted instead of the public ones.
    pub roots_file: Option<PathBuf>,
}

fn services_max() -> usize {
    64
}

/// What is wrong, where, and what to do about it. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: push.{place}: {hint}")]
pub struct ConfigError {
    /// For machines: `push_` and one of `app_name`, `file_unreadable`, `key_invalid`, `service_account_invalid`,
    /// `roots_invalid`, `url_invalid`, `id_invalid`, `subject_invalid`, `hosts_invalid`.
    pub code: &'static str,
    /// The setting, as `apns."app".key_file`.
    pub place: String,
    /// For people; holds no part of any file.
    pub hint: String,
}
