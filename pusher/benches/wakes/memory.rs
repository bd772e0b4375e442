//! What a wake that waits takes.

use super::peer::{APP, target};
use chappe_protocol::envelope::Urgency;
use chappe_protocol::id::{DeviceId, MailboxId, Seq};
use chappe_protocol::push::{AppName, PushSettings, Quiet};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_pusher::look::Sleeper;
use chappe_pusher::outbox::{Offered, Outbox, OutboxConfig};
use chappe_pusher::provider::{AppKey, ProviderKind};
use std::sync::Arc;

/// Bytes of this process that are resident.
pub(super) fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

pub(super) fn per_waiting_wake() {
    let devices = 50_000;
    let mut outbox: Outbox<Arc<()>> = Outbox::new(OutboxConfig::default());
    let hint = Arc::new(());
    let app = AppKey { provider: ProviderKind::Apns, app: AppName::new(APP).unwrap() };
    let before = resident();
    for number in 0..devices {
        let sleeper = Sleeper {
            device: DeviceId::new("phone-of-somebody").unwrap(),
            upto: Seq(1),
            attempt: 0,
            urgency: Urgency::Message,
            since: UnixMillis(1),
            expires_at: UnixMillis(1_000_000_000),
            due: UnixMillis(1),
            settings: PushSettings { targets: vec![target(number)], quiet: Quiet::default() },
        };
        let mailbox = MailboxId((number as u128).to_be_bytes());
        let guards = vec![hint.clone()];
        let offered = outbox.offer(mailbox, sleeper, app.clone(), Time(0) + Millis(1), guards, Time(0));
        assert_eq!(offered, Offered::Queued);
    }
    println!("a wake that waits: {} bytes resident", resident().saturating_sub(before) / devices);
    drop(outbox);
}
