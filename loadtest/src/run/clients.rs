//! The users of a run. **Invariant:** each has one client at a time, on the way that the scenario gives it.

use super::{Run, Target};
use crate::balancer::Balancer;
use crate::carriers;
use crate::proxy::{Proxy, ProxyConfig};
use crate::pulse::{Progress, Pulse};
use crate::scenario::Scenario;
use anyhow::{Context, Result};
use chappe_client::{Builder, Client, State};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// All users must be connected within this, over what the scenario gives them.
const CONNECT_MAX: Duration = Duration::from_mins(1);
/// A handful of handshakes at a time: a storm of its own is another scenario.
const AT_ONCE: u32 = 32;
/// For the last acks and the goodbyes of all.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// The users and their ways.
pub(super) struct Crowd {
    clients: Vec<RwLock<Client>>,
    /// To make them anew.
    builders: Builders,
    /// The bad ways, one per server.
    pub(super) ways: Vec<Proxy>,
    connected: AtomicU64,
}

/// What clients are made of.
struct Builders {
    scenario: Scenario,
    target: Target,
    straight: Arc<Balancer>,
    bad: Option<(Arc<Balancer>, Vec<String>)>,
}

impl Builders {
    fn builder(&self, user: u32) -> Result<Builder> {
        let percent = self.scenario.path.as_ref().map_or(0.0, |path| path.percent);
        match &self.bad {
            Some((balancer, servers)) if self.scenario.is_last(percent, user) => {
                let first = servers.first().map_or("", String::as_str);
                Ok(builder_to(&self.target, balancer, address(&self.target, first, user)?, user))
            }
            Some(_) | None => builder(&self.target, &self.straight, user),
        }
    }
}

impl Crowd {
    /// One connected client per user; users exist from their first token on. Those who will be away say hello and go.
    pub(super) async fn gather(scenario: &Scenario, target: &Target, progress: &Progress) -> Result<Self> {
        let (ways, bad) = bad_ways(scenario, target).await?;
        let builders = Builders {
            scenario: scenario.clone(),
            target: target.clone(),
            straight: Arc::new(balancer(target)?),
            bad,
        };
        let connecting = |share: f64| {
            let pulse = Pulse { line: "connecting".to_owned(), share, ..Pulse::default() };
            progress(0, &pulse);
        };
        connecting(0.0);
        let mut clients: Vec<Client> = Vec::new();
        let begin = super::now();
        for user in 0..scenario.users {
            let due = scenario.connect_over * user / scenario.users;
            tokio::time::sleep_until(begin + due).await;
            clients.push(builders.builder(user)?.start());
            if user % AT_ONCE == AT_ONCE - 1 {
                if scenario.connect_over.is_zero() {
                    connected(&clients[clients.len() - AT_ONCE as usize..], CONNECT_MAX).await?;
                }
                connecting(f64::from(user) / f64::from(scenario.users));
            }
        }
        connected(&clients, CONNECT_MAX).await?;
        let away = (0..scenario.users).filter(|user| scenario.is_last(scenario.sessions.away_percent, *user));
        futures_util::stream::iter(away.map(|user| clients[user as usize].close()))
            .for_each_concurrent(AT_ONCE as usize, |closed| closed)
            .await;
        let clients = clients.into_iter().map(RwLock::new).collect();
        Ok(Self { clients, builders, ways, connected: AtomicU64::new(0) })
    }

