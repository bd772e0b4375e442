//! Opens the configured providers, and opens them anew. **Invariant:** a new configuration takes the place of the old one
//! as a whole or not at all, and an app that did not change keeps its connections and tokens.

use super::{ApnsConfig, ApnsEnvironment, ConfigError, FcmConfig, ProvidersConfig, WebPushConfig};
use crate::answers::UNKNOWN_APP;
use crate::apns::{self, Apns, ApnsApp, ApnsSigner};
use crate::fcm::{self, Fcm, ServiceAccount};
use crate::log::Log;
use crate::provider::{Answer, AppKey, Provider, ProviderKind, Wake, Waking};
use crate::transport::{
    Dialer, Origin, PoolLimits, PublicDialer, SystemDialer, SystemResolver, Wires, client_config,
    public_roots, roots_from_pem,
};
use crate::webpush::{BadVapid, Hosts, Vapid, WebPush};
use async_trait::async_trait;
use aws_lc_rs::digest::{Context, Digest, SHA256};
use chappe_protocol::push::{AppName, PushTarget};
use chappe_protocol::world::World;
use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

/// Bytes of a key file or a file of roots.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What providers are made of.
#[derive(Clone)]
pub struct Parts {
    /// Time and randomness.
    pub world: Arc<dyn World>,
    /// Connections run on it.
    pub tasks: TaskTracker,
    /// Per origin.
    pub limits: PoolLimits,
    /// To hosts that the configuration names.
    pub named: Arc<dyn Dialer>,
    /// To hosts that a device names.
    pub stranger: Arc<dyn Dialer>,
}

impl Parts {
    /// Real connections; what devices name must be public.
    pub fn system(world: Arc<dyn World>, tasks: TaskTracker) -> Self {
        let (named, stranger) = (Arc::new(SystemDialer), Arc::new(PublicDialer(SystemResolver)));
        Self { world, tasks, limits: PoolLimits::default(), named, stranger }
    }

    fn wires(&self, dialer: &Arc<dyn Dialer>, tls: Arc<rustls::ClientConfig>) -> Wires {
        Wires {
            tls,
            dialer: dialer.clone(),
            limits: self.limits,
            world: self.world.clone(),
            tasks: self.tasks.clone(),
        }
    }
}

/// Settings and files in one number: what is the same need not be opened again.
type Fingerprint = [u8; 32];

#[derive(Default)]
struct Current {
    apps: BTreeMap<AppKey, (Fingerprint, Arc<dyn Provider>)>,
    /// By key, so that the apps of one team share one token (Apple counts tokens per key).
    signers: BTreeMap<Fingerprint, Arc<ApnsSigner>>,
    logged: BTreeMap<AppName, Arc<dyn Provider>>,
    logged_rest: Option<Arc<dyn Provider>>,
}

/// What a reload did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// Apps that are as they were, with their connections.
    pub kept: usize,
    /// Apps that are new, or changed.
    pub opened: usize,
    /// Apps that are gone.
    pub closed: usize,
}

/// All apps at all providers.
pub struct Providers {
    parts: Parts,
    log: Arc<Log>,
    current: RwLock<Arc<Current>>,
}

impl Providers {
    /// Reads every file that is named. Opens no connection.
    pub fn open(config: &ProvidersConfig, parts: Parts) -> Result<Self, ConfigError> {
        let log = Arc::new(Log::default());
        let (current, _) = build(config, &parts, &log, &Current::default())?;
        Ok(Self { parts, log, current: RwLock::new(Arc::new(current)) })
    }

    /// Reads every file anew. On an error all stays as it was. Wakes in flight end where they began.
    pub fn reload(&self, config: &ProvidersConfig) -> Result<Reloaded, ConfigError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let (fresh, reloaded) = build(config, &self.parts, &self.log, &current)?;
        *current = Arc::new(fresh);
        Ok(reloaded)
    }

    fn current(&self) -> Arc<Current> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was only logged.
    pub fn log(&self) -> &Log {
        &self.log
    }
}

#[async_trait]
impl Waking for Providers {
    fn app_of(&self, target: &PushTarget) -> Option<AppKey> {
        self.current().find(target).map(|(key, _)| key)
    }

    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer {
        let found = self.current().find(target);
        match found {
            Some((_, provider)) => provider.wake(target, wake).await,
            None => UNKNOWN_APP.answer(None, None),
        }
    }
}

impl Current {
    fn find(&self, target: &PushTarget) -> Option<(AppKey, Arc<dyn Provider>)> {
        let key = AppKey { provider: ProviderKind::of(&target.address), app: target.app.clone() };
        if let Some((_, provider)) = self.apps.get(&key) {
            return Some((key, provider.clone()));
        }
        if let Some(provider) = self.logged.get(&target.app) {
            return Some((AppKey { provider: ProviderKind::Log, ..key }, provider.clone()));
        }
        // Devices name the app here: they queue as one, so that they cannot make queues.
        let app = AppName::new("log").ok()?;
        self.logged_rest.clone().map(|provider| (AppKey { provider: ProviderKind::Log, app }, provider))
    }
}

