//! Hit ratios over capacity as a drawing.

use std::fmt::Write as _;

/// One trace.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) note: String,
    pub(crate) series: Vec<Series>,
}

/// One line: hit ratios by capacity, smallest first.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) label: String,
    /// The offline optimum: drawn apart from those that can be had.
    pub(crate) best: bool,
    pub(crate) points: Vec<(u32, f64)>,
}

const LEFT: f64 = 76.0;
/// Where the lines end; their names come after.
const RIGHT: f64 = 790.0;
const TOP: f64 = 92.0;
/// Where the hit ratios end, and below them the differences begin and end.
const FLOOR: f64 = 480.0;
const LOWER_TOP: f64 = 570.0;
const LOWER_FLOOR: f64 = 726.0;
const PANEL: f64 = 800.0;
/// What a character of a name takes at most.
const CHARACTER: f64 = 9.6;
/// Between two labels at the right edge.
const LABEL_STEP: f64 = 21.0;
const INK: &str = "#1f2933";
const FAINT: &str = "#5d6b7a";
/// Told apart by eyes that do not tell red from green.
const COLOURS: [&str; 10] = [
    "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#882255", "#44aa99", "#6a51a3",
    "#7f7f7f",
];

/// The panels below each other.
pub(crate) fn svg(panels: &[Panel]) -> String {
    let names = panels.iter().flat_map(|p| &p.series).map(|s| s.label.chars().count());
    // A name, its ratio, and the lead to it.
    let width = RIGHT + 50.0 + CHARACTER * (names.max().unwrap_or_default() + 8) as f64;
    let height = PANEL * panels.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height}\" \
         viewBox=\"0 0 {width:.0} {height}\" font-family=\"Inter, 'Helvetica Neue', Arial, sans-serif\">\n\
         <rect width=\"{width:.0}\" height=\"{height}\" fill=\"#fdfdfb\"/>\n"
    );
    for (i, panel) in panels.iter().enumerate() {
        _ = writeln!(out, "<g transform=\"translate(0 {})\">", PANEL * i as f64);
        Drawing::new(panel).draw(&mut out);
        out.push_str("</g>\n");
    }
    out + "</svg>\n"
}

struct Drawing<'a> {
    panel: &'a Panel,
    /// The capacities, smallest first.
    capacities: Vec<u32>,
    /// The ends of the axes: logarithms of capacities, and the highest ratio.
    low: f64,
    high: f64,
    top: f64,
}

impl<'a> Drawing<'a> {
    fn new(panel: &'a Panel) -> Self {
        let points = || panel.series.iter().flat_map(|s| &s.points);
        let mut capacities: Vec<u32> = points().map(|(c, _)| *c).collect();
        capacities.sort_unstable();
        capacities.dedup();
        let log = |c: Option<&u32>| f64::from(*c.unwrap_or(&1)).ln();
        let (mut low, mut high) = (log(capacities.first()), log(capacities.last()));
        // One capacity alone stands in the middle.
        if high - low < 1e-9 {
            (low, high) = (low - 1.0, high + 1.0);
        }
        let most = points().map(|(_, r)| *r).fold(0.0, f64::max);
        let top = (most * 10.0 + 0.25).ceil().clamp(1.0, 10.0) / 10.0;
        Self { panel, capacities, low, high, top }
    }

    fn x(&self, capacity: u32) -> f64 {
        LEFT + (f64::from(capacity).ln() - self.low) / (self.high - self.low) * (RIGHT - LEFT)
    }

    fn y(&self, ratio: f64) -> f64 {
        FLOOR - ratio / self.top * (FLOOR - TOP)
    }

    fn draw(&self, out: &mut String) {
        text(out, LEFT, 38.0, 22.0, INK, "font-weight=\"600\"", &self.panel.title);
        let note = format!("Object hit ratio over capacity in blocks (logarithmic) · {}", self.panel.note);
        text(out, LEFT, 62.0, 14.5, FAINT, "", &note);
        self.axes(out);
        self.differences(out);
        self.band(out);
        for (i, series) in self.panel.series.iter().enumerate().rev() {
            self.line(out, series, colour(i, series));
        }
        self.labels(out);
    }

