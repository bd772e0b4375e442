//! What the walks do not time or count: delays, sizes, and the closes that need no story.

use super::{Action, Session, SessionConfig, Start};
use crate::close::CloseCode;
use crate::envelope::{DeviceFilter, Page, PageEnd, Slot, SlotBody, Urgency};
use crate::frame::{Role, ServerFrame};
use crate::id::{ConnectionId, DeviceId, EnvelopeId, Epoch, Seq};
use crate::internode::DeviceNews;
use crate::time::{Millis, Time, UnixMillis};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use bytes::Bytes;

fn phone() -> DeviceId {
    DeviceId::new("phone").unwrap()
}

fn session(head: u64) -> Session {
    let start = Start {
        role: Role::Main,
        device: phone(),
        since: Seq::ZERO,
        from: Seq::ZERO,
        stored: Seq::ZERO,
        head: Seq(head),
        epoch: Epoch(3),
        connection: ConnectionId([3; 16]),
        foreign_cursor: false,
    };
    Session::new(Time(0), Arc::new(SessionConfig::default()), start)
}

fn slot(seq: u64, bytes: usize) -> Slot {
    Slot {
        seq: Seq(seq),
        envelope_id: EnvelopeId([u8::try_from(seq).unwrap(); 16]),
        sender: None,
        devices: DeviceFilter::All,
        at: UnixMillis(1),
        expires_at: UnixMillis(2),
        urgency: Urgency::Message,
        body: SlotBody::Present(Bytes::from(vec![0; bytes])),
    }
}

fn news(epoch: u64, connection: u8, revoked: bool) -> DeviceNews {
    DeviceNews { device: phone(), epoch: Epoch(epoch), connection: ConnectionId([connection; 16]), revoked }
}

fn frames(session: &mut Session, now: Time) -> Vec<ServerFrame> {
    core::iter::from_fn(|| session.poll_frame(now)).collect()
}

#[test]
fn a_session_is_small_and_idle_ones_hold_no_memory() {
    assert!(size_of::<Session>() <= 400, "{} bytes", size_of::<Session>());
    let mut session = session(0);
    assert_eq!(session.delivery.capacity(), 0);
    for seq in 1..=100 {
        session.on_doorbell(Time(1), Seq(seq), Some(&slot(seq, 100)));
    }
    assert_eq!(frames(&mut session, Time(1)).len(), 101);
    assert!(session.delivery.capacity() >= 100);
    session.handle_ack(Time(2), Seq(100));
    assert_eq!(session.delivery.capacity(), 0);
}

#[test]
fn failed_reads_are_tried_again_after_doubling_delays() {
    let mut session = session(1);
    let mut now = Time(0);
    for delay in [200, 400, 800, 1600, 3200, 3200] {
        assert!(matches!(session.poll_action(now), Some(Action::Read { after: Seq(0), .. })));
        assert_eq!(session.poll_action(now), None);
        session.on_read_failed(now);
        assert_eq!(session.poll_action(now + Millis(delay - 1)), None);
        assert_eq!(session.poll_timeout(), Some(now + Millis(delay)));
        now = now + Millis(delay);
        session.handle_timeout(now);
    }
    // A page that brings nothing though there is more is a failure too; one that does ends the row of them.
    assert!(session.poll_action(now).is_some());
    session.on_page(now, Page { slots: vec![], end: PageEnd::Head(Seq(0)) });
    assert_eq!(session.poll_action(now), None);
    now = now + Millis(3200);
    assert!(session.poll_action(now).is_some());
    session.on_page(now, Page { slots: vec![slot(1, 9)], end: PageEnd::Head(Seq(2)) });
    assert!(matches!(session.poll_action(now), Some(Action::Read { after: Seq(1), .. })));
}

