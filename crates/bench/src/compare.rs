//! Two reports side by side, and which differences are more than noise.
//!
//! A run is one sample, but its seconds are many: the noise of a rate or of a latency over time is estimated from how its seconds scatter
//! (the standard error of their mean, both runs together). A difference of less than `SIGMAS` of that is called noise. What has no
//! seconds, such as counts of errors, is just shown.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::read_report;
use crate::html;
use crate::report::Report;
use crate::run::Second;

/// Standard errors of the mean from which on a difference is more than noise: beyond it lie 0.3 % of what chance does.
const SIGMAS: f64 = 3.0;

/// Share of a value below which a difference is nothing, whatever the noise: clocks and ticks are no better.
const LEAST_SHARE: f64 = 0.01;

/// One line of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What is compared.
    pub name: String,
    /// Before.
    pub before: f64,
    /// After.
    pub after: f64,
    /// What chance may make of it, if that is known.
    pub noise: Option<f64>,
    /// Whether more is better; nothing if neither is.
    pub more_is_better: Option<bool>,
}

/// What a difference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Not more than chance makes.
    Noise,
    /// For the better.
    Better,
    /// For the worse.
    Worse,
    /// Neither is better, or the noise is not known.
    Different,
}

impl Row {
    /// What the difference is.
    #[must_use]
    pub fn difference(&self) -> Difference {
        let moved = self.after - self.before;
        let least = self.noise.unwrap_or(0.0).max(self.before.abs() * LEAST_SHARE);
        match (moved.abs() > least, self.more_is_better) {
            (false, _) => Difference::Noise,
            (true, None) => Difference::Different,
            (true, Some(more)) if (moved > 0.0) == more => Difference::Better,
            (true, Some(_)) => Difference::Worse,
        }
    }
}

impl Difference {
    /// In a word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Difference::Noise => "noise",
            Difference::Better => "better",
            Difference::Worse => "WORSE",
            Difference::Different => "different",
        }
    }
}

/// Mean and squared standard error of the measured seconds.
fn seconds(report: &Report, value: fn(&Second) -> f64) -> Option<f64> {
    let from = report.load.warm_up_seconds;
    let to = from + report.measured.seconds;
    // A second that only began in the measured part, or the last and shorter one, is none.
    let values: Vec<f64> =
        report.timeline.iter().filter(|second| second.at >= from + 1.0 && second.at <= to + 0.05).map(value).collect();
    if values.len() < 3 {
        return None;
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some(variance / n)
}

fn noise(before: &Report, after: &Report, value: fn(&Second) -> f64) -> Option<f64> {
    Some(SIGMAS * (seconds(before, value)? + seconds(after, value)?).sqrt())
}

/// Compares two reports.
#[must_use]
pub fn rows(before: &Report, after: &Report) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |name: &str, pair: (f64, f64), noise: Option<f64>, more_is_better: Option<bool>| {
        rows.push(Row { name: name.to_owned(), before: pair.0, after: pair.1, noise, more_is_better });
    };
    let both = |value: fn(&Report) -> f64| (value(before), value(after));
    row("acks/s", both(|r| r.measured.acks_per_second), noise(before, after, |s| s.acks_per_second), Some(true));
    row("latency p50, µs", both(|r| r.latency.p50 as f64), noise(before, after, |s| s.p50_micros as f64), Some(false));
    row("latency p99, µs", both(|r| r.latency.p99 as f64), noise(before, after, |s| s.p99_micros as f64), Some(false));
    row("latency p99.9, µs", both(|r| r.latency.p99_9 as f64), None, Some(false));
    row("latency max, µs", both(|r| r.latency.max as f64), None, None);
    row("messages that failed", both(|r| r.counts.failed() as f64), None, Some(false));
    if before.server.is_some() && after.server.is_some() {
        let cpu = |r: &Report| {
            r.server.as_ref().and_then(|s| s.per_message.as_ref()).map_or(f64::NAN, |each| each.cpu_seconds_per_million)
        };
        // Processor time a message scatters as the cores in use do.
        let relative = noise(before, after, |s| s.server_cores.unwrap_or(0.0));
        let cores = before.server.as_ref().map_or(1.0, |server| server.cores).max(f64::MIN_POSITIVE);
        let scaled = relative.map(|noise| noise / cores * cpu(before));
        row("server CPU s per million", both(cpu), scaled, Some(false));
        let rss = |r: &Report| r.server.as_ref().map_or(f64::NAN, |server| server.rss_peak as f64 / 1e6);
        row("server RSS, peak MB", both(rss), None, Some(false));
    }
    if let (Some(one), Some(two)) = (&before.connect, &after.connect) {
        row("connects/s", (one.per_second, two.per_second), None, Some(true));
        if let (Some(one), Some(two)) = (one.server_rss_each, two.server_rss_each) {
            row("server RSS a connection, B", (one, two), None, Some(false));
        }
    }
    if let (Some(one), Some(two)) = (&before.audit, &after.audit) {
        row("acked and missing", (one.acked_and_missing as f64, two.acked_and_missing as f64), None, Some(false));
        row("stored twice", (one.stored_twice as f64, two.stored_twice as f64), None, Some(false));
    }
    for one in &before.populations {
        if let Some(two) = after.populations.iter().find(|two| two.name == one.name) {
            let pair = (one.latency.p99 as f64, two.latency.p99 as f64);
            row(&format!("{}: latency p99, µs", one.name), pair, None, Some(false));
        }
    }
    rows
}

