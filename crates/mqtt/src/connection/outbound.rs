//! Messages towards the client: windows, redelivery, aliases, sizes.

use super::{Connection, Event, Phase, Step};
use crate::encode::{self, Head};
use crate::limits::Limits;
use crate::message::Message;
use crate::packet::{self, QoS, Version};
use crate::reason::Reason;
use crate::session::{InFlight, Queued};

/// How a message is to be delivered to one subscriber.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delivery<'a> {
    /// Highest QoS of the subscriptions that matched.
    pub qos: QoS,
    /// The retain flag to send: set for a retained message sent because of a subscription, else as published if the
    /// subscription asks for that, else clear ([MQTT-3.3.1-8], [MQTT-3.3.1-9], 5.0 [MQTT-3.3.1-12]).
    pub retain: bool,
    /// Identifiers of the subscriptions that matched; ignored for a 3.1.1 client.
    pub ids: &'a [u32],
    /// The shared subscription that it comes by; zero if the client gets it for itself.
    pub group: u64,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It is in `out`, with this packet identifier if its QoS is not 0.
    Sent(Option<u16>),
    /// It waits for room in flight.
    Queued,
    /// It will not reach this client.
    Dropped(Dropped),
}

/// Why a message does not reach a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// Its expiry interval has passed.
    Expired,
    /// Its packet would be larger than the client takes ([MQTT-3.1.2-25]).
    TooLarge,
    /// The bounds of the queue are reached.
    QueueFull,
    /// QoS 0 is not kept for a client that is away.
    Offline,
}

impl Dropped {
    /// A label for a counter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Dropped::Expired => "expired",
            Dropped::TooLarge => "too_large",
            Dropped::QueueFull => "queue_full",
            Dropped::Offline => "offline",
        }
    }
}

impl Connection {
    /// Sends a message to the client, or queues it behind those in flight.
    ///
    /// It is delivered with the lower of the QoS it was published with and `delivery.qos`. A driver whose client does not
    /// read drops QoS 0 itself, by the length of what it has not sent.
    pub fn deliver(
        &mut self,
        limits: &Limits,
        message: &Message,
        delivery: Delivery<'_>,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Delivered {
        if self.phase != Phase::Open {
            return Delivered::Dropped(Dropped::Offline);
        }
        if message.is_expired(now) {
            return Delivered::Dropped(Dropped::Expired);
        }
        let qos = delivery.qos.min(message.qos());
        let ids = if self.version == Version::V5 { delivery.ids } else { &[] };
        if qos == QoS::AtMostOnce {
            let head = Head { qos, retain: delivery.retain, dup: false, packet_id: 0, alias: None, ids };
            return if self.send(limits, message, head, now, out) {
                Delivered::Sent(None)
            } else {
                Delivered::Dropped(Dropped::TooLarge)
            };
        }
        let window = self.window(limits);
        let session = self.session_mut();
        if session.queued() > 0 || !session.may_fly(limits, window) {
            if !session.has_room(limits, message.size()) {
                session.expire(now);
                if !session.has_room(limits, message.size()) {
                    return Delivered::Dropped(Dropped::QueueFull);
                }
            }
            let publish = session.admit(message, Delivery { qos, ids, ..delivery });
            session.push(publish);
            return Delivered::Queued;
        }
        let publish = session.admit(message, Delivery { qos, ids, ..delivery });
        self.launch(limits, publish, now, out)
            .map_or(Delivered::Dropped(Dropped::TooLarge), |id| Delivered::Sent(Some(id)))
    }

    /// Tells whether the client is behind with reading: while it is, messages of QoS 1 and 2 are queued, where all subscribers share
    /// their bytes, rather than written out for it. When it has caught up, what may be sent is appended.
    pub fn set_congested(&mut self, limits: &Limits, congested: bool, now: u64, out: &mut Vec<u8>) {
        let caught_up = std::mem::replace(&mut self.congested, congested) && !congested;
        if caught_up && self.phase == Phase::Open {
            self.pump(limits, now, out);
        }
    }

    /// Whether a message of QoS 1 or 2 would be sent at once, rather than queued.
    #[must_use]
    pub fn has_room(&self, limits: &Limits) -> bool {
        let full = |session: &crate::Session| session.queued() > 0 || !session.may_fly(limits, self.window(limits));
        self.phase == Phase::Open && !self.congested && !self.session.as_deref().is_some_and(full)
    }

    /// Publishes that may be in flight at once.
    fn window(&self, limits: &Limits) -> usize {
        if self.congested {
            return 0;
        }
        usize::from(self.receive_maximum.min(limits.max_inflight_out).max(1))
    }

    /// Gives a message a packet identifier and sends it; `None` if it is too large for the client.
    fn launch(&mut self, limits: &Limits, publish: Queued, now: u64, out: &mut Vec<u8>) -> Option<u16> {
        let packet_id = self.session_mut().next_packet_id(publish.order);
        let sent = self.resend(limits, packet_id, &publish, false, now, out);
        let session = self.session_mut();
        if !sent {
            session.dismiss(publish.order);
            return None;
        }
        session.fly(packet_id, publish);
        Some(packet_id)
    }

