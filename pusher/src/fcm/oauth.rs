//! Access tokens for a service account (RFC 7523 §2.1, RFC 6749 §5). **Invariant:** one request for a token at a time, and
//! none within ten seconds of one that failed; a token that still holds is used while its successor is fetched.

use crate::answers::{SIGNING_FAILED, TOKEN_REFUSED, TOKEN_UNAVAILABLE};
use crate::provider::Answer;
use crate::transport::{Origin, Pool, Post, Reply, Wires};
use bytes::Bytes;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use http::{HeaderMap, HeaderValue};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use zeroize::Zeroizing;

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// The next token is fetched so long before the present one ends.
const EARLY: Millis = Millis::from_secs(300);
/// A token with less than this left is not used.
const SPARE: Millis = Millis::from_secs(30);
/// After a failure.
const PAUSE: Millis = Millis::from_secs(10);
/// The longest life of a token that is believed, and that of an assertion (Google's bound).
const LIFE_S_MAX: u64 = 3600;

/// The file is no service account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadServiceAccount {
    /// No JSON, or one without `client_email`, `private_key`, `project_id`.
    #[error("no JSON of a service account with client_email, private_key and project_id")]
    Form,
    /// `private_key` is no RSA key in PEM.
    #[error("private_key is no RSA key in PEM")]
    Key,
    /// `token_uri` is no https address.
    #[error("token_uri is no https address")]
    TokenUri,
}

#[derive(Deserialize)]
struct File {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    project_id: String,
    #[serde(default = "google")]
    token_uri: String,
}

fn google() -> String {
    "https://oauth2.googleapis.com/token".into()
}

/// What Google's key file says. Does not print itself.
pub struct ServiceAccount {
    email: String,
    key: EncodingKey,
    key_id: Option<String>,
    /// The project that it belongs to.
    pub project: String,
    token_uri: String,
}

impl fmt::Debug for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServiceAccount(…)")
    }
}

impl ServiceAccount {
    /// Reads the key file. `token_uri`, if given, stands in for the file's.
    pub fn from_json(json: &[u8], token_uri: Option<&str>) -> Result<Self, BadServiceAccount> {
        // The parser's own error would quote the file.
        let file: File = serde_json::from_slice(json).map_err(|_| BadServiceAccount::Form)?;
        let pem = Zeroizing::new(file.private_key);
        let key = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(|_| BadServiceAccount::Key)?;
        let token_uri = token_uri.map_or(file.token_uri, str::to_owned);
        Origin::split(&token_uri).map_err(|_| BadServiceAccount::TokenUri)?;
        let account = Self {
            email: file.client_email,
            key,
            key_id: file.private_key_id,
            project: file.project_id,
            token_uri,
        };
        account.assertion(0).ok_or(BadServiceAccount::Key)?;
        Ok(account)
    }

    fn assertion(&self, now_s: u64) -> Option<String> {
        #[derive(Serialize)]
        struct Claims<'a> {
            iss: &'a str,
            scope: &'a str,
            aud: &'a str,
            iat: u64,
            exp: u64,
        }
        let mut header = Header::new(Algorithm::RS256);
        header.kid.clone_from(&self.key_id);
        let exp = now_s + LIFE_S_MAX;
        let claims = Claims { iss: &self.email, scope: SCOPE, aud: &self.token_uri, iat: now_s, exp };
        jsonwebtoken::encode(&header, &claims, &self.key).ok()
    }
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    number: u64,
    ends_at: Time,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    next: u64,
    failed: Option<(Time, Answer)>,
}

/// Fetches and keeps access tokens.
pub(super) struct Tokens {
    account: ServiceAccount,
    pool: Pool,
    path: String,
    world: Arc<dyn World>,
    state: Mutex<State>,
    /// Held by whoever is fetching.
    flight: tokio::sync::Mutex<()>,
}

