//! When to connect again, and whether. **Invariant:** pure; no reconnect without jitter, and none by itself after a terminal
//! code, nor after 4409 unless an attempt of our own, given up before, may be the cause.

use crate::error::ClientError;
use chappe_protocol::close::CloseCode;
use chappe_protocol::frame::{GoAway, Role};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;

/// Why a connection, or the attempt to make one, ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The way was lost, or never there; for people.
    Lost(String),
    /// The server closed.
    Close {
        /// See [`CloseCode`].
        code: u16,
        /// For people.
        reason: String,
    },
    /// The server answered the handshake with an HTTP status.
    Http {
        /// The status.
        status: u16,
        /// Its hint; 0: none.
        retry_after: Millis,
    },
    /// The token source has none now.
    NoToken(String),
    /// A GoAway's time has come.
    Moved,
    /// UDP goes out and nothing comes in.
    BlackHole,
    /// The application says that the device is in another network.
    Roamed,
    /// Nothing will change this.
    Fatal(ClientError),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Connect after so long.
    Wait {
        /// From now.
        after: Millis,
        /// For people.
        why: String,
        /// The next Hello needs a new token.
        token_expired: bool,
    },
    /// Wait for `Client::reconnect`.
    Superseded,
    /// A peek has seen everything.
    Done,
    /// Over.
    Failed(ClientError),
}

/// The state between connections.
#[derive(Debug, Clone)]
pub struct Reconnect {
    min: Millis,
    max: Millis,
    role: Role,
    /// Attempts since a connection proved good.
    attempt: u32,
    /// From a GoAway: not before this.
    move_at: Option<Time>,
    /// From an error of scope connection.
    retry_after: Millis,
    /// When an attempt was given up without an answer: a gateway may still be attaching it.
    abandoned: Option<Time>,
}

/// An attempt that was given up may supersede a later one for so long; afterwards its gateway has given up, too.
const ABANDONED_FOR: Millis = Millis::from_secs(60);

/// A connection that stood so long was good: the backoff starts again.
const GOOD_AFTER: Millis = Millis(5000);
/// No server sends a client away for longer.
const HINT_MAX: Millis = Millis::from_secs(3600);

impl Reconnect {
    /// Backoffs from `min` to `max`.
    pub fn new(min: Millis, max: Millis, role: Role) -> Self {
        Self {
            min,
            max: Millis(max.0.max(min.0)),
            role,
            attempt: 0,
            move_at: None,
            retry_after: Millis(0),
            abandoned: None,
        }
    }

