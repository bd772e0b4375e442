//! The console: a page of the admin port that shows the whole cluster, read only. **Invariant:** it is made of metrics and log lines
//! alone, so nothing of it is about a user; what others answer is bounded in number, size and time.

use crate::alarms::{self, Alarm};
use crate::clock::SystemWorld;
use crate::vitals::VERSION;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use futures_util::future::BoxFuture;
use prometheus::Registry;
use prometheus::proto::{LabelPair, MetricType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

/// Paths of the page, and where its data are.
pub(crate) const PREFIX: &str = "/console";
/// The browser loads nothing from elsewhere and runs nothing that is not in these files.
pub(crate) const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Members that are shown at most.
pub const MEMBERS_MAX: usize = 512;
/// What was asked within so long is answered again, however many look.
const FRESH: Millis = Millis::from_secs(2);
/// A member that says nothing for so long is forgotten.
const FORGOTTEN: Millis = Millis::from_secs(600);
/// Of what the library tells of the process, these.
const OF_PROCESS: [&str; 4] =
    ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"];

/// A process of the cluster, as it describes itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// `gateway`, `router`, `pusher` or `standalone`.
    pub role: String,
    /// Host and admin port.
    pub name: String,
    /// Its own for as long as it runs.
    pub instance: String,
    /// Of the build.
    pub version: String,
    /// Milliseconds of Unix time.
    pub started_ms: u64,
    /// As `/readyz` says.
    pub ready: bool,
    /// It was told to end.
    pub draining: bool,
    /// Counters and gauges, and sums and counts of histograms, by name and labels as Prometheus writes them. Series with labels
    /// that are 0 are left out.
    pub series: BTreeMap<String, f64>,
    /// The last warnings and errors, the newest last.
    pub alarms: Vec<Alarm>,
}

/// How the other processes of the cluster are asked.
pub trait Neighbours: Send + Sync {
    /// Asks all for what [`Console::own`] says there, and waits for at most half a second.
    fn ask(&self) -> BoxFuture<'_, Vec<Member>>;
}

#[derive(Serialize)]
struct Data<'a> {
    format: u32,
    at_ms: u64,
    asked: &'a str,
    waited_ms: u64,
    members: Vec<Member>,
    silent: Vec<Silent>,
}

#[derive(Serialize)]
struct Silent {
    role: String,
    name: String,
    last_heard_ms: u64,
}

/// What this process shows.
pub struct Console {
    role: &'static str,
    name: String,
    instance: String,
    started_ms: u64,
    registry: Registry,
    ready: watch::Receiver<bool>,
    stop: CancellationToken,
    world: SystemWorld,
    neighbours: OnceLock<Arc<dyn Neighbours>>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    answer: Option<(Time, String)>,
    heard: BTreeMap<String, Heard>,
}

struct Heard {
    role: String,
    name: String,
    at: Time,
    at_ms: u64,
}

impl Console {
    pub(crate) fn new(
        role: &'static str,
        admin: SocketAddr,
        registry: Registry,
        ready: watch::Receiver<bool>,
        stop: CancellationToken,
    ) -> Self {
        let world = SystemWorld::new();
        let started_ms = world.wall().0;
        let instance = format!("{:016x}", world.random_below(u64::MAX));
        // proc(5); in a pod it is the pod's name.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = format!("{}:{}", host.trim(), admin.port());
        let (neighbours, last) = Default::default();
        Self { role, name, instance, started_ms, registry, ready, stop, world, neighbours, last }
    }

    /// From now on the others are asked, too; only the first call counts.
    pub fn meet(&self, neighbours: Arc<dyn Neighbours>) {
        let _ = self.neighbours.set(neighbours);
    }

    /// What this process says of itself.
    pub fn own(&self) -> Member {
        Member {
            role: self.role.to_owned(),
            name: self.name.clone(),
            instance: self.instance.clone(),
            version: VERSION.to_owned(),
            started_ms: self.started_ms,
            ready: *self.ready.borrow(),
            draining: self.stop.is_cancelled(),
            series: series(&self.registry),
            alarms: alarms::lately(),
        }
    }