/// What makes two reports hard to compare.
#[must_use]
pub fn cautions(before: &Report, after: &Report) -> Vec<String> {
    let mut cautions = Vec::new();
    let mut differs = |what: &str, one: String, two: String| {
        if one != two {
            cautions.push(format!("{what}: {one} and {two}"));
        }
    };
    differs("scenarios", before.scenario.clone(), after.scenario.clone());
    differs("devices", before.load.devices.to_string(), after.load.devices.to_string());
    differs("processors", before.machine.processor.clone(), after.machine.processor.clone());
    differs("cores", before.machine.cores.to_string(), after.machine.cores.to_string());
    differs("kernels", before.machine.kernel.clone(), after.machine.kernel.clone());
    let outcome = |report: &Report| format!("{:?}", report.verdict.outcome).to_lowercase();
    differs("verdicts", outcome(before), outcome(after));
    cautions
}

/// The comparison as text.
#[must_use]
pub fn text(before: &Report, after: &Report) -> String {
    let mut out = String::new();
    for caution in cautions(before, after) {
        let _ = writeln!(out, "caution: different {caution}");
    }
    let _ = writeln!(out, "{:<34} {:>14} {:>14} {:>9} {:>10}  ", "", "before", "after", "change", "noise");
    for row in rows(before, after) {
        let change = if row.before == 0.0 { f64::NAN } else { (row.after / row.before - 1.0) * 100.0 };
        let change = if change.is_finite() { format!("{change:+.1} %") } else { "–".to_owned() };
        let noise = match row.noise {
            Some(noise) if row.before != 0.0 => format!("± {:.1} %", noise / row.before.abs() * 100.0),
            _ => "–".to_owned(),
        };
        let _ = writeln!(
            out,
            "{:<34} {:>14} {:>14} {change:>9} {noise:>10}  {}",
            row.name,
            shown(row.before),
            shown(row.after),
            row.difference().word()
        );
    }
    out
}

/// A number with as many digits as mean something.
pub(crate) fn shown(value: f64) -> String {
    match value.abs() {
        _ if !value.is_finite() => "–".to_owned(),
        0.0 => "0".to_owned(),
        abs if abs < 1.0 => format!("{value:.3}"),
        abs if abs < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

pub(crate) fn run(before: &Path, after: &Path, page: Option<&Path>) -> anyhow::Result<ExitCode> {
    let (before, after) = (read_report(before)?, read_report(after)?);
    print!("{}", text(&before, &after));
    if let Some(file) = page {
        let html = html::comparison(&before, &after);
        std::fs::write(file, html).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_within_the_noise_is_called_so() {
        let row = |before, after, noise| Row { name: String::new(), before, after, noise, more_is_better: Some(true) };
        assert_eq!(row(100.0, 104.0, Some(5.0)).difference(), Difference::Noise);
        assert_eq!(row(100.0, 106.0, Some(5.0)).difference(), Difference::Better);
        assert_eq!(row(100.0, 94.0, Some(5.0)).difference(), Difference::Worse);
        assert_eq!(row(100.0, 100.5, None).difference(), Difference::Noise, "below a percent is nothing");
        assert_eq!(Row { more_is_better: None, ..row(1.0, 2.0, None) }.difference(), Difference::Different);
    }
}
