//! The timers and bounds of one connection. **Invariant:** pure; every timer has jitter, every queue a bound.

use crate::reconnect::End;
use crate::token::{TokenError, expiry};
use chappe_protocol::frame::{ClientFrame, Limits, Secret, Submit};
use chappe_protocol::id::Seq;
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use std::collections::VecDeque;

/// Ephemeral submits that wait for the socket.
const EPHEMERAL_MAX: usize = 64;
/// Their payload bytes.
const EPHEMERAL_BYTES_MAX: usize = 1024 * 1024;
/// While a frame is arriving or an envelope waits for its ack, the server hears from us at least so often.
const BUSY_PING: Millis = Millis::from_secs(8);
/// A submit that was not answered for so long, though the server is alive, is retried on another connection.
const ANSWER_TIMEOUT: Millis = Millis::from_secs(60);
/// The old connection may prove itself on a new path for so long, before a new one is tried beside it.
const ROAM_PATIENCE: Millis = Millis::from_secs(1);
/// A failed renewal of the token is tried again after this.
const REFRESH_RETRY: Millis = Millis::from_secs(15);
/// Pings without a sign of life before the connection is given up.
const PINGS_UNANSWERED_MAX: u32 = 2;

/// The state of one connection that was welcomed.
pub struct Link {
    /// What the server allows.
    pub limits: Limits,
    /// When acks that wait for company go.
    pub ack_at: Option<Time>,
    /// When the token is to be renewed.
    pub refresh_at: Option<Time>,
    /// When a GoAway's time has come.
    pub move_at: Option<Time>,
    /// The application closes: until then the last acks may leave.
    pub close_by: Option<Time>,
    /// The close has left: nothing follows it.
    pub close_sent: bool,
    /// The device is in another network and this connection tries to follow.
    pub roam: Option<Roam>,
    /// To be sent, most urgent first.
    pub pong: Option<Vec<u8>>,
    /// The nonce of a ping.
    pub ping: Option<u64>,
    /// An ack up to here.
    pub ack: Option<Seq>,
    /// A new token.
    pub refresh: Option<String>,
    ephemeral: VecDeque<Submit>,
    ephemeral_bytes: usize,
    pinged_at: Time,
    /// 0..=255: how much earlier than its bound the next ping goes, in 1024ths.
    ping_jitter: u64,
    nonce: u64,
    unanswered: u32,
    heard_bytes: u64,
    /// Since when the socket is read without a break.
    reading_since: Time,
    pace: Pace,
}

/// Something small that goes before any submit.
#[derive(Debug, PartialEq, Eq)]
pub enum Urgent {
    /// The answer to a ping of the carrier, with its bytes.
    Pong(Vec<u8>),
    /// A frame.
    Frame(ClientFrame),
}

/// What decides whether a connection goes on in another network.
pub struct Roam {
    /// Of the ping that went out there.
    nonce: u64,
    /// Without an answer until then a second connection is made.
    pub dial_at: Option<Time>,
}

impl Link {
    /// A connection that was welcomed just now with these limits, which are [`sane`].
    pub fn new(now: Time, limits: Limits, world: &dyn World) -> Self {
        Self {
            limits,
            ack_at: None,
            refresh_at: None,
            move_at: None,
            close_by: None,
            close_sent: false,
            roam: None,
            pong: None,
            ping: None,
            ack: None,
            refresh: None,
            ephemeral: VecDeque::new(),
            ephemeral_bytes: 0,
            pinged_at: now,
            ping_jitter: world.random_below(256),
            nonce: 0,
            unanswered: 0,
            heard_bytes: 0,
            reading_since: now,
            pace: Pace::new(now, &limits),
        }
    }

    /// When the next ping is due.
    pub fn ping_at(&self, busy: bool) -> Time {
        let bound = if busy { BUSY_PING.0.min(self.limits.ping_every.0) } else { self.limits.ping_every.0 };
        self.pinged_at + Millis(bound - bound * self.ping_jitter / 1024)
    }

    /// The time of a ping has come. `reading`: the socket is being read, so silence is the server's.
    pub fn on_ping_due(
        &mut self,
        now: Time,
        bytes: u64,
        reading: bool,
        world: &dyn World,
    ) -> Result<(), End> {
        if bytes != self.heard_bytes || !reading {
            self.unanswered = 0;
        }
        self.heard_bytes = bytes;
        if self.unanswered >= PINGS_UNANSWERED_MAX {
            return Err(End::Lost("the server is silent".to_owned()));
        }
        self.unanswered += 1;
        self.nonce += 1;
        self.ping = Some(self.nonce);
        self.pinged_at = now;
        self.ping_jitter = world.random_below(256);
        Ok(())
    }

    /// The connection was moved to a new path: asks for an answer there.
    pub fn on_roamed(&mut self, now: Time) {
        self.nonce += 1;
        self.ping = Some(self.nonce);
        self.roam = Some(Roam { nonce: self.nonce, dial_at: Some(now + ROAM_PATIENCE) });
    }

