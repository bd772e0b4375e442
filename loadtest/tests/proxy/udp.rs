//! UDP through the proxy. **Invariant:** see the test's name.

use crate::{proxy, some_address, soon, until};
use chappe_loadtest::proxy::{Bound, Carriers, Direction, Faults, Proxy};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;

async fn target() -> UdpSocket {
    for _ in 0..100 {
        if let Ok(socket) = UdpSocket::bind(some_address()).await {
            return socket;
        }
    }
    panic!("no port is free");
}

async fn client(proxy: &Proxy) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(proxy.local_addr()).await.unwrap();
    socket
}

async fn heard(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    let (length, from) = soon(socket.recv_from(&mut buffer)).await.unwrap();
    buffer.truncate(length);
    (buffer, from)
}

async fn send_numbers(client: &UdpSocket, numbers: std::ops::Range<u16>) {
    for number in numbers {
        client.send(&number.to_be_bytes()).await.unwrap();
    }
}

async fn heard_number(socket: &UdpSocket) -> u16 {
    let (bytes, _) = heard(socket).await;
    u16::from_be_bytes(bytes.try_into().unwrap())
}

/// The numbers that come before the mark.
async fn numbers_until(socket: &UdpSocket, mark: u16) -> Vec<u16> {
    let mut numbers = Vec::new();
    loop {
        match heard_number(socket).await {
            number if number == mark => return numbers,
            number => numbers.push(number),
        }
    }
}

const MARK: u16 = 9_999;

fn lossy(loss: f64) -> Faults {
    Faults { loss, ..Faults::default() }
}

fn late(ms: u64) -> Faults {
    Faults { latency: Duration::from_millis(ms), ..Faults::default() }
}

#[tokio::test]
async fn datagrams_pass_unchanged_both_ways() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let client = client(&proxy).await;
    for size in [0, 1, 1_200, 9_000, 65_507] {
        let sent: Vec<u8> = (0..size).map(|at: u32| at.to_be_bytes()[3] ^ at.to_be_bytes()[2]).collect();
        client.send(&sent).await.unwrap();
        let (came, from) = heard(&target).await;
        assert_eq!(came, sent);
        assert_ne!(from, client.local_addr().unwrap());
        target.send_to(&came, from).await.unwrap();
        assert_eq!(heard(&client).await.0, sent);
    }
    until(&proxy, "all are counted", |stats| stats.udp.to_client.packets == 5).await;
    let stats = proxy.stats();
    assert_eq!((stats.udp.to_target.bytes, stats.udp.to_client.bytes), (75_708, 75_708));
    assert_eq!((stats.udp.open, stats.udp.to_target.delayed), (1, 0));
}

#[tokio::test]
async fn a_full_loss_passes_nothing() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| config.faults = lossy(1.0)).await;
    let client = client(&proxy).await;
    send_numbers(&client, 0..20).await;
    until(&proxy, "all are lost", |stats| stats.udp.to_target.lost == 20).await;
    proxy.set(Faults::default()).unwrap();
    send_numbers(&client, MARK..MARK + 1).await;
    assert_eq!(heard_number(&target).await, MARK);
}

#[tokio::test]
async fn one_direction_can_be_bad_alone() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    proxy.set_way(Direction::ToClient, lossy(1.0)).unwrap();
    let client = client(&proxy).await;
    client.send(b"question").await.unwrap();
    let (_, from) = heard(&target).await;
    target.send_to(b"lost", from).await.unwrap();
    until(&proxy, "the answer is lost", |stats| stats.udp.to_client.lost == 1).await;
    assert_eq!(proxy.stats().udp.to_target.lost, 0);
}

#[tokio::test]
async fn one_seed_loses_the_same_packets_and_another_others() {
    let target = target().await;
    let mut passed = Vec::new();
    for seed in [5, 5, 6] {
        let proxy = proxy(target.local_addr().unwrap(), |config| {
            config.faults = lossy(0.5);
            config.seed = seed;
        })
        .await;
        let client = client(&proxy).await;
        send_numbers(&client, 0..60).await;
        until(&proxy, "all are decided", |stats| {
            stats.udp.to_target.lost + stats.udp.to_target.packets == 60
        })
        .await;
        proxy.set(Faults::default()).unwrap();
        send_numbers(&client, MARK..MARK + 1).await;
        passed.push(numbers_until(&target, MARK).await);
    }
    assert!((10..50).contains(&passed[0].len()));
    assert_eq!(passed[0], passed[1]);
    assert_ne!(passed[0], passed[2]);
}

#[tokio::test]
async fn a_full_duplication_gives_two_of_each() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults = Faults { duplicate: 1.0, ..Faults::default() };
    })
    .await;
    let client = client(&proxy).await;
    for number in 0..10 {
        send_numbers(&client, number..number + 1).await;
        assert_eq!([heard_number(&target).await, heard_number(&target).await], [number; 2]);
    }
    assert_eq!(proxy.stats().udp.to_target.duplicated, 10);
}

#[tokio::test]
async fn packets_overtake_each_other_and_none_is_missing() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults = Faults { reorder: 0.3, ..Faults::default() };
    })
    .await;
    let client = client(&proxy).await;
    send_numbers(&client, 0..100).await;
    let mut numbers = Vec::new();
    while numbers.len() < 100 {
        numbers.push(heard_number(&target).await);
    }
    assert!(!numbers.is_sorted());
    assert!(proxy.stats().udp.to_target.reordered > 0);
    numbers.sort_unstable();
    assert_eq!(numbers, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn latency_acts_on_each_way() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| config.faults = late(100)).await;
    let client = client(&proxy).await;
    let before = now();
    client.send(b"there").await.unwrap();
    let (_, from) = heard(&target).await;
    target.send_to(b"and back", from).await.unwrap();
    assert_eq!(heard(&client).await.0, b"and back");
    assert!(now() - before >= Duration::from_millis(200));
}

