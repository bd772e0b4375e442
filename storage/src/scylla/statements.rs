//! The statements, each prepared once. **Invariant:** each names its partition; none reads more than it says LIMIT or than one
//! key holds; only those of one kind write a column.

use super::errors::Kind;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileHandle};
use scylla::client::session::Session;
use scylla::errors::{PrepareError, RequestAttemptError};
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::retry::{
    FallthroughRetryPolicy, RequestInfo, RetryDecision, RetryPolicy, RetrySession,
};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::{Consistency, SerialConsistency, Statement as Unprepared};
use std::sync::Arc;
use std::time::Duration;

/// A prepared statement and what it does.
pub(super) struct Statement {
    pub(super) kind: Kind,
    pub(super) prepared: PreparedStatement,
}

macro_rules! statements {
    ($($name:ident: $kind:ident = $text:literal,)+) => {
        pub(super) struct Statements { $(pub(super) $name: Statement,)+ }

        /// All of them, in order; `{}` is the keyspace.
        const TEXTS: &[(Kind, &str)] = &[$((Kind::$kind, $text),)+];

        impl Statements {
            /// Prepares all of them.
            pub(super) async fn prepare(
                session: &Session,
                keyspace: &str,
                profiles: &Profiles,
            ) -> Result<Self, PrepareError> {
                let prepare = TEXTS.iter().map(|(kind, text)| {
                    let text = text.replace("{}", keyspace);
                    async move {
                        let mut prepared = session.prepare(Unprepared::new(text)).await?;
                        prepared.set_execution_profile_handle(Some(profiles.of(*kind).clone()));
                        Ok::<_, PrepareError>(Statement { kind: *kind, prepared })
                    }
                });
                let mut all = futures_util::future::try_join_all(prepare).await?.into_iter();
                Ok(Self { $($name: all.next().ok_or(PrepareError::PreparedStatementIdsMismatch)?,)+ })
            }
        }
    };
}

