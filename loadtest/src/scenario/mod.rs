//! What a run does, as data: a file of the team, or one of the library. **Invariant:** the same scenario and seed give the same
//! sends to the same people at the same times; a key that nobody reads is refused.

pub mod library;
mod sends;
mod text;

pub use sends::{Send, Sends};
pub use text::{duration, shown};

use crate::carriers::Choice;
use crate::faults::Parts;
use crate::proxy::Faults;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Duration;

/// Sessions that one process holds: it may open 20,000 files where we measure, and some are its own.
pub const USERS_MAX: u32 = 19_000;

/// A scenario. What is left out has the value that is said here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// One line for people.
    pub about: String,
    /// Users, each with one device; 100.
    pub users: u32,
    /// Submits per second over all users, at intended times that no slow answer moves; 200.
    pub rate: u32,
    /// If given, the rate goes from `rate` to this, evenly over the duration.
    pub rate_end: Option<u32>,
    /// How long submits are sent; 10 s.
    #[serde(with = "text")]
    pub duration: Duration,
    /// What is measured before this is not among the figures of the steady state; 0.
    #[serde(with = "text")]
    pub warm_up: Duration,
    /// Connections are made evenly over this; 0: a handful at a time, as fast as they go.
    #[serde(with = "text")]
    pub connect_over: Duration,
    /// Bytes of a payload, at most 65,536; 256.
    pub payload: usize,
    /// What users connect with; left out: what the scheme of the server's address says.
    pub carrier: Option<Choice>,
    /// Whether the SDK drives the users of WebSocket, too, and not sessions that keep its rules and cost less; false.
    pub sdk: bool,
    /// Decides everything that is random; 1.
    pub seed: u64,
    /// How often a server that was started by the harness is killed, evenly over the duration; 0.
    pub kills: u32,
    /// What is broken in a cluster of `dev/cluster`, by a schedule from the seed.
    pub faults: Option<Parts>,
    /// Who writes to whom.
    pub traffic: Traffic,
    /// What the sessions do.
    pub sessions: Sessions,
    /// The way that some of the users have.
    pub path: Option<BadPath>,
    /// What happens when.
    pub events: Vec<Event>,
    /// Devices that sleep; then nothing of `traffic`, `sessions`, `path` and `events` is used.
    pub wake: Option<Sleep>,
    /// Such as `lost==0` or `deliver.p99<250ms`; one that does not hold makes the exit code 3.
    pub thresholds: Vec<String>,
}

/// Who writes to whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Traffic {
    /// Only the first so many users write; 0: all.
    pub senders: u32,
    /// Only to the last so many users is written; 0: to all.
    pub receivers: u32,
    /// Every submit goes to all of `receivers`.
    pub group: bool,
    /// The users write in turn, each to the next: after as many submits as there are users, each has received one. Then nothing else
    /// of `traffic` is used.
    pub in_turn: bool,
    /// Of 100 submits, how many go to several people; 0.
    pub fan_out_percent: u8,
    /// To how many; 5.
    pub fan_out: u32,
}

impl Default for Traffic {
    fn default() -> Self {
        Self { senders: 0, receivers: 0, group: false, in_turn: false, fan_out_percent: 0, fan_out: 5 }
    }
}

/// What the sessions do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sessions {
    /// Of 100 users, how many lose their connection per second; 0.
    pub disconnects_percent: f64,
    /// Of 100 users, how many take their time with each envelope; 0.
    pub slow_percent: f64,
    /// How long they take; 500 ms.
    #[serde(with = "text")]
    pub slow_pause: Duration,
    /// Of 100 users, how many are away while it is sent, and come when that has ended; 0. They are the last ones, as
    /// `traffic.receivers` are.
    pub away_percent: f64,
}

impl Default for Sessions {
    fn default() -> Self {
        let slow_pause = Duration::from_millis(500);
        Self { disconnects_percent: 0.0, slow_percent: 0.0, slow_pause, away_percent: 0.0 }
    }
}

