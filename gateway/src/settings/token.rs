//! Settings of tokens: a key file, or the keys that a sign-in service publishes.
//! **Invariant:** one source of keys, one algorithm; where many services could sign, issuer and audience are named.

use super::is_set;
use crate::auth::{KeySource, SetAlgorithm, TokenKey, TokenVerifier};
use anyhow::Context as _;
use chappe_node::config::{ConfigError, read_file};
use chappe_node::fetch::{Fetcher, is_allowed};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The one algorithm of tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenAlgorithm {
    /// Not said: Ed25519 with a key file; with a set of keys it must be said.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// Ed25519: the server has the public key only.
    EdDsa,
    /// ECDSA with P-256 and SHA-256; with a set of keys.
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256, 2,048 bits or more; with a set of keys.
    Rs256,
    /// HMAC-SHA-256: the server has the secret; with a key file.
    Hs256,
}

/// Which tokens are good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TokenConfig {
    /// `eddsa` or `hs256` with `key` (empty: `eddsa`); `eddsa`, `es256` or `rs256` with `jwks`. A token that says otherwise is refused.
    pub algorithm: TokenAlgorithm,
    /// File with the public key (PEM) or the secret (at least 32 bytes); empty, without `jwks`: a self-made key, on loopback only.
    pub key: PathBuf,
    /// Instead of `key`: the URL of a JWK Set, or of an OpenID Provider's configuration (`…/.well-known/openid-configuration`). https;
    /// http on loopback only.
    pub jwks: String,
    /// PEM file with the authority that signed the certificate of `jwks`; empty: the public ones.
    pub ca: PathBuf,
    /// Only tokens of this issuer (`iss`); empty: any. Must be set with `jwks`.
    pub issuer: String,
    /// Only tokens for this audience (`aud`); empty: none. Must be set with `jwks`.
    pub audience: String,
}

fn refused(key: &str, hint: &str) -> Result<(), ConfigError> {
    Err(ConfigError::value(key, hint))
}

impl TokenConfig {
    /// Refuses what cannot work or must not be. `self_made`: the process brings a key; `local`: and it may serve with it.
    pub(super) fn check(&self, self_made: bool, local: bool) -> Result<(), ConfigError> {
        if !self.jwks.is_empty() {
            return self.check_set();
        }
        if is_set(&self.ca) {
            return refused(
                "token.ca",
                "token.ca is the authority of the server that token.jwks names; there is no token.jwks",
            );
        }
        match self.algorithm {
            TokenAlgorithm::Es256 | TokenAlgorithm::Rs256 => refused(
                "token.algorithm",
                "es256 and rs256 come with token.jwks; a key file holds eddsa or hs256",
            ),
            TokenAlgorithm::Hs256 if !is_set(&self.key) => {
                refused("token.key", "hs256 needs a file with a secret of at least 32 bytes")
            }
            TokenAlgorithm::Unset | TokenAlgorithm::EdDsa | TokenAlgorithm::Hs256 => match (self_made, local)
            {
                _ if is_set(&self.key) => Ok(()),
                (true, true) => Ok(()),
                (true, false) => refused(
                    "token.key",
                    "the self-made token key serves on loopback only; give token.key or token.jwks",
                ),
                (false, _) => refused(
                    "token.key",
                    "a gateway needs the key of your sign-in service: give token.key or token.jwks",
                ),
            },
        }
    }

    fn check_set(&self) -> Result<(), ConfigError> {
        if is_set(&self.key) {
            return refused("token.jwks", "token.key is given too; choose one of them");
        }
        if !is_allowed(&self.jwks) {
            return refused(
                "token.jwks",
                "an https:// URL without a name and password is expected; http:// serves on loopback only",
            );
        }
        if self.set_algorithm().is_none() {
            let hint = "say which algorithm your sign-in service signs with: eddsa, es256 or rs256 (a token never decides it, and a published key is never a secret)";
            return refused("token.algorithm", hint);
        }
        if self.issuer.is_empty() {
            return refused(
                "token.issuer",
                "with token.jwks say whose tokens are good: the claim iss, exactly as your sign-in service writes it",
            );
        }
        if self.audience.is_empty() {
            let hint = "a sign-in service signs for many applications with the same keys, and each could use the tokens that it gets of its users here: say which audience (claim aud) is this one, such as chappe, and have your sign-in service write it";
            return refused("token.audience", hint);
        }
        Ok(())
    }

