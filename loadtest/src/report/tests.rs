//! What is told of a run: the verdict first, the exit code, the page.

use super::*;
use crate::audit::{Offender, Offenders, SubmitKey};
use crate::measure::Phase;
use std::time::Duration;

/// A run of ten seconds with a kill.
pub(crate) fn report() -> Report {
    let mut measured = Measured::new(Duration::from_secs(10));
    for second in 0..10u64 {
        for n in 0..100 {
            let at_us = second * 1_000_000 + n * 9_000;
            measured.sent(at_us, at_us + 50);
            measured.decided(Phase::Steady, Some("quic"), at_us, at_us + 2_000 + n);
            measured.delivered(Phase::Steady, Some("ws"), at_us, at_us + 3_000 + n * 10);
        }
        measured.timeline.at(second * 1_000_000).sessions = 7;
        measured.timeline.at(second * 1_000_000).server_rss = 50 << 20;
    }
    measured.error("unavailable", 4_000_000);
    measured.carriers.insert("quic".into(), 7);
    let audit = Audit { submits: 1000, accepted: 1000, received: 1000, ..Audit::default() };
    let scenario = Scenario { about: "Ours & <theirs>".into(), ..Scenario::default() };
    let mut report = Report::new(scenario, audit, &measured);
    report.seconds = 10.0;
    report.scraped.0.insert("chappe_gateway_sessions".into(), vec![(0.0, 1.0), (1.0, 7.0)]);
    let (what, phase) = ("kill".to_owned(), Phase::Fault);
    report.faults.push(FaultWindow { what, phase, from_us: 3_000_000, to_us: 4_000_000, in_flight: 2 });
    report.judge();
    report
}

#[test]
fn the_verdict_stands_first_and_decides_the_exit_code() {
    for (verdict, code, word) in
        [(Verdict::Passed, 0, "PASSED"), (Verdict::Failed, 1, "FAILED"), (Verdict::Void, 2, "VOID")]
    {
        let report = Report { verdict, ..report() };
        assert_eq!(report.exit_code(), code);
        let text = report.text();
        assert!(
            text.starts_with(word) && text.contains("7 on quic") && text.contains("unavailable: 1"),
            "{text}"
        );
        assert!(page(&report, &[]).contains(&format!("<strong>{word}</strong>")));
    }
}

#[test]
fn a_threshold_that_does_not_hold_is_told_and_is_no_broken_promise() {
    let mut crossed = report();
    crossed.scenario.thresholds =
        ["lost==0", "deliver.p99<3ms", "rss_per_session<6KiB"].map(String::from).to_vec();
    crossed.judge();
    assert_eq!(crossed.exit_code(), EXIT_THRESHOLD);
    let text = crossed.text();
    assert!(
        text.contains("held: lost==0") && text.contains("CROSSED: deliver.p99<3ms, measured 3.98 ms"),
        "{text}"
    );
    assert!(text.contains("CROSSED: rss_per_session<6KiB, measured not measured"), "{text}");
    assert!(page(&crossed, &[]).contains("did not hold"));
    crossed.verdict = Verdict::Failed;
    assert_eq!(crossed.exit_code(), 1, "a broken promise is worse");
    crossed.verdict = Verdict::Passed;
    crossed.scenario.thresholds.truncate(1);
    crossed.judge();
    assert_eq!(crossed.exit_code(), 0);
}

#[test]
fn offenders_are_named() {
    let mut failed = report();
    let submit = Some(SubmitKey { sender: 3, counter: 14 });
    failed.audit.lost = Offenders { count: 30, first: vec![Offender { submit, user: 5 }] };
    failed.verdict = failed.audit.verdict();
    assert_eq!(failed.exit_code(), 1);
    let text = failed.text();
    assert!(text.contains("30 lost") && text.contains("lost: submit 14 of user 3, at user 5"), "{text}");
    assert!(text.contains("… and 29 more"));
    assert!(page(&failed, &[]).contains("lost: submit 14 of user 3, at user 5"));
}

#[test]
fn a_harness_that_was_too_slow_says_so() {
    let mut measured = Measured::new(Duration::from_secs(10));
    measured.sent(0, 50_000);
    let slow = Report::new(Scenario::default(), Audit::default(), &measured);
    assert!(slow.text().contains("the harness was the bottleneck: one of a hundred sends left 50 ms later"));
    measured.skipped = 5;
    let skipped = Report::new(Scenario::default(), Audit::default(), &measured);
    assert!(skipped.text().contains("5 sends were not made"));
    assert_eq!(skipped.verdict, Verdict::Void, "nothing was put on");
    assert_eq!(report().generator.bottleneck, None);
}

#[test]
fn the_document_comes_back() {
    let report = report();
    let text = serde_json::to_string(&report).unwrap();
    let back: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(back.text(), report.text());
    assert_eq!(back.timeline, report.timeline);
    for name in report.figures.keys() {
        let base = name.split('.').next().unwrap();
        assert!(
            crate::thresholds::NAMES.iter().any(|(known, _, _)| *known == base),
            "{name} is not documented"
        );
    }
}

#[test]
fn the_page_stands_alone_and_escapes_what_it_was_told() {
    let page = page(&report(), &[]);
    assert!(page.contains("Ours &amp; &lt;theirs&gt;") && !page.contains("<theirs>"));
    for outside in ["http://", "https://", "<script", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert!(page.contains("aria-label=\"chappe_gateway_sessions\""));
    assert!(page.matches("<svg").count() >= 7, "{}", page.matches("<svg").count());
    assert!(page.contains("fault: kill") && !page.contains("NaN") && !page.contains("inf,"));
}