/// A bad way to the server, through a fault proxy within the harness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct BadPath {
    /// Of 100 users, how many have it; 100.
    pub percent: f64,
    /// Added to each packet, each way; 0.
    #[serde(with = "text")]
    pub latency: Duration,
    /// The latency is even within ± this; 0.
    #[serde(with = "text")]
    pub jitter: Duration,
    /// Of 100 packets, how many are lost; 0.
    pub loss_percent: f64,
    /// So often every QUIC user has another address; 0: never.
    #[serde(with = "text")]
    pub roam_every: Duration,
    /// So often nothing passes for `silent_for`, and connections stay open; 0: never.
    #[serde(with = "text")]
    pub silent_every: Duration,
    /// How long nothing passes; 10 s.
    #[serde(with = "text")]
    pub silent_for: Duration,
}

impl Default for BadPath {
    fn default() -> Self {
        Self {
            percent: 100.0,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            loss_percent: 0.0,
            roam_every: Duration::ZERO,
            silent_every: Duration::ZERO,
            silent_for: Duration::from_secs(10),
        }
    }
}

impl BadPath {
    /// As the proxy has them.
    pub fn faults(&self) -> Faults {
        Faults {
            latency: self.latency,
            jitter: self.jitter,
            loss: self.loss_percent / 100.0,
            ..Faults::default()
        }
    }
}

/// Something that happens at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Event {
    /// From the start of the load.
    #[serde(with = "text")]
    pub at: Duration,
    /// What.
    #[serde(rename = "do")]
    pub what: Happening,
}

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Happening {
    /// Every connection is cut, and everybody comes back at once.
    Storm,
    /// The servers are asked to end, one after the other, and started again: SIGTERM for one that the harness started, the
    /// gateways of `dev/cluster` otherwise.
    Drain,
}

/// Devices that sleep and are woken through a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sleep {
    /// Of 100 devices, how many fall silent with their connection open instead of closing it; 2.
    pub silent_percent: u8,
    /// From the acceptance of an envelope to the wake; 30 s.
    #[serde(with = "text")]
    pub bound: Duration,
    /// How long it is watched at the end that nobody is woken any more; 35 s.
    #[serde(with = "text")]
    pub quiet: Duration,
    /// So long, in the middle, the provider answers 503; 0.
    #[serde(with = "text")]
    pub provider_fails: Duration,
}

impl Default for Sleep {
    fn default() -> Self {
        Self {
            silent_percent: 2,
            bound: Duration::from_secs(30),
            quiet: Duration::from_secs(35),
            provider_fails: Duration::ZERO,
        }
    }
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            about: String::new(),
            users: 100,
            rate: 200,
            rate_end: None,
            duration: Duration::from_secs(10),
            warm_up: Duration::ZERO,
            connect_over: Duration::ZERO,
            payload: 256,
            carrier: None,
            sdk: false,
            seed: 1,
            kills: 0,
            faults: None,
            traffic: Traffic::default(),
            sessions: Sessions::default(),
            path: None,
            events: Vec::new(),
            wake: None,
            thresholds: Vec::new(),
        }
    }
}

impl Scenario {
    /// Reads a file's text. The error says which line is wrong.
    pub fn read(text: &str) -> Result<Self, String> {
        let read: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        read.check()?;
        Ok(read)
    }

    /// One of the library by its name, or a file of the team.
    pub fn find(name: &str) -> Result<Self, String> {
        if let Some(ready) = library::find(name) {
            return Self::read(ready.text);
        }
        let path = Path::new(name);
        let file = path.extension().is_some_and(|ending| ending == "toml");
        if !file {
            let names: Vec<&str> = library::ALL.iter().map(|ready| ready.name).collect();
            return Err(format!(
                "there is no scenario \"{name}\"; ready are {}; a file of your own ends in .toml",
                names.join(", ")
            ));
        }
        let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
        Self::read(&text).map_err(|error| format!("{name}: {error}"))
    }

