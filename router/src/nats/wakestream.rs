//! The stream of wake hints, as routers and pushers make it. **Invariant:** it is bounded in bytes and in age and drops the oldest;
//! it is a work queue: a hint that is done goes.
//!
//! Routers used to make it with another retention, which no update turns into this one: they replace such a stream, and the hints
//! in it are lost. A router of that time finds a work queue as good as its own stream, but cannot set it up at its start.

use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ErrorCode};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The first pause after a failure; doubles up to [`PAUSE_MAX`]; each a third more or less.
pub(crate) const PAUSE_MIN: Millis = Millis(250);
/// The longest.
pub(crate) const PAUSE_MAX: Millis = Millis::from_secs(30);
/// A hint is some 70 bytes.
const HINT_BYTES_MAX: i32 = 1024;

/// What the stream may hold.
pub(crate) struct Limits {
    pub(crate) replicas: usize,
    pub(crate) bytes_max: u64,
    pub(crate) age_max: Millis,
}

/// How far the stream's settings are the caller's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Sets it to the caller's own.
    Sets,
    /// Makes it where it is missing or of another kind.
    Keeps,
    /// Makes it where it is missing.
    Makes,
}

/// Why there is no stream that takes hints.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// Nobody answers for JetStream.
    #[error("this NATS has no JetStream for us")]
    NoJetStream,
    /// No answer.
    #[error("JetStream does not answer")]
    Silent,
    /// The answer is no.
    #[error("JetStream refused: {0}")]
    Refused(String),
    /// It is there and cannot be used; names what is wrong.
    #[error("the stream has the wrong {0}")]
    Differs(&'static str),
    /// The consumer cannot be made, or is not as it must be.
    #[error("JetStream refused the consumer: {0}")]
    Consumer(String),
    /// It is not there: one call's answer, never the last word.
    #[error("there is no stream")]
    Missing,
}

impl Trouble {
    /// A stable word for scripts and tests.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::NoJetStream => "wakes_no_jetstream",
            Self::Silent => "wakes_no_answer",
            Self::Refused(_) => "wakes_stream_refused",
            Self::Differs(_) => "wakes_stream_differs",
            Self::Consumer(_) => "wakes_consumer_refused",
            Self::Missing => "wakes_stream_missing",
        }
    }

    /// What the operator may do about it.
    pub(crate) const fn hint(&self) -> &'static str {
        match self {
            Self::NoJetStream => {
                "enable `jetstream` in the servers' configuration, and for the routers' account"
            }
            Self::Silent => {
                "have the servers a quorum, and may this process's user do what dev/conf/nats-users.conf allows?"
            }
            Self::Refused(_) => {
                "compare wakes.replicas and wakes.stream_bytes_max with what servers and account have room for"
            }
            Self::Differs(_) => "delete the stream; the routers make it anew",
            Self::Consumer(_) => "delete the stream's consumers; the pushers make theirs anew",
            Self::Missing => "wait; the routers make it",
        }
    }
}

/// A third more or less.
pub(crate) fn jittered(world: &dyn World, wait: Millis) -> Millis {
    let two_thirds = wait.0 * 2 / 3;
    Millis(two_thirds + world.random_below(two_thirds + 1))
}

/// The stream as it must be.
pub(crate) fn wanted(limits: &Limits, name: String, subjects: String) -> Config {
    Config {
        name,
        subjects: vec![subjects],
        description: Some("hints for whoever wakes devices; may be lost".to_owned()),
        storage: StorageType::File,
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::Old,
        num_replicas: limits.replicas,
        max_bytes: i64::try_from(limits.bytes_max).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_age: limits.age_max.to_std(),
        max_message_size: HINT_BYTES_MAX,
        ..Config::default()
    }
}

