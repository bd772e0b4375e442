//! What only QUIC and WebTransport have: addresses that change, datagrams, connection ids, a door that asks strangers to come
//! back. In paused time, on UDP in memory.
//! **Invariant:** a session belongs to its connection, not to an address; who sends garbage costs nobody else anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use bytes::Bytes;
use chappe_gateway::quic::ALPN;
use chappe_gateway::transport::Carrier;
use chappe_protocol::frame::{ClientFrame, GoAwayClass, ServerFrame};
use chappe_protocol::id::Seq;
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use std::net::SocketAddr;
use std::time::Duration;
use support::carrier::{client_config, door_with, endpoint, on, on_udp};
use support::client::{Client, In, submit_to};
use support::{Cluster, Gateway};
use web_transport_quinn::http::{HeaderValue, header};
use web_transport_quinn::{ClientError, ConnectError, Session, proto};

async fn sleep(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// Ada writes to ben, who gets it.
async fn still_works(ada: &mut Client, ben: &mut Client, id: u8) {
    assert_eq!(ada.outcome(submit_to(id, &["ben"], &[id])).await, Outcome::Accepted);
    let deliver = ben.deliver().await;
    assert_eq!(deliver.payload[..], [id]);
    ben.ack(deliver.seq.0).await;
}

/// HTTP/3's settings do not wait for the client's half of the handshake.
#[tokio::test(start_paused = true)]
async fn an_attach_takes_two_round_trips_and_in_a_browser_three() {
    for (carrier, round_trips) in [(Carrier::Quic, 2), (Carrier::WebTransport, 3)] {
        let law = async {
            let cluster = Cluster::new();
            let gateway = cluster.gateway(1);
            cluster.net.delay(Duration::from_millis(500));
            let before = cluster.world.now();
            let _anna = Client::connect(&cluster, &gateway, "anna", "phone").await;
            let took_ms = (cluster.world.now() - before).0;
            let least_ms = round_trips * 1000;
            assert!((least_ms..least_ms + 500).contains(&took_ms), "{carrier:?}: {took_ms} ms");
        };
        on(carrier, law).await;
    }
}

on_udp! {
    async fn a_session_stays_when_its_client_gets_another_address() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        still_works(&mut ada, &mut ben, 1).await;
        let before = ben.quic().address;
        for id in 2..5 {
            let socket = cluster.net.socket();
            cluster.net.black_hole(ben.quic().address, true);
            ben.quic().address = socket.address;
            ben.quic().endpoint.rebind_abstract(socket).unwrap();
            ben.send(&ClientFrame::Ping { nonce: u64::from(id) }).await;
            still_works(&mut ada, &mut ben, id).await;
        }
        assert_ne!(ben.quic().address, before);
        assert_eq!(gateway.metrics.attached_total.get(), 2, "nobody attached anew");
        assert_eq!(gateway.metrics.delivered_total.get(), 4, "and nothing came twice");
    }

    async fn an_ephemeral_goes_in_a_datagram_if_it_fits() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        for (id, bytes, datagrams) in [(1, 10, 1), (2, 5000, 1), (3, 10, 2)] {
            let mut typing = submit_to(id, &["ben"], &vec![id; bytes]);
            typing.ephemeral = true;
            let frame = Bytes::from(ClientFrame::Submit(typing).encode());
            if bytes < 1000 {
                ada.quic().session.send_datagram(frame).unwrap();
            } else {
                assert!(ada.try_send_bytes(&frame).await);
            }
            loop {
                if let In::Frame(ServerFrame::Ephemeral { payload, .. }) = ben.next().await {
                    assert_eq!(payload[..], vec![id; bytes]);
                    break;
                }
            }
            assert_eq!(ben.quic().datagrams, datagrams, "{bytes} bytes");
        }
        assert_eq!(cluster.store.head(cluster.mailbox("ben").await, true).await.unwrap(), Seq(0));
    }

    async fn what_may_not_be_lost_is_not_served_from_a_datagram() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        for bytes in [
            ClientFrame::Submit(submit_to(1, &["ben"], b"x")).encode(),
            ClientFrame::Ack { upto: Seq(7) }.encode(),
            ClientFrame::Hello(Client::hello(&cluster, "eve", "phone")).encode(),
            vec![0xff; 100],
            Vec::new(),
        ] {
            ada.quic().session.send_datagram(bytes.into()).unwrap();
        }
        sleep(1).await;
        assert_eq!(gateway.metrics.datagrams_ignored_total.get(), 5);
        assert_eq!(cluster.store.head(cluster.mailbox("ben").await, true).await.unwrap(), Seq(0));
        still_works(&mut ada, &mut ben, 2).await;
    }

    async fn a_flood_of_datagrams_is_warned_and_then_closed() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        let mut eve = Client::connect(&cluster, &gateway, "eve", "phone").await;
        // So much that the client's own queue loses most of it.
        for n in 0..600 {
            for _ in 0..50 {
                let _perhaps_gone = eve.quic().session.send_datagram(Bytes::from_static(&[0; 900]));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            if n == 50 {
                still_works(&mut ada, &mut ben, 1).await;
            }
        }
        assert_eq!(eve.closed().await, 3007);
        still_works(&mut ada, &mut ben, 2).await;
    }

    async fn a_length_or_a_frame_beyond_the_bounds_ends_the_connection() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        for (bytes, code) in [
            (&[0xff, 0xff, 0xff, 0xff, 0x7f][..], 3500),
            (&[0x81, 0x80, 0x40][..], 3501),
            (&[0xff, 0xff, 0xff, 0x7f][..], 3501),
            (&[3, 0xff, 0xff, 0xff][..], 3500),
        ] {
            let mut eve = Client::connect(&cluster, &gateway, "eve", "phone").await;
            assert!(eve.try_send_raw(bytes).await);
            assert_eq!(eve.closed().await, code, "{bytes:?}");
        }
    }

    async fn a_client_gets_no_more_streams_than_its_session_needs() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        let session = ada.quic().session.clone();
        let mut streams = Vec::new();
        while let Ok(stream) = tokio::time::timeout(Duration::from_secs(1), session.open_bi()).await {
            streams.push(stream.unwrap());
        }
        let (zeros, mut more) = (vec![0; 1 << 20], Vec::new());
        while let Ok(stream) = tokio::time::timeout(Duration::from_secs(1), session.open_uni()).await {
            let mut stream: web_transport_quinn::SendStream = stream.unwrap();
            // Nobody reads it: its window fills up, and the connection's does not.
            let flood = stream.write_all(&zeros);
            assert!(tokio::time::timeout(Duration::from_secs(1), flood).await.is_err(), "it is bounded");
            more.push(stream);
        }
        assert!(streams.len() <= 1 && more.len() <= 3, "{} and {}", streams.len(), more.len());
        drop(streams);
        if more.len() < 2 {
            still_works(&mut ada, &mut ben, 1).await;
        }
    }

    async fn a_connection_that_goes_silent_is_forgotten() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        cluster.net.black_hole(ben.quic().address, true);
        sleep(70).await;
        assert_eq!(gateway.metrics.sessions.get(), 0);
        drop(ben);
    }

    async fn a_drain_tells_everybody_at_once_and_lets_them_go_in_their_own_time() {
        let cluster = Cluster::new();
        let gateway = cluster.gateway_with(1, |config| config.drain.sessions_per_second = 2);
        let mut clients = Vec::new();
        for name in 0..20_u8 {
            clients.push(Client::connect(&cluster, &gateway, "ben", &format!("phone-{name}")).await);
        }
        let start = cluster.world_now();
        gateway.drain.cancel();
        for client in &mut clients {
            loop {
                if let In::Frame(ServerFrame::GoAway(go)) = client.next().await {
                    assert_eq!((go.class, go.jitter), (GoAwayClass::Drain, Millis(10_000)), "20 at 2 a second");
                    break;
                }
            }
        }
        assert!(cluster.world_now() - start < 100, "told at once");
        let codes: Vec<u16> = futures_util::future::join_all(clients.iter_mut().map(Client::closed)).await;
        assert_eq!(codes, [3000; 20]);
        let waited = cluster.world_now() - start;
        assert!((10_000..12_000).contains(&waited), "they had until then to leave: {waited}");
    }

    async fn ids_of_connections_lead_to_their_gateway_before_and_after_a_move() {
        let cluster = Cluster::new();
        let id = "0x1122334455667788".parse().unwrap();
        let gateway = cluster.gateway_over(1, door_with(&cluster.net, Some(id)));
        cluster.net.watch();
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let to_server = |net: &support::net::Net| {
            let packets = net.seen().into_iter().filter(|(_, to, _)| Some(*to) == gateway.udp);
            packets.filter_map(|(_, _, bytes)| short_header_id(&bytes)).collect::<Vec<_>>()
        };
        let before = to_server(&cluster.net);
        assert!(!before.is_empty() && before.iter().all(|id| load_balancer(id) == Some(0x1122_3344_5566_7788)));
        let socket = cluster.net.socket();
        ben.quic().endpoint.rebind_abstract(socket).unwrap();
        ben.send(&ClientFrame::Ping { nonce: 1 }).await;
        while !matches!(ben.next().await, In::Frame(ServerFrame::Pong { nonce: 1, .. })) {}
        let after = to_server(&cluster.net);
        assert!(!after.is_empty() && after.iter().all(|id| load_balancer(id) == Some(0x1122_3344_5566_7788)));
    }
}

