//! Development tokens: what an app's own sign-in service would issue. **Invariant:** the private key never leaves its file.

use crate::development::DataDir;
use anyhow::{Context, Result};
use chappe_protocol::time::UnixMillis;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    device: &'a str,
    iat: u64,
    exp: u64,
}

/// Signs a token for a device with the data directory's development key, good for `ttl_seconds`.
pub fn issue(data: &DataDir, user: &str, device: &str, ttl_seconds: u64, now: UnixMillis) -> Result<String> {
    let path = data.token_private();
    let pem = std::fs::read(&path).with_context(|| {
        format!(
            "cannot read {}; start `chappe serve` once, or name its data directory with --data",
            path.display()
        )
    })?;
    let key =
        EncodingKey::from_ed_pem(&pem).with_context(|| format!("{} holds no Ed25519 key", path.display()))?;
    let seconds = now.0 / 1000;
    let claims = Claims { sub: user, device, iat: seconds, exp: seconds + ttl_seconds };
    jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key).context("cannot sign the token")
}
