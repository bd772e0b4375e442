//! The SDK on every carrier against a real server, over a path that can fail: choice, fall-back, migration.
//! Sockets are real, so is time; nothing is measured but what a user is promised.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

use chappe_client::{Builder, Carrier, Client, ClientError, Event, Millis, Outgoing, State, Tuning};
use chappe_loadtest::proxy::{Carriers, Proxy, ProxyConfig};
use chappe_node::clock::SystemWorld;
use chappe_node::signal::Signals;
use chappe_protocol::world::World;
use chappe_standalone::config::ServeConfig;
use chappe_standalone::development::DataDir;
use chappe_standalone::serve::Server;
use futures_util::StreamExt as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Nothing that is right takes so long.
const PATIENCE: Duration = Duration::from_mins(1);
const SCHEMES: [(&str, Carrier); 4] = [
    ("wss", Carrier::WebSocket),
    ("chappe+quic", Carrier::Quic),
    ("chappe+webtransport", Carrier::WebTransport),
    ("chappe", Carrier::Quic),
];

/// Below those that the system gives to outgoing connections, free for TCP and UDP.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 1000).unwrap() * 12;
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], first + NEXT.fetch_add(1, Ordering::Relaxed)));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// A server, and the path to it.
struct Site {
    data: DataDir,
    proxy: Proxy,
    direct: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
    _folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(tune: impl FnOnce(&mut ServeConfig)) -> Self {
        chappe_node::tls::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let (listen, admin) = (free_address(), free_address());
        let mut config = ServeConfig { listen, admin, data: path.clone(), ..ServeConfig::default() };
        tune(&mut config);
        let server = Server::open(config).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let reload = tokio::sync::watch::channel(0).1;
        tasks.spawn(server.run(Signals { stop: stop.clone(), reload }));
        let proxy = Proxy::start(ProxyConfig::new(free_address(), listen)).await.unwrap();
        Self { data: DataDir::new(&path), proxy, direct: listen, stop, tasks, _folder: folder }
    }

    fn builder_at(&self, scheme: &str, at: SocketAddr, user: &str, device: &str) -> Builder {
        let now = SystemWorld::new().wall();
        let token = chappe_standalone::token::issue(&self.data, user, device, 3600, now).unwrap();
        let roots = std::fs::read(self.data.certificate()).unwrap();
        Client::builder(format!("{scheme}://{at}")).device(device).token(token).root_certificates_pem(&roots)
    }

    /// Through the proxy.
    fn builder(&self, scheme: &str, user: &str) -> Builder {
        self.builder_at(scheme, self.proxy.local_addr(), user, "phone")
    }

