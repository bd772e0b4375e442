//! One walk: a mailbox, its devices, their sockets, and everything that can go wrong between them, from one seed.

use crate::device::Device;
use crate::wire::{Up, Wire};
use crate::{Counters, PAYLOAD_MAX};
use chappe_protocol::envelope::{Page, PageEnd, Slot, SlotBody};
use chappe_protocol::frame::{Limits, Role};
use chappe_protocol::id::{ConnectionId, CursorTag, DeviceId, Epoch, Seq};
use chappe_protocol::internode::DeviceNews;
use chappe_protocol::session::{SessionConfig, Start};
use chappe_protocol::testing::model::{Model, ModelDevice};
use chappe_protocol::testing::{Rng, generate};
use chappe_protocol::time::{Millis, Time};
use std::sync::Arc;

const TAG: CursorTag = CursorTag([1; 16]);
const FOREIGN: CursorTag = CursorTag([2; 16]);

pub(crate) struct Walk {
    pub(crate) rng: Rng,
    pub(crate) now: Time,
    pub(crate) model: Model,
    config: Arc<SessionConfig>,
    ids: Vec<DeviceId>,
    pub(crate) devices: Vec<Device>,
    /// Doorbells under way; each goes to every socket.
    pub(crate) bells: Vec<(Seq, Option<Slot>)>,
    /// Pages that were answered once and come again.
    stale: Vec<Page>,
    connections: u64,
    pub(crate) counters: Counters,
}

