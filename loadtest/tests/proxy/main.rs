//! The fault proxy on real sockets of this machine. **Invariant:** no test asks how long something took, but that it took at
//! least as long as the faults say; what must not happen is waited out by something that must.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step of a test is a failed test")]

mod command;
mod tcp;
mod udp;

use chappe_loadtest::proxy::{Limits, Proxy, ProxyConfig, ProxyError, Stats};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// So long anything may take that must come.
const PATIENCE: Duration = Duration::from_secs(30);

/// An address to listen on, below the ports that outgoing connections begin from. It may be taken: then ask again.
fn some_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test binaries that run side by side begin at different places.
    let begin = u16::try_from(std::process::id() * 61 % 12_000).unwrap();
    let step = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from(([127, 0, 0, 1], 20_000 + (begin + step) % 12_000))
}

/// A proxy to `target`, changed by `change`, on a port that is free on TCP and UDP.
async fn proxy(target: SocketAddr, change: impl Fn(&mut ProxyConfig)) -> Proxy {
    for _ in 0..100 {
        let mut config =
            ProxyConfig { limits: Limits::default(), ..ProxyConfig::new(some_address(), target) };
        change(&mut config);
        match Proxy::start(config).await {
            Ok(proxy) => return proxy,
            Err(ProxyError::Listen(_, _)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no port is free");
}

/// Waits until the counters say so.
async fn until(proxy: &Proxy, what: &str, holds: impl Fn(&Stats) -> bool) {
    let waiting = async {
        while !holds(&proxy.stats()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "{what}: {}", proxy.stats());
}

/// What must come, comes.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not come")
}
