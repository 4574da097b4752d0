//! What had to come of a scenario, beside what did.

use serde::{Deserialize, Serialize};

use crate::report::Report;
use crate::run::micros;
use crate::scenario::Slo;

/// One objective of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Objective {
    /// What it is about, with the population if it is about one.
    pub name: String,
    /// What was wanted.
    pub wanted: String,
    /// What was found.
    pub found: String,
    /// Whether that is enough.
    pub met: bool,
}

/// Compares a report, its audit included, with what was wanted. What was wanted and could not be measured is not met.
#[must_use]
pub fn judge(slo: &Slo, report: &Report) -> Vec<Objective> {
    let mut objectives = Vec::new();
    for (quantile, limit) in [("p99", slo.p99), ("p99.9", slo.p99_9)] {
        let Some(limit) = limit else { continue };
        for population in report.populations.iter().filter(|population| population.latency.count > 0) {
            let found = if quantile == "p99" { population.latency.p99 } else { population.latency.p99_9 };
            objectives.push(Objective {
                name: format!("{quantile} of {}", population.name),
                wanted: format!("at most {}", micros(limit.as_micros() as u64)),
                found: micros(found),
                met: found <= limit.as_micros() as u64,
            });
        }
    }
    let mut at_most = |name: &str, limit: Option<f64>, found: Option<f64>, why: &str, shown: &dyn Fn(f64) -> String| {
        if let Some(limit) = limit {
            objectives.push(Objective {
                name: name.to_owned(),
                wanted: format!("at most {}", shown(limit)),
                found: found.map_or_else(|| why.to_owned(), shown),
                met: found.is_some_and(|found| found <= limit),
            });
        }
    };
    let percent = |ratio: f64| format!("{:.4} %", ratio * 100.0);
    let c = &report.counts;
    let errors = (c.messages > 0).then(|| c.failed() as f64 / c.messages as f64);
    at_most("error ratio", slo.error_ratio, errors, "nothing was sent", &percent);
    let delivered: Vec<_> = report.populations.iter().filter_map(|population| population.delivered.as_ref()).collect();
    let expected: u64 = delivered.iter().map(|delivered| delivered.expected).sum();
    let missing: u64 = delivered.iter().map(|delivered| delivered.acked_and_missing).sum();
    let loss = (expected > 0).then(|| missing as f64 / expected as f64);
    at_most("loss ratio", slo.loss_ratio, loss, "nothing was to be received", &percent);
    let devices = f64::from(report.load.devices);
    let each = report
        .server
        .as_ref()
        .zip(report.server_idle_rss)
        .map(|(server, idle)| (server.rss_peak as f64 - idle as f64).max(0.0) / devices);
    let bytes = |bytes: f64| format!("{bytes:.0} B");
    at_most("memory a session", slo.bytes_per_session, each, "not measured, give --server-pid", &bytes);
    let ratio = report.ceilings.as_ref().and_then(|ceilings| ceilings.cpu_ratio(report));
    let times = |ratio: f64| format!("{ratio:.2} × a bare echo's");
    at_most("server CPU a message", slo.ceiling_ratio, ratio, "not measured, give --server-pid", &times);
    let again = Some(c.handshakes_again as f64);
    at_most("handshakes of devices that had an association", slo.handshakes_again.map(|n| n as f64), again, "", &|n| {
        format!("{n:.0}")
    });
    if let Some(least) = slo.reported_ratio {
        let found = f64::from(report.reported_devices) / f64::from(report.senders().max(1));
        objectives.push(Objective {
            name: "devices that had a message acknowledged".to_owned(),
            wanted: format!("at least {}", percent(least)),
            found: percent(found),
            met: found >= least,
        });
    }
    objectives
}
