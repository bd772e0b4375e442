//! Sessions against a server by script, over a pipe and a clock that is moved on. **Invariant:** the script does only what a test says.
#![allow(clippy::wildcard_enum_match_arm, reason = "a script names the frame that it expects")]

mod peer;

use super::{Decided, Engine, Host, Session, Way};
use crate::run::Target;
use crate::tokens::Issuer;
use async_trait::async_trait;
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chappe_client::{Connector, Io, Limits, Outcome, Seq, Tuning, UnixMillis, World};
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::{ClientFrame, Deliver, GoAway, GoAwayClass, Hello, ServerFrame};
use chappe_protocol::id::CursorTag;
use chappe_protocol::time::{Millis, Time};
use peer::*;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

const TAG: CursorTag = CursorTag([7; 16]);

struct Paused(tokio::time::Instant);

impl World for Paused {
    fn now(&self) -> Time {
        Time(u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000 + self.now().0)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        rand::fill(bytes);
    }
}

struct Pipes(mpsc::Sender<DuplexStream>);

#[async_trait]
impl Connector for Pipes {
    async fn connect(&self, _host: &str, _port: u16) -> io::Result<Box<dyn Io>> {
        let (near, far) = tokio::io::duplex(4096);
        self.0.send(far).await.map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(near))
    }
}

/// Writes down what it is told.
#[derive(Default)]
struct Told {
    envelopes: Mutex<Vec<u64>>,
    decided: Mutex<Vec<(u64, u64)>>,
    resumed: AtomicU64,
    pause: AtomicU64,
}

impl Host for Told {
    fn now_us(&self) -> u64 {
        0
    }

    fn took(&self, _user: u32, envelopes: &[Deliver], decided: &[Decided]) {
        self.envelopes.lock().unwrap().extend(envelopes.iter().map(|deliver| deliver.seq.0));
        let one = |one: &Decided| {
            assert_eq!(one.receipt.targets[0].outcome, Outcome::Accepted);
            (one.order, one.intended_us)
        };
        self.decided.lock().unwrap().extend(decided.iter().map(one));
    }

    fn resumed(&self, _lost_us: u64) {
        self.resumed.fetch_add(1, Ordering::Relaxed);
    }

    fn pause(&self, _user: u32) -> Millis {
        Millis(self.pause.load(Ordering::Relaxed))
    }
}

/// One session, and the server's side.
struct Stage {
    _engine: Engine,
    session: Arc<Session>,
    told: Arc<Told>,
    pipes: mpsc::Receiver<DuplexStream>,
}

#[allow(clippy::disallowed_methods, reason = "the paused clock of the test's runtime")]
fn stage() -> Stage {
    let (to, pipes) = mpsc::channel(1);
    let world: Arc<dyn World> = Arc::new(Paused(tokio::time::Instant::now()));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), [7; 32]).unwrap();
    let target = Target {
        servers: Vec::new(),
        carrier: None,
        roots_pem: None,
        issuer: Issuer::read(&folder.path().join("secret"), Arc::clone(&world)).unwrap(),
        prefix: "u-".into(),
        first: 0,
        source: None,
    };
    let engine = Engine::new(target, "load", Tuning::default(), world).unwrap();
    let way = Way::new("ws://127.0.0.1:1", None, Arc::new(Pipes(to))).unwrap();
    let told = Arc::new(Told::default());
    let host: Arc<dyn Host> = Arc::<Told>::clone(&told);
    engine.serve(Arc::downgrade(&host));
    let session = engine.start(0, &way);
    session.attend();
    Stage { _engine: engine, session, told, pipes }
}

