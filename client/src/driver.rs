//! The loop over connections. **Invariant:** one task per client owns everything but the handles; what it does next is
//! decided by [`Reconnect`] alone.

use crate::builder::Settings;
use crate::carrier::Wire;
use crate::dial::Dialer;
use crate::disk::Disk;
use crate::error::ClientError;
use crate::establish::{Failed, Greeting, establish};
use crate::inbox::{Inbox, Progress};
use crate::outbox::Outbox;
use crate::outgoing::Receipt;
use crate::push::{NewPush, Push};
use crate::reconnect::{End, Reconnect, Verdict};
use crate::state::State;
use crate::token::TokenReason;
use bytes::Bytes;
use chappe_protocol::frame::{Limits, Role, Submit};
use chappe_protocol::time::{Millis, Time};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Commands that are taken at once, so that one sync covers them.
const BATCH: usize = 64;

/// What a handle asks for.
pub(crate) enum Command {
    Submit(Box<NewSubmit>),
    Ephemeral(Submit),
    SetPush(Box<NewPush>),
    Disconnect,
    Reconnect,
    NetworkChanged,
    Close,
}

/// A submit with its room in the outbox.
pub(crate) struct NewSubmit {
    pub(crate) submit: Submit,
    pub(crate) reply: oneshot::Sender<Result<Receipt, ClientError>>,
    pub(crate) permits: [OwnedSemaphorePermit; 2],
}

/// The driver's ends of the handles' channels.
pub(crate) struct Seams {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) inbox: Inbox,
    pub(crate) states: watch::Sender<State>,
    pub(crate) limits: watch::Sender<Limits>,
    pub(crate) stop: CancellationToken,
}

/// Who waits for a receipt, holding its room.
struct Waiter {
    reply: oneshot::Sender<Result<Receipt, ClientError>>,
    _permits: [OwnedSemaphorePermit; 2],
}

/// What a batch of commands asks for beside its submits, which are in the outbox already.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent wishes, of which a batch may hold any")]
pub(crate) struct Asked {
    pub(crate) disconnect: bool,
    pub(crate) reconnect: bool,
    pub(crate) network_changed: bool,
    pub(crate) close: bool,
    pub(crate) ephemeral: Vec<Submit>,
}

/// The task of one client.
pub(crate) struct Driver {
    pub(crate) settings: Arc<Settings>,
    pub(crate) dialer: Arc<Dialer>,
    /// Dialled beside a connection that this network has cut off; the next Hello is said on it.
    pub(crate) ready: Option<Wire>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) push: Push,
    pub(crate) reconnect: Reconnect,
    pub(crate) stop: CancellationToken,
    /// Close was asked for, or the last handle is gone.
    pub(crate) ending: bool,
    /// When the present connection was welcomed.
    pub(crate) welcomed_at: Option<Time>,
    pub(crate) resume_token: Bytes,
    states: watch::Sender<State>,
    limits: watch::Sender<Limits>,
    disk: Option<Disk>,
    waiters: BTreeMap<u64, Waiter>,
    next_order: u64,
    token_reason: TokenReason,
}

/// Runs a client to its end.
pub(crate) async fn run(settings: Settings, seams: Seams) {
    let Seams { commands, inbox, states, limits, stop } = seams;
    let tuning = &settings.tuning;
    let reconnect = Reconnect::new(tuning.backoff_min, tuning.backoff_max, settings.role);
    let outbox = Outbox::new(tuning.lane_depth);
    let mut driver = Driver {
        settings: Arc::new(settings),
        dialer: Arc::default(),
        ready: None,
        commands,
        inbox,
        outbox,
        push: Push::default(),
        reconnect,
        stop,
        ending: false,
        welcomed_at: None,
        resume_token: Bytes::new(),
        states,
        limits,
        disk: None,
        waiters: BTreeMap::new(),
        next_order: 1,
        token_reason: TokenReason::Connect,
    };
    let last = match driver.open_disk() {
        Ok(()) => driver.live().await,
        Err(error) => State::Failed(error),
    };
    driver.dialer.udp.part().await;
    driver.finish(last);
}

impl Driver {
    pub(crate) fn now(&self) -> Time {
        self.settings.world.now()
    }

    pub(crate) fn enter(&self, state: State) {
        self.states.send_replace(state);
    }

    pub(crate) fn tell_limits(&self, limits: Limits) {
        self.limits.send_replace(limits);
    }

