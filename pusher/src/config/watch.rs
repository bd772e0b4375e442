//! Reads the providers' files anew when they change. **Invariant:** what cannot be used changes nothing, and is told.

use super::{Providers, ProvidersConfig};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use tokio::sync::watch::Receiver;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(30);

impl Providers {
    /// Reads every file anew when `reloads` changes (SIGHUP) and when a file's time of change does, looked at every 30 s; then
    /// calls `renewed`. Never returns.
    pub async fn reload_on(
        &self,
        config: ProvidersConfig,
        mut reloads: Receiver<u64>,
        renewed: impl Fn() + Send,
    ) {
        let mut seen = changed_at(&config);
        let mut told = true;
        loop {
            tokio::select! {
                biased;
                changed = reloads.changed(), if told => {
                    told = changed.is_ok();
                    if !told { continue }
                }
                () = tokio::time::sleep(LOOK_EVERY) => {
                    let now = changed_at(&config);
                    if now == seen { continue }
                    seen = now;
                }
            }
            match self.reload(&config) {
                Ok(reloaded) => {
                    let (kept, opened) = (reloaded.kept, reloaded.opened);
                    tracing::info!(kept, opened, "the providers' keys were read anew");
                    renewed();
                }
                Err(error) => tracing::error!("{error}; the old keys stay"),
            }
        }
    }
}

fn changed_at(config: &ProvidersConfig) -> Vec<Option<SystemTime>> {
    let apns = config.apns.values().flat_map(|app| [Some(&app.key_file), app.roots_file.as_ref()]);
    let fcm = config.fcm.values().flat_map(|app| [Some(&app.service_account_file), app.roots_file.as_ref()]);
    let webpush =
        config.webpush.values().flat_map(|app| [Some(&app.vapid_key_file), app.roots_file.as_ref()]);
    let files = apns.chain(fcm).chain(webpush).flatten();
    files.map(|path: &PathBuf| std::fs::metadata(path).and_then(|meta| meta.modified()).ok()).collect()
}
