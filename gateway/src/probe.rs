//! What a lost doorbell would have said: known heads are compared with the routers' at intervals, leases are renewed.
//! **Invariant:** a mailbox's growth is noticed within one probe, whatever became of its doorbells.

mod alone;

use crate::doorbells::tell_news;
use crate::shared::Gateway;
use alone::Alone;
use chappe_protocol::close::CloseCode;
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{Probe, ProbeReply, Reply, Request};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_router::links::LinkError;
use chappe_router::presence::LEASE_MS;
use tokio::sync::watch;

/// Mailboxes of one probe.
const BATCH_MAX: usize = 500;
/// A probe out of turn comes at most so often.
const OUT_OF_TURN_MIN: Millis = Millis::from_secs(5);

/// What the probes know.
struct State {
    /// The store's clock at the last round whose probes were all answered.
    as_of: Option<UnixMillis>,
    outright_due: Time,
}

/// Probes until dropped.
pub(crate) async fn run(gateway: &Gateway) {
    let config = &gateway.config;
    let mut state = State {
        as_of: None,
        outright_due: gateway.world.now() + around(gateway, config.probe_outright_every),
    };
    let mut spent = OUT_OF_TURN_MIN;
    loop {
        // From one start to the next, however long a round takes.
        let pause = Millis(around(gateway, config.probe_every).0.saturating_sub(spent.0));
        tokio::select! {
            biased;
            () = gateway.probe_now.notified() => {}
            () = tokio::time::sleep(pause.to_std()) => {}
        }
        #[cfg(feature = "testing")]
        if gateway.has_bug(crate::faults::Bug::SkipProbe) {
            tokio::time::sleep(OUT_OF_TURN_MIN.to_std()).await;
            continue;
        }
        let begun = gateway.world.now();
        round(gateway, &mut state).await;
        forget_old(gateway);
        tokio::time::sleep(OUT_OF_TURN_MIN.to_std()).await;
        spent = gateway.world.now() - begun;
    }
}

/// Asks for a probe out of turn whenever doorbells may have been lost.
pub(crate) async fn heed(gateway: &Gateway, mut alarms: watch::Receiver<u64>) {
    while alarms.changed().await.is_ok() {
        gateway.probe_now.notify_one();
    }
    // Nobody raises alarms any more.
    std::future::pending::<()>().await;
}

/// What is remembered for a while takes no memory for long when traffic stops.
fn forget_old(gateway: &Gateway) {
    let now = gateway.world.now();
    gateway.users.expire(now);
    gateway.bases.expire(now);
}

/// Two thirds to four thirds of a time: the gateways of a cluster do not beat together.
fn around(gateway: &Gateway, every: Millis) -> Millis {
    Millis(every.0 * 2 / 3 + gateway.world.random_below(every.0 * 2 / 3 + 1))
}

/// Asks about every mailbox that has a session here.
async fn round(gateway: &Gateway, state: &mut State) {
    let now = gateway.world.now();
    let outright = now >= state.outright_due;
    if outright {
        state.outright_due = now + around(gateway, gateway.config.probe_outright_every);
    }
    let asked_as_of = if outright { None } else { state.as_of };
    let mut next_as_of: Option<UnixMillis> = None;
    let mut whole = true;
    let mut after = None;
    let mut alone: Option<Alone> = None;
    loop {
        let known = gateway.registry.heads_after(after, BATCH_MAX);
        let Some((last, _)) = known.last().copied() else { break };
        after = Some(last);
        let mut asked = match alone {
            Some(_) => Asked::Nobody,
            None => ask(gateway, asked_as_of, known.clone()).await,
        };
        if let Asked::Nobody = asked {
            if alone.is_none() {
                alone = Alone::begin(gateway, asked_as_of).await;
            }
            // Neither routers nor the store: nobody knows of the rest either.
            let Some(alone) = &alone else {
                whole = false;
                break;
            };
            asked = alone.answer(gateway, known).await.map_or(Asked::Refused, Asked::Answered);
        }
        match asked {
            Asked::Answered(reply) => {
                tell(gateway, &reply);
                next_as_of = Some(next_as_of.map_or(reply.as_of, |before| before.min(reply.as_of)));
            }
            Asked::Refused | Asked::Nobody => whole = false,
        }
    }
    if whole && let Some(as_of) = next_as_of {
        state.as_of = Some(as_of);
    }
}

/// What became of one batch.
enum Asked {
    Answered(ProbeReply),
    /// A router cannot answer now: the store is away, or it has too many probes.
    Refused,
    /// There is no router, or none answers.
    Nobody,
}

async fn ask(gateway: &Gateway, as_of: Option<UnixMillis>, known: Vec<(MailboxId, Seq)>) -> Asked {
    let Some((first, _)) = known.first().copied() else { return Asked::Refused };
    gateway.metrics.probes_total.inc();
    let request = Request::Probe(Probe { as_of, known });
    match gateway.links.request(first, request, gateway.config.request_budget).await {
        Ok(Reply::Probe(reply)) => Asked::Answered(reply),
        Ok(Reply::Submit(_) | Reply::Ephemeral | Reply::Base(_) | Reply::Attached | Reply::Unavailable) => {
            gateway.metrics.probe_failed_total.inc();
            Asked::Refused
        }
        Err(LinkError::NoRouter | LinkError::Timeout) => {
            gateway.metrics.probe_failed_total.inc();
            Asked::Nobody
        }
    }
}

fn tell(gateway: &Gateway, reply: &ProbeReply) {
    for news in &reply.news {
        let mut grew = false;
        for handle in gateway.registry.of(news.mailbox) {
            if news.erased {
                handle.close(CloseCode::UserErased);
            } else if handle.known_head() < news.head {
                grew = true;
                handle.raise_head(news.head);
            }
        }
        if grew {
            gateway.metrics.probe_news_total.inc();
        }
        for device in &news.devices {
            tell_news(gateway, news.mailbox, device);
        }
    }
}

/// Renews the leases of all main sessions until dropped. A lease that was lost to a newer session ends the older one.
pub(crate) async fn renew_leases(gateway: &Gateway) {
    let every = Millis(LEASE_MS / 3);
    loop {
        tokio::time::sleep(every.to_std()).await;
        let mut after = None;
        loop {
            let (handles, last) = gateway.registry.mains_after(after, BATCH_MAX);
            let Some(last) = last else { break };
            after = Some(last);
            let leases: Vec<_> = handles.iter().map(|handle| handle.lease(gateway.config.id)).collect();
            let kept = gateway.presence.lease(&leases).await;
            for (handle, kept) in handles.iter().zip(kept) {
                #[cfg(feature = "testing")]
                let kept = kept || gateway.has_bug(crate::faults::Bug::IgnoreSupersede);
                if !kept {
                    handle.close(CloseCode::ConnectedElsewhere);
                } else if !gateway.registry.holds(handle) {
                    // It ended meanwhile, and perhaps gave its lease up before we took it again.
                    gateway.presence.release(&handle.lease(gateway.config.id)).await;
                }
            }
        }
    }
}