/// The 16 bytes behind the first of a short-header packet (RFC 9000 §17.3).
fn short_header_id(packet: &[u8]) -> Option<[u8; 16]> {
    (packet.first()? & 0x80 == 0).then(|| packet.get(1..17)?.try_into().ok()).flatten()
}

/// The server id in a connection id, as a QUIC-LB load balancer with configuration 0 and 8 bytes of plaintext id reads it.
fn load_balancer(id: &[u8; 16]) -> Option<u64> {
    let (config, length) = (id[0] >> 5, id[0] & 0x1f);
    (config == 0 && length == 15).then(|| u64::from_be_bytes(id[1..9].try_into().unwrap()))
}

async fn handshake(gateway: &Gateway, alpn: &[u8]) -> Result<quinn::Connection, quinn::ConnectionError> {
    let (endpoint, _) = endpoint(&gateway.net);
    endpoint.connect_with(client_config(alpn), gateway.udp.unwrap(), "gateway.test").unwrap().await
}

#[tokio::test(start_paused = true)]
async fn while_many_handshakes_are_under_way_strangers_must_come_back_with_a_token() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway_with(1, |config| config.quic_unproven_max = 3);
        let mut silent = Vec::new();
        for _ in 0..3 {
            silent.push(handshake(&gateway, ALPN).await.unwrap());
        }
        assert_eq!(gateway.metrics.quic_retries_total.get(), 0);
        let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        assert_eq!(gateway.metrics.quic_retries_total.get(), 1, "asked, came back, is here");
        sleep(6).await;
        let _ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        assert_eq!(gateway.metrics.quic_retries_total.get(), 1, "the silent ones are gone");
    })
    .await;
}