    pub(super) fn client(&self, user: u32) -> Client {
        self.clients[user as usize].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new client for a user who was away.
    pub(super) fn renew(&self, user: u32) -> Result<Client> {
        let client = self.builders.builder(user)?.start();
        *self.clients[user as usize].write().unwrap_or_else(PoisonError::into_inner) = client.clone();
        Ok(client)
    }

    pub(super) fn all(&self) -> Vec<Client> {
        self.clients.iter().map(|one| one.read().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    /// How many are connected now.
    pub(super) fn sessions(&self) -> u64 {
        self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn carriers(&self) -> BTreeMap<String, u32> {
        carriers::count(&self.all()).into_iter().map(|(name, users)| (name.to_owned(), users)).collect()
    }

    /// Cuts and ends all.
    pub(super) async fn close(&self) {
        let all = self.all();
        all.iter().for_each(Client::disconnect_now);
        // A client that cannot say goodbye any more does not change the verdict.
        let closing = futures_util::future::join_all(all.iter().map(Client::close));
        let _ = tokio::time::timeout(CLOSE_MAX, closing).await;
    }
}

impl Run {
    /// Follows one client's states: how long it is without a connection.
    pub(super) async fn follow(self: Arc<Self>, client: Client) {
        let mut states = std::pin::pin!(client.states());
        let (mut lost, mut here) = (None, false);
        while let Some(state) = states.next().await {
            let connected = matches!(state, State::Connected { .. });
            if connected && !here {
                self.crowd.connected.fetch_add(1, Ordering::Relaxed);
            }
            if !connected && here {
                self.crowd.connected.fetch_sub(1, Ordering::Relaxed);
            }
            here = connected;
            match (connected, lost) {
                (false, None) => lost = Some(self.elapsed_us()),
                (true, Some(from)) => {
                    lost = None;
                    self.resumed(from, &state);
                }
                _ => {}
            }
            if state.is_final() {
                return;
            }
        }
    }

    fn resumed(&self, from_us: u64, state: &State) {
        let at_us = self.elapsed_us();
        let mut record = self.lock();
        let phase = record.phase(&self.scenario, from_us, at_us);
        record.measured.resume.record(phase, carrier(state), at_us.saturating_sub(from_us));
    }
}

/// What carries a client in this state.
pub(super) fn carrier(state: &State) -> Option<&'static str> {
    match state {
        State::Connected { carrier, .. } => Some(carrier.as_str()),
        State::Connecting { .. }
        | State::Waiting { .. }
        | State::Superseded
        | State::Failed(_)
        | State::Closed => None,
    }
}

type Ways = (Vec<Proxy>, Option<(Arc<Balancer>, Vec<String>)>);

/// A proxy in front of each server.
async fn bad_ways(scenario: &Scenario, target: &Target) -> Result<Ways> {
    let Some(path) = &scenario.path else { return Ok((Vec::new(), None)) };
    let (mut ways, mut servers) = (Vec::new(), Vec::new());
    for server in &target.servers {
        let (scheme, rest) = server.split_once("://").unwrap_or(("wss", server));
        let authority = rest.split('/').next().unwrap_or_default();
        let address: SocketAddr = authority.parse().with_context(|| {
            format!("--server {server}: the bad path of this scenario needs an address in numbers")
        })?;
        let config = ProxyConfig {
            faults: path.faults(),
            seed: scenario.seed,
            ..ProxyConfig::new((Ipv4Addr::LOCALHOST, 0).into(), address)
        };
        let proxy = Proxy::start(config).await?;
        servers.push(format!("{scheme}://{}", proxy.local_addr()));
        ways.push(proxy);
    }
    let balancer = Arc::new(Balancer::of(&servers).map_err(anyhow::Error::msg)?);
    Ok((ways, Some((balancer, servers))))
}

fn address(target: &Target, server: &str, user: u32) -> Result<String> {
    match target.carrier {
        Some(choice) => choice.address(server, user).map_err(anyhow::Error::msg),
        None => Ok(server.to_owned()),
    }
}

/// To the servers of a target, from its source address.
pub(crate) fn balancer(target: &Target) -> Result<Balancer> {
    Balancer::of(&target.servers).map(|all| all.leaving_from(target.source)).map_err(anyhow::Error::msg)
}

/// The client of a user, through the servers in turn.
pub(crate) fn builder(target: &Target, balancer: &Arc<Balancer>, user: u32) -> Result<Builder> {
    let server = target.servers.first().map_or("", String::as_str);
    Ok(builder_to(target, balancer, address(target, server, user)?, user))
}

/// The same, to an address of its own.
pub(crate) fn builder_to(target: &Target, balancer: &Arc<Balancer>, address: String, user: u32) -> Builder {
    let (name, device) = (target.name(user), "load".to_owned());
    let builder = Client::builder(address)
        .connector(Arc::<Balancer>::clone(balancer))
        .device(device.clone())
        .token(target.issuer.source(name, device));
    match &target.roots_pem {
        Some(roots) => builder.root_certificates_pem(roots),
        None => builder,
    }
}

/// Waits for all of them.
pub(crate) async fn connected(clients: &[Client], max: Duration) -> Result<()> {
    let all = futures_util::future::try_join_all(clients.iter().map(Client::connected));
    tokio::time::timeout(max, all)
        .await
        .with_context(|| {
            let max = max.as_secs();
            format!(
                "not all users were connected within {max} s; is the server up, and is it the right address?"
            )
        })?
        .context("a user could not connect")?;
    Ok(())
}
