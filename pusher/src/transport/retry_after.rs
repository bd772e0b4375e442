//! Reads `Retry-After` (RFC 9110 §10.2.3). **Invariant:** no peer makes us wait longer than an hour by it.

use chappe_protocol::time::{Millis, UnixMillis};

/// The longest wait that a provider may ask for.
pub const RETRY_AFTER_MS_MAX: u64 = 3_600_000;

/// Seconds, or a date (IMF-fixdate; the two obsolete forms are not read). `None` for anything else.
pub fn retry_after(value: &str, wall: UnixMillis) -> Option<Millis> {
    let value = value.trim();
    let after = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits for a number are a very long time.
        value.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1000)
    } else {
        http_date(value)?.0.saturating_sub(wall.0)
    };
    Some(Millis(after.min(RETRY_AFTER_MS_MAX)))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7).
fn http_date(value: &str) -> Option<UnixMillis> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = value.split_once(", ")?.1.split(' ');
    let day: u64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = words.next()?.parse().ok().filter(|year| (1970..=9999).contains(year))?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    if hour > 23 || minute > 59 || second > 60 || words.next() != Some("GMT") || words.next().is_some() {
        return None;
    }
    let seconds = ((days_before(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(UnixMillis(seconds * 1000))
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, the year beginning in March so that a leap day is its last.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let in_year = (153 * month + 2) / 5 + day - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + in_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_bounded() {
        let wall = UnixMillis(784_111_777_000); // the RFC's own example
        let read = |value: &str| retry_after(value, wall).map(|after| after.0);
        assert_eq!(read("120"), Some(120_000));
        assert_eq!(read(" 0 "), Some(0));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(read("Sun, 06 Nov 1994 08:51:37 GMT"), Some(120_000));
        assert_eq!(read("Sat, 05 Nov 1994 08:49:37 GMT"), Some(0), "past");
        assert_eq!(read("Thu, 29 Feb 2096 00:00:00 GMT"), Some(RETRY_AFTER_MS_MAX));
        assert_eq!(read("86400"), Some(RETRY_AFTER_MS_MAX));
        assert_eq!(read("99999999999999999999999"), Some(RETRY_AFTER_MS_MAX));
        for bad in [
            "",
            "soon",
            "-1",
            "1.5",
            "Sun, 06 Nov 1994",
            "Sun, 06 Xxx 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:00:00 GMT",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_calendar_knows_leap_years() {
        for (date, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Tue, 29 Feb 2000 12:00:00 GMT", 951_825_600),
            ("Wed, 01 Mar 2000 00:00:00 GMT", 951_868_800),
            ("Sun, 22 Nov 2026 22:20:26 GMT", 1_795_386_026),
        ] {
            assert_eq!(http_date(date), Some(UnixMillis(seconds * 1000)), "{date}");
        }
    }
}
