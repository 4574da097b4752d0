//! The live view of a run: one line a second, or on a terminal and for several populations a table that is redrawn in place.

use std::io::{IsTerminal, Write};

use crate::clock::SECOND;
use crate::run::{Control, Phase, PopulationSecond, Second, micros};

/// Width of the progress bar.
const BAR: usize = 30;

/// What is on the screen.
#[derive(Debug)]
pub(crate) struct Live {
    terminal: bool,
    /// Lines of the table that was drawn last.
    drawn: usize,
    /// Acknowledged and failed messages of each population a second ago.
    last: Vec<(u64, u64)>,
}

impl Live {
    pub(crate) fn new() -> Live {
        Live { terminal: std::io::stderr().is_terminal(), drawn: 0, last: Vec::new() }
    }

    pub(crate) fn show(&mut self, control: &Control, second: &Second, now: u64, watched: bool) {
        let mut text = String::new();
        let table = self.terminal && control.groups.len() > 1;
        if table && self.drawn > 0 {
            // Up to the first line of the table, and nothing below it.
            text.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        let mut lines = Vec::new();
        if table {
            lines.push(progress(control, now));
        }
        lines.push(line(control, second, now, watched));
        if control.groups.len() > 1 {
            let populations = self.populations(control, second);
            if table || (second.at as u64).is_multiple_of(10) {
                lines.extend(populations);
            }
        }
        for line in &lines {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn = lines.len();
        // Standard error may be closed; the run goes on.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    /// A line for each population; the worst one is marked.
    fn populations(&mut self, control: &Control, second: &Second) -> Vec<String> {
        let names: Vec<&str> = control.groups.iter().map(|(name, _)| &**name).collect();
        self.last.resize(second.populations.len(), (0, 0));
        let last = std::mem::replace(
            &mut self.last,
            second.populations.iter().map(|population| (population.acked, population.failed)).collect(),
        );
        table(&names, &second.populations, &last)
    }
}

/// The lines of the populations, given the acknowledged and failed messages of each when they were drawn last.
fn table(names: &[&str], populations: &[PopulationSecond], last: &[(u64, u64)]) -> Vec<String> {
    // Whoever fails most is the worst, and among those that fail nothing the slowest.
    let failing = |at: usize| populations[at].failed.saturating_sub(last[at].1);
    let worst = (0..populations.len()).max_by_key(|&at| (failing(at), populations[at].p99_micros));
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    for (at, (name, population)) in names.iter().zip(populations).enumerate() {
        let mark = match (worst == Some(at), failing(at), population.p99_micros) {
            (true, 1.., _) => "  ◂ most failures",
            (true, 0, 1..) => "  ◂ slowest",
            _ => "",
        };
        lines.push(format!(
            "        {name:<width$}  {:>10} acked (+{})  {:>8} failed (+{})  p99 {}{mark}",
            population.acked,
            population.acked.saturating_sub(last[at].0),
            population.failed,
            failing(at),
            micros(population.p99_micros)
        ));
    }
    lines
}

fn progress(control: &Control, now: u64) -> String {
    let measured = control.plan.measured();
    let (from, to) = (measured.start as f64, measured.end as f64);
    let share = (now as f64 / to).clamp(0.0, 1.0);
    let full = (share * BAR as f64).round() as usize;
    let left = (to - now as f64).max(0.0) / SECOND as f64;
    let part = if (now as f64) < from { "warm-up" } else { "measuring" };
    format!("  [{}{}] {:>3.0} %  {part}, {left:.0} s left", "█".repeat(full), "·".repeat(BAR - full), share * 100.0)
}

fn line(control: &Control, second: &Second, now: u64, watched: bool) -> String {
    let measured = control.plan.measured();
    let part = if now <= measured.start {
        " warm-up"
    } else if control.all_reached(Phase::Draining) {
        " drain"
    } else {
        ""
    };
    let server = match (second.server_cores, second.server_rss) {
        (Some(cores), Some(rss)) => format!("  server {cores:.2} cores {:.1} MB", rss as f64 / 1e6),
        _ if watched => "  server is gone".to_owned(),
        _ => String::new(),
    };
    format!(
        "{:>5.0} s  {:>8.0} sent/s  {:>8.0} acked/s  {:>6} failed  {:>7} in flight  p50 {}  p99 {}{server}{part}",
        second.at,
        second.messages_per_second,
        second.acks_per_second,
        second.failed,
        second.in_flight,
        micros(second.p50_micros),
        micros(second.p99_micros),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_population_is_the_one_that_fails_most_or_else_the_slowest() {
        let second = |acked, failed, p99_micros| PopulationSecond { acked, failed, p99_micros };
        let populations = [second(100, 5, 900), second(50, 0, 40_000), second(0, 0, 0)];
        let lines = table(&["meters", "gateways", "listeners"], &populations, &[(90, 5), (50, 0), (0, 0)]);
        assert!(lines[0].contains("meters     ") && lines[0].contains("100 acked (+10)"), "{}", lines[0]);
        assert!(lines[1].ends_with("p99 40.0 ms  ◂ slowest") && !lines[0].contains('◂') && !lines[2].contains('◂'));
        let lines = table(&["meters", "gateways", "listeners"], &populations, &[(90, 3), (50, 0), (0, 0)]);
        assert!(lines[0].ends_with("◂ most failures") && lines[0].contains("5 failed (+2)"), "{}", lines[0]);
        let idle = table(&["a"], &[second(0, 0, 0)], &[(0, 0)]);
        assert!(!idle[0].contains('◂'), "{}", idle[0]);
    }
}
