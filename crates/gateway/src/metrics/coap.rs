//! What CoAP counts beyond readings: observations, uploads, downloads.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::{counter, counters, gauge};

/// See the [module documentation](self).
pub(crate) struct CoapFull {
    /// Relations held (RFC 7641).
    pub(crate) observations: IntGauge,
    /// Registrations answered as a plain GET, because there are as many as may be.
    pub(crate) observations_refused: IntCounter,
    /// Relations that the observer ended by a reset.
    pub(crate) observations_reset: IntCounter,
    pub(crate) notifications_con: IntCounter,
    pub(crate) notifications_non: IntCounter,
    /// Confirmable notifications that nobody acknowledged.
    pub(crate) notifications_given_up: IntCounter,
    /// Confirmable messages sent again.
    pub(crate) retransmissions: IntCounter,
    /// GETs of a topic by where its value was.
    pub(crate) found_observed: IntCounter,
    pub(crate) found_retained: IntCounter,
    pub(crate) found_stored: IntCounter,
    pub(crate) not_found: IntCounter,
    /// Blocks and bytes of files that were downloaded.
    pub(crate) file_blocks: IntCounter,
    pub(crate) file_bytes: IntCounter,
    /// Uploads that ended, by result.
    uploads: IntCounterVec,
    uploads_under_way: IntGauge,
    upload_bytes: IntGauge,
}

impl CoapFull {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<CoapFull> {
        let notifications =
            counters(registry, "tidegate_coap_notifications_total", "Notifications sent, by type", &["type"])?;
        let found =
            counters(registry, "tidegate_coap_gets_total", "GETs of a topic, by where its value was", &["source"])?;
        Ok(CoapFull {
            observations: gauge(registry, "tidegate_coap_observations", "Observations held")?,
            observations_refused: counter(
                registry,
                "tidegate_coap_observations_refused_total",
                "Registrations answered as a plain GET",
            )?,
            observations_reset: counter(
                registry,
                "tidegate_coap_observations_reset_total",
                "Observations that a reset ended",
            )?,
            notifications_con: notifications.with_label_values(&["con"]),
            notifications_non: notifications.with_label_values(&["non"]),
            notifications_given_up: counter(
                registry,
                "tidegate_coap_notifications_given_up_total",
                "Confirmable notifications that nobody acknowledged",
            )?,
            retransmissions: counter(
                registry,
                "tidegate_coap_retransmissions_total",
                "Confirmable messages sent again",
            )?,
            found_observed: found.with_label_values(&["observed"]),
            found_retained: found.with_label_values(&["retained"]),
            found_stored: found.with_label_values(&["stored"]),
            not_found: found.with_label_values(&["none"]),
            file_blocks: counter(registry, "tidegate_coap_file_blocks_total", "Blocks of files downloaded")?,
            file_bytes: counter(registry, "tidegate_coap_file_bytes_total", "Bytes of files downloaded")?,
            uploads: counters(
                registry,
                "tidegate_coap_uploads_total",
                "Block-wise uploads that ended or were refused, by result",
                &["result"],
            )?,
            uploads_under_way: gauge(registry, "tidegate_coap_uploads_under_way", "Unfinished block-wise uploads")?,
            upload_bytes: gauge(registry, "tidegate_coap_upload_bytes", "Bytes that unfinished uploads hold")?,
        })
    }

    /// An upload ended, or a block of it was refused.
    pub(crate) fn upload(&self, result: &str) {
        self.uploads.with_label_values(&[result]).inc();
    }

    /// A sweep of the uploads gave some up and found others.
    pub(crate) fn swept_uploads(&self, expired: usize, under_way: usize, bytes: usize) {
        self.uploads.with_label_values(&["expired"]).inc_by(expired as u64);
        self.uploads_under_way.set(under_way as i64);
        self.upload_bytes.set(bytes as i64);
    }
}
