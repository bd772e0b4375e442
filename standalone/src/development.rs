//! Keys and certificates that a fresh data directory makes for itself, so that one command is enough on one's own machine.
//! **Invariant:** private files are readable by their owner only, and are written whole or not at all.

use anyhow::{Context, Result};
use base64::Engine as _;
use chappe_protocol::world::World;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where things lie in a data directory.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
}

impl DataDir {
    /// The layout under `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The slot log.
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// The self-made certificate; clients on this machine trust it.
    pub fn certificate(&self) -> PathBuf {
        self.root.join("development").join("certificate.pem")
    }

    /// Its private key.
    pub fn certificate_key(&self) -> PathBuf {
        self.root.join("development").join("certificate-key.pem")
    }

    /// The public half of the self-made token key.
    pub fn token_public(&self) -> PathBuf {
        self.root.join("development").join("token-public.pem")
    }

    /// The private half: `chappe token` signs with it.
    pub fn token_private(&self) -> PathBuf {
        self.root.join("development").join("token-private.pem")
    }

    /// Signs resume tokens.
    pub fn resume_key(&self) -> PathBuf {
        self.root.join("resume.key")
    }

    /// Seals what devices say about being woken.
    pub fn push_key(&self) -> PathBuf {
        self.root.join("push.key")
    }

    /// Opens the operators' calls of the admin port.
    pub fn admin_token(&self) -> PathBuf {
        self.root.join("admin.token")
    }

    /// State of the command line's own clients: cursors, outboxes, keys of conversations.
    pub fn client_state(&self, user: &str, device: &str) -> PathBuf {
        self.root.join("clients").join(file_name(user)).join(device)
    }

    /// Makes what is missing: directory, certificate, token key, resume key, push key, admin token.
    pub fn prepare(&self, world: &dyn World) -> Result<()> {
        for folder in [self.root.clone(), self.root.join("development")] {
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        match std::fs::set_permissions(&self.root, std::fs::Permissions::from_mode(0o700)) {
            // A volume that an orchestrator made for us: it decides who enters. Each of our files is private by itself.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                tracing::info!("{} belongs to somebody else: its permissions stay", self.root.display());
            }
            done => done.with_context(|| format!("cannot make {} private", self.root.display()))?,
        }
        if !self.certificate().exists() {
            let (certificate, key) =
                chappe_node::tls::development_certificate().map_err(anyhow::Error::msg)?;
            write_private(&self.certificate_key(), key.as_bytes())?;
            write_private(&self.certificate(), certificate.as_bytes())?;
        }
        if !self.token_public().exists() {
            let (public, private) = chappe_node::tls::development_token_key().map_err(anyhow::Error::msg)?;
            write_private(&self.token_private(), private.as_bytes())?;
            write_private(&self.token_public(), public.as_bytes())?;
        }
        if !self.resume_key().exists() {
            let mut key = [0; 32];
            world.fill_random(&mut key);
            write_private(&self.resume_key(), &key)?;
        }
        if !self.push_key().exists() {
            let mut key = [0; 32];
            world.fill_random(&mut key);
            let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key);
            write_private(&self.push_key(), text.as_bytes())?;
        }
        if !self.admin_token().exists() {
            write_private(&self.admin_token(), chappe_router::operations::fresh_token(world).as_bytes())?;
        }
        Ok(())
    }

    /// The key that signs resume tokens.
    pub fn read_resume_key(&self) -> Result<[u8; 32]> {
        let path = self.resume_key();
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        bytes.try_into().map_err(|_| {
            anyhow::anyhow!("{} must hold 32 bytes; delete it to have it made anew", path.display())
        })
    }
}

/// A user's name as the name of a folder: letters and digits stay, everything else becomes its hexadecimal bytes.
fn file_name(user: &str) -> String {
    user.bytes()
        .map(|byte| match byte {
            b'-' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => char::from(byte).to_string(),
            _ => format!("_{byte:02x}"),
        })
        .collect()
}

/// Writes a file that only its owner can read: beside its place, synced, then renamed.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        let mut file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        match path.parent() {
            Some(folder) => std::fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    };
    written().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_router::settings::PushKeySettings;

    #[test]
    fn what_is_made_is_private_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::new(&folder.path().join("data"));
        let world = chappe_protocol::testing::TestWorld::new(1);
        data.prepare(&world).unwrap();
        let first = std::fs::read(data.token_private()).unwrap();
        let keys = [data.token_private(), data.certificate_key(), data.resume_key(), data.push_key()];
        for path in keys.into_iter().chain([data.admin_token()]) {
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} is readable by others", path.display());
        }
        data.prepare(&world).unwrap();
        assert_eq!(std::fs::read(data.token_private()).unwrap(), first);
        data.read_resume_key().unwrap();
        let push = PushKeySettings::default().open_or(Some(&data.push_key())).unwrap();
        assert!(push.is_some(), "a key that a gateway takes");
    }

    #[test]
    fn names_of_users_cannot_leave_their_folder() {
        assert_eq!(file_name("../a b"), "_2e_2e_2fa_20b");
        assert_ne!(file_name("a_"), file_name("a"));
    }
}
