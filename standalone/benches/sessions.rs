//! Resident memory of one attached session of `chappe serve`, beside a bare socket and beside fastwebsockets.
//! **Invariant:** the server is the built binary in a process of its own; sessions are real: token, Hello, Welcome,
//! BacklogEnd, and for the second figure one envelope submitted, delivered and acked, with its cursor written.
//!
//! `cargo bench -p chappe-standalone --bench sessions -- --rounds 3`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

mod server;
#[path = "../../gateway/benches/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use chappe_node::clock::SystemWorld;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{ClientFrame, Hello, Role, Secret, ServerFrame, Submit, Target};
use chappe_protocol::id::{DeviceId, Seq, SubmitId, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_standalone::development::DataDir;
use clap::{Parser, Subcommand, ValueEnum};
use futures_util::{StreamExt, stream};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use server::{CACHE_MIB, start_chappe};
use support::{
    Baseline, Clients, Dial, Io, MESSAGE_BYTES, WARM_UP, hold, listen, median, ready, runtime, server_part,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Sessions that attach, or exchange their envelope, at once.
const AT_ONCE: usize = 32;
/// Cursors are written within 5 s of an ack.
const CURSORS_WRITTEN: Duration = Duration::from_secs(8);
/// What is remembered of a submit for a minute has been given back by then.
const FORGOTTEN: Duration = Duration::from_secs(70);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Variant {
    Bare,
    Session,
    FastwebsocketsTls,
    SessionTls,
}

impl Variant {
    const ALL: [Self; 4] = [Self::Bare, Self::Session, Self::FastwebsocketsTls, Self::SessionTls];

    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Session => "session",
            Self::FastwebsocketsTls => "fastwebsockets-tls",
            Self::SessionTls => "session-tls",
        }
    }

    const fn is_tls(self) -> bool {
        matches!(self, Self::FastwebsocketsTls | Self::SessionTls)
    }
}

/// Measure the resident memory of attached sessions.
#[derive(Debug, Parser)]
struct Options {
    /// Plain connections per variant.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// TLS connections per variant.
    #[arg(long, default_value_t = 4_000)]
    tls_connections: usize,
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true)]
    Server { variant: Variant },
    #[command(hide = true)]
    Hold { variant: Variant, port: u16, certificate: String, count: usize },
    #[command(hide = true)]
    Attach { variant: Variant, port: u16, data: PathBuf, count: usize },
}

fn main() {
    let options = Options::parse();
    match options.part {
        Some(Part::Server { variant }) => runtime().block_on(serve(variant)),
        Some(Part::Hold { variant, port, ref certificate, count }) => {
            let dial = Dial::said(port, certificate, variant.is_tls(), variant.is_tls());
            runtime().block_on(hold(&dial, count));
        }
        Some(Part::Attach { variant, port, ref data, count }) => {
            runtime().block_on(attach_all(variant, port, data, count));
        }
        None => measure(&options),
    }
}

async fn serve(variant: Variant) {
    let (listener, config) =
        listen(|certificate, key| chappe_node::tls::server_config(vec![certificate], key.into()).unwrap())
            .await;
    let baseline = if variant.is_tls() { Baseline::Fastwebsockets } else { Baseline::Bare };
    baseline.serve(listener, config).await;
}

fn measure(options: &Options) {
    let mut figures = vec![(Vec::new(), Vec::new()); Variant::ALL.len()];
    println!("{:<20} {:>12} {:>16} {:>18}", "variant", "connections", "idle, B/conn", "after 4 KB, B/conn");
    let print = |variant: Variant, idle: usize, after: usize| {
        let count = if variant.is_tls() { options.tls_connections } else { options.connections };
        println!("{:<20} {count:>12} {idle:>16} {after:>18}", variant.name());
    };
    for _ in 0..options.rounds {
        for (variant, (idle, after)) in Variant::ALL.into_iter().zip(&mut figures) {
            let count = if variant.is_tls() { options.tls_connections } else { options.connections };
            let (one, two) = measure_once(variant, count);
            print(variant, one, two);
            idle.push(one);
            after.push(two);
        }
    }
    println!("medians of {} rounds:", options.rounds);
    for (variant, (idle, after)) in Variant::ALL.into_iter().zip(&mut figures) {
        print(variant, median(idle), median(after));
    }
}

fn measure_once(variant: Variant, count: usize) -> (usize, usize) {
    let count_said = count.to_string();
    match variant {
        Variant::Bare | Variant::FastwebsocketsTls => {
            let (server, port, certificate) = server_part(&["server", variant.name()]);
            let clients = Clients::start(&["hold", variant.name(), &port, &certificate, &count_said]);
            clients.measure(server.0.id(), count)
        }
        Variant::Session | Variant::SessionTls => {
            let folder = tempfile::tempdir().unwrap();
            let (server, address) = start_chappe(folder.path(), variant.is_tls());
            let data = server::data(folder.path());
            let clients = Clients::start(&[
                "attach",
                variant.name(),
                &address.port().to_string(),
                data.to_str().unwrap(),
                &count_said,
            ]);
            clients.measure(server.0.id(), count)
        }
    }
}

