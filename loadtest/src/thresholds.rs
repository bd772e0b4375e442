//! Thresholds such as `deliver.p99<250ms`. **Invariant:** one that cannot be judged has not held, and says why.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a figure is, so that its value can be written as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// A number of things.
    Count,
    /// Microseconds.
    Us,
    /// Bytes.
    Bytes,
    /// Things per second.
    PerSecond,
    /// Share of a whole, 0 to 100.
    Percent,
}

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// In its unit.
    pub value: f64,
    /// What it is.
    pub unit: Unit,
}

/// The figures of a run by their names.
pub type Figures = BTreeMap<String, Figure>;

/// Every figure that a threshold can be about, and what it is. Of latencies there are `p50`, `p90`, `p99`, `p999` and `max`.
pub const NAMES: &[(&str, Unit, &str)] = &[
    ("lost", Unit::Count, "accepted and not received"),
    ("phantom", Unit::Count, "received and never sent, refused, or changed on the way"),
    ("misrouted", Unit::Count, "received by somebody else"),
    ("reordered", Unit::Count, "received behind a later one of the same sender"),
    ("duplicate", Unit::Count, "received twice by the application"),
    ("accepted", Unit::Count, "entries that were accepted"),
    ("refused", Unit::Count, "entries that were refused for good"),
    ("undecided", Unit::Count, "entries that nobody knows the fate of"),
    ("errors", Unit::Count, "refusals and errors of all codes"),
    ("skipped", Unit::Count, "sends that the harness did not make"),
    ("accept", Unit::Us, "from the intended send to the word accepted, in the steady phase"),
    ("deliver", Unit::Us, "from the intended send to the receiver's application, in the steady phase"),
    ("resume", Unit::Us, "from the loss of a connection to the next welcome, whatever the cause"),
    ("send_delay", Unit::Us, "how much later than intended the harness itself sent"),
    ("rate", Unit::PerSecond, "entries accepted per second of the load"),
    (
        "rss_per_session",
        Unit::Bytes,
        "growth of the server's memory from before the first session, by session",
    ),
    ("cpu_per_envelope", Unit::Us, "CPU time of the server in the load, by envelope that was delivered"),
    ("late_wakes", Unit::Count, "of devices: woken too late or never (scenario wake)"),
    ("extra_wakes", Unit::Count, "of devices: woken for nothing or twice (scenario wake)"),
    ("wake", Unit::Us, "from the acceptance to the provider, of devices that slept (scenario wake)"),
];

const PARTS: [&str; 5] = ["p50", "p90", "p99", "p999", "max"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Less,
    AtMost,
    Equal,
    AtLeast,
    More,
}

/// A threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Threshold {
    text: String,
    name: String,
    compare: Compare,
    value: f64,
}

/// What became of a threshold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// As it was given.
    pub threshold: String,
    /// Whether it held.
    pub held: bool,
    /// What was measured, for people.
    pub measured: String,
}

impl Threshold {
    /// Reads `name<value`; `<`, `<=`, `==`, `>=` and `>` are known; `p99` alone is `deliver.p99`.
    pub fn read(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("threshold \"{text}\": {why}");
        let at = text
            .find(['<', '>', '='])
            .ok_or_else(|| wrong("write a figure, a comparison and a value: deliver.p99<250ms".into()))?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let (compare, value) = [
            ("<=", Compare::AtMost),
            (">=", Compare::AtLeast),
            ("==", Compare::Equal),
            ("<", Compare::Less),
            (">", Compare::More),
        ]
        .into_iter()
        .find_map(|(sign, compare)| Some((compare, rest.strip_prefix(sign)?)))
        .ok_or_else(|| wrong("there are <, <=, ==, >= and >".into()))?;
        let name = if PARTS.contains(&name) { format!("deliver.{name}") } else { name.to_owned() };
        let (base, part) =
            name.split_once('.').map_or((name.as_str(), None), |(base, part)| (base, Some(part)));
        let known = NAMES.iter().find(|(known, _, _)| *known == base);
        let latency = |unit: Unit| unit == Unit::Us && base != "cpu_per_envelope";
        let unit = match (known, part) {
            (Some((_, unit, _)), None) if !latency(*unit) => *unit,
            (Some((_, unit, _)), Some(part)) if latency(*unit) && PARTS.contains(&part) => *unit,
            (Some((_, unit, _)), _) if latency(*unit) => {
                return Err(wrong(format!("say which: {base}.p50, .p90, .p99, .p999 or .max")));
            }
            _ => {
                let names: Vec<&str> = NAMES.iter().map(|(name, _, _)| *name).collect();
                return Err(wrong(format!("there is no figure \"{name}\"; there are {}", names.join(", "))));
            }
        };
        let value = quantity(value.trim(), unit).map_err(wrong)?;
        Ok(Self { text: text.to_owned(), name, compare, value })
    }

