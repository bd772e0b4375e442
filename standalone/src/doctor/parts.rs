//! The parts that a process of a cluster uses. **Invariant:** each is asked for at most 10 s, and one that is away hides none of the others.

use super::Findings;
use chappe_gateway::settings::TokenConfig;
use chappe_gateway::{GatewayMetrics, TokenVerifier};
use chappe_node::spans::TracesConfig;
use chappe_protocol::id::ClusterId;
use chappe_protocol::world::World;
use chappe_router::metrics::PresenceMetrics;
use chappe_router::nats::sync::{self, Synced};
use chappe_router::nats::{BusMetrics, BusRole, NatsBus};
use chappe_router::parts::PartSettings;
use chappe_router::redis::RedisPresence;
use chappe_storage::rows::Rows as _;
use chappe_storage::scylla::{Durability, ScyllaRows};
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;

/// For one part to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clocks that differ by more should be mended; by more than [`SKEW_BAD_MS`], good tokens are refused.
const SKEW_WARN_MS: u64 = 1_000;
const SKEW_BAD_MS: u64 = 30_000;

/// The collector of traces, if there is one.
pub(super) async fn collector(found: &mut Findings, traces: &TracesConfig) {
    const WHAT: &str = "traces.otlp";
    if traces.otlp.is_empty() {
        return;
    }
    // A process serves all the same.
    match traces.try_out().await {
        Ok(()) => found.good(WHAT, "the collector takes spans"),
        Err(error) => found.warn(WHAT, format!("{error:#}; spans will be dropped")),
    }
}

/// Presence, database and bus.
pub(super) async fn look(
    found: &mut Findings,
    parts: PartSettings<'_>,
    role: BusRole,
    world: &Arc<dyn World>,
) {
    redis(found, parts).await;
    let incarnation = cql(found, parts, world).await;
    nats(found, parts, role, incarnation, world).await;
}

async fn redis(found: &mut Findings, parts: PartSettings<'_>) {
    const WHAT: &str = "redis";
    let opened = parts.redis.open(parts.cluster).and_then(|config| {
        let metrics = PresenceMetrics::new(&Registry::new())?;
        Ok(RedisPresence::open(&config, Arc::new(metrics))?)
    });
    let presence = match opened {
        Ok(presence) => presence,
        Err(error) => return found.bad(WHAT, format!("{error:#}")),
    };
    match tokio::time::timeout(PATIENCE, presence.check()).await {
        Ok(Ok(())) => found.good(WHAT, "answers, and runs the scripts of presence"),
        Ok(Err(error)) => found.bad(WHAT, error.to_string()),
        Err(_) => found.bad(WHAT, "no answer within 10 s; check redis.url and the network"),
    }
}

/// The store's incarnation, if it answers.
async fn cql(found: &mut Findings, parts: PartSettings<'_>, world: &Arc<dyn World>) -> Option<[u8; 16]> {
    const WHAT: &str = "cql";
    let config = match parts.cql.open() {
        Ok(config) => config,
        Err(error) => {
            found.bad(WHAT, format!("{error:#}"));
            return None;
        }
    };
    // A driver's connect is a large future.
    let connected =
        Box::pin(tokio::time::timeout(PATIENCE, ScyllaRows::connect(config, Arc::clone(world)))).await;
    let rows = match connected {
        Ok(Ok(rows)) => rows,
        Ok(Err(error)) => {
            found.bad(WHAT, format!("{}: {error}; {}", error.code(), error.hint()));
            return None;
        }
        Err(_) => {
            found.bad(WHAT, "no answer within 10 s; check cql.url and the network");
            return None;
        }
    };
    found.good(WHAT, "answers, and its tables are as this version needs them");
    if rows.durability() == Durability::Periodic {
        found.warn(
            "cql sync",
            "the database acknowledges before it syncs: accepted envelopes may go with the power; set commitlog_sync to batch or group",
        );
    }
    clocks(found, rows.now().0, world.wall().0);
    Some(rows.incarnation())
}

