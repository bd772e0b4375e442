//! `chappe trace` and the log lines of one envelope, as an operator uses them.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod children;

use children::{Place, wait_for};
use serde_json::Value;
use std::process::{Command, Output};

fn trace(place: &Place, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_chappe"));
    command
        .arg("trace")
        .args(arguments)
        .args(["--admin", &place.admin_address(), "--data"])
        .arg(place.data());
    command.output().unwrap()
}

fn report(place: &Place, arguments: &[&str]) -> Value {
    let output = trace(place, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Sends a text to ben; the envelope's id.
fn send(place: &Place, text: &str) -> String {
    let sent = place.run("send", &["--as", "anna", "--to", "ben", "--json"], text.as_bytes());
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
    let receipt: Value = serde_json::from_slice(&sent.stdout).unwrap();
    receipt["envelope_id"].as_str().unwrap().to_owned()
}

#[test]
fn an_envelope_is_followed_from_the_store_to_the_ack_and_across_a_restart() {
    let mut place = Place::start(false);
    // Ben's device becomes known, and is away when anna writes.
    let known = place.client("known", place.command("listen", &["--as", "ben"]));
    known.line();
    drop(known);
    let id = send(&place, "hello");
    let away = report(&place, &[&id]);
    assert_eq!(
        (&away["state"], &away["devices"], &away["devices_acked"]),
        (&"committed".into(), &1.into(), &0.into())
    );
    assert!(away["committed_at"].as_u64().is_some() && away["deliveries"] == 0, "{away}");

    let ben = place.client("ben", place.command("listen", &["--as", "ben", "--count", "1"]));
    assert!(ben.end().0);
    wait_for("the ack", || report(&place, &[&id])["state"] == "acked");
    let taken = report(&place, &[&id]);
    assert_eq!((&taken["devices_acked"], &taken["deliveries"]), (&1.into(), &1.into()));
    let shown = trace(&place, &[&id]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.starts_with("acked:") && shown.contains("by 1 of 1 devices"), "{shown}");
    assert!(!shown.contains("ben") && !shown.contains("anna") && !shown.contains("hello"), "{shown}");

    place.kill();
    place.serve();
    let forgotten = trace(&place, &[&id]);
    assert_eq!(forgotten.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&forgotten.stderr).contains("try --to USER"));
    assert_eq!(report(&place, &[&id, "--to", "ben"])["state"], "acked");
    assert!(!trace(&place, &[&id, "--to", "anna"]).status.success(), "it is in ben's mailbox only");
}

#[test]
fn what_cannot_be_traced_is_told() {
    let place = Place::start(false);
    let refused = trace(&place, &["nonsense"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("32 hexadecimal digits"));
    std::fs::write(place.data().join("other.token"), "not the token").unwrap();
    let token = place.data().join("other.token");
    let refused = trace(&place, &[&"0".repeat(32), "--token-file", token.to_str().unwrap()]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("admin_token"));
}

/// One id leads through the lines of gateway, router and store; nobody is named in them.
#[test]
fn the_log_lines_of_a_submit_share_its_id() {
    let place = Place::start(false);
    let ben = place.client("ben", place.command("listen", &["--as", "ben"]));
    ben.line();
    let id = send(&place, "hello");
    ben.line();
    let lines = || -> Vec<String> {
        let log = std::fs::read_to_string(place.log()).unwrap();
        log.lines().filter(|line| line.contains(&id)).map(str::to_owned).collect()
    };
    for step in ["appended", "routed", "answered", "delivered"] {
        wait_for(step, || lines().iter().any(|line| line.contains(step)));
    }
    let answered = lines().into_iter().find(|line| line.contains("answered")).unwrap();
    let submit = answered.split("submit=").nth(1).unwrap()[..32].to_owned();
    let log = std::fs::read_to_string(place.log()).unwrap();
    let own: Vec<&str> = log.lines().filter(|line| line.contains(&submit)).collect();
    assert!(own.len() >= 2, "the gateway's and the router's lines: {own:?}");
    assert!(own.iter().all(|line| !line.contains("anna") && !line.contains("ben")), "{own:?}");
}
