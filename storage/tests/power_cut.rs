//! Power cuts: whatever subset of the unsynced writes the disk kept, in whatever order, torn or whole, no accepted entry is lost,
//! and no slot is there without the pending note before it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod support;

use chappe_protocol::id::{DeviceId, Seq};
use chappe_protocol::time::UnixMillis;
use chappe_storage::Woken;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::rows::Rows;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use support::disk::{Image, SimDisk};
use support::{Clock, START, append, dense, entry, partition};

const SEEDS: u64 = 220;

/// Writes until the power goes at a random change; `Err` says what was lost.
async fn one_life(seed: u64, sync: bool) -> Result<(), String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut config = EmbeddedConfig::default();
    config.sync = sync;
    config.journal_bytes_max = [20_000, 100_000, 16 << 20][usize::try_from(seed % 3).unwrap()];
    let mut accepted = [0_u64; 4];
    // Some seeds live through two cuts of one file.
    let mut image = Image::default();
    for life in 0..rng.random_range(1..=2) {
        let disk = SimDisk::new(image, seed + life);
        let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(seed), config)
            .map_err(|error| error.to_string())?;
        disk.cut_after(rng.random_range(0..120));
        let mut tries = 0;
        while !disk.is_cut() && tries < 400 {
            tries += 1;
            let mailbox = rng.random_range(0..4_u8);
            let of = partition(mailbox, 0);
            let top = rows.head(of).await.map_err(|error| error.to_string())?.map_or(0, |head| head.seq.0);
            let count = rng.random_range(1..=3);
            let size = if rng.random_bool(0.1) { 9000 } else { 200 };
            let entries: Vec<_> = (top + 1..=top + count).map(|seq| entry(mailbox, seq, size)).collect();
            rows.add_pending(of.mailbox).await.map_err(|error| error.to_string())?;
            let answer = append(&rows, of, top, &entries).await;
            // Looked at after the answer: a cut seen later cannot have come before it.
            if answer.is_ok() && !disk.is_cut() {
                accepted[usize::from(mailbox)] = top + count;
            }
        }
        image = disk.image();
    }
    let after = SimDisk::new(image, seed);
    let rows = EmbeddedRows::open_layer(after.layer(), Clock::new(seed), EmbeddedConfig::default());
    let rows = rows.map_err(|error| format!("does not open: {error}"))?;
    let noted = rows.pending_since(UnixMillis(START)).await.map_err(|error| error.to_string())?.0;
    for (mailbox, accepted) in (0_u8..).zip(accepted) {
        let there = dense(&rows, mailbox).await;
        if there > 0 && !noted.contains(&partition(mailbox, 0).mailbox) {
            return Err(format!("mailbox {mailbox}: {there} slots without a pending note"));
        }
        if there < accepted {
            return Err(format!("mailbox {mailbox}: {accepted} accepted, {there} there"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn no_accepted_entry_is_lost() {
    for seed in 0..SEEDS {
        if let Err(lost) = one_life(seed, true).await {
            panic!("seed {seed}: {lost}");
        }
    }
}

/// A process is killed between a write and its sync, the next one shows what it finds, and then the power goes: what was
/// shown is not taken back, and what was answered behind it stays.
#[tokio::test]
async fn what_is_shown_after_a_kill_outlives_a_power_cut() {
    for seed in 0..60 {
        let disk = SimDisk::empty(seed);
        let of = partition(1, 0);
        let mut config = EmbeddedConfig::default();
        config.journal_bytes_max = if seed % 2 == 0 { 16 << 20 } else { 10_000 };
        let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(seed), config).unwrap();
        append(&rows, of, 0, &[entry(1, 1, 200)]).await.unwrap();
        drop(rows);
        // Nothing of what follows is synced: as if each kill came just before a sync.
        config.sync = false;
        let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(seed), config).unwrap();
        for seq in 2..=5 {
            append(&rows, of, seq - 1, &[entry(1, seq, 200)]).await.unwrap();
        }
        let disk = disk.killed();
        drop(rows);

        config.sync = true;
        let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(seed), config).unwrap();
        let shown = dense(&rows, 1).await;
        let shown_then_lost = disk.killed();
        for seq in shown + 1..=shown + 3 {
            append(&rows, of, seq - 1, &[entry(1, seq, 200)]).await.unwrap();
        }
        let answered_then_lost = disk.killed();
        drop(rows);
        for (cut, at_least) in [(shown_then_lost, shown), (answered_then_lost, shown + 3)] {
            let after = SimDisk::new(cut.image(), seed);
            let rows = EmbeddedRows::open_layer(after.layer(), Clock::new(seed), EmbeddedConfig::default());
            let rows = rows.unwrap_or_else(|error| panic!("seed {seed}: {at_least} promised, {error}"));
            let there = dense(&rows, 1).await;
            assert!(there >= at_least, "seed {seed}: {at_least} promised, {there} there");
        }
    }
}

/// A note for later, a wake and a watermark stand when they are answered, each of them.
#[tokio::test]
async fn what_a_pusher_wrote_outlives_a_power_cut() {
    for seed in 0..20 {
        let (disk, of) = (SimDisk::empty(seed), partition(1, 0));
        let phone = DeviceId::new("phone").unwrap();
        let rows =
            EmbeddedRows::open_layer(disk.layer(), Clock::new(seed), EmbeddedConfig::default()).unwrap();
        let woken = Woken { seq: Seq(3), attempt: 1, at: UnixMillis(START) };
        rows.raise_woken(of.mailbox, &phone, woken).await.unwrap();
        let mut cuts = vec![disk.killed()];
        rows.raise_swept(5, UnixMillis(START)).await.unwrap();
        cuts.push(disk.killed());
        rows.add_pending_at(of.mailbox, UnixMillis(START + 600_000)).await.unwrap();
        cuts.push(disk.killed());
        drop(rows);
        for (answered, cut) in (1..).zip(cuts) {
            let (after, clock) = (SimDisk::new(cut.image(), seed), Clock::new(seed));
            let rows = EmbeddedRows::open_layer(after.layer(), clock.clone(), EmbeddedConfig::default());
            let rows = rows.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(rows.woken(of.mailbox, &phone).await, Ok(Some(woken)), "seed {seed}");
            let swept = rows.swept(5).await.unwrap();
            assert!(answered < 2 || swept == Some(UnixMillis(START)), "seed {seed}");
            clock.advance(600_000);
            let noted = rows.pending_since(UnixMillis(START)).await.unwrap().0;
            assert!(answered < 3 || noted == [of.mailbox], "seed {seed}");
        }
    }
}

#[tokio::test]
async fn a_store_that_does_not_sync_is_caught() {
    let mut caught = 0;
    for seed in 0..20 {
        caught += u32::from(one_life(seed, false).await.is_err());
    }
    assert!(caught >= 10, "only {caught} of 20 seeds saw a store without syncs");
}