    /// An answer: if it is to the ping that went out on the new path, the connection goes on there.
    pub fn on_pong(&mut self, nonce: u64) {
        if self.roam.as_ref().is_some_and(|roam| roam.nonce <= nonce) {
            self.roam = None;
        }
    }

    /// A fresh token ends then: renew it in time.
    pub fn plan_refresh(
        &mut self,
        now: Time,
        wall: UnixMillis,
        expires: Option<UnixMillis>,
        margin: Millis,
        world: &dyn World,
    ) {
        self.refresh_at = expires.map(|expires| {
            let left = expires.0.saturating_sub(wall.0);
            let early = margin.0.min(left / 2);
            let jitter = world.random_below(early / 2 + 1);
            now + Millis((left - early).saturating_sub(jitter).max(1000))
        });
    }

    /// The token source has answered: a new token goes to the server, a failure that may pass is tried again.
    pub fn on_token(
        &mut self,
        now: Time,
        result: Result<String, TokenError>,
        margin: Millis,
        world: &dyn World,
    ) {
        match result {
            Ok(token) => {
                self.plan_refresh(now, world.wall(), expiry(&token), margin, world);
                self.refresh = Some(token);
            }
            Err(TokenError::Unavailable(_)) => {
                let jitter = world.random_below(REFRESH_RETRY.0);
                self.refresh_at = Some(now + REFRESH_RETRY + Millis(jitter));
            }
            // The present token is good until it ends; then the server says so, and the source is asked once more.
            Err(TokenError::Refused(_)) => {}
        }
    }

    /// Whether the time of this connection is over. `reading`: the socket is being read; `oldest`: when the oldest submit or
    /// request was sent that is not answered.
    pub fn check(&mut self, now: Time, reading: bool, oldest: Option<Time>) -> Result<(), End> {
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.close_by) {
            return Err(End::Lost("closed".to_owned()));
        }
        if due(self.move_at) {
            return Err(End::Moved);
        }
        if !reading {
            self.on_stalled(now);
        }
        if due(self.answer_by(oldest)) {
            return Err(End::Lost("a submit or request was not answered".to_owned()));
        }
        Ok(())
    }

    /// The most urgent of what is small and goes first. The caller tells [`Link::on_sent`] of each frame.
    pub fn poll_urgent(&mut self) -> Option<Urgent> {
        if let Some(bytes) = self.pong.take() {
            return Some(Urgent::Pong(bytes));
        }
        let frame = if let Some(upto) = self.ack.take() {
            ClientFrame::Ack { upto }
        } else if let Some(nonce) = self.ping.take() {
            ClientFrame::Ping { nonce }
        } else {
            ClientFrame::Refresh { token: Secret(self.refresh.take()?) }
        };
        Some(Urgent::Frame(frame))
    }

    /// Queues an ephemeral submit; dropped beyond the bound, as it is best effort.
    pub fn push_ephemeral(&mut self, submit: Submit) {
        let bytes = crate::outgoing::submit_bytes(&submit);
        if self.ephemeral.len() < EPHEMERAL_MAX && self.ephemeral_bytes + bytes <= EPHEMERAL_BYTES_MAX {
            self.ephemeral_bytes += bytes;
            self.ephemeral.push_back(submit);
        }
    }

    /// The oldest ephemeral submit.
    pub fn pop_ephemeral(&mut self) -> Option<Submit> {
        let submit = self.ephemeral.pop_front()?;
        self.ephemeral_bytes -= crate::outgoing::submit_bytes(&submit);
        Some(submit)
    }

    /// Something small and urgent waits to be sent.
    pub fn has_urgent(&self) -> bool {
        self.pong.is_some() || self.ping.is_some() || self.ack.is_some() || self.refresh.is_some()
    }

    /// Whether an ephemeral submit waits.
    pub fn has_ephemeral(&self) -> bool {
        !self.ephemeral.is_empty()
    }

    /// Whether one more submit keeps within the server's rate.
    pub fn may_send(&mut self, now: Time) -> bool {
        self.pace.refill(now);
        self.pace.has_token()
    }

    /// A frame goes out.
    pub fn on_sent(&mut self, now: Time) {
        self.pace.refill(now);
        self.pace.spend();
    }

    /// When [`Link::may_send`] turns true.
    pub fn paced_until(&self) -> Option<Time> {
        self.pace.next_token()
    }

    /// When an unanswered submit ends the connection: the time during which we did not read does not count.
    pub fn answer_by(&self, oldest: Option<Time>) -> Option<Time> {
        oldest.map(|sent_at| sent_at.max(self.reading_since) + ANSWER_TIMEOUT)
    }

    /// The inbox is full: nothing is read now.
    fn on_stalled(&mut self, now: Time) {
        self.reading_since = now;
    }
}

/// A token bucket below the server's, so that the network's jitter does not push us over it: half its burst, nine
/// tenths of its rate.
struct Pace {
    at: Time,
    /// In thousandths of a frame.
    tokens: u64,
    tokens_max: u64,
    /// Frames per second are thousandths per millisecond; times ten for the nine tenths.
    rate_tenths: u64,
}

