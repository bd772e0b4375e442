//! Where the gateway is, by which carrier and how secured. **Invariant:** no plaintext unless asked for by `ws://`, and no UDP
//! by `ws://` and `wss://`.

use crate::carrier::Carrier;
use crate::error::ClientError;
use crate::udp;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::IpAddr;
use std::sync::Arc;
use url::Url;

/// Which carriers an address allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    WebSocket,
    Quic,
    WebTransport,
    /// QUIC or WebSocket, whichever is there first.
    Automatic,
}

const SCHEMES: [(&str, Way, bool); 5] = [
    ("wss://", Way::WebSocket, true),
    ("ws://", Way::WebSocket, false),
    ("chappe://", Way::Automatic, true),
    ("chappe+quic://", Way::Quic, true),
    ("chappe+webtransport://", Way::WebTransport, true),
];

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) way: Way,
    /// Whether everything is encrypted on the way.
    pub tls: bool,
    /// Without brackets.
    pub host: String,
    /// Of TCP and UDP.
    pub port: u16,
    /// As in the `Host` header.
    pub authority: String,
    /// Of HTTP.
    pub path: String,
}

impl Endpoint {
    /// Reads `scheme://host[:port][/path]`, the path where there is HTTP; it defaults to `/v1/connect`.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let known = |(scheme, way, tls): &(&str, Way, bool)| Some((url.strip_prefix(scheme)?, *way, *tls));
        let Some((rest, way, tls)) = SCHEMES.iter().find_map(known) else {
            return Err(ClientError::Address(
                "it begins with wss://, chappe://, chappe+quic:// or chappe+webtransport:// (or ws://)",
            ));
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if way == Way::Quic && !matches!(path, "" | "/") {
            return Err(ClientError::Address("chappe+quic:// has no path"));
        }
        let path = if path.is_empty() || path == "/" { "/v1/connect" } else { path };
        let good = |b: u8| b.is_ascii_graphic() && !matches!(b, b'@' | b'?' | b'#' | b'\\');
        if !authority.bytes().all(good) || !path.bytes().all(good) {
            return Err(ClientError::Address("only host, port and path: no user, query or fragment"));
        }
        let default_port = if tls { 443 } else { 80 };
        let (host, port) = Self::split_port(authority, default_port)?;
        if host.is_empty() {
            return Err(ClientError::Address("the host is missing"));
        }
        Ok(Self {
            way,
            tls,
            host: host.to_owned(),
            port,
            authority: authority.to_owned(),
            path: path.to_owned(),
        })
    }

    /// As HTTP/3 names it.
    fn https(&self) -> Result<Url, ClientError> {
        Url::parse(&format!("https://{}{}", self.authority, self.path))
            .map_err(|_| ClientError::Address("the host is no name that a URL could have"))
    }

    /// Refuses `ws://` to another host, unless the application allows it.
    pub fn check_plaintext(&self, allowed: bool) -> Result<(), ClientError> {
        if !self.tls && !self.is_loopback() && !allowed {
            return Err(ClientError::Address("ws:// only to this host, or with allow_plaintext(true)"));
        }
        Ok(())
    }

    fn split_port(authority: &str, default: u16) -> Result<(&str, u16), ClientError> {
        let bad =
            ClientError::Address("the port is a number below 65536, an IPv6 address stands in brackets");
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, tail) = rest.split_once(']').ok_or(bad.clone())?;
                (host, tail.strip_prefix(':').or(tail.is_empty().then_some("")))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, Some("")),
            },
        };
        match port {
            Some("") => Ok((host, default)),
            Some(port) => port.parse().map(|port| (host, port)).map_err(|_| bad),
            None => Err(bad),
        }
    }

    /// Whether the host is this host: an address of the loopback net, or `localhost` (RFC 6761 §6.3).
    pub(crate) fn is_loopback(&self) -> bool {
        self.host.parse::<IpAddr>().map_or(self.host == "localhost", |address| address.is_loopback())
    }
}

/// TLS or none.
#[derive(Clone)]
pub enum Security {
    /// None.
    Plaintext,
    /// With these roots, for this name.
    Tls {
        /// Of rustls.
        config: Arc<ClientConfig>,
        /// As in the certificate.
        name: ServerName<'static>,
    },
}

impl Security {
    /// As the address asks: `config`, or one with the roots of this PEM, or with the public ones.
    pub fn new(
        endpoint: &Endpoint,
        config: Option<Arc<ClientConfig>>,
        roots_pem: Option<&[u8]>,
    ) -> Result<Self, ClientError> {
        if !endpoint.tls {
            return Ok(Self::Plaintext);
        }
        let name = ServerName::try_from(endpoint.host.clone())
            .map_err(|_| ClientError::Address("the host is no name that a certificate could have"))?;
        let config = match config {
            Some(config) => config,
            None => Arc::new(Self::config(roots_pem)?),
        };
        Ok(Self::Tls { config, name })
    }

