//! From a PUBLISH to a record and back to its acknowledgement.

use std::time::Instant;

use nix::sys::epoll::Epoll;
use tidegate_mqtt::{Message, Publish, QoS, Reason, Version};
use tidegate_record::{Protocol, Record};
use tidegate_writer::{Pressure, Refused};

use super::Now;
use super::clients::Slot;
use super::kept::{self, DueKey};
use super::reactor::Reactor;
use super::wills::Due;
use crate::frontend::router::{Origin, Published, SessionId};

/// An acknowledgement that waits for its reading to become durable; for QoS 0, what subscribers get then.
pub(super) struct Ack {
    client: SessionId,
    /// Which of the client's connections it belongs to: on the next one the same packet identifier may name another message.
    connection_number: u32,
    packet_id: u16,
    pub(super) qos: QoS,
    pub(super) reason: Reason,
    published: Option<Published>,
    /// Of a QoS 2 publish of a kept session; see [`super::kept`].
    numbered: Option<Box<Numbered>>,
    /// It is a will's, which is to be kept if the log does not take it, and has a row until it is published.
    will: Option<Box<Due>>,
}

/// A QoS 2 publish of a kept session.
struct Numbered {
    origin: Origin,
    /// Rows may tell who has it.
    noted: bool,
}

impl Ack {
    /// Of a will, which nobody waits for.
    pub(super) fn of_will(published: Option<Published>, will: Box<Due>) -> Ack {
        Ack {
            client: SessionId::NOBODY,
            connection_number: 0,
            packet_id: 0,
            qos: QoS::AtMostOnce,
            reason: Reason::Success,
            published,
            numbered: None,
            will: Some(will),
        }
    }

    /// The row of a will that is to go when nothing holds this back any more.
    fn row(&self) -> Option<&DueKey> {
        self.will.as_ref()?.row()
    }
}

impl Reactor {
    /// Whether the client must wait with the PUBLISH that `input` begins with: the log refuses readings, and a 3.1.1 client
    /// cannot be told so.
    pub(super) fn must_wait(&mut self, slot: Slot, input: &[u8]) -> bool {
        /// Packet type PUBLISH with QoS 1 or 2 (MQTT 3.1.1 §3.3.1).
        fn is_surer_publish(first: u8) -> bool {
            first >> 4 == 3 && first & 0b110 != 0
        }
        if !input.first().is_some_and(|first| is_surer_publish(*first))
            || !matches!(self.shared.appender.pressure(), Pressure::Refuse(_))
        {
            return false;
        }
        let Some(client) = self.clients.get_mut(slot) else { return false };
        if client.connection.version() == Version::V5 {
            return false;
        }
        if !client.flags.paused {
            client.flags.paused = true;
            self.paused.push(client.id);
            self.shared.metrics.mqtt_paused.inc();
        }
        true
    }

    /// Records a PUBLISH, if its topic is recorded, and routes it: QoS 0 at once, the others when they are durable.
    pub(super) fn publish(&mut self, slot: Slot, publish: &Publish<'_>, now: Now) {
        let Some(client) = self.clients.get(slot) else { return };
        let (id, connection_number, from) = (client.id, client.connection_number, client.subscriber());
        let kept = client.kept.as_deref().filter(|_| publish.qos == QoS::ExactlyOnce && publish.dup);
        let again = kept.and_then(|kept| kept.unanswered(publish.packet_id)).cloned();
        let logged = again.as_ref().is_some_and(|again| again.logged);
        let recorded = self.shared.config.ingest.filters.records(&publish.topic);
        let mut reason = Reason::Success;
        if recorded && !logged {
            match (publish.qos, self.shared.appender.pressure()) {
                (_, Pressure::Normal) | (QoS::AtLeastOnce | QoS::ExactlyOnce, Pressure::Shed) => {}
                (QoS::AtMostOnce, Pressure::Shed) => return self.shared.metrics.mqtt.shed("qos0"),
                (QoS::AtMostOnce, Pressure::Refuse(refused)) => return self.shared.metrics.mqtt.shed(refused.name()),
                // It was let through before the log began to refuse, and cannot be told: the log decides (`turn_back`).
                (_, Pressure::Refuse(_)) if client.connection.version() == Version::V4 => {}
                (_, Pressure::Refuse(refused)) => {
                    self.shared.metrics.mqtt.refused(refused.name());
                    reason = Reason::QuotaExceeded;
                }
            }
        }
        // Before it is stored: afterwards nobody can be told.
        let retained = publish.retain && !publish.payload.is_empty() && publish.qos != QoS::AtMostOnce && !logged;
        if retained
            && !reason.is_failure()
            && client.connection.version() == Version::V5
            && !self.shared.router.may_retain(&publish.topic, publish.topic.len() + publish.payload.len())
        {
            self.shared.metrics.mqtt.refused("retained");
            reason = Reason::QuotaExceeded;
        }
        if reason.is_failure() {
            return self.answer_publish(slot, publish, reason);
        }
        let Some(client) = self.clients.get_mut(slot) else { return };
        let kept = client.kept.as_deref_mut().filter(|_| publish.qos == QoS::ExactlyOnce);
        let origin = kept.map(|kept| match &again {
            Some(again) => kept.origin(again.serial, publish.packet_id),
            None => {
                kept.settle(&mut self.commits.rows, publish.packet_id);
                kept.next_origin(publish.packet_id)
            }
        });
        if logged {
            // An earlier run has counted it.
        } else if recorded {
            let (device, tenant) = client.origin();
            let record = Record {
                received: now.micros,
                protocol: Protocol::Mqtt,
                qos: publish.qos as u8,
                retain: publish.retain,
                content_format: None,
                device,
                tenant,
                content_type: publish.content_type,
                topic: &publish.topic,
                key: origin.map(kept::key_of),
                payload: publish.payload,
            };
            if let Err(error) = self.batch.push(&record) {
                // A packet's topic and content type have 16-bit lengths, as a record's have.
                debug_assert!(false, "{error}");
                return;
            }
            self.shared.metrics.mqtt.payload_bytes.inc_by(publish.payload.len() as u64);
        } else {
            self.shared.metrics.mqtt.unrecorded.inc();
        }
        let mut published =
            self.shared.router.prepare(&publish.topic, publish.retain, Some(from), &mut self.matches, || {
                Message::from_publish(publish, now.steady_millis())
            });
        if publish.qos == QoS::AtMostOnce {
            if let Some(published) = published {
                // Nobody waits for it.
                let _ = self.route(published, now);
            }
            return;
        }
        if let (Some(published), Some(origin)) = (&mut published, origin) {
            published.set_origin(origin, again.map(|again| again.served).unwrap_or_default());
        }
        if !recorded && published.is_none() {
            reason = Reason::NoMatchingSubscribers;
        }
        self.acks.push(Ack {
            client: id,
            connection_number,
            packet_id: publish.packet_id,
            qos: publish.qos,
            reason,
            published,
            numbered: origin.map(|origin| Box::new(Numbered { origin, noted: false })),
            will: None,
        });
    }

