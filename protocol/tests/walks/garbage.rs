//! The session under arbitrary events without any discipline: it does not panic and stays within its bounds.

use chappe_protocol::frame::{Limits, Role, ServerFrame};
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, Seq};
use chappe_protocol::session::{Action, Session, SessionConfig, Start};
use chappe_protocol::testing::{Rng, generate};
use chappe_protocol::time::{Millis, Time};
use std::sync::Arc;

const SLOT_COST_MAX: usize = 64 + 2000;

fn start(rng: &mut Rng, devices: &[DeviceId]) -> Start {
    let from = generate::wild_seq(rng, Seq(6));
    Start {
        role: if rng.percent(80) { Role::Main } else { Role::Peek },
        device: devices[0].clone(),
        since: generate::wild_seq(rng, Seq(3)),
        from,
        stored: generate::wild_seq(rng, from),
        head: generate::wild_seq(rng, from),
        epoch: Epoch(5),
        connection: ConnectionId([9; 16]),
        foreign_cursor: rng.percent(20),
    }
}

fn event(session: &mut Session, rng: &mut Rng, now: Time, devices: &[DeviceId]) {
    let around = session.told();
    match rng.below(12) {
        0 => {
            let slot = generate::wild_page(rng, around, devices).slots.pop();
            let seq = slot.as_ref().filter(|_| rng.percent(80)).map_or(around.next(), |slot| slot.seq);
            session.on_doorbell(now, seq, slot.as_ref());
        }
        1 => {
            let seq = around.next();
            let slot = generate::slot(rng, seq, devices, 2000);
            session.on_doorbell(now, seq, Some(&slot));
        }
        2 => session.on_head(now, generate::wild_seq(rng, around)),
        3 if rng.percent(20) => session.on_device_news(now, &generate::news(rng, devices, Epoch(5)).unwrap()),
        4 | 5 => session.on_page(now, generate::wild_page(rng, around, devices)),
        6 => session.on_read_failed(now),
        7 => session.on_advanced(now),
        8 => session.on_advance_failed(now),
        9 => session.handle_ack(now, generate::wild_seq(rng, around)),
        10 => session.handle_ping(now, rng.bits()),
        11 => session.flush(),
        _ => session.handle_frame(now),
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let devices: Vec<_> = (0..3).map(|number| generate::device(number).unwrap()).collect();
    let window = u32::try_from(rng.below(3000)).unwrap();
    let config = Arc::new(SessionConfig {
        limits: Limits {
            window_envelopes_max: u32::try_from(rng.below(9)).unwrap(),
            window_bytes_max: window * 2,
            ..Limits::default()
        },
        window_bytes_first: window,
        page_rows_max: usize::try_from(rng.below(9)).unwrap(),
        page_bytes_max: usize::try_from(rng.below(4000)).unwrap(),
        ..SessionConfig::default()
    });
    let mut now = Time(rng.below(1000));
    let mut session = Session::new(now, Arc::clone(&config), start(&mut rng, &devices));
    let (mut told, mut cursor, mut closed) = (session.told(), session.cursor(), false);
    for _ in 0..rng.below(120) {
        // Time may even go back.
        now = if rng.percent(3) { Time(now.0 / 2) } else { now + Millis(rng.below(4000)) };
        event(&mut session, &mut rng, now, &devices);
        if rng.percent(40) {
            session.handle_timeout(now);
        }
        for _ in 0..rng.below(4) {
            if let Some(action) = session.poll_action(now) {
                assert!(
                    !(closed && matches!(action, Action::Read { .. } | Action::Close(_))),
                    "{action:?} after a close"
                );
                closed |= matches!(action, Action::Close(_));
            }
            if let Some(frame) = session.poll_frame(now) {
                assert!(!closed, "{frame:?} after a close");
                if let ServerFrame::Deliver(deliver) = &frame {
                    assert!(deliver.prev == told && deliver.seq > told);
                }
            }
            assert!(session.told() >= told, "told went back");
            told = session.told();
        }
        assert!(session.cursor() >= cursor, "the cursor went back");
        cursor = session.cursor();
        let (items, bytes) = session.held();
        assert!(items <= (config.limits.window_envelopes_max as usize).max(1), "{items} items held");
        assert!(bytes <= session.window_bytes() as usize + SLOT_COST_MAX, "{bytes} bytes held");
        assert!(session.unacked().0 <= 1 || session.unacked().1 <= session.window_bytes() as usize);
        let _ = (session.poll_timeout(), session.is_idle());
    }
}

#[test]
fn arbitrary_events_neither_panic_nor_break_the_bounds() {
    for seed in 0..20_000 {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("garbage seed {seed} failed");
            std::panic::resume_unwind(panic);
        }
    }
}
