//! Two people, one device each, one MLS group (RFC 9420) at a time. **Invariant:** nothing typed leaves unencrypted, and
//! only for the pinned key; a caller saves before it acks and before it sends.
//!
//! Until there is a key directory, key packages travel as envelopes. Who has no group sends an offer at each start. Of the
//! two the smaller name creates: it answers an offer it has not seen with a new group and its welcome. The other answers
//! an offer with its own; the same one while no welcome has come, else a new one, because the creator has lost its state.
//! So nobody answers an answer, and every repetition of an envelope changes nothing.

use super::safety::safety_number;
use super::saved::Saved;
use super::wire::{OfferId, Wire};
use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use openmls::prelude::tls_codec::{DeserializeBytes as _, Serialize as _};
use openmls::prelude::{
    BasicCredential, Ciphersuite, Credential, CredentialWithKey, GroupId, KeyPackage, KeyPackageIn, MlsGroup,
    MlsGroupCreateConfig, MlsMessageBodyIn, MlsMessageIn, OpenMlsProvider, OpenMlsRand,
    ProcessedMessageContent, ProtocolVersion, StagedWelcome, Welcome,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_rust_crypto::OpenMlsRustCrypto;
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};

const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519;
const PADDING_BYTES: usize = 256;
/// Groups kept for what is still on its way in them.
const GROUPS_MAX: usize = 4;
/// Messages whose repetition is recognised: more than a sender ever has on its way.
const SEEN_MAX: usize = 32;

/// What an envelope brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing to show.
    Nothing,
    /// The other said this.
    Text(String),
    /// Messages can be encrypted from now on.
    Established,
    /// The other has lost its state: a new group is being made.
    StartsAnew,
    /// Its key is not the pinned one: nothing was taken.
    KeyChanged,
    /// Encrypted for a state that is lost, or damaged.
    Unreadable,
}

/// See the module.
pub(super) struct Conversation {
    me: String,
    peer: String,
    path: PathBuf,
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
    saved: Saved,
}

impl Conversation {
    /// Opens what the file holds, or begins. Saves.
    pub(super) fn open(path: &Path, me: &str, peer: &str) -> Result<Self> {
        let provider = OpenMlsRustCrypto::default();
        let mut saved = Saved::read(path)?.unwrap_or_default();
        saved.restore(provider.storage())?;
        let scheme = SUITE.signature_algorithm();
        let signer = if saved.own_key.is_empty() {
            let signer = SignatureKeyPair::new(scheme).map_err(|_| anyhow!("cannot make a signature key"))?;
            signer.store(provider.storage())?;
            saved.own_key = signer.to_public_vec();
            signer
        } else {
            SignatureKeyPair::read(provider.storage(), &saved.own_key, scheme)
                .context("the state of the conversation has lost its key")?
        };
        let mut this =
            Self { me: me.to_owned(), peer: peer.to_owned(), path: path.to_owned(), provider, signer, saved };
        if !this.saved.established {
            this.send_offer()?;
        }
        this.save()?;
        Ok(this)
    }

    /// Makes everything so far durable.
    pub(super) fn save(&mut self) -> Result<()> {
        self.saved.write(&self.path, self.provider.storage())
    }

    /// Whether messages can be encrypted now.
    pub(super) fn is_established(&self) -> bool {
        self.saved.established
    }