    fn open_disk(&mut self) -> Result<(), ClientError> {
        let Some(directory) = &self.settings.state_dir else { return Ok(()) };
        let (disk, restored) = Disk::open(directory)?;
        self.disk = Some(disk);
        let (now, wall) = (self.now(), self.settings.world.wall());
        for (order, since, submit) in restored.submits {
            let age = wall.0.saturating_sub(since.0);
            let left = Millis(self.settings.tuning.give_up_after.0.saturating_sub(age));
            // It may have been transmitted before the restart: never again as a first attempt.
            self.outbox.insert(order, submit, 1, now + left);
        }
        self.next_order = restored.next_order;
        if self.settings.role == Role::Main {
            self.inbox.restore(restored.cursor, restored.seen);
        }
        Ok(())
    }

    /// One connection after the other, until a final state.
    async fn live(&mut self) -> State {
        loop {
            self.enter(State::Connecting { attempt: self.reconnect.attempt() });
            let end = self.connect_and_converse().await;
            self.outbox.on_disconnect();
            self.push.on_disconnect();
            if let Some(since) = self.welcomed_at.take() {
                self.reconnect.stood(since, self.now());
            }
            if self.ending {
                return State::Closed;
            }
            let settings = self.settings.clone();
            let verdict = self.reconnect.decide(self.now(), end, &*settings.world);
            let paused = match verdict {
                Verdict::Wait { after, why, token_expired } => {
                    self.token_reason =
                        if token_expired { TokenReason::Expired } else { TokenReason::Connect };
                    self.enter(State::Waiting { retry_in: after, why });
                    self.pause(Some(after)).await
                }
                Verdict::Superseded => {
                    self.resume_token = Bytes::new();
                    self.enter(State::Superseded);
                    self.pause(None).await
                }
                Verdict::Done if self.outbox.is_empty() => return State::Closed,
                Verdict::Done => self.pause(Some(settings.tuning.backoff_min)).await,
                Verdict::Failed(error) => return State::Failed(error),
            };
            if let Err(error) = paused {
                return State::Failed(error);
            }
            if self.ending {
                return State::Closed;
            }
        }
    }

    async fn connect_and_converse(&mut self) -> End {
        // The Hello's cursor counts as an ack.
        let progress = match self.persist() {
            Ok(progress) => progress,
            Err(error) => return End::Fatal(error),
        };
        let greeting = Greeting {
            why: self.token_reason,
            cursor: progress.cursor,
            resume_token: self.resume_token.clone(),
        };
        let ready = self.ready.take();
        let mut dialling =
            std::pin::pin!(establish(self.settings.clone(), self.dialer.clone(), ready, greeting));
        let established = loop {
            let command = tokio::select! {
                biased;
                () = self.stop.cancelled() => None,
                command = self.commands.recv() => command,
                () = self.inbox.changed() => match self.persist() {
                    Ok(_) => continue,
                    Err(error) => return End::Fatal(error),
                },
                established = &mut dialling => break established,
            };
            match self.intake(command) {
                // An ephemeral submit without a connection is void.
                Ok(asked) if asked.close => return End::Lost(String::new()),
                Ok(asked) if asked.disconnect => {
                    self.reconnect.on_abandoned(self.now());
                    return End::Lost("disconnected by the application".to_owned());
                }
                Ok(asked) if asked.network_changed => {
                    self.reconnect.on_abandoned(self.now());
                    self.rebind();
                    return End::Roamed;
                }
                Ok(_) => self.outbox.on_time(self.now()),
                Err(error) => return End::Fatal(error),
            }
            self.tell_finished();
        };
        match established {
            Ok(established) => self.converse(established).await,
            Err(Failed { end, retry_after }) => {
                self.reconnect.failed(&end, retry_after, self.now());
                end
            }
        }
    }

    /// Serves the handles for so long, or until one of them wants to connect.
    async fn pause(&mut self, after: Option<Millis>) -> Result<(), ClientError> {
        let until = after.map(|after| self.now() + after);
        loop {
            let next = [until, self.outbox.next_time()].into_iter().flatten().min();
            let sleep = sleep_until(self.now(), next);
            let command = tokio::select! {
                biased;
                () = self.stop.cancelled() => Some(None),
                command = self.commands.recv() => Some(command),
                () = self.inbox.changed() => {
                    // Acked while there is no connection: as durable as with one.
                    self.persist()?;
                    None
                }
                () = sleep => None,
            };
            if let Some(command) = command {
                let asked = self.intake(command)?;
                if asked.close {
                    return Ok(());
                }
                if asked.network_changed {
                    self.rebind();
                }
                // Another network gives nobody the session back that another socket took.
                if asked.reconnect || (asked.network_changed && until.is_some()) {
                    self.reconnect.reset();
                    return Ok(());
                }
            }
            self.outbox.on_time(self.now());
            self.tell_finished();
            if until.is_some_and(|until| until <= self.now()) {
                return Ok(());
            }
        }
    }