    fn axes(&self, out: &mut String) {
        for tenth in 0..=(self.top * 10.0).round() as u32 {
            let y = self.y(f64::from(tenth) / 10.0);
            rule(out, y, if tenth == 0 { "#8795a1" } else { "#e4e7e7" });
            let label = format!("{} %", tenth * 10);
            text(out, LEFT - 10.0, y + 5.0, 14.0, FAINT, "text-anchor=\"end\"", &label);
        }
        self.capacities(out, FLOOR);
    }

    /// The capacities below a floor. One that would run into the one before it has a tick only.
    fn capacities(&self, out: &mut String, floor: f64) {
        let mut last = f64::NEG_INFINITY;
        for &capacity in &self.capacities {
            let x = self.x(capacity);
            _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{floor:.1}\" y2=\"{:.1}\" stroke=\"#8795a1\"/>",
                floor + 6.0
            );
            if x - last > 54.0 {
                text(out, x, floor + 24.0, 14.0, FAINT, "text-anchor=\"middle\"", &grouped(capacity.into()));
                last = x;
            }
        }
    }

    /// The space between the best that can be had and the optimum: what is still to be won.
    fn band(&self, out: &mut String) {
        let at = |s: &Series, c: u32| s.points.iter().find(|(n, _)| *n == c).map(|(_, r)| *r);
        let most = |best: bool, c: u32| {
            let ratios = self.panel.series.iter().filter(|s| s.best == best).filter_map(|s| at(s, c));
            ratios.max_by(f64::total_cmp)
        };
        let band: Vec<(u32, f64, f64)> =
            self.capacities.iter().filter_map(|&c| Some((c, most(false, c)?, most(true, c)?))).collect();
        if band.len() < 2 {
            return;
        }
        let upper = band.iter().map(|(c, _, best)| (self.x(*c), self.y(*best)));
        let lower = band.iter().rev().map(|(c, online, _)| (self.x(*c), self.y(*online)));
        let outline: Vec<String> = upper.chain(lower).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        _ = writeln!(
            out,
            "<polygon points=\"{}\" fill=\"#f2cf63\" fill-opacity=\"0.28\"/>",
            outline.join(" ")
        );
        // In the middle of the widest place that is not at an edge.
        let inner = if band.len() > 2 { &band[1..band.len() - 1] } else { &band[..] };
        let Some((c, online, best)) = inner.iter().max_by(|a, b| (a.2 - a.1).total_cmp(&(b.2 - b.1))) else {
            return;
        };
        let (x, y) = (self.x(*c), f64::midpoint(self.y(*online), self.y(*best)));
        if self.y(*online) - self.y(*best) > 90.0 {
            let middle = "text-anchor=\"middle\" font-style=\"italic\"";
            text(out, x, y - 2.0, 14.0, "#7a5b00", middle, "between the best policy");
            text(out, x, y + 16.0, 14.0, "#7a5b00", middle, "and what is possible");
        }
    }

    fn line(&self, out: &mut String, series: &Series, colour: &str) {
        let points: Vec<(f64, f64)> = series.points.iter().map(|(c, r)| (self.x(*c), self.y(*r))).collect();
        polyline(out, &points, colour, series.best);
        for ((x, y), (c, r)) in points.iter().zip(&series.points) {
            dot(out, *x, *y, colour, &format!("{}, {} blocks: {r:.4}", series.label, grouped((*c).into())));
        }
    }

    /// Below: how far the policies are apart, which the wide scale above does not show.
    fn differences(&self, out: &mut String) {
        let mut online = self.panel.series.iter().enumerate().filter(|(_, s)| !s.best);
        let Some((base_at, base)) = online.next() else { return };
        let of_base = |c: u32| base.points.iter().find(|(n, _)| *n == c).map_or(0.0, |(_, r)| *r);
        let others: Vec<(usize, Vec<(u32, f64)>)> = online
            .map(|(i, s)| (i, s.points.iter().map(|(c, r)| (*c, (r - of_base(*c)) * 100.0)).collect()))
            .collect();
        if others.is_empty() {
            return;
        }
        let all = || others.iter().flat_map(|(_, points)| points).map(|(_, d)| *d);
        let (least, most) = (all().fold(0.0, f64::min), all().fold(0.0, f64::max));
        let step = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|s| (most - least) / s <= 5.0)
            .unwrap_or(20.0);
        let (from, to) = ((least / step).floor(), (most / step).ceil().max((least / step).floor() + 1.0));
        let y = |d: f64| LOWER_FLOOR - (d / step - from) / (to - from) * (LOWER_FLOOR - LOWER_TOP);
        let title = format!("Above or below {}, in percentage points", base.label);
        text(out, LEFT, LOWER_TOP - 16.0, 14.5, INK, "font-weight=\"600\"", &title);
        for tick in from as i32..=to as i32 {
            let value = f64::from(tick) * step;
            rule(out, y(value), if tick == 0 { colour(base_at, base) } else { "#e4e7e7" });
            let decimals = usize::from(step < 1.0);
            let label = if tick == 0 { "0".into() } else { format!("{value:+.decimals$}") };
            text(out, LEFT - 10.0, y(value) + 5.0, 14.0, FAINT, "text-anchor=\"end\"", &label);
        }
        for (i, points) in others.iter().rev() {
            let series = &self.panel.series[*i];
            let colour = colour(*i, series);
            let at: Vec<(f64, f64)> = points.iter().map(|(c, d)| (self.x(*c), y(*d))).collect();
            polyline(out, &at, colour, false);
            for ((x, y), (c, d)) in at.iter().zip(points) {
                dot(
                    out,
                    *x,
                    *y,
                    colour,
                    &format!("{}, {} blocks: {d:+.2}", series.label, grouped((*c).into())),
                );
            }
        }
        self.capacities(out, LOWER_FLOOR);
    }

    /// Names at the right end of the lines, moved apart where lines meet.
    fn labels(&self, out: &mut String) {
        let mut ends: Vec<(usize, f64, f64)> = Vec::new();
        for (i, series) in self.panel.series.iter().enumerate() {
            let Some(&(capacity, ratio)) = series.points.last() else { continue };
            ends.push((i, self.x(capacity), self.y(ratio)));
        }
        // Lines that end together are in the order they come in.
        let area = |i: usize| self.panel.series[i].points.iter().map(|(_, r)| r).sum::<f64>();
        ends.sort_by(|a, b| a.2.total_cmp(&b.2).then(area(b.0).total_cmp(&area(a.0))));
        let places = apart(&ends.iter().map(|e| e.2).collect::<Vec<_>>(), TOP - 10.0, FLOOR);
        for ((i, x, y), place) in ends.into_iter().zip(places) {
            let series = &self.panel.series[i];
            let colour = colour(i, series);
            let at = RIGHT + 34.0;
            _ = writeln!(
                out,
                "<path d=\"M{:.1} {y:.1} L{:.1} {place:.1} L{:.1} {place:.1}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-opacity=\"0.55\"/>",
                x + 5.0,
                at - 12.0,
                at - 4.0
            );
            let ratio = series.points.last().map_or(0.0, |(_, r)| *r);
            let label = format!("{}  {:.1} %", series.label, ratio * 100.0);
            text(out, at, place + 5.0, 15.0, colour, "font-weight=\"600\"", &label);
        }
    }
}

