//! A raw HTTP/2 client and signed tokens. **Invariant:** nothing here shares code with the fakes but the libraries.
#![allow(dead_code, reason = "each test takes what it needs")]

use bytes::Bytes;
use chappe_fakes::{Apns, Entry, Fcm, Host};
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Request, Response};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;

/// An answer, whole.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// A request that a test bends.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    pub(crate) method: &'static str,
    pub(crate) url: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Push {
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(held, _)| held != name);
        self
    }

    pub(crate) fn with(self, name: &str, value: &str) -> Self {
        self.without(name).and(name, value)
    }

    pub(crate) fn and(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.body(body.to_string())
    }

    pub(crate) fn to(mut self, url: String) -> Self {
        self.url = url;
        self
    }

    pub(crate) fn method(mut self, method: &'static str) -> Self {
        self.method = method;
        self
    }
}

/// One HTTP/2 connection.
pub(crate) struct Client {
    pub(crate) send: SendRequest<Bytes>,
}

impl Client {
    pub(crate) async fn pipe(host: &Host) -> Self {
        Self::over(host, host.pipe()).await
    }

    pub(crate) async fn over<IO>(host: &Host, io: IO) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tls = TlsConnector::from(host.authority().client_config(&[b"h2"]).unwrap());
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = tls.connect(name, io).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        TaskTracker::new().spawn(connection);
        Self { send }
    }

    /// Starts a request; the answer is to be awaited.
    pub(crate) async fn start(&mut self, push: &Push) -> Result<ResponseFuture, h2::Error> {
        let mut request = Request::builder().method(push.method).uri(&push.url);
        for (name, value) in &push.headers {
            request = request.header(name, value);
        }
        let mut ready = self.send.clone().ready().await?;
        let empty = push.body.is_empty();
        let (response, mut body) = ready.send_request(request.body(()).unwrap(), empty)?;
        if !empty {
            body.reserve_capacity(push.body.len());
            body.send_data(push.body.clone(), true)?;
        }
        Ok(response)
    }

    pub(crate) async fn try_push(&mut self, push: &Push) -> Result<Seen, h2::Error> {
        whole(self.start(push).await?.await?).await
    }

    pub(crate) async fn push(&mut self, push: &Push) -> Seen {
        self.try_push(push).await.unwrap()
    }
}

pub(crate) async fn whole(response: Response<h2::RecvStream>) -> Result<Seen, h2::Error> {
    let (head, mut body) = response.into_parts();
    let mut all = Vec::new();
    while let Some(part) = body.data().await {
        all.extend_from_slice(&part?);
    }
    Ok(Seen { status: head.status.as_u16(), headers: head.headers, body: all.into() })
}

pub(crate) fn jwt(algorithm: Algorithm, kid: &str, pem: &str, claims: &Value) -> String {
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    let key = if algorithm == Algorithm::RS256 {
        EncodingKey::from_rsa_pem(pem.as_bytes())
    } else {
        EncodingKey::from_ec_pem(pem.as_bytes())
    };
    jsonwebtoken::encode(&header, claims, &key.unwrap()).unwrap()
}

/// A provider token issued this many seconds ago.
pub(crate) fn provider_token(apns: &Apns, seconds_ago: u64) -> String {
    let key = apns.key();
    let claims = json!({ "iss": key.team_id, "iat": apns.clock().now_seconds() - seconds_ago });
    jwt(Algorithm::ES256, &key.key_id, &key.private_key_pem, &claims)
}

/// An alert that is right, to this device.
pub(crate) fn alert(apns: &Apns, bearer: &str, token: &str) -> Push {
    let push = Push {
        method: "POST",
        url: format!("{}/3/device/{token}", apns.url()),
        headers: Vec::new(),
        body: Bytes::from_static(br#"{"aps":{"alert":{"title":"sync"}}}"#),
    };
    push.and("authorization", &format!("bearer {bearer}"))
        .and("apns-topic", &apns.topics()[0])
        .and("apns-push-type", "alert")
        .and("apns-priority", "10")
        .and("apns-expiration", "0")
}

/// The account's fields.
pub(crate) fn account(fcm: &Fcm) -> Value {
    serde_json::from_str(fcm.service_account_json()).unwrap()
}

/// A request for an access token with these claims.
pub(crate) fn login(fcm: &Fcm, claims: &Value) -> Push {
    let account = account(fcm);
    let text = |name: &str| account[name].as_str().unwrap().to_owned();
    let assertion = jwt(Algorithm::RS256, &text("private_key_id"), &text("private_key"), claims);
    let form =
        format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
    Push { method: "POST", url: fcm.token_url().to_owned(), headers: Vec::new(), body: form.into() }
        .and("content-type", "application/x-www-form-urlencoded")
}

/// The claims of an assertion that is right.
pub(crate) fn claims(fcm: &Fcm) -> Value {
    let now = fcm.clock().now_seconds();
    json!({
        "iss": account(fcm)["client_email"],
        "scope": "https://www.googleapis.com/auth/firebase.messaging",
        "aud": fcm.token_url(),
        "iat": now,
        "exp": now + 3600,
    })
}

/// Waits for as many wakes, and gives the last.
pub(crate) async fn last(host: &Host, count: u64) -> Entry {
    host.record().wait_for(count).await.unwrap().pop().unwrap()
}

/// Something that must end soon, in the test's own time.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what).await.expect("this takes too long")
}
