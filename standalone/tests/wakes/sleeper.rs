//! A device that sleeps, and the provider that wakes it.

use chappe_client::{Client, Event, Outgoing};
use chappe_fakes::{Entry, Fcm, FcmConfig, Host};
use chappe_node::clock::SystemWorld;
use chappe_protocol::push::{AppName, PushAddress, PushSettings, PushTarget, Quiet};
use chappe_protocol::time::UnixMillis;
use chappe_protocol::world::World;
use chappe_standalone::development::DataDir;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_mins(1);

/// Now, Unix milliseconds.
pub(crate) fn now() -> u64 {
    SystemWorld::new().wall().0
}

/// Where the server is, and its keys.
#[derive(Clone)]
pub(crate) struct Home {
    pub(crate) server: String,
    pub(crate) keys: PathBuf,
}

impl Home {
    async fn client(&self, user: &str, device: &str, state: Option<&Path>) -> Client {
        let keys = DataDir::new(&self.keys);
        let token = chappe_standalone::token::issue(&keys, user, device, 600, SystemWorld::new().wall());
        let mut builder = Client::builder(&self.server)
            .device(device)
            .token(token.unwrap())
            .root_certificates_pem(&std::fs::read(keys.certificate()).unwrap());
        if let Some(state) = state {
            builder = builder.state_dir(state);
        }
        tokio::time::timeout(PATIENCE, builder.connect()).await.expect("connects in time").unwrap()
    }
}

/// A strict provider of one app.
pub(crate) struct Provider {
    pub(crate) fcm: Fcm,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        Self { fcm: Fcm::start(FcmConfig::default()).await.unwrap() }
    }

    /// The settings of whoever sends to it.
    pub(crate) fn settings(&self, folder: &Path) -> PathBuf {
        let path = folder.join("push.toml");
        std::fs::write(&path, self.section("chat", folder)).unwrap();
        path
    }

    /// The part of the settings that is about one app.
    pub(crate) fn section(&self, app: &str, folder: &Path) -> String {
        let file = |name: &str, text: &str| {
            let path = folder.join(format!("{app}-{name}"));
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let account = file("account.json", self.fcm.service_account_json());
        let roots = file("provider.pem", self.fcm.certificate_pem());
        let url = self.fcm.url();
        format!(
            "[providers.fcm.{app}]\nservice_account_file = \"{account}\"\nbase_url = \"{url}\"\nroots_file = \"{roots}\"\n"
        )
    }
}

/// What a provider was asked for.
pub(crate) trait Watched {
    /// Attempts for a token.
    fn attempts(&self, token: &str) -> Vec<Entry>;

    /// Waits for the `count`th attempt, which must come within `bound` of `since` (Unix milliseconds); how long after it came.
    async fn wait_for(&self, token: &str, count: usize, since: u64, bound: Duration) -> Duration;

    /// Waits until the provider has taken one.
    async fn wait_until_taken(&self, token: &str, bound: Duration);

    /// How many attempts there were for a token.
    fn count(&self, token: &str) -> usize {
        self.attempts(token).len()
    }

    /// Attempts for a token since then.
    fn after(&self, token: &str, at_ms: u64) -> usize {
        self.attempts(token).iter().filter(|wake| wake.at_ms > at_ms).count()
    }
}

impl Watched for Host {
    fn attempts(&self, token: &str) -> Vec<Entry> {
        self.record().wakes().into_iter().filter(|wake| wake.target.as_deref() == Some(token)).collect()
    }

    async fn wait_for(&self, token: &str, count: usize, since: u64, bound: Duration) -> Duration {
        let mut record = self.record().follow();
        let waited = tokio::time::timeout(bound + Duration::from_secs(10), async {
            while self.count(token) < count {
                record.changed().await.unwrap();
            }
        });
        let came = waited.await.is_ok();
        let wakes = self.attempts(token);
        assert!(came, "{} wakes of {count} within the bound", wakes.len());
        let after = Duration::from_millis(wakes[count - 1].at_ms.saturating_sub(since));
        assert!(after <= bound, "woken {} ms after the acceptance", after.as_millis());
        for wake in &wakes {
            assert!(!String::from_utf8_lossy(&wake.body).contains("secret"), "it says nothing but sync");
        }
        after
    }

    async fn wait_until_taken(&self, token: &str, bound: Duration) {
        let mut record = self.record().follow();
        let waited = tokio::time::timeout(bound, async {
            while !self.attempts(token).iter().any(Entry::accepted) {
                record.changed().await.unwrap();
            }
        });
        waited.await.expect("taken in time");
    }
}

/// A device that is registered and not attached.
pub(crate) struct Sleeper {
    pub(crate) user: String,
    pub(crate) token: String,
    /// When its last ack was on its way, Unix milliseconds.
    pub(crate) acked: Option<u64>,
    home: Home,
    state: TempDir,
}

impl Sleeper {
    pub(crate) async fn register(home: &Home, provider: &Provider, user: &str) -> Self {
        let token = provider.fcm.new_token();
        let address = PushAddress::Fcm { token: token.clone() };
        Self::register_at(home, user, "chat", address, token).await
    }

    /// Registers an address; the provider's record knows it by `token`.
    pub(crate) async fn register_at(
        home: &Home,
        user: &str,
        app: &str,
        address: PushAddress,
        token: String,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let client = home.client(user, "phone", Some(state.path())).await;
        let app = AppName::new(app).unwrap();
        let target = PushTarget { app, address, registered_at: UnixMillis(0) };
        let settings = PushSettings { targets: vec![target], quiet: Quiet::default() };
        tokio::time::timeout(PATIENCE, client.set_push(settings)).await.expect("in time").unwrap();
        client.close().await;
        Self { user: user.into(), token, acked: None, home: home.clone(), state }
    }

    /// Somebody writes; when that was accepted, Unix milliseconds.
    pub(crate) async fn is_sent(&self) -> u64 {
        let anna = self.home.client("anna", &format!("to-{}", self.user), None).await;
        let outgoing = Outgoing::new("secret").to(&self.user);
        let receipt = tokio::time::timeout(PATIENCE, anna.submit(outgoing)).await.expect("in time").unwrap();
        assert!(receipt.all_accepted());
        let accepted = now();
        anna.close().await;
        accepted
    }

    /// Wakes up, takes what is there, acks, and sleeps again.
    pub(crate) async fn fetch(&mut self, count: usize) {
        let client = self.home.client(&self.user, "phone", Some(self.state.path())).await;
        let mut got = 0;
        let fetched = tokio::time::timeout(PATIENCE, async {
            while got < count {
                if let Event::Envelope(envelope) = client.next_event().await.expect("the client lives") {
                    got += 1;
                    envelope.ack();
                }
            }
        });
        fetched.await.expect("the envelope is there");
        client.close().await;
        self.acked = Some(now());
    }

    /// The device attaches in a process of its own.
    pub(crate) async fn listen(&self) -> Listening {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chappe"));
        command.args(["listen", "--as", &self.user, "--device", "phone", "--server", &self.home.server]);
        command.arg("--data").arg(&self.home.keys).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let listening = Listening(child);
        let attached = tokio::task::spawn_blocking(move || BufReader::new(out).lines().next().is_some());
        assert!(tokio::time::timeout(PATIENCE, attached).await.expect("attaches in time").unwrap());
        listening
    }
}

/// A process that ends with this.
pub(crate) struct Listening(Child);

impl Listening {
    /// Stops it in its tracks.
    pub(crate) fn pause(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        // SIGKILL ends it, stopped or not.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
