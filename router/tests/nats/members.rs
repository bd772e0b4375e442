//! What consoles show of a whole cluster, over a server that lets each role do only its own.

use crate::support::{Cluster, bus_metrics};
use bytes::Bytes;
use chappe_node::admin::{self, Admin, Process};
use chappe_router::nats::{NatsBus, NatsConfig};
use prometheus::Registry;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A process with its console, as far as others see it.
struct Shown {
    bus: Arc<NatsBus>,
    at: SocketAddr,
    stop: CancellationToken,
    denied: Box<dyn Fn() -> u64>,
    _ready: watch::Sender<bool>,
}

async fn show(cluster: &Cluster, role: &'static str, config: NatsConfig) -> Shown {
    let metrics = bus_metrics();
    let bus = NatsBus::connect(config, Arc::clone(&cluster.world), Arc::clone(&metrics)).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (ready, watched) = watch::channel(true);
    let stop = CancellationToken::new();
    let process =
        Process { role, registry: Registry::new(), ready: watched, stop: stop.clone(), handler: None };
    let admin = Admin::new(process, at).unwrap();
    bus.meet(&admin.console()).await.unwrap();
    let tasks = TaskTracker::new();
    tasks.spawn(admin::serve(listener, admin, CancellationToken::new(), tasks.clone()));
    Shown { bus, at, stop, denied: Box::new(move || metrics.denied.get()), _ready: ready }
}

impl Shown {
    async fn sees(&self) -> Value {
        let (status, text) =
            admin::request(self.at, "GET", "/console/data", None, Bytes::new()).await.unwrap();
        assert_eq!(status, 200);
        serde_json::from_str(&text).unwrap()
    }
}

fn roles(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|member| member["role"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_console_shows_all_and_tells_who_fell_silent() {
    let (_server, cluster, _seed) = crate::permissions::start().await;
    let gateway = show(&cluster, "gateway", cluster.gateway_config.clone()).await;
    let router = show(&cluster, "router", cluster.router_config.clone()).await;
    let pusher = show(&cluster, "pusher", cluster.pusher_config.clone()).await;

    // All of them together: each role asks and answers with its own permissions.
    for one in [&gateway, &router, &pusher] {
        let seen = one.sees().await;
        assert_eq!(roles(&seen["members"]), ["gateway", "pusher", "router"], "{seen}");
        assert_eq!(seen["silent"].as_array().unwrap().len(), 0);
        assert!(seen["waited_ms"].as_u64().unwrap() < 2_000, "{seen}");
        let first = &seen["members"][0];
        assert_eq!(first["series"]["chappe_build_info{role=\"gateway\",version=\"0.1.0\"}"], 1.0, "{first}");
        assert_eq!(first["series"]["chappe_ready"], 1.0, "{first}");
        assert!(first["series"]["process_resident_memory_bytes"].as_f64().unwrap() > 1e6);
        assert_eq!((one.denied)(), 0, "nothing of it is forbidden");
    }

    // One drains, and is no loss; another is gone.
    router.stop.cancel();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let seen = gateway.sees().await;
    assert_eq!(seen["members"][2]["draining"], true, "{seen}");
    router.bus.close().await;
    pusher.bus.close().await;
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let seen = gateway.sees().await;
    assert_eq!(
        (roles(&seen["members"]), roles(&seen["silent"])),
        (vec!["gateway"], vec!["pusher"]),
        "{seen}"
    );
}

#[tokio::test]
async fn many_who_look_ask_once() {
    let (_server, cluster, _seed) = crate::permissions::start().await;
    let gateway = show(&cluster, "gateway", cluster.gateway_config.clone()).await;
    let first = gateway.sees().await;
    for _ in 0..20 {
        assert_eq!(
            gateway.sees().await["at_ms"],
            first["at_ms"],
            "within two seconds the answer is the same"
        );
    }
}
