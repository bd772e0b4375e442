//! Which pushers live, so that they share out what is to be swept. **Invariant:** a list that is old or empty costs time or a sweep done
//! twice, never a wake; the set is bounded, and goes by itself when no pusher renews.
//!
//! One sorted set per cluster: a pusher's number in 16 digits of hex, under the end of its lease by Redis's own clock.

use super::RedisPresence;
use ::redis::Pipeline;
use chappe_protocol::time::Millis;

/// Pushers of a cluster; with one more, the one whose lease ends first goes.
const PUSHERS_MAX: usize = 1024;
/// The longest lease.
const PUSHER_LEASE_MAX: Millis = Millis::from_secs(3600);

/// KEYS: the pushers. ARGV: the pusher, milliseconds, how many there may be. All that live, this one among them.
pub(super) const JOIN: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREM', KEYS[1], ARGV[1])
local over = redis.call('ZCARD', KEYS[1]) + 1 - tonumber(ARGV[3])
if over > 0 then redis.call('ZREMRANGEBYRANK', KEYS[1], 0, over - 1) end
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return redis.call('ZRANGE', KEYS[1], 0, -1)
";

/// KEYS: the pushers. ARGV: the pusher.
pub(super) const LEAVE: &str = r"
return redis.call('ZREM', KEYS[1], ARGV[1])
";

impl RedisPresence {
    /// Takes or renews a pusher's lease by Redis's clock, for 1 ms to an hour, and returns all pushers with a live one, sorted,
    /// this one among them. `None`: Redis does not answer; the lease may have been renewed nevertheless.
    pub async fn join_pushers(&self, me: u64, lease: Millis) -> Option<Vec<u64>> {
        let mut pipeline = Pipeline::new();
        let lease = lease.clamp(Millis(1), PUSHER_LEASE_MAX);
        let join = pipeline.cmd("EVALSHA").arg(&self.scripts.join_pushers).arg(1).arg(self.pushers_key());
        join.arg(digits(me)).arg(lease.0).arg(PUSHERS_MAX);
        let answer = self.call::<Vec<Vec<String>>>("join_pushers", &pipeline).await.ok()?;
        let mut live: Vec<u64> =
            answer.iter().flatten().filter_map(|digits| u64::from_str_radix(digits, 16).ok()).collect();
        live.sort_unstable();
        Some(live)
    }

    /// Gives a pusher's lease up. Where Redis does not answer it ends by its own time.
    pub async fn leave_pushers(&self, me: u64) {
        let mut pipeline = Pipeline::new();
        let leave = pipeline.cmd("EVALSHA").arg(&self.scripts.leave_pushers).arg(1).arg(self.pushers_key());
        leave.arg(digits(me)).ignore();
        let _ = self.call::<()>("leave_pushers", &pipeline).await;
    }

    fn pushers_key(&self) -> String {
        format!("chappe:{}:pushers", self.cluster)
    }
}

fn digits(pusher: u64) -> String {
    format!("{pusher:016x}")
}
