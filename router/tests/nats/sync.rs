//! What the servers' monitoring ports say about syncing.

use crate::server::{Server, free_port};
use crate::support::{until, wake_metrics};
use chappe_router::nats::sync::{Synced, ask, watch};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

async fn server(jetstream: &str) -> (Server, String) {
    let port = free_port();
    let server = Server::start(&format!("http: \"127.0.0.1:{port}\"\n{jetstream}")).await;
    (server, format!("http://127.0.0.1:{port}"))
}

#[tokio::test]
async fn each_server_says_whether_it_syncs_before_it_answers() {
    let (_always, always) = server("jetstream { store_dir: \"{{folder}}/js\", sync_interval: always }").await;
    let (lazy_server, lazy) = server("jetstream { store_dir: \"{{folder}}/js\" }").await;
    let (_without, without) = server("").await;
    assert_eq!(ask(&always).await, Synced::Always);
    assert_eq!(ask(&lazy).await, Synced::NowAndThen);
    assert_eq!(ask(&without).await, Synced::NoJetStream);
    let nobody = format!("http://127.0.0.1:{}", free_port());
    assert!(matches!(ask(&nobody).await, Synced::Unknown(_)));
    // The port of clients is no monitoring port.
    let wrong = lazy_server.url().replace("nats://", "http://");
    assert!(matches!(ask(&wrong).await, Synced::Unknown(_)));

    for (monitors, says) in [
        (vec![always.clone()], 1),
        (vec![always.clone(), lazy], 0),
        (vec![always.clone(), without], -1),
        (vec![always, nobody], -1),
        (vec![], -1),
    ] {
        let (metrics, stop) = (wake_metrics(), CancellationToken::new());
        metrics.synced.set(7);
        let told = monitors.clone();
        let watching = watch(monitors, Arc::clone(&metrics), stop.clone());
        let looking = async {
            if !told.is_empty() {
                until(&format!("{told:?} means {says}"), || metrics.synced.get() == says).await;
            }
            stop.cancel();
        };
        tokio::join!(watching, looking);
    }
    assert_eq!(wake_metrics().synced.get(), -1, "not known before it was asked");
}
