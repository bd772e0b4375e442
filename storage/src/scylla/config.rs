//! Where the database is and how it is used. **Invariant:** a password never prints itself.

use chappe_protocol::time::Millis;
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The port of CQL where a node names none.
const PORT: u16 = 9042;

/// A name and a password for the database.
#[derive(Clone)]
pub struct Credentials {
    /// The role.
    pub user: String,
    /// Its password; leaves memory with the value.
    pub password: Zeroizing<String>,
}

impl Credentials {
    /// Takes both.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: Zeroizing::new(password.into()) }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).field("password", &"…").finish()
    }
}

/// Settings of [`ScyllaRows`](super::ScyllaRows).
#[derive(Debug, Clone)]
pub struct ScyllaConfig {
    /// `host:port` of the nodes asked first; the others are learned from them.
    pub nodes: Vec<String>,
    /// 1 to 48 of `[a-z0-9_]`, a letter first; `chappe`.
    pub keyspace: String,
    /// None: the database asks for none.
    pub credentials: Option<Credentials>,
    /// None: plain TCP.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The data centre whose nodes are asked and whose quorum counts; None: that of the first node reached.
    pub datacenter: Option<String>,
    /// Copies of every row in that data centre; only [`schema::apply`](super::schema::apply) reads it; 3.
    pub replication: u8,
    /// A statement that takes longer is given up: *unknown* if it writes; 3 s.
    pub request_timeout: Millis,
    /// A connection that takes longer to open is given up; 5 s.
    pub connect_timeout: Millis,
    /// Statements under way at once; one more waits for at most a sixth of `request_timeout`, then it is *unavailable*; 1024.
    pub in_flight_max: usize,
    /// The world's wall clock is the store's clock: for laws that let days pass.
    #[cfg(feature = "testing")]
    pub world_clock: bool,
}

impl ScyllaConfig {
    /// The defaults, with these nodes.
    pub fn new(nodes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            nodes: nodes.into_iter().map(Into::into).collect(),
            keyspace: "chappe".into(),
            credentials: None,
            tls: None,
            datacenter: None,
            replication: 3,
            request_timeout: Millis(3000),
            connect_timeout: Millis(5000),
            in_flight_max: 1024,
            #[cfg(feature = "testing")]
            world_clock: false,
        }
    }

    /// Reads `cql://host[:port][,host[:port]…][/keyspace]`. There is no place for a password in it: addresses are logged.
    pub fn from_url(url: &str) -> Result<Self, UrlError> {
        let rest = url.strip_prefix("cql://").ok_or(UrlError::Scheme)?;
        let (hosts, keyspace) = rest.split_once('/').unwrap_or((rest, ""));
        if hosts.contains('@') {
            return Err(UrlError::Password);
        }
        let nodes = hosts.split(',').map(node).collect::<Result<Vec<_>, _>>()?;
        let mut config = Self::new(nodes);
        if !keyspace.is_empty() {
            config.keyspace = keyspace.into();
        }
        config.check_keyspace()?;
        Ok(config)
    }

    /// Whether the keyspace's name may stand in a statement.
    pub(super) fn check_keyspace(&self) -> Result<(), UrlError> {
        let name = self.keyspace.as_bytes();
        let good = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_';
        let first = name.first().is_some_and(u8::is_ascii_lowercase);
        if first && name.len() <= 48 && name.iter().all(good) { Ok(()) } else { Err(UrlError::Keyspace) }
    }
}

fn node(host: &str) -> Result<String, UrlError> {
    // `[::1]:9042` has its port behind the bracket.
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        Some(_) | None => (host, None),
    };
    let port = port.map_or(Ok(PORT), str::parse).map_err(|_| UrlError::Node)?;
    if name.is_empty() || port == 0 || name.contains(['?', '#', ' ']) {
        return Err(UrlError::Node);
    }
    Ok(format!("{name}:{port}"))
}

/// The address of a database cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// Another scheme.
    #[error("the address of a CQL database begins with cql://")]
    Scheme,
    /// No host, or a port that is none.
    #[error("a node is host or host:port, several with commas between them")]
    Node,
    /// A password has no place in an address.
    #[error("give name and password by their own settings, not in the address: it is logged")]
    Password,
    /// Not a name.
    #[error("a keyspace has 1 to 48 characters of a-z, 0-9 and _, a letter first")]
    Keyspace,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_nodes_and_keyspace() {
        let config = ScyllaConfig::from_url("cql://a:1,b,[::1]:7,[::2]/some_2").unwrap();
        assert_eq!(config.nodes, ["a:1", "b:9042", "[::1]:7", "[::2]:9042"]);
        assert_eq!((config.keyspace.as_str(), config.replication), ("some_2", 3));
        assert_eq!(ScyllaConfig::from_url("cql://a").unwrap().keyspace, "chappe");
    }

    #[test]
    fn an_address_that_makes_no_sense_is_refused() {
        for (url, error) in [
            ("http://a", UrlError::Scheme),
            ("cql://", UrlError::Node),
            ("cql://a,,b", UrlError::Node),
            ("cql://a:0", UrlError::Node),
            ("cql://a:99999", UrlError::Node),
            ("cql://me:secret@a", UrlError::Password),
            ("cql://a/Big", UrlError::Keyspace),
            ("cql://a/x;drop", UrlError::Keyspace),
            ("cql://a/1x", UrlError::Keyspace),
        ] {
            assert_eq!(ScyllaConfig::from_url(url).unwrap_err(), error, "{url}");
        }
    }

    #[test]
    fn a_password_does_not_print_itself() {
        let mut config = ScyllaConfig::new(["a:1"]);
        config.credentials = Some(Credentials::new("chappe", "very secret"));
        let shown = format!("{config:?}");
        assert!(shown.contains("chappe") && !shown.contains("secret"), "{shown}");
    }
}
