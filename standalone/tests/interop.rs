//! Clients that somebody else wrote from `PROTOCOL.md` alone, in Python, against the server.
//! **Invariant:** what the document says is enough to talk to us.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;

use place::Place;
use std::path::Path;
use std::process::Command;

#[test]
fn strangers_on_websocket_and_quic_get_what_the_document_promises() {
    let place = Place::new();
    let _server = place.serve(&[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/interop");
    let installed = Command::new(&script).arg("install").status().unwrap();
    assert!(installed.success(), "dev/interop install failed");
    let token = |user: &str, device: &str| {
        let data = place.path();
        let data = data.to_str().unwrap();
        let output = place.chappe(&["token", "--user", user, "--device", device, "--data", data]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let output = Command::new(&script)
        .args(["check", "--server", &place.clients.to_string(), "--ca"])
        .arg(place.data().certificate())
        .env("CHAPPE_TOKEN_ADA", token("ada", "desk"))
        .env("CHAPPE_TOKEN_BEN", token("ben", "phone"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("checks passed"), "{text}");
}