    fn config(roots_pem: Option<&[u8]>) -> Result<ClientConfig, ClientError> {
        let mut roots = RootCertStore::empty();
        match roots_pem {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(pem) => {
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate = certificate.map_err(|error| ClientError::Tls(error.to_string()))?;
                    roots.add(certificate).map_err(|error| ClientError::Tls(error.to_string()))?;
                }
            }
        }
        if roots.is_empty() {
            return Err(ClientError::Tls("no root certificate in the given PEM".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Tls(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(config)
    }
}

/// What a native client asks for (RFC 7301).
const ALPN: &[u8] = b"chappe/1";
const ALPN_H3: &[u8] = b"h3";

/// QUIC's side of the TLS settings.
pub(crate) struct Quic {
    native: quinn::ClientConfig,
    http3: quinn::ClientConfig,
    /// Of the WebTransport request.
    pub(crate) url: Url,
}

impl Quic {
    /// `None`: the address asks for WebSocket.
    pub(crate) fn new(endpoint: &Endpoint, security: &Security) -> Result<Option<Self>, ClientError> {
        let Security::Tls { config, name } = security else { return Ok(None) };
        if endpoint.way == Way::WebSocket {
            return Ok(None);
        }
        let made = |alpn: &[u8]| Self::config_of(config, name, alpn);
        Ok(Some(Self { native: made(ALPN)?, http3: made(ALPN_H3)?, url: endpoint.https()? }))
    }

    pub(crate) fn config(&self, carrier: Carrier) -> &quinn::ClientConfig {
        match carrier {
            Carrier::WebTransport => &self.http3,
            Carrier::Quic | Carrier::WebSocket => &self.native,
        }
    }

    fn config_of(
        tls: &ClientConfig,
        name: &ServerName<'static>,
        alpn: &[u8],
    ) -> Result<quinn::ClientConfig, ClientError> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![alpn.to_vec()];
        // Nothing that a session says is safe to repeat.
        tls.enable_early_data = false;
        let tls = Arc::new(tls);
        // Found out now: quinn would panic at the first connection.
        let version = rustls::quic::Version::V1;
        rustls::quic::ClientConnection::new(tls.clone(), version, name.clone(), Vec::new())
            .map_err(|error| ClientError::Tls(format!("QUIC needs TLS 1.3: {error}")))?;
        let tls = QuicClientConfig::try_from(tls)
            .map_err(|error| ClientError::Tls(format!("QUIC needs TLS 1.3: {error}")))?;
        let mut config = quinn::ClientConfig::new(Arc::new(tls));
        config.transport_config(Arc::new(udp::transport()));
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let cases = [
            ("wss://chat.example", Some((true, "chat.example", 443, "/v1/connect"))),
            ("wss://chat.example/", Some((true, "chat.example", 443, "/v1/connect"))),
            ("ws://127.0.0.1:7440", Some((false, "127.0.0.1", 7440, "/v1/connect"))),
            ("wss://[::1]:7440/other", Some((true, "::1", 7440, "/other"))),
            ("wss://[::1]", Some((true, "::1", 443, "/v1/connect"))),
            ("https://chat.example", None),
            ("wss://", None),
            ("wss://:80", None),
            ("wss://a:b", None),
            ("wss://a:70000", None),
            ("wss://[::1]x", None),
            ("wss://::1", None),
            ("wss://me@chat.example", None),
            ("wss://chat.example/?token=x", None),
            ("wss://chat.example/\r\nX: y", None),
        ];
        for (url, want) in cases {
            let got = Endpoint::parse(url).ok();
            let got = got.as_ref().map(|e| (e.tls, e.host.as_str(), e.port, e.path.as_str()));
            assert_eq!(got, want, "{url}");
        }
    }

    #[test]
    fn schemes_name_the_carrier() {
        for (url, want) in [
            ("chappe://chat.example", Some((Way::Automatic, 443, "/v1/connect"))),
            ("chappe://chat.example:7440/other", Some((Way::Automatic, 7440, "/other"))),
            ("chappe+quic://[::1]:7440", Some((Way::Quic, 7440, "/v1/connect"))),
            ("chappe+quic://chat.example/", Some((Way::Quic, 443, "/v1/connect"))),
            ("chappe+quic://chat.example/path", None),
            ("chappe+webtransport://chat.example/wt", Some((Way::WebTransport, 443, "/wt"))),
            ("chappe+ws://chat.example", None),
            ("wss://chat.example", Some((Way::WebSocket, 443, "/v1/connect"))),
        ] {
            let got = Endpoint::parse(url).ok();
            assert!(got.as_ref().is_none_or(|e| e.tls), "{url}");
            assert_eq!(got.as_ref().map(|e| (e.way, e.port, e.path.as_str())), want, "{url}");
        }
    }

    #[test]
    fn tls_without_its_version_1_3_is_refused_for_quic_and_good_for_websocket() {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let old = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let old = Arc::new(old);
        for (url, good) in [
            ("chappe://a", false),
            ("chappe+quic://a", false),
            ("chappe+webtransport://a", false),
            ("wss://a", true),
        ] {
            let endpoint = Endpoint::parse(url).unwrap();
            let security = Security::new(&endpoint, Some(old.clone()), None).unwrap();
            match Quic::new(&endpoint, &security) {
                Ok(quic) => assert!(good && quic.is_none(), "{url}"),
                Err(error) => assert!(!good && error.to_string().contains("TLS 1.3"), "{url}: {error}"),
            }
        }
    }

    #[test]
    fn loopback_is_this_host_only() {
        for (url, want) in [
            ("ws://127.0.0.1", true),
            ("ws://127.9.9.9", true),
            ("ws://[::1]", true),
            ("ws://localhost", true),
            ("ws://localhost.example", false),
            ("ws://127.0.0.1.example", false),
            ("ws://10.0.0.1", false),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().is_loopback(), want, "{url}");
        }
    }
}