    async fn client(&self, scheme: &str, user: &str) -> Client {
        within(self.builder(scheme, user).connect()).await.unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        within(self.tasks.wait()).await;
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("a minute has passed")
}

fn connected(client: &Client) -> (Carrier, bool, u64) {
    match client.state() {
        State::Connected { carrier, resumed, epoch } => (carrier, resumed, epoch.0),
        other @ (State::Connecting { .. }
        | State::Waiting { .. }
        | State::Superseded
        | State::Failed(_)
        | State::Closed) => panic!("not connected: {other:?}"),
    }
}

/// The next state of this kind.
async fn state(client: &Client, mut wanted: impl FnMut(&State) -> bool) -> State {
    let mut states = std::pin::pin!(client.states());
    let found = async {
        loop {
            let state = states.next().await.expect("a state that is not final");
            if wanted(&state) {
                return state;
            }
        }
    };
    within(found).await
}

/// The payload of the next envelope, acked.
async fn receive(client: &Client) -> Vec<u8> {
    let found = async {
        loop {
            if let Event::Envelope(envelope) = client.next_event().await.expect("an event") {
                let payload = envelope.payload.to_vec();
                envelope.ack();
                return payload;
            }
        }
    };
    within(found).await
}

async fn send(client: &Client, to: &str, payload: impl Into<Vec<u8>>) {
    let receipt = within(client.submit(Outgoing::new(payload.into()).to(to))).await.unwrap();
    assert!(receipt.all_accepted(), "{receipt:?}");
}

#[tokio::test]
async fn every_carrier_sends_receives_acks_and_resumes() {
    let site = Site::start().await;
    for (scheme, carrier) in SCHEMES {
        let (anna, ben) = (site.client(scheme, "anna").await, site.client(scheme, "ben").await);
        let (used, _, epoch) = connected(&ben);
        assert_eq!((connected(&anna).0, used), (carrier, carrier), "{scheme}");
        let big: Vec<u8> = (0..90_000u32).map(|n| (n % 251) as u8).collect();
        for payload in [b"one".to_vec(), big, b"three".to_vec()] {
            send(&anna, "ben", payload.clone()).await;
            assert!(receive(&ben).await == payload, "{scheme}");
        }
        // The ack of an envelope that was taken must not get lost with the connection.
        tokio::time::sleep(Duration::from_millis(100)).await;
        ben.disconnect_now();
        state(&ben, |state| matches!(state, State::Waiting { .. } | State::Connecting { .. })).await;
        send(&anna, "ben", "while away").await;
        let back = state(&ben, |state| matches!(state, State::Connected { .. })).await;
        let State::Connected { resumed, epoch: again, carrier: used } = back else { unreachable!() };
        assert!(resumed && again.0 >= epoch && used == carrier, "{scheme}: {again:?} after {epoch}");
        assert_eq!(receive(&ben).await, b"while away", "{scheme}: nothing is repeated");
        within(anna.close()).await;
        within(ben.close()).await;
        assert_eq!((anna.state(), ben.state()), (State::Closed, State::Closed));
    }
    site.end().await;
}

#[tokio::test]
async fn ephemerals_pass_small_and_large() {
    let site = Site::start().await;
    for (scheme, _) in SCHEMES {
        let (anna, ben) = (site.client(scheme, "anna").await, site.client(scheme, "ben").await);
        for size in [10usize, 3000, 16 * 1024] {
            let payload = vec![7; size];
            let taken = async {
                loop {
                    // One may be lost on the way; that is what they are for.
                    anna.submit_ephemeral(Outgoing::new(payload.clone()).to("ben")).unwrap();
                    let event = timeout(Duration::from_millis(500), ben.next_event()).await;
                    if let Ok(Some(Event::Ephemeral { payload, .. })) = event
                        && payload.len() == size
                    {
                        return payload;
                    }
                }
            };
            assert_eq!(within(taken).await.to_vec(), payload, "{scheme}");
        }
        let refused = anna.submit_ephemeral(Outgoing::new(vec![7; 16 * 1024 + 1]).to("ben"));
        assert!(
            matches!(refused, Err(ClientError::TooLarge { limit_name: "ephemeral_bytes_max", .. })),
            "{refused:?}"
        );
        within(anna.close()).await;
        within(ben.close()).await;
    }
    site.end().await;
}

#[tokio::test]
async fn another_socket_of_the_device_supersedes_and_a_bad_token_is_final() {
    let site = Site::start().await;
    for (scheme, _) in SCHEMES {
        let first = site.client(scheme, "anna").await;
        let second = site.client(scheme, "anna").await;
        state(&first, |state| *state == State::Superseded).await;
        drop((first, second));
        let bad = site.builder(scheme, "anna").token("no token at all").connect();
        match within(bad).await {
            Err(ClientError::Ended { code: 4500, .. }) => {}
            other => panic!("{scheme}: {other:?}"),
        }
    }
    site.end().await;
}

#[tokio::test]
async fn automatic_takes_websocket_where_udp_is_swallowed_and_remembers_it() {
    let site = Site::start().await;
    site.proxy.black_hole(Carriers::Udp, true);
    let anna = site.client("chappe", "anna").await;
    assert_eq!(connected(&anna).0, Carrier::WebSocket);
    // UDP is back; but who was burnt does not try it at once.
    site.proxy.black_hole(Carriers::Udp, false);
    anna.disconnect_now();
    state(&anna, |state| !matches!(state, State::Connected { .. })).await;
    state(&anna, |state| matches!(state, State::Connected { .. })).await;
    assert_eq!(connected(&anna).0, Carrier::WebSocket);
    // QUIC alone waits for it, and gets it.
    let tuning = Tuning { connect_timeout: Millis(1500), ..Tuning::default() };
    site.proxy.black_hole(Carriers::Udp, true);
    let ben = site.builder("chappe+quic", "ben").tuning(tuning).start();
    state(&ben, |state| matches!(state, State::Waiting { .. })).await;
    site.proxy.black_hole(Carriers::Udp, false);
    within(ben.connected()).await.unwrap();
    assert_eq!(connected(&ben).0, Carrier::Quic);
    site.end().await;
}

#[tokio::test]
async fn automatic_takes_websocket_where_no_quic_is_served() {
    let site = Site::start_with(|config| config.quic.off = true).await;
    let anna = within(site.builder_at("chappe", site.direct, "anna", "phone").connect()).await.unwrap();
    assert_eq!(connected(&anna).0, Carrier::WebSocket);
    site.end().await;
}

#[tokio::test]
async fn automatic_takes_quic_where_tcp_is_dead() {
    let site = Site::start().await;
    site.proxy.black_hole(Carriers::Tcp, true);
    let anna = site.client("chappe", "anna").await;
    assert_eq!(connected(&anna).0, Carrier::Quic);
    site.end().await;
}

#[tokio::test]
async fn a_black_hole_in_mid_session_costs_ten_seconds_and_nothing_else() {
    let site = Site::start().await;
    let (anna, ben) = (site.client("chappe", "anna").await, site.client("wss", "ben").await);
    assert_eq!(connected(&anna).0, Carrier::Quic);
    for number in 0..5u8 {
        send(&anna, "ben", vec![number]).await;
    }
    let mut pending = Vec::new();
    for number in 5..10u8 {
        pending.push(anna.submit_queued(Outgoing::new(vec![number]).to("ben")).await.unwrap());
    }
    site.proxy.black_hole(Carriers::Udp, true);
    for number in 10..20u8 {
        pending.push(anna.submit_queued(Outgoing::new(vec![number]).to("ben")).await.unwrap());
    }
    let decided = async {
        for pending in pending {
            assert!(pending.receipt().await.unwrap().all_accepted());
        }
    };
    timeout(Duration::from_secs(10), decided).await.expect("within 10 s");
    assert_eq!(connected(&anna).0, Carrier::WebSocket);
    send(&anna, "ben", vec![20]).await;
    for number in 0..=20u8 {
        assert_eq!(receive(&ben).await, [number], "once, in order");
    }
    site.end().await;
}

/// What happens to the client from here on, apart from a session that stands.
fn watch(client: &Client) -> impl FnMut() -> Vec<State> + use<> {
    let (tasks, states) = (TaskTracker::new(), client.states());
    let (seen, mut taken) = tokio::sync::mpsc::channel(100);
    tasks.spawn(async move {
        let mut states = std::pin::pin!(states.skip(1));
        while let Some(state) = states.next().await {
            seen.send(state).await.unwrap();
        }
    });
    move || std::iter::from_fn(|| taken.try_recv().ok()).collect()
}

#[tokio::test]
async fn a_session_keeps_going_when_its_address_changes() {
    let site = Site::start().await;
    for scheme in ["chappe+quic", "chappe+webtransport", "chappe"] {
        let (anna, ben) = (site.client(scheme, "anna").await, site.client("wss", "ben").await);
        let before = connected(&anna);
        let mut seen = watch(&anna);
        for round in 0..4u8 {
            if round % 2 == 0 {
                // A new socket of the device's own.
                anna.network_changed();
            } else {
                // A NAT that forgot: nobody tells the client.
                site.proxy.rebind();
            }
            send(&anna, "ben", vec![round]).await;
            send(&ben, "anna", vec![round]).await;
            assert_eq!((receive(&ben).await, receive(&anna).await), (vec![round], vec![round]), "{scheme}");
        }
        // Longer than the old path may take before a second connection is tried.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(connected(&anna), before, "{scheme}: the same session");
        assert_eq!(seen(), [], "{scheme}: and never another");
        within(anna.close()).await;
        within(ben.close()).await;
    }
    site.end().await;
}

#[tokio::test]
async fn in_a_network_without_udp_a_session_goes_over_to_websocket_at_once() {
    let site = Site::start().await;
    let (anna, ben) = (site.client("chappe", "anna").await, site.client("wss", "ben").await);
    assert_eq!(connected(&anna).0, Carrier::Quic);
    let mut seen = watch(&anna);
    site.proxy.black_hole(Carriers::Udp, true);
    anna.network_changed();
    state(&anna, |state| matches!(state, State::Connected { carrier: Carrier::WebSocket, .. })).await;
    let why: Vec<String> = seen()
        .into_iter()
        .filter_map(|state| match state {
            State::Waiting { why, retry_in } => Some(format!("{why} {}", retry_in.0)),
            State::Superseded => Some("superseded".to_owned()),
            State::Connecting { .. } | State::Connected { .. } | State::Failed(_) | State::Closed => None,
        })
        .collect();
    assert!(why.iter().all(|why| why == "another network 0"), "{why:?}");
    assert!(connected(&anna).1, "resumed");
    send(&ben, "anna", "here").await;
    assert_eq!(receive(&anna).await, b"here");
    // WebSocket has nothing that could follow: it connects again at once.
    anna.network_changed();
    state(&anna, |state| !matches!(state, State::Connected { .. })).await;
    state(&anna, |state| matches!(state, State::Connected { resumed: true, .. })).await;
    site.end().await;
}
