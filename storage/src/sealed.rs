//! Push targets and quiet hours at rest: sealed by a key that the store never sees. **Invariant:** a blob opens only at the place, mailbox and
//! device, for which it was sealed; no input makes opening panic, and no key or token prints itself.
//!
//! A blob is `version (1) ‖ key id (4) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`: AES-256-GCM (NIST SP 800-38D) with a random
//! nonce, over `version ‖ mailbox ‖ device` as associated data. The key id is the first 4 bytes of the key's SHA-256. With
//! random nonces a key is good for 2^32 blobs (§8.3 there): renew it before, and keep the old ones until they open nothing more.

use crate::PUSH_BYTES_MAX;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId};
use chappe_protocol::push::{
    ApnsKind, AppName, PUSH_TARGETS_MAX, PushAddress, PushSettings, PushTarget, QUIET_WINDOWS_MAX, Quiet,
    QuietHours,
};
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use sha2::{Digest, Sha256};
use std::fmt;
use zeroize::Zeroizing;

/// Form of the blob and of the plaintext in it.
const VERSION: u8 = 1;
/// Bytes of a key.
pub const PUSH_KEY_BYTES: usize = 32;
const KEY_ID_BYTES: usize = 4;
/// Version, key id and nonce.
const HEADER_BYTES: usize = 1 + KEY_ID_BYTES + NONCE_LEN;

const APNS_ALERT: u8 = 0;
const APNS_VOIP: u8 = 1;
const FCM: u8 = 2;
const WEB_PUSH: u8 = 3;

/// Why push targets were not sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// The call is wrong: more than [`PUSH_TARGETS_MAX`] targets, or together longer than the store takes.
    #[error("at most 4 push targets, and at most 16 KiB when sealed")]
    TooMany,
    /// A target that [`PushAddress::check`] refuses: ask the device for another.
    #[error("a push target holds what no provider gives out")]
    Target,
    /// Sealed in a later form: use a newer binary.
    #[error("the push targets were sealed in a form that this binary does not know")]
    Version,
    /// Sealed by a key that is not there: configure it among the older ones, or wait until the device registers again.
    #[error("the push targets were sealed by a key that is not configured")]
    UnknownKey,
    /// Changed, cut, or moved here from another device: of no use until the device registers again.
    #[error("the sealed push targets are damaged, or another device's")]
    Damaged,
    /// The crypto library refused; the call may be repeated.
    #[error("the push targets could not be sealed")]
    Crypto,
}

/// A key with its name.
struct PushKey {
    id: [u8; KEY_ID_BYTES],
    key: LessSafeKey,
}

impl PushKey {
    fn new(key: &[u8; PUSH_KEY_BYTES]) -> Result<Self, SealedError> {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&Sha256::digest(key)[..KEY_ID_BYTES]);
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| SealedError::Crypto)?;
        Ok(Self { id, key: LessSafeKey::new(key) })
    }
}

impl fmt::Debug for PushKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PushKey({:02x?})", self.id)
    }
}

/// The keys of push targets: one that seals, all of them open.
#[derive(Debug)]
pub struct PushKeys {
    current: PushKey,
    older: Vec<PushKey>,
}

impl PushKeys {
    /// Keys of 32 random bytes each. `older` ones open what they sealed.
    pub fn new<'a>(
        current: &[u8; PUSH_KEY_BYTES],
        older: impl IntoIterator<Item = &'a [u8; PUSH_KEY_BYTES]>,
    ) -> Result<Self, SealedError> {
        let older = older.into_iter().map(PushKey::new).collect::<Result<_, _>>()?;
        Ok(Self { current: PushKey::new(current)?, older })
    }

    /// Seals the settings of one device; without a target they are a blob too. At most [`PUSH_TARGETS_MAX`] targets, and
    /// [`PUSH_BYTES_MAX`] bytes together.
    pub fn seal(
        &self,
        settings: &PushSettings,
        mailbox: MailboxId,
        device: &DeviceId,
        world: &dyn World,
    ) -> Result<Bytes, SealedError> {
        let mut nonce = [0; NONCE_LEN];
        world.fill_random(&mut nonce);
        let mut inside = encode(settings)?;
        let tag = self.current.key.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place(mailbox, device)),
            &mut inside[..],
        );
        let tag = tag.map_err(|_| SealedError::Crypto)?;
        let sealed = [&[VERSION][..], &self.current.id, &nonce, &inside, tag.as_ref()].concat();
        if sealed.len() > PUSH_BYTES_MAX {
            return Err(SealedError::TooMany);
        }
        Ok(sealed.into())
    }

    /// The settings in a blob that was sealed for this device.
    pub fn open(
        &self,
        sealed: &[u8],
        mailbox: MailboxId,
        device: &DeviceId,
    ) -> Result<PushSettings, SealedError> {
        match sealed.first() {
            Some(&VERSION) if (HEADER_BYTES..=PUSH_BYTES_MAX).contains(&sealed.len()) => {}
            Some(&VERSION) | None => return Err(SealedError::Damaged),
            Some(_) => return Err(SealedError::Version),
        }
        let (header, inside) = sealed.split_at(HEADER_BYTES);
        let (id, nonce) = header[1..].split_at(KEY_ID_BYTES);
        let nonce: [u8; NONCE_LEN] = nonce.try_into().map_err(|_| SealedError::Damaged)?;
        let mut known =
            std::iter::once(&self.current).chain(&self.older).filter(|key| key.id == *id).peekable();
        known.peek().ok_or(SealedError::UnknownKey)?;
        // Two keys may share an id, once in 2^32 pairs.
        for key in known {
            let mut inside = Zeroizing::new(inside.to_vec());
            let (nonce, aad) = (Nonce::assume_unique_for_key(nonce), Aad::from(place(mailbox, device)));
            if let Ok(opened) = key.key.open_in_place(nonce, aad, &mut inside[..]) {
                return decode(opened).ok_or(SealedError::Damaged);
            }
        }
        Err(SealedError::Damaged)
    }
}

