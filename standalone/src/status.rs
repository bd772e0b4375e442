//! `chappe status`: a look at a running server through its admin port. **Invariant:** it changes nothing.

use anyhow::{Context, Result};
use bytes::Bytes;
use serde::Serialize;
use std::net::SocketAddr;

/// What `chappe status` shows.
#[derive(Debug, Serialize, PartialEq)]
pub struct Status {
    /// Answers at all.
    pub alive: bool,
    /// Takes clients: neither starting nor draining.
    pub ready: bool,
    /// The server's own figures, by the names in `docs/metrics.md`; histograms are left out.
    pub figures: Vec<(String, f64)>,
}

/// Asks the admin port.
pub async fn ask(admin: SocketAddr) -> Result<Status> {
    let get = |path| chappe_node::admin::request(admin, "GET", path, None, Bytes::new());
    let (alive, _) = get("/healthz").await.with_context(|| {
        format!(
            "nothing answers on the admin port {admin}; start `chappe serve`, or name its port with --admin"
        )
    })?;
    let (ready, _) = get("/readyz").await?;
    let (_, text) = get("/metrics").await?;
    Ok(Status { alive: alive.is_success(), ready: ready.is_success(), figures: figures(&text) })
}

/// Counters and gauges of our own out of the text format of Prometheus.
fn figures(text: &str) -> Vec<(String, f64)> {
    text.lines()
        .filter(|line| line.starts_with("chappe_"))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(name, _)| {
            !name.contains("_bucket{") && !name.ends_with("_sum") && !name.ends_with("_count")
        })
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_gauges_are_shown_and_histograms_are_not() {
        let text = "# HELP x\nchappe_a_total 3\nchappe_b{kind=\"x y\"} 4\nchappe_c_bucket{le=\"1\"} 2\nchappe_c_sum 1\nother 1\n";
        let shown = figures(text);
        assert_eq!(shown, vec![("chappe_a_total".into(), 3.0), ("chappe_b{kind=\"x y\"}".into(), 4.0)]);
    }
}
