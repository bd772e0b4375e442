//! The last warnings and errors of a process, for its console. **Invariant:** at most so many, each cut to a length; what is said
//! is what the log says, and so never of a user.

use crate::clock::SystemWorld;
use chappe_protocol::world::World;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// So many are remembered.
const ALARMS_MAX: usize = 64;
/// Bytes of a text at most.
const TEXT_MAX: usize = 400;

/// A line of the log, `warn` or worse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// When it was said last, milliseconds of Unix time.
    pub at_ms: u64,
    /// `warn` or `error`.
    pub level: String,
    /// The message and its fields.
    pub text: String,
    /// How often it was said in a row.
    pub times: u64,
}

static SAID: Mutex<VecDeque<Alarm>> = Mutex::new(VecDeque::new());

/// What this process has said lately, the newest last.
pub fn lately() -> Vec<Alarm> {
    SAID.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
}

/// Hears what is logged.
#[derive(Default)]
pub(crate) struct Hearing(SystemWorld);

impl<S: Subscriber> Layer<S> for Hearing {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let meta = event.metadata();
        if *meta.level() > Level::WARN || !meta.target().starts_with("chappe") {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let at_ms = self.0.wall().0;
        note(&mut SAID.lock().unwrap_or_else(PoisonError::into_inner), at_ms, *meta.level(), text.finish());
    }
}

fn note(said: &mut VecDeque<Alarm>, at_ms: u64, level: Level, text: String) {
    if let Some(last) = said.back_mut().filter(|last| last.text == text) {
        (last.at_ms, last.times) = (at_ms, last.times + 1);
        return;
    }
    if said.len() == ALARMS_MAX {
        said.pop_front();
    }
    said.push_back(Alarm { at_ms, level: level.as_str().to_lowercase(), text, times: 1 });
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        let mut text = self.message + &self.fields;
        if text.len() > TEXT_MAX {
            text.truncate(text.floor_char_boundary(TEXT_MAX));
            text.push('…');
        }
        text
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn warnings_and_errors_of_ours_are_kept_and_nothing_else() {
        let subscriber = tracing_subscriber::registry().with(Hearing::default());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "chappe_test", "all is well");
            tracing::error!(target: "quinn", "a packet");
            tracing::warn!(target: "chappe_test", tasks = 3, "something is odd");
            tracing::warn!(target: "chappe_test", tasks = 3, "something is odd");
            tracing::error!(target: "chappe_test", "{}", "ä".repeat(TEXT_MAX));
        });
        let said = lately();
        let (odd, long) = (&said[said.len() - 2], &said[said.len() - 1]);
        assert_eq!(
            (odd.level.as_str(), odd.text.as_str(), odd.times),
            ("warn", "something is odd tasks=3", 2)
        );
        assert!(long.text.len() <= TEXT_MAX + '…'.len_utf8() && long.level == "error", "{}", long.text.len());
        assert!(said.iter().all(|alarm| !alarm.text.contains("well") && !alarm.text.contains("packet")));
    }

    #[test]
    fn the_oldest_go() {
        let mut said = VecDeque::new();
        for n in 0..=ALARMS_MAX as u64 {
            note(&mut said, n, Level::WARN, n.to_string());
        }
        assert_eq!((said.len(), said[0].at_ms), (ALARMS_MAX, 1));
    }
}
