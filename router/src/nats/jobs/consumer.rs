//! The consumer that all pushers share. **Invariant:** it gives each hint to one of them, again if it is not answered, a bounded number
//! of times.

use super::WakeJobsConfig;
use crate::nats::wakestream::{self, Limits, Manner, Nothing, Trouble};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, Config, DeliverPolicy, Info, ReplayPolicy};
use async_nats::jetstream::stream;
use serde::Serialize;

/// Its name within the stream.
const NAME: &str = "pushers";

/// What must be there for hints to come.
pub(super) struct Wanted {
    stream: stream::Config,
    consumer: Config,
}

#[derive(Serialize)]
struct Create<'a> {
    stream_name: &'a str,
    config: &'a Config,
}

impl Wanted {
    pub(super) fn new(config: &WakeJobsConfig, stream: String, subjects: String) -> Self {
        let limits = Limits {
            replicas: config.replicas,
            bytes_max: config.stream_bytes_max,
            age_max: config.stream_age_max,
        };
        let consumer = Config {
            durable_name: Some(NAME.to_owned()),
            name: Some(NAME.to_owned()),
            description: Some("all pushers".to_owned()),
            deliver_policy: DeliverPolicy::All,
            ack_policy: AckPolicy::Explicit,
            ack_wait: config.ack_wait.to_std(),
            max_deliver: i64::from(config.deliver_max),
            replay_policy: ReplayPolicy::Instant,
            max_ack_pending: i64::from(config.ack_pending_max),
            ..Config::default()
        };
        Self { stream: wakestream::wanted(&limits, stream, subjects), consumer }
    }

    /// Where hints are asked for.
    pub(super) fn next(&self) -> String {
        format!("$JS.API.CONSUMER.MSG.NEXT.{}.{NAME}", self.stream.name)
    }

    /// Sees to it that stream and consumer are there; `true`: the consumer had to be made. At `first` it is set to our own
    /// settings, later only made where it is missing.
    pub(super) async fn look(&self, context: &Context, first: bool) -> Result<bool, Trouble> {
        let stream = &self.stream.name;
        if wakestream::look(context, &self.stream, Manner::Makes).await? {
            tracing::info!("the stream of wake hints was not there; it is made");
        }
        let info = format!("CONSUMER.INFO.{stream}.{NAME}");
        let found = wakestream::call::<_, Info>(context, info, &Nothing {}).await;
        let created = matches!(found, Err(Trouble::Missing));
        let info = match found {
            Ok(info) if !first => info,
            Ok(_) | Err(Trouble::Missing) => {
                let create = Create { stream_name: stream, config: &self.consumer };
                let subject = format!("CONSUMER.CREATE.{stream}.{NAME}");
                wakestream::call::<_, Info>(context, subject, &create).await.map_err(of_consumer)?
            }
            Err(trouble) => return Err(of_consumer(trouble)),
        };
        let defect = self.defect(&info.config);
        defect.map_or(Ok(created), |what| Err(Trouble::Consumer(format!("it has the wrong {what}"))))
    }

    /// What would make hints vanish, come for ever, or never. Numbers may be another pusher's.
    fn defect(&self, found: &Config) -> Option<&'static str> {
        let checks = [
            (found.deliver_subject.is_some(), "deliver_subject"),
            (found.ack_policy != self.consumer.ack_policy, "ack_policy"),
            (!found.filter_subject.is_empty() || !found.filter_subjects.is_empty(), "filter_subject"),
            (found.max_deliver <= 0, "max_deliver"),
            (found.headers_only, "headers_only"),
        ];
        checks.into_iter().find_map(|(wrong, what)| wrong.then_some(what))
    }
}

fn of_consumer(trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Refused(why) => Trouble::Consumer(why),
        other @ (Trouble::NoJetStream
        | Trouble::Silent
        | Trouble::Differs(_)
        | Trouble::Consumer(_)
        | Trouble::Missing) => other,
    }
}
