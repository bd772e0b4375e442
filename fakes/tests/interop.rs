//! Clients that somebody else wrote, in Python, against the fakes. **Invariant:** what a fake accepts and reads is what
//! strangers' libraries send and read.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_fakes::{Carrier, Entry, Kind, Kit, KitConfig};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Output, Stdio};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs `dev/push-interop` and shows what it said.
async fn script(arguments: &[&str], input: &str) -> Output {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/push-interop");
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    println!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

/// A recorded message with what its browser knows, as `decrypt.py` takes it.
fn for_the_browser(kit: &Kit, auths: &[(String, String)], entry: &Entry) -> Value {
    let endpoint = entry.target.as_deref().unwrap();
    json!({
        "private_key": kit.webpush.private_key(endpoint).unwrap(),
        "auth": auths.iter().find(|(held, _)| held == endpoint).unwrap().1,
        "body": URL_SAFE_NO_PAD.encode(&entry.body),
        "authorization": entry.header("authorization").unwrap(),
        "audience": kit.webpush.url(),
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_clients_get_what_the_providers_documents_promise() {
    assert!(script(&["install"], "").await.status.success(), "dev/push-interop install failed");
    let folder = tempfile::tempdir().unwrap();
    let kit = Kit::start(KitConfig::default()).await.unwrap();
    let told = kit.write(folder.path()).unwrap();
    let fakes = folder.path().join("fakes.json");
    let output = script(&["check", "--fakes", fakes.to_str().unwrap()], "").await;
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(" checks passed, 0 failed"), "{text}");

    let counts = kit.apns.record().counts();
    assert_eq!((counts.accepted, counts.over_limit), (203, 0), "aioapns keeps to the streams it was allowed");
    let logins = kit.fcm.record().entries();
    let logins = logins.iter().filter(|entry| entry.kind == Kind::Login);
    assert!(logins.clone().count() == 3 && logins.clone().all(|entry| entry.carrier == Carrier::Http1));

    let accepted: Vec<Entry> = kit.webpush.record().wakes().into_iter().filter(Entry::accepted).collect();
    let carriers: Vec<Carrier> = accepted.iter().map(|entry| entry.carrier).collect();
    assert_eq!(carriers, [Carrier::Http1, Carrier::Http1, Carrier::Http2]);
    assert_eq!(accepted[0].plain.as_deref(), Some(&b"sync"[..]));
    assert_eq!(accepted[1].plain.as_deref(), Some(format!("grüße {}", "x".repeat(3000)).as_bytes()));
    assert_eq!(accepted[2].plain.as_deref(), Some(&b"sync over HTTP/2"[..]));

    let file = std::fs::read_to_string(told["webpush"]["subscriptions"].as_str().unwrap()).unwrap();
    let held: Value = serde_json::from_str(&file).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let auths: Vec<(String, String)> = held["live"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (text(&one["endpoint"]), text(&one["keys"]["auth"])))
        .collect();
    let messages: Vec<Value> = accepted.iter().map(|entry| for_the_browser(&kit, &auths, entry)).collect();
    let lines: Vec<String> = messages.iter().map(Value::to_string).collect();
    let output = script(&["decrypt"], &lines.join("\n")).await;
    assert!(output.status.success());
    let read: Vec<Value> = output
        .stdout
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    assert_eq!(read.len(), 3);
    for (read, entry) in read.iter().zip(&accepted) {
        assert_eq!(text(&read["plain"]), URL_SAFE_NO_PAD.encode(entry.plain.as_ref().unwrap()));
        assert_eq!(read["claims"]["sub"], "mailto:push@example.org");
    }
    for (name, bent) in [("auth", "AAAAAAAAAAAAAAAAAAAAAA"), ("audience", "https://other")] {
        let mut message = messages[0].clone();
        message[name] = bent.into();
        assert!(!script(&["decrypt"], &message.to_string()).await.status.success(), "{name}");
    }
    kit.close().await;
}
