//! Wakes on their way to a provider: due, in flight, done, parked. **Invariant:** one wake per device at a time, at most so many
//! devices, in all and per app; an app that has to wait holds no other back. Pure: time is handed in.
//!
//! Nothing here is the truth. What gets lost with the process stands in the store's notes, which its keeper renews for as
//! long as a wake waits here.

use crate::look::Sleeper;
use crate::provider::AppKey;
use crate::schedule::{Bucket, Due};
use chappe_protocol::id::{DeviceId, MailboxId, Seq};
use chappe_protocol::push::{PushAddress, PushSettings, PushTarget};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// For so long it is remembered that a device was woken, for looks that began before that was written down.
const REMEMBER: Millis = Millis::from_secs(30);

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutboxConfig {
    /// Devices that wait or are in flight, of one app.
    pub per_app_max: usize,
    /// Of all apps.
    pub total_max: usize,
    /// Bytes of what is held for them: some 500 each, more with long tokens.
    pub bytes_max: usize,
    /// Wakes in flight of one app: as many as a provider's streams.
    pub in_flight_per_app_max: usize,
    /// Wakes a second of one app.
    pub per_second: u32,
    /// Wakes of one app at once.
    pub burst: u32,
    /// Parked wakes that are kept to be seen; the oldest go.
    pub parked_max: usize,
    /// Woken devices that are remembered for 30 s.
    pub recent_max: usize,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self {
            per_app_max: 50_000,
            total_max: 200_000,
            bytes_max: 256 * 1024 * 1024,
            in_flight_per_app_max: 1_000,
            per_second: 10_000,
            burst: 10_000,
            parked_max: 256,
            recent_max: 65_536,
        }
    }
}

/// Names a wake here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WakeId(u64);

/// A device of a mailbox.
pub type Key = (MailboxId, DeviceId);

/// A wake.
#[derive(Debug)]
pub struct Job<G> {
    /// For whom.
    pub key: Key,
    /// Through which app; a target of `settings` is its.
    pub app: AppKey,
    /// Up to which slot.
    pub upto: Seq,
    /// Which attempt for these slots, from 0.
    pub attempt: u8,
    /// When the first of those slots was accepted.
    pub since: UnixMillis,
    /// When, how urgent, until when.
    pub due: Due,
    /// Where the device is reached.
    pub settings: PushSettings,
    /// Answers in a row that said: later.
    pub failures: u32,
    /// Since when it is here.
    pub queued_at: Time,
    /// When its mailbox was last noted in the store.
    noted_at: Time,
    /// Something came for the device while its wake was in flight.
    again: bool,
    /// What is let go when the wake has had its first answer.
    guards: Vec<G>,
    in_flight: bool,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It waits.
    Queued,
    /// It is one with what waited for the device.
    Merged,
    /// One is in flight: the mailbox is looked at again after its answer.
    InFlight,
    /// The device was woken for these slots a moment ago.
    Known,
    /// No place: note it for later.
    Full,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this one; it is in flight.
    Send(WakeId),
    /// Nothing before this time.
    Wait(Option<Time>),
}

/// How a wake goes on after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It is over; remembered as given, if `given`.
    Over {
        /// The provider has it, or it counts as given.
        given: bool,
    },
    /// It waits until then.
    Again(Time),
    /// It and all of its app wait until then.
    Pause(Time),
    /// It was not sent, so this counts as no failure: it waits until then, or all of its app does.
    Held {
        /// Until then.
        at: Time,
        /// All of its app.
        app: bool,
    },
}

/// A wake that will never pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// Since when.
    pub at: UnixMillis,
    /// For whom.
    pub key: Key,
    /// Through which app.
    pub app: AppKey,
    /// Why.
    pub reason: &'static str,
}

struct App {
    due: BTreeSet<(Time, WakeId)>,
    waits: usize,
    in_flight: usize,
    bucket: Bucket,
}

/// The outbox. `G` is let go when a wake has had its first answer.
pub struct Outbox<G> {
    config: OutboxConfig,
    last: u64,
    bytes: usize,
    jobs: BTreeMap<WakeId, Job<G>>,
    by_device: BTreeMap<Key, WakeId>,
    apps: BTreeMap<AppKey, App>,
    /// Whose turn was last.
    turn: Option<AppKey>,
    recent: BTreeMap<Key, (Seq, u8, Time)>,
    recent_order: VecDeque<(Time, Key)>,
    parked: VecDeque<Parked>,
}

/// Figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Wakes that wait.
    pub due: usize,
    /// Wakes in flight.
    pub in_flight: usize,
    /// Wakes that were parked lately.
    pub parked: usize,
    /// Apps that wait.
    pub paused: usize,
    /// Bytes held for wakes that wait or are in flight.
    pub bytes: usize,
    /// For how long the first of them has been here.
    pub oldest: Millis,
}

