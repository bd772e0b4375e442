//! Whole clusters in one process on paused time: three gateways, two routers, real clients over pipes.
//! **Invariant:** whatever dies, everything accepted arrives once, in order, where it was addressed to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests fail by panicking and read the paused clock of tokio"
)]

mod bench;
#[path = "../support/mod.rs"]
mod support;

use bench::{Bells, Bench};
use chappe_client::{DeviceFilter, DeviceId};
use chappe_protocol::time::Millis;
use chappe_storage::faulty::Faults;
use std::time::Duration;
use support::To;

/// P5: a lost doorbell is made good within so long.
const PROBE_BOUND: Duration = Duration::from_secs(90);

fn all(user: usize) -> To {
    To { user, filter: DeviceFilter::All }
}

fn only(user: usize, device: &str) -> To {
    To { user, filter: DeviceFilter::Only(vec![DeviceId::new(device).unwrap()]) }
}

#[tokio::test(start_paused = true)]
async fn a_device_roams_and_misses_nothing() {
    let bench = Bench::start(1, &[(0, "phone"), (1, "phone")], Bells::Ring, None).await;
    for round in 0..9_usize {
        bench.send(0, vec![all(1)]).await;
        // Wherever it comes from, the next gateway serves it.
        bench.roam(1, (round + 1) % 3);
        bench.send(0, vec![all(1)]).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        bench.apps[1].client.connected().await.unwrap();
    }
    assert!(bench.resumed() >= 5, "resumed {} times on other gateways", bench.resumed());
    bench.finish(18).await;
}

#[tokio::test(start_paused = true)]
async fn two_devices_of_a_user_see_one_order() {
    let people = [(0, "phone"), (1, "phone"), (2, "phone"), (2, "laptop")];
    let bench = Bench::start(2, &people, Bells::Ring, None).await;
    for _ in 0..40 {
        bench.send(0, vec![all(2)]).await;
        bench.send(1, vec![all(2)]).await;
        tokio::time::sleep(Duration::from_millis(7)).await;
    }
    bench.settle(Duration::from_secs(10)).await;
    let (phone, laptop) = (bench.record.seen(2), bench.record.seen(3));
    assert_eq!(phone.len(), 80);
    assert_eq!(phone, laptop);
    bench.finish(80 * 2).await;
}

#[tokio::test(start_paused = true)]
async fn one_submit_fans_out_to_whom_it_names() {
    let people = [(0, "phone"), (0, "laptop"), (1, "phone"), (1, "laptop"), (2, "phone")];
    let bench = Bench::start(3, &people, Bells::Ring, None).await;
    let others = To { user: 0, filter: DeviceFilter::AllBut(vec![DeviceId::new("phone").unwrap()]) };
    for _ in 0..20 {
        bench.send(0, vec![others.clone(), all(1), all(2)]).await;
        bench.send(0, vec![only(1, "laptop"), all(2)]).await;
    }
    bench.settle(Duration::from_secs(10)).await;
    assert_eq!(bench.record.seen(0), Vec::new(), "what goes to the sender's other devices");
    assert_eq!(bench.record.seen(1).len(), 20);
    assert_eq!(bench.record.seen(2).len(), 20);
    assert_eq!(bench.record.seen(3).len(), 40);
    assert_eq!(bench.record.seen(4).len(), 40);
    bench.finish(20 * 4 + 20 * 2).await;
}

#[tokio::test(start_paused = true)]
async fn with_every_doorbell_lost_all_arrive_within_the_probe_bound() {
    let people = [(0, "phone"), (1, "phone"), (2, "phone"), (2, "laptop")];
    let bench = Bench::start(4, &people, Bells::Lost, None).await;
    // Long after everything that happens at an attach.
    tokio::time::sleep(Duration::from_mins(10)).await;
    for _ in 0..10 {
        bench.send(0, vec![all(1), all(2)]).await;
    }
    bench.settle(PROBE_BOUND).await;
    assert_eq!(bench.record.received(), 30);
    bench.finish(30).await;
}

#[tokio::test(start_paused = true)]
async fn a_router_dies_and_nothing_accepted_is_lost() {
    let mut bench = Bench::start(5, &[(0, "phone"), (1, "phone"), (2, "phone")], Bells::Ring, None).await;
    for round in 0..60 {
        bench.send(0, vec![all(1), all(2)]).await;
        bench.send(2, vec![all(1)]).await;
        match round {
            20 => bench.kill_router(0),
            30 => bench.add_router(7),
            40 => bench.kill_router(1),
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.settle(PROBE_BOUND).await;
    bench.finish(180).await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_dies_and_nothing_accepted_is_lost() {
    let mut bench = Bench::start(6, &[(0, "phone"), (1, "phone"), (2, "phone")], Bells::Ring, None).await;
    for round in 0..60 {
        bench.send(0, vec![all(1), all(2)]).await;
        bench.send(1, vec![all(2)]).await;
        if round % 20 == 10 {
            // Device 0 sits on gateway 0, device 1 on gateway 1, and so on.
            bench.kill_gateway(round / 20);
        }
        if round % 20 == 15 {
            bench.start_gateway(round / 20);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.settle(PROBE_BOUND).await;
    bench.finish(180).await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_store_loses_and_repeats_nothing() {
    for seed in 0..10 {
        println!("seed {seed}");
        let people = [(0, "phone"), (1, "phone"), (1, "laptop"), (2, "phone")];
        let mut bench = Bench::start(100 + seed, &people, Bells::Ring, Some(Faults::MANY)).await;
        for round in 0..50u64 {
            bench.send(0, vec![all(1), all(2)]).await;
            bench.send(3, vec![all(1)]).await;
            if round == 15 {
                bench.kill_router(seed % 2);
            }
            if round == 25 {
                bench.kill_gateway((seed % 3) as usize);
            }
            if round == 35 {
                bench.start_gateway((seed % 3) as usize);
            }
            tokio::time::sleep(Millis(30 + seed).to_std()).await;
        }
        bench.heal().await;
        bench.settle(PROBE_BOUND * 2).await;
        bench.finish(50 * 3 + 50 * 2).await;
    }
}
