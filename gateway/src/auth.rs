//! Who is at the door: JSON Web Tokens (RFC 7519, checked as RFC 8725 asks), one algorithm, one key or the set of one issuer.
//! **Invariant:** the settings decide the algorithm, never the token; what is not proven is refused, and for good only if no other
//! key could prove it.

mod jwks;
mod keys;
mod proof;

use crate::metrics::GatewayMetrics;
use chappe_protocol::close::CloseCode;
use chappe_protocol::id::{DeviceId, UserId};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use keys::KeySet;
pub use keys::{KeySource, SetAlgorithm};
use proof::CheckingKey;
pub use proof::Proof;
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::watch;

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
    /// It names a key that is not known: another fetch of the keys may bring it.
    #[error("the token's key is not known yet")]
    UnknownKey,
}

impl TokenError {
    /// What the connection is closed with.
    pub const fn close_code(self) -> CloseCode {
        match self {
            Self::Invalid | Self::OtherDevice => CloseCode::TokenInvalid,
            Self::Expired => CloseCode::TokenExpired,
            Self::UnknownKey => CloseCode::KeysUnavailable,
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
    /// That this very token is good: who shows it again has its signature not checked again.
    pub proof: Proof,
}

/// Checks tokens.
pub struct TokenVerifier {
    trust: Trust,
    algorithm: Algorithm,
    validation: Validation,
    issuer: Option<String>,
    audience: Option<String>,
}

/// Whose signature counts.
enum Trust {
    /// That of this key.
    Key(Arc<CheckingKey>),
    /// That of the key which the token names, of a set.
    Set(KeySet),
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
    /// One string (RFC 7519, section 4.1.1): a list of issuers is no issuer.
    #[serde(default)]
    iss: Option<String>,
}

impl TokenVerifier {
    /// Takes the key; its kind fixes the algorithm.
    pub fn new(key: &TokenKey) -> Result<Self, TokenKeyError> {
        let (algorithm, decoding, material) = match key {
            TokenKey::EdDsa { public_pem } => {
                let key = DecodingKey::from_ed_pem(public_pem).map_err(|_| TokenKeyError::NotEd25519)?;
                (Algorithm::EdDSA, key, public_pem)
            }
            TokenKey::Hs256 { secret } if secret.len() < SECRET_BYTES_MIN => {
                return Err(TokenKeyError::SecretTooShort);
            }
            TokenKey::Hs256 { secret } => (Algorithm::HS256, DecodingKey::from_secret(secret), secret),
        };
        let key = CheckingKey::new(decoding, &[material]);
        Ok(Self::trusting(Trust::Key(Arc::new(key)), algorithm))
    }

    /// Takes the set of an issuer, whose tokens alone are good. There is no key before [`TokenVerifier::run`] has fetched it.
    pub fn with_set(source: KeySource) -> Self {
        let algorithm = match source.algorithm {
            SetAlgorithm::EdDsa => Algorithm::EdDSA,
            SetAlgorithm::Es256 => Algorithm::ES256,
            SetAlgorithm::Rs256 => Algorithm::RS256,
        };
        let issuer = source.issuer.clone();
        Self::trusting(Trust::Set(KeySet::new(source)), algorithm).issued_by(&issuer)
    }

    fn trusting(trust: Trust, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        // The times are checked here, with the clock that was handed in.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.required_spec_claims.clear();
        Self { trust, algorithm, validation, issuer: None, audience: None }
    }

    /// Only tokens of this issuer (claim `iss`).
    #[must_use]
    pub fn issued_by(mut self, issuer: &str) -> Self {
        self.issuer = Some(issuer.to_owned());
        self
    }

    /// Only tokens for this audience (claim `aud`). Without it a token that names an audience is refused (RFC 7519, 4.1.3).
    #[must_use]
    pub fn for_audience(mut self, audience: &str) -> Self {
        self.validation.set_audience(&[audience]);
        self.validation.required_spec_claims.insert("aud".to_owned());
        self.audience = Some(audience.to_owned());
        self
    }

    /// Keeps the keys fresh until dropped; without a set it has nothing to do.
    pub async fn run(&self, world: &dyn World, metrics: &GatewayMetrics) {
        match &self.trust {
            Trust::Key(_) => std::future::pending().await,
            Trust::Set(set) => set.run(world, metrics).await,
        }
    }

    /// Waits until there is a key: before that nobody gets in.
    pub async fn has_keys(&self) {
        match &self.trust {
            Trust::Key(_) => {}
            Trust::Set(set) => set.known().await,
        }
    }

    /// Fetches the keys anew whenever `reloads` changes (SIGHUP), within the same bounds; until it is closed.
    pub async fn renew_on(&self, mut reloads: watch::Receiver<u64>) {
        while reloads.changed().await.is_ok() {
            match &self.trust {
                Trust::Key(_) => {}
                Trust::Set(set) => set.ask(),
            }
        }
    }

    /// Checks a token that came from `device`; fetches the keys anew, within bounds, if it names one that is not known. `proven` is
    /// what a gateway found good before: where it fits token and key, the signature is not checked again, and all else is.
    pub async fn check(
        &self,
        token: &str,
        device: &DeviceId,
        proven: Option<Proof>,
        world: &dyn World,
    ) -> Result<Identity, TokenError> {
        let seen = match &self.trust {
            Trust::Key(_) => None,
            Trust::Set(set) => Some((set, set.seen())),
        };
        let first = self.verify(token, device, proven, world.wall());
        let (Err(TokenError::UnknownKey), Some((set, seen))) = (&first, seen) else { return first };
        if !set.renewed(seen).await {
            return first;
        }
        match self.judge(token, device, proven, world.wall()) {
            // The set that was fetched for it has no such key.
            Err(TokenError::UnknownKey) if !set.is_empty() => Err(TokenError::Invalid),
            other => other,
        }
    }

    /// Checks a token that came from `device`, at wall time `now`, against the keys that are known. Where another fetch could
    /// make a difference it is asked for, and not awaited. `proven` as in [`check`](Self::check).
    pub fn verify(
        &self,
        token: &str,
        device: &DeviceId,
        proven: Option<Proof>,
        now: UnixMillis,
    ) -> Result<Identity, TokenError> {
        let judged = self.judge(token, device, proven, now);
        if let (Err(TokenError::UnknownKey), Trust::Set(set)) = (&judged, &self.trust) {
            set.ask();
        }
        judged
    }

    fn judge(
        &self,
        token: &str,
        device: &DeviceId,
        proven: Option<Proof>,
        now: UnixMillis,
    ) -> Result<Identity, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| TokenError::Invalid)?;
        self.check_header(&header)?;
        let key = self.key(&header)?;
        let proof = Proof::new(&key, self.audience.as_deref(), token);
        let claims = if proven == Some(proof) {
            jsonwebtoken::dangerous::insecure_decode_claims(token)
        } else {
            let decoded = jsonwebtoken::decode::<Claims>(token, &key.decoding, &self.validation);
            decoded.map(|decoded| decoded.claims)
        };
        self.identify(&claims.map_err(|_| TokenError::Invalid)?, device, proof, now)
    }

