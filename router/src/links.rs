//! The seam between gateways and routers: channels in one process now, a message bus in a cluster.
//! **Invariant:** no promise rests on a doorbell; a request that got no answer may have been carried out.

use async_trait::async_trait;
use chappe_protocol::id::{GatewayId, MailboxId};
use chappe_protocol::internode::{Doorbell, Reply, Request};
use chappe_protocol::time::Millis;

/// Why a request has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// No router took it: certainly nothing was done.
    #[error("no router could be reached, nothing was done")]
    NoRouter,
    /// No answer within the budget: perhaps it was done.
    #[error("the router did not answer in time, perhaps it was done")]
    Timeout,
}

/// How gateways reach routers and routers reach gateways.
#[async_trait]
pub trait Links: Send + Sync + 'static {
    /// Sends a request to a router, preferably the one that this mailbox has affinity to, and waits at most `budget`.
    async fn request(&self, mailbox: MailboxId, request: Request, budget: Millis)
    -> Result<Reply, LinkError>;

    /// Rings a gateway, best effort: never waits, drops when the gateway's queue is full or the gateway is gone.
    fn ring(&self, gateway: GatewayId, bell: Doorbell);
}