    /// The document behind the page: this process and whoever of the others answers in time.
    pub(crate) async fn data(&self) -> String {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = &last.answer
            && self.world.now() - *at < FRESH
        {
            return answer.clone();
        }
        let asked = self.world.now();
        let mut members = match self.neighbours.get() {
            Some(neighbours) => neighbours.ask().await,
            None => Vec::new(),
        };
        members.truncate(MEMBERS_MAX - 1);
        members.retain(|member| member.instance != self.instance);
        members.push(self.own());
        members.sort_by(|a, b| (&a.role, &a.name, &a.instance).cmp(&(&b.role, &b.name, &b.instance)));
        members.dedup_by(|a, b| a.instance == b.instance);
        let at_ms = self.world.wall().0;
        last.hear(&members, self.world.now(), at_ms);
        let answered = |instance: &String| members.iter().any(|member| member.instance == *instance);
        let silent = last.heard.iter().filter(|(instance, _)| !answered(instance));
        let silent = silent.map(|(_, heard)| Silent {
            role: heard.role.clone(),
            name: heard.name.clone(),
            last_heard_ms: heard.at_ms,
        });
        let silent = silent.collect();
        let waited_ms = (self.world.now() - asked).0;
        let data = Data { format: 1, at_ms, asked: &self.name, waited_ms, members, silent };
        // Plain figures and words: nothing in it fails to be written.
        let answer = serde_json::to_string(&data).unwrap_or_default();
        last.answer = Some((self.world.now(), answer.clone()));
        answer
    }
}

impl Last {
    /// Who has ended in order is not missed.
    fn hear(&mut self, members: &[Member], now: Time, at_ms: u64) {
        for member in members {
            if member.draining {
                self.heard.remove(&member.instance);
                continue;
            }
            let heard = Heard { role: member.role.clone(), name: member.name.clone(), at: now, at_ms };
            self.heard.insert(member.instance.clone(), heard);
        }
        // A restart in place is no loss.
        let names: Vec<_> = members.iter().map(|member| (&member.role, &member.name)).collect();
        self.heard.retain(|instance, heard| {
            let here = members.iter().any(|member| member.instance == *instance);
            here || now - heard.at < FORGOTTEN && !names.contains(&(&heard.role, &heard.name))
        });
        while self.heard.len() > 2 * MEMBERS_MAX {
            self.heard.pop_first();
        }
    }
}

/// The page's files: kind and content.
pub(crate) fn file(path: &str) -> Option<(&'static str, &'static str)> {
    Some(match path {
        "/console" | "/console/" => ("text/html; charset=utf-8", include_str!("console/console.html")),
        "/console/console.css" => ("text/css; charset=utf-8", include_str!("console/console.css")),
        "/console/console.js" => ("text/javascript; charset=utf-8", include_str!("console/console.js")),
        _ => return None,
    })
}

/// What stands in the registry, flat.
fn series(registry: &Registry) -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for family in registry.gather() {
        let name = family.name();
        if !name.starts_with("chappe_") && !OF_PROCESS.contains(&name) {
            continue;
        }
        for metric in family.get_metric() {
            let labels = labels(metric.get_label());
            let mut tell = |part: &str, value: f64| {
                if labels.is_empty() || value != 0.0 {
                    all.insert(format!("{name}{part}{labels}"), value);
                }
            };
            match family.get_field_type() {
                MetricType::COUNTER => tell("", metric.get_counter().get_value()),
                MetricType::GAUGE => tell("", metric.get_gauge().get_value()),
                MetricType::HISTOGRAM => {
                    tell("_sum", metric.get_histogram().get_sample_sum());
                    #[expect(clippy::cast_precision_loss, reason = "a count, to be looked at")]
                    tell("_count", metric.get_histogram().get_sample_count() as f64);
                }
                MetricType::SUMMARY | MetricType::UNTYPED => {}
            }
        }
    }
    all
}

fn labels(pairs: &[LabelPair]) -> String {
    let mut text = String::new();
    for pair in pairs {
        let lead = if text.is_empty() { '{' } else { ',' };
        // Writing to a string cannot fail; the values are words of ours, without quotes.
        let _ = write!(text, "{lead}{}=\"{}\"", pair.name(), pair.value());
    }
    if !text.is_empty() {
        text.push('}');
    }
    text
}
