//! What a fake does instead of, or around, its judgement. **Invariant:** a step that names a token goes before one that
//! names none, and each is used once, in order.

use crate::answer::Answer;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Steps held at most, over all queues; further ones are not taken.
const STEPS_MAX: usize = 100_000;

/// What happens to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It is judged, as without a script.
    Judge,
    /// It is not judged; this goes out.
    Answer(Answer),
    /// It is not judged; RST_STREAM with `REFUSED_STREAM` (RFC 9113 §8.7: safe to send again). HTTP/1.1: the connection
    /// is closed.
    RefuseStream,
    /// It is not judged; nothing goes out, for ten minutes at most.
    StallBeforeHeaders,
    /// It is judged; the head of the answer goes out and half of the body, then nothing, for ten minutes at most.
    StallInBody,
    /// It is judged, and answered this much later (ten minutes at most).
    Slow(Duration),
    /// It is not judged; the TCP connection is closed, with all that is under way on it.
    CloseBefore,
    /// It is judged and recorded; the TCP connection is closed without an answer.
    CloseAfter,
    /// It is judged and answered, and so is every stream before it; GOAWAY names the last stream seen; later streams are
    /// not looked at (RFC 9113 §6.8). HTTP/1.1: `Connection: close`.
    GoAway,
    /// GOAWAY names the last stream that was judged; this one and later ones are left alone, and may be sent again on
    /// another connection. HTTP/1.1: the connection is closed.
    GoAwayUnprocessed,
}

impl Step {
    /// An answer by status and reason; see [`Answer`] for more.
    pub fn answer(status: u16, reason: &str) -> Answer {
        Answer::new(status, reason)
    }

    /// A short word for it, for records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Judge => "judge",
            Self::Answer(_) => "answer",
            Self::RefuseStream => "refuse_stream",
            Self::StallBeforeHeaders => "stall_before_headers",
            Self::StallInBody => "stall_in_body",
            Self::Slow(_) => "slow",
            Self::CloseBefore => "close_before",
            Self::CloseAfter => "close_after",
            Self::GoAway => "go_away",
            Self::GoAwayUnprocessed => "go_away_unprocessed",
        }
    }
}

impl From<Answer> for Step {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

/// What is to happen to the requests to come.
#[derive(Debug, Default)]
pub struct Script(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    next: VecDeque<Step>,
    by_token: BTreeMap<String, VecDeque<Step>>,
    always: Option<Step>,
    len: usize,
}

impl Script {
    /// Appends a step for the next request that no step awaits yet. `false`: the script is full (100,000 steps).
    pub fn next(&self, step: Step) -> bool {
        self.with(|queues| {
            let room = queues.len < STEPS_MAX;
            if room {
                queues.len += 1;
                queues.next.push_back(step);
            }
            room
        })
    }

    /// Appends a step `count` times.
    pub fn next_times(&self, count: usize, step: &Step) -> bool {
        (0..count).all(|_| self.next(step.clone()))
    }

    /// Appends a step for the next request to this device token, FCM token or Web Push endpoint.
    pub fn next_for(&self, token: &str, step: Step) -> bool {
        self.with(|queues| {
            let room = queues.len < STEPS_MAX;
            if room {
                queues.len += 1;
                queues.by_token.entry(token.to_owned()).or_default().push_back(step);
            }
            room
        })
    }

    /// What happens to every request that no step awaits, from now on; `None`: it is judged.
    pub fn always(&self, step: Option<Step>) {
        self.with(|queues| queues.always = step);
    }

    /// Forgets all steps.
    pub fn clear(&self) {
        self.with(|queues| *queues = Queues::default());
    }

    /// Steps that no request has met yet.
    pub fn left(&self) -> usize {
        self.with(|queues| queues.len)
    }

    pub(crate) fn take(&self, token: Option<&str>) -> Option<Step> {
        self.with(|queues| {
            let mut found = None;
            if let Some(token) = token
                && let Some(steps) = queues.by_token.get_mut(token)
            {
                found = steps.pop_front();
                if steps.is_empty() {
                    queues.by_token.remove(token);
                }
            }
            found = found.or_else(|| queues.next.pop_front());
            if found.is_some() {
                queues.len -= 1;
            }
            found.or_else(|| queues.always.clone())
        })
    }

    /// Gives a step back that could not be taken: it is the next one again.
    pub(crate) fn give_back(&self, step: Step) {
        self.with(|queues| {
            queues.len += 1;
            queues.next.push_front(step);
        });
    }

    fn with<R>(&self, act: impl FnOnce(&mut Queues) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