fn build(
    config: &ProvidersConfig,
    parts: &Parts,
    log: &Arc<Log>,
    old: &Current,
) -> Result<(Current, Reloaded), ConfigError> {
    let mut build =
        Build { parts, old, new: Current::default(), reloaded: Reloaded { kept: 0, opened: 0, closed: 0 } };
    for (name, app) in &config.apns {
        build.apns(name, app)?;
    }
    for (name, app) in &config.fcm {
        build.fcm(name, app)?;
    }
    for (name, app) in &config.webpush {
        build.webpush(name, app)?;
    }
    for name in &config.log {
        let provider: Arc<dyn Provider> = log.clone();
        match name.as_str() {
            "*" => build.new.logged_rest = Some(provider),
            name => {
                build.new.logged.insert(Place("log", name).app()?, provider);
            }
        }
    }
    build.reloaded.closed = old.apps.keys().filter(|key| !build.new.apps.contains_key(key)).count();
    Ok((build.new, build.reloaded))
}

/// Where in the configuration.
#[derive(Clone, Copy)]
struct Place<'a>(&'static str, &'a str);

impl Place<'_> {
    fn error(self, code: &'static str, field: &str, hint: impl Display) -> ConfigError {
        ConfigError { code, place: format!("{}.{:?}.{field}", self.0, self.1), hint: hint.to_string() }
    }

    fn app(self) -> Result<AppName, ConfigError> {
        AppName::new(self.1).map_err(|error| ConfigError {
            code: "push_app_name",
            place: format!("{}.{:?}", self.0, self.1),
            hint: error.to_string(),
        })
    }

    fn read(self, field: &str, path: &Path) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        let unreadable = |why: &str| {
            let hint = format!("{} {why}; name a file that the pusher's user may read", path.display());
            self.error("push_file_unreadable", field, hint)
        };
        let file =
            File::open(path).map_err(|error| unreadable(&format!("cannot be opened ({})", error.kind())))?;
        let mut bytes = Zeroizing::new(Vec::new());
        match file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes) {
            Ok(length) if length as u64 <= FILE_BYTES_MAX => Ok(bytes),
            Ok(_) => Err(unreadable("is larger than 1 MiB")),
            Err(error) => Err(unreadable(&format!("cannot be read ({})", error.kind()))),
        }
    }

    fn roots(self, path: Option<&PathBuf>) -> Result<Zeroizing<Vec<u8>>, ConfigError> {
        path.map_or(Ok(Zeroizing::default()), |path| self.read("roots_file", path))
    }

    fn tls(self, pem: &[u8], given: bool) -> Result<Arc<rustls::ClientConfig>, ConfigError> {
        let roots = if given {
            roots_from_pem(pem).map_err(|error| self.error("push_roots_invalid", "roots_file", error))?
        } else {
            public_roots()
        };
        Ok(client_config(roots))
    }

    fn origin(self, url: Option<&String>, usual: &str) -> Result<Origin, ConfigError> {
        let url = url.map_or(usual, String::as_str);
        Origin::parse(url)
            .map_err(|error| self.error("push_url_invalid", "base_url", format!("{error}, without a path")))
    }
}

struct Build<'a> {
    parts: &'a Parts,
    old: &'a Current,
    new: Current,
    reloaded: Reloaded,
}

