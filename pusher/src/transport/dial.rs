//! Opens TCP connections. **Invariant:** the address that was checked is the address that is dialled.

use async_trait::async_trait;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// Addresses of one name that are tried, one after the other.
const ADDRESSES_MAX: usize = 4;

/// A stream of bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Opens a stream of bytes to a host; tests and simulations bring their own.
#[async_trait]
pub trait Dialer: Send + Sync {
    /// The caller bounds its time. `PermissionDenied` says that the host has no address that may be dialled.
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>>;
}

/// Names to addresses.
#[async_trait]
pub trait Resolver: Send + Sync {
    /// All addresses of a name, or the address that the name is.
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The operating system's.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Dials whatever the configuration names: hosts that an operator wrote down.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDialer;

#[async_trait]
impl Dialer for SystemDialer {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>> {
        dial_first(&SystemResolver.resolve(host, port).await?).await
    }
}

/// Dials public addresses only: for hosts that a stranger names, as a Web Push subscription does.
#[derive(Debug, Clone, Copy, Default)]
pub struct PublicDialer<R = SystemResolver>(pub R);

#[async_trait]
impl<R: Resolver> Dialer for PublicDialer<R> {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>> {
        let mut addresses = self.0.resolve(host, port).await?;
        addresses.retain(|address| is_public(address.ip()));
        if addresses.is_empty() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        dial_first(&addresses).await
    }
}

async fn dial_first(addresses: &[SocketAddr]) -> io::Result<Box<dyn Io>> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses.iter().take(ADDRESSES_MAX) {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Box::new(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Whether an address is one of the public internet (the special-purpose registries of RFC 6890, and what embeds an IPv4
/// address in IPv6 is judged by that address).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    match address.octets() {
        [0 | 10 | 127 | 224..=255, ..]              // this network, private, loopback, multicast, reserved, broadcast
        | [100, 64..=127, ..]                       // shared by carriers (RFC 6598)
        | [169, 254, ..]                            // link-local; clouds keep their metadata there
        | [172, 16..=31, ..]
        | [192, 0, 0 | 2, _]                        // IETF protocols, documentation
        | [192, 31, 196, _] | [192, 52, 193, _]     // AS112, AMT
        | [192, 88, 99, _]                          // 6to4 relays
        | [192, 168, ..] | [192, 175, 48, _]
        | [198, 18..=19, ..]                        // benchmarks
        | [198, 51, 100, _] | [203, 0, 113, _] => false,
        [_, _, _, _] => true,
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let embedded = |at: usize| {
        let ([w, x], [y, z]) = (parts[at].to_be_bytes(), parts[at + 1].to_be_bytes());
        is_public_v4(Ipv4Addr::new(w, x, y, z))
    };
    match parts {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => embedded(6), // mapped, NAT64 (RFC 6052)
        [0x2002, ..] => embedded(1),                                                 // 6to4
        // IETF protocols (Teredo among them), and the two of documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => false,
        // Global unicast; all else is loopback, ULA, link-local, multicast, or unassigned.
        [first, ..] => (0x2000..=0x3fff).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.7",
            "224.0.0.1",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a00:1",
            "2002:7f00:1::1",
            "2001::1",
            "2001:db8::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "17.188.143.34",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::a",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    struct Says(Vec<SocketAddr>);
    #[async_trait]
    impl Resolver for Says {
        async fn resolve(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            Ok(self.0.clone())
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_dialled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inside = listener.local_addr().unwrap();
        let refused = PublicDialer(Says(vec![inside])).dial("innocent.example", inside.port()).await;
        assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::PermissionDenied);
        let literal = PublicDialer(SystemResolver).dial("127.0.0.1", inside.port()).await;
        assert_eq!(literal.err().unwrap().kind(), io::ErrorKind::PermissionDenied);
        // The same address passes where an operator named it, and that connection is the first that the listener sees.
        let _stream = SystemDialer.dial("127.0.0.1", inside.port()).await.unwrap();
        listener.accept().await.unwrap();
        let more =
            std::future::poll_fn(|cx| std::task::Poll::Ready(listener.poll_accept(cx).is_pending())).await;
        assert!(more, "somebody dialled an address that is not public");
    }
}
