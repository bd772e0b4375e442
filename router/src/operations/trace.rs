//! Where an envelope is. **Invariant:** the answer holds times and counts, no content and nobody's name; it changes nothing.

use super::{Operations, reply};
use chappe_node::admin::{AdminReply, StatusCode};
use chappe_protocol::envelope::{DeviceFilter, PageEnd, SlotBody};
use chappe_protocol::id::{DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::time::UnixMillis;
use chappe_storage::StoreError;
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};

/// Cursors that are read at the same time.
const CURSORS_MAX: usize = 16;

/// Body of the call.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceCall {
    /// 32 hexadecimal digits.
    pub envelope_id: String,
    /// Whose mailbox to look in when no process remembers the envelope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// How far an envelope has come; the last state that is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceState {
    /// In the mailbox, not yet written to a socket, as far as this process knows.
    Committed,
    /// Written to a socket of a device, not yet acked by it.
    Delivered,
    /// Past its time: devices that have not acked it get its place without the payload.
    Expired,
    /// The store lost it before its time; an alarm was raised.
    Lost,
    /// Acked by every device that it was for.
    Acked,
    /// Its slot is deleted: every device has acked it, or it had expired.
    Trimmed,
    /// The user was erased.
    Erased,
}

/// Where an envelope is, as one process knows it from its memory and from the store. Times are Unix milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceReport {
    /// The last state that is true.
    pub state: TraceState,
    /// When a router of this process got the store's word for it.
    pub committed_at: Option<u64>,
    /// When the router of this process rang for it.
    pub doorbell_at: Option<u64>,
    /// How many gateways it rang.
    pub gateways: Option<u32>,
    /// When a gateway of this process last wrote it to a socket.
    pub delivered_at: Option<u64>,
    /// How often it did.
    pub deliveries: u32,
    /// Devices that it is for, as of now.
    pub devices: usize,
    /// How many of them have acked it.
    pub devices_acked: usize,
    /// When its payload goes.
    pub expires_at: Option<u64>,
}

impl TraceReport {
    /// What two processes know, together.
    #[must_use]
    pub fn with(self, other: &Self) -> Self {
        Self {
            state: self.state.max(other.state),
            committed_at: self.committed_at.or(other.committed_at),
            doorbell_at: self.doorbell_at.or(other.doorbell_at),
            gateways: self.gateways.or(other.gateways),
            delivered_at: self.delivered_at.max(other.delivered_at),
            deliveries: self.deliveries + other.deliveries,
            devices: self.devices.max(other.devices),
            devices_acked: self.devices_acked.max(other.devices_acked),
            expires_at: self.expires_at.or(other.expires_at),
        }
    }
}

impl Operations {
    /// Answers `POST /v1/trace`.
    pub(super) async fn trace(&self, body: &[u8]) -> AdminReply {
        let Ok(call) = serde_json::from_slice::<TraceCall>(body) else {
            let message = r#"the body must be {"envelope_id": …} or {"envelope_id": …, "user": …}"#;
            return reply(StatusCode::BAD_REQUEST, "body", message);
        };
        let Some(id) = EnvelopeId::from_hex(&call.envelope_id) else {
            let message = "an envelope_id is 32 hexadecimal digits, as the sender's result shows it";
            return reply(StatusCode::BAD_REQUEST, "envelope_id", message);
        };
        let user = match call.user.as_deref().map(UserId::new).transpose() {
            Ok(user) => user,
            Err(error) => return reply(StatusCode::BAD_REQUEST, "user", &error.to_string()),
        };
        match self.find(id, user.as_ref()).await {
            Ok(Some(report)) => AdminReply {
                status: StatusCode::OK,
                json: serde_json::to_string(&report).unwrap_or_default(),
            },
            Ok(None) => {
                let message = "not seen here lately: ask the other processes, or name the user that it was sent to \
                    (ids are kept for 2 days)";
                reply(StatusCode::NOT_FOUND, "unknown_envelope", message)
            }
            Err(error) => reply(StatusCode::SERVICE_UNAVAILABLE, "store", &error.to_string()),
        }
    }

