//! The provider: the strict fake of APNs, in a process of its own, so that its work is not counted.

use chappe_fakes::{Apns, ApnsConfig, HostConfig, Step};
use chappe_node::clock::SystemWorld;
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushTarget};
use chappe_protocol::time::UnixMillis;
use chappe_pusher::config::{ApnsConfig as AppConfig, Parts, Providers, ProvidersConfig};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::task::TaskTracker;

/// First argument of the provider's process; streams, milliseconds and a folder follow.
pub(super) const MODE: &str = "--serve-as-provider";
pub(super) const APP: &str = "app";
const TOPIC: &str = "org.example.chappe";
const TEAM: &str = "CHAPPETEAM";

/// The provider's process: until its standard input ends.
pub(super) fn serve() {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let (streams_max, delay_ms) = (arguments[0].parse().unwrap(), arguments[1].parse().unwrap());
    let folder = PathBuf::from(&arguments[2]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let host = HostConfig { streams_max, ..HostConfig::default() };
        let config = ApnsConfig { host, team_id: TEAM.into(), topics: vec![TOPIC.into()] };
        let apns = Apns::start(config).await.unwrap();
        if delay_ms > 0 {
            apns.script().always(Some(Step::Slow(Duration::from_millis(delay_ms))));
        }
        std::fs::write(folder.join("key.p8"), &apns.key().private_key_pem).unwrap();
        std::fs::write(folder.join("roots.pem"), apns.certificate_pem()).unwrap();
        println!("{} {}", apns.url(), apns.key().key_id);
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    });
}

pub(super) struct Peer {
    child: Child,
    stdin: Option<ChildStdin>,
    folder: tempfile::TempDir,
    url: String,
    key_id: String,
}

impl Peer {
    pub(super) fn start(streams: usize, delay: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([MODE, &streams.to_string(), &delay.as_millis().to_string()])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let (url, key_id) = line.trim().split_once(' ').unwrap();
        Self { stdin: child.stdin.take(), child, folder, url: url.into(), key_id: key_id.into() }
    }

    /// The pusher's providers, with so many connections.
    pub(super) fn providers(&self, connections_max: usize) -> Arc<Providers> {
        let app = AppConfig {
            key_file: self.folder.path().join("key.p8"),
            key_id: self.key_id.clone(),
            team_id: TEAM.into(),
            topic: TOPIC.into(),
            environment: chappe_pusher::config::ApnsEnvironment::Production,
            message: chappe_pusher::apns::MessageWake::default(),
            alert_key: "sync".into(),
            base_url: Some(self.url.clone()),
            roots_file: Some(self.folder.path().join("roots.pem")),
        };
        let config =
            ProvidersConfig { apns: BTreeMap::from([(APP.into(), app)]), ..ProvidersConfig::default() };
        let mut parts = Parts::system(Arc::new(SystemWorld::new()), TaskTracker::new());
        parts.limits.connections_max = connections_max;
        Arc::new(Providers::open(&config, parts).unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.stdin.take());
        self.child.wait().unwrap();
    }
}

/// The `number`th device's target.
pub(super) fn target(number: usize) -> PushTarget {
    let mut token = vec![0xA5; 32];
    token[..8].copy_from_slice(&number.to_be_bytes());
    let address = PushAddress::Apns { token, kind: ApnsKind::Alert };
    PushTarget { app: AppName::new(APP).unwrap(), address, registered_at: UnixMillis(1) }
}
