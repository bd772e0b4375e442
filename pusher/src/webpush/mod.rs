//! Web Push (RFC 8030), UnifiedPush among it. **Invariant:** the endpoint comes from a stranger, so nothing is dialled but an
//! allowed host at a public address, unless the configuration names the host; and what is sent is `{"sync":1}`, encrypted.

mod encrypt;
mod hosts;
mod table;
mod vapid;

pub use hosts::{BadHosts, Hosts};
pub use table::TABLE;
pub use vapid::{BadVapid, Vapid};

use crate::answers::{
    BAD_TARGET, BAD_WAKE, EXPIRED, HOST_NOT_ALLOWED, SIGNING_FAILED, UNKNOWN_APP, decide, unanswered,
};
use crate::gate::{Budget, Gate};
use crate::provider::{Answer, Provider, Wake};
use crate::transport::{Dialer, Origin, Pool, Post, Wires};
use async_trait::async_trait;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::push::{PushAddress, PushTarget};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use encrypt::{Subscription, encrypt};
use http::{HeaderMap, HeaderValue};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What every wake says.
const PLAIN: &[u8] = br#"{"sync":1}"#;
/// Half the life of a VAPID token.
const RENEW: Millis = Millis::from_secs(vapid::LIFE_S / 2);
/// No push service keeps a message longer (RFC 8030 §5.2 lets it shorten what it is asked).
const TTL_S_MAX: u64 = 28 * 24 * 3600;

struct Authorization {
    value: HeaderValue,
    at: Time,
    wall: UnixMillis,
}

/// One push service.
struct Service {
    origin: Origin,
    pool: Pool,
    gate: Gate,
    authorization: Mutex<Option<Authorization>>,
}

#[derive(Default)]
struct Services {
    by_origin: BTreeMap<Origin, (u64, Arc<Service>)>,
    uses: u64,
}

/// One app to all push services that its devices chose.
pub struct WebPush {
    vapid: Vapid,
    hosts: Hosts,
    wires: Wires,
    private_dialer: Arc<dyn Dialer>,
    services_max: usize,
    services: Mutex<Services>,
}

impl WebPush {
    /// `wires.dialer` must refuse what is not public ([`crate::transport::PublicDialer`]); `private_dialer` is for the hosts
    /// that the configuration calls private. At most `services_max` push services are held; the longest unused gives way.
    pub fn new(
        vapid: Vapid,
        hosts: Hosts,
        services_max: usize,
        wires: Wires,
        private_dialer: Arc<dyn Dialer>,
    ) -> Self {
        let services = Mutex::default();
        Self { vapid, hosts, wires, private_dialer, services_max: services_max.max(1), services }
    }

    fn service(&self, origin: Origin) -> Arc<Service> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.uses += 1;
        let uses = services.uses;
        if let Some((used, service)) = services.by_origin.get_mut(&origin) {
            *used = uses;
            return service.clone();
        }
        if services.by_origin.len() >= self.services_max {
            let oldest =
                services.by_origin.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|oldest| services.by_origin.remove(&oldest)); // ends with the last that uses it
        }
        let mut wires = self.wires.clone();
        if self.hosts.is_private(origin.host()) {
            wires.dialer = self.private_dialer.clone();
        }
        let service = Arc::new(Service {
            pool: wires.pool(origin.clone(), wires.limits.connections_max),
            gate: Gate::new(wires.world.clone()),
            authorization: Mutex::new(None),
            origin: origin.clone(),
        });
        services.by_origin.insert(origin, (uses, service.clone()));
        service
    }

    fn authorization(&self, service: &Service) -> Option<HeaderValue> {
        let (now, wall) = (self.wires.world.now(), self.wires.world.wall());
        let mut held = service.authorization.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = &*held {
            // The wall clock may jump, in both directions; the push service judges by its own.
            let by_wall = wall.0.abs_diff(held.wall.0);
            if now - held.at < RENEW && by_wall < RENEW.0 {
                return Some(held.value.clone());
            }
        }
        let value = self.vapid.authorization(&service.origin.serialized(), wall.0 / 1000)?;
        *held = Some(Authorization { value: value.clone(), at: now, wall });
        Some(value)
    }

    async fn send(&self, origin: Origin, path: String, keys: Subscription<'_>, wake: &Wake) -> Answer {
        let world = &*self.wires.world;
        let Some(ttl) = wake.expires_at.0.checked_sub(world.wall().0).filter(|left| *left > 0) else {
            return EXPIRED.answer(None, None);
        };
        let Some(body) = encrypt(keys, PLAIN, world) else { return BAD_TARGET.answer(None, None) };
        let service = self.service(origin);
        let Some(authorization) = self.authorization(&service) else {
            return SIGNING_FAILED.answer(None, None);
        };
        let Some(headers) = headers(wake, authorization, ttl.div_ceil(1000)) else {
            return BAD_WAKE.answer(None, None);
        };
        let ticket = match service.gate.admit() {
            Ok(ticket) => ticket,
            Err(answer) => return answer,
        };
        let post = Post { path, headers, body: body.into() };
        let outcome = service.pool.send_within(&post, Budget::start(world).left()).await;
        service.gate.note(ticket, &outcome);
        match outcome {
            Ok(reply) => decide(TABLE, &reply, None, None),
            Err(error) => unanswered(error),
        }
    }
}

fn headers(wake: &Wake, authorization: HeaderValue, ttl_s: u64) -> Option<HeaderMap> {
    let urgency = match wake.urgency {
        Urgency::Call => "high",
        Urgency::Message => "normal",
        Urgency::Background => "low",
    };
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert("authorization", authorization);
    headers.insert("content-encoding", HeaderValue::from_static("aes128gcm"));
    headers.insert("content-type", HeaderValue::from_static("application/octet-stream"));
    headers.insert("ttl", HeaderValue::from(ttl_s.min(TTL_S_MAX)));
    headers.insert("urgency", HeaderValue::from_static(urgency));
    headers.insert("topic", HeaderValue::try_from(&wake.collapse).ok()?);
    Some(headers)
}

#[async_trait]
impl Provider for WebPush {
    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer {
        let (endpoint, keys) = match &target.address {
            PushAddress::WebPush { endpoint, p256dh, auth } => (endpoint, Subscription { p256dh, auth }),
            PushAddress::Apns { .. } | PushAddress::Fcm { .. } => return UNKNOWN_APP.answer(None, None),
        };
        let Some((origin, path)) = target.address.check().ok().and_then(|()| Origin::split(endpoint).ok())
        else {
            return BAD_TARGET.answer(None, None);
        };
        if !self.hosts.allows(origin.host()) {
            return HOST_NOT_ALLOWED.answer(None, None);
        }
        if !wake.is_sound() {
            return BAD_WAKE.answer(None, None);
        }
        self.send(origin, path, keys, wake).await.for_device()
    }
}
