//! The embedded store as its callers see it: what stays over a reopen, what ends, what a data directory refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod support;

use bytes::Bytes;
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, MailboxId, PayloadId, Seq, UserId};
use chappe_protocol::time::UnixMillis;
use chappe_storage::EntryPayload;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows, OpenError};
use chappe_storage::rows::{Applied, Rows};
use std::path::Path;
use std::sync::Arc;
use support::disk::{Image, SimDisk};
use support::{Clock, DAY, START, append, dense, entry, head, id, partition};

fn open(path: &Path, clock: &Arc<Clock>) -> EmbeddedRows {
    let world: Arc<Clock> = Arc::clone(clock);
    EmbeddedRows::open(path, world, EmbeddedConfig::default()).unwrap()
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_reopen() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Clock::new(1));
    let of = partition(1, 0);
    let phone = DeviceId::new("phone").unwrap();
    let user = UserId::new("anna").unwrap();
    let rows = open(directory.path(), &clock);
    let incarnation = rows.incarnation();
    for seq in 1..=40 {
        assert_eq!(append(&rows, of, seq - 1, &[entry(1, seq, 100)]).await.unwrap(), Applied::Yes);
    }
    rows.create_user(&user, of.mailbox).await.unwrap();
    rows.create_device(of.mailbox, &phone, Seq(7)).await.unwrap();
    rows.raise_session(of.mailbox, &phone, Epoch(3), ConnectionId([4; 16])).await.unwrap();
    rows.raise_cursor(of.mailbox, &phone, Seq(9)).await.unwrap();
    rows.add_pending(of.mailbox).await.unwrap();
    drop(rows);

    let rows = open(directory.path(), &clock);
    assert_eq!(rows.incarnation(), incarnation);
    assert_eq!(dense(&rows, 1).await, 40);
    assert_eq!(rows.head(of).await.unwrap(), Some(head(40)));
    assert_eq!(rows.user(&user, false).await.unwrap().unwrap().mailbox, of.mailbox);
    let device = rows.device(of.mailbox, &phone).await.unwrap().unwrap();
    assert_eq!((device.since, device.epoch, device.connection), (Seq(7), Epoch(3), ConnectionId([4; 16])));
    assert_eq!(rows.cursor(of.mailbox, &phone).await.unwrap(), Seq(9));
    assert_eq!(rows.pending_since(UnixMillis(START)).await.unwrap().0, [of.mailbox]);
}

/// What a kill leaves behind, after many rounds of the journal.
#[tokio::test]
async fn the_journal_stays_short_and_a_kill_loses_nothing() {
    let disk = SimDisk::empty(1);
    let mut config = EmbeddedConfig::default();
    config.journal_bytes_max = 64 << 10;
    let rows = EmbeddedRows::open_layer(disk.layer(), Clock::new(1), config).unwrap();
    for seq in 1..=150 {
        append(&rows, partition(1, 0), seq - 1, &[entry(1, seq, 1500)]).await.unwrap();
    }
    let killed = disk.contents();
    for journal in &killed.journals {
        assert!(journal.len() <= 72 << 10, "{} bytes of journal", journal.len());
    }
    let pages_alone = Image { journals: Default::default(), ..killed.clone() };
    let open = |image| {
        EmbeddedRows::open_layer(SimDisk::new(image, 2).layer(), Clock::new(2), EmbeddedConfig::default())
    };
    assert_eq!(dense(&open(killed).unwrap(), 1).await, 150);
    // Most is in the pages by now, and the journal holds the rest.
    let written = dense(&open(pages_alone).unwrap(), 1).await;
    assert!((100..150).contains(&written), "{written} in the pages");
    drop(rows);
    let closed = Image { journals: Default::default(), ..disk.contents() };
    assert_eq!(dense(&open(closed).unwrap(), 1).await, 150, "an orderly close writes the pages");
}

/// Removals are in the journal like all else.
#[tokio::test]
async fn what_was_removed_before_a_kill_stays_removed() {
    let (disk, clock) = (SimDisk::empty(1), Clock::new(1));
    let open = |disk: &Arc<SimDisk>| {
        EmbeddedRows::open_layer(disk.layer(), Clock::new(1), EmbeddedConfig::default()).unwrap()
    };
    let phone = DeviceId::new("phone").unwrap();
    let shared = PayloadId([7; 16]);
    let rows = EmbeddedRows::open_layer(disk.layer(), clock.clone(), EmbeddedConfig::default()).unwrap();
    append(&rows, partition(1, 0), 0, &[entry(1, 1, 10), entry(1, 2, 10)]).await.unwrap();
    rows.create_device(partition(1, 0).mailbox, &phone, Seq(0)).await.unwrap();
    rows.put_payload(shared, Bytes::from_static(b"shared"), UnixMillis(START + DAY)).await.unwrap();
    drop(rows);
    // All of it is in the pages; the removals are in the journal alone.
    let rows = open(&disk);
    rows.delete_slots(partition(1, 0)).await.unwrap();
    rows.delete_devices(partition(1, 0).mailbox).await.unwrap();
    rows.delete_payload(shared).await.unwrap();
    let killed = SimDisk::new(disk.contents(), 2);
    drop(rows);
    let rows = open(&killed);
    assert_eq!(rows.slots(partition(1, 0), Seq::ZERO, 9, usize::MAX, true).await.unwrap(), []);
    assert_eq!(rows.device(partition(1, 0).mailbox, &phone).await.unwrap(), None);
    assert_eq!(rows.payload(shared).await.unwrap(), None);
    assert_eq!(rows.head(partition(1, 0)).await.unwrap(), Some(head(2)), "the head stays");
}

