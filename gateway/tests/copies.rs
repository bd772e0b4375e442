//! What an envelope costs in memory that is asked for, and how many times that is its payload. **Invariant:** what the clients send is
//! ready before it is counted, and what they read goes into one buffer, so everything that is counted is ours.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_protocol::frame::ClientFrame;
use chappe_protocol::id::Seq;
use std::time::Duration;
use support::Cluster;
use support::client::{Client, Wire, masked, submit_to};
use tikv_jemalloc_ctl::thread;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ENVELOPES: u8 = 100;
/// After that nothing more comes. All of them together are shorter than the patience with a device that acks nothing.
const QUIET: Duration = Duration::from_millis(5);

/// A client without its reader.
async fn pipe(cluster: &Cluster, gateway: &support::Gateway, user: &str) -> DuplexStream {
    let client = Client::connect(cluster, gateway, user, "phone").await;
    let Wire::WebSocket(io) = client.wire else { panic!("not on this carrier") };
    io
}

/// Reads until nothing comes; how many bytes it was.
async fn drain(io: &mut DuplexStream, buffer: &mut [u8]) -> usize {
    let mut bytes = 0;
    while let Ok(read) = tokio::time::timeout(QUIET, io.read(buffer)).await {
        let read = read.unwrap();
        assert_ne!(read, 0, "the gateway hung up");
        bytes += read;
    }
    bytes
}

/// Bytes asked for by this thread, for each envelope.
async fn each(payload: usize) -> u64 {
    let cluster = Cluster::new();
    let gateway = cluster.gateway(1);
    let (mut ada, mut ben) = (pipe(&cluster, &gateway, "ada").await, pipe(&cluster, &gateway, "ben").await);
    let submit = |id| ClientFrame::Submit(submit_to(id, &["ben"], &vec![7; payload]));
    let ack = |id| ClientFrame::Ack { upto: Seq(u64::from(id)) };
    let frames: Vec<_> =
        (1..=ENVELOPES * 2).map(|id| [submit(id), ack(id)].map(|frame| masked(&frame.encode()))).collect();
    let mut buffer = vec![0; 64 * 1024];
    let mut asked = 0;
    for some in frames.chunks(usize::from(ENVELOPES)) {
        let before = thread::allocatedp::read().unwrap();
        let begun = before.get();
        for [submit, ack] in some {
            ada.write_all(submit).await.unwrap();
            let (accepted, delivered) =
                (drain(&mut ada, &mut buffer).await, drain(&mut ben, &mut buffer).await);
            assert!(accepted > 0 && delivered >= payload, "{accepted} and {delivered} bytes");
            ben.write_all(ack).await.unwrap();
        }
        // The first ones find room that stays.
        asked = before.get() - begun;
    }
    asked / u64::from(ENVELOPES)
}

#[test]
fn an_envelope_is_copied_seldom() {
    let each = |payload| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().unwrap().block_on(each(payload))
    };
    let (small, large) = (each(256), each(16 * 1024));
    // Out of the frame that was read, and into the frames that are written.
    let copies = (large - small) / (16 * 1024 - 256);
    assert_eq!(copies, 2, "of a payload");
    assert!(small <= 32_000, "{small} bytes asked for by an envelope of 256 bytes");
}
