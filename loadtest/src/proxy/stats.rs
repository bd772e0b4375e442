//! What the proxy has done, counted. **Invariant:** a UDP packet that came in is counted as exactly one of passed,
//! lost, swallowed and dropped, once it waits no more.

use super::faults::Direction;
use std::fmt;

/// One direction of one carrier. On TCP a packet is a segment of at most 1,448 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets written out, copies too. On TCP: writes, which may cut a segment.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets lost by [`super::Faults::loss`]. On TCP: those that came later for it.
    pub lost: u64,
    /// Copies made by [`super::Faults::duplicate`].
    pub duplicated: u64,
    /// Packets that came out behind one that had come in later.
    pub reordered: u64,
    /// Packets that had to wait, for whatever reason.
    pub delayed: u64,
    /// Packets that found the queue full, or that the operating system did not take.
    pub dropped: u64,
    /// Packets that fell into a black hole.
    pub swallowed: u64,
}

/// Both directions of a carrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ways {
    /// From the clients to the target.
    pub to_target: Counters,
    /// From the target to the clients.
    pub to_client: Counters,
    /// UDP flows or TCP connections that are open now.
    pub open: u64,
    /// Flows or connections not taken: as many as may be are open, or the target cannot be reached.
    pub refused: u64,
}

impl Ways {
    pub(super) fn way(&mut self, direction: Direction) -> &mut Counters {
        match direction {
            Direction::ToTarget => &mut self.to_target,
            Direction::ToClient => &mut self.to_client,
        }
    }
}

/// Everything since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// UDP.
    pub udp: Ways,
    /// TCP.
    pub tcp: Ways,
    /// Flows that got a new source port.
    pub rebound: u64,
    /// Connections that ended by a reset: asked for, or passed on.
    pub reset: u64,
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets {} bytes", self.packets, self.bytes)?;
        for (count, what) in [
            (self.lost, "lost"),
            (self.duplicated, "duplicated"),
            (self.reordered, "reordered"),
            (self.delayed, "delayed"),
            (self.dropped, "dropped"),
            (self.swallowed, "swallowed"),
        ] {
            if count > 0 {
                write!(f, " {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// One line; what did not happen is not in it.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, ways) in [("udp", &self.udp), ("tcp", &self.tcp)] {
            write!(f, "{name}: {} open", ways.open)?;
            if ways.refused > 0 {
                write!(f, " {} refused", ways.refused)?;
            }
            write!(f, ", to target {}, to client {}; ", ways.to_target, ways.to_client)?;
        }
        write!(f, "{} rebound, {} reset", self.rebound, self.reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_happened_and_nothing_else() {
        let mut stats = Stats::default();
        stats.udp.to_target = Counters { packets: 3, bytes: 30, lost: 1, ..Counters::default() };
        stats.rebound = 2;
        assert_eq!(
            stats.to_string(),
            "udp: 0 open, to target 3 packets 30 bytes 1 lost, to client 0 packets 0 bytes; \
             tcp: 0 open, to target 0 packets 0 bytes, to client 0 packets 0 bytes; 2 rebound, 0 reset"
        );
    }
}
