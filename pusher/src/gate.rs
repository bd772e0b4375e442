//! A breaker in front of a pool, and the time of one wake. **Invariant:** what is the caller's fault (a bad token, a full queue) never opens it.

use crate::answers::BREAKER_OPEN;
use crate::breaker::{Breaker, BreakerConfig, Ticket};
use crate::provider::Answer;
use crate::transport::{Reply, SendError};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use std::sync::{Arc, Mutex, PoisonError};

/// What [`crate::provider::Provider::wake`] may take, all its requests together.
const WAKE_MAX: Millis = Millis::from_secs(20);

/// The time that one wake has.
pub(crate) struct Budget<'a> {
    world: &'a dyn World,
    start: Time,
}

impl<'a> Budget<'a> {
    pub(crate) fn start(world: &'a dyn World) -> Self {
        Self { world, start: world.now() }
    }

    pub(crate) fn left(&self) -> Millis {
        Millis(WAKE_MAX.0.saturating_sub((self.world.now() - self.start).0))
    }
}

pub(crate) struct Gate {
    breaker: Mutex<Breaker>,
    world: Arc<dyn World>,
}

impl Gate {
    pub(crate) fn new(world: Arc<dyn World>) -> Self {
        Self { breaker: Mutex::new(Breaker::new(BreakerConfig::default())), world }
    }

    pub(crate) fn admit(&self) -> Result<Ticket, Answer> {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        breaker.admit(self.world.now()).map_err(|wait| BREAKER_OPEN.answer(Some(wait), None))
    }

    pub(crate) fn note(&self, ticket: Ticket, outcome: &Result<Reply, SendError>) {
        let works = match outcome {
            Ok(reply) => Some(reply.status < 500),
            Err(SendError::Busy | SendError::NotPublic) => None,
            Err(
                SendError::Unreachable
                | SendError::Tls
                | SendError::NoHttp2
                | SendError::Refused
                | SendError::Timeout
                | SendError::Lost,
            ) => Some(false),
        };
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match works {
            Some(true) => breaker.succeeded(ticket),
            Some(false) => breaker.failed(ticket, self.world.now(), self.world.random_below(u64::MAX)),
            None => {}
        }
    }
}
