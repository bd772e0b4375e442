//! The token endpoint (RFC 7523, as "Using OAuth 2.0 for Server to Server Applications" of Google narrows it).
//! **Invariant:** an access token is given for an assertion that this account signed for this endpoint, within the hour.

use crate::answer::Reply;
use crate::codec;
use crate::jws::{self, Algorithm, Jws};
use crate::rules::{Incoming, Judgement};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// RFC 7523 §2.1.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Either of these may send messages.
const SCOPES: [&str; 2] =
    ["https://www.googleapis.com/auth/firebase.messaging", "https://www.googleapis.com/auth/cloud-platform"];
/// "When making an access token request this value is always …": Google's own client signs this, whatever `token_uri` is.
const GOOGLE: &str = "https://oauth2.googleapis.com/token";
/// An assertion holds at most this long, in seconds.
const ASSERTION_SECONDS_MAX: u64 = 3600;
/// Access tokens remembered; the one that expires first goes first.
const ACCESS_TOKENS_MAX: usize = 10_000;

/// The account, and the access tokens it got.
pub(super) struct Logins {
    email: String,
    key_id: String,
    public_key: Vec<u8>,
    audience: String,
    lifetime: Duration,
    /// Until when each holds, in milliseconds since 1970.
    given: Mutex<BTreeMap<String, u64>>,
}

impl std::fmt::Debug for Logins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logins").finish_non_exhaustive()
    }
}

struct Complaint(&'static str, String);

impl Logins {
    pub(super) fn new(
        email: String,
        key_id: String,
        public_key: Vec<u8>,
        audience: String,
        lifetime: Duration,
    ) -> Self {
        Self { email, key_id, public_key, audience, lifetime, given: Mutex::default() }
    }

    pub(super) fn audience(&self) -> &str {
        &self.audience
    }

    pub(super) fn revoke(&self) {
        self.given.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether this access token holds now.
    pub(super) fn holds(&self, token: &str, now_ms: u64) -> Result<(), &'static str> {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        match given.get(token) {
            None => Err("this access token was not given out here, or was revoked"),
            Some(&until_ms) if until_ms <= now_ms => Err("this access token has expired"),
            Some(_) => Ok(()),
        }
    }

    /// Answers a request of the token endpoint (RFC 6749 §5).
    pub(super) fn judge(&self, request: &Incoming) -> Judgement {
        match self.check(request) {
            Ok(()) => {
                let token = format!("ya29.{}", codec::base64url(&codec::random::<48>()));
                let lifetime_ms = u64::try_from(self.lifetime.as_millis()).unwrap_or(u64::MAX);
                self.remember(token.clone(), request.now_ms.saturating_add(lifetime_ms));
                let body = json!({
                    "access_token": token,
                    "expires_in": self.lifetime.as_secs(),
                    "token_type": "Bearer",
                });
                Judgement::accepted(
                    Reply::json(200, &body).with("cache-control", "no-store"),
                    "token".to_owned(),
                )
            }
            Err(Complaint(error, why)) => {
                let body = json!({ "error": error, "error_description": why });
                Judgement::refused(Reply::json(400, &body), error, why)
            }
        }
    }

    fn remember(&self, token: String, until_ms: u64) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if given.len() >= ACCESS_TOKENS_MAX {
            let first = given.iter().min_by_key(|(_, until_ms)| **until_ms).map(|(token, _)| token.clone());
            if let Some(first) = first {
                given.remove(&first);
            }
        }
        given.insert(token, until_ms);
    }

    fn check(&self, request: &Incoming) -> Result<(), Complaint> {
        let bad = |why: &str| Complaint("invalid_request", why.to_owned());
        if request.method != http::Method::POST {
            return Err(bad("the method is POST"));
        }
        let kind = request.header("content-type").ok().flatten().unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/x-www-form-urlencoded") {
            return Err(bad("the content type is application/x-www-form-urlencoded"));
        }
        let form = form(&request.body).ok_or_else(|| bad("the body is no form"))?;
        let field = |name: &str| form.get(name).map(String::as_str);
        if field("grant_type") != Some(GRANT) {
            return Err(Complaint("unsupported_grant_type", format!("grant_type is {GRANT}")));
        }
        let assertion = field("assertion").ok_or_else(|| bad("there is no assertion"))?;
        let grant = |why: String| Complaint("invalid_grant", why);
        let read = Jws::read(assertion, Algorithm::Rs256).map_err(grant)?;
        if read.key_id().is_some_and(|id| id != self.key_id) {
            return Err(grant("kid is no key of this account".to_owned()));
        }
        let claims = read.verify(&self.public_key).map_err(grant)?;
        self.claims(&claims, request.now_ms / 1000)
    }

    fn claims(&self, claims: &Map<String, Value>, now: u64) -> Result<(), Complaint> {
        let grant = |why: String| Complaint("invalid_grant", why);
        if jws::text(claims, "iss").map_err(grant)? != self.email {
            return Err(grant("iss is not the account's client_email".to_owned()));
        }
        // Google takes a subject for accounts with authority over a whole domain; this one has none.
        if claims.get("sub").is_some_and(|subject| subject != &self.email) {
            return Err(Complaint("unauthorized_client", "sub is somebody else".to_owned()));
        }
        let audience = jws::text(claims, "aud").map_err(grant)?;
        if audience != self.audience && audience != GOOGLE {
            return Err(grant("aud is neither the account's token_uri nor Google's".to_owned()));
        }
        let (issued, expires) =
            (jws::seconds(claims, "iat").map_err(grant)?, jws::seconds(claims, "exp").map_err(grant)?);
        if issued > now {
            return Err(grant(format!("iat is {} s in the future", issued - now)));
        }
        if expires <= now {
            return Err(grant(format!("exp was {} s ago", now - expires)));
        }
        if expires.saturating_sub(issued) > ASSERTION_SECONDS_MAX {
            return Err(grant("exp is more than an hour after iat".to_owned()));
        }
        let scope = claims.get("scope").and_then(Value::as_str).unwrap_or_default();
        if scope.split(' ').any(|scope| SCOPES.contains(&scope)) {
            Ok(())
        } else {
            Err(Complaint("invalid_scope", "scope lacks firebase.messaging".to_owned()))
        }
    }
}

/// `application/x-www-form-urlencoded`; a name that is there twice makes it none (RFC 6749 §3.2).
fn form(body: &[u8]) -> Option<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    for pair in std::str::from_utf8(body).ok()?.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        if fields.insert(unescape(name)?, unescape(value)?).is_some() {
            return None;
        }
    }
    Some(fields)
}

fn unescape(text: &str) -> Option<String> {
    let (mut bytes, mut out) = (text.bytes(), Vec::with_capacity(text.len()));
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(out).ok()
}