impl<G> Outbox<G> {
    /// An empty one.
    pub fn new(config: OutboxConfig) -> Self {
        Self {
            config,
            last: 0,
            bytes: 0,
            jobs: BTreeMap::new(),
            by_device: BTreeMap::new(),
            apps: BTreeMap::new(),
            turn: None,
            recent: BTreeMap::new(),
            recent_order: VecDeque::new(),
            parked: VecDeque::new(),
        }
    }

    /// Takes a device to be woken at `at`. Its mailbox was noted in the store within the last minute.
    pub fn offer(
        &mut self,
        mailbox: MailboxId,
        sleeper: Sleeper,
        app: AppKey,
        at: Time,
        guards: Vec<G>,
        now: Time,
    ) -> Offered {
        let key = (mailbox, sleeper.device);
        self.forget(now);
        let due = Due { at, urgency: sleeper.urgency, expires_at: sleeper.expires_at };
        if let Some(id) = self.by_device.get(&key) {
            return self.merge(*id, sleeper.upto, sleeper.attempt, due, sleeper.settings, guards);
        }
        let woken = (sleeper.upto, sleeper.attempt);
        if self.recent.get(&key).is_some_and(|(upto, attempt, _)| woken <= (*upto, *attempt)) {
            return Offered::Known;
        }
        let waiting = self.apps.get(&app).map_or(0, |app| app.waits + app.in_flight);
        let bytes = cost(&sleeper.settings);
        let full = self.jobs.len() >= self.config.total_max || self.bytes + bytes > self.config.bytes_max;
        if full || waiting >= self.config.per_app_max {
            return Offered::Full;
        }
        self.bytes += bytes;
        self.last += 1;
        let id = WakeId(self.last);
        let state = self.app(&app, now);
        state.due.insert((at, id));
        state.waits += 1;
        self.by_device.insert(key.clone(), id);
        let job = Job {
            key,
            app,
            upto: sleeper.upto,
            attempt: sleeper.attempt,
            since: sleeper.since,
            due,
            settings: sleeper.settings,
            failures: 0,
            queued_at: now,
            noted_at: now,
            again: false,
            guards,
            in_flight: false,
        };
        self.jobs.insert(id, job);
        Offered::Queued
    }

    fn app(&mut self, key: &AppKey, now: Time) -> &mut App {
        let config = &self.config;
        self.apps.entry(key.clone()).or_insert_with(|| App {
            due: BTreeSet::new(),
            waits: 0,
            in_flight: 0,
            bucket: Bucket::new(config.per_second, config.burst, now),
        })
    }

    fn merge(
        &mut self,
        id: WakeId,
        upto: Seq,
        attempt: u8,
        due: Due,
        settings: PushSettings,
        guards: Vec<G>,
    ) -> Offered {
        let Some(job) = self.jobs.get_mut(&id) else { return Offered::Full };
        if job.in_flight {
            job.again |= upto > job.upto;
            return Offered::InFlight;
        }
        if upto > job.upto {
            (job.upto, job.attempt) = (upto, attempt);
        }
        // A wake that its provider put off is not hastened by what came meanwhile, unless that is more urgent.
        let put_off = job.failures > 0 && due.urgency <= job.due.urgency;
        let merged = job.due.collapse(due);
        let merged = if put_off { Due { at: job.due.at, ..merged } } else { merged };
        self.bytes = self.bytes + cost(&settings) - cost(&job.settings);
        job.settings = settings;
        job.guards.extend(guards);
        let (old, app) = (job.due.at, job.app.clone());
        job.due = merged;
        if let Some(app) = self.apps.get_mut(&app) {
            app.due.remove(&(old, id));
            app.due.insert((merged.at, id));
        }
        Offered::Merged
    }

