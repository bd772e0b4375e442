//! Apple's provider token (RFC 7519, ES256). **Invariant:** no token is older than 40 minutes, and, but for one that Apple
//! calls expired, none is made within 20 minutes of the one before (Apple's bounds are 60 and 20).

use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

const AGE_MAX: Millis = Millis::from_secs(40 * 60);
const AGE_MIN: Millis = Millis::from_secs(20 * 60);

/// The key file is no private key on P-256 in PEM (PKCS #8), as Apple hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no private key on P-256 in PEM (PKCS #8)")]
pub struct BadKey;

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    iat: u64,
}

struct Signed {
    value: HeaderValue,
    /// Names this token among those of this signer.
    number: u64,
    at: Time,
    iat: UnixMillis,
}

struct State {
    signed: Option<Signed>,
    forced_at: Option<Time>,
}

/// Signs for one key of one team; the apps of one team share it. Does not print itself.
pub struct ApnsSigner {
    key: EncodingKey,
    key_id: String,
    team_id: String,
    world: Arc<dyn World>,
    state: Mutex<State>,
}

impl fmt::Debug for ApnsSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApnsSigner(…)")
    }
}

impl ApnsSigner {
    /// `p8` is the content of the key file; the ids are those of the developer account.
    pub fn new(p8: &[u8], key_id: &str, team_id: &str, world: Arc<dyn World>) -> Result<Self, BadKey> {
        let key = EncodingKey::from_ec_pem(p8).map_err(|_| BadKey)?;
        let state = Mutex::new(State { signed: None, forced_at: None });
        let signer = Self { key, key_id: key_id.into(), team_id: team_id.into(), world, state };
        // A key of another curve is found out here, not at the first wake.
        signer.sign(signer.world.wall()).ok_or(BadKey)?;
        Ok(signer)
    }

    /// `bearer …` and the token's number.
    pub(crate) fn current(&self) -> Option<(HeaderValue, u64)> {
        let (now, wall) = (self.world.now(), self.world.wall());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match &state.signed {
            Some(signed) => {
                let age = now - signed.at;
                // The wall clock counts as well: it goes on while a machine sleeps.
                let by_wall = wall.0.saturating_sub(signed.iat.0);
                if age < AGE_MIN || (age < AGE_MAX && by_wall < AGE_MAX.0) {
                    return Some((signed.value.clone(), signed.number));
                }
                signed.number + 1
            }
            None => 0,
        };
        let value = self.sign(wall)?;
        state.signed = Some(Signed { value: value.clone(), number, at: now, iat: wall });
        Some((value, number))
    }

    /// Apple calls that token expired: the next is made at once, if none was for that reason within 20 minutes. Says
    /// whether there is another one now.
    pub(crate) fn expired(&self, number: u64) -> bool {
        let now = self.world.now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.signed.as_ref().is_none_or(|signed| signed.number != number) {
            return true; // another request was first
        }
        if state.forced_at.is_some_and(|at| now - at < AGE_MIN) {
            return false;
        }
        let wall = self.world.wall();
        let Some(value) = self.sign(wall) else { return false };
        state.signed = Some(Signed { value, number: number + 1, at: now, iat: wall });
        state.forced_at = Some(now);
        true
    }

    fn sign(&self, wall: UnixMillis) -> Option<HeaderValue> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None; // Apple's documents name `alg` and `kid` alone
        header.kid = Some(self.key_id.clone());
        let claims = Claims { iss: &self.team_id, iat: wall.0 / 1000 };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).ok()?;
        HeaderValue::try_from(format!("bearer {token}")).ok()
    }
}
