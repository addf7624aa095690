//! Bars beside each other as a drawing.

use std::fmt::Write as _;

use super::Chart;

const LEFT: f64 = 275.0;
const RIGHT: f64 = 760.0;
const WIDTH: f64 = 900.0;
const BAR: f64 = 17.0;
const GROUP_GAP: f64 = 13.0;
const HEAD: f64 = 78.0;
const FOOT: f64 = 18.0;
const INK: &str = "#1f2933";
const FAINT: &str = "#5d6b7a";
/// Told apart by eyes that do not tell red from green.
const COLOURS: [&str; 6] = ["#0072b2", "#d9a441", "#009e73", "#aa4499", "#56b4e9", "#7f7f7f"];

/// The charts below each other.
pub(super) fn svg(charts: &[Chart]) -> String {
    let height: f64 = charts.iter().map(height).sum();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH:.0} {height:.0}\" font-family=\"Inter, 'Helvetica Neue', Arial, sans-serif\">\n\
         <rect width=\"{WIDTH:.0}\" height=\"{height:.0}\" fill=\"#fdfdfb\"/>\n"
    );
    let mut top = 0.0;
    for chart in charts {
        draw(&mut out, chart, top);
        top += self::height(chart);
    }
    out + "</svg>\n"
}

fn groups(chart: &Chart) -> Vec<&str> {
    let mut groups: Vec<&str> = chart.bars.iter().map(|b| b.group.as_str()).collect();
    groups.dedup();
    groups
}

/// Who has bars, in the order of their first.
fn labels(chart: &Chart) -> Vec<&str> {
    let mut labels: Vec<&str> = Vec::new();
    for bar in &chart.bars {
        if !labels.contains(&bar.label.as_str()) {
            labels.push(&bar.label);
        }
    }
    labels
}

fn height(chart: &Chart) -> f64 {
    HEAD + chart.bars.len() as f64 * BAR + groups(chart).len() as f64 * GROUP_GAP + FOOT
}

fn draw(out: &mut String, chart: &Chart, top: f64) {
    text(out, 24.0, top + 32.0, 19.0, INK, "font-weight=\"600\"", &chart.title);
    text(out, 24.0, top + 54.0, 13.5, FAINT, "", &chart.unit);
    let labels = labels(chart);
    let colour = |label: &str| COLOURS[labels.iter().position(|l| *l == label).unwrap_or(0) % COLOURS.len()];
    let mut at = RIGHT + 90.0;
    for label in labels.iter().rev() {
        text(out, at, top + 54.0, 13.5, colour(label), "text-anchor=\"end\" font-weight=\"600\"", label);
        at -= 9.0 * label.chars().count() as f64 + 18.0;
    }
    let most = chart.bars.iter().map(|b| b.value).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let mut y = top + HEAD;
    let mut last = None;
    for bar in &chart.bars {
        if last != Some(&bar.group) {
            y += if last.is_some() { GROUP_GAP } else { 0.0 };
            let end = "text-anchor=\"end\"";
            text(out, LEFT - 12.0, y + BAR - 4.0, 13.5, INK, end, &bar.group);
            last = Some(&bar.group);
        }
        let long = if most > 0.0 && bar.value.is_finite() { bar.value / most * (RIGHT - LEFT) } else { 0.0 };
        _ = writeln!(
            out,
            "<rect x=\"{LEFT:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" fill=\"{}\"/>",
            long.max(1.0),
            BAR - 3.0,
            colour(&bar.label)
        );
        text(out, LEFT + long + 8.0, y + BAR - 5.0, 12.5, INK, "", &number(bar.value));
        y += BAR;
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value {
        v if !v.is_finite() => "–".into(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn text(out: &mut String, x: f64, y: f64, size: f64, fill: &str, more: &str, what: &str) {
    let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\" {more}>{what}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::super::Bar;
    use super::*;

    #[test]
    fn every_bar_is_drawn_and_the_longest_ends_at_the_edge() {
        let bar = |group: &str, label: &str, value| Bar { group: group.into(), label: label.into(), value };
        let bars = vec![bar("a<b", "x", 1.0), bar("a<b", "y", 4.0), bar("c", "x", f64::NAN)];
        let chart = Chart { title: "t".into(), unit: "GB/s".into(), bars };
        let drawn = svg(&[chart]);
        assert_eq!(drawn.matches("rx=\"2\"").count(), 3);
        assert!(drawn.contains(&format!("width=\"{:.1}\"", RIGHT - LEFT)), "{drawn}");
        assert!(drawn.contains("a&lt;b") && drawn.contains(">4.00<") && drawn.contains(">–<"), "{drawn}");
        assert!(!drawn.contains("NaN"), "{drawn}");
    }
}
