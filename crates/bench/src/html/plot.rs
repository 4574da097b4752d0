//! A plot of lines as SVG, whose colours are those of the page.

use std::fmt::Write as _;

use super::escape;

/// Size of a plot in its own units; the page scales it.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 300.0;
/// Room for labels.
const LEFT: f64 = 96.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 30.0;

/// Colours of the style sheet: `c0` to `c7`.
const COLOURS: usize = 8;

/// Points of a line at most: more than a screen has columns for would only make the file large.
const MOST_POINTS: usize = 600;

/// A line.
#[derive(Debug, Clone)]
pub(super) struct Series {
    pub(super) name: String,
    /// Ascending in x.
    pub(super) points: Vec<(f64, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Logarithmic,
}

pub(super) struct Plot {
    pub(super) title: &'static str,
    pub(super) series: Vec<Series>,
    pub(super) y: Scale,
    /// Where labels are on the axis; otherwise at round numbers.
    pub(super) x_ticks: Option<Vec<f64>>,
    pub(super) x_label: fn(f64) -> String,
    pub(super) y_label: fn(f64) -> String,
    /// A part of the time that does not count.
    pub(super) shaded: Option<(f64, f64)>,
}

/// Round numbers that divide a range into some four to eight parts.
fn round_ticks(from: f64, to: f64) -> Vec<f64> {
    let span = (to - from).max(f64::MIN_POSITIVE);
    let magnitude = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * magnitude).find(|step| span / step <= 7.0);
    let step = step.unwrap_or(magnitude * 10.0);
    let first = (from / step).ceil() as i64;
    (first..).map(|n| n as f64 * step).take_while(|tick| *tick <= to + step * 1e-9).collect()
}

impl Plot {
    /// A figure with its legend.
    pub(super) fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let points = || self.series.iter().flat_map(|series| &series.points);
        writeln!(out, "<figure>\n<figcaption>{}</figcaption>", escape(self.title))?;
        if points().next().is_none() {
            return writeln!(out, "<p class=\"quiet\">Nothing was measured.</p>\n</figure>");
        }
        let least = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::INFINITY, f64::min);
        let most = |values: &mut dyn Iterator<Item = f64>| values.fold(f64::NEG_INFINITY, f64::max);
        let shaded = self.shaded.filter(|(from, to)| to > from);
        let (mut x0, mut x1) = (least(&mut points().map(|p| p.0)), most(&mut points().map(|p| p.0)));
        if let Some((from, _)) = shaded {
            x0 = x0.min(from);
        }
        if x1 <= x0 {
            x1 = x0 + 1.0;
        }
        let (low, high) = (least(&mut points().map(|p| p.1)), most(&mut points().map(|p| p.1)));
        let (y0, y1, y_ticks) = match self.y {
            Scale::Linear => {
                let high = if high > 0.0 { high * 1.05 } else { 1.0 };
                (0.0, high, round_ticks(0.0, high))
            }
            Scale::Logarithmic => {
                let (from, to) = (low.max(1e-9).log10().floor(), high.max(1e-9).log10().ceil());
                let to = if to <= from { from + 1.0 } else { to };
                (from, to, (from as i32..=to as i32).map(|exponent| 10f64.powi(exponent)).collect())
            }
        };
        let x = |value: f64| LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| {
            let value = if self.y == Scale::Logarithmic { value.max(1e-9).log10() } else { value };
            TOP + (1.0 - (value - y0) / (y1 - y0)) * (HEIGHT - TOP - BOTTOM)
        };
        writeln!(out, "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(self.title))?;
        if let Some((from, to)) = shaded {
            let (from, to) = (x(from), x(to.min(x1)));
            writeln!(
                out,
                "<rect class=\"shade\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                to - from,
                HEIGHT - TOP - BOTTOM
            )?;
        }
        for tick in y_ticks {
            let at = y(tick);
            writeln!(
                out,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>",
                WIDTH - RIGHT
            )?;
            let label = escape(&(self.y_label)(tick));
            writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>", LEFT - 8.0, at + 4.0)?;
        }
        let x_ticks = self.x_ticks.clone().unwrap_or_else(|| round_ticks(x0, x1));
        for tick in x_ticks.into_iter().filter(|tick| *tick >= x0 - 1e-9 && *tick <= x1 + 1e-9) {
            let at = x(tick);
            writeln!(
                out,
                "<line class=\"tick\" x1=\"{at:.1}\" y1=\"{0:.1}\" x2=\"{at:.1}\" y2=\"{1:.1}\"/>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 5.0
            )?;
            let label = escape(&(self.x_label)(tick));
            // The last one must not be cut off.
            let anchor = if at > WIDTH - RIGHT - 24.0 { "end" } else { "middle" };
            writeln!(
                out,
                "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{label}</text>",
                HEIGHT - BOTTOM + 20.0
            )?;
        }
        for (i, series) in self.series.iter().enumerate().filter(|(_, series)| !series.points.is_empty()) {
            let mut path = String::new();
            for (px, py) in thin(&series.points) {
                write!(path, "{:.1},{:.1} ", x(px), y(py))?;
            }
            writeln!(out, "<polyline class=\"c{}\" points=\"{}\"/>", i % COLOURS, path.trim_end())?;
        }
        writeln!(out, "</svg>\n<div class=\"legend\">")?;
        for (i, series) in self.series.iter().enumerate().filter(|(_, series)| !series.points.is_empty()) {
            writeln!(out, "<span><i class=\"c{}\"></i>{}</span>", i % COLOURS, escape(&series.name))?;
        }
        writeln!(out, "</div>\n</figure>")
    }
}

/// At most [`MOST_POINTS`] points: of each stretch, the highest, since peaks are what matters.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(MOST_POINTS).max(1);
    points.chunks(stretch).filter_map(|part| part.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(round_ticks(0.0, 100.0), [0.0, 20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(round_ticks(0.0, 0.7).len(), 8);
        for to in [1.0, 7.0, 33.0, 950.0, 1e9] {
            assert!((3..=9).contains(&round_ticks(0.0, to).len()), "{to}");
        }
    }

    #[test]
    fn a_long_line_keeps_its_peaks() {
        let points: Vec<_> = (0..10_000).map(|x| (f64::from(x), if x == 5_555 { 9.0 } else { 1.0 })).collect();
        let thin = thin(&points);
        assert!(thin.len() <= MOST_POINTS && thin.contains(&(5_555.0, 9.0)));
    }
}
