//! Charts as SVG that stands in the page itself. **Invariant:** no script, no address outside; colours are the page's, so light
//! and dark are the page's choice.

use std::fmt::Write;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;

/// A line; the page has colours for the classes `a`, `b` and `c`.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) class: char,
    /// x, y; what was not measured is left out.
    pub(super) points: Vec<(f64, f64)>,
}

/// A time in which something was wrong.
pub(super) struct Shade {
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) what: String,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    Linear,
    /// The same, with marks at powers of two.
    Bytes,
    /// Powers of ten.
    Log,
}

/// A chart.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) lines: Vec<Line>,
    pub(super) shades: &'a [Shade],
    pub(super) scale: Scale,
    /// As it stands at the axes.
    pub(super) x: fn(f64) -> String,
    pub(super) y: fn(f64) -> String,
    /// Where the x axis has its marks; empty: evenly.
    pub(super) marks: Vec<f64>,
}

struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    scale: Scale,
}

impl Axes {
    fn of(chart: &Chart<'_>) -> Option<Self> {
        let all = || chart.lines.iter().flat_map(|line| &line.points);
        let bounds = |values: &mut dyn Iterator<Item = f64>| {
            values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
        };
        let x = bounds(&mut all().map(|(x, _)| *x));
        let y = bounds(&mut all().map(|(_, y)| *y));
        if !(x.0.is_finite() && y.0.is_finite()) {
            return None;
        }
        let y = match chart.scale {
            Scale::Linear => (0.0, nice(y.1.max(1e-9))),
            Scale::Bytes => (0.0, 2f64.powf(y.1.max(4.0).log2().ceil())),
            Scale::Log => {
                let low = y.0.max(1.0).log10().floor();
                (low, y.1.max(1.0).log10().ceil().max(low + 1.0))
            }
        };
        Some(Self { x: (x.0, if x.1 > x.0 { x.1 } else { x.0 + 1.0 }), y, scale: chart.scale })
    }

    fn place_x(&self, x: f64) -> f64 {
        let share = ((x - self.x.0) / (self.x.1 - self.x.0)).clamp(0.0, 1.0);
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    fn place_y(&self, y: f64) -> f64 {
        let y = if self.scale == Scale::Log { y.max(1.0).log10() } else { y };
        let share = ((y - self.y.0) / (self.y.1 - self.y.0)).clamp(0.0, 1.0);
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn marks_y(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear | Scale::Bytes => (0..=4).map(|n| self.y.1 * f64::from(n) / 4.0).collect(),
            Scale::Log => {
                let mut marks = vec![self.y.0];
                while marks.last().is_some_and(|last| *last < self.y.1) {
                    marks.push(marks[marks.len() - 1] + 1.0);
                }
                marks.into_iter().map(|power| 10f64.powf(power)).collect()
            }
        }
    }
}

/// The next of 1, 2, 4, 8 and 10 times a power of ten: each is cut in four well.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 8.0].into_iter().map(|n| n * power).find(|nice| *nice >= value).unwrap_or(10.0 * power)
}

