//! A provider that does what a test says, over pipes and real TLS. **Invariant:** no socket and no real clock: under paused
//! time a test with deadlines of hours runs in milliseconds, the same each time.
#![allow(dead_code, reason = "each test binary uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

pub(crate) mod raw;

use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{AppName, PushAddress, PushTarget};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_pusher::provider::{Answer, Verdict, Wake};
use chappe_pusher::transport::{
    Dialer, Io, Origin, Pool, PoolLimits, Post, Wires, client_config, roots_from_pem,
};
use h2::Reason;
use http::{HeaderMap, Response};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::DuplexStream;
use tokio_util::task::TaskTracker;

pub(crate) const WALL: UnixMillis = UnixMillis(1_800_000_000_000);

/// tokio's clock, which a test may pause; random bytes that count.
pub(crate) struct TestWorld {
    start: tokio::time::Instant,
    pub(crate) step: AtomicU64,
    count: AtomicU64,
}

impl TestWorld {
    #[allow(clippy::disallowed_methods, reason = "this is where the tests' time comes from")]
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: tokio::time::Instant::now(),
            step: AtomicU64::new(0),
            count: AtomicU64::new(1),
        })
    }
}

impl World for TestWorld {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap())
    }
    fn wall(&self) -> UnixMillis {
        WALL + Millis(self.now().0 + self.step.load(Ordering::Relaxed))
    }
    fn fill_random(&self, bytes: &mut [u8]) {
        for byte in bytes {
            let count = self.count.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            let [low, .., high] = count.to_be_bytes();
            *byte = low ^ high.rotate_left(3);
        }
    }
}

/// A request as the server got it.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) connection: usize,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the server does with a request.
#[derive(Clone)]
pub(crate) enum Say {
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Then that.
    After(Millis, Box<Say>),
    Reset(Reason),
    /// Headers, a part of the body, and no more.
    StallBody(u16, &'static str),
    Stall,
    /// The whole connection.
    HangUp,
}

pub(crate) fn ok() -> Say {
    Say::Answer(200, vec![], String::new())
}

pub(crate) fn answer(status: u16, body: &str) -> Say {
    Say::Answer(status, vec![], body.to_owned())
}

type Handler = Box<dyn Fn(&Seen, usize) -> Say + Send + Sync>;
type Serve = Box<dyn Fn(usize, DuplexStream) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// The only host of its network, whatever its name.
pub(crate) struct Server {
    serve: Serve,
    pub(crate) state: Arc<ServerState>,
    pub(crate) root_pem: String,
    dialled: AtomicUsize,
    pub(crate) hosts: Mutex<Vec<String>>,
    tasks: TaskTracker,
}

#[derive(Default)]
pub(crate) struct ServerState {
    seen: Mutex<Vec<Seen>>,
    active: AtomicUsize,
    pub(crate) peak: AtomicUsize,
}

pub(crate) fn acceptor(names: &[&str], alpn: &[&[u8]]) -> (tokio_rustls::TlsAcceptor, String) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (Arc::new(config).into(), made.cert.pem())
}

pub(crate) const NAMES: [&str; 4] = ["provider.example", "token.example", "push.example", "other.example"];

impl Server {
    /// Any server over a stream.
    pub(crate) fn raw(root_pem: String, serve: Serve) -> Arc<Self> {
        Arc::new(Self {
            serve,
            state: Arc::default(),
            root_pem,
            dialled: AtomicUsize::new(0),
            hosts: Mutex::default(),
            tasks: TaskTracker::new(),
        })
    }

    /// HTTP/2 over TLS; `handler` says what becomes of each request (with its number, from 0).
    pub(crate) fn new(
        max_streams: Option<u32>,
        handler: impl Fn(&Seen, usize) -> Say + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (acceptor, root_pem) = acceptor(&NAMES, &[b"h2"]);
        let state: Arc<ServerState> = Arc::default();
        let (held, handler) = (state.clone(), Arc::new(Box::new(handler) as Handler));
        let serve: Serve = Box::new(move |number, io| {
            Box::pin(serve(number, io, acceptor.clone(), max_streams, held.clone(), handler.clone()))
        });
        let mut server = Arc::into_inner(Self::raw(root_pem, serve)).unwrap();
        server.state = state;
        Arc::new(server)
    }

    /// Answers in turn; the last for ever.
    pub(crate) fn scripted(script: Vec<Say>) -> Arc<Self> {
        let script = Mutex::new(VecDeque::from(script));
        Self::new(None, move |_, _| {
            let mut script = script.lock().unwrap();
            if script.len() > 1 { script.pop_front().unwrap() } else { script[0].clone() }
        })
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub(crate) fn dialled(&self) -> usize {
        self.dialled.load(Ordering::Relaxed)
    }

    pub(crate) fn tls(&self) -> Arc<rustls::ClientConfig> {
        client_config(roots_from_pem(self.root_pem.as_bytes()).unwrap())
    }

    pub(crate) fn pool(self: &Arc<Self>, limits: PoolLimits, world: Arc<dyn World>) -> Pool {
        let origin = Origin::parse("https://provider.example").unwrap();
        Pool::new(origin, self.tls(), self.clone(), limits, world, TaskTracker::new())
    }
}

#[async_trait]
impl Dialer for Server {
    async fn dial(&self, host: &str, _: u16) -> io::Result<Box<dyn Io>> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.hosts.lock().unwrap().push(host.to_owned());
        self.tasks.spawn((self.serve)(self.dialled.fetch_add(1, Ordering::Relaxed), theirs));
        Ok(Box::new(ours))
    }
}

