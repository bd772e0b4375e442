//! What it costs to come, in statements of a real database (`CHAPPE_TEST_CQL_URL`): cold to a mailbox of 100,000 envelopes, and for
//! the first time.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and tell what they counted"
)]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL_URL";

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{ConnectionId, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::rows::Rows;
use chappe_storage::scylla::{ScyllaRows, ScyllaStats};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Appended, Attach, Entry, EntryPayload, Store};
use std::sync::Arc;

const ENVELOPES: u64 = 100_000;

/// A process that has seen nothing yet.
struct Fresh {
    rows: Arc<ScyllaRows>,
    log: SlotLog<ScyllaRows>,
}

async fn fresh() -> Fresh {
    let world: Arc<dyn World> = Arc::new(TestWorld::new(7));
    let config = cql::config_of(cql::keyspace().await);
    let rows = Arc::new(ScyllaRows::connect(config, Arc::clone(&world)).await.unwrap());
    // By default such a mailbox is full.
    let config = LogConfig { slots_max: 2 * ENVELOPES, ..LogConfig::default() };
    let log = SlotLog::new(Arc::clone(&rows), world, config);
    Fresh { rows, log }
}

impl Fresh {
    fn entry(&self, mailbox: MailboxId, n: u64) -> Entry {
        let mut id = *mailbox.as_bytes();
        id[..8].copy_from_slice(&n.to_be_bytes());
        let at = self.rows.now();
        Entry {
            envelope_id: EnvelopeId(id),
            sender: Sender { user: UserId::new("ben").unwrap(), device: DeviceId::new("phone").unwrap() },
            devices: DeviceFilter::All,
            at,
            expires_at: at + Millis::from_secs(86_400),
            urgency: Urgency::Message,
            payload: EntryPayload::Inline(Bytes::from(vec![7; 100])),
        }
    }

    /// Appends so many envelopes, 64 at a time.
    async fn fill(&self, mailbox: MailboxId, envelopes: u64) {
        let mut base = None;
        for first in (1..=envelopes).step_by(64) {
            let entries: Vec<Entry> =
                (first..=envelopes.min(first + 63)).map(|n| self.entry(mailbox, n)).collect();
            let reply = self.log.append(mailbox, &entries, base).await.unwrap();
            base = Some(LogConfig::default().shape.bucket_of(reply.head));
        }
    }

    /// What the statements since then were.
    fn since(&self, before: &ScyllaStats) -> [u64; 4] {
        let now = self.rows.stats();
        [
            now.appends - before.appends + now.conditionals - before.conditionals,
            now.serial_reads - before.serial_reads,
            now.reads - before.reads,
            now.writes - before.writes,
        ]
    }
}

#[tokio::test]
async fn a_long_mailbox_costs_as_much_as_a_short_one() {
    let device = DeviceId::new("tablet").unwrap();
    let attach = |n| Attach { connection: ConnectionId([n; 16]), cursor: None };
    let mut costs = Vec::new();
    for (n, envelopes) in [(1, 300), (2, ENVELOPES)] {
        let mailbox = MailboxId([n; 16]);
        let writer = fresh().await;
        // The device is known, and away while the mailbox fills.
        writer.log.attach(mailbox, &device, attach(1)).await.unwrap();
        writer.fill(mailbox, envelopes).await;

        // A gateway that comes to it cold: the session, and the first page.
        let gateway = fresh().await;
        let before = gateway.rows.stats();
        let attached = gateway.log.attach(mailbox, &device, attach(2)).await.unwrap();
        assert_eq!((attached.from, attached.head), (Seq(0), Seq(envelopes)));
        let page = gateway.log.read(mailbox, attached.from, 64, 256 * 1024).await.unwrap();
        assert_eq!(page.slots.len(), 64);
        let first_page = gateway.since(&before);
        let before = gateway.rows.stats();
        let page = gateway.log.read(mailbox, Seq(64), 64, 256 * 1024).await.unwrap();
        assert_eq!(page.slots.len(), 64);
        let next_page = gateway.since(&before);

        // A router that comes to it cold, with the base that a gateway learned before: its first append and its second.
        let router = fresh().await;
        let base = Some(LogConfig::default().shape.bucket_of(attached.head));
        let before = router.rows.stats();
        let reply = router.log.append(mailbox, &[router.entry(mailbox, envelopes + 1)], base).await.unwrap();
        assert_eq!(reply.entries, [Appended::Committed(Seq(envelopes + 1))]);
        let first_append = router.since(&before);
        let before = router.rows.stats();
        router.log.append(mailbox, &[router.entry(mailbox, envelopes + 2)], base).await.unwrap();
        let next_append = router.since(&before);
        println!(
            "{envelopes} envelopes [conditional, serial reads, reads, writes]: attach and first page {first_page:?}, next page \
             {next_page:?}, first append {first_append:?}, next append {next_append:?}"
        );
        costs.push([first_page, next_page, first_append, next_append]);
    }
    let [short, long] = [&costs[0], &costs[1]];
    assert!(
        long[0].iter().sum::<u64>() <= 12,
        "attach and the first page take a few statements: {:?}",
        long[0]
    );
    assert_eq!(long, short, "its length does not matter");
}

/// A person's first device, and the second one: each Paxos round is some milliseconds of the database's time when everybody comes at once.
#[tokio::test]
async fn a_first_attach_costs_two_transactions_and_one_serial_read() {
    let (gateway, attach) = (fresh().await, |n| Attach { connection: ConnectionId([n; 16]), cursor: None });
    let (user, phone, web) =
        (UserId::new("anna").unwrap(), DeviceId::new("phone").unwrap(), DeviceId::new("web").unwrap());
    assert_eq!(gateway.log.user(&user).await, Ok(None));
    let before = gateway.rows.stats();
    let made = gateway.log.create_user(&user).await.unwrap();
    let attached = gateway.log.attach(made.mailbox, &phone, attach(1)).await.unwrap();
    assert_eq!((attached.from, attached.head, attached.device.since), (Seq(0), Seq(0), Seq(0)));
    assert_eq!(gateway.since(&before), [2, 1, 2, 2], "conditional, serial reads, reads, writes");

    let before = gateway.rows.stats();
    gateway.log.attach(made.mailbox, &web, attach(2)).await.unwrap();
    assert_eq!(gateway.since(&before), [1, 1, 2, 1], "a second device");
    let before = gateway.rows.stats();
    gateway.log.attach(made.mailbox, &phone, attach(3)).await.unwrap();
    assert_eq!(gateway.since(&before), [0, 1, 2, 1], "back again");

    // Somebody else was first: the same user, at one transaction and one serial read more.
    let before = gateway.rows.stats();
    assert_eq!(gateway.log.create_user(&user).await, Ok(made));
    assert_eq!(gateway.since(&before), [1, 1, 0, 0]);
}
