//! The keys of push targets at rest: gateways seal with them, pushers open. **Invariant:** a key is read like a secret, and no
//! error shows a part of it.

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_node::config::{ConfigError, read_secret};
use chappe_storage::sealed::{PUSH_KEY_BYTES, PushKeys};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Keys of push targets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PushKeySettings {
    /// File with the key that seals push targets: 32 random bytes in hexadecimal or base64url, the same on all gateways and pushers.
    pub key: PathBuf,
    /// Files with earlier keys: what they have sealed still opens.
    pub older_keys: Vec<PathBuf>,
}

impl PushKeySettings {
    /// Whether there is a key.
    pub fn is_set(&self) -> bool {
        super::is_set(&self.key)
    }

    /// Refuses older keys without a present one.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !self.is_set() && !self.older_keys.is_empty() {
            return Err(ConfigError::value(
                "push.older_keys",
                "older keys only open; name the present one in push.key",
            ));
        }
        Ok(())
    }

    /// The keys; there must be a present one.
    pub fn open(&self) -> Result<PushKeys> {
        self.open_with(&self.key)
    }

    /// The keys with the present one of the settings, else the self-made one; `None`: there is neither.
    pub fn open_or(&self, self_made: Option<&Path>) -> Result<Option<PushKeys>> {
        if self.is_set() {
            return self.open().map(Some);
        }
        self_made.map(|path| self.open_with(path)).transpose()
    }

    fn open_with(&self, current: &Path) -> Result<PushKeys> {
        let current = read_key(current, "push.key")?;
        let older = self.older_keys.iter().map(|path| read_key(path, "push.older_keys"));
        let older = older.collect::<Result<Vec<_>, _>>()?;
        Ok(PushKeys::new(&current, &older)?)
    }
}

fn read_key(path: &Path, setting: &str) -> Result<[u8; PUSH_KEY_BYTES], ConfigError> {
    let refused = || {
        let hint = format!(
            "{} must hold 32 random bytes in hexadecimal or base64url (openssl rand -hex 32)",
            path.display()
        );
        ConfigError::value(setting, hint)
    };
    parse_key(&read_secret(path, setting)?).ok_or_else(refused)
}

fn parse_key(text: &str) -> Option<[u8; PUSH_KEY_BYTES]> {
    if text.len() != 2 * PUSH_KEY_BYTES {
        return URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?.try_into().ok();
    }
    let mut key = [0; PUSH_KEY_BYTES];
    for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |letter: u8| char::from(letter).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_protocol::id::{DeviceId, MailboxId};
    use chappe_protocol::push::PushSettings;
    use chappe_protocol::testing::TestWorld;

    #[test]
    fn a_key_is_hexadecimal_or_base64url_and_nothing_else() {
        let key: [u8; 32] = std::array::from_fn(|n| u8::try_from(n * 8 + 7).unwrap());
        let hex = key.map(|byte| format!("{byte:02x}")).concat();
        let base64 = URL_SAFE_NO_PAD.encode(key);
        for good in [&hex, &hex.to_uppercase(), &base64, &format!("{base64}=")] {
            assert_eq!(parse_key(good), Some(key), "{good}");
        }
        for bad in ["", &hex[2..], &base64[1..], &hex.replace('f', "g"), &"ä".repeat(32), "password"] {
            assert_eq!(parse_key(bad), None, "{bad}");
        }
    }

    #[test]
    fn older_keys_open_and_a_bad_file_names_its_setting_and_not_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let old = PushKeySettings { key: file("one", &"11".repeat(32)), older_keys: Vec::new() };
        let both = PushKeySettings {
            key: file("two", &format!("{}\n", "22".repeat(32))),
            older_keys: vec![old.key.clone()],
        };
        let (mailbox, device) = (MailboxId([1; 16]), DeviceId::new("phone").unwrap());
        let sealed =
            old.open().unwrap().seal(&PushSettings::default(), mailbox, &device, &TestWorld::new(1)).unwrap();
        both.open().unwrap().open(&sealed, mailbox, &device).unwrap();
        let made = PushKeySettings::default().open_or(Some(&old.key)).unwrap().unwrap();
        made.open(&sealed, mailbox, &device).unwrap();
        assert!(PushKeySettings::default().open_or(None).unwrap().is_none());
        let bad = PushKeySettings { older_keys: vec![file("bad", "kvqzkvqz")], ..both.clone() };
        let text = bad.open().unwrap_err().to_string();
        assert!(text.contains("push.older_keys") && !text.contains("kvqz"), "{text}");
        let lonely = PushKeySettings { key: PathBuf::new(), ..both };
        assert!(lonely.check().unwrap_err().to_string().contains("push.older_keys"));
        assert!(PushKeySettings::default().open().is_err());
    }
}
