//! One simulation from its seed to its verdict. **Invariant:** the same seed gives the same trace.

use crate::hosts::{self, Cluster, GATEWAYS, Plant, ROUTERS, SHAPE, SITES};
use crate::plan::{self, Act};
use crate::support::{Record, Verdict};
use crate::wires::Wires;
use crate::world::{Latest, SimWorld};
use chappe_client::{State, World};
use chappe_gateway::GatewayMetrics;
use chappe_gateway::faults::Bug;
use chappe_protocol::testing::Rng;
use chappe_router::planted::PlantedBug;
use chappe_router::{Directory, RouterMetrics};
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::slotlog::LogStats;
use futures_util::FutureExt as _;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TICK_MS: u64 = 10;
/// After everything is mended it is quiet within so long.
const QUIET_MS_MAX: u64 = 45_000;
const FAULTS: Faults = Faults { delay_ms_max: 8, unavailable: 15, lost_reply: 15, late: 15, stale: 20 };

/// What a simulation has shown.
#[derive(Debug, Default, Clone)]
pub(crate) struct Shown {
    pub(crate) verdict: Verdict,
    pub(crate) trace: u64,
    pub(crate) log: LogStats,
    pub(crate) resumes: u64,
    pub(crate) attaches: u64,
    pub(crate) bells_lost: u64,
    pub(crate) replies_lost: u64,
    pub(crate) simulated_ms: u64,
}

/// Runs a seed.
pub(crate) fn simulate(seed: u64, plant: Plant) -> Shown {
    let mut simulation = Simulation::new(seed, plant);
    simulation.run();
    simulation.shown()
}

struct Simulation {
    sim: turmoil::Sim<'static>,
    cluster: Arc<Cluster>,
    random: Rng,
    world: Arc<SimWorld>,
    now_ms: u64,
    crashed: BTreeSet<String>,
}

