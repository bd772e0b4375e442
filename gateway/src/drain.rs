//! Empties a gateway at a steady pace. **Invariant:** every session is told and closed within the budget; the pace fits it.

use crate::shared::Gateway;
use chappe_protocol::frame::{GoAway, GoAwayClass};
use chappe_protocol::time::Millis;

/// How often a portion of the sessions is told.
const BEAT: Millis = Millis(100);

/// Tells all sessions to go, a portion per beat. Each closes itself after its grace.
pub(crate) async fn tell_all(gateway: &Gateway) {
    let config = &gateway.config.drain;
    let sessions = gateway.registry.all();
    tracing::info!(sessions = sessions.len(), "draining");
    for (index, portion) in sessions.chunks(portion(sessions.len(), config)).enumerate() {
        if index > 0 {
            tokio::time::sleep(BEAT.to_std()).await;
        }
        for handle in portion {
            handle.go_away(go_away(config));
        }
    }
}

/// What a session is told.
pub(crate) fn go_away(config: &crate::DrainConfig) -> GoAway {
    let (retry_after, jitter) = (config.retry_after, config.jitter);
    GoAway { class: GoAwayClass::Drain, retry_after, jitter, endpoints: Vec::new() }
}

/// Sessions per beat: the configured pace, or what the budget asks for after half of it is kept for goodbyes.
fn portion(sessions: usize, config: &crate::DrainConfig) -> usize {
    let beats = (config.budget.0 / 2 / BEAT.0).max(1);
    let paced = u64::from(config.sessions_per_second) * BEAT.0 / 1000;
    let needed = u64::try_from(sessions).unwrap_or(u64::MAX).div_ceil(beats);
    usize::try_from(paced.max(needed).max(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DrainConfig;

    #[test]
    fn the_pace_fits_the_budget_however_many_sessions_there_are() {
        let config = DrainConfig::default();
        assert_eq!(portion(10, &config), 50, "500 per second in beats of 100 ms");
        for sessions in [1, 1000, 19_000, 1_000_000] {
            let beats = sessions / portion(sessions, &config) + 1;
            assert!(beats as u64 * BEAT.0 <= config.budget.0 / 2 + BEAT.0, "{sessions} sessions");
        }
    }
}
