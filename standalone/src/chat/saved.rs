//! What a conversation keeps on disk. **Invariant:** the file is replaced as a whole, and only its owner can read it: it
//! holds private keys and what was typed and is not yet encrypted.

use super::wire::OfferId;
use crate::development::write_private;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use openmls_rust_crypto::MemoryStorage;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::PoisonError;

const VERSION: u32 = 1;

/// Everything of one conversation of one device.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Saved {
    version: u32,
    /// The key-value pairs of the MLS library, in base64.
    mls: BTreeMap<String, String>,
    /// Our public signature key; the private one is in `mls`.
    pub(super) own_key: Vec<u8>,
    /// The other's, pinned on first use.
    pub(super) peer_key: Option<Vec<u8>>,
    /// Groups that can still be read, newest last.
    pub(super) groups: Vec<Vec<u8>>,
    /// Whether the newest group can be written to.
    pub(super) established: bool,
    /// Our offer that no welcome has answered, and its payload.
    pub(super) offer: Option<(OfferId, Vec<u8>)>,
    /// The other's offer that was taken last.
    pub(super) peer_offer: Option<OfferId>,
    /// What a changed key has sent, for `--accept-new-key`.
    pub(super) refused: Option<Vec<u8>>,
    /// SHA-256 of the messages that were read last.
    pub(super) seen: VecDeque<Vec<u8>>,
    /// Typed while there was no group.
    pub(super) unencrypted: VecDeque<String>,
    /// Payloads that no router has accepted yet.
    pub(super) unsent: VecDeque<Vec<u8>>,
}

impl Saved {
    /// `None`: the conversation has not begun.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let saved: Self = serde_json::from_slice(&bytes).with_context(|| {
            format!("{} is damaged; removed, the conversation starts anew with a new key", path.display())
        })?;
        ensure!(saved.version == VERSION, "{} was written by another version", path.display());
        Ok(Some(saved))
    }

    pub(super) fn write(&mut self, path: &Path, storage: &MemoryStorage) -> Result<()> {
        self.version = VERSION;
        self.keep(storage);
        write_private(path, &serde_json::to_vec(self)?)
    }

    /// Takes a copy of the library's pairs.
    pub(super) fn keep(&mut self, storage: &MemoryStorage) {
        self.mls = export(storage);
    }

    /// Puts the library's pairs back.
    pub(super) fn restore(&self, storage: &MemoryStorage) -> Result<()> {
        let pairs: Result<Vec<_>, base64::DecodeError> = self
            .mls
            .iter()
            .map(|(key, value)| Ok((STANDARD_NO_PAD.decode(key)?, STANDARD_NO_PAD.decode(value)?)))
            .collect();
        let pairs = pairs.context("the state of the conversation is damaged")?;
        *storage.values.write().unwrap_or_else(PoisonError::into_inner) = pairs.into_iter().collect();
        Ok(())
    }
}

fn export(storage: &MemoryStorage) -> BTreeMap<String, String> {
    let values = storage.values.read().unwrap_or_else(PoisonError::into_inner);
    let encode = |bytes: &Vec<u8>| STANDARD_NO_PAD.encode(bytes);
    values.iter().map(|(key, value)| (encode(key), encode(value))).collect()
}
