//! What only a real database shows (`CHAPPE_TEST_CQL_URL`): clocks, times to live, sizes, schemas, ways to fail.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL_URL";
#[path = "support/skewed.rs"]
mod skewed;

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, PageEnd, Sender, SlotBody, Urgency};
use chappe_protocol::id::{Bucket, BucketShape, DeviceId, EnvelopeId, MailboxId, PayloadId, Seq, UserId};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use chappe_storage::rows::{Applied, Batch, Head, Partition, Rows};
use chappe_storage::scylla::{Durability, ScyllaConfig, ScyllaRows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Appended, Entry, EntryPayload, Store, StoreError};
use scylla::value::CqlTimestamp;
use skewed::SkewedWorld;
use std::sync::Arc;
use std::time::Duration;

/// Payload, sender and form of a slot.
type Columns = (Option<Vec<u8>>, Option<Vec<u8>>, Option<i8>);

const HOUR: u64 = 3_600_000;

/// The database's own clock.
async fn database_clock() -> u64 {
    let session = cql::session().await;
    let rows = session.query_unpaged("SELECT toTimestamp(now()) FROM system.local", ()).await.unwrap();
    let (now,) = rows.into_rows_result().unwrap().first_row::<(CqlTimestamp,)>().unwrap();
    u64::try_from(now.0).unwrap()
}

async fn connect(change: impl FnOnce(&mut ScyllaConfig)) -> Arc<ScyllaRows> {
    connect_in(Arc::new(SkewedWorld::at(UnixMillis(database_clock().await), 1)), change).await
}

async fn connect_in(world: Arc<dyn World>, change: impl FnOnce(&mut ScyllaConfig)) -> Arc<ScyllaRows> {
    let mut config = cql::config_of(cql::keyspace().await);
    change(&mut config);
    Arc::new(ScyllaRows::connect(config, world).await.unwrap())
}

/// A mailbox that no other test has.
fn mailbox(n: u8) -> MailboxId {
    MailboxId([n; 16])
}

fn first(n: u8) -> Partition {
    Partition { mailbox: mailbox(n), bucket: Bucket(0) }
}

fn entry(rows: &ScyllaRows, n: u64, payload: Vec<u8>, ttl: Millis) -> Entry {
    let mut id = [0xAB; 16];
    id[..8].copy_from_slice(&n.to_be_bytes());
    let at = rows.now();
    Entry {
        envelope_id: EnvelopeId(id),
        sender: Sender { user: UserId::new("ben").unwrap(), device: DeviceId::new("phone").unwrap() },
        devices: DeviceFilter::All,
        at,
        expires_at: at + ttl,
        urgency: Urgency::Message,
        payload: EntryPayload::Inline(Bytes::from(payload)),
    }
}

fn batch<'a>(rows: &ScyllaRows, expected: Option<u64>, first: u64, entries: &'a [Entry]) -> Batch<'a> {
    let to = Head { seq: Seq(first + entries.len() as u64 - 1), opened_at: rows.now(), bytes_total: 8 };
    Batch { expected: expected.map(Seq), to, slots: (first..).map(Seq).zip(entries).collect() }
}

fn log(rows: &Arc<ScyllaRows>) -> SlotLog<ScyllaRows> {
    let world = Arc::new(SkewedWorld::at(UnixMillis(0), 3));
    SlotLog::new(
        Arc::clone(rows),
        world,
        LogConfig { shape: BucketShape::PRODUCTION, ..LogConfig::default() },
    )
}

