//! NATS servers that a test starts for itself, from the binary that `dev/deps` installed.
#![allow(unreachable_pub, reason = "the other modules use it")]

use crate::support::until;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A server process; ends with this value.
pub struct Server {
    pub port: u16,
    pub folder: tempfile::TempDir,
    config: String,
    child: Option<Child>,
}

impl Server {
    /// Starts one with this text in its configuration beside the address.
    pub async fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let config = config.replace("{{folder}}", folder.path().to_str().unwrap());
        let mut server = Self { port, folder, config, child: None };
        server.up().await;
        server
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Starts it, at the same address as before.
    pub async fn up(&mut self) {
        let file = self.folder.path().join("nats.conf");
        let text = format!("listen: \"127.0.0.1:{}\"\n{}\n", self.port, self.config);
        std::fs::write(&file, text).unwrap();
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(binary());
        let command = command.arg("--config").arg(&file).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let port = self.port;
        until("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    }

    /// As SIGKILL.
    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.down();
    }
}

/// A port that nobody uses now.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[allow(clippy::disallowed_methods, reason = "tests are told where the parts are")]
fn binary() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let deps = std::env::var("CHAPPE_TEST_DEPS_DIR").map_or_else(|_| root.join(".deps"), PathBuf::from);
    let installed = deps.join("installed");
    let folders = std::fs::read_dir(&installed).into_iter().flatten().map(|folder| folder.unwrap().path());
    let mut found: Vec<PathBuf> =
        folders.map(|folder| folder.join("nats-server")).filter(|file| file.is_file()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no NATS server in {}: dev/deps install nats1", installed.display()))
}
