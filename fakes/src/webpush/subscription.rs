//! Subscriptions as a browser makes them (W3C Push API, `PushSubscription`). **Invariant:** the private key stays with the
//! fake until it is asked for.

use crate::codec;
use crate::error::FakeError;
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::encoding::{AsBigEndian, EcPrivateKeyBin};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Subscriptions at once; further ones are refused.
const SUBSCRIPTIONS_MAX: usize = 1_000_000;

/// What an application server gets to know of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    /// Where messages go.
    pub endpoint: String,
    /// The browser's public key: an uncompressed point of P-256, base64url.
    pub p256dh: String,
    /// The shared secret: 16 bytes, base64url.
    pub auth: String,
}

impl Subscription {
    /// As `PushSubscription.toJSON()` gives it.
    pub fn json(&self) -> String {
        let keys = json!({ "p256dh": self.p256dh, "auth": self.auth });
        json!({ "endpoint": self.endpoint, "expirationTime": null, "keys": keys }).to_string()
    }
}

/// A subscription from the browser's side.
pub(super) struct Held {
    pub(super) private: PrivateKey,
    pub(super) public: Vec<u8>,
    pub(super) auth: [u8; 16],
    /// The one VAPID key that may send, as an uncompressed point in base64url.
    pub(super) only: Option<String>,
}

#[derive(Default)]
pub(super) struct Subscriptions(Mutex<BTreeMap<String, Arc<Held>>>);

impl std::fmt::Debug for Subscriptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriptions").finish_non_exhaustive()
    }
}

impl Subscriptions {
    pub(super) fn add(&self, origin: &str, only: Option<String>) -> Result<Subscription, FakeError> {
        let wrong = |_| FakeError::Keys("P-256".to_owned());
        let private = PrivateKey::generate(&ECDH_P256).map_err(wrong)?;
        let public = private.compute_public_key().map_err(wrong)?.as_ref().to_vec();
        let auth: [u8; 16] = codec::random();
        let endpoint = format!("{origin}/push/{}", codec::base64url(&codec::random::<24>()));
        let made = Subscription {
            endpoint: endpoint.clone(),
            p256dh: codec::base64url(&public),
            auth: codec::base64url(&auth),
        };
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.len() >= SUBSCRIPTIONS_MAX {
            return Err(FakeError::Keys(format!("{SUBSCRIPTIONS_MAX} subscriptions are enough")));
        }
        held.insert(endpoint, Arc::new(Held { private, public, auth, only }));
        Ok(made)
    }

    pub(super) fn get(&self, endpoint: &str) -> Option<Arc<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(endpoint).cloned()
    }

    pub(super) fn private_key(&self, endpoint: &str) -> Option<String> {
        let held = self.get(endpoint)?;
        let key: EcPrivateKeyBin<'_> = held.private.as_be_bytes().ok()?;
        Some(codec::base64url(key.as_ref()))
    }
}
