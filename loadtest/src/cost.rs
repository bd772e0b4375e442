//! What a run will take of this machine, before it begins. **Invariant:** what the machine cannot carry is refused with what to do
//! about it; estimates are told as such.

use crate::carriers::Choice;
use crate::scenario::Scenario;
use std::fmt::Write;

/// Files that a process needs beside its sessions.
const FILES_OWN: u64 = 200;
/// Memory of a session of the SDK with TLS, bytes: measured by `loadtest run idle` (docs/loadtest.md).
const SESSION_BYTES: u64 = 72 << 10;
/// Memory of the harness without sessions.
const OWN_BYTES: u64 = 32 << 20;
/// CPU time of the harness by envelope, seconds: the same.
const ENVELOPE_SECONDS: f64 = 150e-6;
/// The same of a lean session; with TLS, which is most of it.
const LEAN_BYTES: u64 = 24 << 10;
const LEAN_SECONDS: f64 = 75e-6;
/// More than this share of its cores, and the harness measures itself.
const CORES_SHARE: f64 = 0.8;

/// What the machine has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Machine {
    /// Open files that a process may have.
    pub files: u64,
    /// Ports that connections may leave from, by source address.
    pub ports: u64,
    /// Memory that is free, bytes.
    pub memory: u64,
    /// Cores.
    pub cores: u64,
}

impl Machine {
    /// This one, from `/proc`; what it does not say is taken as plenty.
    pub fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let first = |text: &str| text.split_whitespace().find_map(|word| word.parse::<u64>().ok());
        let line = |path: &str, name: &str| {
            read(path).lines().find_map(|line| line.strip_prefix(name)).and_then(&first)
        };
        let range = read("/proc/sys/net/ipv4/ip_local_port_range");
        let mut ends = range.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
        let ports = ends.next().zip(ends.next()).map(|(low, high)| high.saturating_sub(low) + 1);
        Self {
            files: line("/proc/self/limits", "Max open files").unwrap_or(u64::MAX),
            ports: ports.unwrap_or(u64::MAX),
            memory: line("/proc/meminfo", "MemAvailable:").map_or(u64::MAX, |kib| kib << 10),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
        }
    }
}

/// How the load is put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// By so many processes of this machine, each with a source address of its own if there is more than one and the server is
    /// on this machine, too.
    Processes {
        /// At least 1.
        count: u32,
        /// Whether each has its own source address.
        own_address: bool,
    },
    /// By so many agents elsewhere: only the number of sessions is checked.
    Agents(u32),
}

/// What a run takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Sessions of one worker.
    pub sessions: u64,
    /// Submits in all.
    pub submits: u64,
    /// Envelopes in all: a submit to ten people is ten.
    pub envelopes: u64,
    /// Memory of all workers of this machine, bytes; an estimate.
    pub memory: u64,
    /// Cores that they use at the highest rate; an estimate.
    pub cores: f64,
    /// Why it cannot be run here.
    pub refusals: Vec<String>,
}

/// Whether lean sessions carry it, as far as the scenario says. The address may want the SDK all the same.
fn is_lean(scenario: &Scenario) -> bool {
    !scenario.sdk && scenario.wake.is_none() && scenario.carrier.is_none_or(|carrier| carrier == Choice::Ws)
}

/// How many of these sessions leave from the same address: all processes, or all sessions of the SDK's UDP sockets, which have no
/// address of their own.
fn from_one_address(scenario: &Scenario, spread: Spread, sessions: u64, workers: u64) -> u64 {
    let shared = matches!(spread, Spread::Processes { own_address: false, .. });
    let udp = scenario.carrier.is_some_and(|carrier| carrier != Choice::Ws);
    if shared || udp { sessions * workers } else { sessions }
}

