//! All three fakes under one authority, and the files that a client of theirs needs. **Invariant:** keys lie in files that
//! their owner alone may read.

use crate::apns::{Apns, ApnsConfig};
use crate::authority::Authority;
use crate::error::FakeError;
use crate::fcm::{Fcm, FcmConfig};
use crate::tokens::TokenState;
use crate::webpush::{Subscription, WebPush, WebPushConfig};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens and subscriptions made beforehand, of each provider.
const LIVE: usize = 3;

/// What the fakes are told. Their `host.authority` is set by the kit.
#[derive(Debug, Clone, Default)]
pub struct KitConfig {
    /// APNs.
    pub apns: ApnsConfig,
    /// FCM.
    pub fcm: FcmConfig,
    /// Web Push.
    pub webpush: WebPushConfig,
}

/// The three fakes.
#[derive(Debug)]
pub struct Kit {
    /// APNs.
    pub apns: Apns,
    /// FCM.
    pub fcm: Fcm,
    /// Web Push.
    pub webpush: WebPush,
}

impl Kit {
    /// Starts all three.
    pub async fn start(mut config: KitConfig) -> Result<Self, FakeError> {
        let authority = Arc::new(Authority::new()?);
        for host in [&mut config.apns.host, &mut config.fcm.host, &mut config.webpush.host] {
            host.authority = Some(Arc::clone(&authority));
        }
        Ok(Self {
            apns: Apns::start(config.apns).await?,
            fcm: Fcm::start(config.fcm).await?,
            webpush: WebPush::start(config.webpush).await?,
        })
    }

    /// Writes certificate and keys into a folder, and `fakes.json`, which names them, the addresses, and tokens to try:
    /// living ones, and of each provider one that is dead. Gives what `fakes.json` holds. Blocks on the disk.
    pub fn write(&self, folder: &Path) -> Result<Value, FakeError> {
        std::fs::create_dir_all(folder)?;
        let folder = folder.canonicalize()?;
        let file = |name: &str, text: &str| write(&folder, name, text);
        let key = self.apns.key();
        let dead_since_ms = self.apns.clock().now_ms();
        let (apns_dead, fcm_dead) = (self.apns.new_token(), self.fcm.new_token());
        self.apns.set_token(&apns_dead, TokenState::DeadSince(dead_since_ms));
        self.fcm.set_token(&fcm_dead, TokenState::DeadSince(dead_since_ms));
        let gone = self.webpush.subscribe()?;
        self.webpush.set_token(&gone.endpoint, TokenState::DeadSince(dead_since_ms));
        let mut subscriptions = Vec::with_capacity(LIVE);
        for _ in 0..LIVE {
            subscriptions.push(self.browser(&self.webpush.subscribe()?)?);
        }
        let subscriptions = json!({ "live": subscriptions, "dead": self.browser(&gone)? });
        let live = |new: &dyn Fn() -> String| (0..LIVE).map(|_| new()).collect::<Vec<String>>();
        let all = json!({
            "certificate": file("certificate.pem", self.apns.certificate_pem())?,
            "apns": {
                "url": self.apns.url(),
                "key": file(&format!("AuthKey_{}.p8", key.key_id), &key.private_key_pem)?,
                "key_id": key.key_id,
                "team_id": key.team_id,
                "topics": self.apns.topics(),
                "tokens": live(&|| self.apns.new_token()),
                "dead_token": apns_dead,
                "dead_since_ms": dead_since_ms,
            },
            "fcm": {
                "url": self.fcm.url(),
                "project": self.fcm.project(),
                "service_account": file("service-account.json", self.fcm.service_account_json())?,
                "tokens": live(&|| self.fcm.new_token()),
                "dead_token": fcm_dead,
            },
            "webpush": {
                "url": self.webpush.url(),
                "subscriptions": file("subscriptions.json", &pretty(&subscriptions))?,
            },
        });
        file("fakes.json", &pretty(&all))?;
        Ok(all)
    }

    /// A subscription with the key that only its browser has.
    fn browser(&self, subscription: &Subscription) -> Result<Value, FakeError> {
        Ok(json!({
            "endpoint": subscription.endpoint,
            "keys": { "p256dh": subscription.p256dh, "auth": subscription.auth },
            "private_key": self.webpush.private_key(&subscription.endpoint)?,
        }))
    }

    /// Ends all three.
    pub async fn close(&self) {
        self.apns.close().await;
        self.fcm.close().await;
        self.webpush.close().await;
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn write(folder: &Path, name: &str, text: &str) -> Result<PathBuf, FakeError> {
    let path = folder.join(name);
    // A file that is there may be readable to others.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => (),
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(&path)?.write_all(text.as_bytes())?;
    Ok(path)
}
