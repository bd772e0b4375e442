//! `chappe serve` with the published keys of a sign-in service, over real sockets: away at first, then there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod place;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use chappe_client::{Client, ClientError};
use chappe_protocol::world::World;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use place::Place;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Answers these documents by path, for as long as the test runs.
fn publish(address: SocketAddr, documents: Vec<(&'static str, String)>) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let Ok(mut socket) = socket else { return };
            let mut request = vec![0; 4096];
            let length = socket.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split_whitespace().nth(1).unwrap_or_default();
            let body = documents.iter().find(|(at, _)| *at == path).map_or("{}", |(_, body)| body);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}",
                body.len()
            );
            let _ = write!(socket, "{head}\r\n\r\n{body}");
        }
    });
}

/// The public half of an Ed25519 key in PEM: the last 32 bytes of its DER (RFC 8410, section 4).
fn public_half(pem: &str) -> String {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let der = STANDARD.decode(body).unwrap();
    URL_SAFE_NO_PAD.encode(&der[der.len() - 32..])
}

fn status(place: &Place) -> String {
    let output = place.chappe(&["status", "--json", "--admin", &place.admin.to_string()]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn client(place: &Place, token: String) -> Result<Client, ClientError> {
    let client = Client::builder(format!("wss://{}", place.clients))
        .device("phone")
        .token(token)
        .root_certificates_pem(&std::fs::read(place.data().certificate()).unwrap())
        .connect();
    tokio::time::timeout(Duration::from_mins(1), client).await.expect("an answer within a minute")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_keys_that_come_late_make_a_server_ready_and_let_in_who_has_waited() {
    chappe_node::tls::install_crypto_provider();
    let place = Place::new();
    let service = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let file = place.path().with_extension("toml");
    let issuer = format!("http://{service}");
    let settings = format!(
        "[token]\njwks = \"{issuer}/.well-known/openid-configuration\"\nalgorithm = \"eddsa\"\nissuer = \"{issuer}\"\naudience = \"chappe\"\n"
    );
    std::fs::write(&file, &settings).unwrap();
    let server = place.serve(&["--config", &file.to_string_lossy()]);
    assert!(status(&place).contains("\"ready\":false"), "{}", status(&place));

    let private = EncodingKey::from_ed_pem(&std::fs::read(place.data().token_private()).unwrap()).unwrap();
    let exp = chappe_node::clock::SystemWorld::new().wall().0 / 1000 + 600;
    let token = |kid: &str, audience: &str| {
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        let claims = serde_json::json!({ "iss": issuer, "aud": audience, "sub": "canary-kvqz", "device": "phone", "exp": exp });
        jsonwebtoken::encode(&header, &claims, &private).unwrap()
    };
    let documents = || {
        let public = std::fs::read_to_string(place.data().token_public()).unwrap();
        let key =
            serde_json::json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k1", "x": public_half(&public) });
        let configuration = serde_json::json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/keys") });
        vec![
            ("/.well-known/openid-configuration", configuration.to_string()),
            ("/keys", serde_json::json!({ "keys": [key] }).to_string()),
        ]
    };
    let late = async {
        // The first one is told to come again, and does.
        tokio::time::sleep(Duration::from_secs(1)).await;
        publish(service, documents());
    };
    let (early, ()) = tokio::join!(client(&place, token("k1", "chappe")), late);
    early.expect("let in once there were keys").close().await;
    assert!(status(&place).contains("\"ready\":true"));
    let other = client(&place, token("k1", "another")).await;
    assert!(matches!(other, Err(ClientError::Ended { code: 4500, .. })), "for another audience");

    let (code, log) = tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    assert_eq!(code, Some(0));
    let log = log.join("\n");
    assert!(log.contains("token_keys_unavailable") && !log.contains("kvqz"), "{log}");

    std::fs::write(&file, settings.replace("audience = \"chappe\"\n", "")).unwrap();
    let arguments = place.serve_command(&["--config", &file.to_string_lossy()]);
    let output = place.chappe(&arguments[1..].iter().map(String::as_str).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("token.audience") && said.contains("many applications"), "{said}");
}
