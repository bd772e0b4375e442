//! The choice of a router, without a bus.

use super::{Patience, Routers};
use crate::nats::BusMetrics;
use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::{Announcement, RouterState};
use chappe_protocol::time::{Millis, Time};
use std::sync::Arc;

fn routers() -> Routers {
    let patience = Patience {
        silent_after: Millis(100),
        forgotten_after: Millis(1000),
        suspected_for: Millis(500),
        routers_max: 4,
    };
    Routers::new(patience, Arc::new(BusMetrics::new(&prometheus::Registry::new()).unwrap()))
}

fn say(routers: &Routers, router: u64, state: RouterState, now: u64) {
    routers.announced(Announcement { router, state }, Time(now));
}

fn mailboxes() -> impl Iterator<Item = MailboxId> {
    (0_u8..200).map(|n| MailboxId([n; 16]))
}

#[test]
fn each_router_gets_its_share_and_only_the_lost_ones_share_moves() {
    let routers = routers();
    for name in 1..=3 {
        say(&routers, name, RouterState::Live, 0);
    }
    let before: Vec<u64> = mailboxes().map(|m| routers.pick(m, Time(0), &[]).unwrap()).collect();
    for name in 1..=3 {
        let share = before.iter().filter(|picked| **picked == name).count();
        assert!(share > 40, "router {name} has {share} of 200");
    }
    routers.gone(2);
    for (mailbox, before) in mailboxes().zip(&before) {
        let after = routers.pick(mailbox, Time(0), &[]).unwrap();
        assert!(after == *before || *before == 2, "only the share of the gone router moves");
    }
}

#[test]
fn a_silent_router_is_avoided_then_forgotten_and_welcome_again() {
    let routers = routers();
    say(&routers, 1, RouterState::Live, 0);
    say(&routers, 2, RouterState::Live, 0);
    let mut changes = routers.changes();
    say(&routers, 2, RouterState::Live, 90);
    assert!(!changes.has_changed().unwrap(), "nothing new");
    routers.tick(Time(100));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert!(routers.is_lost(1) && !routers.is_lost(2));
    assert!(mailboxes().all(|m| routers.pick(m, Time(100), &[]) == Some(2)));
    assert!(mailboxes().all(|m| routers.pick(m, Time(100), &[2]) == Some(1)), "better than none");
    say(&routers, 1, RouterState::Live, 110);
    assert!(changes.has_changed().unwrap() && !routers.is_lost(1));
    say(&routers, 2, RouterState::Live, 1100);
    routers.tick(Time(1110));
    assert!(mailboxes().all(|m| routers.pick(m, Time(1110), &[2]).is_none()), "forgotten");
}

#[test]
fn a_suspected_router_is_avoided_for_a_while() {
    let routers = routers();
    say(&routers, 1, RouterState::Live, 0);
    say(&routers, 2, RouterState::Live, 0);
    routers.suspect(1, Time(10));
    assert!(mailboxes().all(|m| routers.pick(m, Time(509), &[]) == Some(2)));
    assert!(mailboxes().any(|m| routers.pick(m, Time(510), &[]) == Some(1)));
    routers.suspect(2, Time(10));
    assert!(
        mailboxes().any(|m| routers.pick(m, Time(20), &[]) == Some(1)),
        "all are suspected: affinity again"
    );
}

#[test]
fn a_draining_router_is_the_last_choice_and_a_gone_one_none() {
    let routers = routers();
    say(&routers, 1, RouterState::Draining, 0);
    say(&routers, 2, RouterState::Live, 0);
    routers.suspect(2, Time(0));
    assert!(mailboxes().all(|m| routers.pick(m, Time(1), &[]) == Some(2)));
    assert!(mailboxes().all(|m| routers.pick(m, Time(1), &[2]) == Some(1)));
    say(&routers, 1, RouterState::Gone, 2);
    assert!(mailboxes().all(|m| routers.pick(m, Time(2), &[2]).is_none()));
    assert!(routers.is_lost(1));
}

#[test]
fn there_is_a_bound_on_routers() {
    let routers = routers();
    for name in 1..=9 {
        say(&routers, name, RouterState::Live, 0);
    }
    let found = (1..=9).filter(|name| !routers.is_lost(*name)).count();
    assert_eq!(found, 4);
}

#[test]
fn who_could_not_hear_blames_nobody() {
    let routers = routers();
    say(&routers, 1, RouterState::Live, 0);
    routers.tick(Time(200));
    assert!(routers.is_lost(1));
    routers.forgive(Time(5000));
    routers.tick(Time(5050));
    assert!(!routers.is_lost(1));
}
