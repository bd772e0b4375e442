//! Which gateways hold a session of which mailbox, under leases.
//! **Invariant:** presence is a hint; it changes only where (epoch, resumes, connection) is not older than what is there.

use async_trait::async_trait;
use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, GatewayId, MailboxId};
use chappe_protocol::time::Millis;

/// A session's claim to be where its device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The mailbox.
    pub mailbox: MailboxId,
    /// The device.
    pub device: DeviceId,
    /// The gateway that holds the session.
    pub gateway: GatewayId,
    /// The session's epoch.
    pub epoch: Epoch,
    /// How often it was resumed.
    pub resumes: u32,
    /// Its socket.
    pub connection: ConnectionId,
}

impl Lease {
    /// What leases are compared by: the greater is the newer.
    pub fn order(&self) -> (Epoch, u32, ConnectionId) {
        (self.epoch, self.resumes, self.connection)
    }
}

/// A live lease, as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceLease {
    /// The device.
    pub device: DeviceId,
    /// The gateway that holds its session.
    pub gateway: GatewayId,
    /// Since it was taken or renewed, by the clock that keeps it; below [`LEASE_MS`].
    pub age: Millis,
}

/// Leases. Losing all of them costs time, never an envelope.
#[async_trait]
pub trait Presence: Send + Sync + 'static {
    /// Takes or renews leases for [`LEASE_MS`]; returns, per lease, `false` if a newer one is there.
    async fn lease(&self, leases: &[Lease]) -> Vec<bool>;

    /// Gives a lease up, if it is still this one.
    async fn release(&self, lease: &Lease);

    /// The live leases of the mailbox, one per device, in the devices' order. `None`: presence does not answer.
    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>>;

    /// The same, of presence that is in this process: there is nothing to wait for. `None`: ask [`devices`](Self::devices).
    fn devices_at_hand(&self, _mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        None
    }

    /// The gateways with a live lease of any device of the mailbox, each once, in order; none if presence does not answer.
    async fn gateways(&self, mailbox: MailboxId) -> Vec<GatewayId> {
        gateways(&self.devices(mailbox).await.unwrap_or_default())
    }
}

/// The gateways of these leases, each once, in order.
pub(crate) fn gateways(leases: &[DeviceLease]) -> Vec<GatewayId> {
    let mut gateways: Vec<GatewayId> = leases.iter().map(|lease| lease.gateway).collect();
    gateways.sort_unstable();
    gateways.dedup();
    gateways
}

/// How long a lease lives unless renewed; gateways renew every third of it.
pub const LEASE_MS: u64 = 60_000;
