//! Several gateways as a load balancer shows them: each new connection goes to the next one.
//! **Invariant:** it looks at nothing but whether a connection can be made.

use async_trait::async_trait;
use chappe_client::{Connector, Io, TcpConnector};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpSocket;

/// A gateway that takes longer to accept is passed over.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// The gateways, one after the other.
#[derive(Debug)]
pub struct Balancer {
    servers: Vec<(String, u16)>,
    next: AtomicUsize,
    source: Option<IpAddr>,
    /// Of UDP: in a race both carriers go round, each for itself.
    next_udp: AtomicUsize,
}

impl Balancer {
    /// Of the authorities `host:port` in these URLs, all of one scheme. Errors: none given, two schemes, a URL without a port.
    pub fn of(urls: &[String]) -> Result<Self, String> {
        let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_owned());
        if urls.is_empty() {
            return Err("--server: name one at least".into());
        }
        let first = urls.first().and_then(|url| scheme(url));
        let mut servers = Vec::new();
        for url in urls {
            let wrong = || {
                format!("--server {url}: write wss://host:port, chappe://host:port, … with a port, all alike")
            };
            if first.is_none() || scheme(url) != first {
                return Err(wrong());
            }
            let authority = url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
            let (host, port) = authority.and_then(|text| text.rsplit_once(':')).ok_or_else(wrong)?;
            servers.push((host.to_owned(), port.parse().map_err(|_| wrong())?));
        }
        Ok(Self { servers, next: AtomicUsize::new(0), source: None, next_udp: AtomicUsize::new(0) })
    }

    /// TCP connections leave from this address; `None`: the system chooses.
    #[must_use]
    pub fn leaving_from(self, source: Option<IpAddr>) -> Self {
        Self { source, ..self }
    }

    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn Io>> {
        let Some(source) = self.source else { return TcpConnector.connect(host, port).await };
        let of_kind = |address: &SocketAddr| address.is_ipv4() == source.is_ipv4();
        let address = tokio::net::lookup_host((host, port)).await?.find(of_kind);
        let address = address.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = socket.connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

#[async_trait]
impl Connector for Balancer {
    async fn connect(&self, _host: &str, _port: u16) -> io::Result<Box<dyn Io>> {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut failed = io::Error::from(io::ErrorKind::NotConnected);
        for turn in 0..self.servers.len() {
            let (host, port) = &self.servers[(first + turn) % self.servers.len()];
            match tokio::time::timeout(CONNECT_MAX, self.dial(host, *port)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(failed)
    }

    /// The next gateway, and behind it the others for the case that it does not answer.
    async fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        let first = self.next_udp.fetch_add(1, Ordering::Relaxed);
        let mut addresses = Vec::new();
        for turn in 0..self.servers.len() {
            let (host, port) = &self.servers[(first + turn) % self.servers.len()];
            // One address each: the SDK tries a few only.
            addresses
                .extend(TcpConnector.resolve(host, *port).await.ok().and_then(|all| all.first().copied()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn urls_are_read_and_mixtures_refused() {
        let of = |urls: &[&str]| Balancer::of(&urls.iter().map(|url| (*url).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            of(&["wss://a:1", "wss://b:2/v1/connect"]).unwrap().servers,
            [("a".into(), 1), ("b".into(), 2)]
        );
        assert!(of(&[]).is_err() && of(&["wss://a"]).is_err() && of(&["wss://a:1", "ws://b:2"]).is_err());
    }

    #[tokio::test]
    async fn udp_goes_round_with_the_others_behind() {
        let urls = ["chappe://127.0.0.1:1", "chappe://127.0.0.1:2", "chappe://127.0.0.1:3"];
        let balancer = Balancer::of(&urls.map(String::from)).unwrap();
        for want in [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]] {
            let ports: Vec<u16> =
                balancer.resolve("", 0).await.unwrap().iter().map(SocketAddr::port).collect();
            assert_eq!(ports, want);
        }
    }

    #[tokio::test]
    async fn connections_leave_from_where_they_are_told_to() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("ws://{}", server.local_addr().unwrap());
        let source: IpAddr = "127.0.0.9".parse().unwrap();
        let balancer = Balancer::of(&[url]).unwrap().leaving_from(Some(source));
        let _stream = balancer.connect("", 0).await.unwrap();
        assert_eq!(server.accept().await.unwrap().1.ip(), source);
    }

    #[tokio::test]
    async fn connections_go_round_and_pass_over_the_dead() {
        let (one, two) = (
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
            TcpListener::bind("127.0.0.1:0").await.unwrap(),
        );
        let url = |listener: &TcpListener| format!("ws://{}", listener.local_addr().unwrap());
        let balancer = Balancer::of(&[url(&one), url(&two)]).unwrap();
        let mut kept = Vec::new();
        for _ in 0..4 {
            kept.push(balancer.connect("", 0).await.unwrap());
        }
        for listener in [&one, &two] {
            for _ in 0..2 {
                listener.accept().await.unwrap();
            }
        }
        drop(one);
        for _ in 0..4 {
            kept.push(balancer.connect("", 0).await.unwrap());
        }
        for _ in 0..4 {
            two.accept().await.unwrap();
        }
    }
}