    /// Answers a PUBLISH that is not taken, behind the acknowledgements of what came before it ([MQTT-4.6.0-2]).
    pub(super) fn answer_publish(&mut self, slot: Slot, publish: &Publish<'_>, reason: Reason) {
        let Some(client) = self.clients.get(slot) else { return };
        self.acks.push(Ack {
            client: client.id,
            connection_number: client.connection_number,
            packet_id: publish.packet_id,
            qos: publish.qos,
            reason,
            published: None,
            numbered: None,
            will: None,
        });
    }

    /// A reading is durable: subscribers get it, and its sender its acknowledgement, once the database has it for those of them whose
    /// sessions are kept.
    pub(super) fn acknowledge(&mut self, mut ack: Ack, received: Instant, now: Now) {
        let wait = ack.published.take().map(|published| self.route(published, now)).unwrap_or_default();
        if ack.qos == QoS::AtMostOnce && ack.row().is_none() {
            return;
        }
        if let Some(numbered) = &mut ack.numbered {
            numbered.noted = wait.is_needed();
        }
        if wait.is_needed() || self.commits.has_staged() {
            self.commits.stage(wait, ack, received);
        } else {
            self.answer(ack, received, now);
        }
    }

    /// Sends an acknowledgement that nothing holds back any more.
    pub(super) fn answer(&mut self, ack: Ack, received: Instant, now: Now) {
        if let Some(row) = ack.row() {
            return kept::remove_due(&mut self.commits.rows, row);
        }
        if !ack.reason.is_failure() {
            self.latencies.observe((now.instant - received).as_secs_f64());
            self.answered += 1;
        }
        let rows = &mut self.commits.rows;
        if let Some(Numbered { origin, .. }) = ack.numbered.as_deref().filter(|numbered| numbered.noted) {
            kept::remove_unanswered(rows, *origin);
        }
        let Some((slot, client)) = self.clients.by_id(ack.client) else { return };
        if ack.qos == QoS::ExactlyOnce
            && let Some(kept) = &mut client.kept
        {
            // One that is refused and has gone is to send it again.
            if client.parked.is_none() || !ack.reason.is_failure() {
                kept.settle(rows, ack.packet_id);
            }
            if let Some(Numbered { origin, .. }) = ack.numbered.as_deref()
                && origin.incarnation == kept.incarnation
                && !ack.reason.is_failure()
            {
                kept.mark(rows, origin.serial);
            }
        }
        if let Some(parked) = &mut client.parked {
            if let Some(session) = &mut parked.session
                && ack.qos == QoS::ExactlyOnce
            {
                if ack.reason.is_failure() {
                    session.refused(ack.packet_id);
                } else {
                    session.stored(ack.packet_id);
                }
            }
            return self.collect(slot);
        }
        if client.connection_number != ack.connection_number {
            return;
        }
        let waited = client.connection.is_paused();
        let mut out = std::mem::take(&mut self.out);
        client.connection.stored(ack.packet_id, ack.qos, ack.reason, &mut out);
        if waited && !client.connection.is_paused() {
            self.resumable.push(ack.client);
        }
        self.give(slot, &mut out);
        self.out = out;
    }

    /// The log took nothing of the batch: MQTT 5 clients are told, the others are cut off before they are acknowledged, so
    /// that they send again.
    pub(super) fn turn_back(&mut self, epoll: &Epoll, refused: Refused, now: Now) {
        let acks: Vec<Ack> = self.acks.retract().collect();
        let mut cut_off = Vec::new();
        for ack in acks {
            if ack.qos == QoS::AtMostOnce {
                match ack.will {
                    Some(will) => self.keep_will(*will),
                    None => self.shared.metrics.mqtt.shed(refused.name()),
                }
                continue;
            }
            self.shared.metrics.mqtt.refused(refused.name());
            if let Some((_, client)) = self.clients.by_id(ack.client)
                && client.connection.version() == Version::V4
                && client.connection_number == ack.connection_number
            {
                cut_off.push(ack.client);
            }
            // Also for those that are cut off: their sessions must know that the publish is over.
            self.acks.push(Ack { reason: Reason::QuotaExceeded, published: None, ..ack });
        }
        self.acks.close(tidegate_record::Seq::NONE, now.instant);
        for id in cut_off {
            if let Some((slot, _)) = self.clients.by_id(id) {
                self.close(epoll, slot, "refused_by_log", now);
            }
        }
    }
}
