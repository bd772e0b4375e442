//! The program `push-fakes`. **Invariant:** what it prints is enough to talk to it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]
#![cfg(unix)]

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::task::TaskTracker;

fn start(folder: &Path, more: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_push-fakes"))
        .arg("--files")
        .arg(folder)
        .args(more)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap()
}

/// Posts without any header, trusting the certificate that the program wrote.
async fn post(certificate: &str, url: &str, path: &str) -> u16 {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(url.strip_prefix("https://").unwrap()).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tls.connect(ServerName::try_from("127.0.0.1").unwrap(), socket).await.unwrap();
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    TaskTracker::new().spawn(connection);
    let request = http::Request::post(format!("{url}{path}")).header("authorization", "bearer secret");
    let mut ready = send.ready().await.unwrap();
    let (response, _) = ready.send_request(request.body(()).unwrap(), true).unwrap();
    response.await.unwrap().status().as_u16()
}

#[tokio::test]
async fn it_tells_what_came_until_it_is_asked_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, mut lines) = start(folder.path(), &["--topic", "org.one", "--topic", "org.two"]);
    let ready = next(&mut lines).await;
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    assert_eq!(
        (text(&ready["event"]), &ready["apns"]["topics"]),
        ("ready".to_owned(), &serde_json::json!(["org.one", "org.two"]))
    );
    for file in [
        &ready["certificate"],
        &ready["apns"]["key"],
        &ready["fcm"]["service_account"],
        &ready["webpush"]["subscriptions"],
    ] {
        let mode = std::fs::metadata(text(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let token = text(&ready["apns"]["tokens"][0]);
    let status =
        post(&text(&ready["certificate"]), &text(&ready["apns"]["url"]), &format!("/3/device/{token}")).await;
    assert_eq!(status, 403);
    let wake = next(&mut lines).await;
    assert_eq!((text(&wake["event"]), text(&wake["provider"])), ("wake".to_owned(), "apns".to_owned()));
    assert_eq!(text(&wake["verdict"]["reason"]), "InvalidProviderToken");
    assert!(!wake.to_string().contains("secret"));
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
    assert!(child.wait().await.unwrap().success());
}

#[tokio::test]
async fn it_ends_by_itself_and_says_what_it_does_not_understand() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, mut lines) = start(folder.path(), &["--for", "1ms"]);
    assert_eq!(next(&mut lines).await["event"], "ready");
    assert!(child.wait().await.unwrap().success());
    let (mut child, _lines) = start(folder.path(), &["--for", "soon"]);
    assert_eq!(child.wait().await.unwrap().code(), Some(2));
}
