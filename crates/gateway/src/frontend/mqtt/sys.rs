//! `$SYS/broker/…`: what the broker tells of itself to whoever subscribes.
//!
//! The names are those of mosquitto (`mosquitto(8)`, "Broker status"), which dashboards and monitors know; whatever is not counted here is left
//! out rather than made up. The messages are retained in memory, neither recorded nor kept over a restart, and published by the first worker
//! every `mqtt.sys_interval`. `#` does not match them ([MQTT-4.7.2-1]), and clients cannot publish to `$SYS/`.

use std::fmt::Write;

use tidegate_mqtt::{Message, QoS};

use super::Now;
use super::reactor::Reactor;
use crate::frontend::Shared;

/// What no client may publish to.
pub(super) const PREFIX: &str = "$SYS/";

/// When the next round is due.
#[derive(Debug, Default)]
pub(super) struct Sys {
    next: u64,
    /// The most connections at a time that were seen.
    most_connected: i64,
}

impl Reactor {
    /// Publishes a round of messages if it is time.
    pub(super) fn publish_sys(&mut self, now: Now) {
        let interval = u64::try_from(self.shared.config.mqtt.sys_interval.as_millis()).unwrap_or(u64::MAX);
        let millis = now.steady_millis();
        if self.index != 0 || interval == 0 || millis < self.sys.next {
            return;
        }
        self.sys.next = millis + interval;
        self.sys.most_connected = self.sys.most_connected.max(self.shared.metrics.mqtt_connections.get());
        let mut text = String::new();
        for (name, value) in values(&self.shared, self.sys.most_connected, now) {
            text.clear();
            text.push_str(PREFIX);
            text.push_str("broker/");
            text.push_str(name);
            let message = || Message::new(&text, value.as_bytes(), QoS::AtMostOnce, true);
            if let Some(published) = self.shared.router.prepare(&text, true, None, &mut self.matches, message) {
                // Nobody waits for it.
                let _ = self.route(published, now);
            }
        }
    }
}

/// Name below `$SYS/broker/` and value of each message.
fn values(shared: &Shared, most_connected: i64, now: Now) -> Vec<(&'static str, String)> {
    let metrics = &shared.metrics;
    let connected = metrics.mqtt_connections.get();
    let away = metrics.mqtt_away.get();
    let (retained, retained_bytes) = shared.router.retained();
    let received = metrics.mqtt.ingested.get() + metrics.mqtt.unrecorded.get();
    let mut uptime = String::new();
    // As mosquitto writes it. Writing to a string does not fail.
    let _ = write!(uptime, "{} seconds", now.uptime().as_secs());
    vec![
        ("version", concat!("tidegate version ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("uptime", uptime),
        ("clients/connected", connected.to_string()),
        ("clients/disconnected", away.to_string()),
        ("clients/total", (connected + away).to_string()),
        ("clients/maximum", most_connected.to_string()),
        ("clients/expired", metrics.mqtt_expired.get().to_string()),
        ("publish/messages/received", received.to_string()),
        ("publish/messages/sent", metrics.mqtt_delivered.get().to_string()),
        ("publish/messages/dropped", metrics.undelivered().to_string()),
        ("publish/bytes/received", metrics.mqtt.payload_bytes.get().to_string()),
        ("bytes/received", metrics.mqtt_bytes_received.get().to_string()),
        ("bytes/sent", metrics.mqtt_bytes_sent.get().to_string()),
        ("subscriptions/count", shared.router.subscriptions().to_string()),
        ("retained messages/count", retained.to_string()),
        ("store/messages/count", retained.to_string()),
        ("store/messages/bytes", retained_bytes.to_string()),
    ]
}
