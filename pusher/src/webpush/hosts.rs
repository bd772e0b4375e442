//! Which push services an app talks to. **Invariant:** a subscription names the host, a person at the operator's allows it.

/// The configured list is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a host is a name, a name's domain with a leading dot, or * alone")]
pub struct BadHosts;

/// Hosts, lower-case: `push.example` is that host, `.push.example` every host below it, `*` every host.
#[derive(Debug, Clone)]
pub struct Hosts {
    allowed: Vec<String>,
    private: Vec<String>,
}

impl Hosts {
    /// `allowed`: whom to talk to, if its address is public. `private`: exact hosts that are allowed whatever their address
    /// is, such as a push service in the operator's own network.
    pub fn new(allowed: &[String], private: &[String]) -> Result<Self, BadHosts> {
        let plain = |host: &String| {
            let good =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:".contains(&byte);
            !host.is_empty() && host.bytes().all(good) && !host.ends_with('.')
        };
        let good = allowed.iter().all(|host| host == "*" || (plain(host) && host != "."))
            && private.iter().all(|host| plain(host) && !host.starts_with('.'));
        if !good || (allowed.is_empty() && private.is_empty()) {
            return Err(BadHosts);
        }
        Ok(Self { allowed: allowed.to_vec(), private: private.to_vec() })
    }

    pub(super) fn is_private(&self, host: &str) -> bool {
        self.private.iter().any(|private| private == host)
    }

    pub(super) fn allows(&self, host: &str) -> bool {
        self.is_private(host)
            || self.allowed.iter().any(|allowed| match allowed.as_str() {
                "*" => true,
                domain if domain.starts_with('.') => host.len() > domain.len() && host.ends_with(domain),
                exact => exact == host,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(allowed: &[&str], private: &[&str]) -> Result<Hosts, BadHosts> {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        Hosts::new(&owned(allowed), &owned(private))
    }

    #[test]
    fn a_host_a_domain_or_all() {
        let some = hosts(&["push.example", ".services.example"], &["ntfy.lan"]).unwrap();
        for (host, allowed) in [
            ("push.example", true),
            ("a.push.example", false),
            ("x.services.example", true),
            ("services.example", false),
            (".services.example", false),
            ("evilservices.example", false),
            ("push.example.evil", false),
            ("ntfy.lan", true),
        ] {
            assert_eq!(some.allows(host), allowed, "{host}");
        }
        assert!(some.is_private("ntfy.lan") && !some.is_private("push.example"));
        assert!(hosts(&["*"], &[]).unwrap().allows("anything"));
        for bad in [&[""] as &[&str], &["."], &["Push.example"], &["a b"], &["push.example."], &["*.example"]]
        {
            assert!(hosts(bad, &[]).is_err(), "{bad:?}");
        }
        assert!(hosts(&[], &[]).is_err() && hosts(&[], &[".lan"]).is_err());
    }
}
