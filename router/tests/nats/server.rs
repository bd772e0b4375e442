//! NATS servers that a test starts for itself, from the binary that `dev/deps` installed.
#![allow(unreachable_pub, reason = "the other modules use it")]

pub use crate::common::part::free_port;
use crate::common::part::installed;
use crate::support::until;
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
        let mut command = Command::new(installed("nats-server"));
        let command = command.arg("--config").arg(&file).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let port = self.port;
        until("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()).await;
    }

    /// Another text in its configuration, from the next start on.
    pub fn reconfigure(&mut self, config: &str) {
        self.config = config.replace("{{folder}}", self.folder.path().to_str().unwrap());
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