    /// The same with one line of the file changed: `traffic.fan-out=20`. What is no value of TOML is taken as text.
    pub fn with(&self, line: &str) -> Result<Self, String> {
        let (key, value) =
            line.split_once('=').ok_or_else(|| format!("--set {line}: write it as KEY=VALUE"))?;
        let told = |error: &dyn std::fmt::Display| format!("--set {line}: {error}");
        let value = toml::from_str::<toml::Table>(&format!("value = {value}"))
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let mut whole = toml::Table::try_from(self).map_err(|error| told(&error))?;
        let mut place = &mut whole;
        let (path, name) = key.rsplit_once('.').map_or((None, key), |(path, name)| (Some(path), name));
        for part in path.iter().flat_map(|path| path.split('.')) {
            let inner = place.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            place = inner.as_table_mut().ok_or_else(|| told(&"this is no table"))?;
        }
        place.insert(name.to_owned(), value);
        whole.try_into().map_err(|error: toml::de::Error| told(&error))
    }

    /// Refuses what cannot be run.
    pub fn check(&self) -> Result<(), String> {
        let traffic = &self.traffic;
        let percents = [
            ("sessions.slow-percent", self.sessions.slow_percent),
            ("sessions.away-percent", self.sessions.away_percent),
            ("path.percent", self.path.as_ref().map_or(0.0, |path| path.percent)),
            ("path.loss-percent", self.path.as_ref().map_or(0.0, |path| path.loss_percent)),
        ];
        if let Some((name, _)) = percents.iter().find(|(_, percent)| !(0.0..=100.0).contains(percent)) {
            return Err(format!("{name}: from 0 to 100"));
        }
        for (name, users) in [("traffic.senders", traffic.senders), ("traffic.receivers", traffic.receivers)]
        {
            if users > self.users {
                return Err(format!("{name}: {users} are more than there are users ({})", self.users));
            }
        }
        if let Some(event) = self.events.iter().find(|event| event.at >= self.duration) {
            return Err(format!("events: at {} the load is over; make the duration longer", shown(event.at)));
        }
        for text in &self.thresholds {
            crate::thresholds::Threshold::read(text)?;
        }
        match () {
            () if self.users < 2 && self.wake.is_none() => Err("users: at least 2 are needed to talk".into()),
            () if self.users == 0 => Err("users: at least 1 device that sleeps".into()),
            () if self.rate == 0 => Err("rate: at least 1 submit per second".into()),
            () if self.rate_end == Some(0) => Err("rate-end: at least 1 submit per second".into()),
            () if self.duration.is_zero() => Err("duration: must not be zero".into()),
            () if self.warm_up >= self.duration => Err("warm-up: must be shorter than duration".into()),
            () if self.payload > 64 * 1024 => Err("payload: at most 65536 bytes".into()),
            () if traffic.fan_out_percent > 100 => Err("traffic.fan-out-percent: at most 100".into()),
            () if traffic.fan_out == 0 => Err("traffic.fan-out: at least 1".into()),
            () if traffic.group && traffic.receivers == 0 => {
                Err("traffic.group: say how many receivers the group has".into())
            }
            () if self.sessions.disconnects_percent < 0.0
                || !self.sessions.disconnects_percent.is_finite() =>
            {
                Err("sessions.disconnects-percent: not below 0".into())
            }
            () => self.check_sleep(),
        }
    }

    fn check_sleep(&self) -> Result<(), String> {
        let Some(sleep) = &self.wake else { return Ok(()) };
        match () {
            () if sleep.silent_percent > 100 => Err("wake.silent-percent: at most 100".into()),
            () if sleep.bound.is_zero() => Err("wake.bound: must not be zero".into()),
            () if sleep.provider_fails >= self.duration => {
                Err("wake.provider-fails: must be shorter than duration".into())
            }
            () => Ok(()),
        }
    }

    /// Users that are among so many of a hundred, the last ones.
    pub(crate) fn is_last(&self, percent: f64, user: u32) -> bool {
        f64::from(self.users - user) <= f64::from(self.users) * percent / 100.0
    }
}

#[cfg(test)]
mod tests;