statements! {
    // The register of a bucket. DISTINCT: the partition's statics, whatever rows it has.
    head: SerialRead = "SELECT DISTINCT mailbox, bucket, head, opened_at, bytes_total FROM {}.mlog \
        WHERE mailbox = ? AND bucket = ?",

    // An append, in this order: a head, then for each entry slot, payload, id. `opened_at` and `bytes_total` stand in the
    // conditions, always true or always null with `head`, because a refusal shows the columns of its conditions.
    open_head: Append = "UPDATE {}.mlog SET head = ?, opened_at = ?, bytes_total = ? WHERE mailbox = ? AND bucket = ? \
        IF head = null AND opened_at = null AND bytes_total = null",
    move_head: Append = "UPDATE {}.mlog SET head = ?, opened_at = ?, bytes_total = ? WHERE mailbox = ? AND bucket = ? \
        IF head = ? AND opened_at >= 0 AND bytes_total >= 0",
    slot_inline: Append = "INSERT INTO {}.mlog \
        (mailbox, bucket, kind, k, form, envelope_id, targets, at, expires_at, urgency) \
        VALUES (?, ?, 0, ?, 0, ?, ?, ?, ?, ?)",
    slot_ref: Append = "INSERT INTO {}.mlog \
        (mailbox, bucket, kind, k, form, envelope_id, targets, at, expires_at, urgency, payload_id, payload_bytes) \
        VALUES (?, ?, 0, ?, 1, ?, ?, ?, ?, ?, ?, ?)",
    slot_payload: Append = "UPDATE {}.mlog USING TTL ? SET sender = ?, payload = ? \
        WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k = ?",
    slot_sender: Append = "UPDATE {}.mlog USING TTL ? SET sender = ? \
        WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k = ?",
    id: Append = "UPDATE {}.mlog USING TTL ? SET seq = ? \
        WHERE mailbox = ? AND bucket = ? AND kind = 1 AND k = ? IF seq = null",

    seal_open: Conditional = "UPDATE {}.mlog SET head = ?, opened_at = ?, bytes_total = 0 \
        WHERE mailbox = ? AND bucket = ? IF head = null",
    seal: Conditional = "UPDATE {}.mlog SET head = ? WHERE mailbox = ? AND bucket = ? IF head = ?",
    ids: Read = "SELECT k, seq FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 1 AND k IN ?",
    slots: Read = "SELECT k, form, envelope_id, targets, at, expires_at, urgency, payload_id, payload_bytes, sender, payload \
        FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k > ? LIMIT ?",
    slots_serial: SerialRead = "SELECT \
        k, form, envelope_id, targets, at, expires_at, urgency, payload_id, payload_bytes, sender, payload \
        FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k > ? LIMIT ?",
    mark_lost: Conditional = "UPDATE {}.mlog SET form = 3 WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k = ? \
        IF payload = null",
    head_time: SerialRead = "SELECT writetime(head) FROM {}.mlog WHERE mailbox = ? AND bucket = ? LIMIT 1",
    slot_times: SerialRead = "SELECT k, writetime(form) FROM {}.mlog \
        WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k > ? LIMIT ?",
    delete_slots: Write = "DELETE FROM {}.mlog USING TIMESTAMP ? WHERE mailbox = ? AND bucket = ? AND kind = 0",

    hint: Read = "SELECT bucket FROM {}.hint WHERE mailbox = ?",
    raise_hint: Write = "UPDATE {}.hint USING TIMESTAMP ? SET bucket = ? WHERE mailbox = ?",
    floor: Read = "SELECT bucket, bytes_total FROM {}.floor WHERE mailbox = ?",
    floor_serial: SerialRead = "SELECT bucket, bytes_total FROM {}.floor WHERE mailbox = ?",
    raise_floor: Conditional = "UPDATE {}.floor SET bucket = ?, bytes_total = ? WHERE mailbox = ? IF bucket = ?",

    cursor: Read = "SELECT seq FROM {}.cursor WHERE mailbox = ? AND device = ?",
    raise_cursor: Write = "UPDATE {}.cursor USING TIMESTAMP ? SET seq = ? WHERE mailbox = ? AND device = ?",
    delete_cursors: Write = "DELETE FROM {}.cursor USING TIMESTAMP ? WHERE mailbox = ?",

    woken: Read = "SELECT seq, try, at FROM {}.woken WHERE mailbox = ? AND device = ?",
    raise_woken: Write = "UPDATE {}.woken USING TIMESTAMP ? SET seq = ?, try = ?, at = ? \
        WHERE mailbox = ? AND device = ?",
    delete_wokens: Write = "DELETE FROM {}.woken USING TIMESTAMP ? WHERE mailbox = ?",

    device: Read = "SELECT since, revoked, session FROM {}.device WHERE mailbox = ? AND device = ?",
    device_serial: SerialRead = "SELECT since, revoked, session FROM {}.device WHERE mailbox = ? AND device = ?",
    devices: Read = "SELECT version, device, since, revoked, created_at, session, session_at \
        FROM {}.device WHERE mailbox = ? AND device > ? LIMIT ?",
    set_version: SerialRead = "SELECT DISTINCT mailbox, version FROM {}.device WHERE mailbox = ?",
    raise_set_version: Conditional = "UPDATE {}.device SET version = ? WHERE mailbox = ? IF version = ?",
    create_device: Conditional = "UPDATE {}.device SET since = ?, revoked = false, created_at = ? \
        WHERE mailbox = ? AND device = ? IF since = null",
    revoke_device: Conditional = "UPDATE {}.device SET revoked = true, push = null \
        WHERE mailbox = ? AND device = ? IF revoked = false",
    raise_session: Write = "UPDATE {}.device USING TIMESTAMP ? SET session = ?, session_at = ? \
        WHERE mailbox = ? AND device = ?",
    push: Read = "SELECT revoked, push FROM {}.device WHERE mailbox = ? AND device = ?",
    set_push: Conditional = "UPDATE {}.device SET push = ? WHERE mailbox = ? AND device = ? IF revoked = false",
    replace_push: Conditional = "UPDATE {}.device SET push = ? WHERE mailbox = ? AND device = ? IF push = ?",
    device_times: SerialRead = "SELECT device, writetime(since), writetime(revoked), writetime(push) FROM {}.device \
        WHERE mailbox = ? AND device > ? LIMIT ?",
    delete_devices: Write = "DELETE FROM {}.device USING TIMESTAMP ? WHERE mailbox = ?",

    user: Read = "SELECT mailbox, erased FROM {}.user WHERE user = ?",
    user_serial: SerialRead = "SELECT mailbox, erased FROM {}.user WHERE user = ?",
    create_user: Conditional = "INSERT INTO {}.user (user, mailbox, erased) VALUES (?, ?, false) IF NOT EXISTS",
    replace_user: Conditional = "UPDATE {}.user SET mailbox = ?, erased = false WHERE user = ? \
        IF mailbox = ? AND erased = true",
    mark_erased: Conditional = "UPDATE {}.user SET erased = true WHERE user = ? IF mailbox = ?",

    put_payload: Conditional = "INSERT INTO {}.payload (payload_id, bytes) VALUES (?, ?) IF NOT EXISTS USING TTL ?",
    payload: Read = "SELECT bytes FROM {}.payload WHERE payload_id = ?",
    delete_payload: Conditional = "DELETE FROM {}.payload WHERE payload_id = ? IF EXISTS",

    add_pending: Write = "INSERT INTO {}.pending (shard, minute, mailbox) VALUES (?, ?, ?)",
    add_pending_at: Write = "INSERT INTO {}.pending (shard, minute, mailbox) VALUES (?, ?, ?) USING TTL ?",
    pending: Read = "SELECT mailbox FROM {}.pending WHERE shard = ? AND minute = ? AND mailbox > ? LIMIT ?",

    swept: Read = "SELECT upto FROM {}.swept WHERE shard = ?",
    raise_swept: Write = "UPDATE {}.swept USING TIMESTAMP ? SET upto = ? WHERE shard = ?",
}

/// How statements of each kind are sent.
pub(super) struct Profiles {
    read: ExecutionProfileHandle,
    serial_read: ExecutionProfileHandle,
    write: ExecutionProfileHandle,
}

