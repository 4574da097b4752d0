//! What the database says about itself.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::error::Refused;

/// From a commit into a fast disk's cache to one that a client gives up on.
const COMMIT_SECONDS: [f64; 11] = [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) commits: IntCounter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) changes: IntCounter,
    pub(crate) pending_bytes: IntGauge,
    pub(crate) file_bytes: IntGauge,
    pub(crate) failed: IntGauge,
    /// Submissions refused, in the order of [`Refused::ALL`].
    refused: Vec<IntCounter>,
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let refused = register(
            registry,
            IntCounterVec::new(
                Opts::new("tidegate_state_refused_submissions_total", "Submissions not accepted, by reason"),
                &["reason"],
            )?,
        )?;
        let seconds =
            HistogramOpts::new("tidegate_state_commit_duration_seconds", "Time to write and sync one transaction")
                .buckets(COMMIT_SECONDS.to_vec());
        Ok(Metrics {
            commits: counter("tidegate_state_commits_total", "Transactions, each with one sync")?,
            commit_seconds: register(registry, Histogram::with_opts(seconds)?)?,
            changes: counter("tidegate_state_changes_total", "Keys written or removed")?,
            pending_bytes: gauge("tidegate_state_pending_bytes", "Bytes of changes accepted and not yet durable")?,
            file_bytes: gauge("tidegate_state_file_bytes", "Size of the database file")?,
            failed: gauge("tidegate_state_failed", "1 once a write has failed: nothing is stored until a restart")?,
            refused: Refused::ALL.iter().map(|r| refused.with_label_values(&[r.name()])).collect(),
        })
    }

    pub(crate) fn refused(&self, reason: Refused) -> &IntCounter {
        &self.refused[reason as usize - 1]
    }
}
