//! A run's result as one page that opens offline. **Invariant:** no script and no address outside; what the server or the
//! scenario said is escaped.

use super::charts::{Chart, Line, Scale, Shade, escape};
use super::compare::Ratio;
use super::{Point, Report, Told};
use crate::audit::{FaultWindow, Verdict};
use crate::measure::Latency;
use crate::thresholds::{Unit, shown};
use std::f64::consts::LOG10_2;
use std::fmt::Write;

const STYLE: &str = include_str!("page.css");

/// The page; `compared`: with the run before.
pub fn page(report: &Report, compared: &[Ratio]) -> String {
    let name = if report.scenario.about.is_empty() { "A run" } else { &report.scenario.about };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{}: {}</title><style>{STYLE}</style></head><body><main>\n<h1>{}</h1>\n",
        report.verdict.word(),
        escape(name),
        escape(name)
    );
    verdict(report, &mut page);
    thresholds(report, &mut page);
    comparison(compared, &mut page);
    page.push_str("<h2>Over time</h2><div class=\"charts\">\n");
    charts(report, &mut page);
    page.push_str("</div>\n");
    metrics(report, &mut page);
    latencies(report, &mut page);
    errors(report, &mut page);
    faults(report, &mut page);
    machines(report, &mut page);
    scenario(report, &mut page);
    page.push_str("</main></body></html>\n");
    page
}

// Writing to a String does not fail: every result below is dropped for that reason.

fn verdict(report: &Report, page: &mut String) {
    let crossed = report.thresholds.iter().any(|judged| !judged.held);
    let class = match report.verdict {
        Verdict::Failed => "failed",
        Verdict::Void => "void",
        Verdict::Passed if crossed => "crossed",
        Verdict::Passed => "passed",
    };
    let audit = &report.audit;
    let and = if crossed { ", a threshold did not hold" } else { "" };
    let _ = write!(page, "<div class=\"verdict {class}\"><strong>{}{and}</strong><p>", report.verdict.word());
    let _ = write!(page, "{} accepted, {} received; ", audit.accepted, audit.received);
    let kinds = audit.kinds().map(|(kind, offenders)| format!("{} {kind}", offenders.count));
    let _ = write!(page, "{}</p>", kinds.join(", "));
    for reason in &audit.void {
        let _ = write!(page, "<p>It proves nothing: {}</p>", escape(reason));
    }
    for (kind, offenders) in audit.kinds() {
        for offender in &offenders.first {
            let submit = offender.submit.map_or_else(
                || "bytes of no submit".to_owned(),
                |key| format!("submit {} of user {}", key.counter, key.sender),
            );
            let _ = write!(page, "<p class=\"bad\">{kind}: {submit}, at user {}</p>", offender.user);
        }
    }
    if let Some(wakes) = &report.wakes {
        let kinds = wakes.kinds().map(|(kind, offenders)| format!("{} {kind}", offenders.count));
        let _ = write!(
            page,
            "<p>Wakes: {} for {} envelopes whose devices slept; {}</p>",
            wakes.taken,
            wakes.asleep,
            kinds.join(", ")
        );
        for (kind, offenders) in wakes.kinds() {
            for one in &offenders.first {
                let _ = write!(page, "<p class=\"bad\">{kind}: {}</p>", one.told());
            }
        }
    }
    if let Some(why) = &report.generator.bottleneck {
        let _ = write!(page, "<p>The harness was the bottleneck: {}</p>", escape(why));
    }
    page.push_str("</div>\n");
}

fn thresholds(report: &Report, page: &mut String) {
    if report.thresholds.is_empty() {
        return;
    }
    page.push_str("<div class=\"wide\"><table><tr><th>threshold</th><th>measured</th><th></th></tr>");
    for judged in &report.thresholds {
        let (class, word) = if judged.held { ("good", "held") } else { ("bad", "did not hold") };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td class=\"{class}\">{word}</td></tr>",
            escape(&judged.threshold),
            judged.measured
        );
    }
    page.push_str("</table></div>\n");
}

fn comparison(compared: &[Ratio], page: &mut String) {
    if compared.is_empty() {
        return;
    }
    page.push_str("<h2>Against the run before</h2><div class=\"wide\"><table><tr><th></th><th>new ÷ old</th><th>95 % confidence</th><th></th></tr>");
    for ratio in compared {
        let word = if ratio.differs() { "differs" } else { "no difference seen" };
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{:.2}</td><td>{:.2} to {:.2}</td><td>{word}</td></tr>",
            ratio.name, ratio.ratio, ratio.low, ratio.high
        );
    }
    page.push_str("</table></div>\n");
}

