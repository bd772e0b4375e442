//! A server, and sessions over bare sockets: attached with a real token, then driven by hand. **Invariant:** what a client does here
//! costs the server nothing that the SDK would not cost it.

use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes, BytesMut};
use chappe_loadtest::watch::Watch;
use chappe_node::clock::SystemWorld;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{ClientFrame, Cursor, Hello, Role, Secret, ServerFrame, Submit, Target};
use chappe_protocol::id::{DeviceId, SubmitId, UserId};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_standalone::development::DataDir;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::server::{data, start_chappe_with};
use crate::support::{Dial, Io, Running};

/// Messages that arrived, at all sessions.
pub(crate) type Counter = Arc<AtomicUsize>;

/// `chappe serve` in a process of its own, and what its clients need.
pub(crate) struct Server {
    process: Running,
    admin: SocketAddr,
    dial: Dial,
    data: DataDir,
    pub(crate) world: SystemWorld,
    _folder: TempDir,
}

impl Server {
    pub(crate) fn start(is_tls: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let admin = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (process, address) = start_chappe_with(folder.path(), is_tls, admin, "");
        let data = DataDir::new(&data(folder.path()));
        let dial = if is_tls {
            let mut dial = Dial::tls(
                address.port(),
                CertificateDer::from_pem_file(data.certificate()).unwrap(),
                "localhost",
            );
            // Every connection is a full handshake.
            let connector = &mut dial.tls.as_mut().unwrap().0;
            let mut config = (**connector.config()).clone();
            config.resumption = rustls::client::Resumption::disabled();
            *connector = Arc::new(config).into();
            dial
        } else {
            Dial::plain(address.port(), true)
        };
        Self { process, admin, dial, data, world: SystemWorld::new(), _folder: folder }
    }

    pub(crate) fn cpu_seconds(&self) -> f64 {
        Watch::new(vec![self.process.0.id()], None).look().unwrap().cpu_seconds
    }

    /// The sum of the server's counters whose names begin so.
    pub(crate) async fn counted(&self, names: &str) -> f64 {
        let mut socket = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let lines = answer.lines().filter(|line| line.starts_with(names));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    fn token(&self, number: usize, device: &str) -> String {
        let (user, wall) = (user(number), self.world.wall());
        chappe_standalone::token::issue(&self.data, user.as_str(), device, 3600, wall).unwrap()
    }

    /// Connects, says Hello, and hears Welcome and BacklogEnd.
    pub(crate) async fn attach(&self, number: usize, device: &str, known: Option<&Known>) -> Attached {
        // An app keeps its token for as long as it is good.
        let token = known.map_or_else(|| self.token(number, device), |known| known.token.clone());
        let mut socket = self.dial.connect(number).await;
        let hello = Hello {
            token: Secret(token.clone()),
            device: DeviceId::new(device).unwrap(),
            resume_token: known.map(|known| known.resume_token.clone()).unwrap_or_default(),
            cursor: known.map(|known| known.cursor),
            role: Role::Main,
        };
        socket.write_all(&framed(&ClientFrame::Hello(hello))).await.unwrap();
        socket.flush().await.unwrap();
        let (mut input, mut welcome) = (BytesMut::new(), None);
        loop {
            assert_ne!(socket.read_buf(&mut input).await.unwrap(), 0, "the server closed");
            while let Some(message) = take(&mut input) {
                let frame = ServerFrame::decode(message).unwrap();
                if let ServerFrame::Welcome(told) = frame {
                    welcome = Some(told);
                } else if let ServerFrame::BacklogEnd { .. } = frame {
                    let told = welcome.expect("Welcome comes first");
                    // A slice would keep all that was read with it.
                    let resume_token = Bytes::copy_from_slice(&told.resume_token);
                    let cursor = Cursor { tag: told.tag, seq: told.from };
                    let known = Known { token, resume_token, cursor };
                    return Attached { socket, known, resumed: told.resumed };
                }
            }
        }
    }
}

/// What a client that comes again shows.
pub(crate) struct Known {
    token: String,
    resume_token: Bytes,
    cursor: Cursor,
}

/// A session that stands.
pub(crate) struct Attached {
    pub(crate) socket: Box<dyn Io>,
    pub(crate) known: Known,
    /// By the token that was shown.
    pub(crate) resumed: bool,
}

fn user(number: usize) -> UserId {
    UserId::new(&format!("speed-{number}")).unwrap()
}

/// Counts what arrives at a session, for as long as it lives.
pub(crate) async fn count(mut socket: impl tokio::io::AsyncRead + Unpin, counter: Counter) {
    let mut input = BytesMut::with_capacity(1024);
    while socket.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
        while take(&mut input).is_some() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        input.reserve(1024);
    }
}

/// An envelope to these users.
pub(crate) fn submit(world: &SystemWorld, bytes: usize, to: Range<usize>, ephemeral: bool) -> Vec<u8> {
    let target = |(place, number): (usize, usize)| Target {
        number: u32::try_from(place).unwrap(),
        user: user(number),
        devices: DeviceFilter::All,
        device_set_version: None,
        payload: 0,
    };
    framed(&ClientFrame::Submit(Submit {
        submit_id: SubmitId::random(world),
        attempt: 1,
        payloads: vec![vec![7; bytes].into()],
        targets: to.enumerate().map(target).collect(),
        ttl: Millis(0),
        urgency: Urgency::Message,
        ephemeral,
    }))
}

/// Takes the message at the beginning, if all of it is there.
pub(crate) fn take(input: &mut BytesMut) -> Option<Bytes> {
    let (head, length) = match *input.get(1)? {
        126 => (4, usize::from(u16::from_be_bytes(input.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(input.get(2..10)?.try_into().ok()?)).ok()?),
        short => (2, usize::from(short)),
    };
    assert_eq!(input[0], 0x82, "the server sent no whole binary message: a close?");
    if input.len() < head + length {
        return None;
    }
    input.advance(head);
    Some(input.split_to(length).freeze())
}

/// One binary message; a mask of zeros leaves it as it is.
pub(crate) fn framed(frame: &ClientFrame) -> Vec<u8> {
    let frame = frame.encode();
    let mut message = vec![0x82];
    match u16::try_from(frame.len()) {
        Ok(short @ 0..126) => message.push(0x80 | u8::try_from(short).unwrap()),
        Ok(medium) => {
            message.push(0x80 | 0x7e);
            message.extend(medium.to_be_bytes());
        }
        Err(_) => {
            message.push(0x80 | 0x7f);
            message.extend((frame.len() as u64).to_be_bytes());
        }
    }
    message.extend([0; 4]);
    message.extend(frame);
    message
}
