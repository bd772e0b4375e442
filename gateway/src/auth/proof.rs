//! That a token was found good before, so that its signature need not be checked twice. **Invariant:** a proof fits one token, one key
//! and one audience; it is worth nothing by itself, and comes from a resume token that a gateway has signed.

use aws_lc_rs::digest::{Context, SHA256};
use jsonwebtoken::DecodingKey;

/// Bytes of a proof: whoever wants another token to fit it needs a second preimage.
const BYTES: usize = 16;

/// A key, and what tells it from all others.
pub(crate) struct CheckingKey {
    pub(super) decoding: DecodingKey,
    fingerprint: [u8; 32],
}

impl CheckingKey {
    /// `material` is all of what the key consists of.
    pub(super) fn new(decoding: DecodingKey, material: &[&[u8]]) -> Self {
        Self { decoding, fingerprint: digest(material) }
    }
}

/// A short digest of a good token and of what it was checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof([u8; Proof::BYTES]);

impl Proof {
    /// Its length on the wire.
    pub(crate) const BYTES: usize = BYTES;

    /// Of a token that is good for this audience by this key.
    pub(super) fn new(key: &CheckingKey, audience: Option<&str>, token: &str) -> Self {
        let named = [u8::from(audience.is_some())];
        let whole =
            digest(&[&key.fingerprint, &named, audience.unwrap_or_default().as_bytes(), token.as_bytes()]);
        Self(std::array::from_fn(|at| whole[at]))
    }

    pub(crate) const fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Each part goes in behind its length, so that no two lists of parts are one.
fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let digest = context.finish();
    std::array::from_fn(|at| digest.as_ref()[at])
}