    /// The next wake to send, the apps taking turns.
    pub fn next(&mut self, now: Time) -> Next {
        let mut wait: Option<Time> = None;
        let start = self.turn.clone();
        let behind = self.apps.iter().filter(|(key, _)| start.as_ref().is_none_or(|turn| *key > turn));
        let before = self.apps.iter().filter(|(key, _)| start.as_ref().is_some_and(|turn| *key <= turn));
        let ready = behind.chain(before).find_map(|(key, app)| {
            let at = app.due.first()?.0;
            if app.in_flight >= self.config.in_flight_per_app_max {
                return None;
            }
            if at > now {
                wait = Some(wait.map_or(at, |wait| wait.min(at)));
                return None;
            }
            let mut bucket = app.bucket;
            match bucket.take(now) {
                Ok(()) => Some((key.clone(), bucket)),
                Err(span) => {
                    wait = Some(wait.map_or(now + span, |wait| wait.min(now + span)));
                    None
                }
            }
        });
        let Some((key, bucket)) = ready else { return Next::Wait(wait) };
        let Some(app) = self.apps.get_mut(&key) else { return Next::Wait(wait) };
        let Some((_, id)) = app.due.pop_first() else { return Next::Wait(wait) };
        app.bucket = bucket;
        app.waits -= 1;
        app.in_flight += 1;
        self.turn = Some(key);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.in_flight = true;
        }
        Next::Send(id)
    }

    /// One that is here.
    pub fn job(&self, id: WakeId) -> Option<&Job<G>> {
        self.jobs.get(&id)
    }

    /// A wake in flight has its answer. Returns what it let go, and whether its mailbox is to be looked at again.
    pub fn answered(&mut self, id: WakeId, after: After, now: Time) -> (Vec<G>, bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return (Vec::new(), false) };
        let guards = std::mem::take(&mut job.guards);
        let Some(app) = self.apps.get_mut(&job.app) else { return (guards, false) };
        app.in_flight -= 1;
        let (at, pauses, failed) = match after {
            After::Over { given } => {
                let again = job.again;
                let Some(job) = self.jobs.remove(&id) else { return (guards, again) };
                self.by_device.remove(&job.key);
                self.bytes -= cost(&job.settings);
                if given {
                    self.remember(job.key, job.upto, job.attempt, now);
                }
                return (guards, again);
            }
            After::Again(at) => (at, false, true),
            After::Pause(at) => (at, true, true),
            After::Held { at, app } => (at, app, false),
        };
        if pauses {
            app.bucket.pause(now, at - now);
        }
        app.waits += 1;
        app.due.insert((at, id));
        job.failures += u32::from(failed);
        job.due.at = at;
        job.in_flight = false;
        (guards, std::mem::take(&mut job.again))
    }

    fn remember(&mut self, key: Key, upto: Seq, attempt: u8, now: Time) {
        if self.config.recent_max == 0 {
            return;
        }
        while self.recent_order.len() >= self.config.recent_max {
            self.forget_first();
        }
        self.recent_order.push_back((now, key.clone()));
        self.recent.insert(key, (upto, attempt, now));
    }

    fn forget(&mut self, now: Time) {
        while self.recent_order.front().is_some_and(|(at, _)| now - *at >= REMEMBER) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
        let Some((at, key)) = self.recent_order.pop_front() else { return };
        if self.recent.get(&key).is_some_and(|(_, _, given)| *given == at) {
            self.recent.remove(&key);
        }
    }

    /// Keeps a wake that will never pass where it can be seen.
    pub fn park(&mut self, parked: Parked) {
        if self.parked.len() >= self.config.parked_max {
            self.parked.pop_front();
        }
        if self.config.parked_max > 0 {
            self.parked.push_back(parked);
        }
    }

    /// What was parked, oldest first.
    pub fn parked(&self) -> impl Iterator<Item = &Parked> {
        self.parked.iter()
    }

    /// Mailboxes of wakes that were last noted before `before`.
    pub fn unnoted(&self, before: Time) -> BTreeSet<MailboxId> {
        self.jobs.values().filter(|job| job.noted_at < before).map(|job| job.key.0).collect()
    }

    /// Mailboxes that were noted at that time.
    pub fn noted(&mut self, mailboxes: &BTreeSet<MailboxId>, at: Time) {
        for job in self.jobs.values_mut().filter(|job| mailboxes.contains(&job.key.0)) {
            job.noted_at = job.noted_at.max(at);
        }
    }

    /// Ends all pauses, and whatever waits for one: after a change of the configuration.
    pub fn resume(&mut self, now: Time) {
        for app in self.apps.values_mut().filter(|app| app.bucket.is_paused(now)) {
            app.bucket.resume();
            for (at, id) in std::mem::take(&mut app.due) {
                let job = self.jobs.get_mut(&id).filter(|job| job.failures > 0);
                let at = job.map_or(at, |job| {
                    job.due.at = job.due.at.min(now);
                    job.due.at
                });
                app.due.insert((at, id));
            }
        }
    }

    /// How much is here. Apps without any wake are forgotten once they may send at will.
    pub fn sizes(&mut self, now: Time) -> Sizes {
        self.apps.retain(|_, app| app.waits + app.in_flight > 0 || !app.bucket.is_full(now));
        let mut sizes = Sizes { parked: self.parked.len(), bytes: self.bytes, ..Sizes::default() };
        sizes.oldest = self.jobs.first_key_value().map_or(Millis(0), |(_, job)| now - job.queued_at);
        for app in self.apps.values() {
            sizes.due += app.waits;
            sizes.in_flight += app.in_flight;
            sizes.paused += usize::from(app.bucket.is_paused(now));
        }
        sizes
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.bytes = 0;
        self.jobs.clear();
        self.by_device.clear();
        self.apps.clear();
    }
}

/// Bytes that a wake holds, about: its job, its places in the maps, its targets.
fn cost(settings: &PushSettings) -> usize {
    let of = |address: &PushAddress| match address {
        PushAddress::Apns { token, .. } => token.capacity(),
        PushAddress::Fcm { token } => token.capacity(),
        PushAddress::WebPush { endpoint, .. } => endpoint.capacity(),
    };
    let targets = settings.targets.iter().map(|target| size_of::<PushTarget>() + of(&target.address));
    400 + targets.sum::<usize>()
}

#[cfg(test)]
mod tests;
