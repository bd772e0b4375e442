//! Settings of a router's work and of the cluster's parts, as every process that uses them reads them.
//! **Invariant:** whatever is set is read; what cannot work is refused before a port is bound.

use chappe_node::config::{ConfigError, between};
use chappe_storage::slotlog::LogConfig;
use serde::{Deserialize, Serialize};

/// What a mailbox may hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuotaConfig {
    /// Slots that are not trimmed yet.
    pub slots_max: u32,
    /// Their payload bytes.
    pub bytes_max: u64,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self { slots_max: 100_000, bytes_max: 1 << 30 }
    }
}

impl QuotaConfig {
    /// Refuses what is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        between("quota.slots_max", self.slots_max, 1, u32::MAX)
    }

    /// The settings of the slot log.
    pub fn log(&self) -> LogConfig {
        LogConfig { slots_max: u64::from(self.slots_max), bytes_max: self.bytes_max, ..LogConfig::default() }
    }
}