impl Profiles {
    /// Reads go to the next node once if the first fails. Writes never: what an error means is decided in one place, and a
    /// second attempt's error would hide the first's. No speculation anywhere. Transactions prefer one replica, so that two
    /// routers do not fight over the ballot through two coordinators.
    pub(super) fn new(datacenter: Option<&str>, timeout: Duration) -> Self {
        let policy = |shuffle: bool| {
            let mut policy = DefaultPolicy::builder().token_aware(true).enable_shuffling_replicas(shuffle);
            if let Some(datacenter) = datacenter {
                policy = policy.prefer_datacenter(datacenter.into()).permit_dc_failover(false);
            }
            policy.build()
        };
        let profile = |consistency, shuffle, retry: Arc<dyn RetryPolicy>| {
            ExecutionProfile::builder()
                .consistency(consistency)
                .serial_consistency(Some(SerialConsistency::LocalSerial))
                .request_timeout(Some(timeout))
                .retry_policy(retry)
                .speculative_execution_policy(None)
                .load_balancing_policy(policy(shuffle))
                .build()
                .into_handle()
        };
        Self {
            read: profile(Consistency::LocalQuorum, true, Arc::new(OnceElsewhere)),
            serial_read: profile(Consistency::LocalSerial, false, Arc::new(OnceElsewhere)),
            write: profile(Consistency::LocalQuorum, false, Arc::new(FallthroughRetryPolicy::new())),
        }
    }

    pub(super) fn of(&self, kind: Kind) -> &ExecutionProfileHandle {
        match kind {
            Kind::Read => &self.read,
            Kind::SerialRead => &self.serial_read,
            Kind::Write | Kind::Conditional | Kind::Append => &self.write,
        }
    }
}

/// For reads: one more attempt, at the next node, whatever the first met, unless the statement itself is wrong.
#[derive(Debug)]
struct OnceElsewhere;

struct OnceElsewhereSession {
    tried: bool,
}

impl RetryPolicy for OnceElsewhere {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(OnceElsewhereSession { tried: false })
    }
}

impl RetrySession for OnceElsewhereSession {
    fn decide_should_retry(&mut self, request: RequestInfo<'_>) -> RetryDecision {
        let wrong =
            matches!(request.error, RequestAttemptError::DbError(error, _) if !error.can_speculative_retry());
        if self.tried || wrong {
            return RetryDecision::DontRetry;
        }
        self.tried = true;
        RetryDecision::RetryNextTarget(None)
    }

    fn reset(&mut self) {
        self.tried = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statement_names_its_partition_and_stays_within_both_dialects() {
        for (kind, text) in TEXTS {
            for forbidden in ["ALLOW FILTERING", "BATCH", "COUNTER", "TOKEN("] {
                assert!(!text.contains(forbidden), "{text}");
            }
            let partition =
                ["mailbox = ?", "user = ?", "payload_id = ?", "shard = ? AND minute = ?", "INSERT INTO"];
            let swept = text.contains(".swept ") && text.ends_with("WHERE shard = ?");
            assert!(swept || partition.iter().any(|key| text.contains(key)), "{text}");
            assert!(!text.contains(".mlog WHERE mailbox = ?") || text.contains("AND bucket = ?"), "{text}");
            assert_eq!(text.starts_with("SELECT"), kind.reads(), "{text}");
            // Neither database takes a timestamp of the client in a transaction.
            let conditional = text.contains(" IF ");
            assert!(!conditional || !text.contains("TIMESTAMP"), "{text}");
            assert!(!conditional || matches!(kind, Kind::Conditional | Kind::Append), "{text}");
            assert!(*kind != Kind::Conditional || conditional, "{text}");
            assert!(conditional || !text.contains("push ="), "push targets are conditional: {text}");
        }
    }

    #[test]
    fn each_kind_is_sent_at_its_consistency_and_never_twice_at_once() {
        let profiles = Profiles::new(Some("here"), Duration::from_secs(1));
        for (kind, consistency) in [
            (Kind::Read, Consistency::LocalQuorum),
            (Kind::SerialRead, Consistency::LocalSerial),
            (Kind::Write, Consistency::LocalQuorum),
            (Kind::Conditional, Consistency::LocalQuorum),
            (Kind::Append, Consistency::LocalQuorum),
        ] {
            let profile = profiles.of(kind).to_profile();
            assert_eq!(profile.get_consistency(), consistency, "{kind:?}");
            assert_eq!(profile.get_serial_consistency(), Some(SerialConsistency::LocalSerial));
            assert!(profile.get_speculative_execution_policy().is_none(), "{kind:?}");
            let retries = format!("{:?}", profile.get_retry_policy());
            assert_eq!(retries.contains("Fallthrough"), !kind.reads(), "{kind:?}: {retries}");
        }
        let serial = |start: &str| {
            TEXTS.iter().any(|(kind, text)| *kind == Kind::SerialRead && text.starts_with(start))
        };
        assert!(serial("SELECT DISTINCT mailbox, bucket, head"), "a head register is read at SERIAL");
    }
}
