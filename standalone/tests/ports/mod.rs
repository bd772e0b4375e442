//! Ports for servers of tests. **Invariant:** none of them is one that the system gives to outgoing connections: a client that tries
//! a dead server's port there again and again may get that very port as its own, and keep the server from coming back.

#![allow(clippy::unwrap_used, reason = "shared test support")]

use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

/// A port that nobody uses, on TCP and UDP; another each time. Another process may take it before the server does; then the server
/// says so.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 1000).unwrap() * 12;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = ("127.0.0.1", port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return port;
        }
    }
}
