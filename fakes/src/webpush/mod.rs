//! A push service of Web Push (RFC 8030), and the browser behind it. **Invariant:** a message passes only if the
//! browser could read it.

mod aes128gcm;
mod rules;
mod subscription;
mod vapid;

use crate::error::FakeError;
use crate::host::{Host, HostConfig, Versions};
use crate::tokens::{TokenState, Tokens};
use rules::WebPushRules;
use std::ops::Deref;
use std::sync::Arc;
use subscription::Subscriptions;

pub use subscription::Subscription;

/// What the fake of a push service is told.
#[derive(Debug, Clone)]
pub struct WebPushConfig {
    /// As of every fake.
    pub host: HostConfig,
    /// Whether a message without VAPID is refused. Real services differ: they demand it of subscriptions that were made
    /// for one key.
    pub vapid_demanded: bool,
}

impl Default for WebPushConfig {
    fn default() -> Self {
        Self { host: HostConfig::default(), vapid_demanded: true }
    }
}

/// A fake of a push service. Has everything that [`Host`] has.
#[derive(Debug)]
pub struct WebPush {
    host: Host,
    subscriptions: Arc<Subscriptions>,
    tokens: Arc<Tokens>,
}

impl WebPush {
    /// Listens, for HTTP/2 and HTTP/1.1.
    pub async fn start(config: WebPushConfig) -> Result<Self, FakeError> {
        let (subscriptions, tokens) = (Arc::new(Subscriptions::default()), Arc::new(Tokens::default()));
        let host = Host::start(config.host, Versions::Both, |address| {
            Ok(Arc::new(WebPushRules {
                origin: format!("https://{address}"),
                vapid_demanded: config.vapid_demanded,
                subscriptions: Arc::clone(&subscriptions),
                tokens: Arc::clone(&tokens),
            }))
        })
        .await?;
        Ok(Self { host, subscriptions, tokens })
    }

    /// A browser subscribes; any VAPID key may send.
    pub fn subscribe(&self) -> Result<Subscription, FakeError> {
        self.subscriptions.add(&self.host.url(), None)
    }

    /// A browser subscribes with an `applicationServerKey`: only this VAPID key may send (RFC 8292 §4). The key is the
    /// uncompressed point in base64url.
    pub fn subscribe_for(&self, vapid_public_key: &str) -> Result<Subscription, FakeError> {
        self.subscriptions.add(&self.host.url(), Some(vapid_public_key.to_owned()))
    }

    /// The browser's private key of a subscription: 32 bytes, base64url. For decrypting elsewhere.
    pub fn private_key(&self, endpoint: &str) -> Result<String, FakeError> {
        self.subscriptions.private_key(endpoint).ok_or(FakeError::NotMine)
    }

    /// Sets what became of a subscription, by its endpoint: dead is 410, never valid is 404.
    pub fn set_token(&self, endpoint: &str, state: TokenState) {
        self.tokens.set(endpoint, state);
    }
}

impl Deref for WebPush {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}
