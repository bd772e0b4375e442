//! A run against an earlier one: ratios with confidence intervals, never two bare numbers. **Invariant:** the same two reports
//! give the same answer.
//!
//! Of each run, the seconds (points of the timeline) of its steady state are the samples. The ratio is that of the medians over
//! the points; its interval is the middle 95 % of 2,000 bootstrap resamples of both (Efron 1979, percentile method). Seconds
//! of one run are not independent of each other, so an interval is rather too narrow: trust a difference when repeated runs
//! show it.

use super::{Point, Report};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

const RESAMPLES: usize = 2_000;
/// With fewer points nothing is said.
const POINTS_MIN: usize = 8;

/// One figure of both runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Which.
    pub name: String,
    /// New by old, of the medians.
    pub ratio: f64,
    /// Where the ratio lies with 95 % confidence.
    pub low: f64,
    /// The same, the upper end.
    pub high: f64,
}

impl Ratio {
    /// Whether one lies outside of the interval.
    pub fn differs(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

/// A figure of a point.
type Of = fn(&Point) -> f64;

/// What could be compared, or why nothing could.
pub fn compare(new: &Report, old: &Report) -> Result<Vec<Ratio>, String> {
    let same = |a: &Report, b: &Report| {
        let (a, b) = (&a.scenario, &b.scenario);
        (a.users, a.rate, a.rate_end, a.payload) == (b.users, b.rate, b.rate_end, b.payload)
    };
    if !same(new, old) {
        return Err("the two runs had other users, rates or payloads: they cannot be compared".into());
    }
    let (new_points, old_points) = (steady(new), steady(old));
    let least = new_points.len().min(old_points.len());
    if least < POINTS_MIN {
        return Err(format!(
            "only {least} points of steady state in one of the runs, {POINTS_MIN} are needed: run longer"
        ));
    }
    let figures: [(&str, Of); 6] = [
        ("accept.p50", |point| us(point.accept.p50_us)),
        ("accept.p99", |point| us(point.accept.p99_us)),
        ("deliver.p50", |point| us(point.deliver.p50_us)),
        ("deliver.p99", |point| us(point.deliver.p99_us)),
        ("server cores", |point| point.server_cores),
        ("server memory", |point| us(point.server_rss)),
    ];
    let ratios = figures.into_iter().filter_map(|(name, of)| {
        let sample = |points: &[&Point]| -> Vec<f64> {
            points.iter().map(|point| of(point)).filter(|value| *value > 0.0).collect()
        };
        ratio(name, &sample(&new_points), &sample(&old_points))
    });
    Ok(ratios.collect())
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn us(value: u64) -> f64 {
    value as f64
}

/// Points behind the warm-up, outside of every fault, and not the last one, which is a part only.
fn steady(report: &Report) -> Vec<&Point> {
    let every = report.point_seconds.max(1);
    let hurt = |point: &Point| {
        let (from, to) = (point.at * 1_000_000, (point.at + every) * 1_000_000);
        report.faults.iter().any(|fault| from <= fault.to_us && to >= fault.from_us)
    };
    let end = report.scenario.duration.as_secs();
    let warm = report.scenario.warm_up.as_secs();
    let points = report.timeline.iter();
    points.filter(|point| point.at >= warm && point.at + every <= end && !hurt(point)).collect()
}

fn ratio(name: &str, new: &[f64], old: &[f64]) -> Option<Ratio> {
    if new.len() < POINTS_MIN || old.len() < POINTS_MIN {
        return None;
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let mut again = |sample: &[f64]| -> Vec<f64> {
                sample.iter().map(|_| sample[random.random_range(0..sample.len())]).collect()
            };
            median(again(new)) / median(again(old))
        })
        .collect();
    resampled.sort_by(f64::total_cmp);
    let at = |share: usize| resampled[(RESAMPLES * share / 1000).min(RESAMPLES - 1)];
    Some(Ratio {
        name: name.to_owned(),
        ratio: median(new.to_vec()) / median(old.to_vec()),
        low: at(25),
        high: at(975),
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len().is_multiple_of(2) {
        f64::midpoint(values[middle - 1], values[middle])
    } else {
        values[middle]
    }
}

/// For people.
pub fn text(ratios: &[Ratio]) -> String {
    let mut text = String::from("compared with the run before (new / old, 95 % confidence)\n");
    for Ratio { name, ratio, low, high } in ratios {
        let word = match () {
            () if *low > 1.0 => "more",
            () if *high < 1.0 => "less",
            () => "no difference seen",
        };
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {name:<14} {ratio:>5.2}  ({low:.2} to {high:.2})  {word}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    fn run(factor: u64) -> Report {
        let mut random = StdRng::seed_from_u64(factor);
        let mut report = report();
        report.scenario.duration = std::time::Duration::from_secs(30);
        report.point_seconds = 1;
        report.timeline = (0..30)
            .map(|at| {
                let mut point = Point { at, ..Point::default() };
                point.deliver.p50_us = 1000 * factor + random.random_range(0..200 * factor);
                point
            })
            .collect();
        report.faults.clear();
        report
    }

    #[test]
    fn a_difference_is_seen_and_none_is_not() {
        let ratios = compare(&run(2), &run(1)).unwrap();
        assert_eq!(ratios.len(), 1, "what was not measured is not compared");
        assert!(
            (1.9..2.1).contains(&ratios[0].ratio) && ratios[0].low > 1.8 && ratios[0].differs(),
            "{ratios:?}"
        );
        let mut again = run(1);
        again.timeline.rotate_left(7);
        (0..).zip(&mut again.timeline).for_each(|(at, point)| point.at = at);
        let same = compare(&again, &run(1)).unwrap();
        assert!(!same[0].differs() && same[0].low < 1.0 && same[0].high > 1.0, "{same:?}");
        assert_eq!(same, compare(&again, &run(1)).unwrap());
        assert!(text(&ratios).contains("more") && text(&same).contains("no difference"));
    }

    #[test]
    fn neither_the_warm_up_nor_a_fault_is_compared() {
        let mut hurt = run(1);
        hurt.scenario.warm_up = std::time::Duration::from_secs(8);
        let (what, phase) = ("kill".to_owned(), crate::measure::Phase::Fault);
        let (from_us, to_us) = (20_000_000, 27_500_000);
        hurt.faults.push(crate::audit::FaultWindow { what, phase, from_us, to_us, in_flight: 1 });
        for point in hurt.timeline.iter_mut().filter(|point| point.at < 8 || point.at >= 20) {
            point.deliver.p50_us *= 100;
        }
        hurt.timeline.truncate(28);
        let ratios = compare(&hurt, &run(1)).unwrap();
        assert!(!ratios[0].differs() && ratios[0].high < 1.2, "{ratios:?}");
    }

    #[test]
    fn what_cannot_be_compared_is_told() {
        let mut other = run(1);
        other.scenario.users += 1;
        assert!(compare(&other, &run(1)).unwrap_err().contains("users"));
        let mut short = run(1);
        short.timeline.truncate(5);
        assert!(compare(&short, &run(1)).unwrap_err().contains("run longer"));
    }
}
