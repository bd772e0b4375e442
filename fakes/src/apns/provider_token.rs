//! Provider tokens (Apple, "Establishing a token-based connection to APNs"). **Invariant:** a token is taken if it is this
//! team's, at most an hour old, and not renewed within twenty minutes on one connection.

use super::rules::{ApnsRules, Complaint};
use crate::jws::{self, Algorithm, Jws};
use crate::rules::{Incoming, Memory};

/// A token is refused after this, in seconds.
const AGE_SECONDS_MAX: u64 = 60 * 60;
/// A token may be renewed after this, in seconds.
const RENEWAL_SECONDS_MIN: u64 = 20 * 60;
/// Keys remembered per connection.
const KEYS_MAX: usize = 16;

impl ApnsRules {
    /// Checks the header `authorization`.
    pub(super) fn authorize(&self, request: &Incoming, memory: &mut Memory) -> Result<(), Complaint> {
        let invalid = |why: String| Complaint::new(403, "InvalidProviderToken", why);
        let header = request.header("authorization").map_err(invalid)?;
        let Some(header) = header else {
            return Err(Complaint::new(403, "MissingProviderToken", "there is no authorization".to_owned()));
        };
        let token = match header.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token,
            Some(_) | None => return Err(invalid("authorization must be: bearer <token>".to_owned())),
        };
        // What held once on this connection holds until it is too old; a load test would otherwise measure our ECDSA.
        let known = memory.tokens.values().find(|(held, _)| held == token).map(|(_, issued)| *issued);
        let issued = match known {
            Some(issued) => issued,
            None => self.verified(token).map_err(invalid)?,
        };
        let now = request.now_ms / 1000;
        if issued > now {
            return Err(invalid(format!("iat is {} s in the future", issued - now)));
        }
        if now - issued > AGE_SECONDS_MAX {
            let why = format!("iat is {} s ago, an hour is allowed", now - issued);
            return Err(Complaint::new(403, "ExpiredProviderToken", why));
        }
        self.renewed(token, issued, memory)
    }

    /// When a token was issued, if this team's key signed it.
    fn verified(&self, token: &str) -> Result<u64, String> {
        let read = Jws::read(token, Algorithm::Es256)?;
        if read.key_id() != Some(&self.key_id) {
            return Err("kid names no key of this team".to_owned());
        }
        let claims = read.verify(&self.public_key)?;
        if jws::text(&claims, "iss")? != self.team_id {
            return Err("iss is another team".to_owned());
        }
        jws::seconds(&claims, "iat")
    }

    fn renewed(&self, token: &str, issued: u64, memory: &mut Memory) -> Result<(), Complaint> {
        if let Some((held, held_issued)) = memory.tokens.get(&self.key_id) {
            if held == token {
                return Ok(());
            }
            let apart = issued.abs_diff(*held_issued);
            if apart < RENEWAL_SECONDS_MIN {
                let why = format!("another token {apart} s after the last, twenty minutes are demanded");
                return Err(Complaint::new(429, "TooManyProviderTokenUpdates", why));
            }
        }
        if memory.tokens.len() >= KEYS_MAX {
            memory.tokens.pop_first();
        }
        memory.tokens.insert(self.key_id.clone(), (token.to_owned(), issued));
        Ok(())
    }
}
