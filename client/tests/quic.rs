//! QUIC and WebTransport against a server by script, on real sockets: hostile bytes, every way to end, datagrams, crossing.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a script names the frame that it expects")]

mod support;

use bytes::{Buf as _, Bytes};
use chappe_client::{
    Builder, Carrier, Client, ClientError, Event, Millis, Outgoing, Seq, State, Tuning, Urgency,
};
use chappe_protocol::close::{CloseCode, ErrorFrame, ErrorScope};
use chappe_protocol::frame::{ClientFrame, ServerFrame};
use futures_util::StreamExt as _;
use quinn::crypto::rustls::QuicServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use support::{deliver, welcome};
use tokio::net::TcpListener;
use tokio::time::timeout;
use web_transport_quinn::{RecvStream, Request, SendStream, Session, SessionError, WebTransportError};

const PATIENCE: Duration = Duration::from_mins(1);
const BOTH: [Carrier; 2] = [Carrier::Quic, Carrier::WebTransport];

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("a minute has passed")
}

/// Below those that the system gives away by itself.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_006 + u16::try_from(std::process::id() % 1000).unwrap() * 12;
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Ordering::Relaxed)));
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// A UDP port that does only what a test tells it.
struct Server {
    endpoint: quinn::Endpoint,
    roots_pem: String,
}

/// A session whose Hello was read.
struct Talk {
    session: Session,
    send: SendStream,
    recv: RecvStream,
    bytes: Vec<u8>,
}

impl Server {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(made.cert.der().to_vec())], key)
            .unwrap();
        tls.alpn_protocols = vec![b"chappe/1".to_vec(), b"h3".to_vec()];
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
        let endpoint = quinn::Endpoint::server(config, free_address()).unwrap();
        Self { endpoint, roots_pem: made.cert.pem() }
    }

    fn builder(&self, scheme: &str) -> Builder {
        let url = format!("{scheme}://{}", self.endpoint.local_addr().unwrap());
        let builder = Client::builder(url).device("phone").token("token");
        builder.root_certificates_pem(self.roots_pem.as_bytes())
    }

    fn client(&self, carrier: Carrier) -> Client {
        let scheme = if carrier == Carrier::Quic { "chappe+quic" } else { "chappe+webtransport" };
        self.builder(scheme).start()
    }

    async fn session(&self) -> Session {
        let connection = within(self.endpoint.accept()).await.unwrap().await.unwrap();
        let data = connection.handshake_data().unwrap();
        let data = data.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
        if data.protocol.unwrap() == b"chappe/1" {
            return Session::raw(connection);
        }
        let request = Request::accept(connection).await.unwrap();
        assert_eq!((request.url.path(), request.url.query()), ("/v1/connect", None));
        request.ok().await.unwrap()
    }

    /// The next session, up to its Hello.
    async fn accept(&self) -> Talk {
        let session = self.session().await;
        let (send, recv) = within(session.accept_bi()).await.unwrap();
        let mut talk = Talk { session, send, recv, bytes: Vec::new() };
        match talk.frame().await {
            Some(ClientFrame::Hello(_)) => talk,
            other => panic!("no Hello: {other:?}"),
        }
    }

    async fn welcome(&self) -> Talk {
        let mut talk = self.accept().await;
        talk.say(&ServerFrame::Welcome(welcome(0))).await;
        talk
    }
}

impl Talk {
    /// The next frame; `None` at the end of the stream.
    async fn frame(&mut self) -> Option<ClientFrame> {
        loop {
            if let Some((head, length)) = length(&self.bytes)
                && self.bytes.len() >= head + length
            {
                let mut frame = Bytes::from(self.bytes.drain(..head + length).collect::<Vec<u8>>());
                frame.advance(head);
                return Some(ClientFrame::decode(frame).unwrap());
            }
            let chunk = within(self.recv.read_chunk(usize::MAX, true)).await.ok()??;
            self.bytes.extend_from_slice(&chunk.bytes);
        }
    }

    async fn say(&mut self, frame: &ServerFrame) {
        let frame = frame.encode();
        let mut bytes = Vec::new();
        let mut rest = frame.len();
        while rest > 0x7f {
            bytes.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
            rest >>= 7;
        }
        bytes.push(u8::try_from(rest).unwrap());
        bytes.extend_from_slice(&frame);
        self.send.write_all(&bytes).await.unwrap();
    }

    async fn say_error(&mut self, code: CloseCode) {
        let error = ErrorFrame {
            code: code.reason().to_owned(),
            message: "scripted".to_owned(),
            retryable: false,
            limit_name: String::new(),
            retry_after_ms: 0,
            scope: ErrorScope::Connection,
            submit_id: None,
        };
        self.say(&ServerFrame::Error(error)).await;
    }

    /// Ends the stream, and waits until the client has everything.
    async fn finish(&mut self) {
        self.send.finish().unwrap();
        let _ = within(self.send.stopped()).await;
    }

