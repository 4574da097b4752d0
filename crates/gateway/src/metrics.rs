//! What the front ends count. Registered on a registry that is passed in; every label value is known beforehand or is one
//! of the reason names that the protocol crates list.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

mod coap;
mod transports;

pub(crate) use transports::Transports;

/// Time from receiving a request to sending its answer: a commit takes a fraction of a millisecond on flash, and anything
/// past a second is a disk in trouble.
const ACK_BUCKETS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Metrics of one front end, whose `protocol` label is fixed.
#[derive(Clone)]
pub(crate) struct Frontend {
    /// Messages whose readings were handed to the log.
    pub(crate) ingested: IntCounter,
    /// Messages published without being recorded (`ingest.filters`).
    pub(crate) unrecorded: IntCounter,
    /// Positive answers sent.
    pub(crate) acks: IntCounter,
    /// Retransmissions answered from the session.
    pub(crate) duplicates: IntCounter,
    /// From receiving a request to sending its positive answer.
    pub(crate) ack_seconds: Histogram,
    /// Payload bytes handed to the log.
    pub(crate) payload_bytes: IntCounter,
    /// Messages dropped under load, by reason.
    shed: IntCounterVec,
    /// Requests refused with an answer, by reason.
    refused: IntCounterVec,
    /// Input that broke the protocol, by reason.
    malformed: IntCounterVec,
    protocol: &'static str,
}

impl Frontend {
    pub(crate) fn shed(&self, reason: &str) {
        self.shed.with_label_values(&[self.protocol, reason]).inc();
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[self.protocol, reason]).inc();
    }

    pub(crate) fn malformed(&self, reason: &str) {
        self.malformed.with_label_values(&[self.protocol, reason]).inc();
    }
}

