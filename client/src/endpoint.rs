//! Where the gateway is and how the way there is secured. **Invariant:** no plaintext unless asked for by `ws://`.

use crate::error::ClientError;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::IpAddr;
use std::sync::Arc;

/// A parsed address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) tls: bool,
    /// Without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// As in the `Host` header.
    pub(crate) authority: String,
    pub(crate) path: String,
}

impl Endpoint {
    /// Reads `wss://host[:port][/path]` or `ws://…`; the path defaults to `/v1/connect`.
    pub(crate) fn parse(url: &str) -> Result<Self, ClientError> {
        let (tls, rest) = if let Some(rest) = url.strip_prefix("wss://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("ws://") {
            (false, rest)
        } else {
            return Err(ClientError::Address("it begins with wss:// (or ws://)"));
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
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
        Ok(Self { tls, host: host.to_owned(), port, authority: authority.to_owned(), path: path.to_owned() })
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
pub(crate) enum Security {
    Plaintext,
    Tls { config: Arc<ClientConfig>, name: ServerName<'static> },
}

impl Security {
    pub(crate) fn new(
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
