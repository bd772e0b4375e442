//! Faults of a cluster on this machine, from a seed: processes are killed and paused, one after the other, and brought back.
//! **Invariant:** one fault at a time; whatever was broken is whole again before the next one begins.

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The parts that the cluster runs on (`dev/cluster up one` or `three`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parts {
    /// One NATS, Redis, one database node: NATS and Redis are broken, and wiped together.
    One,
    /// Three NATS servers, Redis, three database nodes: one at a time is broken, or NATS and Redis are wiped together.
    Three,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// When, from the start of the load; later if the one before took longer.
    pub at: Duration,
    /// From its beginning to the command that mends it.
    pub lasts: Duration,
    /// For the report.
    pub what: String,
    /// The script below `dev/` and its arguments that break it.
    pub begin: Vec<String>,
    /// And those that mend it.
    pub end: Vec<String>,
}

/// Quiet time after each fault.
const REST: Duration = Duration::from_secs(5);
/// The pauses that are tried; the longest only in runs of five minutes and more.
const PAUSES_S: [u64; 3] = [1, 15, 60];

/// The faults of a run.
pub fn schedule(seed: u64, duration: Duration, parts: Parts) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed ^ 0xfa01_7511);
    let own = ["gateway-1", "gateway-2", "gateway-3", "router-1", "router-2", "pusher-1", "pusher-2"];
    let (profile, others, wipe): (&str, &[&str], &str) = match parts {
        Parts::One => ("one", &["nats", "redis"], "reset nats1 redis"),
        Parts::Three => (
            "three",
            &["nats-1", "nats-2", "nats-3", "redis", "cql-1", "cql-2", "cql-3"],
            "reset nats3 redis",
        ),
    };
    let pauses = if duration >= Duration::from_mins(5) { &PAUSES_S[..] } else { &PAUSES_S[..2] };
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut faults = Vec::new();
    let mut at = REST;
    loop {
        let place = random.random_range(0..=own.len() + others.len());
        let (script, target) = match own.get(place) {
            Some(target) => ("cluster", Some(*target)),
            None => ("deps", others.get(place - own.len()).copied()),
        };
        // Without a target: the bus and presence go at once, with all that they hold.
        let killed = random.random_range(0..2) == 0 || target.is_none();
        let lasts = if killed {
            Duration::from_millis(random.random_range(200..3000))
        } else {
            Duration::from_secs(pauses[random.random_range(0..pauses.len())])
        };
        // A database node that was killed needs half a minute to come back.
        let slow = killed && target.is_some_and(|target| target.starts_with("cql"));
        let mending = if slow { Duration::from_secs(30) } else { REST };
        if at + lasts + mending >= duration {
            return faults;
        }
        let whole = if script == "cluster" { "start".to_owned() } else { format!("start {profile}") };
        let (begin, end) = match target {
            None => (wipe.to_owned(), whole),
            Some(target) if killed => (format!("kill {target}"), whole),
            Some(target) => (format!("pause {target}"), format!("resume {target}")),
        };
        let what = if killed { begin.clone() } else { format!("{begin} {} s", lasts.as_secs()) };
        faults.push(Fault {
            at,
            lasts,
            what,
            begin: words(format!("{script} {begin}")),
            end: words(format!("{script} {end}")),
        });
        at += lasts + mending + REST;
    }
}

/// Runs one of the project's scripts to its end.
pub async fn run(scripts: &Path, words: &[String]) -> Result<()> {
    let (script, arguments) = words.split_first().context("an empty fault")?;
    let program = scripts.join(script);
    let done = tokio::process::Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| {
            format!("cannot run {}; name the folder of the scripts with --scripts", program.display())
        })?;
    if !done.status.success() {
        let told = String::from_utf8_lossy(&done.stderr);
        bail!("{} {}: {}", program.display(), arguments.join(" "), told.lines().last().unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_one_schedule_and_one_fault_at_a_time() {
        for seed in 0..50 {
            let duration = Duration::from_mins(20);
            let faults = schedule(seed, duration, Parts::Three);
            assert_eq!(faults, schedule(seed, duration, Parts::Three));
            assert!(faults.len() > 15, "seed {seed}: {}", faults.len());
            assert!(faults.windows(2).all(|pair| pair[0].at + pair[0].lasts + REST <= pair[1].at));
            assert!(faults.iter().all(|fault| fault.at + fault.lasts < duration));
        }
        let all: String = (0..20)
            .flat_map(|seed| schedule(seed, Duration::from_mins(20), Parts::Three))
            .map(|fault| fault.what + "\n")
            .collect();
        for what in [
            "kill gateway-1",
            "pause router-2 60 s",
            "pause redis 15 s",
            "kill nats-2",
            "kill cql-3",
            "pause cql-1 1 s",
            "reset nats3 redis",
        ] {
            assert!(all.contains(what), "{what}");
        }
        let short = schedule(1, Duration::from_mins(1), Parts::One);
        assert!(
            !short.is_empty()
                && short.iter().all(|fault| !fault.what.contains("cql") && !fault.what.contains("60 s"))
        );
    }
}