impl Tokens {
    pub(super) fn new(account: ServiceAccount, wires: &Wires) -> Option<Self> {
        let (origin, path) = Origin::split(&account.token_uri).ok()?;
        let (pool, world) = (wires.pool(origin, 1), wires.world.clone());
        Some(Self {
            account,
            pool,
            path,
            world,
            state: Mutex::default(),
            flight: tokio::sync::Mutex::new(()),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `Bearer …` and the token's number. Cancel-safe: who waits takes over from a fetcher that was cancelled.
    pub(super) async fn bearer(&self) -> Result<(HeaderValue, u64), Answer> {
        if let Some(token) = self.held() {
            if token.ends_at > self.world.now() + EARLY {
                return Ok((token.value, token.number));
            }
            // It ages: one fetches the next, the others go on with it, and so does the one if that fails.
            if let Ok(_flight) = self.flight.try_lock()
                && !self.paused()
                && let Ok(fresh) = self.fetch().await
            {
                return Ok(fresh);
            }
            return Ok((token.value, token.number));
        }
        let _flight = self.flight.lock().await;
        if let Some(token) = self.held() {
            return Ok((token.value, token.number));
        }
        let failed = self.state().failed.clone().filter(|(until, _)| self.world.now() < *until);
        match failed {
            Some((_, answer)) => Err(answer),
            None => self.fetch().await,
        }
    }

    /// Google refuses that token: it is not used again.
    pub(super) fn refused(&self, number: u64) {
        let mut state = self.state();
        if state.token.as_ref().is_some_and(|token| token.number == number) {
            state.token = None;
        }
    }

    fn held(&self) -> Option<Token> {
        let spare = self.world.now() + SPARE;
        self.state().token.clone().filter(|token| token.ends_at > spare)
    }

    fn paused(&self) -> bool {
        let now = self.world.now();
        self.state().failed.as_ref().is_some_and(|(until, _)| now < *until)
    }

    async fn fetch(&self) -> Result<(HeaderValue, u64), Answer> {
        let asked_at = self.world.now();
        let fetched = self.ask().await;
        let mut state = self.state();
        match fetched {
            Ok((value, life)) => {
                let number = state.next;
                state.next += 1;
                state.failed = None;
                state.token = Some(Token { value: value.clone(), number, ends_at: asked_at + life });
                Ok((value, number))
            }
            Err(answer) => {
                state.failed = Some((self.world.now() + PAUSE, answer.clone()));
                Err(answer)
            }
        }
    }

    async fn ask(&self) -> Result<(HeaderValue, Millis), Answer> {
        let assertion = self.account.assertion(self.world.wall().0 / 1000);
        let assertion = assertion.ok_or_else(|| SIGNING_FAILED.answer(None, None))?;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/x-www-form-urlencoded"));
        let body =
            format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
        let post = Post { path: self.path.clone(), headers, body: Bytes::from(body) };
        let reply = self.pool.send(&post).await.map_err(|_| TOKEN_UNAVAILABLE.answer(None, None))?;
        match reply.status {
            200 => read(&reply).ok_or_else(|| TOKEN_UNAVAILABLE.answer(None, None)),
            408 | 429 | 500.. => Err(TOKEN_UNAVAILABLE.answer(reply.retry_after, None)),
            _ => Err(TOKEN_REFUSED.answer(None, None)),
        }
    }
}

fn read(reply: &Reply) -> Option<(HeaderValue, Millis)> {
    #[derive(Deserialize)]
    struct Granted {
        access_token: String,
        /// Seconds; a recommendation of RFC 6749, so it may be missing.
        expires_in: Option<u64>,
    }
    let granted: Granted = serde_json::from_slice(&reply.body).ok()?;
    let value = HeaderValue::try_from(format!("Bearer {}", granted.access_token)).ok()?;
    Some((value, Millis::from_secs(granted.expires_in.unwrap_or(LIFE_S_MAX).min(LIFE_S_MAX))))
}
