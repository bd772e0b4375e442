//! Clock, pace, and what the kernel knows of the server. **Invariant:** time and memory are the server's alone.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Ticks of `utime` and `stime` in a second: USER_HZ, the same on every Linux that we run on.
const TICKS: f64 = 100.0;

#[expect(clippy::disallowed_methods, reason = "a measurement of real time, in a program of its own")]
pub fn now() -> Instant {
    Instant::now()
}

/// CPU seconds (user and system, all threads) that a process has used.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server has ended");
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS
}

/// Resident bytes of a process.
pub fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server has ended");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Lets a burst through, then so many per second: a bucket like the server's, so that nothing is refused.
#[derive(Debug)]
pub struct Pace {
    /// When the next one may go, if there were no bursts.
    next: Mutex<Instant>,
    each: Duration,
    ahead: Duration,
}

impl Pace {
    pub fn new(rate: u32, burst: u32) -> Self {
        let each = Duration::from_secs(1) / rate;
        Self { next: Mutex::new(now()), each, ahead: each * burst }
    }

    /// Waits for one's turn.
    pub async fn turn(&self) {
        let due = {
            let mut next = self.next.lock().unwrap();
            let due = (*next).max(now());
            *next = due + self.each;
            due
        };
        if let Some(due) = due.checked_sub(self.ahead) {
            tokio::time::sleep_until(due.into()).await;
        }
    }
}

/// A moment of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    at: Instant,
    cpu: f64,
    done: u64,
}

impl Moment {
    pub fn of(pid: u32, done: u64) -> Self {
        Self { at: now(), cpu: cpu_seconds(pid), done }
    }

    /// The fields of a JSON object: what happened since `self`.
    pub fn until(&self, end: Self) -> String {
        let (operations, seconds) = (end.done - self.done, (end.at - self.at).as_secs_f64());
        let cpu = end.cpu - self.cpu;
        assert!(
            operations > 0 && cpu > 0.0,
            "{operations} operations in {cpu} CPU seconds: nothing was measured"
        );
        format!("\"operations\":{operations},\"seconds\":{seconds:.3},\"cpu_seconds\":{cpu:.2}")
    }
}