impl Build<'_> {
    /// Keeps what did not change, else opens it.
    fn place(
        &mut self,
        key: AppKey,
        fingerprint: Fingerprint,
        open: impl FnOnce(&mut Self) -> Result<Arc<dyn Provider>, ConfigError>,
    ) -> Result<(), ConfigError> {
        let kept = self
            .old
            .apps
            .get(&key)
            .filter(|(old, _)| *old == fingerprint)
            .map(|(_, provider)| provider.clone());
        let provider = if let Some(provider) = kept {
            self.reloaded.kept += 1;
            provider
        } else {
            self.reloaded.opened += 1;
            open(self)?
        };
        self.new.apps.insert(key, (fingerprint, provider));
        Ok(())
    }

    fn apns(&mut self, name: &str, config: &ApnsConfig) -> Result<(), ConfigError> {
        let place = Place("apns", name);
        let app = place.app()?;
        for (field, id) in [("key_id", &config.key_id), ("team_id", &config.team_id)] {
            if id.len() != 10 || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
                return Err(place.error(
                    "push_id_invalid",
                    field,
                    "10 letters and digits, from the developer account",
                ));
            }
        }
        let key = place.read("key_file", &config.key_file)?;
        let roots = place.roots(config.roots_file.as_ref())?;
        let signer = self.signer(place, config, &key)?;
        self.place(
            AppKey { provider: ProviderKind::Apns, app },
            fingerprint(config, &[&key, &roots]),
            |build| {
                let usual = match config.environment {
                    ApnsEnvironment::Production => apns::PRODUCTION,
                    ApnsEnvironment::Sandbox => apns::SANDBOX,
                };
                let origin = place.origin(config.base_url.as_ref(), usual)?;
                let wires =
                    build.parts.wires(&build.parts.named, place.tls(&roots, config.roots_file.is_some())?);
                let app = ApnsApp {
                    topic: config.topic.clone(),
                    message: config.message,
                    alert_key: config.alert_key.clone(),
                };
                let apns = Apns::new(&app, signer, &origin, &wires);
                let apns =
                    apns.ok_or_else(|| place.error("push_id_invalid", "topic", "the bundle id of the app"))?;
                Ok(Arc::new(apns))
            },
        )
    }

    fn signer(
        &mut self,
        place: Place<'_>,
        config: &ApnsConfig,
        key: &[u8],
    ) -> Result<Arc<ApnsSigner>, ConfigError> {
        let name = fingerprint(&(&config.key_id, &config.team_id), &[key]);
        if let Some(signer) = self.new.signers.get(&name).or_else(|| self.old.signers.get(&name)) {
            let signer = signer.clone();
            self.new.signers.insert(name, signer.clone());
            return Ok(signer);
        }
        let signer = ApnsSigner::new(key, &config.key_id, &config.team_id, self.parts.world.clone())
            .map_err(|error| {
                place.error("push_key_invalid", "key_file", format!("{error}: the .p8 file as Apple gave it"))
            })?;
        let signer = Arc::new(signer);
        self.new.signers.insert(name, signer.clone());
        Ok(signer)
    }

    fn fcm(&mut self, name: &str, config: &FcmConfig) -> Result<(), ConfigError> {
        let place = Place("fcm", name);
        let app = place.app()?;
        let json = place.read("service_account_file", &config.service_account_file)?;
        let roots = place.roots(config.roots_file.as_ref())?;
        self.place(
            AppKey { provider: ProviderKind::Fcm, app },
            fingerprint(config, &[&json, &roots]),
            |build| {
                let account = ServiceAccount::from_json(&json, config.token_url.as_deref()).map_err(
                    |error| match error {
                        fcm::BadServiceAccount::TokenUri if config.token_url.is_some() => {
                            place.error("push_url_invalid", "token_url", "an https address")
                        }
                        error @ (fcm::BadServiceAccount::Form
                        | fcm::BadServiceAccount::Key
                        | fcm::BadServiceAccount::TokenUri) => {
                            place.error("push_service_account_invalid", "service_account_file", error)
                        }
                    },
                )?;
                let origin = place.origin(config.base_url.as_ref(), fcm::GOOGLE)?;
                let wires =
                    build.parts.wires(&build.parts.named, place.tls(&roots, config.roots_file.is_some())?);
                let fcm = Fcm::new(account, config.project.as_deref(), origin, &wires);
                let fcm = fcm.ok_or_else(|| {
                    place.error("push_id_invalid", "project", "the project's id, not its name")
                })?;
                Ok(Arc::new(fcm))
            },
        )
    }

    fn webpush(&mut self, name: &str, config: &WebPushConfig) -> Result<(), ConfigError> {
        let place = Place("webpush", name);
        let app = place.app()?;
        let key = place.read("vapid_key_file", &config.vapid_key_file)?;
        let roots = place.roots(config.roots_file.as_ref())?;
        self.place(
            AppKey { provider: ProviderKind::WebPush, app },
            fingerprint(config, &[&key, &roots]),
            |build| {
                let vapid = Vapid::new(&key, &config.subject).map_err(|error| match error {
                    BadVapid::Key => place.error("push_key_invalid", "vapid_key_file", error),
                    BadVapid::Subject => place.error("push_subject_invalid", "subject", error),
                })?;
                let hosts = Hosts::new(&config.allowed_hosts, &config.private_hosts).map_err(|error| {
                    place.error("push_hosts_invalid", "allowed_hosts", format!("{error}; and at least one"))
                })?;
                let wires =
                    build.parts.wires(&build.parts.stranger, place.tls(&roots, config.roots_file.is_some())?);
                let named = build.parts.named.clone();
                Ok(Arc::new(WebPush::new(vapid, hosts, config.services_max, wires, named)))
            },
        )
    }
}

/// The settings print no secret: those are in the files.
fn fingerprint(settings: &impl Debug, files: &[&[u8]]) -> Fingerprint {
    let mut context = Context::new(&SHA256);
    let mut add = |bytes: &[u8]| {
        context.update(&(bytes.len() as u64).to_be_bytes());
        context.update(bytes);
    };
    add(format!("{settings:?}").as_bytes());
    for file in files {
        add(file);
    }
    let digest: Digest = context.finish();
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.as_ref());
    fingerprint
}
