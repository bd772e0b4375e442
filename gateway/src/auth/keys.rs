//! The keys of a sign-in service, by their ids: a JWK Set (RFC 7517) that is fetched, kept and renewed.
//! **Invariant:** only a fetched set changes the keys, and only as a whole; a token's key id can ask for a fetch, at most one in ten
//! seconds, and decides nothing else.

use super::jwks::{KeySetError, Keys};
use super::proof::CheckingKey;
use crate::metrics::GatewayMetrics;
use chappe_node::fetch::{FetchError, Fetcher, is_encrypted};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use serde::Deserialize;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// The set is fetched this often without being asked, ± 33 %: what was withdrawn ends by then.
const RENEW_EVERY: Millis = Millis::from_secs(300);
/// Between the starts of two fetches, at least, however many tokens name keys that nobody knows.
const FETCH_PAUSE: Millis = Millis::from_secs(10);
/// While there was never a set, the first pause; it doubles up to [`FETCH_PAUSE`].
const FIRST_PAUSE: Millis = Millis::from_secs(1);
/// Whoever brings a key id that is not known waits so long for a fetch.
const WAIT_MAX: Duration = Duration::from_secs(6);
/// So many wait at the same time.
const WAITING_MAX: usize = 1024;
/// How often the age of the keys is told.
const AGE_EVERY: Duration = Duration::from_secs(5);
/// The place of an OpenID Provider's configuration (OpenID Connect Discovery 1.0, section 4).
const DISCOVERY: &str = "/.well-known/openid-configuration";

/// Where the set comes from.
#[derive(Clone)]
pub struct KeySource {
    /// The set's URL, or that of an OpenID Provider's configuration (it ends in `/.well-known/openid-configuration`), which names it.
    pub url: String,
    /// Who signs: claim `iss` of tokens, and what that configuration must call itself.
    pub issuer: String,
    /// The one algorithm of tokens; keys for others are passed over.
    pub algorithm: SetAlgorithm,
    /// The way there.
    pub fetcher: Fetcher,
}

/// The algorithms whose public keys come in a set. No symmetric one: whoever reads the set could sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetAlgorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
}

/// Why there are no fresh keys. Each says what to do by what it names.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysUnavailable {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Set(#[from] KeySetError),
    #[error("the OpenID Provider's configuration has no issuer or no jwks_uri")]
    Configuration,
    #[error("the OpenID Provider's configuration is of another issuer than token.issuer")]
    Issuer,
    #[error("the OpenID Provider's configuration names a set that is not fetched through TLS")]
    Downgrade,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
    jwks_uri: String,
}

/// How far fetching is.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// Fetches that began.
    begun: u64,
    /// Fetches that ended.
    ended: u64,
    /// The last of them that brought keys; 0: none ever.
    good: u64,
    /// Somebody asked since the last one began.
    wanted: bool,
}

/// Fetches that cannot know of what happens now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen(u64);

/// The keys as last fetched.
pub(crate) struct KeySet {
    source: KeySource,
    keys: RwLock<Keys>,
    progress: watch::Sender<Progress>,
    waiting: Semaphore,
}

