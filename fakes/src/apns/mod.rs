//! Apple Push Notification service, as its documents describe it. **Invariant:** the stream limit is one until a request
//! was taken, and again after a provider token was refused.

mod payload;
mod provider_token;
mod rules;

use crate::codec;
use crate::error::FakeError;
use crate::host::{Host, HostConfig, Versions};
use crate::tokens::{TokenState, Tokens};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rules::ApnsRules;
use std::ops::Deref;
use std::sync::Arc;

/// What the fake of APNs is told.
#[derive(Debug, Clone)]
pub struct ApnsConfig {
    /// As of every fake.
    pub host: HostConfig,
    /// Ten letters and digits, `iss` of provider tokens.
    pub team_id: String,
    /// Bundle ids of the apps; topics derive from them (`.voip` and so on).
    pub topics: Vec<String>,
}

impl Default for ApnsConfig {
    fn default() -> Self {
        Self {
            host: HostConfig::default(),
            team_id: "CHAPPETEAM".to_owned(),
            topics: vec!["org.example.chappe".to_owned()],
        }
    }
}

/// What a developer gets from Apple to sign provider tokens with.
#[derive(Clone)]
pub struct ApnsKey {
    /// `kid` of provider tokens.
    pub key_id: String,
    /// `iss` of provider tokens.
    pub team_id: String,
    /// The file `AuthKey_….p8`: PKCS #8 in PEM. Secret, in tests as elsewhere.
    pub private_key_pem: String,
}

impl std::fmt::Debug for ApnsKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApnsKey")
            .field("key_id", &self.key_id)
            .field("team_id", &self.team_id)
            .finish_non_exhaustive()
    }
}

/// A fake of APNs. Has everything that [`Host`] has.
#[derive(Debug)]
pub struct Apns {
    host: Host,
    key: ApnsKey,
    topics: Vec<String>,
    tokens: Arc<Tokens>,
}

impl Apns {
    /// Makes keys and listens.
    pub async fn start(config: ApnsConfig) -> Result<Self, FakeError> {
        let made = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        let pair = made.map_err(|_| FakeError::Keys("P-256".to_owned()))?;
        let der = pair.to_pkcs8v1().map_err(|_| FakeError::Keys("PKCS #8".to_owned()))?;
        let key = ApnsKey {
            key_id: codec::hex(&codec::random::<5>()).to_ascii_uppercase(),
            team_id: config.team_id.clone(),
            private_key_pem: codec::pem("PRIVATE KEY", der.as_ref()),
        };
        let tokens = Arc::new(Tokens::default());
        let rules = ApnsRules {
            key_id: key.key_id.clone(),
            team_id: config.team_id,
            public_key: pair.public_key().as_ref().to_vec(),
            topics: config.topics.clone(),
            tokens: Arc::clone(&tokens),
        };
        let host = Host::start(config.host, Versions::Http2, |_| Ok(Arc::new(rules))).await?;
        Ok(Self { host, key, topics: config.topics, tokens })
    }

    /// What to sign provider tokens with.
    pub fn key(&self) -> &ApnsKey {
        &self.key
    }

    /// The bundle ids it knows.
    pub fn topics(&self) -> &[String] {
        &self.topics
    }

    /// A device token that was not handed out before.
    pub fn new_token(&self) -> String {
        codec::hex(&codec::random::<32>())
    }

    /// Sets what became of a device token. Every well-formed token is alive until then.
    pub fn set_token(&self, token: &str, state: TokenState) {
        self.tokens.set(token, state);
    }
}

impl Deref for Apns {
    type Target = Host;
    fn deref(&self) -> &Host {
        &self.host
    }
}