    /// Keys come from our settings only, we understand no critical extension (RFC 7515, 4.1.11), and no token lies in another
    /// (RFC 7519, 5.2).
    fn check_header(&self, header: &Header) -> Result<(), TokenError> {
        let brings_a_key =
            header.jku.is_some() || header.jwk.is_some() || header.x5u.is_some() || header.x5c.is_some();
        let good = header.alg == self.algorithm
            && !brings_a_key
            && header.crit.is_none()
            && header.cty.is_none()
            && header.enc.is_none();
        if good { Ok(()) } else { Err(TokenError::Invalid) }
    }

    fn key(&self, header: &Header) -> Result<Arc<CheckingKey>, TokenError> {
        let set = match &self.trust {
            Trust::Key(key) => return Ok(Arc::clone(key)),
            Trust::Set(set) => set,
        };
        let id = header.kid.as_deref();
        if id.is_some_and(|id| !jwks::is_key_id(id)) {
            return Err(TokenError::Invalid);
        }
        match set.get(id) {
            Some(key) => Ok(key),
            None if id.is_none() && !set.is_empty() => Err(TokenError::Invalid),
            None => Err(TokenError::UnknownKey),
        }
    }

    fn identify(
        &self,
        claims: &Claims,
        device: &DeviceId,
        proof: Proof,
        now: UnixMillis,
    ) -> Result<Identity, TokenError> {
        if self.issuer.is_some() && claims.iss != self.issuer {
            return Err(TokenError::Invalid);
        }
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
            Ok(Identity { user, device: claimed, valid_until, proof })
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