fn colour(i: usize, series: &Series) -> &'static str {
    if series.best { INK } else { COLOURS[i % COLOURS.len()] }
}

/// The wanted places, ascending, moved as little as keeps them a step apart and between `top` and `floor`.
fn apart(wanted: &[f64], top: f64, floor: f64) -> Vec<f64> {
    // Groups of labels that touch: where the group would like to begin, and how many it has.
    let mut groups: Vec<(f64, usize)> = Vec::new();
    for &place in wanted {
        groups.push((place, 1));
        while let [.., (above, n), (begin, m)] = groups[..]
            && begin < above + LABEL_STEP * n as f64
        {
            let all = (n + m) as f64;
            let merged = (above * n as f64 + (begin - LABEL_STEP * n as f64) * m as f64) / all;
            groups.truncate(groups.len() - 2);
            groups.push((merged, n + m));
        }
    }
    let mut places = Vec::new();
    for (begin, n) in groups {
        let most = floor - LABEL_STEP * (n - 1) as f64;
        let begin = begin.min(most).max(places.last().map_or(top, |last| last + LABEL_STEP));
        places.extend((0..n).map(|k| begin + LABEL_STEP * k as f64));
    }
    places
}

/// A line across.
fn rule(out: &mut String, y: f64, shade: &str) {
    _ = writeln!(out, "<line x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{shade}\"/>");
}

