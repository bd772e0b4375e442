//! `chappe send` and `chappe listen` as scripts use them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod children;

use base64::Engine as _;
use children::{Client, Place};
use serde_json::Value;
use std::io::Write as _;

fn object(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// The next envelope.
fn envelope(client: &Client) -> Value {
    loop {
        let object = object(&client.line());
        if object["event"] == "envelope" {
            return object;
        }
    }
}

fn bytes(envelope: &Value) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.decode(envelope["payload_base64"].as_str().unwrap()).unwrap()
}

/// A `listen` of ben that is known to the server.
fn listening(place: &Place, more: &[&str]) -> Client {
    let client = place.client("listen", place.command("listen", &[&["--as", "ben"], more].concat()));
    assert_eq!(object(&client.line())["event"], "backlog_end");
    client
}

#[test]
fn any_bytes_go_round_and_refusals_are_told() {
    let place = Place::start(false);
    let refused = place.run("send", &["--as", "anna", "--to", "ben"], b"x");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not accepted: unknown_user"));
    assert!(refused.stdout.is_empty());

    let ben = listening(&place, &[]);
    let all: Vec<u8> = (0..=255).chain(*b"\n\r\n\0").collect();
    let sent = place.run("send", &["--as", "anna", "--to", "ben", "--json", "--ttl", "60"], &all);
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let receipt = object(std::str::from_utf8(&sent.stdout).unwrap());
    let got = envelope(&ben);
    assert_eq!(bytes(&got), all);
    assert_eq!(got["envelope_id"], receipt["envelope_id"]);
    assert_eq!((&got["from"], &got["from_device"]), (&"anna".into(), &"cli".into()));
    assert_eq!(got["expires_at_ms"].as_u64().unwrap() - got["at_ms"].as_u64().unwrap(), 60_000);
    assert!(got.get("payload").is_none(), "it is not UTF-8");
    assert_eq!((&receipt["to"], &receipt["outcome"]), (&"ben".into(), &"accepted".into()));
}

#[test]
fn a_listen_that_comes_back_neither_repeats_nor_loses() {
    let place = Place::start(false);
    let ben = listening(&place, &["--count", "2"]);
    let lines: Vec<String> = (0..300).map(|number| format!("line {number}")).collect();
    let sent = place.run("send", &["--as", "anna", "--to", "ben", "--lines"], lines.join("\n").as_bytes());
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let mut heard = vec![bytes(&envelope(&ben)), bytes(&envelope(&ben))];
    assert!(ben.end().0);
    for count in ["1", "3", "294"] {
        let ben = place.client("listen", place.command("listen", &["--as", "ben", "--count", count]));
        let (well, rest) = ben.end();
        assert!(well);
        let objects = rest.iter().map(|line| object(line));
        heard.extend(objects.filter(|object| object["event"] == "envelope").map(|object| bytes(&object)));
    }
    let heard: Vec<String> = heard.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
    assert_eq!(heard, lines);
}

#[test]
fn a_send_of_the_same_device_does_not_displace_a_listen() {
    let place = Place::start(false);
    let mut ben = listening(&place, &[]);
    for (who, text) in [("ben", "to myself"), ("anna", "still there?"), ("ben", "again")] {
        let sent = place.run("send", &["--as", who, "--to", "ben"], text.as_bytes());
        assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
        assert_eq!(envelope(&ben)["payload"], text);
    }
    assert!(ben.is_running());
    assert!(!ben.remarks().contains("superseded"), "{}", ben.remarks());
}

#[test]
fn every_kind_of_address_works() {
    let place = Place::start(false);
    for scheme in ["wss", "chappe", "chappe+quic", "chappe+webtransport"] {
        let server = format!("{scheme}://127.0.0.1:{}", place.listen);
        let ben =
            place.client("listen", place.command_at(&server, "listen", &["--as", "ben", "--count", "1"]));
        assert_eq!(object(&ben.line())["event"], "backlog_end", "{scheme}");
        let mut send = place.command_at(&server, "send", &["--as", "anna", "--to", "ben"]);
        let mut child = send.stdin(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(scheme.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{scheme}");
        assert_eq!(bytes(&envelope(&ben)), scheme.as_bytes());
        // It was acked: the next one does not get it again.
        assert!(ben.end().0, "{scheme}");
    }
}
