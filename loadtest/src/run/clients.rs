//! The users of a run. **Invariant:** each has one client at a time, on the way that the scenario gives it.

use super::{Run, Target};
use crate::balancer::Balancer;
use crate::lean::{Engine, Session, Way};
use crate::proxy::{Proxy, ProxyConfig};
use crate::pulse::{Progress, Pulse};
use crate::scenario::Scenario;
use anyhow::{Context, Result, bail};
use chappe_client::{Builder, Carrier, Client, State, Tuning, UserId};
use chappe_protocol::world::World;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

/// All users must be connected within this, over what the scenario gives them.
const CONNECT_MAX: Duration = Duration::from_mins(1);
/// A handful of handshakes at a time: a storm of its own is another scenario.
const AT_ONCE: u32 = 32;
/// For the last acks and the goodbyes of all.
const CLOSE_MAX: Duration = Duration::from_secs(10);

/// The device of every user.
const DEVICE: &str = "load";
/// It is looked so often whether everybody is connected.
const LOOK: Duration = Duration::from_millis(2);

/// What drives a user's device.
#[derive(Clone)]
pub(super) enum User {
    /// The rules of the SDK in a shell of this harness.
    Lean(Arc<Session>),
    /// The SDK.
    Sdk(Client),
}

impl User {
    /// Loses the connection, as in a bad network.
    pub(super) fn cut(&self) {
        match self {
            Self::Lean(session) => session.cut(),
            Self::Sdk(client) => client.disconnect_now(),
        }
    }

    /// Says goodbye and ends.
    async fn close(&self) {
        match self {
            Self::Lean(session) => {
                session.close();
                while session.is_over().is_none() {
                    tokio::time::sleep(LOOK).await;
                }
            }
            Self::Sdk(client) => client.close().await,
        }
    }

    /// Resolves as soon as it is connected. Errors: it will never be.
    pub(super) async fn connected(&self) -> Result<()> {
        match self {
            Self::Lean(session) => {
                let mut pause = LOOK;
                while !session.is_connected() {
                    if let Some(why) = session.is_over() {
                        bail!(why);
                    }
                    tokio::time::sleep(pause).await;
                    // Whoever takes long is not looked at so often.
                    pause = (pause * 2).min(LOOK * 25);
                }
                Ok(())
            }
            Self::Sdk(client) => Ok(client.connected().await?),
        }
    }

    /// What carries it, if it is connected.
    fn carrier(&self) -> Option<&'static str> {
        match self {
            Self::Lean(session) => session.is_connected().then_some(LEAN_CARRIER),
            Self::Sdk(client) => carrier(&client.state()),
        }
    }

    /// As in the report.
    fn engine(&self) -> &'static str {
        match self {
            Self::Lean(_) => "lean",
            Self::Sdk(_) => "sdk",
        }
    }
}

/// What carries every lean session.
pub(super) const LEAN_CARRIER: &str = Carrier::WebSocket.as_str();

/// The users and their ways.
pub(super) struct Crowd {
    users: Vec<RwLock<User>>,
    /// What they are called.
    pub(super) names: Vec<UserId>,
    /// To make them anew.
    builders: Builders,
    /// The bad ways, one per server.
    pub(super) ways: Vec<Proxy>,
    /// Clients of the SDK that are connected.
    connected: AtomicU64,
}

/// What users are made of.
struct Builders {
    scenario: Scenario,
    target: Target,
    engine: Engine,
    straight: Road,
    bad: Option<Road>,
}

/// A way to the servers.
struct Road {
    balancer: Arc<Balancer>,
    /// The first server.
    server: String,
    /// For lean sessions, with the address it leads to.
    lean: Mutex<Option<(String, Arc<Way>)>>,
}

impl Road {
    fn new(balancer: Balancer, servers: &[String]) -> Self {
        let server = servers.first().cloned().unwrap_or_default();
        Self { balancer: Arc::new(balancer), server, lean: Mutex::default() }
    }

    fn lean(&self, target: &Target, address: &str) -> Result<Arc<Way>> {
        let mut lean = self.lean.lock().unwrap_or_else(PoisonError::into_inner);
        match &*lean {
            Some((to, way)) if to == address => Ok(Arc::clone(way)),
            Some(_) | None => {
                let connector = Arc::<Balancer>::clone(&self.balancer);
                let way = Way::new(address, target.roots_pem.as_deref(), connector)?;
                Ok(Arc::clone(&lean.insert((address.to_owned(), way)).1))
            }
        }
    }
}

impl Builders {
    fn start(&self, user: u32) -> Result<User> {
        let percent = self.scenario.path.as_ref().map_or(0.0, |path| path.percent);
        let road = match &self.bad {
            Some(bad) if self.scenario.is_last(percent, user) => bad,
            Some(_) | None => &self.straight,
        };
        let address = address(&self.target, &road.server, user)?;
        if self.scenario.sdk || !(address.starts_with("ws://") || address.starts_with("wss://")) {
            return Ok(User::Sdk(builder_to(&self.target, &road.balancer, address, user).start()));
        }
        Ok(User::Lean(self.engine.start(user, &road.lean(&self.target, &address)?)))
    }
}

