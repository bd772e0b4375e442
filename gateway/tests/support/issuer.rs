//! A sign-in service: keys, tokens, and the documents that it publishes, over HTTP on pipes.

use super::{Cluster, TokioWorld};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chappe_gateway::{KeySource, SetAlgorithm, TokenVerifier};
use chappe_node::fetch::{Connector, Fetcher, Stream};
use chappe_protocol::world::World;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_util::task::TaskTracker;

pub(crate) const ISSUER: &str = "https://id.example";
pub(crate) const AUDIENCE: &str = "chappe";
pub(crate) const DISCOVERY: &str = "/.well-known/openid-configuration";

pub(crate) fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A key pair and its id.
pub(crate) enum Key {
    Es256(&'static str, EcdsaKeyPair),
    EdDsa(&'static str, Ed25519KeyPair),
    Rs256(&'static str, RsaKeyPair),
}

impl Key {
    pub(crate) fn es256(id: &'static str) -> Self {
        Self::Es256(id, EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    pub(crate) fn eddsa(id: &'static str) -> Self {
        Self::EdDsa(id, Ed25519KeyPair::generate().unwrap())
    }

    pub(crate) fn rs256(id: &'static str) -> Self {
        Self::Rs256(id, RsaKeyPair::generate(KeySize::Rsa2048).unwrap())
    }

    pub(crate) fn id(&self) -> &'static str {
        match self {
            Self::Es256(id, _) | Self::EdDsa(id, _) | Self::Rs256(id, _) => id,
        }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self {
            Self::Es256(..) => "ES256",
            Self::EdDsa(..) => "EdDSA",
            Self::Rs256(..) => "RS256",
        }
    }

    pub(crate) fn public(&self) -> Vec<u8> {
        match self {
            Self::Es256(_, pair) => pair.public_key().as_ref().to_vec(),
            Self::EdDsa(_, pair) => pair.public_key().as_ref().to_vec(),
            Self::Rs256(_, pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    /// As it stands in a set.
    pub(crate) fn jwk(&self) -> Value {
        let (id, public) = (self.id(), self.public());
        match self {
            Self::Es256(..) => {
                let (x, y) = (b64(&public[1..33]), b64(&public[33..]));
                json!({ "kty": "EC", "kid": id, "use": "sig", "alg": "ES256", "crv": "P-256", "x": x, "y": y })
            }
            Self::EdDsa(..) => {
                json!({ "kty": "OKP", "kid": id, "use": "sig", "crv": "Ed25519", "x": b64(public) })
            }
            Self::Rs256(_, pair) => {
                let key = pair.public_key();
                let n = b64(key.modulus().big_endian_without_leading_zero());
                let e = b64(key.exponent().big_endian_without_leading_zero());
                json!({ "kty": "RSA", "kid": id, "key_ops": ["verify"], "alg": "RS256", "n": n, "e": e })
            }
        }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Es256(_, pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Self::EdDsa(_, pair) => pair.sign(message).as_ref().to_vec(),
            Self::Rs256(_, pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
        }
    }

    pub(crate) fn header(&self) -> String {
        format!(r#"{{"alg":"{}","typ":"JWT","kid":"{}"}}"#, self.algorithm(), self.id())
    }

    /// A token of this header and these claims, signed whatever they say.
    pub(crate) fn token(&self, header: &str, claims: &str) -> String {
        signed(header, claims, |message| self.sign(message))
    }

    /// A good token.
    pub(crate) fn good(&self, world: &TokioWorld, user: &str, device: &str) -> String {
        self.token(&self.header(), &claims(world, user, device).to_string())
    }
}

pub(crate) fn signed(header: &str, claims: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let said = format!("{}.{}", b64(header), b64(claims));
    let signature = sign(said.as_bytes());
    format!("{said}.{}", b64(signature))
}

/// Good for an hour.
pub(crate) fn claims(world: &TokioWorld, user: &str, device: &str) -> Value {
    let exp = world.wall().0 / 1000 + 3600;
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": user, "device": device, "exp": exp })
}

/// What it answers, by path; other paths are not found.
pub(crate) struct Service {
    answers: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Takes no connection.
    pub(crate) away: AtomicBool,
    /// Answers nothing.
    pub(crate) hangs: AtomicBool,
    pub(crate) requests: AtomicU64,
    tasks: TaskTracker,
}

impl Service {
    pub(crate) fn new(keys: &[&Key]) -> Arc<Self> {
        let service = Self {
            answers: Mutex::default(),
            away: AtomicBool::new(false),
            hangs: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            tasks: TaskTracker::new(),
        };
        service.publish(keys);
        Arc::new(service)
    }

    /// The set at `/keys`.
    pub(crate) fn publish(&self, keys: &[&Key]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.jwk()).collect();
        self.publish_set(&keys);
    }

    pub(crate) fn publish_set(&self, keys: &[Value]) {
        self.answer("/keys", &json!({ "keys": keys }).to_string());
    }

    pub(crate) fn answer(&self, path: &str, body: &str) {
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}", body.len());
        self.answer_raw(path, &format!("{head}\r\n\r\n{body}"));
    }

    pub(crate) fn answer_raw(&self, path: &str, answer: &str) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer.as_bytes().to_vec());
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    async fn serve(self: Arc<Self>, mut io: DuplexStream) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = io.read_u8().await else { return };
            head.push(byte);
        }
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split_whitespace().nth(1).unwrap().to_owned();
        let missing = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec();
        let answer = self.answers.lock().unwrap().get(&path).cloned().unwrap_or(missing);
        let _ = io.write_all(&answer).await;
    }

    pub(crate) fn fetcher(self: &Arc<Self>) -> Fetcher {
        let service = Arc::clone(self);
        let connector: Connector = Arc::new(move |_, _| {
            let service = Arc::clone(&service);
            Box::pin(async move {
                service.requests.fetch_add(1, Ordering::Relaxed);
                if service.away.load(Ordering::Relaxed) {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                service.tasks.spawn(Arc::clone(&service).serve(theirs));
                Ok(Box::new(ours) as Box<dyn Stream>)
            })
        });
        let nobody = chappe_node::tls::trusting(std::path::Path::new("")).unwrap();
        Fetcher::over(nobody, connector)
    }

    /// Checks tokens against what is published at this path.
    pub(crate) fn verifier(self: &Arc<Self>, path: &str, algorithm: SetAlgorithm) -> TokenVerifier {
        let source = KeySource {
            url: format!("http://localhost{path}"),
            issuer: ISSUER.into(),
            algorithm,
            fetcher: self.fetcher(),
        };
        TokenVerifier::with_set(source).for_audience(AUDIENCE)
    }

    /// A cluster whose gateways trust this service.
    pub(crate) fn cluster(self: &Arc<Self>, path: &str, algorithm: SetAlgorithm) -> Cluster {
        let mut cluster = Cluster::new();
        cluster.verifier = Arc::new(self.verifier(path, algorithm));
        cluster
    }
}
