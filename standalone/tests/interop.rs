//! Clients that are not ours against the server: two that somebody else wrote from `PROTOCOL.md` alone, in Python, and
//! Chromium with the page that we ship. **Invariant:** what the document says is enough to talk to us.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;
use chappe_node::clock::SystemWorld;
use chappe_protocol::world::World;
use place::Place;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, date_time_ymd};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);

#[test]
fn strangers_on_websocket_and_quic_get_what_the_document_promises() {
    let place = Place::new();
    let _server = place.serve(&[]);
    let mut check = installed();
    check
        .args(["check", "--server", &place.clients.to_string(), "--ca"])
        .arg(place.data().certificate())
        .env("CHAPPE_TOKEN_ADA", token(&place, "ada", "desk"))
        .env("CHAPPE_TOKEN_BEN", token(&place, "ben", "phone"));
    all_pass(&mut check);
}

#[test]
fn a_browser_with_our_page_works_over_webtransport_and_falls_back_to_websocket() {
    let place = Place::new();
    let origin_port = place::ports::free_port().to_string();
    let file = place.path().with_extension("toml");
    let (certificate, key) = (place.path().with_extension("pem"), place.path().with_extension("key"));
    // A browser takes a certificate by its hash if it is on P-256 and good for 14 days at most.
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let today = date_time_ymd(1970, 1, 1) + Duration::from_millis(SystemWorld::new().wall().0);
    (params.not_before, params.not_after) = (today - DAY, today + 10 * DAY);
    let settings = format!(
        "origins = [\"http://localhost:{origin_port}\"]\n[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n"
    );
    std::fs::write(&certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    std::fs::write(&file, settings).unwrap();
    let _server = place.serve(&["--config", &file.to_string_lossy()]);
    let mut check = installed();
    check
        .args(["browser", "--server", &place.clients.to_string(), "--origin-port", &origin_port])
        .env("CHAPPE_TOKEN_1", token(&place, "anna", "one"))
        .env("CHAPPE_TOKEN_2", token(&place, "anna", "two"));
    all_pass(&mut check);
}

/// The script, with what it needs.
fn installed() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dev/interop");
    assert!(Command::new(&script).arg("install").status().unwrap().success(), "dev/interop install failed");
    Command::new(&script)
}

fn token(place: &Place, user: &str, device: &str) -> String {
    let data = place.path();
    let data = data.to_str().unwrap();
    let output = place.chappe(&["token", "--user", user, "--device", device, "--data", data]);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn all_pass(check: &mut Command) {
    let output = check.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert!(text.contains("checks passed"), "{text}");
}
