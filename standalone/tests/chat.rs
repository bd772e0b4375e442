//! `chappe chat` as two people use it: real processes, a real server, and a server that dies.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod children;

use children::{Client, Place, contains, files_with, wait_for};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const CANARY: &str = "the canary sings at dawn";

fn chat(place: &Place, who: &str, with: &str, more: &[&str]) -> Client {
    place.client(who, place.command("chat", &[&["--as", who, "--to", with], more].concat()))
}

fn numbered(prefix: &str, from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("{prefix}{number}")).collect()
}

fn from(who: &str, lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| format!("{who}: {line}")).collect()
}

#[test]
fn a_conversation_survives_a_killed_server_and_restarted_clients() {
    let mut place = Place::start(false);
    let mut anna = chat(&place, "anna", "ben", &[]);
    anna.type_line(CANARY);
    let mut ben = chat(&place, "ben", "anna", &[]);
    assert_eq!(ben.line(), format!("anna: {CANARY}"));
    let (a, b) = (numbered("a", 0, 30), numbered("b", 0, 30));
    let speak = |client: &mut Client, lines: &[String]| lines.iter().for_each(|line| client.type_line(line));
    speak(&mut anna, &a[..10]);
    speak(&mut ben, &b[..5]);
    assert_eq!(anna.lines(5), from("ben", &b[..5]));
    place.kill();
    speak(&mut anna, &a[10..20]);
    speak(&mut ben, &b[5..10]);
    place.serve();
    assert_eq!(ben.lines(20), from("anna", &a[..20]));
    assert_eq!(anna.lines(5), from("ben", &b[5..10]));
    assert!(anna.remarks().contains("(connection lost, resuming…)"), "{}", anna.remarks());

    anna.type_line("/safety");
    ben.type_line("/safety");
    let number = anna.line();
    assert!(number.starts_with("safety number: ") && number.len() == 15 + 71, "{number}");
    assert_eq!(ben.line(), number);

    // What is typed while the other is away waits for it.
    assert_eq!(anna.end(), (true, vec![]));
    speak(&mut ben, &b[10..30]);
    let mut anna = chat(&place, "anna", "ben", &[]);
    assert_eq!(anna.lines(20), from("ben", &b[10..30]));
    speak(&mut anna, &a[20..30]);
    assert_eq!(ben.lines(10), from("anna", &a[20..30]));
    assert_eq!(anna.end(), (true, vec![]));
    assert_eq!(ben.end(), (true, vec![]));

    for place_to_look in [place.data().join("store"), place.log()] {
        assert!(files_with(&place_to_look, CANARY).is_empty());
    }
    for who in ["anna", "ben"] {
        let log = place.folder.path().join(format!("{who}.log"));
        assert!(files_with(&log, CANARY).is_empty() && files_with(&log, "PRIVATE").is_empty());
    }
}

#[test]
fn nothing_readable_is_on_the_wire_or_in_the_store() {
    let place = Place::start(true);
    let relay = Relay::start(place.listen);
    let server = format!("ws://127.0.0.1:{}", relay.port);
    let start = |who: &str, with: &str| {
        place.client(who, place.command_at(&server, "chat", &["--as", who, "--to", with]))
    };
    let (mut anna, mut ben) = (start("anna", "ben"), start("ben", "anna"));
    anna.type_line(CANARY);
    assert_eq!(ben.line(), format!("anna: {CANARY}"));
    ben.type_line(CANARY);
    assert_eq!(anna.line(), format!("ben: {CANARY}"));
    assert!(anna.end().0 && ben.end().0);
    assert!(!relay.carried(CANARY));
    assert!(files_with(&place.data().join("store"), CANARY).is_empty());
    // The same eyes see what is not encrypted.
    let mut send = place.command_at(&server, "send", &["--as", "anna", "--to", "ben"]);
    let mut child = send.stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"plain as day, for everyone").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(relay.carried("plain as day"));
    assert!(!files_with(&place.data().join("store"), "plain as day").is_empty());
}

#[test]
fn a_changed_key_is_refused_until_it_is_accepted() {
    let place = Place::start(false);
    let mut anna = chat(&place, "anna", "ben", &["--exit-after", "1"]);
    let mut ben = chat(&place, "ben", "anna", &[]);
    ben.type_line("hello");
    assert_eq!(anna.line(), "ben: hello");
    anna.end_input();
    assert!(anna.end().0 && ben.end().0);
    std::fs::remove_dir_all(place.data().join("clients").join("ben")).unwrap();

    let mut ben = chat(&place, "ben", "anna", &[]);
    ben.type_line("it is me, honestly");
    let anna = chat(&place, "anna", "ben", &[]);
    let log = anna.log.clone();
    let started = std::thread::spawn(move || {
        wait_for("the warning", || std::fs::read_to_string(&log).unwrap().contains("ANOTHER KEY"));
        anna
    });
    let anna = started.join().unwrap();
    assert_eq!(anna.end(), (true, vec![]), "nothing was taken");
    let anna = chat(&place, "anna", "ben", &["--accept-new-key", "--exit-after", "1"]);
    assert_eq!(anna.line(), "ben: it is me, honestly");
    assert!(anna.end().0 && ben.end().0);
}

/// Carries bytes between clients and a plain server, and remembers them.
struct Relay {
    port: u16,
    streams: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Relay {
    fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let streams = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&streams);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                for (from, to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    let all = Arc::clone(&all);
                    std::thread::spawn(move || carry(from, to, &all));
                }
            }
        });
        Self { port, streams }
    }

    /// Whether a text was to be read in what was carried, as it was or without its WebSocket masks.
    fn carried(&self, text: &str) -> bool {
        let streams = self.streams.lock().unwrap();
        assert!(streams.iter().any(|stream| contains(stream, "HTTP/1.1")), "nothing was carried");
        streams.iter().any(|stream| contains(stream, text) || contains(&unmasked(stream), text))
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, all: &Mutex<Vec<Vec<u8>>>) {
    let place = {
        let mut all = all.lock().unwrap();
        all.push(Vec::new());
        all.len() - 1
    };
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        all.lock().unwrap()[place].extend_from_slice(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// The payloads of the frames behind the handshake (RFC 6455 §5.2), one after the other.
fn unmasked(stream: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let Some(head) = stream.windows(4).position(|window| window == b"\r\n\r\n") else { return out };
    let mut rest = &stream[head + 4..];
    while let [_, second, after @ ..] = rest {
        // A tail that is too short for any of our texts, perhaps cut.
        if after.len() < 14 {
            break;
        }
        let (length, after) = match second & 0x7f {
            126 => (usize::from(u16::from_be_bytes(after[..2].try_into().unwrap())), &after[2..]),
            127 => {
                (usize::try_from(u64::from_be_bytes(after[..8].try_into().unwrap())).unwrap(), &after[8..])
            }
            short => (usize::from(short), after),
        };
        let (mask, after) =
            if second & 0x80 == 0 { ([0; 4], after) } else { (after[..4].try_into().unwrap(), &after[4..]) };
        let (payload, next) = after.split_at(length.min(after.len()));
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        rest = next;
    }
    out
}
