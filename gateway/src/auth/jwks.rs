//! A JWK Set as a sign-in service publishes it (RFC 7517), and what of it can be used.
//! **Invariant:** a key is used for the one configured algorithm only, and a symmetric or a private one never.

use super::keys::SetAlgorithm;
use super::proof::CheckingKey;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys of one set.
const KEYS_MAX: usize = 64;
/// Bytes of a key id.
const KEY_ID_BYTES_MAX: usize = 256;
/// Bits of an RSA modulus. Fewer are not secure (RFC 7518, section 3.3), more cost more time than a handshake may.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// Bytes of an RSA exponent; 65,537 needs three.
const RSA_EXPONENT_BYTES_MAX: usize = 4;
/// Bytes of an Ed25519 key, and of each coordinate of P-256.
const POINT_BYTES: usize = 32;

/// Why a document is no set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeySetError {
    #[error("the document is no JWK Set: JSON with an array \"keys\" is expected")]
    Form,
    #[error("the set has more than 64 keys")]
    TooMany,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

/// What counts of a key. A member of a wrong type makes the key unusable, not the set (RFC 7517, section 5).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    /// The private half, of any type.
    d: Option<serde_json::Value>,
}

/// The usable keys of a set.
#[derive(Default)]
pub(crate) struct Keys {
    by_id: BTreeMap<String, Arc<CheckingKey>>,
    /// Those that no token can name.
    nameless: Vec<Arc<CheckingKey>>,
}

impl Keys {
    /// Reads a set. Of two keys with one id the first counts.
    pub(crate) fn parse(document: &[u8], algorithm: SetAlgorithm) -> Result<Self, KeySetError> {
        let document: Document = serde_json::from_slice(document).map_err(|_| KeySetError::Form)?;
        if document.keys.len() > KEYS_MAX {
            return Err(KeySetError::TooMany);
        }
        let mut keys = Self::default();
        for value in document.keys {
            let Ok(jwk) = serde_json::from_value::<Jwk>(value) else { continue };
            let Some(key) = jwk.usable(algorithm).map(Arc::new) else { continue };
            match jwk.kid {
                None => keys.nameless.push(key),
                Some(id) if is_key_id(&id) => {
                    keys.by_id.entry(id).or_insert(key);
                }
                Some(_) => {}
            }
        }
        Ok(keys)
    }

    /// The key of this id. A token without an id is checked against the only key of its set: `kid` is a hint and optional
    /// (RFC 7515, section 4.1.4), and must be there where the set has several keys (OpenID Connect Core 1.0, section 10.1).
    /// To try all of them would let whoever sends tokens choose how much work we do.
    pub(crate) fn get(&self, id: Option<&str>) -> Option<Arc<CheckingKey>> {
        match id {
            Some(id) => self.by_id.get(id).cloned(),
            None if self.len() == 1 => self.by_id.values().chain(&self.nameless).next().cloned(),
            None => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len() + self.nameless.len()
    }
}

/// Whether a set may hold a key of this id: the others are not even looked for.
pub(super) fn is_key_id(id: &str) -> bool {
    (1..=KEY_ID_BYTES_MAX).contains(&id.len()) && !id.chars().any(char::is_control)
}

impl Jwk {
    /// The key, if it checks signatures of this algorithm.
    fn usable(&self, algorithm: SetAlgorithm) -> Option<CheckingKey> {
        let signs = self.purpose.as_deref().is_none_or(|purpose| purpose == "sig");
        let verifies = self.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
        // Who publishes a private key has let everybody sign with it.
        if !signs || !verifies || self.d.is_some() {
            return None;
        }
        let (kty, crv, names): (_, _, &[&str]) = match algorithm {
            SetAlgorithm::EdDsa => ("OKP", Some("Ed25519"), &["EdDSA", "Ed25519"]),
            SetAlgorithm::Es256 => ("EC", Some("P-256"), &["ES256"]),
            SetAlgorithm::Rs256 => ("RSA", None, &["RS256"]),
        };
        let said = self.alg.as_deref().is_none_or(|alg| names.contains(&alg));
        if self.kty != kty || self.crv.as_deref() != crv || !said {
            return None;
        }
        match algorithm {
            SetAlgorithm::EdDsa => {
                let point = point(self.x.as_deref())?;
                Some(CheckingKey::new(DecodingKey::from_ed_der(&point), &[&point]))
            }
            SetAlgorithm::Es256 => {
                // Uncompressed (SEC 1, section 2.3.3). A point beside the curve is refused with every signature.
                let parts = [&[4][..], &point(self.x.as_deref())?, &point(self.y.as_deref())?];
                let point = parts.concat();
                Some(CheckingKey::new(DecodingKey::from_ec_der(&point), &[&point]))
            }
            SetAlgorithm::Rs256 => {
                let (modulus, exponent) = (number(self.n.as_deref())?, number(self.e.as_deref())?);
                let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
                let odd = exponent.last()? % 2 == 1 && exponent != [1];
                let good = RSA_BITS.contains(&bits) && odd && exponent.len() <= RSA_EXPONENT_BYTES_MAX;
                let parts = [&modulus[..], &exponent];
                good.then(|| {
                    CheckingKey::new(DecodingKey::from_rsa_raw_components(parts[0], parts[1]), &parts)
                })
            }
        }
    }
}

fn point(text: Option<&str>) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text?).ok()?;
    (bytes.len() == POINT_BYTES).then_some(bytes)
}

/// A number, big-endian, without zeros before it.
fn number(text: Option<&str>) -> Option<Vec<u8>> {
    let bytes = URL_SAFE_NO_PAD.decode(text?).ok()?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    Some(bytes[start..].to_vec())
}
