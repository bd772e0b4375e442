//! The stream of wake hints: made at start, looked for ever after. **Invariant:** it is bounded in bytes and in age, and drops the
//! oldest; a router serves without it.
//!
//! A router that starts sets the stream to its own settings; later it only makes it where it is missing, so that two routers
//! with different settings do not take turns.

use super::{Publisher, WakeConfig};
use async_nats::jetstream::context::RequestErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{Context, ContextBuilder, ErrorCode};
use chappe_protocol::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// The first pause after a failure; doubles up to [`PAUSE_MAX`]; each a third more or less.
const PAUSE_MIN: Millis = Millis(250);
const PAUSE_MAX: Millis = Millis::from_secs(30);
/// However often somebody asks for it, it is looked for at most so often.
const GAP_MIN: Duration = Duration::from_millis(100);
/// A hint is some 70 bytes.
const HINT_BYTES_MAX: i32 = 1024;

/// Why there is no stream that takes hints.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
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
    /// It is not there: one call's answer, never the last word.
    #[error("there is no stream")]
    Missing,
}

impl Trouble {
    /// A stable word for scripts and tests.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::NoJetStream => "wakes_no_jetstream",
            Self::Silent => "wakes_no_answer",
            Self::Refused(_) => "wakes_stream_refused",
            Self::Differs(_) => "wakes_stream_differs",
            Self::Missing => "wakes_stream_missing",
        }
    }

    /// What the operator may do about it.
    pub(super) const fn hint(&self) -> &'static str {
        match self {
            Self::NoJetStream => {
                "enable `jetstream` in the servers' configuration, and for the routers' account"
            }
            Self::Silent => {
                "have the servers a quorum, and may the routers' user do what dev/conf/nats-users.conf allows?"
            }
            Self::Refused(_) => {
                "compare wakes.replicas and wakes.stream_bytes_max with what servers and account have room for"
            }
            Self::Differs(_) => "delete the stream; the routers make it anew",
            Self::Missing => "wait; the routers make it",
        }
    }
}

/// Makes the stream and looks for it until the bus is closed.
pub(super) async fn keep(publisher: Arc<Publisher>) {
    let shared = &publisher.shared;
    let context =
        ContextBuilder::new().timeout(publisher.config.answer_max.to_std()).build(shared.client.clone());
    let wanted = wanted(&publisher.config, shared.subjects.wake_stream(), shared.subjects.wakes());
    let mut connections = shared.status.connections();
    let (mut first, mut pause) = (true, PAUSE_MIN);
    loop {
        connections.mark_unchanged();
        let wait = match look(&context, &wanted, first).await {
            Ok(created) => {
                first = false;
                pause = PAUSE_MIN;
                publisher.stands(created);
                publisher.config.look_every
            }
            Err(trouble) => {
                publisher.fails(&trouble);
                let wait = pause;
                pause = Millis((pause.0 * 2).min(PAUSE_MAX.0));
                wait
            }
        };
        let two_thirds = wait.0 * 2 / 3;
        let jittered = Millis(two_thirds + shared.world.random_below(two_thirds + 1));
        tokio::select! {
            biased;
            Ok(()) = connections.changed() => pause = PAUSE_MIN,
            () = publisher.look.notified() => tokio::time::sleep(GAP_MIN).await,
            () = tokio::time::sleep(jittered.to_std()) => {}
        }
    }
}

impl Publisher {
    fn stands(&self, created: bool) {
        if created {
            self.metrics.created.inc();
        }
        let was_told = self.trouble.send_replace(None).is_some();
        if created || was_told {
            tracing::info!(created, "the stream of wake hints is there");
        }
        self.set_up(true);
    }

    fn fails(&self, trouble: &Trouble) {
        self.set_up(false);
        let code = trouble.code();
        if self.trouble.send_replace(Some(code)) != Some(code) {
            tracing::warn!(
                "{code}: {trouble}; wake hints are lost until this ends, and nothing else: devices are woken later; {}",
                trouble.hint()
            );
        }
    }
}

/// The stream as it must be.
fn wanted(config: &WakeConfig, name: String, subjects: String) -> Config {
    Config {
        name,
        subjects: vec![subjects],
        description: Some("hints for whoever wakes devices; may be lost".to_owned()),
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::Old,
        num_replicas: config.replicas,
        max_bytes: i64::try_from(config.stream_bytes_max).unwrap_or(i64::MAX),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_age: config.stream_age_max.to_std(),
        max_message_size: HINT_BYTES_MAX,
        ..Config::default()
    }
}

/// Sees to it that the stream is there; `true`: it had to be made.
async fn look(context: &Context, wanted: &Config, first: bool) -> Result<bool, Trouble> {
    let verb = if first { "UPDATE" } else { "INFO" };
    let (info, created) = match call(context, verb, wanted).await {
        Err(Trouble::Missing) => match call(context, "CREATE", wanted).await {
            // Another router was quicker, with other settings.
            Err(Trouble::Missing) => (call(context, "INFO", wanted).await?, false),
            created => (created?, true),
        },
        found => (found?, false),
    };
    match defect(&info.config, wanted) {
        None => Ok(created),
        Some(what) => Err(Trouble::Differs(what)),
    }
}

async fn call(context: &Context, verb: &str, wanted: &Config) -> Result<Info, Trouble> {
    let subject = format!("STREAM.{verb}.{}", wanted.name);
    let answer = match verb {
        "INFO" => context.request(subject, &()).await,
        _ => context.request(subject, wanted).await,
    };
    match answer {
        Ok(Response::Ok(info)) => Ok(info),
        Ok(Response::Err { error }) => Err(match error.error_code() {
            // The name in use: it has come into being meanwhile.
            ErrorCode::STREAM_NOT_FOUND | ErrorCode::STREAM_NAME_EXIST => Trouble::Missing,
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
        let wanted = wanted(&WakeConfig::default(), "s".to_owned(), "s.*".to_owned());
        assert_eq!(defect(&wanted, &wanted), None);
        let smaller = Config { max_bytes: 1, max_age: Duration::from_secs(1), ..wanted.clone() };
        assert_eq!(defect(&smaller, &wanted), None);
        let endless = Config { max_bytes: -1, ..wanted.clone() };
        assert_eq!(defect(&endless, &wanted), Some("max_bytes"));
        let ageless = Config { max_age: Duration::ZERO, ..wanted.clone() };
        assert_eq!(defect(&ageless, &wanted), Some("max_age"));
        let stubborn = Config { discard: DiscardPolicy::New, ..wanted.clone() };
        assert_eq!(defect(&stubborn, &wanted), Some("discard"));
        let other = Config { subjects: vec!["t.*".to_owned()], ..wanted.clone() };
        assert_eq!(defect(&other, &wanted), Some("subjects"));
    }
}