/// Two processes, an hour before and behind: same time, same minutes, same times to live.
#[tokio::test]
async fn an_hour_of_skew_does_not_matter() {
    let real = database_clock().await;
    let behind = connect_in(Arc::new(SkewedWorld::at(UnixMillis(real - HOUR), 1)), |_| ()).await;
    let ahead = connect_in(Arc::new(SkewedWorld::at(UnixMillis(real + HOUR), 2)), |_| ()).await;
    let real = database_clock().await;
    for rows in [&behind, &ahead] {
        let off = rows.now().0.abs_diff(real);
        assert!(off < 5000, "{off} ms off");
        assert!(rows.stats().clock_samples >= 3);
    }
    let before = behind.now() - Millis(60_000);
    behind.add_pending(mailbox(1)).await.unwrap();
    assert!(ahead.pending_since(before).await.unwrap().0.contains(&mailbox(1)));
    let read = ahead.stats().reads;
    let (none, now) = ahead.pending_since(UnixMillis(u64::MAX)).await.unwrap();
    assert!(none.is_empty() && now.0.abs_diff(real) < 60_000);
    assert_eq!(ahead.stats().reads, read, "the future reads nothing but the clock");

    let entries = [entry(&ahead, 1, vec![1; 8], Millis(HOUR))];
    ahead.compare_and_append(first(1), batch(&ahead, None, 1, &entries)).await.unwrap();
    let row = behind.slots(first(1), Seq(0), 10, 1 << 20, true).await.unwrap().remove(0);
    assert!(!row.payload_gone);
    let session = cql::session().await;
    let ask = format!(
        "SELECT ttl(payload), ttl(sender), ttl(form) FROM {}.mlog WHERE mailbox = ? AND bucket = 0 AND kind = 0",
        cql::keyspace().await
    );
    let answer = session.query_unpaged(ask, (&mailbox(1).0[..],)).await.unwrap().into_rows_result().unwrap();
    let (payload, sender, form) = answer.first_row::<(i32, i32, Option<i32>)>().unwrap();
    assert!((3500..=3605).contains(&payload) && (3500..=3605).contains(&sender), "{payload} s");
    assert_eq!(form, None, "the slot itself stays");
    let ask = format!(
        "SELECT ttl(seq) FROM {}.mlog WHERE mailbox = ? AND bucket = 0 AND kind = 1",
        cql::keyspace().await
    );
    let answer = session.query_unpaged(ask, (&mailbox(1).0[..],)).await.unwrap().into_rows_result().unwrap();
    let (id,) = answer.first_row::<(i32,)>().unwrap();
    assert!((172_700..=172_800).contains(&id), "an id is remembered for two days: {id} s");
}

