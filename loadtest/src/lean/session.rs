//! One session from its first connection to its end. **Invariant:** everything of it stands behind one lock that is never held over
//! an await; an envelope is told to the host before its ack leaves.

use super::core::{Core, Open, Phase, Stage, Talk, WRITE_TIMEOUT};
use super::line::{Incoming, Line};
use super::{Shared, Way};
use bytes::Bytes;
use chappe_client::parts::{
    End, Greeted, Link, Upgraded, Verdict, decoded, expiry, greeted, on_error, open, sane,
};
use chappe_client::{Role, TokenError, UnixMillis};
use chappe_protocol::frame::{ClientFrame, Deliver, Hello, Secret, ServerFrame, Submit, Welcome};
use chappe_protocol::receiver::Received;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Submits of one session that are not decided; beyond it the run skips sends, and counts them.
const SUBMITS_MAX: usize = 2048;
/// See the module.
pub(crate) struct Session {
    shared: Arc<Shared>,
    way: Arc<Way>,
    user: u32,
    /// Among the sessions, for alarms.
    index: u32,
    core: Mutex<Core>,
}

impl Session {
    pub(super) fn new(shared: Arc<Shared>, way: Arc<Way>, user: u32, index: u32) -> Self {
        let core = Mutex::new(Core::new(&shared.tuning));
        Self { shared, way, user, index, core }
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it stands.
    pub(crate) fn is_connected(&self) -> bool {
        self.lock().is_talking()
    }

    /// Why it has ended, if it has; for people.
    pub(crate) fn is_over(&self) -> Option<String> {
        match &self.lock().stage {
            Stage::Over(why) => Some(why.clone()),
            Stage::Resting(_) | Stage::Connecting(..) | Stage::Open(_) => None,
        }
    }

    /// From now on the application takes what comes.
    pub(crate) fn attend(&self) {
        self.change(|core, _| core.attended = true);
    }

    /// Whether another submit finds room.
    pub(crate) fn has_room(&self) -> bool {
        let core = self.lock();
        core.outbox.len() < SUBMITS_MAX && !matches!(core.stage, Stage::Over(_))
    }

    /// Takes a submit; `order` grows. It leaves with [`Session::flush`].
    pub(crate) fn submit(&self, order: u64, submit: Submit, intended_us: u64) {
        let deadline = self.shared.world.now() + self.shared.tuning.give_up_after;
        let mut core = self.lock();
        core.outbox.insert(order, submit, 0, deadline);
        core.intended.push_back((order, intended_us));
    }

    /// Writes what may leave, without waiting for the task's turn.
    pub(crate) fn flush(&self) {
        self.change(|_, _| ());
    }

    /// Loses the connection, as in a bad network.
    pub(crate) fn cut(&self) {
        self.change(|core, now| match &core.stage {
            Stage::Resting(_) | Stage::Over(_) => {}
            Stage::Connecting(..) | Stage::Open(_) => {
                self.ended(core, now, End::Lost("disconnected by the application".to_owned()));
            }
        });
    }

    /// Says goodbye, after the last acks, and ends.
    pub(crate) fn close(&self) {
        self.change(|core, now| {
            core.closing = true;
            let by = now + self.shared.tuning.close_timeout;
            let ack = core.receiver.poll_ack();
            match core.talk() {
                Some(talk) => {
                    talk.link.ack = ack.or(talk.link.ack);
                    talk.link.close_by = Some(by);
                }
                None => self.ended(core, now, End::Lost(String::new())),
            }
        });
    }

    /// Ends at once.
    pub(super) fn end(&self) {
        self.change(|core, now| {
            core.closing = true;
            self.ended(core, now, End::Lost(String::new()));
        });
    }

    /// An alarm that was set for this time.
    pub(super) fn on_alarm(&self, at: Time) {
        // Another one, set later for an earlier time, has rung before.
        if self.lock().alarm != Some(at) {
            return;
        }
        self.change(|core, now| {
            core.alarm = None;
            if let Err(end) = self.on_time(core, now) {
                self.ended(core, now, end);
            }
        });
    }

    /// Changes something, then does what follows from it.
    fn change(&self, change: impl FnOnce(&mut Core, Time)) {
        let now = self.shared.world.now();
        let mut core = self.lock();
        change(&mut core, now);
        self.deliver(&mut core, now);
        // Before its first turn the task has left no waker, and will look by itself.
        if let Some(waker) = core.waker.clone()
            && let Err(end) = core.flush(now, &mut Context::from_waker(&waker))
        {
            self.ended(&mut core, now, end);
        }
        self.set_alarm(&mut core, now);
    }

    /// The task's turn.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut core = self.lock();
        let core = &mut *core;
        match &mut core.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => core.waker = Some(cx.waker().clone()),
        }
        let polled = loop {
            let now = self.shared.world.now();
            let end = match &mut core.stage {
                Stage::Over(_) => break Poll::Ready(()),
                Stage::Resting(Some(until)) if *until <= now => {
                    self.connect(core, now);
                    continue;
                }
                Stage::Resting(_) => break Poll::Pending,
                Stage::Connecting(dialling, by) => match (dialling.as_mut().poll(cx), *by) {
                    (Poll::Pending, _) => break Poll::Pending,
                    (Poll::Ready(upgraded), by) => {
                        upgraded.and_then(|upgraded| self.greet(core, upgraded, by))
                    }
                },
                Stage::Open(_) => match self.converse(core, cx) {
                    Ok(()) => break Poll::Pending,
                    Err(end) => Err(end),
                },
            };
            if let Err(end) = end {
                self.ended(core, now, end);
            }
        };
        self.set_alarm(core, self.shared.world.now());
        polled
    }

    fn connect(&self, core: &mut Core, now: Time) {
        let (way, world) = (Arc::clone(&self.way), Arc::clone(&self.shared.world));
        let by = now + self.shared.tuning.connect_timeout;
        core.stage = Stage::Connecting(Box::pin(dial(way, world)), by);
        core.wake();
    }

    /// The handshake is over: says Hello.
    fn greet(&self, core: &mut Core, upgraded: Upgraded, by: Time) -> Result<(), End> {
        let shared = &self.shared;
        let no_token = |error: TokenError| {
            if error.is_retryable() { End::NoToken(error.to_string()) } else { End::Fatal(error.into()) }
        };
        let token = self.token().map_err(no_token)?;
        let expires = expiry(&token);
        let hello = ClientFrame::Hello(Hello {
            token: Secret(token),
            device: shared.device.clone(),
            resume_token: core.resume_token.clone(),
            cursor: core.receiver.cursor(),
            role: Role::Main,
        });
        let mut mask = [0; 4];
        shared.world.fill_random(&mut mask);
        let mut line = Line::new(upgraded, shared.tuning.message_bytes_max, mask);
        let waker = core.waker.clone().unwrap_or_else(|| Waker::noop().clone());
        line.flush(&mut Context::from_waker(&waker), |frames| frames.message(&hello))?;
        let mut came = Vec::new();
        line.take_rest(&mut came)?;
        let phase = Phase::Greeting { by, retry_after: Millis(0), expires };
        core.stage = Stage::Open(Box::new(Open { line, stuck_since: None, phase }));
        came.into_iter().try_for_each(|incoming| self.on_incoming(core, incoming))
    }

    fn token(&self) -> Result<String, TokenError> {
        let target = &self.shared.target;
        target.issuer.issue(&target.name(self.user), self.shared.device.as_str())
    }

    /// Reads and writes until the socket has no more.
    fn converse(&self, core: &mut Core, cx: &mut Context<'_>) -> Result<(), End> {
        let mut came = Vec::new();
        loop {
            let now = self.shared.world.now();
            self.deliver(core, now);
            core.flush(now, cx)?;
            if !core.may_read(&self.shared.tuning) {
                return Ok(());
            }
            let Stage::Open(open) = &mut core.stage else { return Ok(()) };
            let Poll::Ready(read) = open.line.poll_read(cx, &mut came) else { return Ok(()) };
            // What came before something broken came all the same.
            came.drain(..).try_for_each(|incoming| self.on_incoming(core, incoming))?;
            read?;
        }
    }

    fn on_incoming(&self, core: &mut Core, incoming: Incoming) -> Result<(), End> {
        let now = self.shared.world.now();
        let Stage::Open(open) = &mut core.stage else { return Ok(()) };
        match (incoming, &mut open.phase) {
            (Incoming::Close { code, reason }, _) => Err(End::Close { code, reason }),
            (Incoming::Ping(bytes), Phase::Talking(talk)) => {
                talk.link.pong = Some(bytes);
                Ok(())
            }
            (Incoming::Ping(_), Phase::Greeting { .. }) => Ok(()),
            (Incoming::Message(bytes), Phase::Greeting { retry_after, expires, .. }) => {
                match greeted(bytes)? {
                    Greeted::Welcome(welcome) => {
                        let expires = *expires;
                        self.welcome(core, now, &welcome, expires);
                    }
                    Greeted::Hint(hint) => *retry_after = hint,
                    Greeted::Nothing => {}
                }
                Ok(())
            }
            // Only the close is waited for; what is delivered now is delivered again to the next client.
            (Incoming::Message(_), Phase::Talking(talk)) if talk.link.close_by.is_some() => Ok(()),
            (Incoming::Message(bytes), Phase::Talking(_)) => match decoded(bytes)? {
                Some(frame) => self.on_frame(core, now, frame),
                None => Ok(()),
            },
        }
    }

    fn welcome(&self, core: &mut Core, now: Time, welcome: &Welcome, expires: Option<UnixMillis>) {
        let (world, shared) = (&*self.shared.world, &self.shared);
        let mut link = Link::new(now, sane(welcome.limits), world);
        link.plan_refresh(now, world.wall(), expires, shared.tuning.token_margin, world);
        core.receiver.on_welcome(welcome.from, welcome.tag);
        // A slice would keep all that was read with it.
        core.resume_token = Bytes::copy_from_slice(&welcome.resume_token);
        if let Stage::Open(open) = &mut core.stage {
            open.phase = Phase::Talking(Box::new(Talk { link, since: now, acked_at: Time(0) }));
        }
        shared.connected.fetch_add(1, Ordering::Relaxed);
        if let (Some(lost_us), Some(host)) = (core.lost_us.take(), shared.host()) {
            host.resumed(lost_us);
        }
    }

    fn on_frame(&self, core: &mut Core, now: Time, frame: ServerFrame) -> Result<(), End> {
        let world = &*self.shared.world;
        let Stage::Open(open) = &mut core.stage else { return Ok(()) };
        let Phase::Talking(talk) = &mut open.phase else { return Ok(()) };
        let skipped = || Err(End::Lost("the server skipped envelopes".to_owned()));
        match frame {
            ServerFrame::Deliver(deliver) => {
                talk.plan_ack(now, &self.shared.tuning);
                match core.receiver.on_deliver(&deliver) {
                    Received::Take => core.inbox.push_back(deliver),
                    Received::AlreadyHave => {}
                    Received::Broken => return skipped(),
                }
            }
            ServerFrame::Truncated { to, why, .. } => {
                talk.plan_ack(now, &self.shared.tuning);
                if core.receiver.on_truncated(to, why) == Received::Broken {
                    return skipped();
                }
            }
            ServerFrame::BacklogEnd { upto } => core.receiver.on_upto(upto),
            ServerFrame::Pong { nonce, upto } => {
                talk.link.on_pong(nonce);
                core.receiver.on_upto(upto);
            }
            ServerFrame::SubmitResult(result) => core.outbox.on_result(now, result, world),
            ServerFrame::GoAway(go_away) => {
                talk.link.move_at = Some(core.reconnect.on_go_away(now, &go_away, world));
            }
            ServerFrame::Error(error) => {
                on_error(now, &error, &mut core.reconnect, &mut core.outbox, world);
            }
            // Nobody sends what is ephemeral, and nobody asks.
            ServerFrame::Ephemeral { .. } | ServerFrame::Reply { .. } => {}
            ServerFrame::Welcome(_) => return Err(End::Lost("the server said Welcome twice".to_owned())),
        }
        Ok(())
    }

    /// Gives the application what it takes now, and tells what was decided.
    fn deliver(&self, core: &mut Core, now: Time) {
        let finished = core.outbox.take_finished();
        if finished.is_empty() && core.inbox.is_empty() && core.busy.is_none() {
            return;
        }
        let Some(host) = self.shared.host() else { return };
        let stalled = !core.may_read(&self.shared.tuning);
        let decided = core.decided(finished);
        let pause = host.pause(self.user);
        if let Some((until, seq, id)) = core.busy
            && (until <= now || pause == Millis(0))
        {
            core.busy = None;
            core.app_acked(now, seq, id, &self.shared.tuning);
        }
        let taken: Vec<Deliver> = match () {
            () if !core.attended || core.busy.is_some() => Vec::new(),
            () if pause == Millis(0) => std::mem::take(&mut core.inbox).into(),
            () => core.inbox.pop_front().into_iter().collect(),
        };
        if !taken.is_empty() || !decided.is_empty() {
            host.took(self.user, &taken, &decided);
        }
        for deliver in &taken {
            if pause == Millis(0) {
                core.app_acked(now, deliver.seq, deliver.envelope_id, &self.shared.tuning);
            } else {
                core.busy = Some((now + pause, deliver.seq, deliver.envelope_id));
            }
        }
        if stalled && core.may_read(&self.shared.tuning) {
            core.wake();
        }
    }

    /// Does what is due.
    fn on_time(&self, core: &mut Core, now: Time) -> Result<(), End> {
        let tuning = &self.shared.tuning;
        core.outbox.on_time(now);
        let (reading, owing) = (core.may_read(tuning), core.receiver.open() > 0);
        match &mut core.stage {
            Stage::Over(_) => Ok(()),
            Stage::Resting(until) => {
                if until.is_some_and(|until| until <= now) {
                    self.connect(core, now);
                }
                Ok(())
            }
            Stage::Connecting(_, by) => in_time(now, *by),
            Stage::Open(open) => {
                if open.stuck_since.is_some_and(|since| since + WRITE_TIMEOUT <= now) {
                    return Err(End::Lost("the server takes nothing".to_owned()));
                }
                let (heard, busy) = (open.line.heard(), open.line.is_arriving() || owing);
                match &mut open.phase {
                    Phase::Greeting { by, .. } => in_time(now, *by),
                    Phase::Talking(talk) => {
                        let link = &mut talk.link;
                        link.check(now, reading, core.outbox.oldest_flight())?;
                        if link.refresh_at.is_some_and(|at| at <= now) {
                            link.refresh_at = None;
                            link.on_token(now, self.token(), tuning.token_margin, &*self.shared.world);
                        }
                        if link.ping_at(busy) <= now {
                            link.on_ping_due(now, heard, reading, &*self.shared.world)?;
                        }
                        Ok(())
                    }
                }
            }
        }
    }

    /// A connection, or the attempt to make one, has ended.
    fn ended(&self, core: &mut Core, now: Time, end: End) {
        let shared = &self.shared;
        self.deliver(core, now);
        core.outbox.on_disconnect();
        match std::mem::replace(&mut core.stage, Stage::Resting(None)) {
            Stage::Over(why) => {
                core.stage = Stage::Over(why);
                return;
            }
            Stage::Resting(_) => {}
            Stage::Connecting(..) => core.reconnect.failed(&end, Millis(0), now),
            Stage::Open(open) => match open.phase {
                Phase::Greeting { retry_after, .. } => core.reconnect.failed(&end, retry_after, now),
                Phase::Talking(talk) => {
                    core.reconnect.stood(talk.since, now);
                    shared.connected.fetch_sub(1, Ordering::Relaxed);
                    core.lost_us = shared.host().filter(|_| core.attended).map(|host| host.now_us());
                }
            },
        }
        let closed = || Stage::Over("the client is closed".to_owned());
        core.stage = if core.closing {
            closed()
        } else {
            match core.reconnect.decide(now, end, &*shared.world) {
                Verdict::Wait { after, .. } => Stage::Resting(Some(now + after)),
                Verdict::Superseded => {
                    core.resume_token = Bytes::new();
                    Stage::Resting(None)
                }
                Verdict::Done => closed(),
                Verdict::Failed(error) => Stage::Over(error.to_string()),
            }
        };
        core.wake();
    }

    /// Asks to be looked at when something is due.
    fn set_alarm(&self, core: &mut Core, now: Time) {
        if let Some(next) = core.next_time(now)
            && core.alarm.is_none_or(|alarm| next < alarm)
        {
            core.alarm = Some(next);
            self.shared.alarm(next, self.index);
        }
    }
}

fn in_time(now: Time, by: Time) -> Result<(), End> {
    if by <= now { Err(End::Lost("no Welcome in time".to_owned())) } else { Ok(()) }
}

async fn dial(way: Arc<Way>, world: Arc<dyn World>) -> Result<Upgraded, End> {
    let endpoint = &way.endpoint;
    let io = way.connector.connect(&endpoint.host, endpoint.port).await;
    let io = io.map_err(|error| End::Lost(format!("connect: {error}")))?;
    open(io, endpoint, &way.security, &*world).await
}