#[test]
fn the_cursor_is_written_within_its_time_or_at_once_when_asked() {
    let mut session = session(0);
    session.on_doorbell(Time(0), Seq(1), Some(&slot(1, 9)));
    assert_eq!(frames(&mut session, Time(0)).len(), 2);
    session.handle_ack(Time(10), Seq(1));
    assert_eq!(session.poll_action(Time(5009)), None);
    assert_eq!(session.poll_timeout(), Some(Time(5010)));
    assert_eq!(session.poll_action(Time(5010)), Some(Action::Advance { upto: Seq(1) }));
    session.on_advance_failed(Time(5020));
    assert_eq!(session.poll_action(Time(5020)), None);
    session.flush();
    assert_eq!(session.poll_action(Time(5020)), Some(Action::Advance { upto: Seq(1) }));
    session.on_advanced(Time(5021));
    assert!(session.is_idle());
    // Nothing new: nothing to write.
    session.flush();
    assert_eq!(session.poll_action(Time(60_000)), None);
}

#[test]
fn an_ack_that_opens_a_full_window_writes_the_cursor_at_once() {
    let mut session = session(0);
    for seq in 1..=2 {
        session.on_doorbell(Time(0), Seq(seq), Some(&slot(seq, 40_000)));
    }
    // The second is beyond 64 KiB: it is not taken, and not read before half of the window is free.
    assert_eq!(frames(&mut session, Time(0)).len(), 2);
    assert_eq!(session.poll_action(Time(0)), None);
    session.handle_ack(Time(1), Seq(1));
    assert!(matches!(session.poll_action(Time(1)), Some(Action::Read { after: Seq(1), .. })));
    session.on_page(Time(1), Page { slots: vec![slot(2, 90_000)], end: PageEnd::Head(Seq(2)) });
    // One envelope may always be in flight, however large.
    assert_eq!(frames(&mut session, Time(1)).len(), 1);
    session.handle_ack(Time(2), Seq(2));
    assert_eq!(session.poll_action(Time(2)), Some(Action::Advance { upto: Seq(2) }));
}

#[test]
fn revoked_superseded_and_erased_sessions_close_and_say_nothing_more() {
    type Event = fn(&mut Session);
    let cases: [(Event, Option<CloseCode>); 6] = [
        (|session| session.on_device_news(Time(1), &news(3, 3, true)), Some(CloseCode::DeviceRevoked)),
        (|session| session.on_device_news(Time(1), &news(4, 1, false)), Some(CloseCode::ConnectedElsewhere)),
        (|session| session.on_device_news(Time(1), &news(3, 4, false)), Some(CloseCode::ConnectedElsewhere)),
        (|session| session.on_device_news(Time(1), &news(3, 3, false)), None),
        (|session| session.on_device_news(Time(1), &news(2, 9, false)), None),
        (|session| session.on_head(Time(1), Seq::MAX), Some(CloseCode::UserErased)),
    ];
    for (event, code) in cases {
        let mut session = session(0);
        session.on_doorbell(Time(0), Seq(1), Some(&slot(1, 9)));
        event(&mut session);
        assert_eq!(session.closing(), code);
        assert_eq!(frames(&mut session, Time(1)).is_empty(), code.is_some());
        assert_eq!(session.poll_action(Time(1)), code.map(Action::Close));
        assert_eq!(session.poll_action(Time(1)), None);
    }
    let mut session = session(0);
    session.on_device_news(
        Time(1),
        &DeviceNews { device: DeviceId::new("tablet").unwrap(), ..news(9, 9, true) },
    );
    assert_eq!(session.closing(), None, "another device of the mailbox");
}

#[test]
fn one_pong_answers_the_pings_that_wait() {
    let mut session = session(0);
    assert_eq!(frames(&mut session, Time(0)), [ServerFrame::BacklogEnd { upto: Seq(0) }]);
    session.handle_ping(Time(1), 1);
    session.handle_ping(Time(1), 2);
    let others = Slot { devices: DeviceFilter::AllBut(vec![phone()]), ..slot(1, 9) };
    session.on_doorbell(Time(1), Seq(1), Some(&others));
    assert_eq!(frames(&mut session, Time(1)), [ServerFrame::Pong { nonce: 2, upto: Seq(1) }]);
    assert_eq!(session.cursor(), Seq(1));
}