impl Simulation {
    fn new(seed: u64, plant: Plant) -> Self {
        let mut random = Rng::new(seed);
        let latest = Arc::new(Latest::default());
        let world = SimWorld::new(latest.clone(), random.bits());
        let memory = Arc::new(MemoryRows::new(world.clone()));
        if let Plant::Store(planted) = plant {
            memory.plant(Some(planted));
        }
        let registry = prometheus::Registry::new();
        let router_metrics = Arc::new(RouterMetrics::new(&registry).unwrap());
        let shape = plan::shape(&mut random);
        // The defects of probing show only where no doorbell helps; so do it with some of the seeds in any case.
        let probing = [Plant::Router(PlantedBug::BlindProbe), Plant::Gateway(Bug::SkipProbe)];
        let deaf = random.percent(10) || probing.contains(&plant);
        let cluster = Arc::new(Cluster {
            seed,
            plant,
            shape,
            rows: Arc::new(Faulty::new(memory.clone(), random.bits(), FAULTS)),
            wires: Wires::new(random.bits(), deaf),
            directory: Arc::new(Directory::new(world.clone(), 10_000, router_metrics)),
            record: Record::new(plan::people(&mut random), memory),
            gateway_metrics: Arc::new(GatewayMetrics::new(&registry).unwrap()),
            logs: Mutex::default(),
            apps: Mutex::default(),
            twins: Mutex::default(),
            away: Mutex::default(),
            working: AtomicBool::new(false),
            processes: AtomicU64::new(0),
            crashing: Arc::default(),
            latest,
        });
        cluster.rows.switch(false);
        let mut sim = turmoil::Builder::new()
            .rng_seed(random.bits())
            .tick_duration(Duration::from_millis(TICK_MS))
            .simulation_duration(Duration::from_hours(1))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(30))
            .tcp_capacity(1024)
            .build();
        for name in 0..ROUTERS {
            let cluster = cluster.clone();
            sim.host(format!("r{name}"), move || hosts::router(cluster.clone(), name));
        }
        for name in 0..GATEWAYS {
            let cluster = cluster.clone();
            sim.host(format!("gw{name}"), move || hosts::gateway(cluster.clone(), name));
        }
        for name in 0..SITES {
            sim.client(format!("site{name}"), hosts::site(cluster.clone(), name));
        }
        Self { sim, cluster, random, world, now_ms: 0, crashed: BTreeSet::new() }
    }

    fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            self.cluster.record.violate(format!("a process failed: {error}"));
        }
        self.now_ms += TICK_MS;
        if self.now_ms.is_multiple_of(50) {
            self.cluster.record.watch_cursors();
        }
    }

    fn run(&mut self) {
        // Everybody attaches first, so that everybody is a target from the first envelope on.
        while !self.all_connected() && self.now_ms < 20_000 {
            self.step();
        }
        let began = self.now_ms;
        self.switch(true);
        let devices = u32::try_from(self.cluster.record.people.len()).unwrap();
        let mut deeds = plan::deeds(&mut self.random, &self.cluster.shape, devices).into_iter().peekable();
        while self.now_ms < began + self.cluster.shape.work_ms {
            while let Some((_, act)) = deeds.next_if(|(at, _)| began + at <= self.now_ms) {
                self.act(act);
            }
            self.step();
        }
        self.mend();
        let mended = self.now_ms;
        while !self.is_quiet() && self.now_ms < mended + QUIET_MS_MAX {
            self.step();
        }
        if !self.is_quiet() {
            let undecided = self.cluster.record.undecided();
            let apps = self.cluster.apps.lock().unwrap();
            let states: Vec<State> = apps.values().map(|app| app.client.state()).collect();
            self.cluster.record.violate(format!(
                "not quiet: {} of the twins are served, undecided are {undecided:?}, clients are {states:?}",
                self.twins_served()
            ));
        }
        // What comes twice comes now.
        (0..100).for_each(|_| self.step());
    }

    fn switch(&self, on: bool) {
        self.cluster.working.store(on, Ordering::Relaxed);
        self.cluster.rows.switch(on);
        self.cluster.wires.switch(on);
    }

    fn act(&mut self, act: Act) {
        self.cluster.record.note(&format!("{} {act:?}", self.now_ms));
        match act {
            Act::CrashGateway(name) => self.crash(format!("gw{name}")),
            Act::CrashRouter(name) => self.crash(format!("r{name}")),
            Act::BounceGateway(name) => self.bounce(format!("gw{name}")),
            Act::BounceRouter(name) => self.bounce(format!("r{name}")),
            Act::Part(site, gateway) => self.sim.partition(format!("site{site}"), format!("gw{gateway}")),
            Act::Repair(site, gateway) => self.sim.repair(format!("site{site}"), format!("gw{gateway}")),
            Act::Hold(site, gateway) => self.sim.hold(format!("site{site}"), format!("gw{gateway}")),
            Act::Release(site, gateway) => self.sim.release(format!("site{site}"), format!("gw{gateway}")),
            Act::Cut(gateway, router) => self.cluster.wires.cut(gateway, router, true),
            Act::Join(gateway, router) => self.cluster.wires.cut(gateway, router, false),
            Act::Disconnect(device) => self.cluster.apps.lock().unwrap()[&device].client.disconnect_now(),
            Act::Leave(device) => {
                self.cluster.away.lock().unwrap().insert(device);
                self.cluster.apps.lock().unwrap()[&device].client.disconnect_now();
            }
            Act::Return(device) => drop(self.cluster.away.lock().unwrap().remove(&device)),
        }
    }

    fn crash(&mut self, host: String) {
        if self.crashed.insert(host.clone()) {
            self.cluster.crashing.store(true, Ordering::Relaxed);
            self.sim.crash(host);
            self.cluster.crashing.store(false, Ordering::Relaxed);
        }
    }

    fn bounce(&mut self, host: String) {
        if self.crashed.remove(&host) {
            self.sim.bounce(host);
        }
    }

    fn mend(&mut self) {
        self.cluster.record.note(&format!("{} mended", self.now_ms));
        self.switch(false);
        self.cluster.rows.settle().now_or_never();
        self.cluster.away.lock().unwrap().clear();
        for host in std::mem::take(&mut self.crashed) {
            self.sim.bounce(host);
        }
        for site in 0..SITES {
            for gateway in 0..GATEWAYS {
                let (site, gateway) = (format!("site{site}"), format!("gw{gateway}"));
                self.sim.release(site.clone(), gateway.clone());
                self.sim.repair(site, gateway);
            }
        }
    }

    fn all_connected(&self) -> bool {
        let apps = self.cluster.apps.lock().unwrap();
        let connected = |app: &crate::support::App| matches!(app.client.state(), State::Connected { .. });
        apps.len() == self.cluster.record.people.len() && apps.values().all(connected)
    }

    fn is_quiet(&self) -> bool {
        if !self.now_ms.is_multiple_of(200) {
            return false;
        }
        let quiet = self.cluster.record.is_quiet(self.world.clone(), SHAPE).now_or_never().unwrap();
        quiet && self.twins_served() <= 1
    }

    /// I6: how many clients of the twin device are served. One that has not noticed its dead connection counts, too.
    fn twins_served(&self) -> usize {
        let twins = self.cluster.twins.lock().unwrap();
        twins.iter().filter(|twin| matches!(twin.state(), State::Connected { .. })).count()
    }

    fn shown(&mut self) -> Shown {
        let (cluster, world): (_, Arc<dyn World>) = (self.cluster.clone(), self.world.clone());
        let logs = cluster.logs.lock().unwrap();
        let log = logs.iter().map(|log| log.stats()).fold(LogStats::default(), LogStats::plus);
        if log.lost + log.heads_back + log.cursors_ahead > 0 {
            cluster.record.violate(format!("alarms of the store: {log:?}"));
        }
        let verdict = cluster.record.audit(world, SHAPE).now_or_never().unwrap();
        Shown {
            verdict,
            trace: cluster.record.trace(),
            log,
            resumes: cluster.gateway_metrics.resumed_total.get(),
            attaches: cluster.gateway_metrics.attached_total.get(),
            bells_lost: cluster.wires.bells_lost.load(Ordering::Relaxed),
            replies_lost: cluster.wires.replies_lost.load(Ordering::Relaxed),
            simulated_ms: self.now_ms,
        }
    }
}
