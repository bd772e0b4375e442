//! Durations as people write them: `250ms`, `30s`, `5m`, `2h`. **Invariant:** what is written is read back as the same.

use serde::{Deserialize, Deserializer, Serializer};
use std::time::Duration;

/// Reads one. Without a unit it is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| format!("\"{text}\" is no duration; try 30s or 5m"))?;
    let seconds = |each: u64| {
        let all = number.checked_mul(each).ok_or_else(|| format!("\"{text}\" is too long"))?;
        Ok(Duration::from_secs(all))
    };
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3600),
        _ => Err(format!("\"{unit}\" is no unit of time; there are ms, s, m and h")),
    }
}

/// Writes one, in the largest unit that loses nothing.
pub fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match () {
        () if duration.subsec_nanos() != 0 => format!("{}ms", duration.as_millis()),
        () if seconds == 0 => "0s".to_owned(),
        () if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        () if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        () => format!("{seconds}s"),
    }
}

pub(super) fn serialize<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&shown(*duration))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    duration(&String::deserialize(from)?).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert!(duration("soon").is_err() && duration("5y").is_err());
        assert!(duration("18446744073709551615h").is_err());
        for text in ["0s", "250ms", "1500ms", "30s", "5m", "90s", "48h"] {
            assert_eq!(shown(duration(text).unwrap()), text);
        }
    }
}