impl Chart<'_> {
    /// Nothing, if nothing was measured.
    pub(super) fn svg(&self) -> String {
        let Some(axes) = Axes::of(self) else { return String::new() };
        let mut svg = String::new();
        // Writing to a String does not fail, here and below.
        let _ = write!(
            svg,
            "<figure><figcaption>{}{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            escape(self.title),
            self.legend(),
            escape(self.title)
        );
        for shade in self.shades {
            let (from, to) = (axes.place_x(shade.from), axes.place_x(shade.to));
            let _ = write!(
                svg,
                "<rect class=\"shade\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                (to - from).max(2.0),
                HEIGHT - TOP - BOTTOM,
                escape(&shade.what)
            );
        }
        self.grid(&axes, &mut svg);
        for line in &self.lines {
            let mut path = String::new();
            for (x, y) in &line.points {
                let _ = write!(path, "{:.1},{:.1} ", axes.place_x(*x), axes.place_y(*y));
            }
            let _ = write!(svg, "<polyline class=\"line {}\" points=\"{}\"/>", line.class, path.trim_end());
            for (x, y) in &line.points {
                let _ = write!(
                    svg,
                    "<circle class=\"dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>{} {} at {}</title></circle>",
                    line.class,
                    axes.place_x(*x),
                    axes.place_y(*y),
                    line.name,
                    (self.y)(*y),
                    (self.x)(*x)
                );
            }
        }
        svg.push_str("</svg></figure>\n");
        svg
    }

    fn legend(&self) -> String {
        let of = |line: &Line| format!(" <span class=\"key {}\">{}</span>", line.class, line.name);
        let named = |line: &&Line| !line.points.is_empty() && !line.name.is_empty();
        self.lines.iter().filter(named).map(of).collect()
    }

    fn grid(&self, axes: &Axes, svg: &mut String) {
        let mut told = String::new();
        for mark in axes.marks_y() {
            let y = axes.place_y(mark);
            let text = (self.y)(mark).replace(".00 ", " ").replace(".0 ", " ");
            // Values that are told alike, such as 0.25 and 0.4 of a whole, are told once.
            let text = if text == told { String::new() } else { text };
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/><text class=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 8.0,
                y + 4.0,
                text
            );
            if !text.is_empty() {
                told = text;
            }
        }
        let even = || (0..=6).map(|n| axes.x.0 + (axes.x.1 - axes.x.0) * f64::from(n) / 6.0).collect();
        let marks: Vec<f64> = if self.marks.is_empty() { even() } else { self.marks.clone() };
        for mark in marks.into_iter().filter(|mark| (axes.x.0..=axes.x.1).contains(mark)) {
            let _ = write!(
                svg,
                "<text class=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                axes.place_x(mark).clamp(LEFT, WIDTH - 24.0),
                HEIGHT - 8.0,
                (self.x)(mark)
            );
        }
    }
}

/// Text between tags and in quotes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(lines: Vec<Line>, scale: Scale) -> String {
        let shades = [Shade { from: 1.0, to: 2.0, what: "kill <b>".into() }];
        let (x, y) = (|x| format!("{x} s"), |y| format!("{y}"));
        Chart { title: "Rates", lines, shades: &shades, scale, x, y, marks: vec![] }.svg()
    }

    #[test]
    fn lines_lie_within_the_axes() {
        let points = vec![(0.0, 0.0), (1.0, 150.0), (4.0, 90.0)];
        let svg = chart(vec![Line { name: "sent", class: 'a', points }], Scale::Linear);
        assert!(svg.contains("points=\"66.0,194.0 186.5,57.5 548.0,112.1\""), "{svg}");
        assert!(svg.contains(">200<") && svg.contains("sent 150 at 1 s") && svg.contains("kill &lt;b&gt;"));
        assert_eq!(chart(vec![Line { name: "none", class: 'a', points: vec![] }], Scale::Linear), "");
    }

    #[test]
    fn a_line_without_a_name_has_no_key_and_no_mark_is_told_twice() {
        let line = |name| Line { name, class: 'a', points: vec![(0.0, 0.0), (1.0, 0.9)] };
        let whole = |y: f64| format!("{y:.0} pieces");
        let svg = Chart {
            title: "Small",
            lines: vec![line("")],
            shades: &[],
            scale: Scale::Linear,
            x: |x| format!("{x} s"),
            y: whole,
            marks: vec![],
        }
        .svg();
        assert!(!svg.contains("class=\"key"), "{svg}");
        assert_eq!(svg.matches(">0 pieces<").count(), 1, "{svg}");
        assert_eq!(svg.matches(">1 pieces<").count(), 1, "{svg}");
        assert!(chart(vec![line("sent")], Scale::Linear).contains("class=\"key a\">sent<"));
    }

    #[test]
    fn a_log_scale_has_powers_of_ten() {
        let points = vec![(0.0, 30.0), (1.0, 4_000.0)];
        let svg = chart(vec![Line { name: "p99", class: 'b', points }], Scale::Log);
        for mark in [">10<", ">100<", ">1000<", ">10000<"] {
            assert!(svg.contains(mark), "{mark} {svg}");
        }
        let one = chart(vec![Line { name: "p99", class: 'b', points: vec![(3.0, 0.0)] }], Scale::Log);
        assert!(!one.contains("NaN") && !one.contains("inf"), "{one}");
    }
}