impl Walk {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let window = u32::try_from(rng.between(100, 1500)).unwrap();
        let limits = Limits {
            window_envelopes_max: u32::try_from(rng.between(1, 12)).unwrap(),
            window_bytes_max: window * u32::try_from(rng.between(1, 5)).unwrap(),
            ..Limits::default()
        };
        let config = SessionConfig {
            limits,
            window_bytes_first: window,
            page_rows_max: usize::try_from(rng.between(1, 9)).unwrap(),
            page_bytes_max: usize::try_from(rng.between(64, 2500)).unwrap(),
            ..SessionConfig::default()
        };
        let mut walk = Self {
            rng,
            now: Time(1),
            model: Model::new(),
            config: Arc::new(config),
            ids: (0..3).map(|number| generate::device(number).unwrap()).collect(),
            devices: Vec::new(),
            bells: Vec::new(),
            stale: Vec::new(),
            connections: 0,
            counters: Counters::default(),
        };
        let before = walk.rng.below(20);
        (0..before).for_each(|_| walk.append());
        let devices = walk.rng.between(1, 3);
        (0..devices).for_each(|_| walk.add_device());
        walk
    }

    /// Some steps, then everything is healed and has to come to rest.
    pub(crate) fn run(&mut self) {
        for _ in 0..self.rng.between(20, 220) {
            self.step();
            for device in &mut self.devices {
                device.wires.iter_mut().for_each(|wire| wire.check(&self.model, &mut self.counters));
            }
        }
        self.heal();
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..=9 => self.append(),
            10..=23 => self.ring(),
            24..=26 => self.probe(),
            27..=38 => self.answer_read(false),
            39..=42 => self.answer_advance(false),
            43..=64 => self.pump(),
            65..=74 => self.app(),
            75..=80 => self.send_acks(),
            81..=84 => self.cut(),
            85..=90 => self.connect_someone(),
            91 => self.peek(),
            92 => self.lose_payloads(),
            93 => self.trim(),
            94 if self.devices.len() < self.ids.len() => self.add_device(),
            95 => self.rogue(),
            _ => self.pass_time(),
        }
    }

    fn some_device(&mut self) -> usize {
        self.rng.index(self.devices.len()).unwrap()
    }

    /// Envelopes are committed; the doorbells may be lost, repeated, late, and with or without the slot.
    fn append(&mut self) {
        for _ in 0..self.rng.between(1, 4) {
            let mut slot = generate::slot(&mut self.rng, Seq::ZERO, &self.ids, PAYLOAD_MAX);
            if self.rng.percent(5)
                && let Some(old) = self.model.slot(Seq(self.rng.between(1, self.model.head().0.max(1))))
            {
                slot.envelope_id = old.envelope_id;
            }
            let head = self.model.head();
            let Some(seq) = self.model.append(slot) else {
                // I14: a second commit of the same envelope is none.
                assert_eq!(self.model.head(), head);
                self.counters.duplicates += 1;
                continue;
            };
            // I2: dense.
            assert_eq!(seq, head.next());
            if self.rng.percent(75) {
                let slot = self.rng.percent(70).then(|| self.model.slot(seq).unwrap().clone());
                self.bells.push((seq, slot));
            }
        }
    }

    /// One doorbell arrives, in any order; it may come once more.
    fn ring(&mut self) {
        let recent = self.bells.len().saturating_sub(3);
        let at = if self.rng.percent(70) {
            self.rng.index(self.bells.len() - recent).map(|at| at + recent)
        } else {
            self.rng.index(self.bells.len())
        };
        let Some(at) = at else { return };
        let (seq, slot) = if self.rng.percent(25) { self.bells[at].clone() } else { self.bells.remove(at) };
        for device in &mut self.devices {
            for wire in &mut device.wires {
                let idle = wire.session.is_idle() && wire.backlog_end && wire.session.closing().is_none();
                let next = wire.session.known_head().next() == seq && slot.is_some();
                let held = wire.session.held().0;
                self.counters.stale_bells += u64::from(seq <= wire.session.known_head());
                wire.session.on_doorbell(self.now, seq, slot.as_ref());
                let took = wire.session.held().0 > held;
                let heard = wire.session.known_head() >= seq || wire.session.closing().is_some();
                assert!(heard, "a doorbell without a slot is heard");
                assert!(!(took && wire.read.is_some()), "the read that is out brings it");
                self.counters.bell_delivered += u64::from(took);
                // A doorbell of exactly the next slot delivers at once.
                if idle && next {
                    assert_eq!(
                        took,
                        self.model.targets(&device.model, seq),
                        "an idle session takes the next slot"
                    );
                    assert!(
                        wire.session.poll_action(self.now).is_none(),
                        "no read for what the doorbell brought"
                    );
                }
            }
        }
    }

    /// A probe's answer: heads, perhaps a little old, and sessions.
    fn probe(&mut self) {
        let head = Seq(self.model.head().0.saturating_sub(self.rng.below(3)));
        for device in &mut self.devices {
            let mut news = newest(&device.model);
            if self.rng.percent(30) {
                // Old news, from before the newest attach.
                news.epoch = Epoch(news.epoch.0.saturating_sub(1));
            }
            for wire in device.wires.iter_mut().filter(|_| self.rng.percent(70)) {
                wire.session.on_head(self.now, head);
                wire.news(self.now, &news);
            }
        }
    }

    /// Reads are answered late, cut short, by a store that is a little behind, with a page of another read, or not at all.
    pub(crate) fn answer_read(&mut self, healed: bool) {
        for device in &mut self.devices {
            for wire in &mut device.wires {
                if wire.read.is_none() && !self.stale.is_empty() && !healed && self.rng.percent(20) {
                    // An answer that nobody waits for.
                    let held = wire.session.held();
                    wire.session.on_page(self.now, self.stale[0].clone());
                    assert!(wire.session.held() == held, "an answer without a read was taken");
                }
                if !healed && self.rng.percent(40) {
                    continue;
                }
                let Some((after, rows, bytes)) = wire.read.take() else { continue };
                let held = wire.session.held().0;
                let mut page = self.model.read(after, rows, bytes);
                match if healed { 9 } else { self.rng.below(10) } {
                    0 | 1 => {
                        self.counters.reads_failed += 1;
                        wire.session.on_read_failed(self.now);
                        continue;
                    }
                    2 => cut_short(&mut self.rng, after, &mut page),
                    3 => {
                        if let Some(old) = self.rng.pick(&self.stale) {
                            self.counters.stale_pages += 1;
                            page = old.clone();
                        }
                    }
                    _ => {}
                }
                if self.stale.len() < 8 && !healed {
                    self.stale.push(page.clone());
                }
                wire.session.on_page(self.now, page);
                self.counters.read_delivered += u64::from(wire.session.held().0 > held);
            }
        }
    }

    /// The cursor is written, not written, or written without our hearing of it.
    pub(crate) fn answer_advance(&mut self, healed: bool) {
        for device in &mut self.devices {
            let mut stored = device.model.cursor;
            for wire in &mut device.wires {
                let Some(upto) = wire.advance.take() else { continue };
                let fate = if healed { 9 } else { self.rng.below(10) };
                if fate > 0 {
                    stored = stored.max(upto);
                }
                self.counters.advances_failed += u64::from(fate < 2);
                wire.advanced(self.now, (fate >= 2).then_some(upto));
            }
            // I3, I4: what is stored passes nothing that the app neither acked nor was told gone.
            device.assert_settled(&self.model, device.model.cursor, stored, "the stored cursor");
            device.model.cursor = stored;
        }
    }

    /// Frames and actions move between the parts.
    fn pump(&mut self) {
        for at in 0..self.devices.len() {
            let device = &mut self.devices[at];
            for wire in &mut device.wires {
                for _ in 0..self.rng.below(4) {
                    if let Some(frame) = wire.up.pop_front() {
                        wire.arrive(self.now, frame, false);
                    }
                }
                // A full socket is not polled.
                for _ in 0..self.rng.below(5) {
                    wire.poll_frame(self.now, &self.model, &mut self.counters);
                }
                while wire.poll_action(self.now, &mut self.counters) {}
            }
            for _ in 0..self.rng.below(6) {
                device.take_frame(&self.model, &mut self.counters);
            }
            device.reap();
        }
    }

    /// The app acks some of what it holds, most often in order, and drops some.
    fn app(&mut self) {
        let at = self.some_device();
        let device = &mut self.devices[at];
        for _ in 0..self.rng.below(6) {
            let any = self.rng.index(device.held.len());
            let Some(any) = any else { break };
            match self.rng.below(10) {
                0 => {
                    self.counters.dropped += 1;
                    device.app_drop(any);
                }
                1 | 2 => device.app_ack(any, &self.model),
                _ => device.app_ack(0, &self.model),
            }
        }
    }

    fn send_acks(&mut self) {
        for at in 0..self.devices.len() {
            if self.rng.percent(70) {
                self.devices[at].send_ack(&mut self.rng);
            }
            if self.rng.percent(30)
                && let Some(current) = self.devices[at].current
            {
                self.devices[at].wires[current].up.push_back(Up::Ping(7));
            }
        }
    }

    fn cut(&mut self) {
        let at = self.some_device();
        let server_knows = self.rng.percent(50);
        self.devices[at].cut(server_knows);
    }

    /// A device connects, though its old socket may still stand at the server; the app may have started anew before.
    fn connect_someone(&mut self) {
        let at = self.some_device();
        if self.devices[at].current.is_some() && self.rng.percent(60) {
            return;
        }
        let server_knows = self.rng.percent(50);
        self.devices[at].cut(server_knows);
        if self.rng.percent(25) {
            let foreign = self.rng.percent(20).then_some(FOREIGN);
            self.counters.restarts += 1;
            self.devices[at].restart(foreign);
        }
        self.connect(at);
    }

    pub(crate) fn connect(&mut self, at: usize) {
        self.connections += 1;
        let device = &mut self.devices[at];
        let told = device.receiver.cursor();
        let foreign = told.is_some_and(|cursor| cursor.tag != TAG);
        let own = told.filter(|cursor| cursor.tag == TAG).map(|cursor| cursor.seq);
        let own = own.filter(|_| self.rng.percent(85));
        let mut connection = [0; 16];
        connection[..8].copy_from_slice(&self.connections.to_be_bytes());
        device.model.connection = ConnectionId(connection);
        let stored = device.model.cursor;
        let from = own.unwrap_or(stored).max(device.model.since);
        let resume = self.rng.percent(40) && device.model.epoch > Epoch(0);
        if resume {
            self.counters.resumes += 1;
        } else {
            // An attach counts as an ack and is a write.
            device.model.epoch = Epoch(device.model.epoch.0 + 1);
            device.assert_settled(&self.model, stored.max(device.model.since), from, "an attach");
            device.model.cursor = stored.max(from);
            self.counters.attaches += 1;
        }
        let start = Start {
            role: Role::Main,
            device: device.model.device.clone(),
            since: device.model.since,
            from,
            stored: device.model.cursor.min(from),
            head: self.model.head().max(from),
            epoch: device.model.epoch,
            connection: device.model.connection,
            foreign_cursor: foreign,
        };
        // The router rings for the attaching gateway: the older sockets hear of it now, or with the next probe.
        if self.rng.percent(50) {
            let news = newest(&device.model);
            device.mains().for_each(|wire| wire.news(self.now, &news));
        }
        let wire = Wire::new(self.now, &self.config, &device.model, start);
        device.welcome(from, TAG);
        device.wires.push(wire);
        device.current = Some(device.wires.len() - 1);
    }

    /// A glance beside the main session.
    fn peek(&mut self) {
        let at = self.some_device();
        let device = &mut self.devices[at];
        let start = Start {
            role: Role::Peek,
            device: device.model.device.clone(),
            since: device.model.since,
            from: device.model.cursor.max(device.model.since),
            stored: device.model.cursor,
            head: self.model.head(),
            epoch: device.model.epoch,
            connection: ConnectionId([0; 16]),
            foreign_cursor: false,
        };
        device.wires.push(Wire::new(self.now, &self.config, &device.model, start));
    }

    /// Payloads run out, and one is lost.
    fn lose_payloads(&mut self) {
        let head = self.model.head().0;
        for _ in 0..self.rng.between(1, 4) {
            let seq = Seq(self.rng.between(head.saturating_sub(8).max(1), head.max(1)));
            let present = self.model.slot(seq).is_some_and(|slot| matches!(slot.body, SlotBody::Present(_)));
            if present {
                let body = if self.rng.percent(80) { SlotBody::Expired } else { SlotBody::Lost };
                self.model.set_body(seq, body);
                // A doorbell that still carries it may deliver it; one that carries its loss does not exist.
            }
        }
    }

    /// Most often behind all cursors, sometimes by age.
    fn trim(&mut self) {
        let least = self.devices.iter().map(|device| device.model.cursor).min().unwrap_or_default();
        let upto = if self.rng.percent(60) { least } else { Seq(self.rng.below(self.model.head().0 + 1)) };
        self.model.trim(upto);
    }

    fn add_device(&mut self) {
        let device = self.ids[self.devices.len()].clone();
        let since = self.model.head();
        let model =
            ModelDevice { device, since, cursor: since, epoch: Epoch(0), connection: ConnectionId([0; 16]) };
        self.devices.push(Device::new(model));
        self.connect(self.devices.len() - 1);
    }

    /// A device acks what it was never told.
    fn rogue(&mut self) {
        let at = self.some_device();
        if self.rng.percent(15)
            && let Some(current) = self.devices[at].current
        {
            let wire = &mut self.devices[at].wires[current];
            let beyond = Seq(wire.told().0 + self.rng.between(1, 3));
            wire.arrive(self.now, Up::Ack(beyond), true);
        }
    }

    fn pass_time(&mut self) {
        let span = match self.rng.below(20) {
            0..=7 => self.rng.below(100),
            8..=13 => self.rng.below(2000),
            14..=17 => self.rng.below(7000),
            18 => self.rng.below(25_000),
            _ => self.rng.below(60_000),
        };
        self.now = self.now + Millis(span);
        for device in &mut self.devices {
            for wire in &mut device.wires {
                let silent = wire.silent(self.now);
                wire.tick(self.now, &mut self.counters);
                self.counters.silences += u64::from(silent >= Millis(20_000));
            }
        }
    }
}

fn newest(device: &ModelDevice) -> DeviceNews {
    DeviceNews {
        device: device.device.clone(),
        epoch: device.epoch,
        connection: device.connection,
        revoked: false,
    }
}

/// A page of fewer rows, as of a limit or as of a store that is behind.
fn cut_short(rng: &mut Rng, after: Seq, page: &mut Page) {
    if !page.slots.is_empty() {
        let keep = rng.index(page.slots.len()).unwrap();
        page.slots.truncate(keep);
        let last = page.slots.last().map_or(after, |slot| slot.seq);
        page.end = if rng.percent(50) { PageEnd::Limit } else { PageEnd::Head(last) };
    }
}
