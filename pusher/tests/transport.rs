//! The transport against servers that refuse, stall, go away and hang up. **Invariant:** nothing that a server may have
//! processed is sent to it twice.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod support;

use chappe_protocol::time::Millis;
use chappe_pusher::transport::{Origin, Pool, PoolLimits, SendError};
use futures_util::future::join_all;
use h2::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Say, Server, TestWorld, answer, ok, post, raw};
use tokio_util::task::TaskTracker;

fn one() -> PoolLimits {
    PoolLimits { connections_max: 1, ..PoolLimits::default() }
}

async fn settle() {
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_arrives_as_it_was_given_and_its_answer_comes_back() {
    let server = Server::scripted(vec![Say::Answer(429, vec![("retry-after", "7".into())], "why".into())]);
    let mut post = post("/3/device/ab?x=1");
    post.headers.insert("apns-topic", "org.example".parse().unwrap());
    let reply = server.pool(PoolLimits::default(), TestWorld::new()).send(&post).await.unwrap();
    assert_eq!(
        (reply.status, reply.retry_after, &reply.body[..], reply.complete),
        (429, Some(Millis(7000)), &b"why"[..], true)
    );
    let seen = &server.seen()[0];
    assert_eq!((seen.authority.as_str(), seen.path.as_str()), ("provider.example", "/3/device/ab?x=1"));
    assert_eq!(
        (seen.header("apns-topic"), seen.header("content-length"), &seen.body[..]),
        ("org.example", "2", &b"{}"[..])
    );
    assert_eq!(server.dialled(), 1, "opened when needed, and one is enough for one request");
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_unprocessed_is_sent_again_once_on_another_connection() {
    let server = Server::scripted(vec![Say::Reset(Reason::REFUSED_STREAM), ok()]);
    let pool = server.pool(PoolLimits::default(), TestWorld::new());
    assert_eq!(pool.send(&post("/")).await.unwrap().status, 200);
    assert_eq!(server.seen().iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 1]);

    let server = Server::scripted(vec![Say::Reset(Reason::REFUSED_STREAM)]);
    let pool = server.pool(PoolLimits::default(), TestWorld::new());
    assert_eq!(pool.send(&post("/")).await.unwrap_err(), SendError::Refused);
    assert_eq!(server.seen().len(), 2, "once, not for ever");
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_processed_is_not_repeated() {
    for end in [Say::Reset(Reason::INTERNAL_ERROR), Say::Reset(Reason::CANCEL), Say::HangUp] {
        let server = Server::scripted(vec![end, ok()]);
        let pool = server.pool(PoolLimits::default(), TestWorld::new());
        assert_eq!(pool.send(&post("/")).await.unwrap_err(), SendError::Lost);
        assert_eq!(server.seen().len(), 1);
        assert_eq!(pool.send(&post("/")).await.unwrap().status, 200, "the next one passes");
    }
}

/// Streams 1 and 3 are sent; GOAWAY names stream 1 as the last, then the connection ends without an answer to it.
#[tokio::test(start_paused = true)]
async fn goaway_sends_again_what_lies_beyond_its_last_stream_and_nothing_else() {
    let counts: Arc<[AtomicUsize; 2]> = Arc::default();
    let seen = counts.clone();
    let server = raw::server(move |number, mut peer| {
        let seen = seen.clone();
        async move {
            peer.allow(100).await;
            while let Some(stream) = peer.request().await {
                seen[number.min(1)].fetch_add(1, Ordering::Relaxed);
                match (number, stream) {
                    (0, 1) => {}
                    (0, _) => {
                        peer.go_away(1).await;
                        return;
                    }
                    (_, stream) => peer.answer_200(stream).await,
                }
            }
        }
    });
    let pool = server.pool(one(), TestWorld::new());
    let (first, beyond) = (post("/first"), post("/beyond"));
    let (first, beyond) = tokio::join!(pool.send(&first), async {
        settle().await;
        pool.send(&beyond).await
    });
    assert_eq!(first.unwrap_err(), SendError::Lost, "perhaps processed");
    assert_eq!(beyond.unwrap().status, 200);
    assert_eq!((counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_goes_away_answers_what_it_has_and_takes_no_more() {
    let server = raw::server(|number, mut peer| async move {
        peer.allow(100).await;
        let Some(stream) = peer.request().await else { return };
        if number == 0 {
            peer.go_away(stream).await;
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
        }
        peer.answer_200(stream).await;
        while peer.read().await.is_some() {}
    });
    let pool = server.pool(one(), TestWorld::new());
    let (old, new) = (post("/old"), post("/new"));
    let (old, new) = tokio::join!(pool.send(&old), async {
        settle().await;
        pool.send(&new).await
    });
    assert_eq!((old.unwrap().status, new.unwrap().status), (200, 200));
    assert_eq!(server.dialled(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_exchange_ends_by_its_deadline_whatever_stalls() {
    let world = TestWorld::new();
    for (say, status) in [(Say::Stall, None), (Say::StallBody(410, "{\"rea"), Some(410))] {
        let server = Server::scripted(vec![say, ok()]);
        let pool = server.pool(one(), world.clone());
        let before = chappe_protocol::world::World::now(&*world);
        let reply = pool.send(&post("/")).await;
        let took = chappe_protocol::world::World::now(&*world) - before;
        assert_eq!(took, Millis::from_secs(20));
        match status {
            None => assert_eq!(reply.unwrap_err(), SendError::Timeout),
            Some(status) => {
                let reply = reply.unwrap();
                assert_eq!((reply.status, reply.complete), (status, false), "the status is known and stands");
            }
        }
        assert_eq!(pool.send(&post("/")).await.unwrap().status, 200);
        assert_eq!(server.dialled(), 2, "a connection that stalled is given up");
    }
}

#[tokio::test(start_paused = true)]
async fn headers_that_come_slowly_end_by_the_deadline_too() {
    let server = raw::server(|_, mut peer| async move {
        peer.allow(10).await;
        let Some(_) = peer.request().await else { return };
        let mut frame = vec![0, 0, 100, raw::HEADERS, raw::END_HEADERS, 0, 0, 0, 1, 0x88];
        frame.resize(60, 0);
        peer.trickle(&frame).await;
    });
    let error = server.pool(one(), TestWorld::new()).send(&post("/")).await.unwrap_err();
    assert_eq!(error, SendError::Timeout);
}

#[tokio::test(start_paused = true)]
async fn a_body_beyond_the_bound_is_cut_and_the_status_stands() {
    let server = Server::scripted(vec![answer(503, &"x".repeat(70_000))]);
    let reply = server.pool(one(), TestWorld::new()).send(&post("/")).await.unwrap();
    assert_eq!((reply.status, reply.complete), (503, false));
    assert!(reply.body.len() <= 64 * 1024);
}

#[tokio::test(start_paused = true)]
async fn streams_follow_what_the_peer_allows() {
    let slow = || Say::After(Millis(40), Box::new(ok()));
    let server = Server::new(Some(8), move |_, _| slow());
    let pool = server.pool(one(), TestWorld::new());
    let request = post("/");
    let replies = join_all((0..100).map(|_| pool.send(&request))).await;
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(server.state.peak.load(Ordering::Relaxed), 8, "all that is allowed, and no more");
}

/// 500 streams and 40 ms: 10,000 requests take 20 rounds and the one that learns the SETTINGS, in the tests' own time.
#[tokio::test(start_paused = true)]
async fn requests_flow_as_fast_as_streams_and_delay_allow() {
    let server = Server::new(Some(500), |_, _| Say::After(Millis(40), Box::new(ok())));
    let world = TestWorld::new();
    let pool = server.pool(PoolLimits { waiting_max: 10_000, ..one() }, world.clone());
    let (request, start) = (post("/"), chappe_protocol::world::World::now(&*world));
    assert!(join_all((0..10_000).map(|_| pool.send(&request))).await.iter().all(Result::is_ok));
    let took = (chappe_protocol::world::World::now(&*world) - start).0;
    assert!(took <= 20 * 40 * 10 / 8, "{took} ms: less than 0.8 of what the peer allows");
}

/// One stream until the server's first SETTINGS, one by them, then three: none is sent too many, and all that wait hear of it.
#[tokio::test(start_paused = true)]
async fn one_stream_becomes_many_when_the_settings_say_so() {
    let most: Arc<[AtomicUsize; 3]> = Arc::default();
    let seen = most.clone();
    let server = raw::server(move |_, mut peer| {
        let seen = seen.clone();
        async move {
            let mut held = Vec::new();
            for (phase, allow) in [None, Some(1), Some(3)].into_iter().enumerate() {
                if let Some(streams) = allow {
                    peer.allow(streams).await;
                    for stream in held.drain(..) {
                        peer.answer_200(stream).await;
                    }
                }
                let wait = std::time::Duration::from_secs(1);
                while let Ok(Some(stream)) = tokio::time::timeout(wait, peer.request()).await {
                    held.push(stream);
                }
                seen[phase].store(held.len(), Ordering::Relaxed);
            }
            for stream in held {
                peer.answer_200(stream).await;
            }
            while let Some(stream) = peer.request().await {
                peer.answer_200(stream).await;
            }
        }
    });
    let pool = server.pool(one(), TestWorld::new());
    let request = post("/");
    let replies = join_all((0..8).map(|_| pool.send(&request))).await;
    assert!(replies.iter().all(Result::is_ok), "{replies:?}");
    assert_eq!(most.each_ref().map(|most| most.load(Ordering::Relaxed)), [1, 1, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_line_for_a_stream_is_bounded() {
    let server = Server::new(Some(1), |_, nth| if nth == 0 { ok() } else { Say::Stall });
    let pool = server.pool(PoolLimits { waiting_max: 3, ..one() }, TestWorld::new());
    let request = post("/");
    pool.send(&request).await.unwrap(); // the connection stands, and what it allows is known
    let replies = join_all((0..6).map(|_| pool.send(&request))).await;
    let busy =
        replies.iter().filter(|reply| reply.as_ref().is_err_and(|error| *error == SendError::Busy)).count();
    assert_eq!(busy, 2, "one is sent, three wait");
    assert!(
        replies
            .iter()
            .all(|reply| reply.as_ref().is_err_and(|e| matches!(e, SendError::Busy | SendError::Timeout)))
    );
}

#[tokio::test(start_paused = true)]
async fn connections_are_opened_when_the_others_are_full_and_no_more_than_allowed() {
    let server = Server::new(Some(2), |_, _| Say::After(Millis(50), Box::new(ok())));
    let pool = server.pool(PoolLimits { connections_max: 3, ..PoolLimits::default() }, TestWorld::new());
    let request = post("/");
    assert!(join_all((0..30).map(|_| pool.send(&request))).await.iter().all(Result::is_ok));
    assert_eq!(server.dialled(), 3);
    assert_eq!(server.state.peak.load(Ordering::Relaxed), 6);
}

#[tokio::test(start_paused = true)]
async fn pings_go_while_a_connection_is_open_and_one_without_answer_ends_it() {
    let pings = Arc::new(AtomicUsize::new(0));
    let seen = pings.clone();
    let server = raw::server(move |_, mut peer| {
        let pings = seen.clone();
        async move {
            peer.allow(10).await;
            while let Some(frame) = peer.read().await {
                match frame.kind {
                    raw::PING if pings.fetch_add(1, Ordering::Relaxed) < 3 => peer.pong(&frame).await,
                    raw::DATA => peer.answer_200(frame.stream).await,
                    _ => {}
                }
            }
        }
    });
    let pool = server.pool(one(), TestWorld::new());
    pool.send(&post("/")).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(185)).await;
    assert_eq!(pings.load(Ordering::Relaxed), 3);
    pool.send(&post("/")).await.unwrap();
    assert_eq!(server.dialled(), 1, "answered pings keep it");
    tokio::time::sleep(std::time::Duration::from_secs(75)).await;
    pool.send(&post("/")).await.unwrap();
    assert_eq!((pings.load(Ordering::Relaxed), server.dialled()), (4, 2), "a silent peer is left");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_resets_stream_after_stream_is_left() {
    let server = Server::scripted(vec![Say::Reset(Reason::INTERNAL_ERROR)]);
    let pool = server.pool(one(), TestWorld::new());
    for _ in 0..4 {
        assert_eq!(pool.send(&post("/")).await.unwrap_err(), SendError::Lost);
    }
    assert_eq!(server.seen().iter().map(|seen| seen.connection).collect::<Vec<_>>(), [0, 0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_does_not_verify_gets_no_request() {
    let (server, stranger) = (Server::scripted(vec![ok()]), Server::scripted(vec![ok()]));
    let pool = |origin: &str, tls| {
        let origin = Origin::parse(origin).unwrap();
        Pool::new(origin, tls, server.clone(), PoolLimits::default(), TestWorld::new(), TaskTracker::new())
    };
    let wrong_root = pool("https://provider.example", stranger.tls());
    assert_eq!(wrong_root.send(&post("/")).await.unwrap_err(), SendError::Tls);
    let wrong_name = pool("https://elsewhere.example", server.tls());
    assert_eq!(wrong_name.send(&post("/")).await.unwrap_err(), SendError::Tls);
    let public = pool(
        "https://provider.example",
        chappe_pusher::transport::client_config(chappe_pusher::transport::public_roots()),
    );
    assert_eq!(public.send(&post("/")).await.unwrap_err(), SendError::Tls);
    assert_eq!(server.seen().len(), 0);
    assert_eq!(pool("https://provider.example", server.tls()).send(&post("/")).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn tls_that_fails_stalls_or_offers_no_http2_ends_as_an_error() {
    use tokio::io::AsyncWriteExt as _;
    let garbage = Server::raw(
        Server::scripted(vec![ok()]).root_pem.clone(),
        Box::new(|_, mut io| {
            Box::pin(async move {
                let _ = io.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            })
        }),
    );
    assert_eq!(garbage.pool(one(), TestWorld::new()).send(&post("/")).await.unwrap_err(), SendError::Tls);

    let silent = Server::raw(
        Server::scripted(vec![ok()]).root_pem.clone(),
        Box::new(|_, io| {
            Box::pin(async move {
                std::future::pending::<()>().await;
                drop(io);
            })
        }),
    );
    assert_eq!(
        silent.pool(one(), TestWorld::new()).send(&post("/")).await.unwrap_err(),
        SendError::Unreachable
    );

    for alpn in [&[b"http/1.1".as_slice()] as &[&[u8]], &[]] {
        let (acceptor, root) = support::acceptor(&support::NAMES, alpn);
        let old = Server::raw(
            root,
            Box::new(move |_, io| {
                let acceptor = acceptor.clone();
                Box::pin(async move {
                    let _ = acceptor.accept(io).await;
                })
            }),
        );
        assert_eq!(old.pool(one(), TestWorld::new()).send(&post("/")).await.unwrap_err(), SendError::NoHttp2);
    }
}

/// The server answers before it has read the body, and asks for no more of it (RFC 9113 §8.1).
#[tokio::test(start_paused = true)]
async fn an_answer_before_the_end_of_the_request_counts() {
    let server = raw::server(|_, mut peer| async move {
        peer.allow(10).await;
        while let Some(frame) = peer.read().await {
            if frame.kind == raw::HEADERS {
                peer.answer_200(frame.stream).await;
                peer.write(3, 0, frame.stream, &[0; 4]).await; // RST_STREAM, NO_ERROR
            }
        }
    });
    let pool = server.pool(one(), TestWorld::new());
    assert_eq!(pool.send(&post("/")).await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_is_dropped_ends_its_connections() {
    let server = Server::scripted(vec![ok()]);
    let tasks = TaskTracker::new();
    let origin = Origin::parse("https://provider.example").unwrap();
    let pool = Pool::new(origin, server.tls(), server.clone(), one(), TestWorld::new(), tasks.clone());
    pool.send(&post("/")).await.unwrap();
    drop(pool);
    tasks.close();
    tasks.wait().await;
}
