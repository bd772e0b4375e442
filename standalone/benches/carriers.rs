//! WebSocket over TLS, QUIC and WebTransport beside each other: what a session costs the server on each, and how long a
//! client waits on a long path. **Invariant:** the server is the built binary in a process of its own; clients are the
//! SDK; processor time and memory are the server's alone, from the kernel's counters.
//!
//! `cargo bench -p chappe-standalone --bench carriers -- --rounds 3`

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement fails by panicking")]

mod server;
#[path = "../../gateway/benches/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use chappe_client::{Client, Event, Millis, Outgoing, State, Tuning};
use chappe_loadtest::proxy::{Faults, Proxy, ProxyConfig};
use chappe_node::clock::SystemWorld;
use chappe_protocol::time::Time;
use chappe_protocol::world::World;
use chappe_standalone::development::DataDir;
use clap::Parser;
use futures_util::{StreamExt, stream};
use support::{WARM_UP, resident_bytes};

/// Attaches, and submits, at once.
const AT_ONCE: usize = 32;
const PAYLOAD_BYTES: usize = 256;
/// One way on the long path.
const LATENCY: Duration = Duration::from_millis(50);
const SCHEMES: [&str; 3] = ["wss", "chappe+quic", "chappe+webtransport"];

/// Measure the carriers beside each other.
#[derive(Debug, Parser)]
struct Options {
    /// Sessions per carrier.
    #[arg(long, default_value_t = 2_000)]
    sessions: usize,
    /// Envelopes per carrier.
    #[arg(long, default_value_t = 20_000)]
    envelopes: usize,
    /// Resumes, and changes of address, per carrier.
    #[arg(long, default_value_t = 10)]
    repeats: usize,
    /// Interleaved rounds; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is told, with its unit, in the order of [`measure_once`].
const FIGURES: [&str; 6] = [
    "idle session, bytes",
    "attach of a known device, us CPU",
    "envelope there and acked, us CPU",
    "first envelope after a resume on a path of 100 ms, ms",
    "first envelope after a change of address that the client is told, ms",
    "first envelope after one that it is not told but sends, ms",
];

fn main() {
    let options = Options::parse();
    chappe_node::tls::install_crypto_provider();
    let mut taken = vec![vec![Vec::new(); FIGURES.len()]; SCHEMES.len()];
    for round in 1..=options.rounds {
        for (scheme, taken) in SCHEMES.iter().zip(&mut taken) {
            let figures = support::runtime().block_on(measure_once(&options, scheme));
            println!("round {round}, {scheme}: {figures:?}");
            for (figure, taken) in figures.into_iter().zip(taken) {
                taken.extend(figure);
            }
        }
    }
    println!("medians of {} rounds:", options.rounds);
    println!("{:<70} {}", "", SCHEMES.map(|scheme| format!("{scheme:>20}")).concat());
    for (row, name) in FIGURES.iter().enumerate() {
        let cells = taken.iter_mut().map(|taken| match &mut taken[row][..] {
            [] => format!("{:>20}", "-"),
            values => format!("{:>20}", support::median(values)),
        });
        println!("{name:<70} {}", cells.collect::<String>());
    }
}

struct Site {
    scheme: &'static str,
    data: DataDir,
    process: support::Running,
    address: SocketAddr,
}

impl Site {
    async fn client(&self, at: SocketAddr, user: &str) -> Client {
        let token =
            chappe_standalone::token::issue(&self.data, user, "phone", 3600, SystemWorld::new().wall())
                .unwrap();
        let roots = std::fs::read(self.data.certificate()).unwrap();
        let tuning = Tuning { backoff_min: Millis::from_secs(5), ..Tuning::default() };
        let builder = Client::builder(format!("{}://{at}", self.scheme)).device("phone").token(token);
        builder.tuning(tuning).root_certificates_pem(&roots).connect().await.unwrap()
    }

    async fn clients(&self, numbers: std::ops::Range<usize>) -> Vec<Client> {
        let attached = numbers.map(async |number| self.client(self.address, &person(number)).await);
        stream::iter(attached).buffered(AT_ONCE).collect().await
    }

    fn resident_bytes(&self) -> usize {
        resident_bytes(self.process.0.id())
    }

    /// Processor time of the server so far, all threads, in units of 10 ms.
    fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.0.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }

    /// Processor time of the server per time that `work` does something, microseconds.
    async fn cost<T>(&self, times: usize, work: impl Future<Output = T>) -> (usize, T) {
        let before = self.processor_time();
        let done = work.await;
        let micros = self.processor_time().saturating_sub(before).as_micros();
        (usize::try_from(micros).unwrap() / times, done)
    }
}

