//! What the application submits and what it gets back. **Invariant:** a receipt tells the fate of every target, in the order given.

use crate::error::{ClientError, check_payload};
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::frame::{Limits, Submit, Target};
use chappe_protocol::id::{EnvelopeId, SubmitId, UserId};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::Millis;

/// One submit in the making: payloads and for whom they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    payloads: Vec<Bytes>,
    targets: Vec<(String, DeviceFilter, usize)>,
    ttl: Millis,
    urgency: Urgency,
}

impl Outgoing {
    /// A submit of one payload, already encrypted: Chappe never looks into it.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            payloads: vec![payload.into()],
            targets: Vec::new(),
            ttl: Millis(0),
            urgency: Urgency::default(),
        }
    }

    /// The payload for all devices of a user.
    #[must_use]
    pub fn to(self, user: impl Into<String>) -> Self {
        self.to_devices(user, DeviceFilter::All)
    }

    /// The payload for some devices of a user.
    #[must_use]
    pub fn to_devices(mut self, user: impl Into<String>, devices: DeviceFilter) -> Self {
        self.targets.push((user.into(), devices, 0));
        self
    }

    /// Another payload for some devices of a user, as pairwise encryption needs it.
    #[must_use]
    pub fn to_with(
        mut self,
        user: impl Into<String>,
        devices: DeviceFilter,
        payload: impl Into<Bytes>,
    ) -> Self {
        self.payloads.push(payload.into());
        self.targets.push((user.into(), devices, self.payloads.len() - 1));
        self
    }

    /// How long the payload may be kept; default and at most the server's maximum (30 days).
    #[must_use]
    pub fn ttl(mut self, ttl: Millis) -> Self {
        self.ttl = ttl;
        self
    }

    /// How soon it matters to the person; default [`Urgency::Message`].
    #[must_use]
    pub fn urgency(mut self, urgency: Urgency) -> Self {
        self.urgency = urgency;
        self
    }

    /// Checks everything that can be checked before the network.
    pub(crate) fn into_submit(
        self,
        submit_id: SubmitId,
        limits: &Limits,
        ephemeral: bool,
    ) -> Result<Submit, ClientError> {
        if self.targets.is_empty() {
            return Err(ClientError::Invalid("a submit needs at least one target"));
        }
        if self.targets.len() > limits.targets_max as usize {
            let max = u64::from(limits.targets_max);
            return Err(ClientError::TooLarge { limit_name: "targets_max", max });
        }
        for payload in &self.payloads {
            check_payload(payload.len(), limits)?;
            // 0: a server that does not tell.
            let max = limits.ephemeral_bytes_max;
            if ephemeral && max > 0 && payload.len() > max as usize {
                return Err(ClientError::TooLarge { limit_name: "ephemeral_bytes_max", max: max.into() });
            }
        }
        let mut targets = Vec::with_capacity(self.targets.len());
        for (number, (user, devices, payload)) in (0u32..).zip(self.targets) {
            let user = UserId::new(&user).map_err(|_| {
                ClientError::Invalid("a user name has 1 to 128 bytes and no control characters")
            })?;
            targets.push(Target { number, user, devices, device_set_version: None, payload });
        }
        let submit = Submit {
            submit_id,
            attempt: 1,
            payloads: self.payloads,
            targets,
            ttl: Millis(self.ttl.0.min(limits.ttl_max.0)),
            urgency: self.urgency,
            ephemeral,
        };
        // The wire adds less than this to each payload and target; the exact size is the encoder's business.
        let around = submit_bytes(&submit) + 64;
        if around > limits.frame_bytes_max as usize {
            let max = u64::from(limits.frame_bytes_max);
            return Err(ClientError::TooLarge { limit_name: "frame_bytes_max", max });
        }
        Ok(submit)
    }
}

/// About how many bytes a submit takes, never less than on the wire.
pub(crate) fn submit_bytes(submit: &Submit) -> usize {
    let payloads: usize = submit.payloads.iter().map(|payload| payload.len() + 8).sum();
    let targets: usize = submit
        .targets
        .iter()
        .map(|target| {
            let devices = match &target.devices {
                DeviceFilter::All => 0,
                DeviceFilter::Only(devices) | DeviceFilter::AllBut(devices) => {
                    devices.iter().map(|device| device.as_str().len() + 4).sum()
                }
            };
            target.user.as_str().len() + devices + 48
        })
        .sum();
    payloads + targets + 64
}

/// The fate of one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetReceipt {
    /// Whom.
    pub user: UserId,
    /// Its fate; always decided.
    pub outcome: Outcome,
    /// With [`Outcome::Accepted`]: the envelope's id, the same one that the receiver sees.
    pub envelope_id: Option<EnvelopeId>,
}

/// What became of a submit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The submit's id; keep it secret, it is the key of its idempotence.
    pub submit_id: SubmitId,
    /// One per target, in the order they were named.
    pub targets: Vec<TargetReceipt>,
}

impl Receipt {
    /// Whether every target has it durably in its mailbox.
    pub fn all_accepted(&self) -> bool {
        self.targets.iter().all(|target| target.outcome == Outcome::Accepted)
    }
}