impl Pace {
    fn new(now: Time, limits: &Limits) -> Self {
        let tokens_max = (u64::from(limits.frames_burst_max) * 500).max(1000);
        let rate_tenths = (u64::from(limits.frames_per_second_max) * 9).max(1);
        Self { at: now, tokens: tokens_max, tokens_max, rate_tenths }
    }

    fn refill(&mut self, now: Time) {
        let gained = (now - self.at).0.saturating_mul(self.rate_tenths) / 10;
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(self.tokens_max);
            self.at = now;
        }
    }

    fn has_token(&self) -> bool {
        self.tokens >= 1000
    }

    /// Urgent frames may run into debt of nothing: they are few.
    fn spend(&mut self) {
        self.tokens = self.tokens.saturating_sub(1000);
    }

    fn next_token(&self) -> Option<Time> {
        let missing = 1000u64.checked_sub(self.tokens).filter(|missing| *missing > 0)?;
        Some(self.at + Millis((missing * 10).div_ceil(self.rate_tenths)))
    }
}

/// Limits that a hostile server cannot turn into a busy loop or a standstill.
pub fn sane(limits: Limits) -> Limits {
    Limits {
        ping_every: Millis(limits.ping_every.0.clamp(1000, 300_000)),
        submits_in_flight_max: limits.submits_in_flight_max.clamp(1, 1024),
        frames_per_second_max: limits.frames_per_second_max.max(1),
        frames_burst_max: limits.frames_burst_max.max(1),
        ..limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Seeded;

    #[test]
    fn frames_stay_below_the_servers_rate() {
        let limits = Limits::default();
        let world = Seeded::new(1);
        let mut link = Link::new(Time(0), limits, &world);
        let mut sent = 0u64;
        for ms in 0..20_000u64 {
            while link.may_send(Time(ms)) {
                link.on_sent(Time(ms));
                sent += 1;
            }
            let allowed =
                u64::from(limits.frames_burst_max) / 2 + ms * u64::from(limits.frames_per_second_max) / 1000;
            assert!(sent <= allowed + 1, "{sent} frames at {ms} ms");
        }
        assert!(sent > 900, "and close to it: {sent}");
    }

    #[test]
    fn two_unanswered_pings_end_the_connection_and_any_byte_saves_it() {
        let world = Seeded::new(2);
        let mut link = Link::new(Time(0), Limits::default(), &world);
        let mut now = Time(0);
        for _ in 0..10 {
            now = link.ping_at(false);
            let bytes = now.0;
            assert_eq!(link.on_ping_due(now, bytes, true, &world), Ok(()));
        }
        let bytes = now.0;
        assert_eq!(link.on_ping_due(now, bytes, true, &world), Ok(()));
        assert!(link.on_ping_due(now, bytes, true, &world).is_err());
        assert_eq!(
            link.on_ping_due(now, bytes, false, &world),
            Ok(()),
            "we do not read: not the server's fault"
        );
    }

    #[test]
    fn only_the_answer_to_the_ping_on_the_new_path_ends_the_crossing() {
        let world = Seeded::new(3);
        let mut link = Link::new(Time(0), Limits::default(), &world);
        assert_eq!(link.on_ping_due(Time(1), 1, true, &world), Ok(()));
        let before = link.ping.take().unwrap();
        link.on_roamed(Time(10));
        let asked = link.ping.unwrap();
        assert_eq!(link.roam.as_ref().unwrap().dial_at, Some(Time(1010)));
        link.on_pong(before);
        assert!(link.roam.is_some(), "that one took the old path");
        link.on_pong(asked);
        assert!(link.roam.is_none());
    }

    #[test]
    fn pings_have_jitter_and_are_quicker_when_busy() {
        let mut idle = Vec::new();
        for seed in 0..100 {
            let link = Link::new(Time(0), Limits::default(), &Seeded::new(seed));
            assert!((18_700..=25_000).contains(&link.ping_at(false).0));
            assert!((6000..=8000).contains(&link.ping_at(true).0));
            idle.push(link.ping_at(false).0);
        }
        idle.dedup();
        assert!(idle.len() > 50);
    }

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let wall = UnixMillis(1_000_000);
        for seed in 0..100 {
            let world = Seeded::new(seed);
            let mut link = Link::new(Time(0), Limits::default(), &world);
            for (left, least, most) in
                [(3_600_000, 3_510_000, 3_540_000), (30_000, 7000, 15_000), (0, 1000, 1000)]
            {
                link.plan_refresh(Time(0), wall, Some(wall + Millis(left)), Millis(60_000), &world);
                let at = link.refresh_at.unwrap().0;
                assert!((least..=most).contains(&at), "seed {seed}: {left} left, at {at}");
            }
            link.plan_refresh(Time(0), wall, None, Millis(60_000), &world);
            assert_eq!(link.refresh_at, None);
        }
    }
}
