//! One run by several workers, as its user would: the binary, `--processes`, and `loadtest agent`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;

use place::{Place, Server, run};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn loadtest() -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_chappe")).with_file_name("loadtest");
    assert!(binary.exists(), "build it first: cargo build --workspace --bins");
    Command::new(binary)
}

struct Bench {
    place: Place,
    _server: Server,
    folder: tempfile::TempDir,
}

/// Ended with the test.
struct Agent {
    child: Child,
    address: String,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bench {
    fn new() -> Self {
        let place = Place::new();
        let server = place.serve(&[]);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("secret"), [7; 32]).unwrap();
        std::fs::write(folder.path().join("other"), [8; 32]).unwrap();
        Self { place, _server: server, folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn agent(&self, allow: &str) -> Agent {
        let mut child = loadtest()
            .args(["agent", "--listen", "127.0.0.1:0", "--allow", allow, "--secret"])
            .arg(self.file("secret"))
            .arg("--token-key")
            .arg(self.place.data().token_private())
            .arg("--ca")
            .arg(self.place.data().certificate())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        // Somebody has to read on, or the agent would stop at a full pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        let address = line.rsplit(' ').next().unwrap().to_owned();
        Agent { child, address }
    }

    fn run(&self, more: &[&str]) -> (Output, String) {
        self.run_at("80", more)
    }

    /// Nobody loses a connection but by an event.
    fn run_at(&self, rate: &str, more: &[&str]) -> (Output, String) {
        let server = format!("wss://{}", self.place.clients);
        let mut command = loadtest();
        command.args([
            "run",
            "chat",
            "--users",
            "40",
            "--rate",
            rate,
            "--duration",
            "4s",
            "--server",
            &server,
        ]);
        command.args(["--set", "sessions.disconnects-percent=0"]);
        command.arg("--data").arg(self.place.path()).arg("--json").arg(self.file("report.json")).args(more);
        let output = run(&mut command);
        let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
        (output, text)
    }

    fn report(&self) -> chappe_loadtest::report::Report {
        serde_json::from_str(&std::fs::read_to_string(self.file("report.json")).unwrap()).unwrap()
    }
}

#[test]
fn two_processes_are_one_run() {
    let bench = Bench::new();
    let storm = "events=[{ at = \"2s\", do = \"storm\" }]";
    let (output, text) = bench.run(&["--processes", "2", "--set", storm]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    let report = bench.report();
    assert_eq!(report.carriers["websocket"], 40, "{text}");
    assert_eq!(report.audit.submits, 320, "{text}");
    assert_eq!(report.faults.len(), 1, "one storm, with both");
    assert_eq!(report.resume.all.count, 40, "everybody was cut: {text}");
    assert!(report.timeline.iter().any(|point| point.sessions == 40), "{text}");
}

#[test]
fn two_agents_are_one_run_and_then_another() {
    let bench = Bench::new();
    let server = bench.place.clients.to_string();
    let (one, two) = (bench.agent(&server), bench.agent(&server));
    let agents = format!("{},{}", one.address, two.address);
    let secret = bench.file("secret").to_string_lossy().into_owned();
    for prefix in ["first-", "second-"] {
        let (output, text) = bench.run(&["--agents", &agents, "--secret", &secret, "--prefix", prefix]);
        assert_eq!(output.status.code(), Some(0), "{text}");
        let report = bench.report();
        assert_eq!((report.carriers["websocket"], report.audit.submits), (40, 320), "{text}");
        assert_eq!(report.audit.accepted, report.audit.received);
    }
}

#[test]
fn an_agent_aims_only_where_it_may_and_for_those_who_know_its_secret() {
    let bench = Bench::new();
    let agent = bench.agent("127.0.0.1:1");
    let secret = |name: &str| bench.file(name).to_string_lossy().into_owned();
    let (output, text) = bench.run(&["--agents", &agent.address, "--secret", &secret("secret")]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("not_allowed") && text.contains(&bench.place.clients.to_string()), "{text}");
    let (output, text) = bench.run(&["--agents", &agent.address, "--secret", &secret("other")]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("worker_gone") && text.contains("secret"), "{text}");
    // And it is there still.
    let (_, text) = bench.run(&["--agents", &agent.address, "--secret", &secret("secret")]);
    assert!(text.contains("not_allowed"), "{text}");
}

#[test]
fn what_the_machine_cannot_carry_is_refused_before_anything_is_done() {
    let bench = Bench::new();
    let (output, text) = bench.run_at("200000", &["--dry-run"]);
    assert_eq!(output.status.code(), Some(64), "{text}");
    assert!(text.contains("cores"), "{text}");
    let (output, text) = bench.run(&["--dry-run"]);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("40 sessions a worker, 320 submits"), "{text}");
    assert!(!bench.file("report.json").exists(), "nothing was run");
}