impl Crowd {
    /// One connected device per user; users exist from their first token on. Those who will be away say hello and go.
    pub(super) async fn gather(
        scenario: &Scenario,
        target: &Target,
        world: &Arc<dyn World>,
        progress: &Progress,
    ) -> Result<Self> {
        let (ways, bad) = bad_ways(scenario, target).await?;
        let builders = Builders {
            scenario: scenario.clone(),
            target: target.clone(),
            engine: Engine::new(target.clone(), DEVICE, Tuning::default(), Arc::clone(world))?,
            straight: Road::new(balancer(target)?, &target.servers),
            bad,
        };
        let connecting = |share: f64| {
            let pulse = Pulse { line: "connecting".to_owned(), share, ..Pulse::default() };
            progress(0, &pulse);
        };
        connecting(0.0);
        let mut users: Vec<User> = Vec::new();
        let begin = super::now();
        for user in 0..scenario.users {
            if !scenario.connect_over.is_zero() {
                let due = scenario.connect_over * user / scenario.users;
                tokio::time::sleep_until(begin + due).await;
            }
            users.push(builders.start(user)?);
            if user % AT_ONCE == AT_ONCE - 1 {
                if scenario.connect_over.is_zero() {
                    all_connected(&users[users.len() - AT_ONCE as usize..]).await?;
                }
                connecting(f64::from(user) / f64::from(scenario.users));
            }
        }
        all_connected(&users).await?;
        let away = (0..scenario.users).filter(|user| scenario.is_last(scenario.sessions.away_percent, *user));
        futures_util::stream::iter(away.map(|user| users[user as usize].close()))
            .for_each_concurrent(AT_ONCE as usize, |closed| closed)
            .await;
        let names = (0..scenario.users).map(|user| UserId::new(&target.name(user)));
        let names = names.collect::<Result<_, _>>()?;
        let users = users.into_iter().map(RwLock::new).collect();
        Ok(Self { users, names, builders, ways, connected: AtomicU64::new(0) })
    }

    pub(super) fn user(&self, user: u32) -> User {
        self.users[user as usize].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A new device for a user who was away.
    pub(super) fn renew(&self, user: u32) -> Result<User> {
        let new = self.builders.start(user)?;
        *self.users[user as usize].write().unwrap_or_else(PoisonError::into_inner) = new.clone();
        Ok(new)
    }

    pub(super) fn all(&self) -> Vec<User> {
        self.users.iter().map(|one| one.read().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    /// Lean sessions tell this one what happens.
    pub(super) fn serve(&self, host: Weak<Run>) {
        self.builders.engine.serve(host);
    }

    /// How many are connected now.
    pub(super) fn sessions(&self) -> u64 {
        self.connected.load(Ordering::Relaxed) + self.builders.engine.connected()
    }

    /// Users that are connected, by carrier.
    pub(super) fn carriers(&self) -> BTreeMap<String, u32> {
        count(self.all().iter().filter_map(User::carrier))
    }

    /// All users, by what drives them.
    pub(super) fn engines(&self) -> BTreeMap<String, u32> {
        count(self.all().iter().map(User::engine))
    }

    /// Cuts and ends all.
    pub(super) async fn close(&self) {
        let all = self.all();
        all.iter().for_each(User::cut);
        self.builders.engine.end();
        // A client that cannot say goodbye any more does not change the verdict.
        let closing = futures_util::future::join_all(all.iter().map(User::close));
        let _ = tokio::time::timeout(CLOSE_MAX, closing).await;
    }
}

fn count(words: impl Iterator<Item = &'static str>) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for word in words {
        match counts.get_mut(word) {
            Some(count) => *count += 1,
            None => drop(counts.insert(word.to_owned(), 1)),
        }
    }
    counts
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
                    self.resumed(from, carrier(&state));
                }
                _ => {}
            }
            if state.is_final() {
                return;
            }
        }
    }

    /// A connection is there again that was lost then.
    pub(super) fn resumed(&self, from_us: u64, carrier: Option<&'static str>) {
        let at_us = self.elapsed_us();
        let mut record = self.lock();
        let phase = record.phase(&self.scenario, from_us, at_us);
        record.measured.resume.record(phase, carrier, at_us.saturating_sub(from_us));
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

type Ways = (Vec<Proxy>, Option<Road>);

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
    let balancer = Balancer::of(&servers).map_err(anyhow::Error::msg)?;
    Ok((ways, Some(Road::new(balancer, &servers))))
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
    let (name, device) = (target.name(user), DEVICE.to_owned());
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
    within(max, futures_util::future::try_join_all(clients.iter().map(Client::connected))).await
}

async fn all_connected(users: &[User]) -> Result<()> {
    within(CONNECT_MAX, futures_util::future::try_join_all(users.iter().map(User::connected))).await
}

async fn within<T, E>(max: Duration, all: impl Future<Output = Result<T, E>>) -> Result<()>
where
    Result<T, E>: Context<T, E>,
{
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
