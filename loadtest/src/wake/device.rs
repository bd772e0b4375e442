//! One device: it sleeps, is woken, comes, takes what is there, and sleeps again. **Invariant:** asleep, it does nothing by itself.

use super::run::Run;
use crate::balancer::Balancer;
use crate::proxy::{Carriers, Proxy, ProxyConfig};
use crate::run::{builder, builder_to};
use anyhow::{Context, Result};
use chappe_client::{Client, Event};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// It goes back to sleep when nothing came for so long.
const AWAKE: Duration = Duration::from_millis(500);
/// A session that does not come about is given up after this; the device sleeps until the next wake.
const VISIT_MAX: Duration = Duration::from_mins(1);
/// From the first knock to the word that it is stored.
const REGISTER_MAX: Duration = Duration::from_mins(1);
/// A goodbye through a black hole takes for ever.
const GOODBYE_MAX: Duration = Duration::from_secs(5);

/// A path of its own that can fall silent with the connection open.
pub(super) struct BadPath {
    proxy: Proxy,
    server: String,
}

impl BadPath {
    /// To the first of the servers; their address must be one in numbers.
    pub(super) async fn to(server: &str) -> Result<Self> {
        let authority = server.split_once("://").map_or(server, |(_, rest)| rest).split('/').next();
        let target: SocketAddr = authority.unwrap_or_default().parse().with_context(|| {
            format!("--server {server}: silent devices need an address in numbers; or --silent-percent 0")
        })?;
        let proxy = Proxy::start(ProxyConfig::new((Ipv4Addr::LOCALHOST, 0).into(), target)).await?;
        let scheme = if server.starts_with("ws://") { "ws" } else { "wss" };
        let server = format!("{scheme}://{}", proxy.local_addr());
        Ok(Self { proxy, server })
    }

    fn swallow(&self, all: bool) {
        if !all {
            self.proxy.reset_tcp();
        }
        self.proxy.black_hole(Carriers::Tcp, all);
    }
}

impl Run {
    /// A client of this device, under way.
    fn start(&self, device: u32, path: Option<&BadPath>) -> Result<Client> {
        let target = &self.plan.target;
        let client = match path {
            None => builder(target, &self.balancer, device)?,
            Some(path) => {
                let balancer =
                    Arc::new(Balancer::of(std::slice::from_ref(&path.server)).map_err(anyhow::Error::msg)?);
                builder_to(target, &balancer, path.server.clone(), device)
            }
        };
        Ok(client.start())
    }

    /// Says where it is to be woken, and goes to sleep.
    pub(super) async fn register(&self, device: u32) -> Result<()> {
        let client = self.start(device, None)?;
        let settings = self.provider.registration(device)?;
        let set = tokio::time::timeout(REGISTER_MAX, client.set_push(settings)).await;
        set.context("a device could not register in time; is the server up, and is it the right address?")?
            .context("a device could not register to be woken")?;
        client.close().await;
        Ok(())
    }

    /// Sleeps and comes when it is woken, until the run ends.
    pub(super) async fn live(self: Arc<Self>, device: u32, path: Option<BadPath>) {
        let mut silent: Option<Client> = None;
        loop {
            self.beds[device as usize].notified().await;
            if let (Some(client), Some(path)) = (silent.take(), &path) {
                // Its system has ended the app meanwhile: nothing of the old session is left.
                let _ = tokio::time::timeout(Duration::from_millis(50), client.close()).await;
                path.swallow(false);
            }
            let from = self.wall();
            let Ok(client) = self.start(device, path.as_ref()) else { return };
            self.life(device).sessions.push((from, u64::MAX));
            let visit = tokio::time::timeout(VISIT_MAX, self.take_all(device, &client)).await;
            match &path {
                Some(path) if visit.is_ok() => {
                    // What it acked is on its way; then nothing more is.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    path.swallow(true);
                    self.falls_asleep(device);
                    silent = Some(client);
                }
                Some(_) | None => {
                    let _ = tokio::time::timeout(GOODBYE_MAX, client.close()).await;
                    self.falls_asleep(device);
                }
            }
        }
    }

    fn falls_asleep(&self, device: u32) {
        let now = self.wall();
        if let Some((_, to)) = self.life(device).sessions.last_mut() {
            *to = now;
        }
    }

    /// Takes what was there and what comes meanwhile.
    async fn take_all(&self, device: u32, client: &Client) {
        let mut backlog = true;
        loop {
            let next = client.next_event();
            let event = if backlog {
                next.await
            } else {
                match tokio::time::timeout(AWAKE, next).await {
                    Ok(event) => event,
                    Err(_) => return,
                }
            };
            match event {
                None => return,
                Some(Event::BacklogEnd) => backlog = false,
                Some(Event::Envelope(envelope)) => {
                    self.received(device, &envelope.payload);
                    envelope.ack();
                }
                // The audit finds what a gap left out.
                Some(_) => {}
            }
        }
    }
}
