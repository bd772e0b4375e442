//! The devices of a mailbox. **Invariant:** the set's version counts up with each one.

use crate::Device;
use chappe_protocol::id::DeviceId;
use chappe_protocol::time::UnixMillis;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(super) struct DeviceTable {
    pub(super) version: u64,
    pub(super) rows: BTreeMap<DeviceId, (Device, UnixMillis)>,
}

impl DeviceTable {
    /// Adds a device that is not there.
    pub(super) fn add(&mut self, row: Device, now: UnixMillis) -> Device {
        self.version += 1;
        self.rows.insert(row.device.clone(), (row.clone(), now));
        row
    }
}
