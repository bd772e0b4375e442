//! The process `router`. **Invariant:** it is ready only while it can reach the store and the bus; told to stop, it finishes what
//! it has taken.

use crate::nats::{BusRole, NatsBus, WakeMetrics, sync};
use crate::operations::{self, Operations};
use crate::parts::PartSettings;
use crate::settings::{RouterSettings, WakeSettings};
use crate::trace::Traces;
use crate::wakes::{LocalWakes, Wakes};
use crate::{LocalLinks, Router, RouterConfig, RouterMetrics, janitor};
use anyhow::Result;
use chappe_node::admin::{Admin, Process};
use chappe_node::clock::SystemWorld;
use chappe_node::config::read_secret;
use chappe_node::listen::bind;
use chappe_node::signal::Signals;
use chappe_node::spans::Origin;
use chappe_protocol::world::World;
use prometheus::Registry;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs a router until the signals say stop. Returns whether what was under way ended within the budget.
pub async fn run(settings: RouterSettings, signals: Signals) -> Result<bool> {
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let registry = Registry::new();
    let token = read_secret(&settings.admin_token, "admin_token")?;
    let (background, ended) = (TaskTracker::new(), CancellationToken::new());
    let (ready, watched) = watch::channel(false);
    let operations = Arc::new(OnceLock::new());
    let handler = operations::handler(Arc::clone(&operations));
    let listener = bind(settings.admin, "--set admin=…").await?;
    let process = Process {
        role: "router",
        registry: registry.clone(),
        ready: watched,
        stop: signals.stop.clone(),
        handler: Some(handler),
    };
    let admin_at = listener.local_addr()?;
    let admin = Admin::new(process, admin_at)?;
    let console = admin.console();
    tracing::info!(admin = %admin_at, cluster = settings.cluster, "a router starts");
    background.spawn(chappe_node::admin::serve(listener, admin, ended.clone(), background.clone()));

    let parts = PartSettings {
        cluster: &settings.cluster,
        nats: &settings.nats,
        redis: &settings.redis,
        cql: &settings.cql,
        quota: &settings.quota,
    };
    let Some(parts) = parts.open(BusRole::Router, &world, &registry, &signals.stop).await? else {
        return Ok(true);
    };
    let parts = Arc::new(parts);
    parts.bus.meet(&console).await?;
    let metrics = Arc::new(RouterMetrics::new(&registry)?);
    let wake_metrics = Arc::new(WakeMetrics::new(&registry)?);
    let wakes = wakes(&settings.wakes, &parts.bus, &wake_metrics).await?;
    if settings.wakes.publish {
        let monitors = settings.wakes.monitors.clone();
        background.spawn(sync::watch(monitors, wake_metrics, ended.clone()));
    }
    let origin = Origin { role: "router", cluster: &settings.cluster, at: admin_at };
    let (spans, exporter) = settings.traces.open(&origin, &world, &registry)?;
    if let Some(exporter) = exporter {
        background.spawn(exporter.run(ended.clone()));
    }
    let router = Router::with_wakes(
        RouterConfig { traces: Arc::new(Traces::telling(spans)), ..settings.limits.router() },
        Arc::clone(&world),
        Arc::clone(&parts.store),
        parts.bus.links(),
        Arc::clone(&parts.presence) as _,
        Arc::clone(&metrics),
        wakes,
    );
    if !token.is_empty() {
        // Operators' calls go through this very router.
        let own = Arc::new(LocalLinks::new(metrics));
        own.add_router(0, router.clone());
        let (store, traces) = (Arc::clone(&parts.store), router.traces());
        let _ = operations.set(Operations { store, links: own, traces, token });
    }
    let name = world.random_below(u64::MAX);
    let server = parts.bus.serve(router.clone(), name).await?;
    let ready = Arc::new(ready);
    let (looked, told, stop) = (Arc::clone(&parts), Arc::clone(&ready), signals.stop.clone());
    background.spawn(async move {
        let bus = Arc::clone(&looked.bus);
        looked
            .watch(stop, |store| {
                told.send_if_modified(|ready| {
                    let now = store && bus.health().connected;
                    std::mem::replace(ready, now) != now
                });
            })
            .await;
        told.send_replace(false);
    });
    background.spawn(janitor::run(Arc::clone(&parts.store), Arc::clone(&world), ended.clone()));

    signals.stop.cancelled().await;
    ready.send_replace(false);
    let budget = Duration::from_millis(u64::from(settings.drain.budget_ms));
    let in_time = tokio::time::timeout(budget, async {
        server.close().await;
        router.close().await;
    });
    let in_time = in_time.await.is_ok();
    if !in_time {
        tracing::warn!("the drain's budget is over, ending with requests still running");
        router.kill();
    }
    parts.bus.close().await;
    ended.cancel();
    background.close();
    background.wait().await;
    Ok(in_time)
}

async fn wakes(settings: &WakeSettings, bus: &NatsBus, metrics: &Arc<WakeMetrics>) -> Result<Arc<dyn Wakes>> {
    if settings.publish {
        return Ok(bus.wakes(settings.stream(), Arc::clone(metrics)).await?);
    }
    Ok(Arc::new(LocalWakes::default()))
}