fn clocks(found: &mut Findings, database: u64, ours: u64) {
    const WHAT: &str = "clock";
    let apart = database.abs_diff(ours);
    let told = format!("{apart} ms from the database's");
    if apart > SKEW_BAD_MS {
        found.bad(
            WHAT,
            format!("{told}: good tokens are refused here; run a time service (chrony, ntpd) on both"),
        );
    } else if apart > SKEW_WARN_MS {
        found.warn(WHAT, format!("{told}: run a time service (chrony, ntpd) on both"));
    } else {
        found.good(WHAT, told);
    }
}

async fn nats(
    found: &mut Findings,
    parts: PartSettings<'_>,
    role: BusRole,
    incarnation: Option<[u8; 16]>,
    world: &Arc<dyn World>,
) {
    const WHAT: &str = "nats";
    let opened = parts
        .nats
        .open(role, parts.cluster)
        .and_then(|config| Ok((config, BusMetrics::new(&Registry::new())?)));
    let (mut config, metrics) = match opened {
        Ok(opened) => opened,
        Err(error) => return found.bad(WHAT, format!("{error:#}")),
    };
    if let Some(incarnation) = incarnation {
        config.cluster = ClusterId::of_store(parts.cluster, incarnation);
    }
    let connect = NatsBus::connect(config, Arc::clone(world), Arc::new(metrics));
    match Box::pin(tokio::time::timeout(PATIENCE, connect)).await {
        Ok(Ok(bus)) => {
            bus.close().await;
            found.good(WHAT, "answers, is new enough and takes messages of the size that is needed");
        }
        Ok(Err(error)) => found.bad(WHAT, format!("{}: {error}; {}", error.code(), error.hint())),
        Err(_) => found.bad(WHAT, "no answer within 10 s; check nats.urls and the network"),
    }
}

/// Whether JetStream syncs before it answers.
pub(super) async fn synced(found: &mut Findings, monitors: &[String]) {
    const WHAT: &str = "nats sync";
    if monitors.is_empty() {
        found.warn(WHAT, "not known: name the NATS servers' monitoring ports in wakes.monitors");
    }
    for monitor in monitors {
        match tokio::time::timeout(PATIENCE, sync::ask(monitor)).await {
            Ok(Synced::Always) => found.good(WHAT, format!("{monitor}: always")),
            Ok(Synced::NowAndThen) => found.warn(
                WHAT,
                format!("{monitor}: now and then, so a power cut takes wake hints that were taken: sync_interval: always"),
            ),
            Ok(Synced::NoJetStream) => found.bad(WHAT, format!("{monitor} has no JetStream: enable it")),
            Ok(Synced::Unknown(why)) => found.warn(WHAT, format!("{monitor}: {why}")),
            Err(_) => found.warn(WHAT, format!("{monitor}: no answer within 10 s")),
        }
    }
}

/// Whether there are keys to check tokens with.
pub(super) async fn token_keys(found: &mut Findings, token: &TokenConfig, world: &Arc<dyn World>) {
    const WHAT: &str = "token keys";
    let opened = token.open(None).map_err(|error| error.to_string());
    let made = GatewayMetrics::new(&Registry::new()).map_err(|error| error.to_string());
    let (verifier, metrics): (TokenVerifier, GatewayMetrics) = match (opened, made) {
        (Ok(verifier), Ok(metrics)) => (verifier, metrics),
        (Err(error), _) | (_, Err(error)) => return found.bad(WHAT, error),
    };
    let fetching = async {
        tokio::select! {
            biased;
            () = verifier.has_keys() => {}
            () = verifier.run(world.as_ref(), &metrics) => {}
        }
    };
    match tokio::time::timeout(PATIENCE, fetching).await {
        Ok(()) => found.good(WHAT, "there"),
        Err(_) => found
            .bad(WHAT, "none within 10 s: nobody gets in; check token.jwks, token.algorithm and token.ca"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn clocks_are_judged_by_how_far_they_are_apart() {
        for (database, ours, verdict) in [
            (100_000, 100_900, Verdict::Good),
            (100_900, 100_000, Verdict::Good),
            (100_000, 102_000, Verdict::Warn),
            (102_000, 100_000, Verdict::Warn),
            (200_000, 100_000, Verdict::Bad),
        ] {
            let mut found = Findings::default();
            clocks(&mut found, database, ours);
            assert_eq!(found.findings[0].verdict, verdict, "{database} and {ours}");
        }
    }
}
