//! Wills: published on behalf of clients that can no longer do it (MQTT 5.0 §3.1.2.5, §3.1.3.2.2).
//!
//! A will is recorded and routed as if its client had published it, but nobody is there to be told that it was not stored and to send it
//! again. So one of QoS 1 or 2 that the log does not take waits here until it does; and if its session is kept, a row of the database has it until it
//! is where it is for ([`super::kept`]).
//!
//! A gateway that stops publishes the wills of all connections that it ends, as of any that it closes (3.1.1 §3.1.2.5 lets a server defer them
//! to its next start, which only a session that is kept over a restart allows).

use std::collections::VecDeque;

use tidegate_mqtt::{Message, QoS, Will};
use tidegate_record::{DeviceId, Protocol, Record};
use tidegate_writer::Pressure;

use super::Now;
use super::access::Author;
use super::kept::{self, DueKey};
use super::publish::Ack;
use super::reactor::Reactor;
use super::sys;
use crate::frontend::router::Subscriber;

/// Wills of a worker that wait for the log, and the bytes of their messages. More devices than this that die while a disk is full have
/// the oldest wills dropped.
const MAX_WAITING: usize = 100_000;
const MAX_WAITING_BYTES: usize = 64 << 20;

/// A will that is due.
pub(super) struct Due {
    device: Option<DeviceId>,
    tenant: Box<str>,
    from: Option<Subscriber>,
    message: Message,
    /// The row that has it until it is published.
    row: Option<DueKey>,
}

impl Due {
    /// One that an earlier run has left in `row`.
    pub(super) fn restored(row: DueKey, device: &str, tenant: &str, message: Message) -> Due {
        Due { device: DeviceId::new(device).ok(), tenant: tenant.into(), from: None, message, row: Some(row) }
    }

    /// The row that is to go when it is published.
    pub(super) fn row(&self) -> Option<&DueKey> {
        self.row.as_ref()
    }
}

/// Those of a worker that wait for the log.
#[derive(Default)]
pub(super) struct Waiting {
    wills: VecDeque<Due>,
    /// Sum of their messages' sizes.
    bytes: usize,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.wills.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.wills.len()
    }

    /// How many the next start does not know of.
    pub(super) fn without_row(&self) -> usize {
        self.wills.iter().filter(|due| due.row().is_none()).count()
    }

    pub(super) fn push(&mut self, due: Due) {
        self.bytes += due.message.size();
        self.wills.push_back(due);
    }

    /// The oldest, if there are too many.
    fn pop_excess(&mut self) -> Option<Due> {
        let is_full = self.wills.len() > MAX_WAITING || self.bytes > MAX_WAITING_BYTES;
        if is_full { self.pop() } else { None }
    }

    fn pop(&mut self) -> Option<Due> {
        let due = self.wills.pop_front()?;
        self.bytes -= due.message.size();
        Some(due)
    }
}

impl Reactor {
    /// Publishes a will, or keeps it until the log takes it. It is of the session `kept`, if that is kept.
    pub(super) fn publish_will(&mut self, author: Author, from: Subscriber, will: Will, kept: Option<u64>, now: Now) {
        self.shared.metrics.mqtt_wills.with_label_values(&["due"]).inc();
        if will.topic().starts_with(sys::PREFIX) {
            return self.shared.metrics.mqtt.refused("sys_topic");
        }
        let message = will.publish(now.steady_millis());
        // By the rules of now: those of its CONNECT may be long gone.
        let Some((device, tenant)) = self.judge_author(author, message.topic()) else {
            return self.shared.metrics.mqtt.refused("acl_publish");
        };
        // A pass has one time for all that it does, and a session may end twice in one.
        let row = kept.filter(|_| message.qos() > QoS::AtMostOnce).map(|kept| kept::due_key(kept, Now::read().micros));
        if let Some(row) = &row {
            let device = device.as_ref().map_or("", DeviceId::as_str);
            kept::put_due(&mut self.commits.rows, row, device, &tenant, &message);
        }
        let due = Due { device, tenant, from: Some(from), message, row };
        self.publish_due(due, now);
    }

    /// Publishes the wills that waited, as long as the log takes them.
    pub(super) fn publish_waiting(&mut self, now: Now) {
        for _ in 0..self.waiting_wills.len() {
            if matches!(self.shared.appender.pressure(), Pressure::Refuse(_)) {
                return;
            }
            let Some(due) = self.waiting_wills.pop() else { return };
            self.publish_due(due, now);
        }
    }

    /// The log did not take it.
    pub(super) fn keep_will(&mut self, due: Due) {
        if due.message.qos() == QoS::AtMostOnce {
            self.shared.metrics.mqtt.shed("will");
            return;
        }
        self.waiting_wills.push(due);
        while let Some(dropped) = self.waiting_wills.pop_excess() {
            if let Some(row) = dropped.row() {
                kept::remove_due(&mut self.commits.rows, row);
            }
            self.shared.metrics.mqtt_wills.with_label_values(&["dropped"]).inc();
        }
    }

    fn publish_due(&mut self, due: Due, now: Now) {
        let message = &due.message;
        let recorded = self.shared.config.ingest.filters.records(message.topic());
        if recorded {
            if matches!(self.shared.appender.pressure(), Pressure::Refuse(_)) {
                return self.keep_will(due);
            }
            let record = Record {
                received: now.micros,
                protocol: Protocol::Mqtt,
                qos: message.qos() as u8,
                retain: message.retain(),
                content_format: None,
                device: due.device.as_ref().map_or("", DeviceId::as_str),
                tenant: &due.tenant,
                content_type: message.content_type(),
                topic: message.topic(),
                key: None,
                payload: message.payload(),
            };
            if let Err(error) = self.batch.push(&record) {
                debug_assert!(false, "{error}");
                return;
            }
        }
        let published =
            self.shared
                .router
                .prepare(message.topic(), message.retain(), due.from, &mut self.matches, || message.clone());
        if message.qos() == QoS::AtMostOnce {
            if let Some(published) = published {
                // Nobody waits for it.
                let _ = self.route(published, now);
            }
        } else if recorded || published.is_some() {
            // Nobody is acknowledged; it only waits in line.
            self.acks.push(Ack::of_will(published, Box::new(due)));
        } else if let Some(row) = due.row() {
            kept::remove_due(&mut self.commits.rows, row);
        }
    }
}
