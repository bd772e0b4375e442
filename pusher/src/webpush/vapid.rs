//! Voluntary application server identification (RFC 8292). **Invariant:** a token is for one origin, and ends at most 12
//! hours after it was made (the RFC allows 24).

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use std::fmt;
use zeroize::Zeroizing;

/// Seconds that a token is good for.
pub(super) const LIFE_S: u64 = 12 * 3600;

/// The file is no VAPID key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadVapid {
    /// Neither of the two forms.
    #[error("neither a private key on P-256 in PEM (PKCS #8), nor one of 32 bytes in base64url")]
    Key,
    /// RFC 8292 §2.1.
    #[error("the subject is neither a mailto: nor an https: address")]
    Subject,
}

/// Who we are to push services. Does not print itself.
pub struct Vapid {
    key: EncodingKey,
    public: String,
    subject: String,
}

impl fmt::Debug for Vapid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vapid(…)")
    }
}

impl Vapid {
    /// A private key on P-256, as PKCS #8 in PEM or as the 32 bytes in base64url that the usual tools print; and a person
    /// to write to (`mailto:` or `https:`).
    pub fn new(key: &[u8], subject: &str) -> Result<Self, BadVapid> {
        if !(subject.starts_with("mailto:") || subject.starts_with("https://")) || !subject.is_ascii() {
            return Err(BadVapid::Subject);
        }
        let der = if key.trim_ascii_start().starts_with(b"-----BEGIN") {
            let key = PrivatePkcs8KeyDer::from_pem_slice(key).map_err(|_| BadVapid::Key)?;
            Zeroizing::new(key.secret_pkcs8_der().to_vec())
        } else {
            from_scalar(key).ok_or(BadVapid::Key)?
        };
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).map_err(|_| BadVapid::Key)?;
        let public = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
        Ok(Self { key: EncodingKey::from_ec_der(&der), public, subject: subject.to_owned() })
    }

    /// The key that browsers subscribe with (`applicationServerKey`): an uncompressed point in base64url.
    pub fn public_key(&self) -> &str {
        &self.public
    }

    /// `Authorization` for an origin (RFC 8292 §3).
    pub(super) fn authorization(&self, audience: &str, now_s: u64) -> Option<HeaderValue> {
        #[derive(Serialize)]
        struct Claims<'a> {
            aud: &'a str,
            exp: u64,
            sub: &'a str,
        }
        let claims = Claims { aud: audience, exp: now_s + LIFE_S, sub: &self.subject };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key).ok()?;
        HeaderValue::try_from(format!("vapid t={token}, k={}", self.public)).ok()
    }
}

/// PKCS #8 (RFC 5958) around an EC private key (RFC 5915) on P-256 with its public key.
fn from_scalar(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    const HEAD: [u8; 36] = [
        0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
        0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01,
        0x04, 0x20,
    ];
    let text = text.trim_ascii();
    let text = text.strip_suffix(b"=").unwrap_or(text);
    let scalar = Zeroizing::new(URL_SAFE_NO_PAD.decode(text).ok()?);
    let public = PrivateKey::from_private_key(&ECDH_P256, &scalar).ok()?.compute_public_key().ok()?;
    let mut der = Zeroizing::new(HEAD.to_vec());
    der.extend_from_slice(&scalar);
    der.extend_from_slice(&[0xa1, 0x44, 0x03, 0x42, 0x00]);
    der.extend_from_slice(public.as_ref());
    Some(der)
}
