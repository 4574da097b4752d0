//! What was reached and what is to be reached.

use std::fmt;

use serde_json::{Value, json};

/// The median of some rounds, and where they lie.
#[derive(Clone, Copy)]
pub(super) struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    /// Of at least one value; NaN in one makes all NaN.
    pub(super) fn of(values: &[f64]) -> Spread {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return Spread { median: f64::NAN, least: f64::NAN, most: f64::NAN };
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Spread { median, least: sorted[0], most: sorted[sorted.len() - 1] }
    }
}

#[derive(Clone, Copy)]
enum Reach {
    AtLeast(f64),
    AtMost(f64),
    /// Shown only.
    Any,
}

struct Line {
    what: String,
    measured: Spread,
    decimals: usize,
    reach: Reach,
}

impl Line {
    fn is_reached(&self) -> bool {
        match self.reach {
            Reach::AtLeast(bound) => self.measured.median >= bound,
            Reach::AtMost(bound) => self.measured.median <= bound,
            Reach::Any => true,
        }
    }
}

/// Lines of the table that is printed at the end.
#[derive(Default)]
pub(super) struct Table {
    lines: Vec<Line>,
}

impl Table {
    /// Shows a number that nothing is promised of.
    pub(super) fn note(&mut self, what: impl Into<String>, measured: Spread, decimals: usize) {
        self.lines.push(Line { what: what.into(), measured, decimals, reach: Reach::Any });
    }

    pub(super) fn at_least(&mut self, what: impl Into<String>, measured: Spread, bound: f64) {
        let decimals = if bound < 100.0 { 2 } else { 0 };
        self.lines.push(Line { what: what.into(), measured, decimals, reach: Reach::AtLeast(bound) });
    }

    pub(super) fn at_most(&mut self, what: impl Into<String>, measured: Spread, bound: f64) {
        let decimals = if bound < 100.0 { 2 } else { 0 };
        self.lines.push(Line { what: what.into(), measured, decimals, reach: Reach::AtMost(bound) });
    }

    /// Something that must not happen.
    pub(super) fn none(&mut self, what: impl Into<String>, count: u64) {
        let measured = Spread::of(&[count as f64]);
        self.lines.push(Line { what: what.into(), measured, decimals: 0, reach: Reach::AtMost(0.0) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn all_reached(&self) -> bool {
        self.lines.iter().all(Line::is_reached)
    }

    pub(super) fn json(&self) -> Value {
        let line = |line: &Line| {
            let reach = match line.reach {
                Reach::AtLeast(bound) => json!({ "at_least": bound }),
                Reach::AtMost(bound) => json!({ "at_most": bound }),
                Reach::Any => Value::Null,
            };
            let Spread { median, least, most } = line.measured;
            json!({ "what": line.what, "median": median, "least": least, "most": most, "reach": reach, "reached": line.is_reached() })
        };
        self.lines.iter().map(line).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.lines.iter().map(|line| line.what.chars().count()).max().unwrap_or(0);
        for line in &self.lines {
            let Line { what, measured: Spread { median, least, most }, decimals, .. } = line;
            let pad = " ".repeat(width - what.chars().count());
            write!(f, "{what}{pad}  {median:>10.decimals$}")?;
            let range = if least == most { String::new() } else { format!("({least:.decimals$}–{most:.decimals$})") };
            write!(f, "  {range:<22}")?;
            match line.reach {
                Reach::AtLeast(bound) => write!(f, "  ≥ {bound}")?,
                Reach::AtMost(bound) => write!(f, "  ≤ {bound}")?,
                Reach::Any => {}
            }
            match line.reach {
                Reach::Any => {}
                _ if line.is_reached() => write!(f, "  pass")?,
                _ => write!(f, "  MISS")?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_held_against_its_bound_and_a_missing_number_misses() {
        let mut table = Table::default();
        table.note("shown", Spread::of(&[1.0]), 0);
        table.at_least("ratio", Spread::of(&[0.5, 0.9, 0.8]), 0.7);
        table.at_most("cpu", Spread::of(&[4.0, 5.0]), 4.5);
        table.none("lost", 0);
        assert!(table.all_reached());
        let shown = table.to_string();
        assert!(shown.contains("0.80  (0.50–0.90)") && shown.contains("≥ 0.7  pass"), "{shown}");
        table.at_most("memory", Spread::of(&[1.0, f64::NAN]), 2.0);
        assert!(!table.all_reached());
        assert!(table.to_string().contains("MISS"));
        assert_eq!(table.json().as_array().map(Vec::len), Some(5));
    }
}