fn polyline(out: &mut String, points: &[(f64, f64)], colour: &str, dashed: bool) {
    let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let dashes = if dashed { " stroke-dasharray=\"7 4\"" } else { "" };
    _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.4\" stroke-linejoin=\"round\"{dashes}/>",
        path.join(" ")
    );
}

/// A point, and what is shown when the pointer is on it.
fn dot(out: &mut String, x: f64, y: f64, colour: &str, says: &str) {
    _ = writeln!(
        out,
        "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.4\" fill=\"{colour}\" stroke=\"#fdfdfb\"><title>{}</title></circle>",
        escaped(says)
    );
}

fn text(out: &mut String, x: f64, y: f64, size: f64, fill: &str, more: &str, what: &str) {
    _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\" {more}>{}</text>",
        escaped(what)
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A number with its thousands apart.
pub(crate) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_their_distance_and_their_order() {
        let places = apart(&[100.0, 101.0, 102.0, 300.0, 479.0, 480.0], 80.0, 480.0);
        assert!(places.windows(2).all(|w| w[1] - w[0] > LABEL_STEP - 1e-9), "{places:?}");
        assert!(places.iter().all(|p| (80.0..=480.0).contains(p)), "{places:?}");
        assert_eq!(places[3], 300.0, "what is alone stays where it is");
        assert_eq!(places[1], 101.0, "a group stays around its middle");
    }

    #[test]
    fn a_drawing_has_every_line_point_and_name() {
        let line = |label: &str, best, ratios: [f64; 3]| Series {
            label: label.into(),
            best,
            points: [500, 1000, 40_000].into_iter().zip(ratios).collect(),
        };
        let series = vec![
            line("A<B", false, [0.1, 0.2, 0.6]),
            line("C", false, [0.1, 0.25, 0.6]),
            line("Belady", true, [0.3, 0.4, 0.6]),
        ];
        let drawn = svg(&[Panel { title: "t & u".into(), note: String::new(), series }]);
        assert_eq!(drawn.matches("<polyline").count(), 4, "three lines, and one as a difference");
        assert_eq!(drawn.matches("<circle").count(), 12);
        assert_eq!(drawn.matches("<polygon").count(), 1);
        assert!(drawn.contains("A&lt;B  60.0 %") && drawn.contains("t &amp; u"), "{drawn}");
        assert!(drawn.contains("C, 1\u{202f}000 blocks: +5.00"), "{drawn}");
        assert_eq!(drawn.matches('<').count(), drawn.matches('>').count());
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
    }

    #[test]
    fn one_capacity_alone_can_be_drawn() {
        let series = vec![Series { label: "LRU".into(), best: false, points: vec![(5000, 0.0)] }];
        let drawn = svg(&[Panel { title: "t".into(), note: String::new(), series }]);
        assert!(!drawn.contains("NaN") && drawn.contains("<circle"), "{drawn}");
    }
}