    /// Sockets in the present network; returns whether there are any.
    pub(crate) fn rebind(&self) -> bool {
        let rebound = self.dialer.udp.rebind();
        if let Err(error) = &rebound {
            tracing::debug!(%error, "no UDP socket in the new network");
        }
        rebound.is_ok()
    }

    /// Takes a command and those behind it; submits are durable, if they can be, and in the outbox when this returns.
    /// `None`: the last handle is gone.
    pub(crate) fn intake(&mut self, first: Option<Command>) -> Result<Asked, ClientError> {
        let mut asked = Asked::default();
        let mut submits = Vec::new();
        let mut next = first;
        if next.is_none() {
            asked.close = true;
        }
        while let Some(command) = next {
            match command {
                Command::Submit(submit) => submits.push(*submit),
                Command::Ephemeral(submit) => asked.ephemeral.push(submit),
                Command::SetPush(new) => self.push.set(*new),
                Command::Disconnect => asked.disconnect = true,
                Command::Reconnect => asked.reconnect = true,
                Command::NetworkChanged => asked.network_changed = true,
                Command::Close => asked.close = true,
            }
            let full = submits.len() + asked.ephemeral.len() >= BATCH;
            next = if full { None } else { self.commands.try_recv().ok() };
        }
        self.ending |= asked.close;
        self.insert(submits)?;
        Ok(asked)
    }

    fn insert(&mut self, submits: Vec<NewSubmit>) -> Result<(), ClientError> {
        if submits.is_empty() {
            return Ok(());
        }
        let numbered: Vec<(u64, NewSubmit)> = (self.next_order..).zip(submits).collect();
        self.next_order += numbered.len() as u64;
        let mut written = Ok(());
        if let Some(disk) = &mut self.disk {
            let records: Vec<(u64, &Submit)> =
                numbered.iter().map(|(order, new)| (*order, &new.submit)).collect();
            written = disk.put(self.settings.world.wall(), &records);
        }
        let deadline = self.now() + self.settings.tuning.give_up_after;
        for (order, new) in numbered {
            let NewSubmit { submit, reply, permits } = new;
            self.waiters.insert(order, Waiter { reply, _permits: permits });
            // What is not on disk is not sent: the driver ends with the error.
            if written.is_ok() {
                self.outbox.insert(order, submit, 0, deadline);
            }
        }
        written
    }

    /// Answers what was decided.
    pub(crate) fn tell_finished(&mut self) {
        for (order, result) in self.outbox.take_finished() {
            if let Some(disk) = &mut self.disk {
                disk.done(order);
            }
            if let Some(waiter) = self.waiters.remove(&order) {
                // The application may have stopped waiting.
                let _ = waiter.reply.send(result);
            }
        }
    }

    /// Makes cursor and seen ids durable; before an ack leaves.
    pub(crate) fn persist(&mut self) -> Result<Progress, ClientError> {
        let progress = self.inbox.take_progress();
        if let Some(disk) = self.disk.as_mut().filter(|_| self.settings.role == Role::Main) {
            disk.progress(&progress, || self.inbox.seen())?;
        }
        Ok(progress)
    }

    /// The final state, then the last words to everyone who waits.
    fn finish(mut self, last: State) {
        let persisted = self.persist().map(|_| ());
        let flushed = self.disk.as_mut().map_or(Ok(()), Disk::flush);
        let last = match (last, persisted.and(flushed)) {
            (State::Closed, Err(error)) => State::Failed(error),
            (last, _) => last,
        };
        // The lock of the directory goes before anyone can see that the client has ended.
        self.disk = None;
        self.enter(last);
    }
}

/// Rests until a point of the world's clock; without one for ever.
pub(crate) async fn sleep_until(now: Time, until: Option<Time>) {
    match until {
        Some(until) => tokio::time::sleep((until - now).to_std()).await,
        None => std::future::pending().await,
    }
}