/// A first packet as a client sends it, and where from.
async fn first_packet(cluster: &Cluster, gateway: &Gateway) -> (SocketAddr, Vec<u8>) {
    cluster.net.watch();
    let (endpoint, address) = endpoint(&cluster.net);
    let connecting =
        endpoint.connect_with(client_config(ALPN), gateway.udp.unwrap(), "gateway.test").unwrap();
    let _ = tokio::time::timeout(Duration::from_millis(10), connecting).await;
    let seen = cluster.net.seen().into_iter();
    seen.filter(|(from, _, _)| *from == address).map(|(from, _, bytes)| (from, bytes)).next_back().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_first_packets_from_false_addresses_is_bounded_and_not_amplified() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let (_, packet) = first_packet(&cluster, &gateway).await;
        let (mut sent, mut most) = (0, 0);
        cluster.net.watch();
        for n in 0..2000_u32 {
            // The same bytes from addresses that nobody has, each with another connection id.
            let mut packet = packet.clone();
            packet[6..10].copy_from_slice(&n.to_be_bytes());
            let from = SocketAddr::from((n.to_be_bytes(), 1));
            sent += packet.len();
            cluster.net.inject(from, gateway.udp.unwrap(), &packet);
            tokio::time::sleep(Duration::from_millis(1)).await;
            most = most.max(gateway.metrics.handshakes.get());
        }
        let answered: usize = cluster
            .net
            .seen()
            .iter()
            .filter(|(from, _, _)| Some(*from) == gateway.udp)
            .map(|p| p.2.len())
            .sum();
        assert!(most <= 64, "{most} handshakes at once");
        assert!(answered <= 3 * sent, "{answered} bytes for {sent} (RFC 9000, section 8.1)");
        let _ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn garbage_costs_nothing_and_harms_nobody() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let mut ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
        let (from, packet) = first_packet(&cluster, &gateway).await;
        sleep(10).await;
        let before = gateway.metrics.accepted_total.get();
        for n in 0..3000_usize {
            let mut bytes = packet[..(n * 7) % (packet.len() + 1)].to_vec();
            if let Some(byte) = bytes.get_mut(n % 37) {
                *byte ^= u8::try_from(n % 255).unwrap() + 1;
            }
            cluster.net.inject(from, gateway.udp.unwrap(), &bytes);
            cluster.net.inject(ben.quic().address, gateway.udp.unwrap(), &bytes);
            cluster.net.inject(gateway.udp.unwrap(), ben.quic().address, &bytes);
            if n % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        sleep(10).await;
        assert_eq!(gateway.metrics.handshakes.get(), 0);
        assert!(
            gateway.metrics.accepted_total.get() - before < 100,
            "first packets are padded and authentic"
        );
        still_works(&mut ada, &mut ben, 1).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_token_to_come_back_with_is_of_no_use_from_another_address() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway_with(1, |config| config.quic_unproven_max = 0);
        cluster.net.watch();
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        let address = ben.quic().address;
        let seen = cluster.net.seen();
        // The second first packet: the one with the token.
        let mut firsts = seen.iter().filter(|(from, _, bytes)| *from == address && bytes[0] & 0xf0 == 0xc0);
        let replay = firsts.nth(1).expect("the client came back").2.clone();
        let (before, retries) =
            (gateway.metrics.attached_total.get(), gateway.metrics.quic_retries_total.get());
        for port in 1..50 {
            cluster.net.inject(SocketAddr::from(([192, 0, 2, 7], port)), gateway.udp.unwrap(), &replay);
        }
        sleep(1).await;
        assert_eq!(gateway.metrics.handshakes.get(), 0, "no handshake begins");
        assert_eq!(gateway.metrics.attached_total.get(), before);
        assert!(gateway.metrics.quic_retries_total.get() >= retries);
        let _ada = Client::connect(&cluster, &gateway, "ada", "laptop").await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_packet_that_was_led_to_another_gateway_is_answered_with_a_reset_that_the_client_believes() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let (one, two) = (cluster.gateway(1), cluster.gateway(2));
        let mut ben = Client::connect(&cluster, &one, "ben", "phone").await;
        let before = cluster.world_now();
        // What a load balancer does that has lost its flows.
        cluster.net.redirect(one.udp.unwrap(), two.udp.unwrap());
        ben.send(&ClientFrame::Ping { nonce: 1 }).await;
        while ben.next().await != In::End {}
        let took = cluster.world_now() - before;
        assert!(took < 1000, "at once, not when the connection is given up: {took} ms");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_before_the_handshake_is_over() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let (endpoint, _) = endpoint(&cluster.net);
        let config = client_config(ALPN);
        let first = endpoint.connect_with(config.clone(), gateway.udp.unwrap(), "gateway.test").unwrap();
        let first = first.await.unwrap();
        sleep(1).await;
        drop(first);
        // A second visit has a ticket; the server's says that no early data is taken.
        let second = endpoint.connect_with(config, gateway.udp.unwrap(), "gateway.test").unwrap();
        assert!(second.into_0rtt().is_err());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn another_protocol_is_not_spoken() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        assert!(handshake(&gateway, b"http/1.1").await.is_err());
        assert!(handshake(&gateway, b"chappe/2").await.is_err());
    })
    .await;
}