async fn serve(
    number: usize,
    io: DuplexStream,
    acceptor: tokio_rustls::TlsAcceptor,
    max_streams: Option<u32>,
    state: Arc<ServerState>,
    handler: Arc<Handler>,
) {
    let Ok(stream) = acceptor.accept(io).await else { return };
    let mut builder = h2::server::Builder::new();
    if let Some(max) = max_streams {
        builder.max_concurrent_streams(max);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let tasks = TaskTracker::new();
    let hang_up = tokio_util::sync::CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = hang_up.cancelled() => return,
            accepted = connection.accept() => accepted,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let (state, handler, hang_up) = (state.clone(), handler.clone(), hang_up.clone());
        tasks.spawn(async move {
            let active = state.active.fetch_add(1, Ordering::Relaxed) + 1;
            state.peak.fetch_max(active, Ordering::Relaxed);
            let (parts, mut body) = request.into_parts();
            let mut bytes = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                bytes.extend_from_slice(&chunk);
            }
            let seen = Seen {
                connection: number,
                authority: parts.uri.authority().unwrap().to_string(),
                path: parts.uri.path_and_query().unwrap().to_string(),
                headers: parts.headers,
                body: bytes.into(),
            };
            let nth = {
                let mut all = state.seen.lock().unwrap();
                all.push(seen.clone());
                all.len() - 1
            };
            say(handler(&seen, nth), respond, &state.active, &hang_up).await;
        });
    }
}

async fn say(
    mut say: Say,
    mut respond: h2::server::SendResponse<Bytes>,
    active: &AtomicUsize,
    hang_up: &tokio_util::sync::CancellationToken,
) {
    while let Say::After(delay, then) = say {
        tokio::time::sleep(delay.to_std()).await;
        say = *then;
    }
    active.fetch_sub(1, Ordering::Relaxed);
    match say {
        Say::Answer(status, headers, body) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let mut stream = respond.send_response(response.body(()).unwrap(), body.is_empty()).unwrap();
            if !body.is_empty() {
                let _ = stream.send_data(body.into(), true);
            }
        }
        Say::StallBody(status, part) => {
            let response = Response::builder().status(status).body(()).unwrap();
            let mut stream = respond.send_response(response, false).unwrap();
            stream.send_data(Bytes::from_static(part.as_bytes()), false).unwrap();
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        }
        Say::Stall => {
            let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
        Say::Reset(reason) => respond.send_reset(reason),
        Say::HangUp => hang_up.cancel(),
        Say::After(..) => unreachable!(),
    }
}

pub(crate) fn post(path: &str) -> Post {
    Post { path: path.to_owned(), headers: HeaderMap::new(), body: Bytes::from_static(b"{}") }
}

/// What a provider's client is made of, towards this server.
pub(crate) fn wires(server: &Arc<Server>, world: Arc<dyn World>) -> Wires {
    let limits = PoolLimits::default();
    Wires { tls: server.tls(), dialer: server.clone(), limits, world, tasks: TaskTracker::new() }
}

/// A fresh key on P-256: PKCS #8 in PEM, and the public half in PEM.
pub(crate) fn p256() -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    (key.serialize_pem(), key.public_key_pem())
}

pub(crate) fn app() -> AppName {
    AppName::new("org.example.chat").unwrap()
}

pub(crate) fn target(address: PushAddress) -> PushTarget {
    PushTarget { app: app(), address, registered_at: UnixMillis(0) }
}

pub(crate) fn wake(urgency: Urgency) -> Wake {
    Wake { urgency, collapse: "c0llapse_-".into(), expires_at: WALL + Millis::from_secs(7 * 24 * 3600) }
}

/// The verdict, and the provider's word for it.
pub(crate) fn verdict(answer: &Answer) -> (Verdict, &'static str) {
    (answer.verdict, answer.reason)
}

/// A key file as Google hands it out, and the public half (PKCS #1 in DER).
pub(crate) fn service_account(token_uri: &str) -> (String, Vec<u8>) {
    use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use aws_lc_rs::signature::KeyPair as _;
    use base64::Engine as _;
    static KEY: std::sync::LazyLock<KeyPair> =
        std::sync::LazyLock::new(|| KeyPair::generate(KeySize::Rsa2048).unwrap());
    let der: Pkcs8V1Der<'_> = KEY.as_der().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    let json = serde_json::json!({
        "type": "service_account", "project_id": "chat-1", "private_key_id": "kid-7", "private_key": pem,
        "client_email": "pusher@chat-1.example", "token_uri": token_uri,
    });
    (json.to_string(), KEY.public_key().as_ref().to_vec())
}
