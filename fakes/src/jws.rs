//! JSON Web Signatures, read strictly (RFC 7515, RFC 7518). **Invariant:** claims come out of a token only after its
//! signature held; the algorithm is the verifier's, never the token's.

use crate::codec::base64url_bytes;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::{Map, Value};

/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// Which signature is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// ECDSA on P-256 with SHA-256; the signature is r‖s, 64 bytes (RFC 7518 §3.4).
    Es256,
    /// RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 §3.3).
    Rs256,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }
}

/// A token in its parts, its signature not looked at yet.
pub(crate) struct Jws<'a> {
    /// The protected header.
    pub(crate) header: Map<String, Value>,
    signed: &'a str,
    claims: Vec<u8>,
    signature: Vec<u8>,
    algorithm: Algorithm,
}

impl<'a> Jws<'a> {
    /// Takes a token apart. The error says in plain words what is wrong.
    pub(crate) fn read(token: &'a str, algorithm: Algorithm) -> Result<Self, String> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(format!("the token is longer than {TOKEN_BYTES_MAX} bytes"));
        }
        let parts: Vec<&str> = token.split('.').collect();
        let &[header, claims, signature] = parts.as_slice() else {
            return Err(format!("a JWT has three parts, this has {}", parts.len()));
        };
        let bytes = |part: &str, what: &str| {
            base64url_bytes(part).ok_or_else(|| format!("the {what} is not base64url without padding"))
        };
        let header: Map<String, Value> = serde_json::from_slice(&bytes(header, "header")?)
            .map_err(|_| "the header is no JSON object".to_owned())?;
        if header.get("alg").and_then(Value::as_str) != Some(algorithm.name()) {
            return Err(format!("alg must be {}", algorithm.name()));
        }
        if header.contains_key("crit") {
            return Err("crit names an extension that is not understood (RFC 7515 §4.1.11)".to_owned());
        }
        let (claims, signature) = (bytes(claims, "payload")?, bytes(signature, "signature")?);
        if algorithm == Algorithm::Es256 && signature.len() != 64 {
            return Err(format!("the signature has {} bytes, r‖s of ES256 has 64", signature.len()));
        }
        let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
        Ok(Self { header, signed, claims, signature, algorithm })
    }

    /// The claims, if the signature was made by this key: an uncompressed point for ES256, PKCS #1 DER for RS256.
    pub(crate) fn verify(&self, public_key: &[u8]) -> Result<Map<String, Value>, String> {
        let held = match self.algorithm {
            Algorithm::Es256 => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key)
                .verify(self.signed.as_bytes(), &self.signature),
            Algorithm::Rs256 => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key)
                .verify(self.signed.as_bytes(), &self.signature),
        };
        held.map_err(|_| "the signature does not fit the key".to_owned())?;
        serde_json::from_slice(&self.claims).map_err(|_| "the claims are no JSON object".to_owned())
    }

    /// `kid` of the header.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.header.get("kid").and_then(Value::as_str)
    }
}

/// A claim in whole seconds since 1970 (RFC 7519 §2, `NumericDate`).
pub(crate) fn seconds(claims: &Map<String, Value>, name: &str) -> Result<u64, String> {
    claims.get(name).and_then(Value::as_u64).ok_or_else(|| format!("{name} must be a number of seconds"))
}

/// A claim that is text.
pub(crate) fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    claims.get(name).and_then(Value::as_str).ok_or_else(|| format!("{name} must be a string"))
}
