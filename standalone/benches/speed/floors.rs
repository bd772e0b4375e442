//! What the kernel and the cryptography take by themselves, on this machine, now.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};

/// What one durable envelope takes at least, microseconds of CPU for each.
pub(crate) struct Envelope {
    /// Of a socket.
    pub(crate) read: f64,
    /// Of a socket.
    pub(crate) write: f64,
    /// Into a log.
    pub(crate) log: f64,
    /// Its share of a sync.
    pub(crate) sync: f64,
}

impl Envelope {
    /// Submit, answer, delivery: two reads, since the ack is shared by many, and two writes; the log and its sync.
    pub(crate) fn sum(&self) -> f64 {
        2.0 * (self.read + self.write) + self.log + self.sync
    }
}

/// A submit, or a delivery, of 256 bytes of payload on the wire, roughly.
const FRAME_BYTES: usize = 380;
/// What one append adds to the journal: slot, id, head.
const RECORD_BYTES: usize = 640;
const SOCKETS: usize = 64;
const FRAMES: usize = 100;

/// CPU time of this thread, seconds.
fn cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds")]
    let seconds = time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9;
    seconds
}

/// Microseconds of CPU that each of `times` took.
fn each(times: usize, work: impl FnOnce()) -> f64 {
    let before = cpu();
    work();
    (cpu() - before) * 1e6 / crate::as_f64(times)
}

/// With so many envelopes that share a sync.
pub(crate) fn envelope(group: f64) -> Envelope {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number of envelopes"
    )]
    let ((read, write), (log, sync)) = (sockets(), log(group.round().max(1.0) as usize));
    Envelope { read, write, log, sync }
}

fn pairs(count: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let pair = |_| {
        let near = TcpStream::connect(address).unwrap();
        let far = listener.accept().unwrap().0;
        for one in [&near, &far] {
            one.set_nodelay(true).unwrap();
        }
        (near, far)
    };
    (0..count).map(pair).collect()
}

/// One read of one frame that is there, and one write of one frame.
fn sockets() -> (f64, f64) {
    let mut pairs = pairs(SOCKETS);
    let (out, mut into) = ([7; FRAME_BYTES], [0; FRAME_BYTES]);
    let times = SOCKETS * FRAMES;
    let write = each(times, || {
        for _ in 0..FRAMES {
            for (near, _) in &mut pairs {
                near.write_all(&out).unwrap();
            }
        }
    });
    let read = each(times, || {
        for _ in 0..FRAMES {
            for (_, far) in &mut pairs {
                far.read_exact(&mut into).unwrap();
            }
        }
    });
    (read, write)
}

/// One append's write into a log, and its share of the sync of a group.
fn log(group: usize) -> (f64, f64) {
    const GROUPS: usize = 200;
    // Beside the built binary: a temporary directory may be memory.
    let folder = std::env::current_exe().unwrap();
    let file = tempfile::tempfile_in(folder.parent().unwrap()).unwrap();
    let record = vec![7; (RECORD_BYTES * group).next_multiple_of(4096)];
    let (mut written, mut synced, mut at) = (0.0, 0.0, 0);
    for _ in 0..GROUPS {
        written += each(group, || write_at(&file, &record, at));
        synced += each(group, || file.sync_data().unwrap());
        at += record.len() as u64;
    }
    (written / crate::as_f64(GROUPS), synced / crate::as_f64(GROUPS))
}

fn write_at(file: &File, record: &[u8], at: u64) {
    file.write_all_at(record, at).unwrap();
}

/// One write of a frame that is ready, to each of many sockets in turn.
pub(crate) fn prebuilt(sessions: usize) -> f64 {
    const TURNS: usize = 8;
    let mut pairs = pairs(sessions);
    let frame = [7; FRAME_BYTES];
    each(sessions * TURNS, || {
        for _ in 0..TURNS {
            for (near, _) in &mut pairs {
                near.write_all(&frame).unwrap();
            }
        }
    })
}

/// The server's half of a full TLS 1.3 handshake in memory: P-256, the key exchange that both prefer.
pub(crate) fn handshake() -> f64 {
    const TIMES: usize = 200;
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let (server, mut client) = (Arc::new(server), client);
    client.resumption = rustls::client::Resumption::disabled();
    let client = Arc::new(client);
    let name = ServerName::try_from("localhost").unwrap();
    let mut total = 0.0;
    for _ in 0..TIMES {
        let mut near = rustls::ClientConnection::new(Arc::clone(&client), name.clone()).unwrap();
        let mut out = Vec::new();
        let mut far = None;
        total += each(1, || far = Some(rustls::ServerConnection::new(Arc::clone(&server)).unwrap()));
        let mut far = far.unwrap();
        while near.is_handshaking() || far.is_handshaking() {
            out.clear();
            while near.wants_write() {
                near.write_tls(&mut out).unwrap();
            }
            total += each(1, || {
                let mut rest = &out[..];
                while !rest.is_empty() {
                    far.read_tls(&mut rest).unwrap();
                    far.process_new_packets().unwrap();
                }
            });
            let mut back = Vec::new();
            total += each(1, || {
                while far.wants_write() {
                    far.write_tls(&mut back).unwrap();
                }
            });
            let mut rest = &back[..];
            while !rest.is_empty() {
                near.read_tls(&mut rest).unwrap();
                near.process_new_packets().unwrap();
            }
        }
    }
    total / crate::as_f64(TIMES)
}
