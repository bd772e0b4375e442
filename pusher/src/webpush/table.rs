//! What push services answer (RFC 8030 §5, §7.3, §8.4; RFC 8292 §4.2). **Invariant:** one push service among many never
//! makes anybody wait but its own devices.

use crate::answers::{Act, Row, Status, rest};
use crate::provider::Scope;

const DEVICE: Act = Act::Retry(Scope::Device, 0);

/// In order; the first that fits counts.
pub const TABLE: &[Row] = &[
    rest(Status::Is(401), "http_401", Act::FixConfiguration, "the VAPID token is not taken"),
    rest(Status::Is(403), "http_403", Act::FixConfiguration, "the subscription is for another VAPID key"),
    rest(Status::Is(404), "http_404", Act::Drop, "no such subscription (RFC 8030 §7.3)"),
    rest(Status::Is(408), "http_408", DEVICE, "it waited too long"),
    rest(Status::Is(410), "http_410", Act::Drop, "the subscription is gone"),
    rest(
        Status::Is(413),
        "http_413",
        Act::Park,
        "too large: it takes less than the 4096 bytes of RFC 8030 §7.2, or it is none",
    ),
    rest(
        Status::Is(429),
        "http_429",
        Act::Retry(Scope::Device, 60),
        "too many wakes for this subscription (RFC 8030 §8.4)",
    ),
    rest(
        Status::Class(2),
        "ok",
        Act::Done,
        "the push service has it: 201, or 202 with a receipt to come, or 204",
    ),
    rest(Status::Class(5), "http_5xx", DEVICE, "its fault"),
    rest(Status::Class(4), "http_4xx", Act::Park, "not understood"),
    rest(Status::Class(3), "http_3xx", Act::Park, "redirections are not followed: they could lead inside"),
    rest(Status::Class(1), "http_1xx", DEVICE, "not understood"),
];