/// The status that a WebTransport request is answered with.
async fn status(gateway: &Gateway, url: &str, origin: Option<&str>) -> u16 {
    let connection = handshake(gateway, b"h3").await.unwrap();
    let mut request = proto::ConnectRequest::new(url.parse::<url::Url>().unwrap());
    if let Some(origin) = origin {
        let value = HeaderValue::from_str(origin).unwrap();
        request = request.with_header(header::ORIGIN, value);
    }
    match Session::connect(connection, request).await {
        Ok(_) => 200,
        Err(ClientError::HttpError(ConnectError::ProtoError(proto::ConnectError::WrongStatus(Some(
            status,
        ))))) => status.as_u16(),
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_web_transport_request_is_judged_as_a_websockets_is() {
    on(Carrier::WebTransport, async {
        let cluster = Cluster::new();
        let gateway =
            cluster.gateway_with(1, |config| config.handshake.origins = vec!["https://chat.example".into()]);
        let path = "https://gateway.test/v1/connect";
        for (url, origin, expected) in [
            (path, None, 200),
            (path, Some("https://chat.example"), 200),
            (path, Some("https://evil.example"), 403),
            (path, Some("null"), 403),
            ("https://gateway.test/v1/connect?token=x", None, 400),
            ("https://gateway.test/v2/connect", None, 404),
            ("https://gateway.test/", Some("https://chat.example"), 404),
        ] {
            assert_eq!(status(&gateway, url, origin).await, expected, "{url} from {origin:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn half_a_session_does_not_last() {
    on(Carrier::WebTransport, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        // No SETTINGS, no CONNECT; a CONNECT and no stream; half a frame.
        let silent = handshake(&gateway, b"h3").await.unwrap();
        let connected = Client::open(&gateway).await;
        let mut slow = Client::open(&gateway).await;
        assert!(slow.try_send_raw(&[0x90]).await);
        sleep(11).await;
        assert_eq!(gateway.metrics.handshakes.get(), 0);
        assert!(silent.close_reason().is_some());
        drop((connected, slow));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_stream_is_reset_is_over_and_its_device_may_come_again() {
    on(Carrier::Quic, async {
        let cluster = Cluster::new();
        let gateway = cluster.gateway(1);
        let mut ben = Client::connect(&cluster, &gateway, "ben", "phone").await;
        ben.quic().send.reset(1).unwrap();
        sleep(6).await;
        assert_eq!(gateway.metrics.sessions.get(), 0, "a session without its stream is none");
        let again = Client::connect(&cluster, &gateway, "ben", "phone").await;
        assert_eq!(again.welcome().from, Seq(0));
    })
    .await;
}
