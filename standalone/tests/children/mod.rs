//! Runs the binary: a server that can be killed, and clients whose lines can be read. **Invariant:** whatever happens to
//! the test, its children end with it, and nothing waits longer than a minute.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "shared test support"
)]

#[path = "../ports/mod.rs"]
mod ports;

use ports::free_port;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_mins(1);

/// A data directory, two ports and the server on them.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub listen: u16,
    admin: u16,
    plain: bool,
    more: Vec<String>,
    server: Option<Child>,
}

impl Place {
    pub fn start(plain: bool) -> Self {
        Self::start_with(plain, "")
    }

    /// With these settings beside the others.
    pub fn start_with(plain: bool, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (listen, admin) = (free_port(), free_port());
        let file = folder.path().join("chappe.toml");
        std::fs::write(&file, settings).unwrap();
        let more = vec!["--config".to_owned(), file.to_string_lossy().into_owned()];
        let mut place = Self { folder, listen, admin, plain, more, server: None };
        place.serve();
        place
    }

    pub fn admin_address(&self) -> String {
        format!("127.0.0.1:{}", self.admin)
    }

    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    pub fn serve(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_chappe"));
        command.args(["serve", "--log", "debug", "--data"]).arg(self.data());
        command.args(["--listen", &format!("127.0.0.1:{}", self.listen)]);
        command.args(["--admin", &format!("127.0.0.1:{}", self.admin)]);
        command.args(&self.more);
        if self.plain {
            command.arg("--no-tls");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        let up = || TcpStream::connect(("127.0.0.1", self.listen)).is_ok();
        wait_for("the server", up);
    }

    /// As `kill -9`.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let scheme = if self.plain { "ws" } else { "wss" };
        self.command_at(&format!("{scheme}://127.0.0.1:{}", self.listen), verb, arguments)
    }

    pub fn command_at(&self, server: &str, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chappe"));
        command.arg(verb).args(arguments).args(["--server", server, "--data"]).arg(self.data());
        command
    }

    /// Runs to the end with this input.
    pub fn run(&self, verb: &str, arguments: &[&str], input: &[u8]) -> Output {
        let mut command = self.command(verb, arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Starts a client; its remarks go to the file `name`.log.
    pub fn client(&self, name: &str, command: Command) -> Client {
        Client::start(self.folder.path().join(format!("{name}.log")), command)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A client that runs beside the test.
pub struct Client {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    pub log: PathBuf,
}

impl Client {
    fn start(log: PathBuf, mut command: Command) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = sync_channel(10_000);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self { input: child.stdin.take(), child, lines, log }
    }

    pub fn type_line(&mut self, line: &str) {
        let input = self.input.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
    }

    pub fn end_input(&mut self) {
        self.input = None;
    }

    pub fn line(&self) -> String {
        let log = || std::fs::read_to_string(&self.log).unwrap_or_default();
        self.lines
            .recv_timeout(PATIENCE)
            .unwrap_or_else(|error| panic!("no line ({error}); it says:\n{}", log()))
    }

    pub fn lines(&self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.line()).collect()
    }

    pub fn remarks(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Ends its input; returns whether it ended well, and the lines nobody has read.
    pub fn end(mut self) -> (bool, Vec<String>) {
        self.end_input();
        let mut status = None;
        wait_for("the client's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let rest = std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).collect();
        (status.unwrap().success(), rest)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again, for a minute.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let step = Duration::from_millis(20);
    for _ in 0..PATIENCE.as_millis() / step.as_millis() {
        if done() {
            return;
        }
        std::thread::sleep(step);
    }
    panic!("waited a minute for {what}");
}

pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The files at or below a path that contain a text.
pub fn files_with(path: &Path, text: &str) -> Vec<PathBuf> {
    if path.is_dir() {
        let inside = std::fs::read_dir(path).unwrap();
        return inside.flat_map(|entry| files_with(&entry.unwrap().path(), text)).collect();
    }
    if contains(&std::fs::read(path).unwrap(), text) { vec![path.to_owned()] } else { Vec::new() }
}
