//! Where a connection goes to. **Invariant:** always `https`, a lower-case host without user, a port.

use std::fmt;

/// Not an address that is dialled here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no https address of a host without user and fragment")]
pub struct BadUrl;

/// Scheme (always `https`), host and port (RFC 6454 §4). Does not print itself: a push service of one's own names its owner.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    host: String,
    port: u16,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Origin(…)")
    }
}

impl Origin {
    /// Reads an address: its origin, and its path with query (`/` if it has none).
    pub fn split(url: &str) -> Result<(Self, String), BadUrl> {
        let uri: http::Uri = url.parse().map_err(|_| BadUrl)?;
        let authority = uri.authority().ok_or(BadUrl)?;
        if uri.scheme_str() != Some("https") || authority.as_str().contains('@') || url.contains('#') {
            return Err(BadUrl);
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 443,
            Some(port) => port.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or(BadUrl)?,
            None => return Err(BadUrl),
        };
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        if host.is_empty() {
            return Err(BadUrl);
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok((Self { host: host.to_ascii_lowercase(), port }, path))
    }

    /// Reads an address that is an origin and nothing more (a final `/` is let pass).
    pub fn parse(url: &str) -> Result<Self, BadUrl> {
        match Self::split(url)? {
            (origin, path) if path == "/" => Ok(origin),
            _ => Err(BadUrl),
        }
    }

    /// The host, lower-case, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `https://host[:port]` (RFC 6454 §6.2): the audience of a VAPID token (RFC 8292 §2).
    pub fn serialized(&self) -> String {
        let open = if self.host.contains(':') { "[" } else { "" };
        let close = if open.is_empty() { "" } else { "]" };
        match self.port {
            443 => format!("https://{open}{}{close}", self.host),
            port => format!("https://{open}{}{close}:{port}", self.host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_falls_into_origin_and_path() {
        for (url, origin, path) in [
            ("https://Push.Example", "https://push.example", "/"),
            ("https://push.example.:443/a/b?x=1", "https://push.example", "/a/b?x=1"),
            ("https://push.example:8443?x=1", "https://push.example:8443", "/?x=1"),
            ("https://[2001:db8::1]:444/", "https://[2001:db8::1]:444", "/"),
        ] {
            let (read, rest) = Origin::split(url).unwrap();
            assert_eq!((read.serialized().as_str(), rest.as_str()), (origin, path), "{url}");
        }
        assert_eq!(Origin::split("https://[2001:db8::1]/").unwrap().0.host(), "2001:db8::1");
        for url in [
            "http://push.example/",
            "https://",
            "https://u@push.example/",
            "push.example",
            "https://a:99999/",
            "https://a/#b",
        ] {
            assert_eq!(Origin::split(url), Err(BadUrl), "{url}");
        }
        assert!(Origin::parse("https://push.example/").is_ok());
        assert_eq!(Origin::parse("https://push.example/path"), Err(BadUrl));
    }

    #[test]
    fn an_origin_does_not_print_itself() {
        assert_eq!(format!("{:?}", Origin::parse("https://kvqz.example").unwrap()), "Origin(…)");
    }
}