/// All metrics of the gateway's own code.
pub(crate) struct Metrics {
    /// CoAP over UDP.
    pub(crate) coap: Frontend,
    /// CoAP over DTLS.
    pub(crate) coaps: Frontend,
    /// MQTT over TCP.
    pub(crate) mqtt: Frontend,
    /// Datagrams received.
    pub(crate) datagrams_received: IntCounter,
    /// Datagrams sent.
    pub(crate) datagrams_sent: IntCounter,
    /// Datagrams that the kernel would not send.
    pub(crate) datagrams_failed: IntCounter,
    /// Separate responses that were sent, and those that nobody acknowledged.
    pub(crate) coap_separate: IntCounter,
    pub(crate) coap_separate_given_up: IntCounter,
    /// Remembered CoAP messages that went before their time.
    pub(crate) coap_evicted: IntCounter,
    /// The MQTT listeners.
    pub(crate) transports: Transports,
    /// What CoAP counts beyond readings.
    pub(crate) coap_full: coap::CoapFull,
    /// Open MQTT connections.
    pub(crate) mqtt_connections: IntGauge,
    /// Accepted sockets.
    pub(crate) mqtt_accepted: IntCounter,
    /// CONNECTs by result.
    pub(crate) mqtt_connects: IntCounterVec,
    /// Closed connections by reason.
    pub(crate) mqtt_closed: IntCounterVec,
    /// PUBLISH packets sent to subscribers.
    pub(crate) mqtt_delivered: IntCounter,
    /// Deliveries dropped, by reason.
    pub(crate) mqtt_undelivered: IntCounterVec,
    /// Clients disconnected because they did not take their messages.
    pub(crate) mqtt_slow: IntCounter,
    /// How waiting for subscribers that were behind ended.
    pub(crate) mqtt_waits: IntCounterVec,
    /// Messages that were to be retained and were not.
    pub(crate) mqtt_unretained: IntCounter,
    /// Wills by what became of them.
    pub(crate) mqtt_wills: IntCounterVec,
    /// Sessions whose clients are away, and those that ended while they were.
    pub(crate) mqtt_away: IntGauge,
    pub(crate) mqtt_expired: IntCounter,
    /// Bytes from and to MQTT clients, as they pass the sockets.
    pub(crate) mqtt_bytes_received: IntCounter,
    pub(crate) mqtt_bytes_sent: IntCounter,
    /// Subscriptions held.
    pub(crate) mqtt_subscriptions: IntGauge,
    /// Connections that are not read until the front door opens again.
    pub(crate) mqtt_paused: IntGauge,
    /// Devices in the session table by protocol and state.
    pub(crate) sessions: IntGaugeVec,
    /// Devices dropped from the session table after silence.
    pub(crate) sessions_expired: IntCounter,
    /// Bytes of the session table's entries, spare ones included.
    pub(crate) session_table_bytes: IntGauge,
    /// Times that the rules were read again, by result.
    pub(crate) acl_reloads: IntCounterVec,
}

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Metrics> {
        let ingested =
            counters(registry, "tidegate_ingested_records_total", "Readings handed to the log", &["protocol"])?;
        let unrecorded = counters(
            registry,
            "tidegate_unrecorded_messages_total",
            "Messages published without being recorded, as ingest.filters says",
            &["protocol"],
        )?;
        let acks = counters(registry, "tidegate_acks_total", "Positive answers sent", &["protocol"])?;
        let duplicates = counters(
            registry,
            "tidegate_duplicates_total",
            "Retransmissions answered and not stored again",
            &["protocol"],
        )?;
        let payload_bytes = counters(
            registry,
            "tidegate_ingested_payload_bytes_total",
            "Payload bytes handed to the log",
            &["protocol"],
        )?;
        let shed = counters(
            registry,
            "tidegate_shed_total",
            "Messages dropped under load, by reason",
            &["protocol", "reason"],
        )?;
        let refused =
            counters(registry, "tidegate_refused_total", "Requests refused, by reason", &["protocol", "reason"])?;
        let malformed =
            counters(registry, "tidegate_malformed_total", "Input that broke the protocol", &["protocol", "reason"])?;
        let ack_seconds = HistogramVec::new(
            HistogramOpts::new("tidegate_ack_seconds", "From receiving a message to sending its positive answer")
                .buckets(ACK_BUCKETS.to_vec()),
            &["protocol"],
        )?;
        registry.register(Box::new(ack_seconds.clone()))?;
        let frontend = |protocol: &'static str| Frontend {
            ingested: ingested.with_label_values(&[protocol]),
            unrecorded: unrecorded.with_label_values(&[protocol]),
            acks: acks.with_label_values(&[protocol]),
            duplicates: duplicates.with_label_values(&[protocol]),
            ack_seconds: ack_seconds.with_label_values(&[protocol]),
            payload_bytes: payload_bytes.with_label_values(&[protocol]),
            shed: shed.clone(),
            refused: refused.clone(),
            malformed: malformed.clone(),
            protocol,
        };
        Ok(Metrics {
            coap: frontend("coap"),
            coaps: frontend("coaps"),
            mqtt: frontend("mqtt"),
            datagrams_received: counter(registry, "tidegate_coap_datagrams_received_total", "Datagrams received")?,
            datagrams_sent: counter(registry, "tidegate_coap_datagrams_sent_total", "Datagrams sent")?,
            datagrams_failed: counter(
                registry,
                "tidegate_coap_datagrams_failed_total",
                "Datagrams that the kernel would not send",
            )?,
            coap_separate: counter(
                registry,
                "tidegate_coap_separate_responses_total",
                "Responses sent apart from the acknowledgement because the commit was slow",
            )?,
            coap_separate_given_up: counter(
                registry,
                "tidegate_coap_separate_given_up_total",
                "Separate responses that nobody acknowledged",
            )?,
            coap_evicted: counter(
                registry,
                "tidegate_coap_evicted_messages_total",
                "Message IDs forgotten before their time because a device sent more than coap.dedup_entries",
            )?,
            transports: Transports::register(registry)?,
            coap_full: coap::CoapFull::register(registry)?,
            mqtt_connections: gauge(registry, "tidegate_mqtt_connections", "Open MQTT connections")?,
            mqtt_accepted: counter(registry, "tidegate_mqtt_accepted_total", "TCP connections accepted")?,
            mqtt_connects: counters(
                registry,
                "tidegate_mqtt_connects_total",
                "CONNECT packets by result",
                &["result"],
            )?,
            mqtt_closed: counters(
                registry,
                "tidegate_mqtt_closed_total",
                "Connections closed, by reason",
                &["reason"],
            )?,
            mqtt_delivered: counter(registry, "tidegate_mqtt_delivered_total", "PUBLISH packets sent to subscribers")?,
            mqtt_undelivered: counters(
                registry,
                "tidegate_mqtt_undelivered_total",
                "Messages that a subscriber did not get, by reason",
                &["reason"],
            )?,
            mqtt_slow: counter(
                registry,
                "tidegate_mqtt_slow_disconnects_total",
                "Clients disconnected because they took neither what was sent nor what was queued",
            )?,
            mqtt_waits: counters(
                registry,
                "tidegate_mqtt_waits_total",
                "Times that acknowledgements were held because a subscriber was behind, by how that ended",
                &["outcome"],
            )?,
            mqtt_unretained: counter(
                registry,
                "tidegate_mqtt_unretained_total",
                "Messages that were to be retained and were not, for want of room or because of a topic with too many levels",
            )?,
            mqtt_wills: counters(
                registry,
                "tidegate_mqtt_wills_total",
                "Wills that were due, and those dropped because the log did not take them",
                &["outcome"],
            )?,
            mqtt_away: gauge(registry, "tidegate_mqtt_away_sessions", "Sessions whose clients are not connected")?,
            mqtt_expired: counter(
                registry,
                "tidegate_mqtt_expired_sessions_total",
                "Sessions that ended while their clients were away",
            )?,
            mqtt_bytes_received: counter(
                registry,
                "tidegate_mqtt_received_bytes_total",
                "Bytes received from MQTT clients",
            )?,
            mqtt_bytes_sent: counter(registry, "tidegate_mqtt_sent_bytes_total", "Bytes sent to MQTT clients")?,
            mqtt_subscriptions: gauge(registry, "tidegate_mqtt_subscriptions", "Subscriptions held")?,
            mqtt_paused: gauge(
                registry,
                "tidegate_mqtt_paused_connections",
                "Connections that are not read until the log takes readings again",
            )?,
            sessions: {
                let sessions = IntGaugeVec::new(
                    Opts::new("tidegate_sessions", "Devices in the session table, by protocol and state"),
                    &["protocol", "state"],
                )?;
                registry.register(Box::new(sessions.clone()))?;
                sessions
            },
            acl_reloads: counters(
                registry,
                "tidegate_acl_reloads_total",
                "Times that the rules of auth.acl were read again, by result",
                &["result"],
            )?,
            sessions_expired: counter(registry, "tidegate_sessions_expired_total", "Devices dropped after silence")?,
            session_table_bytes: gauge(
                registry,
                "tidegate_session_table_bytes",
                "Bytes of the session table's entries, spare ones included",
            )?,
        })
    }
}

impl Metrics {
    /// Deliveries dropped, whatever the reason.
    pub(crate) fn undelivered(&self) -> u64 {
        use prometheus::core::Collector;

        let families = self.mqtt_undelivered.collect();
        let values = families
            .iter()
            .flat_map(prometheus::proto::MetricFamily::get_metric)
            .map(|metric| metric.get_counter().get_value());
        values.sum::<f64>() as u64
    }
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counters.clone()))?;
    Ok(counters)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    let gauge = IntGauge::new(name, help)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}