#[expect(clippy::cast_precision_loss, reason = "a chart has some hundred dots")]
fn charts(report: &Report, page: &mut String) {
    let every = report.point_seconds.max(1) as f64;
    let shades = shades(report);
    // What came behind the load's end is a part of a point only.
    let load =
        || report.timeline.iter().filter(|point| (point.at as f64) < report.scenario.duration.as_secs_f64());
    let line = |name, class, of: &dyn Fn(&Point) -> Option<f64>| Line {
        name,
        class,
        points: load().filter_map(|point| Some((point.at as f64, of(point)?))).collect(),
    };
    let latency = |part: fn(&Latency) -> u64, of: fn(&Point) -> &Latency| {
        move |point: &Point| Some(of(point)).filter(|all| all.count > 0).map(|all| part(all) as f64)
    };
    let seen = |value: f64| (value > 0.0).then_some(value);
    let us: fn(f64) -> String = |y| shown(y, Unit::Us);
    let mut add = |title: &str, lines: Vec<Line>, scale: Scale, y: fn(f64) -> String| {
        page.push_str(&Chart { title, lines, shades: &shades, scale, x: TIME, y, marks: vec![] }.svg());
    };
    let deliver: fn(&Point) -> &Latency = |point| &point.deliver;
    let accept: fn(&Point) -> &Latency = |point| &point.accept;
    let parts = |of: fn(&Point) -> &Latency| {
        vec![
            line("median", 'a', &latency(|all| all.p50_us, of)),
            line("99 of 100", 'b', &latency(|all| all.p99_us, of)),
            line("slowest", 'c', &latency(|all| all.max_us, of)),
        ]
    };
    add("Delivered after", parts(deliver), Scale::Log, us);
    add("Accepted after", parts(accept), Scale::Log, us);
    let rates = vec![
        line("sent", 'c', &|point| Some(point.sent as f64 / every)),
        line("accepted", 'a', &|point| Some(point.accepted as f64 / every)),
        line("delivered", 'b', &|point| Some(point.delivered as f64 / every)),
    ];
    add("Per second", rates, Scale::Linear, |y| format!("{y:.0}"));
    let sessions = line("sessions", 'a', &|point| Some(point.sessions as f64));
    add("Sessions", vec![sessions], Scale::Linear, |y| format!("{y:.0}"));
    if !report.errors.is_empty() {
        let errors = line("errors", 'b', &|point| Some(point.errors as f64 / every));
        add("Refusals and errors per second", vec![errors], Scale::Linear, |y| format!("{y:.1}"));
    }
    let memory = line("memory", 'a', &|point| seen(point.server_rss as f64));
    add("Memory of the server", vec![memory], Scale::Bytes, |y| shown(y, Unit::Bytes));
    let cores = line("cores", 'a', &|point| seen(point.server_cores));
    add("Cores that the server used", vec![cores], Scale::Linear, |y| format!("{y:.2}"));
    page.push_str(&curve(report));
}

/// The server's own: all that moved, folded away.
fn metrics(report: &Report, page: &mut String) {
    if report.scraped.0.is_empty() {
        return;
    }
    let shades = shades(report);
    page.push_str("<h2>What the server says of itself</h2><details><summary>metrics that moved; totals are by second</summary><div class=\"charts\">\n");
    for (name, metric) in &report.scraped.0 {
        let lines = vec![Line { name: "", class: 'a', points: metric.clone() }];
        let y: fn(f64) -> String =
            |y| format!("{y:.3}").trim_end_matches('0').trim_end_matches('.').to_owned();
        let chart =
            Chart { title: name, lines, shades: &shades, scale: Scale::Linear, x: TIME, y, marks: vec![] };
        page.push_str(&chart.svg());
    }
    page.push_str("</div></details>\n");
}

const TIME: fn(f64) -> String =
    |x| if x < 600.0 { format!("{x:.0} s") } else { format!("{:.0} min", x / 60.0) };

#[expect(clippy::cast_precision_loss, reason = "seconds of a run")]
fn shades(report: &Report) -> Vec<Shade> {
    let shade = |fault: &FaultWindow| Shade {
        from: fault.from_us as f64 / 1e6,
        to: fault.to_us.min(u64::MAX / 2) as f64 / 1e6,
        what: format!("{}: {}", fault.phase.as_str(), fault.what),
    };
    report.faults.iter().map(shade).collect()
}