async fn attach_all(variant: Variant, port: u16, data: &Path, count: usize) {
    let data = DataDir::new(data);
    let dial = if variant.is_tls() {
        let certificate = CertificateDer::from_pem_file(data.certificate()).unwrap();
        Dial::tls(port, certificate, "localhost")
    } else {
        Dial::plain(port, true)
    };
    let world = SystemWorld::new();
    let mut sessions = attach(&dial, &data, &world, 0..WARM_UP).await;
    // The cache is filled with envelopes like those that are exchanged later: pages of other sizes take other room.
    let fillers = 2 * (CACHE_MIB << 20) / MESSAGE_BYTES / WARM_UP + 1;
    for _ in 0..fillers {
        sessions = exchange(sessions, &world, MESSAGE_BYTES).await;
    }
    tokio::time::sleep(CURSORS_WRITTEN).await;
    ready();
    sessions.extend(attach(&dial, &data, &world, WARM_UP..count).await);
    tokio::time::sleep(CURSORS_WRITTEN).await;
    ready();
    let _sessions = exchange(sessions, &world, MESSAGE_BYTES).await;
    tokio::time::sleep(FORGOTTEN).await;
    ready();
}

async fn attach(
    dial: &Dial,
    data: &DataDir,
    world: &SystemWorld,
    numbers: std::ops::Range<usize>,
) -> Vec<Session> {
    let attached = numbers.map(|number| Session::attach(dial, data, world, number));
    stream::iter(attached).buffer_unordered(AT_ONCE).collect().await
}

async fn exchange(sessions: Vec<Session>, world: &SystemWorld, bytes: usize) -> Vec<Session> {
    let exchanged = sessions.into_iter().map(|session| session.exchange(world, bytes));
    stream::iter(exchanged).buffer_unordered(AT_ONCE).collect().await
}

/// A device with its socket, without the SDK.
struct Session {
    io: Box<dyn Io>,
    user: UserId,
}

impl Session {
    /// Hello to BacklogEnd.
    async fn attach(dial: &Dial, data: &DataDir, world: &SystemWorld, number: usize) -> Self {
        let (user, device) = (format!("person-{number}"), "phone");
        let token = chappe_standalone::token::issue(data, &user, device, 3600, world.wall()).unwrap();
        let io = dial.connect(number).await;
        let mut session = Self { io, user: UserId::new(&user).unwrap() };
        let hello = Hello {
            token: Secret(token),
            device: DeviceId::new(device).unwrap(),
            resume_token: Bytes::new(),
            cursor: None,
            role: Role::Main,
        };
        session.send(&ClientFrame::Hello(hello)).await;
        assert!(matches!(session.receive().await, ServerFrame::Welcome(_)));
        assert!(matches!(session.receive().await, ServerFrame::BacklogEnd { .. }));
        session
    }

    /// One envelope to itself, delivered and acked.
    async fn exchange(mut self, world: &SystemWorld, bytes: usize) -> Self {
        let target = Target {
            number: 0,
            user: self.user.clone(),
            devices: DeviceFilter::All,
            device_set_version: None,
            payload: 0,
        };
        let submit = Submit {
            submit_id: SubmitId::random(world),
            attempt: 1,
            payloads: vec![vec![7; bytes].into()],
            targets: vec![target],
            ttl: Millis(0),
            urgency: Urgency::Message,
            ephemeral: false,
        };
        self.send(&ClientFrame::Submit(submit)).await;
        let (mut accepted, mut delivered): (bool, Option<Seq>) = (false, None);
        while !accepted || delivered.is_none() {
            match self.receive().await {
                ServerFrame::SubmitResult(result) => {
                    assert_eq!(result.results[0].outcome, Outcome::Accepted);
                    accepted = true;
                }
                ServerFrame::Deliver(deliver) => {
                    assert_eq!(deliver.payload.len(), bytes);
                    delivered = Some(deliver.seq);
                }
                other @ (ServerFrame::Welcome(_)
                | ServerFrame::BacklogEnd { .. }
                | ServerFrame::Truncated { .. }
                | ServerFrame::Ephemeral { .. }
                | ServerFrame::GoAway(_)
                | ServerFrame::Error(_)
                | ServerFrame::Pong { .. }
                | ServerFrame::Reply { .. }) => panic!("unexpected: {other:?}"),
            }
        }
        self.send(&ClientFrame::Ack { upto: delivered.unwrap() }).await;
        self
    }

    /// One masked binary message; a mask of zeros leaves it as it is.
    async fn send(&mut self, frame: &ClientFrame) {
        let frame = frame.encode();
        let mut message = vec![0x82];
        match u16::try_from(frame.len()) {
            Ok(short @ 0..126) => message.push(0x80 | u8::try_from(short).unwrap()),
            Ok(medium) => {
                message.push(0x80 | 0x7e);
                message.extend(medium.to_be_bytes());
            }
            Err(_) => {
                message.push(0x80 | 127);
                message.extend((frame.len() as u64).to_be_bytes());
            }
        }
        message.extend([0; 4]);
        message.extend(frame);
        self.io.write_all(&message).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn receive(&mut self) -> ServerFrame {
        assert_eq!(self.io.read_u8().await.unwrap(), 0x82, "one whole binary message");
        let length = match self.io.read_u8().await.unwrap() {
            126 => usize::from(self.io.read_u16().await.unwrap()),
            127 => usize::try_from(self.io.read_u64().await.unwrap()).unwrap(),
            short => usize::from(short),
        };
        let mut message = vec![0; length];
        self.io.read_exact(&mut message).await.unwrap();
        ServerFrame::decode(message.into()).unwrap()
    }
}