    async fn find(&self, id: EnvelopeId, user: Option<&UserId>) -> Result<Option<TraceReport>, StoreError> {
        let seen = self.traces.seen(id);
        let place = match (&seen, user) {
            (Some(seen), _) => Some((seen.mailbox, seen.seq)),
            (None, Some(user)) => self.look_up(id, user).await?,
            (None, None) => None,
        };
        let Some((mailbox, seq)) = place else { return Ok(None) };
        let mut report = self.as_stored(mailbox, seq).await?;
        if let Some(seen) = seen {
            let told = |at: UnixMillis| (at > UnixMillis(0)).then_some(at.0);
            report.committed_at = told(seen.committed_at);
            report.doorbell_at = told(seen.rung_at);
            report.gateways = report.doorbell_at.map(|_| seen.gateways);
            report.delivered_at = told(seen.delivered_at);
            report.deliveries = seen.deliveries;
            if seen.deliveries > 0 {
                report.state = report.state.max(TraceState::Delivered);
            }
        }
        Ok(Some(report))
    }

    async fn look_up(&self, id: EnvelopeId, user: &UserId) -> Result<Option<(MailboxId, Seq)>, StoreError> {
        let Some(found) = self.store.user(user).await? else { return Ok(None) };
        let places = self.store.find(found.mailbox, &[id], None).await?;
        Ok(places.first().copied().flatten().map(|seq| (found.mailbox, seq)))
    }

    /// What the slot and the cursors of the devices say.
    async fn as_stored(&self, mailbox: MailboxId, seq: Seq) -> Result<TraceReport, StoreError> {
        let mut report = TraceReport {
            state: TraceState::Committed,
            committed_at: None,
            doorbell_at: None,
            gateways: None,
            delivered_at: None,
            deliveries: 0,
            devices: 0,
            devices_acked: 0,
            expires_at: None,
        };
        let page = match self.store.read(mailbox, Seq(seq.0.saturating_sub(1)), 1, 1).await {
            Ok(page) => page,
            Err(StoreError::Erased) => return Ok(TraceReport { state: TraceState::Erased, ..report }),
            Err(error) => return Err(error),
        };
        let Some(slot) = page.slots.into_iter().next().filter(|slot| slot.seq == seq) else {
            if matches!(page.end, PageEnd::Truncated(_)) {
                report.state = TraceState::Trimmed;
            }
            return Ok(report);
        };
        report.expires_at = Some(slot.expires_at.0);
        (report.devices, report.devices_acked) = self.acks(mailbox, seq, &slot.devices).await?;
        report.state = match slot.body {
            _ if report.devices > 0 && report.devices == report.devices_acked => TraceState::Acked,
            SlotBody::Expired => TraceState::Expired,
            SlotBody::Lost => TraceState::Lost,
            SlotBody::Present(_) => TraceState::Committed,
        };
        Ok(report)
    }

    /// How many devices it is for, and how many of those have acked it.
    async fn acks(
        &self,
        mailbox: MailboxId,
        seq: Seq,
        filter: &DeviceFilter,
    ) -> Result<(usize, usize), StoreError> {
        let set = self.store.devices(mailbox).await?;
        let targets: Vec<DeviceId> = set
            .devices
            .into_iter()
            .filter(|device| !device.revoked && filter.targets(&device.device, device.since, seq))
            .map(|device| device.device)
            .collect();
        let cursors = targets.iter().map(|device| self.store.cursor(mailbox, device));
        let cursors: Vec<_> = stream::iter(cursors.collect::<Vec<_>>()).buffered(CURSORS_MAX).collect().await;
        let mut acked = 0;
        for cursor in cursors {
            acked += usize::from(cursor? >= seq);
        }
        Ok((targets.len(), acked))
    }
}
