//! Bad days of Redis, on servers that the test starts: credentials, TLS, read-only, full, a stale replica promoted.
//! Presence is a hint: none of them may end a session or hold one up, and all of them end by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failed step is a failed test

#[allow(unreachable_pub, reason = "shared by several tests")]
#[path = "common/part.rs"]
mod part;

use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, GatewayId, MailboxId};
use chappe_router::PresenceMetrics;
use chappe_router::presence::{Lease, Presence};
use chappe_router::redis::{RedisConfig, RedisPresence, RedisPresenceError};
use prometheus::Registry;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const ONE: GatewayId = GatewayId([1; 16]);
const TWO: GatewayId = GatewayId([2; 16]);
const MAILBOX: MailboxId = MailboxId([1; 16]);

/// A Redis process; ends with this value.
struct Server {
    port: u16,
    folder: tempfile::TempDir,
    child: Child,
}

impl Server {
    async fn start(options: &[&str]) -> Self {
        Self::start_at(part::free_port(), options).await
    }

    async fn start_at(port: u16, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let binary = part::installed("bin/redis-server");
        let libraries = binary.parent().and_then(Path::parent).unwrap().join("lib");
        let port_option = if options.contains(&"--tls-port") { "--tls-port" } else { "--port" };
        let mut command = Command::new(&binary);
        command.env("LD_LIBRARY_PATH", libraries).args([port_option, &port.to_string()]);
        command.args(["--bind", "127.0.0.1", "--save", "", "--dir"]).arg(folder.path());
        command.args(options.iter().filter(|option| **option != "--tls-port"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let server = Self { port, folder, child };
        let listens = async {
            while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), listens).await.expect("the server listens");
        server
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn tell(&self, words: &[&str]) {
        let client = ::redis::Client::open(self.url()).unwrap();
        let mut operator = client.get_multiplexed_async_connection().await.unwrap();
        let (first, rest) = words.split_first().unwrap();
        let mut command = ::redis::cmd(first);
        command.arg(rest).exec_async(&mut operator).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn open(config: &RedisConfig) -> (RedisPresence, PresenceMetrics) {
    let metrics = PresenceMetrics::new(&Registry::new()).unwrap();
    (RedisPresence::open(config, metrics.clone().into()).unwrap(), metrics)
}

fn lease(gateway: GatewayId, epoch: u64) -> Lease {
    Lease {
        mailbox: MAILBOX,
        device: DeviceId::new("phone").unwrap(),
        gateway,
        epoch: Epoch(epoch),
        resumes: 0,
        connection: ConnectionId([1; 16]),
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let tries = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), tries).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn a_password_is_asked_for_and_a_role_needs_its_rights() {
    let server = Server::start(&["--requirepass", "open sesame"]).await;
    let mut config = RedisConfig::new(server.url(), "c");
    let refused = open(&config).0.check().await.unwrap_err();
    assert!(matches!(refused, RedisPresenceError::Refused(_)), "{refused}");
    assert!(refused.to_string().contains("check user, password"), "{refused}");
    config.password = "open sesame".into();
    let (presence, _) = open(&config);
    presence.check().await.unwrap();
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, [ONE]);

    // A role that may do nothing but say hello.
    let server = Server::start(&[]).await;
    server.tell(&["ACL", "SETUSER", "weak", "on", ">pw", "~*", "+@connection"]).await;
    let config =
        RedisConfig { username: "weak".into(), password: "pw".into(), ..RedisConfig::new(server.url(), "c") };
    let refused = open(&config).0.check().await.unwrap_err();
    assert!(matches!(refused, RedisPresenceError::Refused(_)), "{refused}");
    // The rights that the error names are enough.
    let rights = ["+evalsha", "+script|load", "+time", "+@hash", "+pexpire", "~chappe:*"];
    server.tell(&[&["ACL", "SETUSER", "weak", "resetkeys"][..], &rights[..]].concat()).await;
    let (presence, _) = open(&config);
    presence.check().await.unwrap();
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, [ONE]);
}

#[tokio::test]
async fn tls_is_spoken_and_a_foreign_certificate_is_refused() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let (cert, key) = (cert.to_str().unwrap(), key.to_str().unwrap());
    let files = ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no"];
    let server = Server::start(&[&["--tls-port"][..], &files[..], &["--port", "0"]].concat()).await;
    let url = format!("rediss://127.0.0.1:{}", server.port);
    let trusting =
        |pem: String| RedisConfig { authority_pem: Some(pem.into_bytes()), ..RedisConfig::new(&url, "c") };
    let (presence, _) = open(&trusting(made.cert.pem()));
    presence.check().await.unwrap();
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, [ONE]);
    assert!(open(&trusting(other.cert.pem())).0.check().await.is_err(), "signed by somebody else");
    assert!(open(&RedisConfig::new(server.url(), "c")).0.check().await.is_err(), "it speaks TLS only");
}

/// A replica, or a disk that went read-only: leases count as kept, nobody is known, and all is well again afterwards.
#[tokio::test]
async fn a_redis_that_takes_no_writes_holds_nobody_up() {
    let server = Server::start(&["--repl-diskless-load", "disabled"]).await;
    let (presence, metrics) = open(&RedisConfig::new(server.url(), "c"));
    server.tell(&["REPLICAOF", "127.0.0.1", "1"]).await;
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, []);
    assert!(metrics.calls.with_label_values(&["lease", "error"]).get() > 0, "operators see it");
    server.tell(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, [ONE]);
}

#[tokio::test]
async fn a_full_redis_holds_nobody_up() {
    let server = Server::start(&["--maxmemory-policy", "noeviction"]).await;
    let (presence, metrics) = open(&RedisConfig::new(server.url(), "c"));
    presence.check().await.unwrap();
    server.tell(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, []);
    assert!(metrics.calls.with_label_values(&["lease", "error"]).get() > 0, "operators see it");
    server.tell(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, [ONE]);
}

/// The promoted replica still has an older lease: a hint that is wrong for a while. The next renewal puts it right.
#[tokio::test]
async fn a_stale_replica_is_put_right_by_the_next_renewal() {
    let old = Server::start(&[]).await;
    let (presence, _) = open(&RedisConfig::new(old.url(), "c"));
    assert_eq!(presence.lease(&[lease(ONE, 2)]).await, [true]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &old.port.to_string()]).await;
    let (copy, _) = open(&RedisConfig::new(replica.url(), "c"));
    until("the replica has the lease", || async { copy.gateways(MAILBOX).await == [ONE] }).await;
    // The link breaks; the device moves on; the primary dies and the replica takes its address.
    replica.tell(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(presence.lease(&[lease(TWO, 3)]).await, [true]);
    replica.tell(&["SAVE"]).await;
    let (port, dump) = (old.port, replica.folder.path().join("dump.rdb"));
    drop(old);
    let promoted = Server::start_at(
        port,
        &["--dbfilename", "dump.rdb", "--dir", dump.parent().unwrap().to_str().unwrap()],
    )
    .await;
    until("the stale lease is there", || async { presence.gateways(MAILBOX).await == [ONE] }).await;
    assert_eq!(presence.lease(&[lease(TWO, 3)]).await, [true]);
    assert_eq!(presence.gateways(MAILBOX).await, [TWO]);
    drop(promoted);
}
