//! What happens to a cluster when, from a seed. **Invariant:** whatever is broken is mended at the end.

use crate::hosts::{GATEWAYS, ROUTERS, SITES};
use crate::support::Person;
use chappe_protocol::testing::Rng;

/// One deed of the simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Act {
    CrashGateway(u64),
    BounceGateway(u64),
    CrashRouter(u64),
    BounceRouter(u64),
    /// Between a site and a gateway: messages are lost.
    Part(u64, u64),
    Repair(u64, u64),
    /// Between a site and a gateway: messages wait.
    Hold(u64, u64),
    Release(u64, u64),
    /// Between a gateway and a router.
    Cut(u64, u64),
    Join(u64, u64),
    Disconnect(u32),
    Leave(u32),
    Return(u32),
}

/// How large and how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) work_ms: u64,
    pub(crate) pause_ms_max: u64,
    /// In this time everything that is sent expires soon.
    mortal_ms: (u64, u64),
}

impl Shape {
    pub(crate) fn is_mortal(&self, now_ms: u64) -> bool {
        (self.mortal_ms.0..self.mortal_ms.1).contains(&now_ms)
    }
}

pub(crate) fn shape(random: &mut Rng) -> Shape {
    let work_ms = random.between(8_000, 14_000);
    let from = random.between(3_000, 7_000);
    Shape { work_ms, pause_ms_max: random.between(300, 900), mortal_ms: (from, from + 1_500) }
}

/// 4 to 6 users with 1 or 2 devices each.
pub(crate) fn people(random: &mut Rng) -> Vec<Person> {
    let mut people = Vec::new();
    for user in 0..usize::try_from(random.between(4, 5)).unwrap() {
        people.push(Person { user, device: "phone".into() });
        if random.percent(50) {
            people.push(Person { user, device: "laptop".into() });
        }
    }
    people
}

/// Deeds in order of time, from the start of the work.
pub(crate) fn deeds(random: &mut Rng, shape: &Shape, devices: u32) -> Vec<(u64, Act)> {
    let mut deeds = Vec::new();
    for _ in 0..random.between(6, 16) {
        let from = random.below(shape.work_ms);
        let to = from + random.between(100, 4_000);
        let (gateway, router, site) = (random.below(GATEWAYS), random.below(ROUTERS), random.below(SITES));
        let device = u32::try_from(random.below(u64::from(devices))).unwrap();
        let (begin, end) = match random.below(10) {
            0 | 1 => (Act::CrashGateway(gateway), Some(Act::BounceGateway(gateway))),
            2 | 3 => (Act::CrashRouter(router), Some(Act::BounceRouter(router))),
            // One kind of trouble per pair: the network keeps one state for each.
            4 | 5 if (site + gateway) % 2 == 0 => {
                (Act::Part(site, gateway), Some(Act::Repair(site, gateway)))
            }
            4 | 5 => (Act::Hold(site, gateway), Some(Act::Release(site, gateway))),
            6 => (Act::Cut(gateway, router), Some(Act::Join(gateway, router))),
            7 => (Act::Leave(device), Some(Act::Return(device))),
            _ => (Act::Disconnect(device), None),
        };
        deeds.push((from, begin));
        deeds.extend(end.map(|end| (to, end)));
    }
    // Somebody is away while things expire.
    let away = u32::try_from(random.below(u64::from(devices))).unwrap();
    deeds.push((shape.mortal_ms.0.saturating_sub(2_500), Act::Leave(away)));
    deeds.push((shape.mortal_ms.1 + 2_500, Act::Return(away)));
    deeds.sort();
    deeds
}