impl KeySet {
    pub(super) fn new(source: KeySource) -> Self {
        Self {
            source,
            keys: RwLock::default(),
            progress: watch::Sender::default(),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }

    /// The key of this id; without an id, the only one there is.
    pub(super) fn get(&self, id: Option<&str>) -> Option<Arc<CheckingKey>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).get(id)
    }

    /// Whether the last set has no key that can be used, or there was never one.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).len() == 0
    }

    /// Asks for a fetch, as soon as one may begin.
    pub(super) fn ask(&self) {
        self.progress.send_if_modified(|progress| !std::mem::replace(&mut progress.wanted, true));
    }

    /// How far fetching is now; what is asked for afterwards begins later.
    pub(super) fn seen(&self) -> Seen {
        let now = *self.progress.borrow();
        // A fetch that is under way may have begun before a key was published; the very first is better than none.
        Seen(if now.good == 0 { now.ended } else { now.begun })
    }

    /// Waits for a fetch that has been asked for since, and began since. `false`: none has brought keys within a few seconds, or
    /// too many wait already.
    pub(super) async fn renewed(&self, since: Seen) -> bool {
        let Ok(_permit) = self.waiting.try_acquire() else { return false };
        let mut progress = self.progress.subscribe();
        let ended = tokio::time::timeout(WAIT_MAX, progress.wait_for(|progress| progress.ended > since.0));
        matches!(ended.await, Ok(Ok(progress)) if progress.good > since.0)
    }

    /// Waits until there was a set with a key in it.
    pub(super) async fn known(&self) {
        // The sender lives as long as this.
        let _ = self.progress.subscribe().wait_for(|progress| progress.good > 0).await;
    }

    /// Fetches at once, then whenever it is asked or due; until dropped.
    pub(super) async fn run(&self, world: &dyn World, metrics: &GatewayMetrics) {
        let mut failures = 0;
        let mut fresh_at = world.now();
        loop {
            let begun_at = world.now();
            self.progress.send_modify(|progress| {
                progress.begun += 1;
                progress.wanted = false;
            });
            let outcome = self.fetch().await;
            metrics.token_key_fetches_total.with_label_values(&[word(&outcome)]).inc();
            match outcome {
                Ok(keys) => {
                    failures = if keys.len() == 0 { failures + 1 } else { 0 };
                    fresh_at = begun_at;
                    self.take(keys, metrics);
                }
                Err(error) => {
                    failures += 1;
                    let kept = metrics.token_keys.get();
                    tracing::warn!(
                        kept,
                        "token_keys_unavailable: {error}; the keys known so far stay, check token.jwks"
                    );
                    self.progress.send_modify(|progress| progress.ended += 1);
                }
            }
            let pause = self.pause(failures, world);
            self.due(begun_at, pause, fresh_at, world, metrics).await;
        }
    }

    /// A set without a key for us was meant so: all are withdrawn. But it is no set to begin with.
    fn take(&self, keys: Keys, metrics: &GatewayMetrics) {
        let count = keys.len();
        if count == 0 {
            tracing::error!(
                "token_keys_unavailable: the set has no key for token.algorithm; every token is refused until it has"
            );
        }
        metrics.token_keys.set(i64::try_from(count).unwrap_or(i64::MAX));
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        self.progress.send_modify(|progress| {
            progress.ended += 1;
            if count > 0 {
                progress.good = progress.ended;
            }
        });
    }

    /// From the start of a fetch to that of the next, if nobody asks.
    fn pause(&self, failures: u32, world: &dyn World) -> Millis {
        let doubled = |first: Millis, max: Millis| {
            let pause = (first.0 << failures.saturating_sub(1).min(16)).min(max.0);
            Millis(pause / 2 + world.random_below(pause / 2 + 1))
        };
        match (failures, self.progress.borrow().good) {
            (0, 1..) => Millis(RENEW_EVERY.0 * 2 / 3 + world.random_below(RENEW_EVERY.0 * 2 / 3 + 1)),
            // Without a single key nobody gets in: look soon.
            (_, 0) => doubled(FIRST_PAUSE, FETCH_PAUSE),
            (_, 1..) => doubled(Millis(FETCH_PAUSE.0 * 2), RENEW_EVERY),
        }
    }

    /// Waits until the next fetch may begin, telling the age of the keys meanwhile.
    async fn due(
        &self,
        begun_at: Time,
        pause: Millis,
        fresh_at: Time,
        world: &dyn World,
        metrics: &GatewayMetrics,
    ) {
        let left = |pause: Millis| Millis(pause.0.saturating_sub((world.now() - begun_at).0)).to_std();
        let mut progress = self.progress.subscribe();
        let asked = async {
            let _ = progress.wait_for(|progress| progress.wanted).await;
            tokio::time::sleep(left(FETCH_PAUSE)).await;
        };
        let age = async {
            loop {
                let seconds = (world.now() - fresh_at).0 / 1000;
                metrics.token_keys_age_seconds.set(i64::try_from(seconds).unwrap_or(i64::MAX));
                tokio::time::sleep(AGE_EVERY).await;
            }
        };
        tokio::select! {
            biased;
            () = tokio::time::sleep(left(pause)) => {}
            () = asked => {}
            () = age => {}
        }
    }

    async fn fetch(&self) -> Result<Keys, KeysUnavailable> {
        let KeySource { url, issuer, algorithm, fetcher } = &self.source;
        let document = fetcher.get(url).await?;
        if !url.ends_with(DISCOVERY) {
            return Ok(Keys::parse(&document, *algorithm)?);
        }
        let configuration: Configuration =
            serde_json::from_slice(&document).map_err(|_| KeysUnavailable::Configuration)?;
        // OpenID Connect Discovery 1.0, section 4.3: exactly the same, or another provider could step in.
        if configuration.issuer != *issuer {
            return Err(KeysUnavailable::Issuer);
        }
        if is_encrypted(url) && !is_encrypted(&configuration.jwks_uri) {
            return Err(KeysUnavailable::Downgrade);
        }
        Ok(Keys::parse(&fetcher.get(&configuration.jwks_uri).await?, *algorithm)?)
    }
}

/// The outcome's word among the metrics.
fn word(outcome: &Result<Keys, KeysUnavailable>) -> &'static str {
    match outcome {
        Ok(keys) if keys.len() == 0 => "empty",
        Ok(_) => "ok",
        Err(KeysUnavailable::Fetch(_)) => "unreachable",
        Err(
            KeysUnavailable::Set(_)
            | KeysUnavailable::Configuration
            | KeysUnavailable::Issuer
            | KeysUnavailable::Downgrade,
        ) => "unusable",
    }
}
