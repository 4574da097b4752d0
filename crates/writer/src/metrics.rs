//! What the log says about itself.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::error::Refused;

/// From a commit on a fast disk's cache to one that a device would retransmit during (RFC 7252 §4.8: ACK_TIMEOUT is 2 s).
const COMMIT_SECONDS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) commits: IntCounter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) committed_bytes: IntCounter,
    pub(crate) committed_records: IntCounter,
    pub(crate) pending_bytes: IntGauge,
    pub(crate) durable_seq: IntGauge,
    pub(crate) next_seq: IntGauge,
    pub(crate) epoch: IntGauge,
    pub(crate) segments: IntGauge,
    pub(crate) log_bytes: IntGauge,
    pub(crate) disk_free_bytes: IntGauge,
    pub(crate) segments_removed: IntCounter,
    pub(crate) segments_recycled: IntCounter,
    pub(crate) failed: IntGauge,
    /// Records refused, in the order of [`Refused::ALL`].
    refused: Vec<IntCounter>,
    pub(crate) recovery_cut_bytes: IntCounter,
    pub(crate) recovery_records: IntCounter,
    pub(crate) recovery_missing_records: IntCounter,
    pub(crate) quarantined_files: IntCounter,
    pub(crate) sink_position: IntGaugeVec,
    pub(crate) sink_backlog: IntGaugeVec,
    pub(crate) sink_delivered: IntCounterVec,
    pub(crate) sink_errors: IntCounterVec,
    pub(crate) sink_missed: IntCounterVec,
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let counters = |name: &str, help: &str, label: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &[label])?)
        };
        let gauges = |name: &str, help: &str, label: &str| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), &[label])?)
        };
        let refused =
            counters("tidegate_log_refused_records_total", "Records that the log did not accept, by reason", "reason")?;
        let seconds = HistogramOpts::new("tidegate_log_commit_duration_seconds", "Time to write and sync one commit")
            .buckets(COMMIT_SECONDS.to_vec());
        Ok(Metrics {
            commits: counter("tidegate_log_commits_total", "Commits, each one write and one sync")?,
            commit_seconds: register(registry, Histogram::with_opts(seconds)?)?,
            committed_bytes: counter("tidegate_log_committed_bytes_total", "Bytes made durable")?,
            committed_records: counter("tidegate_log_committed_records_total", "Records made durable")?,
            pending_bytes: gauge("tidegate_log_pending_bytes", "Bytes accepted and not yet durable")?,
            durable_seq: gauge("tidegate_log_durable_seq", "Sequence number of the last durable record")?,
            next_seq: gauge("tidegate_log_next_seq", "Sequence number that the next accepted record gets")?,
            epoch: gauge("tidegate_log_epoch_number", "The epoch of this start")?,
            segments: gauge("tidegate_log_segments", "Segments that hold records, the one being written included")?,
            log_bytes: gauge("tidegate_log_bytes", "Bytes of all files of the log, allocated ones included")?,
            disk_free_bytes: gauge("tidegate_log_disk_free_bytes", "Free bytes of the log's file system")?,
            segments_removed: counter(
                "tidegate_log_segments_removed_total",
                "Segments removed, every sink having passed them",
            )?,
            segments_recycled: counter("tidegate_log_segments_recycled_total", "Segments whose file is used again")?,
            failed: gauge("tidegate_log_failed", "1 once a write has failed: nothing is stored until a restart")?,
            refused: Refused::ALL.iter().map(|r| refused.with_label_values(&[r.name()])).collect(),
            recovery_cut_bytes: counter(
                "tidegate_log_recovery_cut_bytes_total",
                "Bytes of an unfinished commit cut at start",
            )?,
            recovery_records: counter("tidegate_log_recovery_records_total", "Records checked at start")?,
            recovery_missing_records: counter(
                "tidegate_log_recovery_missing_records_total",
                "Records missing from the log at start",
            )?,
            quarantined_files: counter("tidegate_log_quarantined_files_total", "Damaged files set aside at start")?,
            sink_position: gauges(
                "tidegate_sink_position_seq",
                "Last sequence number that a sink has delivered",
                "sink",
            )?,
            sink_backlog: gauges(
                "tidegate_sink_backlog_records",
                "Durable records that a sink has not delivered",
                "sink",
            )?,
            sink_delivered: counters(
                "tidegate_sink_delivered_records_total",
                "Records that a sink has delivered",
                "sink",
            )?,
            sink_errors: counters("tidegate_sink_errors_total", "Failed deliveries, each tried again", "sink")?,
            sink_missed: counters(
                "tidegate_sink_missed_records_total",
                "Records that were missing or unreadable in the log when a sink came to them",
                "sink",
            )?,
        })
    }

    pub(crate) fn refused(&self, reason: Refused) -> &IntCounter {
        &self.refused[reason as usize - 1]
    }
}
