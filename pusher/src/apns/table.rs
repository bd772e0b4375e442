//! What Apple answers ("Handling notification responses from APNs"). **Invariant:** a line that could be the fault of the
//! configuration (topic, key, environment) drops no token, but `BadDeviceToken`, which Apple gives for nothing else often.

use crate::answers::{Act, Row, Status, rest, row};
use crate::provider::Scope;

const FIX: Act = Act::FixConfiguration;
const PROVIDER: Act = Act::Retry(Scope::Provider, 0);

/// In order; the first that fits counts.
pub const TABLE: &[Row] = &[
    row(400, "BadCollapseId", Act::Park, "longer than 64 bytes: a fault of ours"),
    row(400, "BadDeviceToken", Act::Drop, "no token, or of the other environment"),
    row(400, "BadExpirationDate", Act::Park, "a fault of ours"),
    row(400, "BadMessageId", Act::Park, "a fault of ours"),
    row(400, "BadPriority", Act::Park, "a fault of ours"),
    row(400, "BadTopic", FIX, "the topic is none"),
    row(
        400,
        "DeviceTokenNotForTopic",
        Act::Park,
        "another app's token, or the wrong topic configured: kept, so that a slip in the configuration does not unregister everybody",
    ),
    row(400, "DuplicateHeaders", Act::Park, "a fault of ours"),
    row(400, "IdleTimeout", PROVIDER, "the connection was idle for too long"),
    row(400, "InvalidPushType", Act::Park, "a fault of ours"),
    row(400, "MissingDeviceToken", Act::Park, "a fault of ours"),
    row(400, "MissingTopic", FIX, "no topic"),
    row(400, "PayloadEmpty", Act::Park, "a fault of ours"),
    row(400, "TopicDisallowed", FIX, "the key is not for this topic"),
    rest(Status::Is(400), "http_400", Act::Park, "not understood"),
    row(403, "BadCertificate", FIX, "we use tokens"),
    row(403, "BadCertificateEnvironment", FIX, "we use tokens"),
    row(403, "BadEnvironmentKeyIdInToken", FIX, "the key is for the other environment"),
    row(
        403,
        "ExpiredProviderToken",
        Act::Retry(Scope::App, 60),
        "refused twice, the second time with a fresh token: this machine's clock is wrong, or a token was signed less than 20 min ago",
    ),
    row(403, "Forbidden", FIX, "the key may not do this"),
    row(
        403,
        "InvalidProviderToken",
        FIX,
        "key, key id and team do not belong together, or this machine's clock is ahead",
    ),
    row(403, "MissingProviderToken", FIX, "no token"),
    row(403, "UnrelatedKeyIdInToken", FIX, "the key id is another team's"),
    rest(Status::Is(403), "http_403", FIX, "refused"),
    row(404, "BadPath", Act::Park, "a fault of ours"),
    rest(Status::Is(404), "http_404", FIX, "no APNs there"),
    row(405, "MethodNotAllowed", Act::Park, "a fault of ours"),
    row(410, "ExpiredToken", Act::Drop, "the device token is no longer valid"),
    row(410, "Unregistered", Act::Drop, "the app is gone from the device, since the time that Apple names"),
    rest(Status::Is(410), "http_410", Act::Drop, "410 says that the token is dead, whatever the body"),
    row(413, "PayloadTooLarge", Act::Park, "a fault of ours"),
    row(
        429,
        "TooManyProviderTokenUpdates",
        Act::Retry(Scope::App, 1200),
        "more than one token in 20 min: several pushers with one key?",
    ),
    row(429, "TooManyRequests", Act::Retry(Scope::Device, 60), "for this device token"),
    rest(Status::Is(429), "http_429", Act::Retry(Scope::Device, 60), "as above"),
    row(500, "InternalServerError", PROVIDER, "Apple's fault"),
    row(503, "ServiceUnavailable", PROVIDER, "Apple's fault"),
    row(503, "Shutdown", PROVIDER, "that server of Apple's is going away"),
    rest(Status::Class(2), "ok", Act::Done, "Apple has it"),
    rest(Status::Class(5), "http_5xx", PROVIDER, "Apple's fault"),
    rest(Status::Class(4), "http_4xx", Act::Park, "not understood"),
    rest(Status::Class(3), "http_3xx", Act::Park, "redirections are not followed"),
    rest(Status::Class(1), "http_1xx", PROVIDER, "not understood"),
];