/// Percentiles: each step to the right is ten times rarer.
#[expect(clippy::cast_precision_loss, reason = "µs within an hour")]
fn curve(report: &Report) -> String {
    let of = |told: &Told| {
        let counted = told.all.count.max(1) as f64;
        // A share that needs more than was measured says nothing.
        let points = told.curve.iter().filter(|(share, _)| *share < 1.0 && (1.0 - share) * counted >= 1.0);
        points.map(|(share, us)| (-(1.0 - share).log10(), *us as f64)).collect::<Vec<_>>()
    };
    let lines = vec![
        Line { name: "accepted", class: 'a', points: of(&report.accept) },
        Line { name: "delivered", class: 'b', points: of(&report.deliver) },
    ];
    let share: fn(f64) -> String = |x| {
        let percent = 100.0 - 100.0 * 10f64.powf(-x);
        format!("{} %", (percent * 100.0).round() / 100.0)
    };
    Chart {
        title: "Percentiles of the steady state",
        lines,
        shades: &[],
        scale: Scale::Log,
        x: share,
        y: |y| shown(y, Unit::Us),
        marks: vec![0.0, LOG10_2, 1.0, 2.0, 3.0, 4.0],
    }
    .svg()
}

fn latencies(report: &Report, page: &mut String) {
    page.push_str("<h2>Latencies, from the intended time of the send</h2><div class=\"wide\"><table><tr><th></th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th><th>measured</th></tr>");
    let mut row = |name: String, all: &Latency| {
        if all.count == 0 {
            return;
        }
        let _ = write!(page, "<tr><td>{}</td>", escape(&name));
        for (_, us) in all.parts() {
            #[expect(clippy::cast_precision_loss, reason = "µs within an hour")]
            let told = shown(us as f64, Unit::Us);
            let _ = write!(page, "<td>{told}</td>");
        }
        let _ = write!(page, "<td>{}</td></tr>", all.count);
    };
    for (name, told) in
        [("accepted", &report.accept), ("delivered", &report.deliver), ("resumed", &report.resume)]
    {
        told.phases.iter().for_each(|(phase, all)| row(format!("{name}, {phase}"), all));
        if told.carriers.len() > 1 {
            told.carriers.iter().for_each(|(carrier, all)| row(format!("{name}, steady, {carrier}"), all));
        }
    }
    report.wakes.iter().for_each(|wakes| row("woken after the acceptance".into(), &wakes.latency));
    row("sent late by (the harness)".into(), &report.generator.delay);
    page.push_str("</table></div>\n");
}

fn errors(report: &Report, page: &mut String) {
    if report.errors.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Refusals and errors</h2><div class=\"wide\"><table><tr><th>code</th><th>how often</th></tr>",
    );
    for (code, count) in &report.errors {
        let _ = write!(page, "<tr><td>{}</td><td>{count}</td></tr>", escape(code));
    }
    page.push_str("</table></div>\n");
}

fn faults(report: &Report, page: &mut String) {
    if report.faults.is_empty() {
        return;
    }
    page.push_str("<h2>What was broken, and what happened</h2><div class=\"wide\"><table><tr><th>what</th><th>kind</th><th>from</th><th>to</th><th>in flight</th></tr>");
    for fault in &report.faults {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{}</td><td>{} s</td><td>{} s</td><td>{}</td></tr>",
            escape(&fault.what),
            fault.phase.as_str(),
            fault.from_us / 1_000_000,
            fault.to_us / 1_000_000,
            fault.in_flight
        );
    }
    page.push_str("</table></div>\n");
}

fn machines(report: &Report, page: &mut String) {
    page.push_str("<h2>Machines</h2>");
    let figure = |name: &str| report.figures.get(name).map(|figure| shown(figure.value, figure.unit));
    match &report.server {
        Some(server) => {
            let session = figure("rss_per_session").unwrap_or_else(|| "not measured".into());
            let cpu = server.cpu_seconds.map_or_else(|| "not known".into(), |used| format!("{used:.1} s"));
            let each =
                figure("cpu_per_envelope").map_or_else(String::new, |each| format!(", {each} per envelope"));
            let _ = write!(page, "<p>Server: memory per session {session}; CPU in the load {cpu}{each}.</p>");
        }
        None => page
            .push_str("<p class=\"soft\">Server: not looked at (--pid, or a server command behind --).</p>"),
    }
    let generator = &report.generator;
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
    let memory = shown(generator.rss_bytes as f64, Unit::Bytes);
    let _ = write!(
        page,
        "<p>Harness: {:.1} s of CPU in {:.0} s on {} cores, {memory} at most; {} sends skipped.</p>",
        generator.cpu_seconds, report.seconds, generator.cores, generator.skipped
    );
}

fn scenario(report: &Report, page: &mut String) {
    let text = toml::to_string(&report.scenario).unwrap_or_default();
    let _ = writeln!(
        page,
        "<h2>The scenario</h2><details><summary>as a file</summary><pre>{}</pre></details>",
        escape(&text)
    );
}
