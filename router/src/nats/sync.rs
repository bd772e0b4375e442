//! Whether JetStream syncs what it takes before it answers, read from the servers' monitoring ports.
//! **Invariant:** it only tells: wake hints may be lost, so nothing waits for it and nothing is refused.
//!
//! A client cannot ask for this over the bus. `/jsz` of NATS 2.15 has `config.sync_always`; its `sync_interval` stays at the
//! default beside it.

use super::wakes::WakeMetrics;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the servers are asked.
const ASK_EVERY: Duration = Duration::from_mins(10);
/// How often one that gave no answer is asked again.
const RETRY_EVERY: Duration = Duration::from_secs(30);

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Synced {
    /// It syncs before it answers.
    Always,
    /// It syncs now and then.
    NowAndThen,
    /// It has no JetStream.
    NoJetStream,
    /// No sound answer; why.
    Unknown(String),
}

impl Synced {
    const fn code(&self) -> &'static str {
        match self {
            Self::Always => "nats_synced",
            Self::NowAndThen => "nats_not_synced",
            Self::NoJetStream => "nats_no_jetstream",
            Self::Unknown(_) => "nats_sync_unknown",
        }
    }

    fn tell(&self, monitor: &str) {
        let code = self.code();
        match self {
            Self::Always => tracing::info!(monitor, "{code}: JetStream syncs before it answers"),
            Self::NowAndThen => tracing::warn!(
                monitor,
                "{code}: JetStream answers before it syncs: a power cut takes wake hints that it has taken; set `sync_interval: always` in the server's `jetstream`"
            ),
            Self::NoJetStream => tracing::warn!(
                monitor,
                "{code}: this server has no JetStream; enable `jetstream` in its configuration, or leave it out of wakes.monitors"
            ),
            Self::Unknown(why) => tracing::warn!(
                monitor,
                "{code}: whether JetStream syncs before it answers is not known: {why}; is this the server's `http` port?"
            ),
        }
    }
}

/// Asks all servers until `stop`; tells what it hears when it changes.
pub async fn watch(monitors: Vec<String>, metrics: Arc<WakeMetrics>, stop: CancellationToken) {
    if monitors.is_empty() {
        tracing::warn!(
            "nats_sync_unknown: whether JetStream syncs before it answers was not checked; name the servers' monitoring ports in wakes.monitors"
        );
        return;
    }
    let mut told: Vec<Option<Synced>> = vec![None; monitors.len()];
    loop {
        for (monitor, told) in monitors.iter().zip(&mut told) {
            let says = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                says = ask(monitor) => says,
            };
            if told.as_ref().map(Synced::code) != Some(says.code()) {
                says.tell(monitor);
            }
            *told = Some(says);
        }
        let all = |wanted: &Synced| told.iter().flatten().all(|says| says == wanted);
        let any = told.iter().flatten().any(|says| *says == Synced::NowAndThen);
        metrics.synced.set(if any {
            0
        } else if all(&Synced::Always) {
            1
        } else {
            -1
        });
        let known = told.iter().flatten().all(|says| !matches!(says, Synced::Unknown(_)));
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(if known { ASK_EVERY } else { RETRY_EVERY }) => {}
        }
    }
}

/// Asks one server's monitoring port, `http://host:port`.
pub async fn ask(monitor: &str) -> Synced {
    match page(monitor).await {
        Ok(text) => read(&text),
        Err(error) => Synced::Unknown(error.to_string()),
    }
}

async fn page(monitor: &str) -> std::io::Result<String> {
    let host = host(monitor).ok_or_else(|| std::io::Error::other("the address is not http://host:port"))?;
    let mut addresses = tokio::net::lookup_host(host).await?;
    let address = addresses.next().ok_or_else(|| std::io::Error::other("the name has no address"))?;
    let path = "/jsz?config=true";
    let (status, text) = chappe_node::admin::request(address, "GET", path, None, Bytes::new()).await?;
    if status.is_success() { Ok(text) } else { Err(std::io::Error::other(format!("status {status}"))) }
}

/// `host:port` of `http://host:port`; `None`: it is something else.
pub(crate) fn host(monitor: &str) -> Option<&str> {
    let host = monitor.strip_prefix("http://")?;
    let host = host.strip_suffix('/').unwrap_or(host);
    let (name, port) = host.rsplit_once(':')?;
    let good = !name.is_empty() && !name.contains(['/', '@', '?', '#']) && port.parse::<u16>().is_ok();
    good.then_some(host)
}

fn read(text: &str) -> Synced {
    let Ok(page) = serde_json::from_str::<serde_json::Value>(text) else {
        return Synced::Unknown("the answer is not JSON".to_owned());
    };
    if page["disabled"] == true {
        return Synced::NoJetStream;
    }
    if !page["config"].is_object() {
        return Synced::Unknown("the answer has no `config`".to_owned());
    }
    if page["config"]["sync_always"] == true { Synced::Always } else { Synced::NowAndThen }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_2_15_is_understood() {
        let always =
            r#"{"config":{"store_dir":"/x","sync_interval":120000000000,"sync_always":true,"strict":true}}"#;
        assert_eq!(read(always), Synced::Always);
        assert_eq!(read(r#"{"config":{"sync_interval":120000000000}}"#), Synced::NowAndThen);
        let disabled = r#"{"disabled":true,"config":{"max_memory":0,"max_storage":0}}"#;
        assert_eq!(read(disabled), Synced::NoJetStream);
        for unsound in ["", "<html>", "[]", "{}", r#"{"config":1}"#] {
            assert!(matches!(read(unsound), Synced::Unknown(_)), "{unsound}");
        }
    }

    #[test]
    fn a_monitor_is_a_host_and_a_port_over_http() {
        assert_eq!(host("http://nats-1:8222"), Some("nats-1:8222"));
        assert_eq!(host("http://[::1]:8222/"), Some("[::1]:8222"));
        for bad in [
            "nats-1:8222",
            "https://nats-1:8222",
            "http://nats-1",
            "http://:1",
            "http://a:1/b",
            "http://a@b:1",
        ] {
            assert_eq!(host(bad), None, "{bad}");
        }
    }
}