/// The database removes them by itself: payload and sender, the shared payload too; slot and id stay.
#[tokio::test]
async fn what_ends_is_gone_by_itself() {
    let rows = connect(|_| ()).await;
    let shared = PayloadId([2; 16]);
    let ttl = Millis(1000);
    rows.put_payload(shared, Bytes::from_static(b"shared"), rows.now() + ttl).await.unwrap();
    rows.put_payload(shared, Bytes::from_static(b"late"), rows.now() + Millis(HOUR)).await.unwrap();
    assert_eq!(rows.payload(shared).await.unwrap().as_deref(), Some(&b"shared"[..]), "the first one stands");
    let mut by_ref = entry(&rows, 2, vec![], ttl);
    by_ref.payload = EntryPayload::Ref { id: shared, bytes: 6 };
    let entries = [entry(&rows, 1, vec![7; 9], ttl), by_ref, entry(&rows, 3, vec![8], Millis(HOUR))];
    rows.compare_and_append(first(2), batch(&rows, None, 1, &entries)).await.unwrap();
    let session = cql::session().await;
    let ask = format!(
        "SELECT payload, sender, form FROM {}.mlog WHERE mailbox = ? AND bucket = 0 AND kind = 0",
        cql::keyspace().await
    );
    let mut gone = false;
    for _ in 0..100 {
        let answer =
            session.query_unpaged(&*ask, (&mailbox(2).0[..],)).await.unwrap().into_rows_result().unwrap();
        let slots: Vec<_> = answer.rows::<Columns>().unwrap().map(Result::unwrap).collect();
        assert_eq!(slots.len(), 3);
        assert!(slots.iter().all(|(_, _, form)| form.is_some()) && slots[2].0.is_some());
        gone = slots[..2].iter().all(|(payload, sender, _)| payload.is_none() && sender.is_none());
        if gone && rows.payload(shared).await.unwrap().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(gone, "payload and sender are there after 20 s");
    assert_eq!(rows.payload(shared).await, Ok(None));
    let log = log(&rows);
    let page = log.read(mailbox(2), Seq(0), 10, 1 << 20).await.unwrap();
    let bodies: Vec<_> = page.slots.iter().map(|slot| slot.body.clone()).collect();
    assert_eq!(bodies, [SlotBody::Expired, SlotBody::Expired, SlotBody::Present(Bytes::from(vec![8]))]);
    assert_eq!((page.end, log.stats().lost), (PageEnd::Head(Seq(3)), 0));
    let ids = entries.clone().map(|entry| entry.envelope_id);
    assert_eq!(rows.find_ids(first(2), &ids).await.unwrap(), [1, 2, 3].map(|n| Some(Seq(n))));
}

/// Not before: a watermark that is gone is a scan of all notes.
#[tokio::test]
async fn a_watermark_ends_with_the_oldest_notes() {
    let rows = connect(|_| ()).await;
    let now = rows.now();
    rows.raise_swept(15, now).await.unwrap();
    rows.raise_swept(15, now - Millis(1)).await.unwrap();
    assert_eq!(rows.swept(15).await, Ok(Some(now)));
    let session = cql::session().await;
    let ask = format!("SELECT ttl(upto) FROM {}.swept WHERE shard = 15", cql::keyspace().await);
    let answer = session.query_unpaged(ask, ()).await.unwrap().into_rows_result().unwrap();
    let (left,) = answer.first_row::<(i32,)>().unwrap();
    assert!((86_300..=86_400).contains(&left), "{left} s");
}

/// A first delete reached one replica only and hid the slots; the one that repeats it sees none of them, and still deletes beyond
/// what the other replicas have: the head tells how far.
#[tokio::test]
async fn a_repeated_delete_reaches_what_is_hidden() {
    let rows = connect(|_| ()).await;
    let place = first(19);
    let entries = [entry(&rows, 1, vec![1], Millis(HOUR))];
    rows.compare_and_append(place, batch(&rows, None, 1, &entries)).await.unwrap();
    rows.delete_slots(place).await.unwrap();
    let session = cql::session().await;
    let keyspace = cql::keyspace().await;
    // The ballot of a coordinator whose clock is an hour ahead, of the head and of the slot that came with it.
    let ballot = i64::try_from((database_clock().await + HOUR) * 1000).unwrap();
    let head =
        format!("UPDATE {keyspace}.mlog USING TIMESTAMP ? SET head = 1 WHERE mailbox = ? AND bucket = 0");
    session.query_unpaged(head, (ballot, &place.mailbox.0[..])).await.unwrap();
    rows.delete_slots(place).await.unwrap();
    let slot = format!(
        "UPDATE {keyspace}.mlog USING TIMESTAMP ? SET form = 3 WHERE mailbox = ? AND bucket = 0 AND kind = 0 AND k = ?"
    );
    session.query_unpaged(slot, (ballot, &place.mailbox.0[..], &1_u64.to_be_bytes()[..])).await.unwrap();
    assert_eq!(rows.slots(place, Seq(0), 10, 1 << 20, true).await.unwrap(), [], "it stays deleted");
}

/// 64 entries and 512 KiB in one batch; a read of them keeps to its bytes, and takes few statements.
#[tokio::test]
async fn the_largest_batch_is_taken_and_read_in_pieces() {
    let rows = connect(|_| ()).await;
    let log = log(&rows);
    let entries: Vec<_> = (0..64).map(|n| entry(&rows, n, vec![3; 8192], Millis(HOUR))).collect();
    let reply = log.append(mailbox(3), &entries, None).await.unwrap();
    assert_eq!(reply.head, Seq(64));
    assert_eq!((rows.stats().appends, rows.stats().append_slots), (1, 64));
    let again = log.append(mailbox(3), &entries, None).await.unwrap();
    assert!(again.entries.iter().zip(1..).all(|(entry, n)| *entry == Appended::Duplicate(Seq(n))));
    let before = rows.stats().reads;
    let page = rows.slots(first(3), Seq(0), 256, 64 * 1024, false).await.unwrap();
    assert_eq!(page.len(), 8, "up to the row that reaches the bytes");
    assert_eq!(rows.stats().reads - before, 1);
    let page = rows.slots(first(3), Seq(0), 256, 1 << 30, false).await.unwrap();
    assert_eq!(page.len(), 64);
    assert!(rows.stats().reads - before <= 4, "{:?}", rows.stats());
    let page = rows.slots(first(3), Seq(10), 20, 1 << 30, true).await.unwrap();
    assert_eq!((page[0].seq, page.len()), (Seq(11), 20));
}

/// What this database says to a refused batch, of every kind.
#[tokio::test]
async fn a_refusal_tells_head_and_ids() {
    let rows = connect(|_| ()).await;
    let entries: Vec<_> = (1..=6).map(|n| entry(&rows, n, vec![1], Millis(HOUR))).collect();
    let no_register = batch(&rows, Some(1), 2, &entries[..3]);
    let answer = rows.compare_and_append(first(4), no_register).await;
    assert_eq!(answer, Ok(Applied::No { head: None, existing: vec![] }));
    let begin = batch(&rows, None, 1, &entries[..4]);
    assert_eq!(rows.compare_and_append(first(4), begin.clone()).await, Ok(Applied::Yes));
    let head = Some(begin.to);
    assert_eq!(rows.head(first(4)).await, Ok(head));
    let existing = |of: &[u64]| {
        of.iter().map(|n| (entries[usize::try_from(*n).unwrap() - 1].envelope_id, Seq(*n))).collect()
    };
    // The same again, as after a lost reply; another that knows nothing; one that knows the head and repeats two ids.
    for (expected, from, of, found) in [
        (None, 1, &entries[..4], &[1, 2, 3, 4][..]),
        (None, 1, &entries[4..], &[]),
        (Some(2), 3, &entries[4..], &[]),
        (Some(4), 5, &entries[2..], &[3, 4]),
        (Some(2), 3, &entries[3..], &[4]),
    ] {
        let answer = rows.compare_and_append(first(4), batch(&rows, expected, from, of)).await;
        assert_eq!(answer, Ok(Applied::No { head, existing: existing(found) }), "{expected:?} {from}");
    }
    assert_eq!(
        rows.slots(first(4), Seq(0), 100, 1 << 20, true).await.unwrap().len(),
        4,
        "nothing was written"
    );
    let stats = rows.stats();
    assert_eq!((stats.appends, stats.appends_refused, stats.misshapen, stats.unknown), (7, 6, 0, 0));
}

/// Answers that come too late are unknown; the retry finds what they wrote.
#[tokio::test]
async fn a_late_answer_is_unknown_and_its_retry_finds_itself() {
    let hasty = connect(|config| config.request_timeout = Millis(1)).await;
    let patient = connect(|_| ()).await;
    let log = log(&patient);
    let mut unknown = 0;
    for n in 1..=20 {
        let entries = [entry(&patient, n, vec![1], Millis(HOUR))];
        let head = log.head(mailbox(5), true).await.unwrap();
        let expected = (head > Seq(0)).then_some(head.0);
        let tried = hasty.compare_and_append(first(5), batch(&patient, expected, head.0 + 1, &entries)).await;
        assert!(!matches!(tried, Err(StoreError::Unavailable(_) | StoreError::Invalid(_))), "{tried:?}");
        unknown += u64::from(matches!(tried, Err(StoreError::Unknown(_))));
        let reply = log.append(mailbox(5), &entries, Some(Bucket(0))).await.unwrap();
        assert_eq!(reply.entries[0].seq(), Seq(n), "once each: {tried:?}");
    }
    assert!(unknown > 0, "nothing was late");
    assert_eq!(hasty.stats().unknown, unknown);
    let page = log.read(mailbox(5), Seq(0), 100, 1 << 20).await.unwrap();
    assert_eq!((page.slots.len(), page.end), (20, PageEnd::Head(Seq(20))));
}

/// Equal reads at once cost one statement each.
#[tokio::test]
async fn equal_reads_are_one_statement() {
    let rows = connect(|_| ()).await;
    let entries = [entry(&rows, 1, vec![1], Millis(HOUR))];
    rows.compare_and_append(first(6), batch(&rows, None, 1, &entries)).await.unwrap();
    let before = rows.stats();
    let heads = futures_util::future::join_all((0..20).map(|_| rows.head(first(6)))).await;
    assert!(heads.iter().all(|head| head.as_ref().unwrap().unwrap().seq == Seq(1)));
    let pages = (0..20).map(|_| rows.slots(first(6), Seq(0), 10, 1 << 20, false));
    let pages = futures_util::future::join_all(pages).await;
    assert!(pages.iter().all(|page| page.as_ref().unwrap().len() == 1));
    let devices = futures_util::future::join_all((0..20).map(|_| rows.devices(mailbox(6)))).await;
    assert!(devices.iter().all(Result::is_ok));
    let after = rows.stats();
    assert_eq!((after.serial_reads - before.serial_reads, after.reads - before.reads), (1, 2));
    assert_eq!(after.coalesced - before.coalesced, 57);
}

/// One more than allowed waits a little, and is then refused unsent.
#[tokio::test]
async fn too_many_at_once_are_refused_before_they_are_sent() {
    let rows = connect(|config| (config.in_flight_max, config.request_timeout) = (1, Millis(300))).await;
    let sent = rows.stats().writes;
    let writes = (0..500).map(|n| {
        let rows = &rows;
        async move { rows.raise_cursor(mailbox(7), &DeviceId::new(&format!("d{n}")).unwrap(), Seq(1)).await }
    });
    let done = futures_util::future::join_all(writes).await;
    let refused = done.iter().filter(|done| matches!(done, Err(StoreError::Unavailable(_)))).count();
    let stats = rows.stats();
    assert!(refused > 0 && done.iter().any(Result::is_ok), "{refused} of 500");
    assert_eq!(stats.refused_full, refused as u64);
    assert_eq!(stats.writes - sent, 500 - refused as u64, "a refused one was not sent");
}

/// As the database's own settings say.
#[tokio::test]
async fn durability_is_read() {
    let session = cql::session().await;
    let ask = "SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'";
    let answer = session.query_unpaged(ask, ()).await.unwrap().into_rows_result().unwrap();
    let (setting,) = answer.first_row::<(String,)>().unwrap();
    let expected = if setting == "periodic" { Durability::Periodic } else { Durability::Synced };
    assert_eq!(connect(|_| ()).await.durability(), expected, "{setting}");
}