    /// The number of the attempt that comes, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.saturating_add(1)
    }

    /// A connection that was welcomed at `since` has ended.
    pub fn stood(&mut self, since: Time, now: Time) {
        if now - since >= GOOD_AFTER {
            self.attempt = 0;
        }
    }

    /// An attempt ended without an answer of the server.
    pub fn on_abandoned(&mut self, now: Time) {
        self.abandoned = Some(now);
    }

    /// An attempt ended before its Welcome; the server may have left a hint when to come again.
    pub fn failed(&mut self, end: &End, retry_after: Millis, now: Time) {
        self.on_retry_after(retry_after);
        if matches!(end, End::Lost(_)) {
            self.on_abandoned(now);
        }
    }

    /// The server asks to move: returns when.
    pub fn on_go_away(&mut self, now: Time, go_away: &GoAway, world: &dyn World) -> Time {
        let jitter = Millis(world.random_below(go_away.jitter.0.saturating_add(1)));
        let jitter = Millis(jitter.0.min(HINT_MAX.0));
        let at = now + Millis(go_away.retry_after.0.min(HINT_MAX.0)) + jitter;
        self.move_at = Some(at);
        at
    }

    /// The error before a close carries a hint.
    pub fn on_retry_after(&mut self, after: Millis) {
        self.retry_after = Millis(after.0.min(HINT_MAX.0));
    }

    /// The application asks: no more waiting.
    pub fn reset(&mut self) {
        self.attempt = 0;
        self.move_at = None;
        self.retry_after = Millis(0);
    }

    /// What to do after `end`.
    pub fn decide(&mut self, now: Time, end: End, world: &dyn World) -> Verdict {
        let hint = std::mem::take(&mut self.retry_after);
        let move_at = self.move_at.take();
        match end {
            End::Fatal(error) => Verdict::Failed(error),
            End::Close { code, reason } if code == CloseCode::ConnectedElsewhere.code() => {
                // The newer session may be our own attempt that we gave up: once, this is no reason to give way.
                match self.abandoned.take().filter(|at| now - *at < ABANDONED_FOR) {
                    Some(_) => {
                        self.wait(now, hint, move_at, format!("closed: {reason} ({code})"), false, world)
                    }
                    None => Verdict::Superseded,
                }
            }
            End::Close { code, .. } if code == CloseCode::PeekEnded.code() && self.role == Role::Peek => {
                Verdict::Done
            }
            End::Close { code, reason } if !CloseCode::code_reconnects(code) => {
                Verdict::Failed(ClientError::Ended { code, reason })
            }
            End::Close { code, reason } => {
                let token_expired = code == CloseCode::TokenExpired.code();
                self.wait(now, hint, move_at, format!("closed: {reason} ({code})"), token_expired, world)
            }
            End::Lost(why) | End::NoToken(why) => self.wait(now, hint, move_at, why, false, world),
            End::Http { status, retry_after } => {
                let hint = hint.max(retry_after);
                self.wait(now, hint, move_at, format!("refused with HTTP status {status}"), false, world)
            }
            End::Moved => {
                let why = "the gateway asked to move".to_owned();
                self.at_once(now, hint, why, world)
            }
            End::BlackHole => {
                let why = "no answer by UDP any more".to_owned();
                self.at_once(now, hint, why, world)
            }
            End::Roamed => {
                self.reset();
                self.at_once(now, hint, "another network".to_owned(), world)
            }
        }
    }

    /// Without a wait, but only the first time: what fails again at once gets a backoff, so that no gateway and no network
    /// makes a busy loop of us.
    fn at_once(&mut self, now: Time, hint: Millis, why: String, world: &dyn World) -> Verdict {
        let move_at = (self.attempt == 0).then_some(now);
        self.wait(now, hint, move_at, why, false, world)
    }

    fn wait(
        &mut self,
        now: Time,
        hint: Millis,
        move_at: Option<Time>,
        why: String,
        token_expired: bool,
        world: &dyn World,
    ) -> Verdict {
        // The GoAway has spread the clients already; its hint replaces the first backoff.
        let after = match move_at {
            Some(at) => at - now,
            None => Millis(hint_with_jitter(hint, world).0 + self.backoff(world).0),
        };
        self.attempt = self.attempt.saturating_add(1);
        Verdict::Wait { after, why, token_expired }
    }

    /// The least wait plus full jitter up to `min · 2^attempt`, together at most `max`.
    fn backoff(&self, world: &dyn World) -> Millis {
        let bound = self.min.0.saturating_mul(1 << self.attempt.min(20)).min(self.max.0 - self.min.0);
        Millis(self.min.0 + world.random_below(bound.saturating_add(1)))
    }
}

/// Everyone was given the same hint: a quarter of it spreads them.
fn hint_with_jitter(hint: Millis, world: &dyn World) -> Millis {
    Millis(hint.0.saturating_add(world.random_below(hint.0 / 4 + 1)))
}