impl Cost {
    /// Of a scenario on a machine. `sdk` is to be set where the address asks for another carrier than WebSocket.
    pub fn of(scenario: &Scenario, spread: Spread, machine: Machine) -> Self {
        let (workers, local) = match spread {
            Spread::Processes { count, .. } => (u64::from(count.max(1)), true),
            Spread::Agents(count) => (u64::from(count.max(1)), false),
        };
        let users = u64::from(scenario.users);
        let sessions = users.div_ceil(workers);
        let targets = targets(scenario);
        let submits = scenario.sends_total();
        let (session_bytes, envelope_seconds) =
            if is_lean(scenario) { (LEAN_BYTES, LEAN_SECONDS) } else { (SESSION_BYTES, ENVELOPE_SECONDS) };
        let peak = f64::from(scenario.rate.max(scenario.rate_end.unwrap_or(0)));
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate"
        )]
        let envelopes = (submits as f64 * targets) as u64;
        let mut cost = Self {
            sessions,
            submits,
            envelopes,
            memory: if local { users * session_bytes + workers * OWN_BYTES } else { 0 },
            cores: if local { peak * targets * envelope_seconds } else { 0.0 },
            refusals: Vec::new(),
        };
        if local {
            cost.refuse(machine, from_one_address(scenario, spread, sessions, workers));
        }
        cost
    }

    fn refuse(&mut self, machine: Machine, from_one: u64) {
        let mut no = |why: String| self.refusals.push(why);
        let (sessions, memory, cores) = (self.sessions, self.memory, self.cores);
        let files = sessions + FILES_OWN;
        if files > machine.files {
            no(format!(
                "{sessions} sessions in one process need {files} open files, and it may have {}; take more --processes, or raise the limit (ulimit -n)",
                machine.files
            ));
        }
        if from_one > machine.ports {
            no(format!(
                "{from_one} connections from one address, and it has {} ports; take agents on other machines, or widen net.ipv4.ip_local_port_range",
                machine.ports
            ));
        }
        if memory > machine.memory {
            no(format!(
                "about {} MiB of memory, and {} MiB are free; take fewer users, or agents on other machines",
                memory >> 20,
                machine.memory >> 20
            ));
        }
        #[expect(clippy::cast_precision_loss, reason = "some cores")]
        let has = machine.cores as f64;
        if cores > has * CORES_SHARE {
            no(format!(
                "about {cores:.1} cores for the harness alone, and there are {has}; take a lower rate, or agents on other machines"
            ));
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} sessions a worker, {} submits, {} envelopes; about {} MiB of memory and {:.1} cores here (estimates)\n",
            self.sessions,
            self.submits,
            self.envelopes,
            self.memory >> 20,
            self.cores
        );
        for why in &self.refusals {
            // Writing to a String does not fail.
            let _ = writeln!(text, "  too much: {why}");
        }
        text
    }
}

/// Envelopes by submit.
fn targets(scenario: &Scenario) -> f64 {
    let traffic = &scenario.traffic;
    if traffic.group {
        return f64::from(traffic.receivers);
    }
    let share = f64::from(traffic.fan_out_percent) / 100.0;
    1.0 - share + share * f64::from(traffic.fan_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Traffic;
    use std::time::Duration;

    const SMALL: Machine = Machine { files: 20_000, ports: 28_232, memory: 8 << 30, cores: 2 };

    fn refused(scenario: &Scenario, spread: Spread) -> String {
        Cost::of(scenario, spread, SMALL).refusals.join("\n")
    }

    fn own(count: u32) -> Spread {
        Spread::Processes { count, own_address: true }
    }

    #[test]
    fn what_a_machine_cannot_carry_is_refused_with_a_hint() {
        let users = |users| Scenario { users, rate: 100, sdk: true, ..Scenario::default() };
        let lean = Scenario { sdk: false, ..users(200_000) };
        assert_eq!(refused(&lean, own(20)), "", "lean sessions");
        assert_eq!(refused(&users(15_000), own(1)), "");
        assert!(refused(&users(25_000), own(1)).contains("--processes"));
        assert_eq!(refused(&users(60_000), own(4)), "");
        let shared = Spread::Processes { count: 4, own_address: false };
        assert!(refused(&users(60_000), shared).contains("ports"));
        let quic = Scenario { carrier: Some(Choice::Quic), ..users(60_000) };
        assert!(refused(&quic, own(4)).contains("ports"), "UDP sockets have no address of their own");
        assert!(refused(&users(200_000), own(20)).contains("MiB"));
        assert_eq!(refused(&users(200_000), Spread::Agents(20)), "", "elsewhere");
        let fast = Scenario { rate: 40_000, ..Scenario::default() };
        assert!(refused(&fast, own(1)).contains("cores"));
        let grows = Scenario { rate_end: Some(40_000), ..Scenario::default() };
        assert!(refused(&grows, own(1)).contains("cores"), "at its highest");
    }

    #[test]
    fn envelopes_are_submits_by_their_addressees() {
        let cost = |traffic| {
            let scenario =
                Scenario { rate: 10, duration: Duration::from_secs(10), traffic, ..Scenario::default() };
            Cost::of(&scenario, own(1), SMALL)
        };
        let group = cost(Traffic { receivers: 50, group: true, ..Traffic::default() });
        assert_eq!((group.submits, group.envelopes), (100, 5000));
        assert_eq!(cost(Traffic { fan_out_percent: 10, fan_out: 11, ..Traffic::default() }).envelopes, 200);
        assert!(group.text().contains("5000 envelopes"));
    }

    #[test]
    fn this_machine_says_what_it_has() {
        let machine = Machine::this();
        assert!(
            machine.files >= 256 && machine.ports > 1000 && machine.memory > 1 << 20 && machine.cores > 0
        );
        assert!(machine.files < u64::MAX && machine.memory < u64::MAX, "{machine:?}");
    }
}
