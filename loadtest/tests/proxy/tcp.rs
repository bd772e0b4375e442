//! TCP through the proxy. **Invariant:** see the test's name.

use crate::{proxy, some_address, soon, until};
use chappe_loadtest::proxy::{Bound, Carriers, Faults, Proxy};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// So long something may have to happen that must not.
const A_WHILE: Duration = Duration::from_millis(300);

async fn target() -> TcpListener {
    for _ in 0..100 {
        if let Ok(listener) = TcpListener::bind(some_address()).await {
            return listener;
        }
    }
    panic!("no port is free");
}

/// A connection through the proxy: the client's end and the target's.
async fn connect(proxy: &Proxy, target: &TcpListener) -> (TcpStream, TcpStream) {
    let client = soon(TcpStream::connect(proxy.local_addr())).await.unwrap();
    (client, soon(target.accept()).await.unwrap().0)
}

async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

async fn ends_in_a_reset(stream: &mut TcpStream) {
    let error = soon(stream.read_to_end(&mut Vec::new())).await.expect_err("a proper end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn bytes(count: u32) -> Vec<u8> {
    (0..count).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

#[expect(clippy::disallowed_methods, reason = "real sockets, real time")]
fn now() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn a_mebibyte_comes_back_unchanged_over_a_bad_path() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults = Faults {
            latency: Duration::from_millis(50),
            jitter: Duration::from_millis(20),
            loss: 0.002,
            duplicate: 0.5,
            reorder: 0.5,
            ..Faults::default()
        };
    })
    .await;
    let before = now();
    let (client, mut server) = connect(&proxy, &target).await;
    let (mut client_read, mut client_write) = client.into_split();
    let sent = bytes(1 << 20);
    let write = async {
        client_write.write_all(&sent).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let echo = async {
        let (mut from, mut to) = server.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut came = Vec::new();
    let (_, (), ()) = soon(async { tokio::join!(client_read.read_to_end(&mut came), write, echo) }).await;
    assert!(came == sent, "{} bytes came back", came.len());
    assert!(now() - before >= Duration::from_millis(60), "twice the latency less the jitter");
    let stats = proxy.stats().tcp;
    assert_eq!((stats.to_target.bytes, stats.to_client.bytes), (1 << 20, 1 << 20));
    assert_eq!((stats.to_target.duplicated, stats.to_target.reordered), (0, 0));
    assert!(stats.to_target.lost > 0 && stats.to_target.delayed > 700);
}

#[tokio::test]
async fn a_black_hole_stalls_without_a_reset_and_heals() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    client.write_all(b"before").await.unwrap();
    assert_eq!(read(&mut server, 6).await, b"before");
    proxy.black_hole(Carriers::Both, true);
    proxy.black_hole(Carriers::Udp, false);
    client.write_all(b"held up").await.unwrap();
    server.write_all(b"as well").await.unwrap();
    // The kernel takes the connection, the target does not see it.
    let mut second = soon(TcpStream::connect(proxy.local_addr())).await.unwrap();
    second.write_all(b"knock").await.unwrap();
    let (mut one, mut two, mut three) = ([0; 1], [0; 1], [0; 1]);
    tokio::select! {
        biased;
        _ = client.read(&mut one) => panic!("the client heard something"),
        _ = server.read(&mut two) => panic!("the target heard something"),
        _ = second.read(&mut three) => panic!("the second client heard something"),
        _ = target.accept() => panic!("the target saw a connection"),
        () = tokio::time::sleep(A_WHILE) => {}
    }
    proxy.black_hole(Carriers::Tcp, false);
    assert_eq!(read(&mut server, 7).await, b"held up");
    assert_eq!(read(&mut client, 7).await, b"as well");
    let (mut second_server, _) = soon(target.accept()).await.unwrap();
    assert_eq!(read(&mut second_server, 5).await, b"knock");
    assert_eq!(proxy.stats().reset, 0);
}

#[tokio::test]
async fn bytes_on_their_way_wait_out_a_black_hole() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults.latency = Duration::from_secs(2);
    })
    .await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    client.write_all(b"on the way").await.unwrap();
    until(&proxy, "it is read", |stats| stats.tcp.to_target.delayed == 1).await;
    proxy.black_hole(Carriers::Tcp, true);
    let early = tokio::time::timeout(Duration::from_millis(2_500), server.read(&mut [0; 1])).await;
    assert!(early.is_err(), "it came out in the hole");
    proxy.black_hole(Carriers::Tcp, false);
    assert_eq!(read(&mut server, 10).await, b"on the way");
}