/// What a blob is bound to.
fn place(mailbox: MailboxId, device: &DeviceId) -> Vec<u8> {
    [&[VERSION][..], mailbox.as_bytes(), device.as_str().as_bytes()].concat()
}

/// In the flags: calls pass, and a time until which all else is muted follows.
const CALLS_PASS: u8 = 1;
const MUTED: u8 = 2;

/// The plaintext: how many targets, then for each one kind, time, app, token or endpoint, keys; then flags, the end of a mute
/// if there is one, and the quiet windows. Numbers are big-endian.
fn encode(PushSettings { targets, quiet }: &PushSettings) -> Result<Zeroizing<Vec<u8>>, SealedError> {
    if targets.len() > PUSH_TARGETS_MAX {
        return Err(SealedError::TooMany);
    }
    // Long enough for all that is not refused: a vector that grows leaves copies behind.
    let mut out = Zeroizing::new(Vec::with_capacity(2 * PUSH_BYTES_MAX));
    out.push(u8::try_from(targets.len()).map_err(|_| SealedError::TooMany)?);
    for target in targets {
        encode_target(target, &mut out)?;
    }
    let calls_pass = if quiet.calls_pass() { CALLS_PASS } else { 0 };
    out.push(calls_pass | if quiet.muted_until().is_some() { MUTED } else { 0 });
    if let Some(until) = quiet.muted_until() {
        out.extend_from_slice(&until.0.to_be_bytes());
    }
    for hours in quiet.hours() {
        out.extend_from_slice(&hours.from_min().to_be_bytes());
        out.extend_from_slice(&hours.to_min().to_be_bytes());
    }
    Ok(out)
}

fn encode_target(target: &PushTarget, out: &mut Vec<u8>) -> Result<(), SealedError> {
    let PushTarget { app, address, registered_at } = target;
    address.check().map_err(|_| SealedError::Target)?;
    let (kind, token, keys) = match address {
        PushAddress::Apns { token, kind: ApnsKind::Alert } => (APNS_ALERT, &token[..], None),
        PushAddress::Apns { token, kind: ApnsKind::Voip } => (APNS_VOIP, &token[..], None),
        PushAddress::Fcm { token } => (FCM, token.as_bytes(), None),
        PushAddress::WebPush { endpoint, p256dh, auth } => {
            (WEB_PUSH, endpoint.as_bytes(), Some((p256dh, auth)))
        }
    };
    out.push(kind);
    out.extend_from_slice(&registered_at.0.to_be_bytes());
    out.push(u8::try_from(app.as_str().len()).map_err(|_| SealedError::Target)?);
    out.extend_from_slice(app.as_str().as_bytes());
    out.extend_from_slice(&u16::try_from(token.len()).map_err(|_| SealedError::Target)?.to_be_bytes());
    out.extend_from_slice(token);
    if let Some((p256dh, auth)) = keys {
        out.extend_from_slice(p256dh);
        out.extend_from_slice(auth);
    }
    Ok(())
}

/// Takes bytes off the front.
struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(first)
    }

    fn text(&mut self, bytes: usize) -> Option<&'a str> {
        std::str::from_utf8(self.take(bytes)?).ok()
    }

    fn target(&mut self) -> Option<PushTarget> {
        let [kind] = self.array()?;
        let registered_at = UnixMillis(u64::from_be_bytes(self.array()?));
        let [app] = self.array()?;
        let app = AppName::new(self.text(app.into())?).ok()?;
        let length = usize::from(u16::from_be_bytes(self.array()?));
        let address = match kind {
            APNS_ALERT => PushAddress::Apns { token: self.take(length)?.to_vec(), kind: ApnsKind::Alert },
            APNS_VOIP => PushAddress::Apns { token: self.take(length)?.to_vec(), kind: ApnsKind::Voip },
            FCM => PushAddress::Fcm { token: self.text(length)?.into() },
            WEB_PUSH => {
                let endpoint = self.text(length)?.into();
                PushAddress::WebPush { endpoint, p256dh: self.array()?, auth: self.array()? }
            }
            _ => return None,
        };
        address.check().ok()?;
        Some(PushTarget { app, address, registered_at })
    }

    /// All that is left.
    fn quiet(mut self) -> Option<Quiet> {
        let [flags] = self.array()?;
        if flags & !(CALLS_PASS | MUTED) != 0 {
            return None;
        }
        let muted_until = if flags & MUTED == 0 { None } else { Some(u64::from_be_bytes(self.array()?)) };
        let (windows, []) = self.0.as_chunks::<4>() else { return None };
        if windows.len() > QUIET_WINDOWS_MAX {
            return None;
        }
        let hours = windows.iter().map(|[a, b, c, d]| {
            QuietHours::new(u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])).ok()
        });
        Quiet::new(hours.collect::<Option<_>>()?, muted_until.map(UnixMillis), flags & CALLS_PASS != 0).ok()
    }
}

fn decode(inside: &[u8]) -> Option<PushSettings> {
    let mut inside = In(inside);
    let [count] = inside.array()?;
    if usize::from(count) > PUSH_TARGETS_MAX {
        return None;
    }
    let targets = (0..count).map(|_| inside.target()).collect::<Option<Vec<_>>>()?;
    Some(PushSettings { targets, quiet: inside.quiet()? })
}

#[cfg(test)]
mod tests;
