//! Tokens for the harness's own users. **Invariant:** the signing key comes from a file and stays in memory.

use anyhow::{Context, Result, ensure};
use chappe_client::{TokenError, TokenReason};
use chappe_protocol::world::World;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// How long the harness's tokens are good, seconds; the SDK asks for new ones in longer runs.
const TTL_SECONDS: u64 = 600;

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
        let exp = self.world.wall().0 / 1000 + TTL_SECONDS;
        let claims = Claims { sub: user, device, exp };
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