    /// Appends the PUBLISH of a message in flight; false if it is too large for the client.
    fn resend(
        &mut self,
        limits: &Limits,
        packet_id: u16,
        publish: &Queued,
        dup: bool,
        now: u64,
        out: &mut Vec<u8>,
    ) -> bool {
        let ids = if self.version == Version::V5 { publish.ids.as_slice() } else { &[] };
        let head = Head { qos: publish.qos, retain: publish.retain, dup, packet_id, alias: None, ids };
        self.send(limits, &publish.message, head, now, out)
    }

    /// Appends a PUBLISH, with an alias if there is one to have; false if it is too large for the client.
    fn send(&mut self, limits: &Limits, message: &Message, mut head: Head<'_>, now: u64, out: &mut Vec<u8>) -> bool {
        if self.alias_maximum > 0 && self.version == Version::V5 {
            head.alias =
                self.aliases.get_or_insert_default().offer(message.topic(), self.alias_maximum, limits.max_alias_bytes);
        }
        let maximum = self.maximum_packet as usize;
        if head.packet_len(message, self.version) > maximum {
            // An alias takes room, more than a short topic: without it the message may fit.
            if let (Some((_, true)), Some(aliases)) = (head.alias, &mut self.aliases) {
                aliases.withdraw();
            }
            if head.alias.take().is_none() || head.packet_len(message, self.version) > maximum {
                return false;
            }
        }
        message.encode(self.version, head, now, out);
        true
    }

    /// Fills the window: what a resumed session had in flight first, with DUP ([MQTT-3.3.1-1], [MQTT-4.4.0-1]), then the
    /// queue.
    pub(super) fn pump(&mut self, limits: &Limits, now: u64, out: &mut Vec<u8>) {
        let window = self.window(limits);
        loop {
            let Some(session) = &mut self.session else { return };
            if session.sent >= window {
                return;
            }
            if let Some(flight) = session.inflight.get(session.sent) {
                let sent = if flight.received {
                    encode::ack(encode::PUBREL, flight.packet_id, Reason::Success, self.version, out);
                    true
                } else {
                    let InFlight { packet_id, publish, .. } = flight.clone();
                    self.resend(limits, packet_id, &publish, true, now, out)
                };
                let session = self.session_mut();
                if sent {
                    session.sent += 1;
                } else {
                    // The client takes smaller packets than before: as if it had been delivered.
                    session.land(session.sent);
                }
                continue;
            }
            if !session.may_fly(limits, window) {
                return;
            }
            let Some(queued) = session.pop() else { return };
            if queued.message.is_expired(now) {
                session.dismiss(queued.order);
            } else {
                self.launch(limits, queued, now, out);
            }
        }
    }

    /// The client's PUBREC.
    pub(super) fn received<'a>(&mut self, limits: &Limits, ack: packet::Ack, now: u64, out: &mut Vec<u8>) -> Step<'a> {
        let packet_id = ack.packet_id;
        let found = self.session.as_mut().and_then(|s| Some((s.find_inflight(packet_id)?, s)));
        match found {
            Some((at, session)) if session.inflight[at].publish.qos == QoS::ExactlyOnce => {
                if ack.reason.is_failure() {
                    return self.delivered(limits, packet_id, QoS::ExactlyOnce, ack.reason, now, out);
                }
                session.receive(at);
                Step::Event(Event::Received { packet_id })
            }
            _ => {
                if !ack.reason.is_failure() {
                    encode::ack(encode::PUBREL, packet_id, Reason::PacketIdNotFound, self.version, out);
                }
                Step::Again
            }
        }
    }

    /// The client's PUBACK, PUBCOMP or failing PUBREC: the packet identifier is free. One that is not known is ignored.
    pub(super) fn delivered<'a>(
        &mut self,
        limits: &Limits,
        packet_id: u16,
        qos: QoS,
        reason: Reason,
        now: u64,
        out: &mut Vec<u8>,
    ) -> Step<'a> {
        let Some(session) = &mut self.session else { return Step::Again };
        let Some(at) = session.find_inflight(packet_id) else { return Step::Again };
        let flight = &session.inflight[at];
        // A PUBCOMP before the PUBREC ends nothing.
        let over = flight.publish.qos == qos && (qos != QoS::ExactlyOnce || flight.received || reason.is_failure());
        if !over {
            return Step::Again;
        }
        session.land(at);
        self.pump(limits, now, out);
        Step::Event(Event::Acknowledged { packet_id, reason })
    }

    /// A QoS 2 message's receipt is noted: appends the PUBREL.
    pub fn release(&mut self, packet_id: u16, out: &mut Vec<u8>) {
        if self.phase == Phase::Open {
            encode::ack(encode::PUBREL, packet_id, Reason::Success, self.version, out);
        }
    }
}
