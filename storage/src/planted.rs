//! Defects planted on purpose, so that laws and simulations can prove that they would notice.
//! **Invariant:** compiled for tests only; nothing is planted unless a test asks for it.

/// One defect. Those of the algorithms go into `LogConfig::planted`, those of the database into `MemoryRows::plant`
/// or, where replicas matter, into `QuorumRows::new`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// Algorithm: ids are compared within the bucket of the append only.
    SkipLookBack,
    /// Algorithm: a first attempt (one with a `base`) does not look back, only a retry without one does.
    LookBackOnlyOnRetry,
    /// Algorithm: the look-back stops at the floor, as if ids went with the slots.
    LookBackStopsAtFloor,
    /// Algorithm: the next bucket is opened without knowing that the one before it is full.
    OpensUnsealed,
    /// Algorithm: an undecided compare-and-set is told as "certainly nothing written".
    UnknownToldAsUnavailable,
    /// Algorithm: a row that is absent below the head is taken for expired and skipped silently.
    HolesSkipped,
    /// Algorithm: a hole is believed at once, without the SERIAL read.
    HolesBelieved,
    /// Algorithm: a hole is read again by a plain quorum read, and believed if it is still there.
    HolesReadPlain,
    /// Algorithm: erase deletes the rows without closing the register.
    EraseWithoutSeal,
    /// Algorithm: trim asks no device for its cursor.
    TrimIgnoresCursors,
    /// Database: the head condition of the batch is not checked.
    ExpectIgnored,
    /// Database: ids of the batch are not compared.
    IdsIgnored,
    /// Database: deleting a bucket's slots deletes its head, too.
    TrimDropsHead,
    /// Database: deleting a bucket's slots deletes its ids, too.
    TrimDropsIds,
    /// Database: a cursor takes the last value written, not the greatest.
    CursorsGoBack,
    /// Database: the last session written wins, not the greatest.
    SessionsGoBack,
    /// Database: the slot goes with its payload's time.
    SlotsExpire,
    /// Replicas: the commit log is synced now and then.
    CommitLogPeriodic,
    /// Replicas: a bucket's slots are deleted with the present time as timestamp, whatever the ballots that wrote them.
    NaiveDelete,
    /// Replicas: the timestamp of a delete heeds the slots that can be seen, not the head's.
    DeleteBySlots,
    /// Replicas: a coordinator does not finish the accepted proposal of another.
    UnfinishedForgotten,
    /// Replicas: TTLs end with what they are for, to the second, though coordinators' clocks differ.
    TtlWithoutSlack,
}