#[tokio::test]
async fn a_reset_ends_the_open_connections_on_both_sides_and_no_later_one() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    proxy.reset_tcp();
    ends_in_a_reset(&mut client).await;
    ends_in_a_reset(&mut server).await;
    until(&proxy, "it is counted", |stats| stats.reset == 1 && stats.tcp.open == 0).await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    client.write_all(b"again").await.unwrap();
    assert_eq!(read(&mut server, 5).await, b"again");
}

#[tokio::test]
async fn an_end_passes_and_the_other_direction_goes_on() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    soon(server.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    until(&proxy, "it is over", |stats| stats.tcp.open == 0).await;
    assert_eq!(proxy.stats().reset, 0);
}

#[tokio::test]
async fn a_reset_of_one_side_reaches_the_other() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let (mut client, server) = connect(&proxy, &target).await;
    server.set_zero_linger().unwrap();
    drop(server);
    ends_in_a_reset(&mut client).await;
    let (client, mut server) = connect(&proxy, &target).await;
    client.set_zero_linger().unwrap();
    drop(client);
    ends_in_a_reset(&mut server).await;
}

#[tokio::test]
async fn a_reset_waits_out_a_black_hole_too() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    client.write_all(b"open").await.unwrap();
    assert_eq!(read(&mut server, 4).await, b"open");
    proxy.black_hole(Carriers::Tcp, true);
    client.set_zero_linger().unwrap();
    drop(client);
    let early = tokio::time::timeout(A_WHILE, server.read(&mut [0; 1])).await;
    assert!(early.is_err(), "the reset came out of the hole");
    proxy.black_hole(Carriers::Tcp, false);
    ends_in_a_reset(&mut server).await;
}

#[tokio::test]
async fn a_dead_target_is_a_reset_and_counted() {
    let gone = target().await;
    let address = gone.local_addr().unwrap();
    drop(gone);
    let proxy = proxy(address, |_| {}).await;
    let mut client = soon(TcpStream::connect(proxy.local_addr())).await.unwrap();
    ends_in_a_reset(&mut client).await;
    until(&proxy, "it is counted", |stats| stats.tcp.refused == 1 && stats.tcp.open == 0).await;
}

#[tokio::test]
async fn connections_are_bounded_and_room_comes_back() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| config.limits.flows_max = 1).await;
    let (client, server) = connect(&proxy, &target).await;
    let mut second = soon(TcpStream::connect(proxy.local_addr())).await.unwrap();
    ends_in_a_reset(&mut second).await;
    drop((client, server));
    until(&proxy, "the first is over", |stats| stats.tcp.open == 0).await;
    connect(&proxy, &target).await;
    assert_eq!(proxy.stats().tcp.refused, 1);
}

#[tokio::test]
async fn a_narrow_link_takes_its_time() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults.bandwidth_bytes_per_second = Some(200_000);
    })
    .await;
    let (mut client, mut server) = connect(&proxy, &target).await;
    let before = now();
    client.write_all(&bytes(100_000)).await.unwrap();
    assert!(read(&mut server, 100_000).await == bytes(100_000));
    assert!(now() - before >= Duration::from_millis(490));
}

#[tokio::test]
async fn a_full_queue_is_not_read_on() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |config| {
        config.faults.latency = Duration::from_secs(50);
        config.limits.queue = Bound { packets_max: 50, bytes_max: 1 << 20 };
    })
    .await;
    let (mut client, _server) = connect(&proxy, &target).await;
    let much = vec![7; 64 << 20];
    tokio::select! {
        biased;
        _ = client.write_all(&much) => panic!("64 MiB went into a queue of 50 segments"),
        () = async {
            until(&proxy, "it is full", |stats| stats.tcp.to_target.delayed >= 50).await;
            tokio::time::sleep(A_WHILE).await;
        } => {}
    }
    let waiting = proxy.stats().tcp.to_target.delayed;
    assert!((50..=61).contains(&waiting), "{waiting}: no more than one read goes beyond the bound");
}

#[tokio::test]
async fn a_stopped_proxy_resets_what_is_open() {
    let target = target().await;
    let proxy = proxy(target.local_addr().unwrap(), |_| {}).await;
    let address: SocketAddr = proxy.local_addr();
    let (mut client, mut server) = connect(&proxy, &target).await;
    // Now the proxy too knows that the target has taken the connection.
    client.write_all(b"open").await.unwrap();
    assert_eq!(read(&mut server, 4).await, b"open");
    soon(proxy.stop()).await;
    ends_in_a_reset(&mut client).await;
    ends_in_a_reset(&mut server).await;
    assert!(TcpStream::connect(address).await.is_err());
}
