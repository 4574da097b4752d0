//! What the MQTT listeners count, by transport.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{counters, gauge};
use crate::frontend::Kind;

/// See the [module documentation](self).
pub(crate) struct Transports {
    /// Accepted sockets, by transport.
    accepted: [IntCounter; Kind::ALL.len()],
    /// Open connections, by transport.
    connections: [IntGauge; Kind::ALL.len()],
    /// Handshakes by transport and how they ended.
    handshakes: IntCounterVec,
    /// Handshakes under way.
    pub(crate) under_way: IntGauge,
    /// Connections that wait to be accepted, as last looked at.
    pub(crate) waiting: IntGaugeVec,
    /// Reloads of the certificate by result.
    pub(crate) reloads: IntCounterVec,
    /// When the certificate ends.
    pub(crate) not_after: IntGauge,
}

impl Transports {
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Transports> {
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(gauges.clone()))?;
            prometheus::Result::Ok(gauges)
        };
        let accepted = counters(
            registry,
            "tidegate_mqtt_transport_accepted_total",
            "TCP connections accepted, by transport",
            &["transport"],
        )?;
        let connections =
            gauges("tidegate_mqtt_transport_connections", "Open MQTT connections, by transport", &["transport"])?;
        Ok(Transports {
            accepted: Kind::ALL.map(|kind| accepted.with_label_values(&[kind.name()])),
            connections: Kind::ALL.map(|kind| connections.with_label_values(&[kind.name()])),
            handshakes: counters(
                registry,
                "tidegate_mqtt_handshakes_total",
                "TLS, WebSocket and PROXY protocol handshakes, by how they ended",
                &["transport", "result"],
            )?,
            under_way: gauge(
                registry,
                "tidegate_mqtt_handshakes_under_way",
                "TLS, WebSocket and PROXY protocol handshakes that are not done",
            )?,
            waiting: gauges(
                "tidegate_mqtt_waiting_connections",
                "Connections that wait in the listen queues because of mqtt.connect_rate, as last looked at",
                &["worker"],
            )?,
            reloads: counters(
                registry,
                "tidegate_tls_reloads_total",
                "Certificates read again, by result",
                &["result"],
            )?,
            not_after: gauge(
                registry,
                "tidegate_tls_certificate_not_after_seconds",
                "When the server's certificate ends, in seconds since 1970",
            )?,
        })
    }

    pub(crate) fn accepted(&self, kind: Kind) -> &IntCounter {
        &self.accepted[kind as usize]
    }

    pub(crate) fn connections(&self, kind: Kind) -> &IntGauge {
        &self.connections[kind as usize]
    }

    pub(crate) fn handshake(&self, kind: Kind, result: &str) {
        self.handshakes.with_label_values(&[kind.name(), result]).inc();
    }
}
