//! Tokens for the harness's own users. **Invariant:** the signing key comes from a file and stays in memory.

use anyhow::{Context, Result, ensure};
use chappe_client::{TokenError, TokenReason};
use chappe_protocol::world::World;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// The harness's tokens are good for two to three times so many seconds; the SDK asks for new ones in longer runs. Within this time
/// a device gets the same one again: an app keeps its token, too.
const KEPT_SECONDS: u64 = 300;

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    device: &'a str,
    exp: u64,
}

/// Signs tokens.
#[derive(Clone)]
pub struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    world: Arc<dyn World>,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Issuer(…)")
    }
}

impl Issuer {
    /// Reads a key: a PEM file is an Ed25519 private key, anything else a secret for HS256.
    pub fn read(path: &Path, world: Arc<dyn World>) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| {
            format!("cannot read the token key {}; name the server's data directory with --data, or a key with --token-key", path.display())
        })?;
        let (key, algorithm) = if bytes.starts_with(b"-----BEGIN") {
            let key = EncodingKey::from_ed_pem(&bytes)
                .with_context(|| format!("{} holds no Ed25519 private key", path.display()))?;
            (key, Algorithm::EdDSA)
        } else {
            ensure!(bytes.len() >= 32, "{} holds fewer than 32 bytes", path.display());
            (EncodingKey::from_secret(&bytes), Algorithm::HS256)
        };
        Ok(Self { key, algorithm, world })
    }

    /// A token for a device.
    pub fn issue(&self, user: &str, device: &str) -> Result<String, TokenError> {
        let claims = Claims { sub: user, device, exp: end(user, self.world.wall().0 / 1000) };
        jsonwebtoken::encode(&Header::new(self.algorithm), &claims, &self.key)
            .map_err(|error| TokenError::Refused(error.to_string()))
    }

    /// A source for one device's client.
    pub fn source(&self, user: String, device: String) -> impl chappe_client::TokenSource {
        let issuer = self.clone();
        move |_: TokenReason| {
            let token = issuer.issue(&user, &device);
            std::future::ready(token)
        }
    }
}

/// When a token of this user ends that is asked for now. Each user's tokens change at times of their own, so that not all change at once.
fn end(user: &str, now: u64) -> u64 {
    let mixed = user.bytes().fold(0_u64, |mixed, byte| mixed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let phase = mixed % KEPT_SECONDS;
    ((now + phase) / KEPT_SECONDS + 3) * KEPT_SECONDS - phase
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_token_for_a_while_and_not_all_change_at_once() {
        let changes =
            |user: &str| (1_000_000..1_000_300).filter(|now| end(user, *now) != end(user, now - 1)).count();
        let mut at_once = std::collections::BTreeMap::<u64, usize>::new();
        for number in 0..3000 {
            let user = format!("user-{number}");
            assert_eq!(changes(&user), 1, "{user}");
            *at_once.entry(end(&user, 1_000_000)).or_default() += 1;
            assert!((600..=900).contains(&(end(&user, 1_000_000) - 1_000_000)), "{user}");
        }
        assert!(at_once.len() > 200, "{}", at_once.len());
    }
}
