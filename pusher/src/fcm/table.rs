//! What Firebase Cloud Messaging answers (the reference of `ErrorCode`, HTTP v1). **Invariant:** no token is dropped for a
//! 404 or 403 that does not name it as the cause: those also come from a wrong project or a proxy.

use crate::answers::{Act, Row, Status, rest, row};
use crate::provider::Scope;

const FIX: Act = Act::FixConfiguration;
const PROVIDER: Act = Act::Retry(Scope::Provider, 0);
const QUOTA: Act = Act::Retry(Scope::App, 60);

/// `INVALID_ARGUMENT` whose details name the token as the bad field.
pub(super) const BAD_TOKEN: &str = "INVALID_ARGUMENT message.token";

/// In order; the first that fits counts.
pub const TABLE: &[Row] = &[
    row(400, BAD_TOKEN, Act::Drop, "the details name the token as the bad field"),
    row(400, "INVALID_ARGUMENT", Act::Park, "a fault of ours, or a token of another kind"),
    row(400, "FAILED_PRECONDITION", FIX, "the project lacks something"),
    rest(Status::Is(400), "http_400", Act::Park, "not understood"),
    row(401, "THIRD_PARTY_AUTH_ERROR", FIX, "the project's own APNs key or Web Push key is missing"),
    row(401, "UNAUTHENTICATED", FIX, "refused twice, the second time with a fresh access token"),
    rest(Status::Is(401), "http_401", FIX, "as above"),
    row(
        403,
        "SENDER_ID_MISMATCH",
        Act::Park,
        "the token is another project's, or the wrong project is configured: kept, so that a slip in the configuration does not unregister everybody",
    ),
    row(403, "PERMISSION_DENIED", FIX, "the service account may not send"),
    rest(Status::Is(403), "http_403", FIX, "refused"),
    row(404, "UNREGISTERED", Act::Drop, "the app is gone from the device, or has a new token"),
    rest(Status::Is(404), "http_404", Act::Park, "no such project, or a proxy: no word about the token"),
    row(429, "QUOTA_EXCEEDED", QUOTA, "the project's quota"),
    row(429, "RESOURCE_EXHAUSTED", QUOTA, "the project's quota"),
    rest(Status::Is(429), "http_429", QUOTA, "the project's quota"),
    row(500, "INTERNAL", PROVIDER, "Google's fault"),
    row(503, "UNAVAILABLE", PROVIDER, "Google's fault"),
    rest(Status::Class(2), "ok", Act::Done, "Google has it"),
    rest(Status::Class(5), "http_5xx", PROVIDER, "Google's fault"),
    rest(Status::Class(4), "http_4xx", Act::Park, "not understood"),
    rest(Status::Class(3), "http_3xx", Act::Park, "redirections are not followed"),
    rest(Status::Class(1), "http_1xx", PROVIDER, "not understood"),
];
