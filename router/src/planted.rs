//! Errors that a test can plant, to prove that it would notice them.
//! **Invariant:** without the feature `testing` none of them can be switched on.

use crate::config::RouterConfig;

/// One wrong turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// Answers *accepted* when an append got no answer or was refused as unavailable.
    AcceptUndecided,
    /// Answers *accepted* as soon as the entries wait, and appends afterwards, once.
    AckBeforeAppend,
    /// Leaves out an undecided entry and goes on with what stands behind it.
    ContinueBehindUndecided,
    /// Swaps neighbours of one list on their way into a batch.
    SwapPair,
    /// Drops every doorbell of a commit.
    DropDoorbells,
    /// Rings for the slot after the committed one.
    BellAhead,
    /// Says of every append that its entries were never tried before.
    ForgetBase,
    /// Writes no pending rows.
    NoPending,
    /// Answers probes with no news.
    BlindProbe,
}

impl RouterConfig {
    /// Whether a test has planted this.
    #[cfg_attr(
        not(feature = "testing"),
        expect(clippy::unused_self, reason = "without the feature nothing can be planted")
    )]
    pub(crate) fn has_bug(&self, bug: PlantedBug) -> bool {
        #[cfg(feature = "testing")]
        let has = self.planted == Some(bug);
        #[cfg(not(feature = "testing"))]
        let has = {
            let _ = bug;
            false
        };
        has
    }
}
