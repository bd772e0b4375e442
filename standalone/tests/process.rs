//! `chappe` as a process: bad input is told by a word, a reason and what to do, and never costs the others anything.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;

use chappe_client::{Client, ClientError, Event, Outgoing};
use place::Place;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn arguments(place: &Place, more: &[&str]) -> Vec<String> {
    place.serve_command(more)[1..].to_vec()
}

fn refused(place: &Place, more: &[&str]) -> (Option<i32>, String) {
    let arguments = arguments(place, more);
    let output = place.chappe(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    (output.status.code(), said(&output))
}

async fn client(place: &Place, user: &str, device: &str) -> Result<Client, ClientError> {
    let now = chappe_protocol::world::World::wall(&chappe_node::clock::SystemWorld::new());
    let token = chappe_standalone::token::issue(&place.data(), user, device, 600, now).unwrap();
    Client::builder(format!("wss://{}", place.clients))
        .device(device)
        .token(token)
        .root_certificates_pem(&std::fs::read(place.data().certificate()).unwrap())
        .connect()
        .await
}

async fn next_payload(client: &Client) -> Vec<u8> {
    loop {
        if let Event::Envelope(envelope) = client.next_event().await.expect("the client lives") {
            let payload = envelope.payload.to_vec();
            envelope.ack();
            return payload;
        }
    }
}

#[test]
fn a_bad_configuration_ends_with_64_before_a_port_is_bound() {
    let place = Place::new();
    let file = place.path().with_extension("toml");
    std::fs::write(&file, "lisen = \"127.0.0.1:1\"\n").unwrap();
    let path = file.to_string_lossy().into_owned();
    let (code, text) = refused(&place, &["--config", &path]);
    assert_eq!(code, Some(64));
    assert!(text.contains("config_unknown_key") && text.contains("did you mean \"listen\""), "{text}");
    assert!(!place.path().exists(), "a refused configuration has touched the data directory");

    let (code, text) = refused(&place, &["--log", "chappe=loud=very"]);
    assert_eq!(code, Some(64), "{text}");
    let everywhere = ["serve", "--listen", "0.0.0.0:0", "--no-tls"];
    let output = place.chappe(&everywhere);
    assert_eq!(output.status.code(), Some(64));
    assert!(said(&output).contains("behind_proxy"), "{}", said(&output));
}

#[test]
fn a_taken_port_is_told_with_the_flag_that_helps() {
    let place = Place::new();
    let _taken = std::net::TcpListener::bind(place.clients).unwrap();
    let (code, text) = refused(&place, &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("port_in_use") && text.contains("--listen"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_data_is_refused_and_the_first_serves_on() {
    chappe_node::tls::install_crypto_provider();
    let place = Place::new();
    let server = place.serve(&[]);
    let mut other = Place::new();
    std::mem::swap(&mut other.clients, &mut other.admin);
    let data = place.path().to_string_lossy().into_owned();
    let (clients, admin) = (other.clients.to_string(), other.admin.to_string());
    let output = other.chappe(&["serve", "--data", &data, "--listen", &clients, "--admin", &admin]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("data_dir_locked"), "{}", said(&output));

    let anna = client(&place, "anna", "phone").await.unwrap();
    anna.submit(Outgoing::new("to myself").to("anna")).await.unwrap();
    assert_eq!(next_payload(&anna).await, b"to myself");
    anna.close().await;
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn damaged_data_and_unreadable_keys_are_told() {
    let place = Place::new();
    place.serve(&[]).stop();

    let key = place.path().join("token.pem");
    std::fs::write(&key, "no key at all").unwrap();
    let file = place.path().with_extension("toml");
    std::fs::write(&file, format!("[token]\nkey = {key:?}\n")).unwrap();
    let config = file.to_string_lossy().into_owned();
    let (code, text) = refused(&place, &["--config", &config]);
    assert_eq!(code, Some(1));
    assert!(text.contains("token_key_unusable"), "{text}");
    std::fs::remove_file(&key).unwrap();
    let (code, text) = refused(&place, &["--config", &config]);
    assert_eq!(code, Some(1));
    assert!(text.contains("file_unreadable"), "{text}");

    let store = place.data().store();
    let largest = std::fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| std::fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    for byte in &mut bytes {
        *byte = !*byte;
    }
    std::fs::write(&largest, bytes).unwrap();
    let (code, text) = refused(&place, &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("data_dir_corrupt") && text.contains("backup"), "{text}");
}

#[test]
fn private_files_are_private() {
    let place = Place::new();
    place.serve(&[]).stop();
    let rows = ["rows.redb", "journal"].map(|name| place.data().store().join(name));
    let keys = [place.data().token_private(), place.data().admin_token(), place.data().resume_key()];
    for path in keys.into_iter().chain(rows) {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_add_revoke_and_erase() {
    chappe_node::tls::install_crypto_provider();
    let place = Place::new();
    let server = place.serve(&[]);
    let admin = place.admin.to_string();
    let data = place.path().to_string_lossy().into_owned();
    let user = |words: &[&str]| {
        let arguments: Vec<&str> =
            ["user"].iter().chain(words).copied().chain(["--admin", &admin, "--data", &data]).collect();
        place.chappe(&arguments)
    };
    let outcome = |receipt: chappe_client::Receipt| format!("{:?}", receipt.targets[0].outcome);

    let anna = client(&place, "anna", "phone").await.unwrap();
    let receipt = anna.submit(Outgoing::new("x").to("ben")).await.unwrap();
    assert_eq!(outcome(receipt), "UnknownUser");
    assert!(user(&["add", "ben"]).status.success());
    let receipt = anna.submit(Outgoing::new("x").to("ben")).await.unwrap();
    assert_eq!(outcome(receipt), "NoDevice", "a user without a device is never accepted for");

    let ben = client(&place, "ben", "phone").await.unwrap();
    assert!(anna.submit(Outgoing::new("for ben").to("ben")).await.unwrap().all_accepted());
    assert_eq!(next_payload(&ben).await, b"for ben");
    assert!(user(&["revoke-device", "--device", "phone", "ben"]).status.success());
    while ben.next_event().await.is_some() {}
    assert!(matches!(client(&place, "ben", "phone").await, Err(ClientError::Ended { code: 4501, .. })));

    assert!(user(&["erase", "ben"]).status.success());
    let again = user(&["erase", "ben"]);
    assert!(!again.status.success() && said(&again).contains("unknown_user"), "{}", said(&again));

    std::fs::write(place.data().admin_token(), "guessed").unwrap();
    let barred = user(&["add", "mallory"]);
    assert!(!barred.status.success() && said(&barred).contains("admin_token"), "{}", said(&barred));
    anna.close().await;
    assert_eq!(server.stop().0, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_server_drains_and_the_logs_name_nobody() {
    chappe_node::tls::install_crypto_provider();
    let place = Place::new();
    let server = place.serve(&["--log", "trace"]);
    let anna = client(&place, "canary-user-kvqz", "canary-device-kvqz").await.unwrap();
    let payload = "canary-payload-kvqz";
    assert!(anna.submit(Outgoing::new(payload).to("canary-user-kvqz")).await.unwrap().all_accepted());
    assert_eq!(next_payload(&anna).await, payload.as_bytes());
    let metrics = place.chappe(&["status", "--json", "--admin", &place.admin.to_string()]);
    let shown = String::from_utf8_lossy(&metrics.stdout).into_owned();
    assert!(shown.contains("\"ready\":true") && shown.contains("chappe_gateway"), "{shown}");
    let (code, log) = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    assert_eq!(code, Some(0));
    assert!(log.iter().any(|line| line.contains("draining")), "{log:?}");
    // No digit of a random number in hex spells these letters.
    let told: Vec<&str> =
        log.iter().map(String::as_str).chain(shown.lines()).filter(|line| line.contains("kvqz")).collect();
    assert!(told.is_empty(), "somebody's name or words stand in the logs or metrics: {told:?}");
    drop(anna);
}

#[test]
fn the_doctor_finds_what_is_missing_and_leaves_nothing_behind() {
    let place = Place::new();
    let data = place.path().display().to_string();
    let (listen, admin) = (place.clients.to_string(), place.admin.to_string());
    let set = [format!("data={data}"), format!("listen={listen}"), format!("admin={admin}")];
    let mut words = vec!["doctor"];
    for one in &set {
        words.extend(["--set", one.as_str()]);
    }
    let before = std::fs::read_dir(place.path().parent().unwrap()).unwrap().count();
    let fresh = place.chappe(&words);
    let text = String::from_utf8_lossy(&fresh.stdout).into_owned();
    assert_eq!(fresh.status.code(), Some(0), "{text}");
    assert!(text.contains("good  data") && text.trim_end().ends_with(" 0 bad"), "{text}");
    assert_eq!(std::fs::read_dir(place.path().parent().unwrap()).unwrap().count(), before);

    // A gateway whose parts are all away: each is told by its name, with what to do.
    let away = [
        "nats.urls=nats://127.0.0.1:9",
        "redis.url=redis://127.0.0.1:9/0",
        "cql.url=cql://127.0.0.1:9/chappe",
        "tls.off=true",
    ];
    let key = place.path().parent().unwrap().join("token.key");
    std::fs::write(&key, [7; 32]).unwrap();
    let key = format!("token.key={}", key.display());
    let mut words = vec!["doctor", "gateway", "--json", "--set", "token.algorithm=hs256", "--set", &key];
    for one in away.iter().chain([&set[1].as_str(), &set[2].as_str()]) {
        words.extend(["--set", one]);
    }
    let output = place.chappe(&words);
    assert_eq!(output.status.code(), Some(1));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bad = told["findings"].as_array().unwrap().iter().filter(|finding| finding["verdict"] == "bad");
    let bad: Vec<_> = bad.map(|finding| finding["what"].as_str().unwrap()).collect();
    assert_eq!(bad, ["redis", "cql", "nats"], "{told}");

    let refused = place.chappe(&["doctor", "router", "--set", "nats.urls="]);
    assert_eq!(refused.status.code(), Some(64), "{}", String::from_utf8_lossy(&refused.stdout));
}

#[test]
fn the_command_line_helps() {
    let place = Place::new();
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["token", "--help"],
        &["status", "--help"],
        &["user", "--help"],
    ] {
        let output = place.chappe(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Example"), "{arguments:?}: {text}");
    }
    let completions = place.chappe(&["completions", "bash"]);
    assert!(String::from_utf8_lossy(&completions.stdout).contains("_chappe"));
    let settings = place.chappe(&["config"]);
    let settings = String::from_utf8_lossy(&settings.stdout).into_owned();
    assert!(settings.contains("listen = \"127.0.0.1:7440\"") && settings.contains("[limits]"), "{settings}");
    let status = place.chappe(&["status", "--admin", &place.admin.to_string()]);
    assert!(said(&status).contains("chappe serve"), "{}", said(&status));
}