#[expect(clippy::disallowed_methods, reason = "real sockets, real time")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn a_black_hole_swallows_what_comes_and_what_waits_and_then_heals() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| config.faults = late(2_000)).await;
    let client = client(&proxy).await;
    send_numbers(&client, 0..5).await;
    until(&proxy, "they wait", |stats| stats.udp.to_target.delayed == 5).await;
    proxy.black_hole(Carriers::Udp, true);
    send_numbers(&client, 5..10).await;
    until(&proxy, "all are swallowed", |stats| stats.udp.to_target.swallowed == 10).await;
    proxy.black_hole(Carriers::Tcp, false);
    send_numbers(&client, 10..11).await;
    until(&proxy, "the hole is not TCP's", |stats| stats.udp.to_target.swallowed == 11).await;
    proxy.set(Faults::default()).unwrap();
    proxy.black_hole(Carriers::Udp, false);
    send_numbers(&client, MARK..MARK + 1).await;
    assert_eq!(heard_number(&target).await, MARK);
}

#[tokio::test]
async fn after_a_rebind_the_target_sees_another_port_and_the_client_nothing() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let client = client(&proxy).await;
    let mut seen = Vec::new();
    for turn in 0..3 {
        client.send(b"hello").await.unwrap();
        let (_, from) = heard(&target).await;
        assert!(!seen.contains(&from), "turn {turn}: {from}");
        // What goes to a forgotten port is lost, the client hears from the new one.
        if let Some(old) = seen.last() {
            target.send_to(b"to the old port", old).await.unwrap();
        }
        target.send_to(b"to the new port", from).await.unwrap();
        assert_eq!(heard(&client).await.0, b"to the new port");
        seen.push(from);
        proxy.rebind();
    }
    assert!(proxy.stats().rebound >= 2);
    assert_eq!(proxy.stats().udp.open, 1);
}

#[tokio::test]
async fn a_stranger_cannot_write_to_a_client() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let client = client(&proxy).await;
    client.send(b"hello").await.unwrap();
    let (_, from) = heard(&target).await;
    let door = SocketAddr::from(([127, 0, 0, 1], from.port()));
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    stranger.send_to(b"from a stranger", door).await.unwrap();
    target.send_to(b"from the target", from).await.unwrap();
    assert_eq!(heard(&client).await.0, b"from the target");
}

#[tokio::test]
async fn a_full_queue_takes_no_more() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults = late(50_000);
        config.limits.queue = Bound { packets_max: 10, bytes_max: 1_000 };
    })
    .await;
    let client = client(&proxy).await;
    send_numbers(&client, 0..30).await;
    until(&proxy, "the others are dropped", |stats| stats.udp.to_target.dropped == 20).await;
    assert_eq!(proxy.stats().udp.to_target.delayed, 10);
}

#[tokio::test]
async fn flows_are_bounded() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| config.limits.flows_max = 2).await;
    let (one, two, three) = (client(&proxy).await, client(&proxy).await, client(&proxy).await);
    for known in [&one, &two] {
        known.send(b"in").await.unwrap();
        heard(&target).await;
    }
    three.send(b"too many").await.unwrap();
    until(&proxy, "the third is refused", |stats| stats.udp.refused == 1).await;
    one.send(b"known").await.unwrap();
    assert_eq!(heard(&target).await.0, b"known");
    assert_eq!(proxy.stats().udp.open, 2);
}

#[tokio::test]
async fn a_silent_flow_makes_room() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.limits.flows_max = 1;
        config.limits.idle = Duration::from_millis(200);
    })
    .await;
    let (one, two) = (client(&proxy).await, client(&proxy).await);
    for (next, name) in [(&one, b"one"), (&two, b"two"), (&one, b"one")] {
        next.send(name).await.unwrap();
        assert_eq!(heard(&target).await.0, name);
        until(&proxy, "the silent is forgotten", |stats| stats.udp.open == 0).await;
    }
    assert_eq!(proxy.stats().udp.refused, 0);
}

#[tokio::test]
async fn a_target_that_comes_later_is_reached_by_the_same_flow() {
    let gone = target().await;
    let address = gone.local_addr().unwrap();
    drop(gone);
    let proxy = proxy(address, |_| {}).await;
    let client = client(&proxy).await;
    for number in 0..5 {
        send_numbers(&client, number..number + 1).await;
        until(&proxy, "it went", |stats| {
            stats.udp.to_target.packets + stats.udp.to_target.dropped > u64::from(number)
        })
        .await;
    }
    let target = UdpSocket::bind(address).await.unwrap();
    send_numbers(&client, MARK..MARK + 1).await;
    assert_eq!(heard_number(&target).await, MARK);
    assert_eq!((proxy.stats().udp.open, proxy.stats().udp.refused), (1, 0));
}

#[tokio::test]
async fn a_stopped_proxy_gives_its_port_back() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let client = client(&proxy).await;
    client.send(b"hello").await.unwrap();
    heard(&target).await;
    let address = proxy.local_addr();
    soon(proxy.stop()).await;
    UdpSocket::bind(address).await.unwrap();
}