    /// The code that the client closes with.
    async fn code(&self) -> Option<u32> {
        match within(self.session.closed()).await {
            SessionError::WebTransportError(WebTransportError::Closed(code, _)) => Some(code),
            _ => None,
        }
    }
}

/// Bytes of the length at the front, and what it says.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.iter().position(|byte| byte & 0x80 == 0)? + 1;
    let length = bytes[..head].iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7f));
    Some((head, length))
}

/// The first state of this kind.
async fn state(client: &Client, mut wanted: impl FnMut(&State) -> bool) -> State {
    let mut states = std::pin::pin!(client.states());
    within(async {
        loop {
            let state = states.next().await.expect("another state");
            if wanted(&state) {
                return state;
            }
        }
    })
    .await
}

/// Why the connection was lost.
async fn lost(client: &Client) -> String {
    match state(client, |state| matches!(state, State::Waiting { .. })).await {
        State::Waiting { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn hostile_bytes_end_the_connection() {
    let server = Server::start();
    for carrier in BOTH {
        for (bytes, what) in [
            (&[0xff, 0xff, 0xff, 0x7f][..], "larger than the limit"),
            (&[0x80, 0x80, 0x80, 0x80, 1], "more than 4 bytes"),
            (&[3, 0xff, 0xff, 0xff], "protobuf"),
        ] {
            let client = server.client(carrier);
            let mut talk = server.welcome().await;
            talk.send.write_all(bytes).await.unwrap();
            let why = lost(&client).await;
            assert!(why.contains(what), "{carrier:?}: {why}");
            assert_ne!(talk.code().await, Some(1000), "it hung up without a goodbye");
        }
        // The stream breaks off, or ends without a word.
        let client = server.client(carrier);
        let mut talk = server.welcome().await;
        talk.send.reset(7).unwrap();
        assert!(lost(&client).await.contains("broke the stream off"));
        drop((client, talk));
        let client = server.client(carrier);
        let mut talk = server.welcome().await;
        talk.send.write_all(&[100, 1, 2, 3]).await.unwrap();
        talk.finish().await;
        assert!(lost(&client).await.contains("without a word"));
    }
}

#[tokio::test]
async fn close_codes_arrive_however_the_server_ends() {
    let server = Server::start();
    let ended = |client: &Client| match client.state() {
        State::Failed(ClientError::Ended { code, .. }) => code,
        other => panic!("{other:?}"),
    };
    for carrier in BOTH {
        // As the contract says: error, end of the stream, code.
        let client = server.client(carrier);
        let mut talk = server.accept().await;
        talk.say_error(CloseCode::TokenInvalid).await;
        talk.finish().await;
        talk.session.close(4500, b"token_invalid");
        state(&client, State::is_final).await;
        assert_eq!(ended(&client), 4500, "{carrier:?}");
        // The code alone, to a session that stands.
        for (code, superseded) in [(4409u16, true), (4503, false)] {
            let client = server.client(carrier);
            let talk = server.welcome().await;
            state(&client, |state| matches!(state, State::Connected { .. })).await;
            talk.session.close(u32::from(code), b"reason");
            let state = state(&client, |state| state.is_final() || *state == State::Superseded).await;
            let expected = ClientError::Ended { code, reason: "reason".to_owned() };
            let want = if superseded { State::Superseded } else { State::Failed(expected) };
            assert_eq!(state, want, "{carrier:?}");
        }
        // The word alone: no code comes within a second, or one that is none of ours.
        for close in [None, Some(0)] {
            let client = server.client(carrier);
            let mut talk = server.welcome().await;
            talk.say_error(CloseCode::DeviceRevoked).await;
            talk.finish().await;
            if let Some(code) = close {
                talk.session.close(code, b"");
            }
            state(&client, State::is_final).await;
            assert_eq!(ended(&client), 4501, "{carrier:?} {close:?}");
        }
    }
}

#[tokio::test]
async fn a_goodbye_comes_after_everything_was_received() {
    let server = Server::start();
    for carrier in BOTH {
        let client = server.client(carrier);
        let mut talk = server.welcome().await;
        within(client.connected()).await.unwrap();
        talk.say(&ServerFrame::Deliver(deliver(0, 1))).await;
        match within(client.next_event()).await {
            Some(Event::Envelope(envelope)) => envelope.ack(),
            other => panic!("{other:?}"),
        }
        let (acked, ()) = tokio::join!(
            async {
                let mut acked = None;
                while let Some(frame) = talk.frame().await {
                    if let ClientFrame::Ack { upto } = frame {
                        acked = Some(upto);
                    }
                }
                // The stream has ended, and only then the code comes.
                (acked, talk.code().await)
            },
            within(client.close()),
        );
        assert_eq!(acked, (Some(Seq(1)), Some(1000)), "{carrier:?}");
        assert_eq!(client.state(), State::Closed);
    }
}

#[tokio::test]
async fn ephemerals_take_datagrams_and_nothing_else_does() {
    let server = Server::start();
    for carrier in BOTH {
        let client = server.client(carrier);
        let mut talk = server.welcome().await;
        assert!(matches!(
            state(&client, |state| matches!(state, State::Connected { .. })).await,
            State::Connected { carrier: used, .. } if used == carrier
        ));
        client.submit_ephemeral(Outgoing::new("typing").to("ben")).unwrap();
        let datagram = within(talk.session.read_datagram()).await.unwrap();
        match ClientFrame::decode(datagram).unwrap() {
            ClientFrame::Submit(submit) => assert!(submit.ephemeral),
            other => panic!("{other:?}"),
        }
        // What does not fit goes on the stream.
        client.submit_ephemeral(Outgoing::new(vec![1; 2000]).to("ben")).unwrap();
        match talk.frame().await {
            Some(ClientFrame::Submit(submit)) => assert!(submit.ephemeral),
            other => panic!("{other:?}"),
        }
        // A Deliver in a datagram would break the chain of the one that follows; it is ignored.
        let ephemeral =
            ServerFrame::Ephemeral { sender: None, payload: "hi".into(), urgency: Urgency::Message };
        for frame in [ServerFrame::Deliver(deliver(4, 5)), ephemeral] {
            talk.session.send_datagram(frame.encode().into()).unwrap();
        }
        talk.session.send_datagram(Bytes::from_static(b"\xff\xff\xff")).unwrap();
        match within(client.next_event()).await {
            Some(Event::Ephemeral { payload, .. }) => assert_eq!(payload, "hi"),
            other => panic!("{other:?}"),
        }
        talk.say(&ServerFrame::Deliver(deliver(0, 1))).await;
        match within(client.next_event()).await {
            Some(Event::Envelope(envelope)) => assert_eq!(envelope.seq, Seq(1)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn who_drops_the_socket_hangs_up() {
    let server = Server::start();
    for carrier in BOTH {
        let client = server.client(carrier);
        let talk = server.welcome().await;
        within(client.connected()).await.unwrap();
        client.disconnect_now();
        assert_ne!(talk.code().await, Some(1000), "{carrier:?}");
        let again = server.welcome().await;
        drop(client);
        assert_ne!(again.code().await, Some(1000), "{carrier:?}");
    }
}

#[tokio::test]
async fn a_connection_that_does_not_follow_is_closed_before_the_next_hello() {
    let server = Server::start();
    for carrier in BOTH {
        let client = server.client(carrier);
        let mut old = server.welcome().await;
        within(client.connected()).await.unwrap();
        let address = old.session.remote_address();
        client.network_changed();
        // It asks on the new path, and hears nothing there.
        match old.frame().await {
            Some(ClientFrame::Ping { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_ne!(old.session.remote_address(), address, "{carrier:?}: the old connection has moved");
        let mut new = server.accept().await;
        // What a gateway would tell the old one now, 4409, reaches nobody.
        within(old.session.closed()).await;
        new.say(&ServerFrame::Welcome(welcome(0))).await;
        state(&client, |state| matches!(state, State::Connected { .. })).await;
        client.submit_ephemeral(Outgoing::new("x").to("ben")).unwrap();
        within(new.session.read_datagram()).await.unwrap();
    }
}

#[tokio::test]
async fn a_connection_that_follows_is_kept() {
    let server = Server::start();
    for carrier in BOTH {
        let client = server.client(carrier);
        let mut talk = server.welcome().await;
        within(client.connected()).await.unwrap();
        client.network_changed();
        let Some(ClientFrame::Ping { nonce }) = talk.frame().await else { panic!("no ping") };
        talk.say(&ServerFrame::Pong { nonce, upto: Seq(0) }).await;
        let second = timeout(Duration::from_millis(1500), server.endpoint.accept()).await;
        assert!(second.is_err(), "{carrier:?}: another connection was made");
        assert!(matches!(client.state(), State::Connected { .. }));
    }
}

#[tokio::test]
async fn where_quic_shakes_hands_and_then_says_nothing_websocket_goes_first() {
    let server = Server::start();
    let tcp = TcpListener::bind(server.endpoint.local_addr().unwrap()).await.unwrap();
    let tuning = Tuning { connect_timeout: Millis(1000), ..Tuning::default() };
    let client = server.builder("chappe").tuning(tuning).start();
    let silent = server.accept().await;
    assert!(lost(&client).await.contains("no Welcome"));
    let (dialled, _) = within(tcp.accept()).await.unwrap();
    // It is as silent, and within this attempt QUIC does not come.
    let second = timeout(Duration::from_millis(900), server.endpoint.accept()).await;
    assert!(second.is_err(), "QUIC was tried beside it");
    drop((client, silent, dialled));
}
