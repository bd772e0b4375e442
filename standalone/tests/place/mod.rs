//! A place for one server process: a data directory and two free ports. **Invariant:** what is started is ended by its pid.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(missing_docs, unreachable_pub, reason = "helpers of tests")]

#[path = "../ports/mod.rs"]
pub mod ports;

use chappe_standalone::development::DataDir;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

pub struct Place {
    folder: tempfile::TempDir,
    pub clients: SocketAddr,
    pub admin: SocketAddr,
}

impl Place {
    pub fn new() -> Self {
        let [clients, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], ports::free_port())));
        Self { folder: tempfile::tempdir().unwrap(), clients, admin }
    }

    pub fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    pub fn data(&self) -> DataDir {
        DataDir::new(&self.path())
    }

    pub fn serve_command(&self, more: &[&str]) -> Vec<String> {
        let data = self.path().to_string_lossy().into_owned();
        let (clients, admin) = (self.clients.to_string(), self.admin.to_string());
        let fixed =
            [env!("CARGO_BIN_EXE_chappe"), "serve", "--data", &data, "--listen", &clients, "--admin", &admin];
        fixed.iter().chain(more).map(ToString::to_string).collect()
    }

    /// Starts a server and waits until it greets.
    pub fn serve(&self, more: &[&str]) -> Server {
        let command = self.serve_command(more);
        let mut child = Command::new(&command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let greeting = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("Chappe serves"));
        assert!(greeting.is_some(), "the server did not start: {:?}", child.wait());
        // Somebody has to read on, or the server would stop at a full pipe.
        let log = std::thread::spawn(move || lines.map_while(Result::ok).collect());
        Server { child, log: Some(log) }
    }

    /// Runs `chappe` with these arguments to its end.
    pub fn chappe(&self, arguments: &[&str]) -> Output {
        run(Command::new(env!("CARGO_BIN_EXE_chappe")).args(arguments).current_dir(self.folder.path()))
    }
}

/// Runs a command to its end, at most 60 s.
pub fn run(command: &mut Command) -> Output {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..6000 {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it did not end: {:?}", child.wait_with_output());
}

pub struct Server {
    child: Child,
    log: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Server {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM, then its exit code and what it logged since the greeting.
    pub fn stop(mut self) -> (Option<i32>, Vec<String>) {
        let told = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(told.success());
        let status = self.child.wait().unwrap();
        (status.code(), self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already ended after `stop`: then both fail, which is right.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
