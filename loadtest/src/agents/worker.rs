//! The one that does what a run asks for. **Invariant:** one run at a time, and only against servers that it was allowed to aim at.

use super::pipe::{Incoming, Outgoing};
use super::{Answer, Ask, Order, Share, Told};
use crate::pulse::Progress;
use crate::run::{Run, Target};
use crate::tokens::Issuer;
use anyhow::{Context, Result, ensure};
use chappe_node::clock::SystemWorld;
use chappe_protocol::world::World;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OnceCell, mpsc};
use tokio_util::task::TaskTracker;

/// Messages that wait to be sent; pulses beyond it are dropped.
const QUEUE_MAX: usize = 64;

/// Where keys and roots come from.
#[derive(Debug, Clone)]
pub(crate) enum Keys {
    /// The run names files of this machine.
    Named,
    /// An agent's own.
    Own {
        /// Signs tokens.
        token_key: PathBuf,
        /// Roots that are trusted, PEM.
        ca: Option<PathBuf>,
        /// The only `host:port` that it may aim at.
        allowed: Vec<String>,
    },
}

/// A worker on one connection.
pub(crate) struct Worker {
    keys: Keys,
    run: OnceCell<Arc<Run>>,
    told: mpsc::Sender<Told>,
}

impl Worker {
    /// Does what it is asked until the other side ends.
    pub(crate) async fn serve<R, W>(keys: Keys, mut from: Incoming<R>, mut to: Outgoing<W>) -> Result<()>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (told, mut telling) = mpsc::channel(QUEUE_MAX);
        let worker = Arc::new(Self { keys, run: OnceCell::new(), told });
        let tasks = TaskTracker::new();
        let writing = tasks.spawn(async move {
            while let Some(message) = telling.recv().await {
                to.send(&message).await?;
            }
            anyhow::Ok(())
        });
        let ended = loop {
            match from.next::<Ask>().await {
                Ok(Some(ask)) => {
                    let worker = Arc::clone(&worker);
                    tasks.spawn(async move {
                        let answer = worker.perform(ask.order).await;
                        let answer = answer.unwrap_or_else(|error| Answer::Failed(format!("{error:#}")));
                        // If nobody listens any more, there is nobody to tell.
                        let _ = worker.told.send(Told::Answer { id: ask.id, answer }).await;
                    });
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if let Some(run) = worker.run.get() {
            run.end().await;
        }
        writing.abort();
        ended
    }

    async fn perform(&self, order: Order) -> Result<Answer> {
        if let Order::Prepare(share) = order {
            self.run.get_or_try_init(|| self.prepare(*share)).await?;
            return Ok(Answer::Done);
        }
        let run = self.run.get().context("nothing was prepared")?;
        Ok(match order {
            Order::Prepare(_) => Answer::Done,
            Order::Load => Answer::Loaded(run.load().await),
            Order::Begins { what, phase } => Answer::Begun(run.begins(&what, phase).await),
            Order::Back { number } => {
                run.back(number).await;
                Answer::Done
            }
            Order::Storm => {
                run.storm();
                Answer::Done
            }
            Order::Finish { max } => Answer::Finished(Box::new(run.finish(max).await?)),
        })
    }

    async fn prepare(&self, share: Share) -> Result<Arc<Run>> {
        share.scenario.check().map_err(anyhow::Error::msg)?;
        let (token_key, ca) = match &self.keys {
            Keys::Named => (share.token_key.context("no token key was named")?, share.ca),
            Keys::Own { token_key, ca, allowed } => {
                for server in &share.servers {
                    let authority = server.split_once("://").map_or(server.as_str(), |(_, rest)| rest);
                    let authority = authority.split('/').next().unwrap_or_default();
                    ensure!(
                        allowed.iter().any(|one| one == authority),
                        "not_allowed: this agent may not aim at {authority}; start it with --allow {authority}"
                    );
                }
                (token_key.clone(), ca.clone())
            }
        };
        let world: Arc<dyn World> = Arc::new(SystemWorld::new());
        let roots =
            ca.map(|path| std::fs::read(&path).with_context(|| format!("cannot read {}", path.display())));
        let target = Target {
            servers: share.servers,
            carrier: share.scenario.carrier,
            roots_pem: roots.transpose()?,
            issuer: Issuer::read(&token_key, world.clone())?,
            prefix: share.prefix,
            first: share.first,
            source: share.source,
        };
        let told = self.told.clone();
        let progress: Progress = Arc::new(move |_, pulse| {
            // One that finds no room is not worth waiting for.
            let _ = told.try_send(Told::Pulse(pulse.clone()));
        });
        Run::prepare(share.scenario, target, &world, progress).await
    }
}