/// The wait before an undecided submit is sent again, after its `attempt`-th transmission.
pub(crate) fn submit_backoff(attempt: u32, world: &dyn World) -> Millis {
    let bound = 200u64 << attempt.saturating_sub(1).min(7);
    Millis(bound / 2 + world.random_below(bound / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Seeded;
    use chappe_protocol::frame::GoAwayClass;

    const MIN: Millis = Millis(500);
    const MAX: Millis = Millis(20_000);

    fn after(verdict: &Verdict) -> u64 {
        match verdict {
            Verdict::Wait { after, .. } => after.0,
            Verdict::Superseded | Verdict::Done | Verdict::Failed(_) => panic!("no wait: {verdict:?}"),
        }
    }

    fn close(code: u16) -> End {
        End::Close { code, reason: "r".to_owned() }
    }

    #[test]
    fn backoff_doubles_with_full_jitter_within_its_bounds() {
        let mut seen = Vec::new();
        for seed in 0..200 {
            let world = Seeded::new(seed);
            let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
            for attempt in 0..12u32 {
                let bound = (500u64 << attempt).min(MAX.0 - MIN.0) + 500;
                let wait = after(&reconnect.decide(Time(0), End::Lost(String::new()), &world));
                assert!((500..=bound).contains(&wait), "seed {seed} attempt {attempt}: {wait}");
                if attempt == 11 {
                    seen.push(wait);
                }
            }
        }
        assert!(seen.iter().any(|wait| *wait < 3000), "full jitter reaches down");
        assert!(seen.iter().any(|wait| *wait > 17_000), "full jitter reaches up");
    }

    #[test]
    fn backoff_starts_again_only_after_a_connection_that_stood() {
        let world = Seeded::new(1);
        let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
        for _ in 0..5 {
            reconnect.decide(Time(0), End::Lost(String::new()), &world);
        }
        reconnect.stood(Time(0), Time(100));
        assert_eq!(reconnect.attempt(), 6, "a connection that fell over at once proves nothing");
        reconnect.stood(Time(0), Time(5000));
        assert_eq!(reconnect.attempt(), 1);
    }

    #[test]
    fn close_codes_decide() {
        let world = Seeded::new(2);
        for code in [1000u16, 1001, 1006, 1011, 3000, 3001, 3004, 3008, 3499, 4000, 4401, 4499, 5000] {
            let verdict = Reconnect::new(MIN, MAX, Role::Main).decide(Time(0), close(code), &world);
            assert!(
                matches!(&verdict, Verdict::Wait { token_expired, .. } if *token_expired == (code == 4401)),
                "{code}"
            );
        }
        for code in [3500u16, 3503, 3999, 4500, 4501, 4502, 4503, 4999] {
            let verdict = Reconnect::new(MIN, MAX, Role::Main).decide(Time(0), close(code), &world);
            assert!(
                matches!(verdict, Verdict::Failed(ClientError::Ended { code: c, .. }) if c == code),
                "{code}"
            );
        }
        let verdict = Reconnect::new(MIN, MAX, Role::Main).decide(Time(0), close(4409), &world);
        assert_eq!(verdict, Verdict::Superseded);
        assert_eq!(Reconnect::new(MIN, MAX, Role::Peek).decide(Time(0), close(3008), &world), Verdict::Done);
    }

    #[test]
    fn an_attempt_of_our_own_that_was_given_up_does_not_make_us_give_way() {
        let world = Seeded::new(4);
        let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
        reconnect.on_abandoned(Time(0));
        assert!(matches!(reconnect.decide(Time(59_999), close(4409), &world), Verdict::Wait { .. }));
        assert_eq!(reconnect.decide(Time(59_999), close(4409), &world), Verdict::Superseded, "once");
        reconnect.on_abandoned(Time(100_000));
        assert_eq!(reconnect.decide(Time(160_000), close(4409), &world), Verdict::Superseded, "too long ago");
    }

    #[test]
    fn go_away_sets_the_time_within_its_jitter() {
        let go_away = GoAway {
            class: GoAwayClass::Drain,
            retry_after: Millis(1000),
            jitter: Millis(4000),
            endpoints: Vec::new(),
        };
        let mut times = Vec::new();
        for seed in 0..300 {
            let world = Seeded::new(seed);
            let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
            let at = reconnect.on_go_away(Time(50), &go_away, &world);
            assert!((1050..=5050).contains(&at.0), "{at:?}");
            times.push(at.0);
            // Closed before its time: the rest is waited out, without a backoff on top.
            assert_eq!(after(&reconnect.decide(Time(60), close(3000), &world)), at.0 - 60);
        }
        assert!(
            times.iter().any(|at| *at < 1500) && times.iter().any(|at| *at > 4600),
            "spread over all of it"
        );
    }

    #[test]
    fn a_gateway_that_sends_everyone_away_at_once_makes_no_busy_loop() {
        let world = Seeded::new(3);
        let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
        assert_eq!(after(&reconnect.decide(Time(0), End::Moved, &world)), 0);
        reconnect.stood(Time(0), Time(10));
        assert!(after(&reconnect.decide(Time(10), End::Moved, &world)) >= 500);
        reconnect.stood(Time(10), Time(6000));
        assert_eq!(after(&reconnect.decide(Time(6000), End::Moved, &world)), 0);
    }

    #[test]
    fn a_black_hole_is_left_at_once_and_a_second_one_with_a_backoff() {
        let world = Seeded::new(5);
        let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
        assert_eq!(after(&reconnect.decide(Time(0), End::BlackHole, &world)), 0);
        assert!(after(&reconnect.decide(Time(0), End::BlackHole, &world)) >= 500);
        assert_eq!(after(&reconnect.decide(Time(0), End::Roamed, &world)), 0, "the application knows better");
    }

    #[test]
    fn hints_of_the_server_are_a_lower_bound() {
        for seed in 0..50 {
            let world = Seeded::new(seed);
            let mut reconnect = Reconnect::new(MIN, MAX, Role::Main);
            reconnect.on_retry_after(Millis(30_000));
            assert!(after(&reconnect.decide(Time(0), close(3005), &world)) >= 30_000);
            assert!(after(&reconnect.decide(Time(0), close(3005), &world)) < 3000, "used once");
            let busy = End::Http { status: 503, retry_after: Millis(7000) };
            assert!(after(&reconnect.decide(Time(0), busy, &world)) >= 7000);
        }
    }
}
