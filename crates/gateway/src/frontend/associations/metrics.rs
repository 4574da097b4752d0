//! What is counted of DTLS. Every label value is one of a list of the code.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use tidegate_dtls::{Alert, CloseReason, DropReason, HandshakeFailure, ImportError, Moved, SealError};

/// See the [module documentation](self).
#[derive(Clone)]
pub(crate) struct AssociationMetrics {
    handshakes: IntCounterVec,
    dropped: Box<[(DropReason, IntCounter)]>,
    closed: IntCounterVec,
    address_changes: IntCounterVec,
    unsent: IntCounterVec,
    not_restored: IntCounterVec,
    /// Associations at this moment.
    pub(crate) associations: IntGauge,
    /// Handshakes under way.
    pub(crate) pending: IntGauge,
    /// Bytes that they take.
    pub(crate) pending_bytes: IntGauge,
    pub(crate) datagrams_received: IntCounter,
    pub(crate) datagrams_sent: IntCounter,
    pub(crate) datagrams_failed: IntCounter,
    /// Associations that could not be stored at once and are tried again.
    pub(crate) store_refused: IntCounter,
}

impl AssociationMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<AssociationMetrics> {
        let by = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            prometheus::Result::Ok(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let dropped = by(
            "tidegate_coaps_dropped_total",
            "DTLS records of which nothing came, by reason; a ClientHello without a cookie is cookie_requested",
            "reason",
        )?;
        Ok(AssociationMetrics {
            handshakes: by("tidegate_coaps_handshakes_total", "DTLS handshakes that ended, by result", "result")?,
            dropped: DropReason::ALL.map(|reason| (reason, dropped.with_label_values(&[reason.name()]))).into(),
            closed: by("tidegate_coaps_closed_total", "DTLS associations that ended, by reason", "reason")?,
            address_changes: by(
                "tidegate_coaps_address_changes_total",
                "Records from another address than the one before, by what came of it",
                "result",
            )?,
            unsent: by(
                "tidegate_coaps_unsent_total",
                "CoAP messages that could not be protected, by reason",
                "reason",
            )?,
            not_restored: by(
                "tidegate_coaps_not_restored_total",
                "Stored DTLS associations that a start could not take up, by reason",
                "reason",
            )?,
            associations: gauge("tidegate_coaps_associations", "DTLS associations")?,
            pending: gauge("tidegate_coaps_handshakes", "DTLS handshakes under way")?,
            pending_bytes: gauge("tidegate_coaps_handshake_bytes", "Bytes that the handshakes under way take")?,
            datagrams_received: counter("tidegate_coaps_datagrams_received_total", "Datagrams received")?,
            datagrams_sent: counter("tidegate_coaps_datagrams_sent_total", "Datagrams sent")?,
            datagrams_failed: counter(
                "tidegate_coaps_datagrams_failed_total",
                "Datagrams that the kernel would not send",
            )?,
            store_refused: counter(
                "tidegate_coaps_store_refused_total",
                "Associations that the database did not take at once; they are tried again, and their handshakes wait",
            )?,
        })
    }

    pub(super) fn established(&self, resumed: bool) {
        self.handshakes.with_label_values(&[if resumed { "resumed" } else { "full" }]).inc();
    }

    pub(super) fn failed(&self, failure: HandshakeFailure) {
        let result = match failure {
            HandshakeFailure::Sent(Alert::BAD_RECORD_MAC | Alert::DECRYPT_ERROR) => "wrong_key",
            HandshakeFailure::Sent(_) => "refused",
            HandshakeFailure::Received(_) => "peer_gave_up",
            HandshakeFailure::TimedOut => "timed_out",
            HandshakeFailure::Evicted => "evicted",
            HandshakeFailure::Superseded => "superseded",
        };
        self.handshakes.with_label_values(&[result]).inc();
    }

    pub(crate) fn dropped(&self, reason: DropReason) {
        if let Some((_, counter)) = self.dropped.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }

    pub(super) fn closed(&self, reason: CloseReason) {
        let reason = match reason {
            CloseReason::CloseNotify => "close_notify",
            CloseReason::Alert(_) => "alert",
            CloseReason::Local => "replaced_or_revoked",
            CloseReason::Idle => "idle",
            CloseReason::Lifetime => "lifetime",
            CloseReason::Evicted => "evicted",
            CloseReason::Superseded => "superseded",
        };
        self.closed.with_label_values(&[reason]).inc();
    }

    pub(super) fn moved(&self, moved: Moved) {
        let result = match moved {
            Moved::No => return,
            Moved::Yes { .. } => "followed",
            Moved::Doubted => "doubted",
            Moved::Late => "late",
            Moved::Refused => "refused",
        };
        self.address_changes.with_label_values(&[result]).inc();
    }

    pub(super) fn unsent(&self, error: SealError) {
        let reason = match error {
            SealError::Unknown => "association_gone",
            SealError::TooLong { .. } => "too_long",
            SealError::Unreserved => "unreserved",
            SealError::Unvalidated => "unvalidated",
            SealError::Exhausted => "exhausted",
        };
        self.unsent.with_label_values(&[reason]).inc();
    }

    pub(super) fn not_restored(&self, reason: &str) {
        self.not_restored.with_label_values(&[reason]).inc();
    }

    /// The reason by which a failed import is counted.
    pub(super) fn import_failure(error: ImportError) -> &'static str {
        match error {
            ImportError::Malformed | ImportError::Shard => "malformed",
            ImportError::Full => "limits_lowered",
            ImportError::Occupied => "occupied",
            ImportError::Incarnation { .. } => "other_database",
            ImportError::Exhausted => "exhausted",
        }
    }
}
