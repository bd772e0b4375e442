//! The provider that wakes the devices of a run: the strict fake of APNs. **Invariant:** a token says by itself which device
//! of this run it is of; any other is a stranger's.

use super::Wake;
use super::audit::Attempt;
use anyhow::{Context, Result};
use chappe_fakes::{Apns, ApnsConfig, Entry, HostConfig, Kind, Step};
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushSettings, PushTarget, Quiet};
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use std::path::Path;

/// The app's name in registrations and settings.
const APP: &str = "load";

/// A provider that listens.
pub struct Provider {
    apns: Apns,
    /// Tells this run's tokens from others'.
    run: [u8; 28],
}

impl Provider {
    /// Listens, and writes the settings of whoever is to ask it.
    pub async fn start(wake: &Wake, world: &dyn World) -> Result<Self> {
        let mut run = [0; 28];
        world.fill_random(&mut run);
        let host = HostConfig { address: wake.provider_listen, ..HostConfig::default() };
        let apns = Apns::start(ApnsConfig { host, ..ApnsConfig::default() }).await.with_context(|| {
            format!(
                "the provider cannot listen on {}; choose another --provider-listen",
                wake.provider_listen
            )
        })?;
        let provider = Self { apns, run };
        provider.write(&wake.provider_settings)?;
        Ok(provider)
    }

    fn write(&self, settings: &Path) -> Result<()> {
        let folder = settings.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or_else(|| Path::new("."));
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let folder = folder.canonicalize()?;
        let (key, roots) = (folder.join("provider-key.p8"), folder.join("provider-roots.pem"));
        let apple = self.apns.key();
        write(&key, &apple.private_key_pem)?;
        write(&roots, self.apns.certificate_pem())?;
        let topic = self.apns.topics().first().map_or("", String::as_str);
        let text = format!(
            "# The provider of a load test; it ends with it.\n[providers.apns.{APP}]\nkey_file = \"{}\"\nkey_id = {:?}\nteam_id = {:?}\n\
             topic = {topic:?}\nbase_url = {:?}\nroots_file = \"{}\"\n",
            key.display(),
            apple.key_id,
            apple.team_id,
            self.apns.url(),
            roots.display(),
        );
        write(settings, &text)
    }

    /// How a device registers.
    pub(super) fn registration(&self, device: u32) -> Result<PushSettings> {
        let token = [&device.to_be_bytes()[..], &self.run[..]].concat();
        let app = AppName::new(APP).context("the app's name")?;
        let address = PushAddress::Apns { token, kind: ApnsKind::Alert };
        let target = PushTarget { app, address, registered_at: UnixMillis(0) };
        Ok(PushSettings { targets: vec![target], quiet: Quiet::default() })
    }

    /// From now on every wake is answered 503, or as it should be.
    pub(super) fn fail(&self, fails: bool) {
        self.apns.script().always(fails.then(|| Step::answer(503, "ServiceUnavailable").into()));
    }

    /// Tells every attempt to `hear`, with its device; `None`: a stranger's. Never ends.
    pub(super) async fn follow(&self, mut hear: impl FnMut(Option<u32>, Attempt)) {
        let (mut record, mut last) = (self.apns.record().follow(), 0);
        loop {
            for entry in self.apns.record().after(last) {
                last = entry.number;
                if entry.kind == Kind::Wake {
                    hear(self.device(&entry), Attempt { at_ms: entry.at_ms, taken: entry.accepted() });
                }
            }
            if record.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    fn device(&self, entry: &Entry) -> Option<u32> {
        let (device, run) = entry.target.as_deref()?.split_at_checked(8)?;
        // Hex, in small letters.
        let byte = |at: usize| run.get(2 * at..2 * at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
        let ours = run.len() == 56 && (0..28).map(byte).eq(self.run.iter().copied().map(Some));
        if ours { u32::from_str_radix(device, 16).ok() } else { None }
    }

    pub(super) async fn close(&self) {
        self.apns.close().await;
    }
}
