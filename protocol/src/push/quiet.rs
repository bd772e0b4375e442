//! When a person does not want to be woken. **Invariant:** what waits for the end of quiet hours is woken then; the server
//! knows times, not reasons.

use crate::envelope::Urgency;
use crate::time::{Millis, UnixMillis};
use alloc::vec::Vec;

/// Minutes of a day.
pub const DAY_MIN: u16 = 24 * 60;
/// Windows of one device.
pub const QUIET_WINDOWS_MAX: usize = 4;

/// Not usable as quiet hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadQuiet {
    /// A minute of no day, or a window without length.
    #[error("a window goes from one minute of the day (0 to 1439) to another")]
    Window,
    /// More than [`QUIET_WINDOWS_MAX`].
    #[error("at most four windows")]
    TooMany,
}

/// From one minute of the UTC day to another; over midnight if the latter is the smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuietHours {
    from_min: u16,
    to_min: u16,
}

impl QuietHours {
    /// `to_min` is the first minute that is not quiet any more.
    pub fn new(from_min: u16, to_min: u16) -> Result<Self, BadQuiet> {
        if from_min >= DAY_MIN || to_min >= DAY_MIN || from_min == to_min {
            return Err(BadQuiet::Window);
        }
        Ok(Self { from_min, to_min })
    }

    /// The first quiet minute of the UTC day.
    pub fn from_min(self) -> u16 {
        self.from_min
    }

    /// The first minute that is not quiet any more.
    pub fn to_min(self) -> u16 {
        self.to_min
    }

    /// Milliseconds until it ends, if it is quiet at this millisecond of the day.
    fn left(self, of_day: u64) -> Option<u64> {
        let day = u64::from(DAY_MIN) * 60_000;
        let (from, to) = (u64::from(self.from_min) * 60_000, u64::from(self.to_min) * 60_000);
        let quiet = if from < to { (from..to).contains(&of_day) } else { of_day >= from || of_day < to };
        quiet.then(|| (to + day - of_day) % day)
    }
}

/// What one device has set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Quiet {
    hours: Vec<QuietHours>,
    muted_until: Option<UnixMillis>,
    calls_pass: bool,
}

impl Quiet {
    /// `calls_pass`: calls ring all the same.
    pub fn new(
        hours: Vec<QuietHours>,
        muted_until: Option<UnixMillis>,
        calls_pass: bool,
    ) -> Result<Self, BadQuiet> {
        if hours.len() > QUIET_WINDOWS_MAX {
            return Err(BadQuiet::TooMany);
        }
        Ok(Self { hours, muted_until, calls_pass })
    }

    /// The windows, as they were set.
    pub fn hours(&self) -> &[QuietHours] {
        &self.hours
    }

    /// Nobody is woken before.
    pub fn muted_until(&self) -> Option<UnixMillis> {
        self.muted_until
    }

    /// Calls ring all the same.
    pub fn calls_pass(&self) -> bool {
        self.calls_pass
    }

    /// When the device may be woken: `wall` itself if now.
    pub fn due(&self, urgency: Urgency, wall: UnixMillis) -> UnixMillis {
        if urgency == Urgency::Call && self.calls_pass {
            return wall;
        }
        let mut due = wall.max(self.muted_until.unwrap_or(wall));
        // Where one window ends another may begin: each is passed once at most, so that windows around the clock end too.
        for _ in 0..=self.hours.len() {
            let of_day = due.0 % (u64::from(DAY_MIN) * 60_000);
            match self.hours.iter().filter_map(|hours| hours.left(of_day)).max() {
                Some(left) => due = due + Millis(left),
                None => return due,
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const DAY: u64 = 86_400_000;
    fn at(day: u64, hour: u64, minute: u64) -> UnixMillis {
        UnixMillis(day * DAY + (hour * 60 + minute) * 60_000)
    }
    fn hours(from: (u16, u16), to: (u16, u16)) -> QuietHours {
        QuietHours::new(from.0 * 60 + from.1, to.0 * 60 + to.1).unwrap()
    }

    #[test]
    fn a_night_goes_over_midnight_and_ends_on_the_minute() {
        let night = Quiet::new(vec![hours((22, 0), (6, 30))], None, true).unwrap();
        for (wall, due) in [
            (at(9, 21, 59), at(9, 21, 59)),
            (at(9, 22, 0), at(10, 6, 30)),
            (at(9, 23, 59), at(10, 6, 30)),
            (at(10, 0, 0), at(10, 6, 30)),
            (at(10, 6, 29), at(10, 6, 30)),
            (at(10, 6, 30), at(10, 6, 30)),
        ] {
            assert_eq!(night.due(Urgency::Message, wall), due, "{wall:?}");
            assert_eq!(night.due(Urgency::Call, wall), wall);
        }
        let deep = Quiet { calls_pass: false, ..night };
        assert_eq!(deep.due(Urgency::Call, at(9, 23, 0)), at(10, 6, 30));
    }

    #[test]
    fn a_mute_that_ends_in_quiet_hours_ends_with_them_and_windows_chain() {
        let windows = vec![hours((22, 0), (6, 0)), hours((6, 0), (7, 0)), hours((12, 0), (13, 0))];
        let quiet = Quiet::new(windows, Some(at(9, 23, 0)), false).unwrap();
        assert_eq!(quiet.due(Urgency::Message, at(9, 10, 0)), at(10, 7, 0));
        assert_eq!(quiet.due(Urgency::Message, at(10, 12, 30)), at(10, 13, 0));
        assert_eq!(Quiet::default().due(Urgency::Background, at(1, 2, 3)), at(1, 2, 3));
    }

    #[test]
    fn windows_around_the_clock_do_not_hold_for_ever_and_bad_ones_are_refused() {
        let all = Quiet::new(vec![hours((0, 0), (12, 0)), hours((12, 0), (0, 0))], None, false).unwrap();
        assert!(all.due(Urgency::Message, at(9, 1, 0)) <= at(11, 0, 0));
        for (from, to) in [(0, 1440), (1440, 0), (5, 5)] {
            assert_eq!(QuietHours::new(from, to), Err(BadQuiet::Window));
        }
        assert_eq!(Quiet::new(vec![hours((1, 0), (2, 0)); 5], None, false), Err(BadQuiet::TooMany));
    }
}