    /// Takes a line; it is encrypted now or when there is a group. Save after it.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        self.saved.unencrypted.push_back(text.to_owned());
        self.encrypt_waiting()
    }

    /// The payload to send next, until [`Conversation::sent`].
    pub(super) fn next_unsent(&self) -> Option<Bytes> {
        self.saved.unsent.front().map(|payload| Bytes::copy_from_slice(payload))
    }

    /// The first of the unsent is accepted. Save after it.
    pub(super) fn sent(&mut self) {
        self.saved.unsent.pop_front();
    }

    /// Payloads and lines that no router has.
    pub(super) fn open_items(&self) -> usize {
        self.saved.unsent.len() + self.saved.unencrypted.len()
    }

    /// Lines that no router has, as far as anyone can tell.
    pub(super) fn has_open_lines(&self) -> bool {
        !self.saved.unencrypted.is_empty() || (self.saved.established && !self.saved.unsent.is_empty())
    }

    /// To be compared over another channel; `None` before the other's key is known.
    pub(super) fn safety_number(&self) -> Option<String> {
        let peer_key = self.saved.peer_key.as_ref()?;
        Some(safety_number((&self.me, &self.saved.own_key), (&self.peer, peer_key)))
    }

    /// Forgets the pinned key for that of the last refused envelope, which is then taken. `Nothing` if none was refused.
    pub(super) fn accept_new_key(&mut self) -> Result<News> {
        let Some(refused) = self.saved.refused.take() else { return Ok(News::Nothing) };
        self.saved.peer_key = None;
        self.receive(&refused.into())
    }

    /// Takes a payload of the other. Save after it, then ack.
    pub(super) fn receive(&mut self, payload: &Bytes) -> Result<News> {
        let news = match Wire::decode(payload) {
            Some(Wire::Offer { id, key_package }) => self.on_offer(id, &key_package)?,
            Some(Wire::Welcome { answers, welcome }) => self.on_welcome(answers, &welcome)?,
            Some(Wire::Message(message)) => self.on_new_message(&message),
            None => News::Unreadable,
        };
        if news == News::KeyChanged {
            self.saved.refused = Some(payload.to_vec());
        }
        Ok(news)
    }

    fn creates(&self) -> bool {
        self.me < self.peer
    }

    fn send_offer(&mut self) -> Result<()> {
        if self.saved.offer.is_none() {
            let mut id = OfferId::default();
            let random = self.provider.rand().random_vec(id.len()).map_err(|_| anyhow!("no randomness"))?;
            id.copy_from_slice(&random);
            let bundle = KeyPackage::builder()
                .build(SUITE, &self.provider, &self.signer, self.credential())
                .context("cannot make a key package")?;
            let key_package = bundle.key_package().tls_serialize_detached()?;
            self.saved.offer = Some((id, Wire::Offer { id, key_package }.encode()));
        }
        if let Some((_, payload)) = &self.saved.offer
            && !self.saved.unsent.contains(payload)
        {
            self.saved.unsent.push_back(payload.clone());
        }
        Ok(())
    }

    fn credential(&self) -> CredentialWithKey {
        CredentialWithKey {
            credential: BasicCredential::new(self.me.as_bytes().to_vec()).into(),
            signature_key: self.signer.public().into(),
        }
    }

    /// Whether this is the other, with the key that is pinned; an unknown one is pinned now.
    fn pin(&mut self, credential: &Credential, key: &[u8]) -> Option<bool> {
        if !self.is_peer(credential) {
            return None;
        }
        Some(self.saved.peer_key.get_or_insert_with(|| key.to_vec()) == key)
    }

    fn is_peer(&self, credential: &Credential) -> bool {
        BasicCredential::try_from(credential.clone())
            .is_ok_and(|credential| credential.identity() == self.peer.as_bytes())
    }

    fn on_offer(&mut self, id: OfferId, bytes: &[u8]) -> Result<News> {
        let parsed = KeyPackageIn::tls_deserialize_exact_bytes(bytes).ok();
        let Some(key_package) = parsed
            .and_then(|parsed| parsed.validate(self.provider.crypto(), ProtocolVersion::Mls10).ok())
            .filter(|key_package| key_package.ciphersuite() == SUITE)
        else {
            return Ok(News::Unreadable);
        };
        let leaf = key_package.leaf_node();
        match self.pin(leaf.credential(), leaf.signature_key().as_slice()) {
            None => return Ok(News::Unreadable),
            Some(false) => return Ok(News::KeyChanged),
            Some(true) => {}
        }
        let known = self.saved.peer_offer.replace(id) == Some(id);
        let had_group = self.saved.established;
        if self.creates() {
            if !known || !had_group {
                self.create_group(id, &key_package)?;
                return Ok(if had_group { News::StartsAnew } else { News::Established });
            }
            return Ok(News::Nothing);
        }
        if had_group && !known {
            // The creator offers only without a group.
            self.saved.established = false;
            self.send_offer()?;
            return Ok(News::StartsAnew);
        }
        if !had_group {
            self.send_offer()?;
        }
        Ok(News::Nothing)
    }

    fn create_group(&mut self, answers: OfferId, key_package: &KeyPackage) -> Result<()> {
        let credential = self.credential();
        let mut group = MlsGroup::new(&self.provider, &self.signer, &group_config(), credential)
            .context("cannot make a group")?;
        let (_, welcome, _) = group
            .add_members(&self.provider, &self.signer, std::slice::from_ref(key_package))
            .context("cannot add to the group")?;
        group.merge_pending_commit(&self.provider).context("cannot begin the group")?;
        let welcome = Wire::Welcome { answers, welcome: welcome.to_bytes()? };
        self.saved.unsent.push_back(welcome.encode());
        self.saved.offer = None;
        self.enter(&group)
    }

    fn on_welcome(&mut self, answers: OfferId, bytes: &[u8]) -> Result<News> {
        if self.creates() || self.saved.offer.as_ref().is_none_or(|(id, _)| *id != answers) {
            // A repetition, or for an offer of a state that we have lost.
            return Ok(News::Nothing);
        }
        let message = MlsMessageIn::tls_deserialize_exact_bytes(bytes).map(MlsMessageIn::extract);
        let Ok(MlsMessageBodyIn::Welcome(welcome)) = message else { return Ok(News::Unreadable) };
        // Looking into a welcome uses the key package up; if we do not join, it must not be.
        let mut before = self.saved.clone();
        before.keep(self.provider.storage());
        match self.join(welcome) {
            Ok(Some(group)) => {
                self.saved.offer = None;
                self.enter(&group)?;
                Ok(News::Established)
            }
            Ok(None) => {
                before.restore(self.provider.storage())?;
                Ok(News::KeyChanged)
            }
            Err(_) => {
                before.restore(self.provider.storage())?;
                Ok(News::Unreadable)
            }
        }
    }

    /// `None`: the key of the creator is not the pinned one.
    fn join(&mut self, welcome: Welcome) -> Result<Option<MlsGroup>> {
        let config = group_config();
        let staged = StagedWelcome::new_from_welcome(&self.provider, config.join_config(), welcome, None)?;
        ensure!(staged.members().count() == 2, "not a group of two");
        let creator = staged.welcome_sender()?;
        let (credential, key) = (creator.credential().clone(), creator.signature_key().as_slice().to_vec());
        match self.pin(&credential, &key) {
            None => bail!("a group of someone else"),
            Some(false) => Ok(None),
            Some(true) => Ok(Some(staged.into_group(&self.provider)?)),
        }
    }

    fn enter(&mut self, group: &MlsGroup) -> Result<()> {
        self.saved.groups.push(group.group_id().to_vec());
        while self.saved.groups.len() > GROUPS_MAX {
            let id = GroupId::from_slice(&self.saved.groups.remove(0));
            if let Some(mut old) = MlsGroup::load(self.provider.storage(), &id)? {
                old.delete(self.provider.storage())?;
            }
        }
        self.saved.established = true;
        self.encrypt_waiting()
    }

    fn encrypt_waiting(&mut self) -> Result<()> {
        if !self.saved.established || self.saved.unencrypted.is_empty() {
            return Ok(());
        }
        let id = self.saved.groups.last().context("the state of the conversation has lost its group")?;
        let mut group = MlsGroup::load(self.provider.storage(), &GroupId::from_slice(id))?
            .context("the state of the conversation has lost its group")?;
        while let Some(text) = self.saved.unencrypted.pop_front() {
            let message = group
                .create_message(&self.provider, &self.signer, text.as_bytes())
                .context("cannot encrypt")?;
            self.saved.unsent.push_back(Wire::Message(message.to_bytes()?).encode());
        }
        Ok(())
    }

    /// A sender that crashed may submit a payload again; its key is used up then.
    fn on_new_message(&mut self, bytes: &[u8]) -> News {
        let digest = Sha256::digest(bytes).to_vec();
        if self.saved.seen.contains(&digest) {
            return News::Nothing;
        }
        let news = self.on_message(bytes);
        if matches!(news, News::Text(_)) {
            self.saved.seen.push_back(digest);
            if self.saved.seen.len() > SEEN_MAX {
                self.saved.seen.pop_front();
            }
        }
        news
    }

    fn on_message(&mut self, bytes: &[u8]) -> News {
        let parsed = MlsMessageIn::tls_deserialize_exact_bytes(bytes).ok();
        let Some(message) = parsed.and_then(|message| message.try_into_protocol_message().ok()) else {
            return News::Unreadable;
        };
        let id = message.group_id().clone();
        if !self.saved.groups.iter().any(|known| known == id.as_slice()) {
            return News::Unreadable;
        }
        let Ok(Some(mut group)) = MlsGroup::load(self.provider.storage(), &id) else {
            return News::Unreadable;
        };
        let Ok(processed) = group.process_message(&self.provider, message) else { return News::Unreadable };
        if !self.is_peer(processed.credential()) {
            return News::Unreadable;
        }
        let ProcessedMessageContent::ApplicationMessage(text) = processed.into_content() else {
            return News::Unreadable;
        };
        String::from_utf8(text.into_bytes()).map_or(News::Unreadable, News::Text)
    }
}

fn group_config() -> MlsGroupCreateConfig {
    MlsGroupCreateConfig::builder()
        .ciphersuite(SUITE)
        .padding_size(PADDING_BYTES)
        .use_ratchet_tree_extension(true)
        .build()
}

#[cfg(test)]
mod tests;
