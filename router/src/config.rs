//! What a router may use up. **Invariant:** every bound of this crate stands here, in items and in bytes.

use crate::trace::Traces;
use chappe_protocol::frame::Limits;
use chappe_protocol::id::BucketShape;
use chappe_protocol::time::Millis;
use std::sync::Arc;

/// The bounds of a router. The defaults fit one process with a few hundred megabytes to spare.
#[derive(Debug, Clone)]
pub struct RouterConfig {
    /// How many slots a bucket holds; must be the store's.
    pub shape: BucketShape,
    /// Payload bytes of one entry.
    pub payload_bytes_max: usize,
    /// Time to live of a payload; also what an entry with a TTL of 0 gets.
    pub ttl_max: Millis,
    /// The longest budget that a request may bring.
    pub budget_max: Millis,
    /// Lists (mailboxes) of one submit, and targets of one ephemeral submit.
    pub lists_max: usize,
    /// Entries of one list.
    pub list_entries_max: usize,
    /// Devices named by one filter.
    pub filter_devices_max: usize,
    /// Entries of all submits under way; beyond it a submit is refused as a whole.
    pub queue_entries_max: usize,
    /// Payload bytes of all submits under way, with the names in their device filters; beyond it a submit is refused as a whole.
    pub queue_bytes_max: usize,
    /// Entries that wait for one mailbox; beyond it a list is refused.
    pub mailbox_entries_max: usize,
    /// Payload bytes that wait for one mailbox, with the names in their device filters; beyond it a list is refused.
    pub mailbox_bytes_max: usize,
    /// Entries of one batch; the store takes at most 64.
    pub batch_entries_max: usize,
    /// Payload bytes of one batch; the store takes at most 512 KiB.
    pub batch_bytes_max: usize,
    /// Appends under way in the store.
    pub appends_in_flight_max: usize,
    /// Mailboxes that one submit works on at the same time.
    pub fanout_parallel_max: usize,
    /// A payload larger than this that several mailboxes get is stored once.
    pub shared_payload_bytes_min: usize,
    /// Doorbells that are being rung; beyond it bells are dropped.
    pub doorbells_max: usize,
    /// Their payload bytes, with the names in their device filters and 256 for the rest of each.
    pub doorbell_bytes_max: usize,
    /// Payload bytes of one ephemeral submit's target; larger ones are dropped.
    pub ephemeral_bytes_max: usize,
    /// Device sets kept for at most a second.
    pub device_sets_max: usize,
    /// Probes under way.
    pub probes_in_flight_max: usize,
    /// Mailboxes of one probe.
    pub probe_mailboxes_max: usize,
    /// Mailboxes that one probe reads at the same time.
    pub probe_parallel_max: usize,
    /// Pending mailboxes kept between probes; with more than that, probes read all heads outright.
    pub pending_mailboxes_max: usize,
    /// How long an answer to "which mailboxes are pending?" is used again.
    pub pending_fresh: Millis,
    /// The first pause before an append that got no answer is tried again; doubles up to 32 times itself, half of it random.
    pub retry_pause: Millis,
    /// Remembers the steps of envelopes for operators; the roles of one process share it.
    pub traces: Arc<Traces>,
    /// An error that tests plant, to see that they find it.
    #[cfg(feature = "testing")]
    pub planted: Option<crate::planted::PlantedBug>,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            shape: BucketShape::PRODUCTION,
            payload_bytes_max: 96 * 1024,
            ttl_max: Millis::from_secs(30 * 24 * 3600),
            budget_max: Millis::from_secs(30),
            lists_max: 1024,
            list_entries_max: 1024,
            filter_devices_max: 1024,
            queue_entries_max: 65_536,
            queue_bytes_max: 64 * 1024 * 1024,
            mailbox_entries_max: 4096,
            mailbox_bytes_max: 8 * 1024 * 1024,
            batch_entries_max: 64,
            batch_bytes_max: 512 * 1024,
            appends_in_flight_max: 1024,
            fanout_parallel_max: 64,
            shared_payload_bytes_min: 256,
            doorbells_max: 65_536,
            doorbell_bytes_max: 32 * 1024 * 1024,
            ephemeral_bytes_max: Limits::default().ephemeral_bytes_max as usize,
            device_sets_max: 16_384,
            probes_in_flight_max: 16,
            probe_mailboxes_max: 500,
            probe_parallel_max: 16,
            pending_mailboxes_max: crate::probe::PENDING_MAX,
            pending_fresh: Millis::from_secs(3),
            retry_pause: Millis(10),
            traces: Arc::default(),
            #[cfg(feature = "testing")]
            planted: None,
        }
    }
}
