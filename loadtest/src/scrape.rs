//! The server's own metrics, read beside the load. **Invariant:** a server that does not answer leaves a gap, and holds nothing up.

use bytes::Bytes;
use chappe_node::admin;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Names that are kept at most; Chappe has some hundred.
const NAMES_MAX: usize = 400;
/// Looks that are kept; then every second one is dropped, and it is looked half as often.
const LOOKS_MAX: usize = 300;
/// A server that takes longer is passed over.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// What one metric was over time: seconds from the start of the load, and the sum over all labels and all servers. Of what
/// only grows (`_total`, `_sum`, `_count`) it is the growth by second.
pub type Metric = Vec<(f64, f64)>;

/// Metrics that moved, by name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scraped(pub BTreeMap<String, Metric>);

/// Which servers are asked.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Their admin ports.
    servers: Vec<SocketAddr>,
}

impl Scrape {
    /// These admin ports.
    pub fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }

    /// Asks once a second until the load is over; less often if it is long.
    pub(crate) async fn follow(&self, start: Instant, duration: Duration) -> Scraped {
        let (mut looks, mut every, mut due) = (Vec::new(), Duration::from_secs(1), start);
        while !self.servers.is_empty() && due <= start + duration {
            tokio::time::sleep_until(due).await;
            if let Some(look) = self.look().await {
                looks.push(((due - start).as_secs_f64(), look));
            }
            if looks.len() >= LOOKS_MAX {
                let mut keep = false;
                looks.retain(|_| {
                    keep = !keep;
                    keep
                });
                every *= 2;
            }
            due += every;
        }
        over_time(&looks)
    }

    /// All of them; `None` if one does not answer.
    async fn look(&self) -> Option<BTreeMap<String, f64>> {
        let mut sum = BTreeMap::new();
        for server in &self.servers {
            let asked = admin::request(*server, "GET", "/metrics", None, Bytes::new());
            let (status, text) = tokio::time::timeout(ANSWER_MAX, asked).await.ok()?.ok()?;
            if !status.is_success() {
                return None;
            }
            read(&text, &mut sum);
        }
        Some(sum)
    }
}

/// Adds what is written in the text format of Prometheus, labels summed up; buckets of histograms are left out.
fn read(text: &str, sum: &mut BTreeMap<String, f64>) {
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let name = series.split('{').next().unwrap_or(series);
        let Ok(value) = value.parse::<f64>() else { continue };
        if name.ends_with("_bucket")
            || !value.is_finite()
            || (sum.len() >= NAMES_MAX && !sum.contains_key(name))
        {
            continue;
        }
        *sum.entry(name.to_owned()).or_default() += value;
    }
}

fn over_time(looks: &[(f64, BTreeMap<String, f64>)]) -> Scraped {
    let mut scraped = Scraped::default();
    let Some((_, first)) = looks.first() else { return scraped };
    for name in first.keys() {
        let seen: Vec<(f64, f64)> =
            looks.iter().filter_map(|(at, look)| Some((*at, *look.get(name)?))).collect();
        if seen.iter().all(|(_, value)| (value - first[name]).abs() < f64::EPSILON) {
            continue;
        }
        let grows = ["_total", "_sum", "_count"].iter().any(|end| name.ends_with(end));
        let metric = if grows { growth(&seen) } else { seen };
        scraped.0.insert(name.clone(), metric);
    }
    scraped
}

/// By second; a server that was started anew begins at 0 again.
fn growth(seen: &[(f64, f64)]) -> Metric {
    let pairs = seen.windows(2).filter(|pair| pair[1].0 > pair[0].0);
    pairs
        .map(|pair| {
            let grown = if pair[1].1 >= pair[0].1 { pair[1].1 - pair[0].1 } else { pair[1].1 };
            (pair[1].0, grown / (pair[1].0 - pair[0].0))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a_total All.\n# TYPE a_total counter\na_total{why=\"x y\"} 3\na_total{why=\"z\"} 4\n\
        b 2.5\nc_bucket{le=\"1\"} 7\nc_sum 1.5\nd NaN\nbroken\n";

    #[test]
    fn labels_and_servers_are_summed_up_and_buckets_left_out() {
        let mut sum = BTreeMap::new();
        read(TEXT, &mut sum);
        read(TEXT, &mut sum);
        let wanted = [("a_total", 14.0), ("b", 5.0), ("c_sum", 3.0)];
        assert_eq!(sum, wanted.map(|(name, value)| (name.to_owned(), value)).into());
    }

    #[test]
    fn what_grows_is_told_by_second_what_rests_is_not_told() {
        let look = |at: f64, total: f64, gauge: f64| {
            let all = [("a_total", total), ("b", gauge), ("c", 1.0)];
            (at, all.map(|(name, value)| (name.to_owned(), value)).into())
        };
        let scraped = over_time(&[look(0.0, 100.0, 5.0), look(2.0, 120.0, 6.0), look(3.0, 7.0, 5.0)]);
        assert_eq!(scraped.0["a_total"], [(2.0, 10.0), (3.0, 7.0)], "it was started anew");
        assert_eq!(scraped.0["b"], [(0.0, 5.0), (2.0, 6.0), (3.0, 5.0)]);
        assert!(!scraped.0.contains_key("c"));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_holds_nothing_up() {
        let nobody = Scrape::new(vec!["127.0.0.1:1".parse().unwrap()]);
        let start = crate::run::now();
        assert_eq!(nobody.follow(start, Duration::from_millis(500)).await, Scraped::default());
        assert!(start.elapsed() < Duration::from_secs(3));
    }
}
