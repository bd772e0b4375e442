//! All workers of a run as one. **Invariant:** what one of them cannot do, the run has not done: the first failure is the run's.

use super::pipe::{self, Incoming, Outgoing, Side};
use super::{Answer, Ask, Order, Share, Told, Workers, part};
use crate::measure::Phase;
use crate::pulse::Progress;
use crate::run::{Outcome, Plan, Run};
use anyhow::{Context, Result, bail};
use chappe_protocol::world::World;
use futures_util::future::try_join_all;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

/// An agent that takes longer to answer is not there.
const DIAL_MAX: Duration = Duration::from_secs(5);

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Answer>>>>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;
type Reader = Box<dyn AsyncRead + Send + Unpin>;

/// Who puts the load on.
pub(crate) enum Crew {
    /// This process.
    Here(Arc<Run>),
    /// Others.
    There(Vec<Remote>),
}

/// A worker elsewhere.
pub(crate) struct Remote {
    name: String,
    first: u32,
    next: AtomicU64,
    to: tokio::sync::Mutex<Outgoing<Writer>>,
    waiting: Waiting,
    _reading: AbortOnDropHandle<()>,
    /// A process of ours.
    _child: Option<Child>,
}

impl Crew {
    /// Finds the workers and lets them connect their users.
    pub(crate) async fn gather(plan: &Plan) -> Result<Self> {
        let count = plan.workers.count();
        if matches!(plan.workers, Workers::Here) {
            let (scenario, target) = (plan.scenario.clone(), plan.target.clone());
            let progress = Arc::clone(&plan.progress);
            return Ok(Self::Here(Run::prepare(scenario, target, &plan.world, progress).await?));
        }
        let workers = (0..count).map(|number| async move {
            let (scenario, first) = part(&plan.scenario, number, count);
            let (pipe, child, name) = reach(plan, number).await?;
            let remote = Remote::new(number as usize, (name, first), pipe, child, Arc::clone(&plan.progress));
            let (token_key, ca) = match &plan.workers {
                Workers::Processes { token_key, ca, .. } => (Some(token_key.clone()), ca.clone()),
                Workers::Here | Workers::Agents { .. } => (None, None),
            };
            let share = Share {
                scenario: crate::scenario::Scenario { carrier: plan.target.carrier, ..scenario },
                servers: plan.target.servers.clone(),
                prefix: plan.target.prefix.clone(),
                first,
                source: source(plan, number),
                token_key,
                ca,
            };
            remote.ask(Order::Prepare(Box::new(share))).await?;
            anyhow::Ok(remote)
        });
        Ok(Self::There(try_join_all(workers).await?))
    }

    /// Puts the load on; how long it took.
    pub(crate) async fn load(&self) -> Result<Duration> {
        match self {
            Self::Here(run) => Ok(run.load().await),
            Self::There(all) => {
                let loads = all.iter().map(|remote| async move {
                    let answer = remote.ask(Order::Load).await?;
                    if let Answer::Loaded(took) = answer { Ok(took) } else { remote.confused(&answer) }
                });
                Ok(try_join_all(loads).await?.into_iter().max().unwrap_or_default())
            }
        }
    }

    /// Something is broken now. Its number is the same with all workers, since all hear of everything in one order.
    pub(crate) async fn begins(&self, what: &str, phase: Phase) -> Result<usize> {
        match self {
            Self::Here(run) => Ok(run.begins(what, phase).await),
            Self::There(all) => {
                let told = all.iter().map(|remote| async move {
                    let answer = remote.ask(Order::Begins { what: what.to_owned(), phase }).await?;
                    if let Answer::Begun(number) = answer { Ok(number) } else { remote.confused(&answer) }
                });
                Ok(try_join_all(told).await?.into_iter().max().unwrap_or_default())
            }
        }
    }

    /// Waits until everybody is back.
    pub(crate) async fn back(&self, number: usize) -> Result<()> {
        match self {
            Self::Here(run) => run.back(number).await,
            Self::There(all) => {
                try_join_all(all.iter().map(|remote| remote.ask(Order::Back { number }))).await?;
            }
        }
        Ok(())
    }

    /// Cuts all connections.
    pub(crate) async fn storm(&self) -> Result<()> {
        match self {
            Self::Here(run) => run.storm(),
            Self::There(all) => {
                try_join_all(all.iter().map(|remote| remote.ask(Order::Storm))).await?;
            }
        }
        Ok(())
    }