    fn set_algorithm(&self) -> Option<SetAlgorithm> {
        match self.algorithm {
            TokenAlgorithm::EdDsa => Some(SetAlgorithm::EdDsa),
            TokenAlgorithm::Es256 => Some(SetAlgorithm::Es256),
            TokenAlgorithm::Rs256 => Some(SetAlgorithm::Rs256),
            TokenAlgorithm::Unset | TokenAlgorithm::Hs256 => None,
        }
    }

    /// The verifier of the settings' keys, else of the self-made one. Those of a set are fetched while the gateway runs.
    pub fn open(&self, self_made: Option<&Path>) -> anyhow::Result<TokenVerifier> {
        let mut verifier = match self.set_algorithm().filter(|_| !self.jwks.is_empty()) {
            Some(algorithm) => TokenVerifier::with_set(KeySource {
                url: self.jwks.clone(),
                issuer: self.issuer.clone(),
                algorithm,
                fetcher: Fetcher::new(chappe_node::tls::trusting(&self.ca)?),
            }),
            None => self.open_key(self_made)?,
        };
        if !self.issuer.is_empty() {
            verifier = verifier.issued_by(&self.issuer);
        }
        if !self.audience.is_empty() {
            verifier = verifier.for_audience(&self.audience);
        }
        Ok(verifier)
    }

    fn open_key(&self, self_made: Option<&Path>) -> anyhow::Result<TokenVerifier> {
        let path = self_made.filter(|_| !is_set(&self.key)).unwrap_or(&self.key);
        let bytes = read_file(path, "token.key")?;
        let key = match self.algorithm {
            TokenAlgorithm::Unset | TokenAlgorithm::EdDsa => TokenKey::EdDsa { public_pem: bytes },
            TokenAlgorithm::Hs256 => TokenKey::Hs256 { secret: bytes },
            TokenAlgorithm::Es256 | TokenAlgorithm::Rs256 => {
                anyhow::bail!("token_key_unusable: es256 and rs256 come with token.jwks")
            }
        };
        TokenVerifier::new(&key).with_context(|| format!("token_key_unusable: {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set() -> TokenConfig {
        TokenConfig {
            algorithm: TokenAlgorithm::Es256,
            jwks: "https://id.example/keys".into(),
            issuer: "https://id.example".into(),
            audience: "chappe".into(),
            ..TokenConfig::default()
        }
    }

    fn refused(change: impl FnOnce(&mut TokenConfig)) -> String {
        let mut config = set();
        change(&mut config);
        config.check(true, true).unwrap_err().to_string()
    }

    #[test]
    fn a_set_of_keys_needs_algorithm_issuer_and_audience_and_no_key_file() {
        set().check(false, false).unwrap();
        set().open(None).unwrap();
        assert!(refused(|config| config.key = "k".into()).contains("choose one"));
        assert!(refused(|config| config.algorithm = TokenAlgorithm::Unset).contains("eddsa, es256 or rs256"));
        assert!(refused(|config| config.algorithm = TokenAlgorithm::Hs256).contains("never a secret"));
        assert!(refused(|config| config.issuer.clear()).contains("token.issuer"));
        assert!(refused(|config| config.audience.clear()).contains("many applications"));
        for url in ["http://id.example/keys", "id.example", "https://me:secret@id.example/"] {
            let error = refused(|config| config.jwks = url.into());
            assert!(error.contains("https://") && !error.contains("secret@"), "{error}");
        }
    }

    #[test]
    fn what_belongs_to_a_set_does_not_come_with_a_key_file() {
        assert!(refused(|config| config.jwks.clear()).contains("come with token.jwks"));
        let authority = |config: &mut TokenConfig| {
            config.jwks.clear();
            config.ca = "ca.pem".into();
        };
        assert!(refused(authority).contains("token.ca"));
        let missing = TokenConfig { ca: "/nowhere/ca.pem".into(), ..set() };
        let error = format!("{:#}", missing.open(None).unwrap_err());
        assert!(error.contains("/nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn algorithms_have_small_names() {
        for (name, algorithm) in [
            ("", TokenAlgorithm::Unset),
            ("eddsa", TokenAlgorithm::EdDsa),
            ("es256", TokenAlgorithm::Es256),
            ("rs256", TokenAlgorithm::Rs256),
            ("hs256", TokenAlgorithm::Hs256),
        ] {
            assert_eq!(serde_json::from_value::<TokenAlgorithm>(name.into()).unwrap(), algorithm);
        }
        assert!(serde_json::from_value::<TokenAlgorithm>("none".into()).is_err());
    }
}
