//! The subjects of a cluster. **Invariant:** no user, no device and no mailbox stands in any of them.
//!
//! | subject | who sends | who hears |
//! |---|---|---|
//! | `chappe.<cluster>.router.<name>.ask` | gateways | that router: requests |
//! | `chappe.<cluster>.router.<name>.beat` | that router | itself: how long messages wait |
//! | `chappe.<cluster>.ask` | gateways that know no router | one router of the queue group |
//! | `chappe.<cluster>.up` | routers | gateways: announcements |
//! | `chappe.<cluster>.who` | a gateway that has just come | routers: announce yourselves |
//! | `chappe.<cluster>.bell.<gateway>` | routers | that gateway: doorbells |
//! | `chappe.<cluster>.reply.<random>.<n>` | the router that was asked | the gateway that asked |
//! | `chappe.<cluster>.members` | a process whose console is looked at | all processes: tell your figures |
//! | `chappe.<cluster>.member.<random>.<n>` | all processes | the one that asked |
//! | `chappe.<cluster>.wake.<shard>` | routers | JetStream, for whoever wakes devices |
//! | `chappe.<cluster>.stored.<random>.<n>` | JetStream | the router that gave it a hint |
//! | `chappe.<cluster>.job.<random>.<n>` | JetStream | the pusher that asked for hints |
//! | `$JS.ACK.chappe-<cluster>-wake.pushers.…` | that pusher | JetStream: it is done, or later |

use chappe_protocol::id::GatewayId;

/// The queue group of routers.
pub(crate) const QUEUE_GROUP: &str = "routers";

/// Makes the subjects of one cluster.
#[derive(Debug, Clone)]
pub(crate) struct Subjects {
    prefix: String,
}

impl Subjects {
    /// `None`: the name has not 1 to 32 characters of `[a-z0-9-]`.
    pub(crate) fn new(cluster_name: &str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let good = !cluster_name.is_empty() && cluster_name.len() <= 32 && cluster_name.bytes().all(allowed);
        good.then(|| Self { prefix: format!("chappe.{cluster_name}") })
    }

    pub(crate) fn any_router(&self) -> String {
        format!("{}.ask", self.prefix)
    }

    pub(crate) fn ask(&self, router: u64) -> String {
        format!("{}.router.{router:016x}.ask", self.prefix)
    }

    pub(crate) fn beat(&self, router: u64) -> String {
        format!("{}.router.{router:016x}.beat", self.prefix)
    }

    /// Requests and beats of a router, in one subscription, so that their order is kept.
    pub(crate) fn router(&self, router: u64) -> String {
        format!("{}.router.{router:016x}.*", self.prefix)
    }

    pub(crate) fn announcements(&self) -> String {
        format!("{}.up", self.prefix)
    }

    pub(crate) fn who(&self) -> String {
        format!("{}.who", self.prefix)
    }

    pub(crate) fn bells(&self, gateway: GatewayId) -> String {
        format!("{}.bell.{gateway}", self.prefix)
    }

    pub(crate) fn inbox(&self) -> String {
        format!("{}.reply", self.prefix)
    }

    /// Where JetStream answers a router; apart from `reply`, which no router hears.
    pub(crate) fn stored(&self) -> String {
        format!("{}.stored", self.prefix)
    }

    /// Where JetStream answers a pusher, with hints among others.
    pub(crate) fn jobs(&self) -> String {
        format!("{}.job", self.prefix)
    }

    /// The question of a console.
    pub(crate) fn members(&self) -> String {
        format!("{}.members", self.prefix)
    }

    /// Where its answers arrive; each process has a place of its own below it.
    pub(crate) fn member(&self, asker: u64) -> String {
        format!("{}.member.{asker:016x}", self.prefix)
    }

    pub(crate) fn wake(&self, shard: u8) -> String {
        format!("{}.wake.{shard}", self.prefix)
    }

    /// The hints of all shards.
    pub(crate) fn wakes(&self) -> String {
        format!("{}.wake.*", self.prefix)
    }

    /// The stream that holds them; its name must not have dots.
    pub(crate) fn wake_stream(&self) -> String {
        format!("{}-wake", self.prefix.replace('.', "-"))
    }
}

#[cfg(test)]
mod tests {
    use super::Subjects;

    #[test]
    fn a_cluster_name_is_one_token_of_a_subject() {
        for good in ["a", "chappe-eu-1", &"x".repeat(32)] {
            assert!(Subjects::new(good).is_some(), "{good}");
        }
        for bad in ["", "a.b", "a*", ">", "A", "a b", "ä", &"x".repeat(33)] {
            assert!(Subjects::new(bad).is_none(), "{bad}");
        }
    }
}
