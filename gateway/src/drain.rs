//! Empties a gateway at a steady pace. **Invariant:** every session is told and closed within the budget; the pace fits it.

use crate::shared::Gateway;
use chappe_protocol::frame::{GoAway, GoAwayClass};
use chappe_protocol::time::Millis;

/// How often a portion of the sessions is told.
const BEAT: Millis = Millis(100);

/// Tells all sessions to go, a portion per beat. Each closes itself after its grace.
///
/// Those on UDP are told at once, and the pace is in the jitter that they are told: behind kube-proxy their packets go
/// elsewhere a second or two after the drain began, whatever this gateway does, so a later word would not reach them.
pub(crate) async fn tell_all(gateway: &Gateway) {
    let config = &gateway.config.drain;
    let (udp, tcp): (Vec<_>, Vec<_>) =
        gateway.registry.all().into_iter().partition(|handle| handle.carrier.is_udp());
    tracing::info!(sessions = udp.len() + tcp.len(), udp = udp.len(), "draining");
    let spread = spread(udp.len(), config);
    for handle in &udp {
        let go_away = GoAway { jitter: spread, ..go_away(config) };
        handle.go_away(go_away, Millis(config.retry_after.0 + spread.0 + config.grace.0));
    }
    for (index, portion) in tcp.chunks(portion(tcp.len(), config)).enumerate() {
        if index > 0 {
            tokio::time::sleep(BEAT.to_std()).await;
        }
        for handle in portion {
            handle.go_away(go_away(config), config.grace);
        }
    }
}

/// What a session is told.
pub(crate) fn go_away(config: &crate::DrainConfig) -> GoAway {
    let (retry_after, jitter) = (config.retry_after, config.jitter);
    GoAway { class: GoAwayClass::Drain, retry_after, jitter, endpoints: Vec::new() }
}

/// The jitter that makes so many sessions leave at the configured pace, or within half of the budget.
fn spread(sessions: usize, config: &crate::DrainConfig) -> Millis {
    let sessions = u64::try_from(sessions).unwrap_or(u64::MAX);
    let paced = sessions.saturating_mul(1000) / u64::from(config.sessions_per_second.max(1));
    Millis(paced.min(config.budget.0 / 2)).max(config.jitter)
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

    #[test]
    fn those_on_udp_leave_at_the_same_pace_by_their_jitter() {
        let config = DrainConfig::default();
        assert_eq!(spread(10, &config), config.jitter, "never less than the jitter");
        assert_eq!(spread(5_000, &config), Millis(10_000), "500 per second");
        assert_eq!(spread(1_000_000, &config), Millis(config.budget.0 / 2), "within the budget");
    }
}
