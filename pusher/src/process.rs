//! The process `pusher`. **Invariant:** it is ready only while it can reach the store; told to stop, wakes in flight end, and what
//! waits is another's.

use crate::config::{Parts, Providers};
use crate::metrics::PusherMetrics;
use crate::operations;
use crate::settings::PusherSettings;
use crate::shards::Members;
use crate::waker::{Hinted, Waker, WakerParts};
use anyhow::Result;
use async_trait::async_trait;
use chappe_node::admin::{Admin, Process};
use chappe_node::clock::SystemWorld;
use chappe_node::config::read_secret;
use chappe_node::listen::bind;
use chappe_node::signal::Signals;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_router::nats::{BusRole, WakeJob, WakeJobMetrics, WakeJobs};
use chappe_router::parts::PartSettings;
use chappe_router::redis::RedisPresence;
use chappe_router::settings::QuotaConfig;
use futures_util::Stream;
use prometheus::Registry;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs a pusher until the signals say stop. Returns whether what was under way ended within the budget.
pub async fn run(settings: PusherSettings, signals: Signals) -> Result<bool> {
    let world: Arc<dyn World> = Arc::new(SystemWorld::new());
    let registry = Registry::new();
    let token = read_secret(&settings.admin_token, "admin_token")?;
    let keys = Arc::new(settings.push.open()?);
    let (background, ended) = (TaskTracker::new(), CancellationToken::new());
    let connections = TaskTracker::new();
    let providers = Parts::system(Arc::clone(&world), connections.clone());
    let providers = Arc::new(Providers::open(&settings.providers, providers)?);
    let (ready, watched) = watch::channel(false);
    let operations = Arc::new(OnceLock::new());
    let handler = operations::handler(Arc::clone(&operations));
    let listener = bind(settings.admin, "--set admin=…").await?;
    let process = Process {
        role: "pusher",
        registry: registry.clone(),
        ready: watched,
        stop: signals.stop.clone(),
        handler: Some(handler),
    };
    let admin = Admin::new(process, listener.local_addr()?)?;
    let console = admin.console();
    tracing::info!(admin = %listener.local_addr()?, cluster = settings.cluster, "a pusher starts");
    background.spawn(chappe_node::admin::serve(listener, admin, ended.clone(), background.clone()));

    // A pusher appends nothing: the quota is the routers' business.
    let quota = QuotaConfig::default();
    let parts = PartSettings {
        cluster: &settings.cluster,
        nats: &settings.nats,
        redis: &settings.redis,
        cql: &settings.cql,
        quota: &quota,
    };
    let Some(parts) = parts.open(BusRole::Pusher, &world, &registry, &signals.stop).await? else {
        return Ok(true);
    };
    let parts = Arc::new(parts);
    parts.bus.meet(&console).await?;
    let job_metrics = Arc::new(WakeJobMetrics::new(&registry)?);
    let jobs = parts.bus.wake_jobs(settings.wakes.jobs(), job_metrics).await?;
    let waker = Waker::new(
        settings.limits.waker(),
        WakerParts {
            world,
            store: Arc::clone(&parts.store),
            presence: Arc::clone(&parts.presence) as _,
            keys,
            waking: Arc::clone(&providers) as _,
            members: Arc::new(RedisMembers(Arc::clone(&parts.presence))),
            metrics: Arc::new(PusherMetrics::new(&registry)?),
        },
    );
    if !token.is_empty() {
        let _ = operations.set(operations::Operations { waker: waker.clone(), token });
    }
    let (reload, stop, reloaded) = (signals.reload.clone(), ended.clone(), waker.clone());
    let files = settings.providers.clone();
    background.spawn(async move {
        stop.run_until_cancelled(providers.reload_on(files, reload, || reloaded.resume())).await;
    });
    let (looked, watching) = (Arc::clone(&parts), signals.stop.clone());
    background.spawn(async move {
        looked
            .watch(watching, |store| {
                ready.send_if_modified(|ready| std::mem::replace(ready, store) != store);
            })
            .await;
        ready.send_replace(false);
    });
    tracing::info!("a pusher serves");
    let (tasks, stop) = (TaskTracker::new(), signals.stop.clone());
    tasks.spawn(async move { waker.run(Box::pin(hints(jobs)), stop).await });
    signals.stop.cancelled().await;
    let budget = Duration::from_millis(u64::from(settings.drain.budget_ms));
    let in_time = chappe_node::drain::wait(&signals.stop, &tasks, budget).await;
    parts.bus.close().await;
    ended.cancel();
    background.close();
    background.wait().await;
    Ok(in_time)
}

/// Who lives, by leases in Redis.
struct RedisMembers(Arc<RedisPresence>);

#[async_trait]
impl Members for RedisMembers {
    async fn beat(&self, me: u64) -> Option<Vec<u64>> {
        self.0.join_pushers(me, crate::shards::LEASE).await
    }

    async fn leave(&self, me: u64) {
        self.0.leave_pushers(me).await;
    }
}

/// The hints of the work queue, until the bus is closed.
fn hints(jobs: WakeJobs) -> impl Stream<Item = Hinted> + Send {
    futures_util::stream::unfold(jobs, |mut jobs| async {
        let job = jobs.next().await?;
        Some((hinted(job), jobs))
    })
}

fn hinted(job: WakeJob) -> Hinted {
    let hint = job.hint;
    let finish = move |dealt_with: bool| {
        if dealt_with {
            job.done();
        } else {
            job.later(Millis(0));
        }
    };
    Hinted { hint, finish: Some(Box::new(finish)) }
}