/// Sees to it that the stream is there; `true`: it had to be made.
pub(crate) async fn look(context: &Context, wanted: &Config, manner: Manner) -> Result<bool, Trouble> {
    let name = &wanted.name;
    let info = async || call::<_, Info>(context, format!("STREAM.INFO.{name}"), &Nothing {}).await;
    let mut found = match info().await {
        Err(Trouble::Missing) => None,
        found => Some(found?),
    };
    if manner != Manner::Makes
        && found.as_ref().is_some_and(|found| found.config.retention != wanted.retention)
    {
        tracing::warn!("the stream of wake hints is no work queue; it is replaced");
        match call::<_, serde_json::Value>(context, format!("STREAM.DELETE.{name}"), &Nothing {}).await {
            Ok(_) | Err(Trouble::Missing) => found = None,
            Err(trouble) => return Err(trouble),
        }
    }
    let (found, created) = match found {
        None => match call(context, format!("STREAM.CREATE.{name}"), wanted).await {
            // Somebody else was quicker, with other settings.
            Err(Trouble::Missing) => (info().await?, false),
            created => (created?, true),
        },
        Some(_) if manner == Manner::Sets => {
            (call(context, format!("STREAM.UPDATE.{name}"), wanted).await?, false)
        }
        Some(found) => (found, false),
    };
    match defect(&found.config, wanted) {
        None => Ok(created),
        Some(_) if manner == Manner::Makes => Ok(created),
        Some(what) => Err(Trouble::Differs(what)),
    }
}

/// The body of a request without one: JetStream takes `{}` as such, but not `null`.
#[derive(Serialize)]
pub(crate) struct Nothing {}

/// A request to JetStream.
pub(crate) async fn call<P: Serialize, T: DeserializeOwned>(
    context: &Context,
    subject: String,
    payload: &P,
) -> Result<T, Trouble> {
    match context.request(subject, payload).await {
        Ok(Response::Ok(answer)) => Ok(answer),
        Ok(Response::Err { error }) => Err(match error.error_code() {
            // The name in use: it has come into being meanwhile.
            ErrorCode::STREAM_NOT_FOUND | ErrorCode::STREAM_NAME_EXIST | ErrorCode::CONSUMER_NOT_FOUND => {
                Trouble::Missing
            }
            ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
                Trouble::NoJetStream
            }
            _ => Trouble::Refused(error.to_string()),
        }),
        Err(error) => Err(match error.kind() {
            RequestErrorKind::NoResponders => Trouble::NoJetStream,
            RequestErrorKind::TimedOut => Trouble::Silent,
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => Trouble::Refused(error.to_string()),
        }),
    }
}

/// What would make hints vanish, or pile up. Sizes and copies may be another router's.
fn defect(found: &Config, wanted: &Config) -> Option<&'static str> {
    let checks = [
        (found.subjects != wanted.subjects, "subjects"),
        (found.max_bytes <= 0, "max_bytes"),
        (found.max_age.is_zero(), "max_age"),
        (found.discard != DiscardPolicy::Old, "discard"),
        (found.sealed, "seal"),
        (found.no_ack, "no_ack"),
    ];
    checks.into_iter().find_map(|(wrong, what)| wrong.then_some(what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_a_bound_is_refused_and_another_bound_is_not() {
        let limits = Limits { replicas: 1, bytes_max: 1 << 20, age_max: Millis(1000) };
        let wanted = wanted(&limits, "s".to_owned(), "s.*".to_owned());
        assert_eq!(defect(&wanted, &wanted), None);
        let smaller = Config { max_bytes: 1, max_age: std::time::Duration::from_secs(1), ..wanted.clone() };
        assert_eq!(defect(&smaller, &wanted), None);
        let endless = Config { max_bytes: -1, ..wanted.clone() };
        assert_eq!(defect(&endless, &wanted), Some("max_bytes"));
        let ageless = Config { max_age: std::time::Duration::ZERO, ..wanted.clone() };
        assert_eq!(defect(&ageless, &wanted), Some("max_age"));
        let stubborn = Config { discard: DiscardPolicy::New, ..wanted.clone() };
        assert_eq!(defect(&stubborn, &wanted), Some("discard"));
        let other = Config { subjects: vec!["t.*".to_owned()], ..wanted.clone() };
        assert_eq!(defect(&other, &wanted), Some("subjects"));
    }
}