async fn measure_once(options: &Options, scheme: &'static str) -> [Option<usize>; FIGURES.len()] {
    let folder = tempfile::tempdir().unwrap();
    let (process, address) = server::start_chappe(folder.path(), true);
    let data = DataDir::new(&server::data(folder.path()));
    let site = Site { scheme, data, process, address };

    let mut clients = site.clients(0..WARM_UP).await;
    deliver(&clients, WARM_UP * 10).await;
    let base = site.resident_bytes();
    clients.extend(site.clients(WARM_UP..options.sessions).await);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let idle = site.resident_bytes().saturating_sub(base) / (options.sessions - WARM_UP);
    stream::iter(clients).for_each_concurrent(AT_ONCE, async |client| client.close().await).await;
    let (attach, clients) = site.cost(options.sessions, site.clients(0..options.sessions)).await;
    let few = &clients[..clients.len().min(200)];
    let (envelope, ()) = site.cost(options.envelopes, deliver(few, options.envelopes)).await;

    let long = Path100::to(&site).await;
    let resume = long.resume(options.repeats).await;
    // The old address is dead in both.
    let told = long
        .moved(options.repeats, |long| {
            long.proxy.rebind();
            long.far.network_changed();
        })
        .await;
    // A connection of TCP does not survive it; what then happens is the resume above.
    let untold = match scheme {
        "wss" => None,
        _ => Some(long.moved(options.repeats, |long| long.proxy.rebind()).await),
    };
    [Some(idle), Some(attach), Some(envelope), Some(resume), Some(told), untold]
}

fn person(number: usize) -> String {
    format!("person-{number}")
}

/// Each to the next one, round and round, until so many envelopes are delivered and taken.
async fn deliver(clients: &[Client], envelopes: usize) {
    let rounds = envelopes.div_ceil(clients.len());
    let exchanges = clients.iter().enumerate().map(async |(number, client)| {
        let to = person((number + 1) % clients.len());
        for _ in 0..rounds {
            let outgoing = Outgoing::new(vec![7; PAYLOAD_BYTES]).to(to.as_str());
            assert!(client.submit(outgoing).await.unwrap().all_accepted());
            next(client).await;
        }
    });
    futures_util::future::join_all(exchanges).await;
}

async fn next(client: &Client) -> Vec<u8> {
    loop {
        if let Event::Envelope(envelope) = client.next_event().await.expect("an event") {
            let payload = envelope.payload.to_vec();
            envelope.ack();
            return payload;
        }
    }
}

async fn state(client: &Client, wanted: impl Fn(&State) -> bool) {
    let mut states = std::pin::pin!(client.states());
    while !wanted(&states.next().await.expect("a state that is not final")) {}
}

/// One client whose path to the server takes 50 ms each way, and one beside the server.
struct Path100 {
    world: SystemWorld,
    far: Client,
    near: Client,
    proxy: Proxy,
}

impl Path100 {
    async fn to(site: &Site) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let proxy = Proxy::start(ProxyConfig::new(listen, site.address)).await.unwrap();
        proxy.set(Faults { latency: LATENCY, ..Faults::default() }).unwrap();
        let (far, near) =
            (site.client(proxy.local_addr(), "far").await, site.client(site.address, "near").await);
        Self { world: SystemWorld::new(), far, near, proxy }
    }

    fn millis_since(&self, start: Time) -> usize {
        usize::try_from((self.world.now() - start).0).unwrap()
    }

    async fn send(&self, payload: u32) {
        let outgoing = Outgoing::new(payload.to_be_bytes().to_vec()).to("far");
        assert!(self.near.submit(outgoing).await.unwrap().all_accepted());
    }

    /// Median time from dialling to an envelope that came while the connection was lost, milliseconds.
    async fn resume(&self, repeats: usize) -> usize {
        let mut taken = Vec::new();
        for repeat in 0..u32::try_from(repeats).unwrap() {
            tokio::time::sleep(Duration::from_millis(300)).await;
            self.far.disconnect_now();
            state(&self.far, |state| matches!(state, State::Waiting { .. })).await;
            self.send(repeat).await;
            // Backoff is drawn from nothing up.
            if !matches!(self.far.state(), State::Waiting { .. }) {
                next(&self.far).await;
                continue;
            }
            let start = self.world.now();
            self.far.reconnect();
            assert_eq!(next(&self.far).await, repeat.to_be_bytes());
            taken.push(self.millis_since(start));
        }
        support::median(&mut taken)
    }

    /// Median time from a change of address to the first envelope that was submitted after it, milliseconds. The client
    /// sends one itself at once, as an application does that is in use; otherwise its next ping would be waited for.
    async fn moved(&self, repeats: usize, change: impl Fn(&Self)) -> usize {
        let mut taken = Vec::new();
        for repeat in 0..u32::try_from(repeats).unwrap() {
            tokio::time::sleep(Duration::from_secs(2)).await;
            change(self);
            let start = self.world.now();
            let own = async {
                let outgoing = Outgoing::new("on the way").to("near");
                assert!(self.far.submit(outgoing).await.unwrap().all_accepted());
                next(&self.near).await;
            };
            let answered = async {
                self.send(repeat).await;
                assert_eq!(next(&self.far).await, repeat.to_be_bytes());
                self.millis_since(start)
            };
            let ((), elapsed) = tokio::join!(own, answered);
            taken.push(elapsed);
        }
        support::median(&mut taken)
    }
}