impl Stage {
    async fn accept(&mut self) -> Peer {
        let mut io = self.pipes.recv().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let key = head.lines().find_map(|line| line.strip_prefix("Sec-WebSocket-Key: ")).unwrap();
        let accept = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        let accept = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, accept.as_bytes()));
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n"
        );
        io.write_all(answer.as_bytes()).await.unwrap();
        Peer(io)
    }

    /// A connection that was welcomed after this slot, and its Hello.
    async fn welcomed(&mut self, from: u64, limits: Limits) -> (Peer, Hello) {
        let mut peer = self.accept().await;
        let ClientFrame::Hello(hello) = peer.frame().await else { panic!("no Hello") };
        peer.say(&[welcome(from, limits)]).await;
        (peer, hello)
    }

    fn submit(&self, order: u64) {
        self.session.submit(order, submit(order), 1000 + order);
        self.session.flush();
    }

    /// Nobody connects for so long.
    async fn stays_away(&mut self, seconds: u64) {
        assert!(tokio::time::timeout(Duration::from_secs(seconds), self.pipes.recv()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_cut_the_undecided_go_again_in_order_under_their_ids() {
    let mut stage = stage();
    for order in 0..3 {
        stage.submit(order);
    }
    let (mut peer, hello) = stage.welcomed(0, Limits::default()).await;
    assert_eq!((hello.cursor, hello.resume_token.len()), (None, 0));
    let mut sent = Vec::new();
    for order in 0..3 {
        sent.push(peer.submit().await);
        assert_eq!((sent[order].submit_id, sent[order].attempt), (submit(order as u64).submit_id, 1));
    }
    peer.say(&[accepted(&sent[0]), deliver(1, 0)]).await;
    assert_eq!(peer.seen().await, ack(1));
    drop(peer);
    let (mut peer, hello) = stage.welcomed(1, Limits::default()).await;
    assert_eq!(&hello.resume_token[..], b"resume");
    assert_eq!(hello.cursor.map(|cursor| (cursor.tag, cursor.seq)), Some((TAG, Seq(1))));
    for order in 1..3 {
        let again = peer.submit().await;
        assert_eq!((again.submit_id, again.attempt), (submit(order).submit_id, 2));
        peer.say(&[accepted(&again)]).await;
    }
    peer.is_quiet(100).await;
    assert_eq!(*stage.told.decided.lock().unwrap(), [(0, 1000), (1, 1001), (2, 1002)]);
    assert_eq!(stage.told.resumed.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_is_acked_together_at_once_and_the_next_not_before_its_delay() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let since = tokio::time::sleep(Duration::ZERO).deadline();
    peer.say(&[deliver(1, 0), deliver(2, 1), deliver(5, 2)]).await;
    assert_eq!(peer.seen().await, ack(5));
    assert!(since.elapsed() < Duration::from_millis(1), "at once: {:?}", since.elapsed());
    peer.say(&[deliver(6, 5)]).await;
    peer.is_quiet(15).await;
    peer.say(&[deliver(7, 6)]).await;
    assert_eq!(peer.seen().await, ack(7));
    assert!(since.elapsed() >= Duration::from_millis(20), "{:?}", since.elapsed());
    peer.is_quiet(1000).await;
    assert_eq!(*stage.told.envelopes.lock().unwrap(), [1, 2, 5, 6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_gap_breaks_the_connection_and_what_was_there_comes_to_nobody_twice() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    peer.say(&[deliver(1, 0), deliver(4, 3)]).await;
    while peer.seen().await != Seen::End {}
    let (mut peer, hello) = stage.welcomed(0, Limits::default()).await;
    assert_eq!(hello.cursor.map(|cursor| cursor.seq), Some(Seq(1)), "what came before the gap is acked");
    peer.say(&[deliver(1, 0), deliver(3, 1), deliver(4, 3)]).await;
    assert_eq!(peer.seen().await, ack(4));
    assert_eq!(*stage.told.envelopes.lock().unwrap(), [1, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn frames_come_in_any_pieces_and_pings_are_answered() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let (one, two) = (deliver(1, 0).encode(), deliver(2, 1).encode());
    let mut bytes = raw(0x82, &one);
    bytes.extend(raw(0x02, &two[..5]));
    bytes.extend(raw(0x89, b"there?"));
    bytes.extend(raw(0x00, &two[5..9]));
    bytes.extend(raw(0x80, &two[9..]));
    for byte in bytes {
        peer.0.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut seen = vec![peer.seen().await, peer.seen().await, peer.seen().await];
    seen.retain(|seen| *seen != ack(1));
    assert_eq!(seen, [Seen::Pong(b"there?".to_vec()), ack(2)]);
    // A continuation of nothing.
    peer.0.write_all(&raw(0x80, b"x")).await.unwrap();
    assert_eq!(peer.seen().await, Seen::End);
}

#[tokio::test(start_paused = true)]
async fn a_go_away_moves_it_in_its_time() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    let (retry_after, jitter) = (Millis(3000), Millis(1000));
    let go = GoAway { class: GoAwayClass::Drain, retry_after, jitter, endpoints: Vec::new() };
    peer.say(&[ServerFrame::GoAway(go)]).await;
    peer.is_quiet(2900).await;
    assert_eq!(peer.seen().await, Seen::End);
    let moved = tokio::time::timeout(Duration::from_millis(50), stage.welcomed(0, Limits::default())).await;
    assert!(moved.is_ok(), "at once");
}

#[tokio::test(start_paused = true)]
async fn close_codes_decide_whether_it_comes_again() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    peer.close(CloseCode::Drained).await;
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    peer.close(CloseCode::ConnectedElsewhere).await;
    stage.stays_away(120).await;
    assert_eq!((stage.session.is_connected(), stage.session.is_over()), (false, None), "superseded");

    let mut stage = self::stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    peer.close(CloseCode::BadFrame).await;
    stage.stays_away(120).await;
    assert!(stage.session.is_over().unwrap().contains("3500"));
    assert!(!stage.session.has_room());
}

#[tokio::test(start_paused = true)]
async fn who_takes_his_time_gets_one_after_the_other_and_acks_what_he_has_done() {
    let mut stage = stage();
    stage.told.pause.store(500, Ordering::Relaxed);
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    peer.say(&[deliver(1, 0), deliver(2, 1), deliver(3, 2)]).await;
    peer.is_quiet(450).await;
    assert_eq!(*stage.told.envelopes.lock().unwrap(), [1]);
    assert_eq!(peer.seen().await, ack(1));
    assert_eq!(*stage.told.envelopes.lock().unwrap(), [1, 2]);
    // The load is over.
    stage.told.pause.store(0, Ordering::Relaxed);
    assert_eq!(peer.seen().await, ack(3));
    assert_eq!(*stage.told.envelopes.lock().unwrap(), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn it_keeps_within_the_servers_rate() {
    let mut stage = stage();
    let limits = Limits { frames_per_second_max: 10, frames_burst_max: 10, ..Limits::default() };
    let (mut peer, _) = stage.welcomed(0, limits).await;
    let mut early = 0;
    for order in 0..15 {
        stage.submit(order);
    }
    while let Ok(submit) = tokio::time::timeout(Duration::from_millis(50), peer.submit()).await {
        early += 1;
        peer.say(&[accepted(&submit)]).await;
    }
    assert_eq!(early, 5, "half the burst");
    for _ in early..15 {
        let submit = peer.submit().await;
        peer.say(&[accepted(&submit)]).await;
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(stage.told.decided.lock().unwrap().len(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_and_one_that_takes_nothing_are_given_up() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    assert!(matches!(peer.frame().await, ClientFrame::Ping { .. }));
    assert!(matches!(peer.frame().await, ClientFrame::Ping { .. }));
    assert_eq!(peer.seen().await, Seen::End);
    let (peer, _) = stage.welcomed(0, Limits::default()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for order in 0..64 {
        stage.submit(order);
    }
    tokio::time::sleep(Duration::from_secs(19)).await;
    assert!(stage.session.is_connected());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!stage.session.is_connected(), "the pipe holds 4 KiB");
    drop(peer);
}

#[tokio::test(start_paused = true)]
async fn a_cut_comes_back_and_a_goodbye_does_not() {
    let mut stage = stage();
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    stage.session.cut();
    assert_eq!(peer.seen().await, Seen::End);
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    peer.say(&[deliver(1, 0)]).await;
    assert_eq!(peer.seen().await, ack(1));
    peer.say(&[deliver(2, 1)]).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    stage.session.close();
    assert_eq!(peer.seen().await, ack(2), "the last ack comes before the goodbye");
    assert_eq!(peer.seen().await, Seen::Close(1000u16.to_be_bytes().to_vec()));
    peer.0.write_all(&raw(0x88, &1000u16.to_be_bytes())).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(stage.session.is_over().is_some());
    stage.stays_away(60).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_renewed_before_it_ends_and_no_welcome_is_not_waited_for_without_end() {
    let mut stage = stage();
    let mut peer = stage.accept().await;
    assert!(matches!(peer.frame().await, ClientFrame::Hello(_)));
    assert_eq!(peer.seen().await, Seen::End, "after 15 s");
    let (mut peer, _) = stage.welcomed(0, Limits::default()).await;
    let mut nonce = 0;
    loop {
        match peer.frame().await {
            ClientFrame::Ping { nonce: new } => nonce = new,
            ClientFrame::Refresh { .. } => break,
            other => panic!("{other:?}"),
        }
        peer.say(&[ServerFrame::Pong { nonce, upto: Seq(0) }]).await;
    }
    assert!((18..46).contains(&nonce), "of 10 to 15 minutes, a minute before: {nonce} pings");
}
