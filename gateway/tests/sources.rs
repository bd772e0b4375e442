//! Where handshakes come from: a bound by source, and load balancers that say whose connection they bring, in paused time.
//! **Invariant:** one source does not take the handshakes of the others, and nobody but a named load balancer speaks for others.
#![allow(clippy::unwrap_used, clippy::expect_used)] // a failed step is a failed test

mod support;

use std::time::Duration;
use support::carrier::on_udp;
use support::client::Client;
use support::{Cluster, Gateway};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const REQUEST: &[u8] = b"GET /v1/connect HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: chappe.v1\r\n\r\n";

/// What a peer with this address gets for a request behind these bytes: the status line's code, or nothing.
async fn status(gateway: &Gateway, peer: &str, before: &[u8]) -> Option<String> {
    let mut io = gateway.knock_from(peer).await;
    // An end that is closed already takes nothing.
    let _ = io.write_all(&[before, REQUEST].concat()).await;
    let mut head = [0; 12];
    io.read_exact(&mut head).await.ok()?;
    Some(String::from_utf8_lossy(&head[9..]).into_owned())
}

fn version_2(source: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(source);
    header.extend([10, 0, 0, 9, 0x30, 0x39, 1, 0xbb]);
    header
}

#[tokio::test(start_paused = true)]
async fn a_load_balancer_says_whose_connection_it_brings_and_nobody_else_is_believed() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| config.proxies = vec!["10.0.0.0/24".parse().unwrap()]);
    let text = b"PROXY TCP4 192.0.2.7 10.0.0.9 12345 443\r\n";
    let switching = Some("101".to_owned());
    assert_eq!(status(&gateway, "10.0.0.5", &version_2([192, 0, 2, 7])).await, switching);
    assert_eq!(status(&gateway, "10.0.0.5", text).await, switching);
    assert_eq!(status(&gateway, "10.0.0.5", b"PROXY UNKNOWN\r\n").await, switching, "a health check");
    assert_eq!(status(&gateway, "192.0.2.8", b"").await, switching, "somebody who comes by himself");

    let failed = || gateway.metrics.handshake_failed_total.get();
    assert_eq!((failed(), status(&gateway, "10.0.0.5", b"").await), (0, None), "a balancer without a header");
    assert_eq!(failed(), 1);
    for header in [&version_2([192, 0, 2, 7])[..], text] {
        let answer = status(&gateway, "192.0.2.8", header).await;
        assert_ne!(answer, switching, "a header of somebody who is no balancer");
    }
    let before = cluster.world_now();
    let mut silent = gateway.knock_from("10.0.0.5").await;
    silent.write_all(b"PROXY TCP4 192.0.2.7").await.unwrap();
    assert!(silent.read_u8().await.is_err());
    assert!((4_900..5_100).contains(&(cluster.world_now() - before)), "a header has its time");
}

#[tokio::test(start_paused = true)]
async fn one_source_does_not_take_the_handshakes_of_others() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway_with(1, |config| {
        config.proxies = vec!["10.0.0.0/24".parse().unwrap()];
        config.source_handshakes_per_second = 5;
    });
    let mut greedy = 0;
    for _ in 0..50 {
        greedy += usize::from(status(&gateway, "192.0.2.7", b"").await.is_some());
    }
    assert_eq!((greedy, gateway.metrics.refused_total.get()), (10, 40));
    assert!(status(&gateway, "192.0.2.8", b"").await.is_some(), "its neighbour");
    assert!(
        status(&gateway, "10.0.0.5", &version_2([192, 0, 2, 7])).await.is_none(),
        "the same, through a balancer"
    );
    for last in 1..=30 {
        let theirs = version_2([198, 51, 100, last]);
        assert!(status(&gateway, "10.0.0.5", &theirs).await.is_some(), "the balancer itself has no bound");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(status(&gateway, "192.0.2.7", b"").await.is_some(), "its rate comes back");
}

on_udp! {
    async fn a_source_beyond_half_its_bound_proves_its_address_first() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway_with(1, |config| config.source_handshakes_per_second = 4);
        let mut clients = Vec::new();
        for n in 0..8_u64 {
            assert_eq!(gateway.metrics.quic_retries_total.get(), n.saturating_sub(4));
            clients.push(Client::connect(&cluster, &gateway, "ben", &format!("d{n}")).await);
        }
        assert_eq!(gateway.metrics.refused_total.get(), 0);
    }
}