#[tokio::test]
async fn conditions_are_judged_in_order_inside_one_batch() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Clock::new(2));
    let rows = open(directory.path(), &clock);
    let of = partition(1, 0);
    // 32 writers that all believe the bucket to be new: one wins, whatever batch they share.
    let entries: Vec<_> = (1..=32).map(|seq| [entry(1, seq, 10)]).collect();
    let answers = futures_of(entries.iter().map(|entry| append(&rows, of, 0, entry))).await;
    let won = answers.iter().filter(|answer| matches!(answer, Ok(Applied::Yes))).count();
    assert_eq!(won, 1);
    assert_eq!(rows.head(of).await.unwrap(), Some(head(1)));
    let again = append(&rows, of, 1, &[rows_entry(&rows, 1).await]).await.unwrap();
    assert!(matches!(again, Applied::No { existing, .. } if existing.len() == 1), "an id stood twice");
}

async fn rows_entry(rows: &EmbeddedRows, seq: u64) -> chappe_storage::Entry {
    let slots = rows.slots(partition(1, 0), Seq(seq - 1), 1, usize::MAX, true).await.unwrap();
    slots[0].entry.clone()
}

async fn futures_of<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.map(|one| Some(Box::pin(one))).collect();
    let mut done: Vec<_> = all.iter().map(|_| None).collect();
    std::future::poll_fn(move |cx| {
        for (one, done) in all.iter_mut().zip(done.iter_mut()) {
            if let Some(future) = one.as_mut()
                && let std::task::Poll::Ready(output) = future.as_mut().poll(cx)
            {
                (*one, *done) = (None, Some(output));
            }
        }
        if done.iter().all(Option::is_some) {
            std::task::Poll::Ready(done.iter_mut().map(|done| done.take().unwrap()).collect())
        } else {
            std::task::Poll::Pending
        }
    })
    .await
}

#[tokio::test]
async fn what_has_ended_is_removed_from_the_file_and_nothing_else() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Clock::new(3));
    let rows = open(directory.path(), &clock);
    let of = partition(1, 0);
    let mut short = entry(1, 1, 3000);
    let marker = Bytes::from(vec![0xC5; 3000]);
    (short.payload, short.expires_at) = (EntryPayload::Inline(marker.clone()), UnixMillis(START + DAY));
    append(&rows, of, 0, &[short]).await.unwrap();
    append(&rows, of, 1, &[entry(1, 2, 100)]).await.unwrap();
    let shared = PayloadId([7; 16]);
    rows.put_payload(shared, Bytes::from_static(b"shared"), UnixMillis(START + DAY)).await.unwrap();
    rows.add_pending(of.mailbox).await.unwrap();

    clock.advance(DAY - 1);
    rows.remove_ended().await.unwrap();
    let slots = rows.slots(of, Seq::ZERO, 9, usize::MAX, true).await.unwrap();
    assert_eq!(slots[0].entry.payload, EntryPayload::Inline(marker.clone()));
    assert!(rows.payload(shared).await.unwrap().is_some());

    clock.advance(3_600_000);
    rows.remove_ended().await.unwrap();
    let slots = rows.slots(of, Seq::ZERO, 9, usize::MAX, true).await.unwrap();
    assert!(slots[0].payload_gone && !slots[1].payload_gone);
    assert_eq!(slots[1].entry, entry(1, 2, 100));
    assert_eq!(rows.payload(shared).await.unwrap(), None);
    assert_eq!(rows.find_ids(of, &[id(1, 1), id(1, 2)]).await.unwrap(), [Some(Seq(1)), Some(Seq(2))]);

    clock.advance(DAY);
    rows.remove_ended().await.unwrap();
    assert_eq!(rows.find_ids(of, &[id(1, 1), id(1, 2)]).await.unwrap(), [None, None]);
    assert_eq!(rows.pending_since(UnixMillis(0)).await.unwrap().0, [] as [MailboxId; 0]);
    assert_eq!(rows.head(of).await.unwrap(), Some(head(2)));
    drop(rows);
    // Physically: going back in time does not bring it back.
    let rows = open(directory.path(), &Clock::new(4));
    assert_eq!(rows.find_ids(of, &[id(1, 1), id(1, 2)]).await.unwrap(), [None, None]);
    let slots = rows.slots(of, Seq::ZERO, 9, usize::MAX, true).await.unwrap();
    assert!(slots[0].payload_gone && slots[1].entry == entry(1, 2, 100));
    assert_eq!(rows.payload(shared).await.unwrap(), None);
    assert_eq!(rows.pending_since(UnixMillis(0)).await.unwrap().0, [] as [MailboxId; 0]);
}

#[tokio::test]
async fn a_second_process_is_told_that_the_directory_is_in_use() {
    let (directory, clock) = (tempfile::tempdir().unwrap(), Clock::new(5));
    let rows = open(directory.path(), &clock);
    let second = EmbeddedRows::open(directory.path(), Clock::new(6), EmbeddedConfig::default());
    let error = second.err().unwrap();
    assert!(matches!(error, OpenError::Locked), "{error}");
    assert_eq!(error.code(), "data_dir_locked");
    append(&rows, partition(1, 0), 0, &[entry(1, 1, 10)]).await.unwrap();
    drop(rows);
    assert_eq!(dense(&open(directory.path(), &clock), 1).await, 1);
}
