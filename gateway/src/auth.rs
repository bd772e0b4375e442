//! Who is at the door: JSON Web Tokens (RFC 7519), one algorithm, one key.
//! **Invariant:** the key decides the algorithm, never the token; what is not proven is refused.

use chappe_protocol::close::CloseCode;
use chappe_protocol::id::{DeviceId, UserId};
use chappe_protocol::time::{Millis, UnixMillis};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// The shortest HMAC secret, in bytes (RFC 7518, section 3.2: at least the size of the hash).
pub const SECRET_BYTES_MIN: usize = 32;
/// Clocks of issuers may differ so much from ours.
const SKEW: Millis = Millis::from_secs(60);
/// The end of the year 9999: a later `exp` is a mistake of its issuer.
const NUMERIC_DATE_MAX: f64 = 253_402_300_799.0;

/// What tokens are checked against.
#[derive(Clone)]
pub enum TokenKey {
    /// Ed25519; the issuer keeps the private half.
    EdDsa {
        /// The public key, PEM (`-----BEGIN PUBLIC KEY-----`).
        public_pem: Vec<u8>,
    },
    /// HMAC with SHA-256; whoever can check can also issue.
    Hs256 {
        /// At least [`SECRET_BYTES_MIN`] bytes.
        secret: Vec<u8>,
    },
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EdDsa { .. } => "EdDsa(…)",
            Self::Hs256 { .. } => "Hs256(…)",
        })
    }
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenKeyError {
    /// Not a PEM file with an Ed25519 public key.
    #[error("the token key is not an Ed25519 public key in PEM")]
    NotEd25519,
    /// Fewer than [`SECRET_BYTES_MIN`] bytes.
    #[error("the token secret has fewer than 32 bytes")]
    SecretTooShort,
}

/// Why a token is refused. Says nothing about what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Signature, form, claims or device are wrong: another token is needed.
    #[error("the token is not valid")]
    Invalid,
    /// It is good, for another device.
    #[error("the token is for another device")]
    OtherDevice,
    /// It was good once: a fresh one will do.
    #[error("the token has expired")]
    Expired,
}

impl TokenError {
    /// What the connection is closed with.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Invalid | Self::OtherDevice => CloseCode::TokenInvalid,
            Self::Expired => CloseCode::TokenExpired,
        }
    }
}

/// What a good token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Claim `sub`.
    pub user: UserId,
    /// Claim `device`.
    pub device: DeviceId,
    /// Claim `exp` plus the allowed skew: the connection ends then unless refreshed.
    pub valid_until: UnixMillis,
}

/// Checks tokens against one key.
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenVerifier(…)")
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    device: String,
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
}

impl TokenVerifier {
    /// Takes the key; its kind fixes the algorithm.
    pub fn new(key: &TokenKey) -> Result<Self, TokenKeyError> {
        let (algorithm, key) = match key {
            TokenKey::EdDsa { public_pem } => {
                let key = DecodingKey::from_ed_pem(public_pem).map_err(|_| TokenKeyError::NotEd25519)?;
                (Algorithm::EdDSA, key)
            }
            TokenKey::Hs256 { secret } if secret.len() < SECRET_BYTES_MIN => {
                return Err(TokenKeyError::SecretTooShort);
            }
            TokenKey::Hs256 { secret } => (Algorithm::HS256, DecodingKey::from_secret(secret)),
        };
        let mut validation = Validation::new(algorithm);
        // The times are checked here, with the clock that was handed in.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.required_spec_claims.clear();
        Ok(Self { key, validation })
    }

    /// Only tokens of this issuer (claim `iss`).
    #[must_use]
    pub fn issued_by(mut self, issuer: &str) -> Self {
        self.validation.set_issuer(&[issuer]);
        self.validation.required_spec_claims.insert("iss".to_owned());
        self
    }

    /// Only tokens for this audience (claim `aud`). Without it a token that names an audience is refused (RFC 7519, 4.1.3).
    #[must_use]
    pub fn for_audience(mut self, audience: &str) -> Self {
        self.validation.set_audience(&[audience]);
        self.validation.required_spec_claims.insert("aud".to_owned());
        self
    }

    /// Checks a token that came from `device`, at wall time `now`.
    pub fn verify(&self, token: &str, device: &DeviceId, now: UnixMillis) -> Result<Identity, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let data = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|_| TokenError::Invalid)?;
        let header = data.header;
        // Keys come from our configuration only, and we understand no critical extension (RFC 7515, 4.1.11).
        let brings_a_key =
            header.jku.is_some() || header.jwk.is_some() || header.x5u.is_some() || header.x5c.is_some();
        if brings_a_key || header.crit.is_some() {
            return Err(TokenError::Invalid);
        }
        let claims = data.claims;
        let valid_until = numeric_date(claims.exp)? + SKEW;
        if let Some(nbf) = claims.nbf
            && numeric_date(nbf)? > now + SKEW
        {
            return Err(TokenError::Invalid);
        }
        let user = UserId::new(&claims.sub).map_err(|_| TokenError::Invalid)?;
        let claimed = DeviceId::new(&claims.device).map_err(|_| TokenError::Invalid)?;
        if claimed != *device {
            return Err(TokenError::OtherDevice);
        }
        // Last: only who holds an otherwise good token learns that it has expired.
        if now >= valid_until {
            Err(TokenError::Expired)
        } else {
            Ok(Identity { user, device: claimed, valid_until })
        }
    }
}

/// Seconds since 1970, perhaps with a fraction (RFC 7519, section 2).
fn numeric_date(seconds: f64) -> Result<UnixMillis, TokenError> {
    if !(0.0..=NUMERIC_DATE_MAX).contains(&seconds) {
        return Err(TokenError::Invalid);
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked against both bounds above
    Ok(UnixMillis((seconds * 1000.0) as u64))
}

#[cfg(test)]
mod tests;
