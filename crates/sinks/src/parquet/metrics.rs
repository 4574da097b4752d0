//! What the sink counts.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::disk::DeliverError;

/// Upper bounds of the delivery times in seconds: a small roll takes milliseconds, a full one with a busy disk seconds.
const DELIVER_BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

/// The metrics of one [`ParquetSink`](super::ParquetSink).
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) files: IntCounter,
    pub(super) rows: IntCounter,
    pub(super) bytes: IntCounter,
    pub(super) set_aside: IntCounter,
    pub(super) held_bytes: IntGauge,
    pub(super) deliver_seconds: Histogram,
    errors: Vec<(&'static str, IntCounter)>,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let files = counter("tidegate_parquet_files_total", "Parquet files made visible.")?;
        let rows = counter("tidegate_parquet_rows_total", "Records in the Parquet files made visible.")?;
        let bytes = counter("tidegate_parquet_written_bytes_total", "Bytes of the Parquet files made visible.")?;
        let set_aside = counter(
            "tidegate_parquet_set_aside_records_total",
            "Records that no Parquet file can hold, kept in the directory `set-aside`.",
        )?;
        let held_bytes =
            IntGauge::new("tidegate_parquet_held_bytes", "Bytes of records taken from the log and not yet in a file.")?;
        registry.register(Box::new(held_bytes.clone()))?;
        let deliver_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "tidegate_parquet_deliver_seconds",
                "Time to sort, write and sync the files of one roll.",
            )
            .buckets(DELIVER_BUCKETS.to_vec()),
        )?;
        registry.register(Box::new(deliver_seconds.clone()))?;
        let by_reason = IntCounterVec::new(
            Opts::new("tidegate_parquet_errors_total", "Deliveries that failed and are tried again, by reason."),
            &["reason"],
        )?;
        registry.register(Box::new(by_reason.clone()))?;
        let errors =
            DeliverError::REASONS.into_iter().map(|reason| (reason, by_reason.with_label_values(&[reason]))).collect();
        Ok(Metrics { files, rows, bytes, set_aside, held_bytes, deliver_seconds, errors })
    }

    pub(super) fn failed(&self, error: &DeliverError) {
        for (reason, counter) in &self.errors {
            if *reason == error.reason() {
                counter.inc();
            }
        }
    }
}
