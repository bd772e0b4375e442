//! `loadtest proxy` as a person runs it. **Invariant:** it says where it listens, what happened, and what was wrong.

use crate::some_address;
use std::io::{BufRead, BufReader, Read};
use std::net::UdpSocket;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.arg("proxy").args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

fn told(arguments: &str) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = command(arguments).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

/// Starts it and waits until it listens; at `listening` it does.
fn started(arguments: &str) -> Option<(Child, String)> {
    let mut child = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        assert_eq!(child.wait().unwrap().code(), Some(2), "only a taken port is no failure of the test");
        return None;
    }
    Some((child, line))
}

#[test]
fn wrong_use_ends_with_64_and_a_reason() {
    let named = "--listen 127.0.0.1:7450 --target 127.0.0.1:7440";
    for (arguments, word) in [
        ("--target 127.0.0.1:7440".to_owned(), "--listen"),
        ("--listen 127.0.0.1:7450".to_owned(), "--target"),
        (format!("{named} --loss 120%"), "try 2% or 0.02"),
        (format!("{named} --latency soon"), "try 30s or 5m"),
        (format!("{named} --latency 2m"), "--latency: at most 60 s"),
        (
            "--listen 127.0.0.1:7440 --target 127.0.0.1:7440".to_owned(),
            "--target: 127.0.0.1:7440 is the proxy itself",
        ),
    ] {
        let (code, text) = told(&arguments);
        assert_eq!(code, Some(64), "{arguments}: {text}");
        assert!(text.contains(word), "{arguments}: {text}");
    }
}

#[test]
fn help_shows_examples() {
    let (code, text) = told("--help");
    assert_eq!(code, Some(0));
    assert!(text.contains("Examples:") && text.contains("--black-hole-every 60s"), "{text}");
}

#[test]
fn it_passes_packets_counts_them_and_ends_on_sigterm() {
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ends = format!("--target {} --udp-only --rebind-every 1h", target.local_addr().unwrap());
    let (mut child, listen, line) = (0..100)
        .find_map(|_| {
            let listen = some_address();
            let (child, line) = started(&format!("--listen {listen} {ends}"))?;
            Some((child, listen, line))
        })
        .unwrap();
    assert!(line.starts_with(&format!("listening on {listen} (UDP), target")), "{line}");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"hello", listen).unwrap();
    target.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = target.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
    target.send_to(b"and back", from).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap().1, listen);
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    let mut text = String::new();
    child.stderr.as_mut().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
    assert!(text.contains("to target 1 packets 5 bytes, to client 1 packets 8 bytes"), "{text}");
}

#[test]
fn it_breaks_and_mends_the_path_by_its_timers_and_ends_by_itself() {
    let target = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ends = format!("--target {} --udp-only --duration 2s", target.local_addr().unwrap());
    let faults = "--rebind-every 200ms --black-hole-every 600ms --black-hole-for 300ms";
    let (mut child, listen) = (0..100)
        .find_map(|_| {
            let listen = some_address();
            Some((started(&format!("--listen {listen} {ends} {faults}"))?.0, listen))
        })
        .unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut stderr = child.stderr.take().unwrap();
    // Knocks until it has ended; where nobody listens any more, sending may fail.
    while child.try_wait().unwrap().is_none() {
        let _ = client.send_to(b"knock", listen);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut text = String::new();
    stderr.read_to_string(&mut text).unwrap();
    assert!(text.contains(" swallowed") && !text.contains("udp: 0 open, to target 0 packets"), "{text}");
    assert!(!text.contains(" 0 rebound"), "{text}");
}