    /// What all have found, added up.
    pub(crate) async fn finish(&self, max: Duration) -> Result<Outcome> {
        let all = match self {
            Self::Here(run) => return run.finish(max).await,
            Self::There(all) => all,
        };
        let outcomes = all.iter().map(|remote| async move {
            let answer = remote.ask(Order::Finish { max }).await?;
            if let Answer::Finished(outcome) = answer {
                Ok((outcome, remote.first))
            } else {
                remote.confused(&answer)
            }
        });
        let mut outcomes = try_join_all(outcomes).await?.into_iter();
        let (mut sum, _) = outcomes.next().context("no worker")?;
        outcomes.for_each(|(outcome, first)| sum.add(&outcome, first));
        Ok(*sum)
    }

    /// Ends all connections; workers elsewhere end when theirs to us does.
    pub(crate) async fn end(&self) {
        if let Self::Here(run) = self {
            run.end().await;
        }
    }
}

impl Remote {
    fn new(
        number: usize,
        (name, first): (String, u32),
        (mut from, to): (Incoming<Reader>, Outgoing<Writer>),
        child: Option<Child>,
        progress: Progress,
    ) -> Self {
        let waiting = Waiting::default();
        let answers = Arc::clone(&waiting);
        let reading = TaskTracker::new().spawn(async move {
            while let Ok(Some(told)) = from.next::<Told>().await {
                match told {
                    Told::Pulse(pulse) => progress(number, &pulse),
                    Told::Answer { id, answer } => {
                        let asked = answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                        // Whoever asked may have given up.
                        let _ = asked.map(|asked| asked.send(answer));
                    }
                }
            }
            answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
        });
        Self {
            name,
            first,
            next: AtomicU64::new(0),
            to: tokio::sync::Mutex::new(to),
            waiting,
            _reading: AbortOnDropHandle::new(reading),
            _child: child,
        }
    }

    async fn ask(&self, order: Order) -> Result<Answer> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, answer);
        self.to.lock().await.send(&Ask { id, order }).await.with_context(|| self.gone())?;
        let answer = answered.await.with_context(|| self.gone())?;
        if let Answer::Failed(why) = &answer {
            bail!("{}: {why}", self.name);
        }
        Ok(answer)
    }

    fn gone(&self) -> String {
        format!("worker_gone: {} went away; has it the same secret and the same version?", self.name)
    }

    fn confused<T>(&self, answer: &Answer) -> Result<T> {
        bail!("{} said something else than it was asked: {answer:?}", self.name)
    }
}

type Pipe = (Incoming<Reader>, Outgoing<Writer>);

/// A process of its own, or an agent.
async fn reach(plan: &Plan, number: u32) -> Result<(Pipe, Option<Child>, String)> {
    let mut random = [0; 32];
    plan.world.fill_random(&mut random);
    match &plan.workers {
        Workers::Agents { addresses, secret } => {
            let address = addresses.get(number as usize).context("no such agent")?;
            let dialled = tokio::time::timeout(DIAL_MAX, TcpStream::connect(address)).await;
            let hint = || format!("agent_unreachable: {address}; is `loadtest agent` there?");
            let stream = dialled.with_context(hint)?.with_context(hint)?;
            stream.set_nodelay(true)?;
            let (from, to) = stream.into_split();
            let (from, to): (Reader, Writer) = (Box::new(from), Box::new(to));
            let pipe = pipe::open(from, to, secret, Side::Run, random).await?;
            Ok((pipe, None, format!("agent {address}")))
        }
        Workers::Here | Workers::Processes { .. } => {
            let (pipe, child) = start(plan.world.as_ref(), random).await?;
            Ok((pipe, Some(child), format!("worker {}", number + 1)))
        }
    }
}

/// The same program once more, as a worker that is asked over its standard input.
async fn start(world: &dyn World, random: [u8; 32]) -> Result<(Pipe, Child)> {
    let mut secret = [0; pipe::SECRET_BYTES];
    world.fill_random(&mut secret);
    let mut child = Command::new(std::env::current_exe()?)
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot start a worker process")?;
    let mut to = child.stdin.take().context("a worker without standard input")?;
    to.write_all(&secret).await?;
    let from = child.stdout.take().context("a worker without standard output")?;
    let (from, to): (Reader, Writer) = (Box::new(from), Box::new(to));
    Ok((pipe::open(from, to, &secret, Side::Run, random).await?, child))
}

/// On this machine each worker has an address of its own, for the sake of its ports.
fn source(plan: &Plan, number: u32) -> Option<IpAddr> {
    if !matches!(plan.workers, Workers::Processes { .. }) {
        return plan.target.source;
    }
    let local = plan.target.servers.iter().all(|server| server.contains("://127."));
    let last = u8::try_from(number + 2).ok().filter(|last| *last < 255);
    last.filter(|_| local).map(|last| Ipv4Addr::new(127, 0, 0, last).into())
}