    /// Judges it.
    pub fn judge(&self, figures: &Figures) -> Judged {
        let (held, measured) = match figures.get(&self.name) {
            None => (false, "not measured".to_owned()),
            Some(Figure { value, unit }) => {
                let held = match self.compare {
                    Compare::Less => *value < self.value,
                    Compare::AtMost => *value <= self.value,
                    Compare::Equal => (*value - self.value).abs() < 1e-9,
                    Compare::AtLeast => *value >= self.value,
                    Compare::More => *value > self.value,
                };
                (held, shown(*value, *unit))
            }
        };
        Judged { threshold: self.text.clone(), held, measured }
    }
}

/// For people.
pub fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count => format!("{value:.0}"),
        Unit::Us if value >= 1_000_000.0 => format!("{:.2} s", value / 1_000_000.0),
        Unit::Us if value >= 1_000.0 => format!("{:.2} ms", value / 1_000.0),
        Unit::Us => format!("{value:.0} µs"),
        Unit::Bytes if value >= 1_048_576.0 => format!("{:.1} MiB", value / 1_048_576.0),
        Unit::Bytes => format!("{:.1} KiB", value / 1024.0),
        Unit::PerSecond => format!("{value:.1}/s"),
        Unit::Percent => format!("{value:.1} %"),
    }
}

fn quantity(text: &str, unit: Unit) -> Result<f64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = (&text[..split], text[split..].trim());
    let value: f64 = number.parse().map_err(|_| format!("\"{text}\" is no value"))?;
    let factors: &[(&str, f64)] = match unit {
        Unit::Count => &[("", 1.0)],
        Unit::Us => &[("us", 1.0), ("µs", 1.0), ("ms", 1_000.0), ("s", 1_000_000.0), ("m", 60_000_000.0)],
        Unit::Bytes => &[("B", 1.0), ("KiB", 1024.0), ("MiB", 1_048_576.0), ("GiB", 1_073_741_824.0)],
        Unit::PerSecond => &[("", 1.0), ("/s", 1.0)],
        Unit::Percent => &[("", 1.0), ("%", 1.0)],
    };
    let factor = factors.iter().find(|(name, _)| *name == suffix).ok_or_else(|| {
        let names: Vec<&str> =
            factors.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        let wanted = if names.is_empty() { "a bare number".into() } else { names.join(", ") };
        format!("\"{text}\": the unit is {wanted}")
    })?;
    Ok(value * factor.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        let figure = |value, unit| Figure { value, unit };
        Figures::from([
            ("lost".into(), figure(0.0, Unit::Count)),
            ("deliver.p99".into(), figure(250_000.0, Unit::Us)),
            ("rss_per_session".into(), figure(6144.0, Unit::Bytes)),
        ])
    }

    #[test]
    fn they_hold_or_do_not() {
        for (text, held) in [
            ("lost==0", true),
            ("lost < 1", true),
            ("lost>0", false),
            ("p99<250ms", false),
            ("p99<=250ms", true),
            ("deliver.p99 < 0.251s", true),
            ("deliver.p99>=250ms", true),
            ("rss_per_session<6KiB", false),
            ("rss_per_session<=6KiB", true),
            ("resume.p99<1s", false),
        ] {
            let judged = Threshold::read(text).unwrap().judge(&figures());
            assert_eq!(judged.held, held, "{judged:?}");
        }
        let judged = Threshold::read("resume.max<1m").unwrap().judge(&figures());
        assert_eq!(judged.measured, "not measured");
    }

    #[test]
    fn what_is_wrong_is_told() {
        for (text, told) in [
            ("lost", "a comparison"),
            ("lost=0", "=="),
            ("p98<3ms", "no figure"),
            ("accept<3ms", "accept.p50"),
            ("lost.p99<3", "no figure"),
            ("cpu_per_envelope.p99<3us", "no figure"),
            ("p99<3", "ms"),
            ("p99<3KiB", "ms"),
            ("rss_per_session<6kb", "KiB"),
            ("lost<x", "no value"),
        ] {
            let error = Threshold::read(text).unwrap_err();
            assert!(error.contains(told) && error.contains(text), "{text}: {error}");
        }
        Threshold::read("cpu_per_envelope<300us").unwrap();
    }
}
