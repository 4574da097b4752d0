//! What outlives a connection (MQTT 5.0 §4.1): QoS 2 identifiers received, messages in flight, messages queued.
//!
//! Subscriptions are held by the [`Trie`](crate::trie::Trie) under the subscriber's handle. A client that only publishes
//! at QoS 0 and 1 never has a `Session`. What has to survive a restart is told as [`Change`]s (see [`journal`]).

use std::collections::VecDeque;

mod journal;

pub use journal::{Change, Corrupt, Stored};

use crate::connection::{Delivery, Dropped};
use crate::limits::Limits;
use crate::message::Message;
use crate::packet::QoS;

/// Milliseconds between two searches of a queue for what has expired: of ten thousand messages, each takes a tenth of a millisecond.
const EXPIRY_PAUSE_MS: u64 = 100;

/// State of a client's session between and during its connections.
#[derive(Debug, Default)]
pub struct Session {
    /// Packet identifiers of QoS 2 publishes received and not yet released, sorted.
    pub(crate) inbound: Vec<Inbound>,
    /// Publishes sent and not yet acknowledged, in the order they were first sent ([MQTT-4.6.0-1]).
    pub(crate) inflight: VecDeque<InFlight>,
    /// Sum of `Message::size` over `inflight`.
    inflight_bytes: usize,
    /// Those at the front of `inflight` that were sent on the present connection. `0 <= sent <= inflight.len()`.
    pub(crate) sent: usize,
    /// Publishes that wait for room in flight, in order.
    queue: VecDeque<Queued>,
    /// Sum of `Message::size` over `queue`.
    queued_bytes: usize,
    /// When to look for expired messages in `queue`: not before one of them expires. `None` if none does.
    next_expiry: Option<u64>,
    /// The packet identifier given last.
    last_id: u16,
    /// Where in the sequence of identifiers those in flight were given is not known: they are from a restart, or one in use was stepped
    /// over.
    unordered: bool,
    /// Place of the next message among all that this session was given.
    next_order: u64,
    /// What changed and was not taken yet; `None` for a session that nobody keeps.
    journal: Option<Vec<Change>>,
}

/// A QoS 2 publish received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inbound {
    pub(crate) packet_id: u16,
    /// The message is stored; the PUBREC was sent.
    pub(crate) stored: bool,
    /// It counts against the receive maximum of the present connection.
    pub(crate) counted: bool,
}

/// How one message is to reach one subscriber.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub(crate) message: Message,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) ids: Ids,
    /// The shared subscription that it came by; zero if the client gets it for itself.
    pub(crate) group: u64,
    /// Place among all messages that the session was given: higher than those of messages before it, in flight and queued.
    pub(crate) order: u64,
}

/// A message that a session leaves to other members of a shared subscription.
#[derive(Debug)]
pub struct Shared {
    /// The message.
    pub message: Message,
    /// The shared subscription.
    pub group: u64,
    /// Its place in the session.
    pub order: u64,
}

/// A publish in flight to the client.
#[derive(Debug, Clone)]
pub(crate) struct InFlight {
    pub(crate) packet_id: u16,
    /// QoS 2: the PUBREC came, the message is the client's now ([MQTT-4.3.3-4]).
    pub(crate) received: bool,
    pub(crate) publish: Queued,
}

/// Subscription identifiers to deliver with; mostly none or one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Ids {
    #[default]
    None,
    One([u32; 1]),
    Many(Box<[u32]>),
}

impl Ids {
    pub(crate) fn from_slice(ids: &[u32]) -> Ids {
        match ids {
            [] => Ids::None,
            &[id] => Ids::One([id]),
            many => Ids::Many(many.into()),
        }
    }

    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Ids::None => &[],
            Ids::One(one) => one,
            Ids::Many(many) => many,
        }
    }
}

impl Session {
    /// A session without state.
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// Whether there is nothing worth keeping in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inbound.is_empty() && self.inflight.is_empty() && self.queue.is_empty()
    }

    /// Whether there is neither state in it nor a change that was not taken.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_empty() && self.journal.as_ref().is_none_or(Vec::is_empty)
    }

    /// Messages queued, not counting those in flight.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Bytes of the messages queued.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Messages in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inflight.len()
    }

    /// QoS 2 publishes received whose messages are not known to be stored. While there are any, the session must not be
    /// given to a new connection: a retransmission on it could not be told from a new message's being stored.
    #[must_use]
    pub fn unstored(&self) -> usize {
        self.inbound.iter().filter(|i| !i.stored).count()
    }

    /// The packet identifier of the message at place `order`, if it is in flight.
    #[must_use]
    pub fn packet_id(&self, order: u64) -> Option<u16> {
        let at = self.inflight.binary_search_by_key(&order, |f| f.publish.order).ok()?;
        Some(self.inflight[at].packet_id)
    }

    /// The QoS 2 publish with this identifier is stored, though its connection is gone: the PUBREC goes to the
    /// retransmission.
    pub fn stored(&mut self, packet_id: u16) {
        if let Ok(at) = self.find_inbound(packet_id)
            && !std::mem::replace(&mut self.inbound[at].stored, true)
        {
            self.note(Change::Held { packet_id });
        }
    }

    /// The QoS 2 publish with this identifier will not be stored: its retransmission is a new message.
    pub fn refused(&mut self, packet_id: u16) {
        self.forget_inbound(packet_id);
    }

    /// The client released the publish with this identifier, or it was refused.
    pub(crate) fn forget_inbound(&mut self, packet_id: u16) -> Option<Inbound> {
        let inbound = self.inbound.remove(self.find_inbound(packet_id).ok()?);
        if inbound.stored {
            self.note(Change::Released { packet_id });
        }
        Some(inbound)
    }

    /// Queues a message for a client that is away. QoS 0 is not kept.
    ///
    /// Beyond the bounds the oldest queued messages go: a device that wakes after a day wants the last command, not
    /// the first. Returns how many went.
    pub fn queue(&mut self, limits: &Limits, message: &Message, delivery: Delivery<'_>) -> Result<usize, Dropped> {
        let qos = delivery.qos.min(message.qos());
        if qos == QoS::AtMostOnce {
            return Err(Dropped::Offline);
        }
        let size = message.size();
        if size > limits.max_queued_bytes as usize || limits.max_queued_messages == 0 {
            return Err(Dropped::QueueFull);
        }
        let mut gone = 0;
        while !self.has_room(limits, size) {
            let Some(oldest) = self.pop() else { break };
            self.note(Change::Gone { order: oldest.order });
            gone += 1;
        }
        let publish = self.admit(message, Delivery { qos, ..delivery });
        self.push(publish);
        Ok(gone)
    }

    /// When [`expire`](Self::expire) has something to do, in milliseconds of the driver's clock; `None` if nothing queued expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<u64> {
        self.next_expiry
    }

    /// Drops what expired by `now` from the queue, or a tenth of a second ago; returns how many. Before [`queue`](Self::queue), so that what
    /// has expired takes no place from what has not.
    pub fn expire(&mut self, now: u64) -> usize {
        if self.next_expiry.is_none_or(|at| now < at) {
            return 0;
        }
        let before = self.queue.len();
        let journal = &mut self.journal;
        let bytes = &mut self.queued_bytes;
        let mut next: Option<u64> = None;
        self.queue.retain(|q| {
            let expired = q.message.is_expired(now);
            if expired {
                *bytes -= q.message.size();
                if let Some(journal) = journal {
                    journal.push(Change::Gone { order: q.order });
                }
            } else if let Some(at) = q.message.expires() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            !expired
        });
        self.next_expiry = next.map(|at| at.max(now + EXPIRY_PAUSE_MS));
        before - self.queue.len()
    }

    /// Of a session that is over: messages that it was to get for a shared subscription, in their order. They are for another
    /// member then (5.0 §4.8.2), but for those of QoS 2 that were sent to this one ([MQTT-4.8.2-5]).
    pub fn into_shared(self) -> impl Iterator<Item = Shared> {
        let unacknowledged =
            self.inflight.into_iter().map(|flight| flight.publish).filter(|p| p.qos == QoS::AtLeastOnce);
        let left = unacknowledged.chain(self.queue).filter(|publish| publish.group != 0);
        left.map(|Queued { message, group, order, .. }| Shared { message, group, order })
    }

    /// Gives a message its place in the session.
    pub(crate) fn admit(&mut self, message: &Message, delivery: Delivery<'_>) -> Queued {
        let order = self.next_order;
        self.next_order += 1;
        self.note(Change::Added { order });
        let Delivery { qos, retain, ids, group } = delivery;
        Queued { message: message.clone(), qos, retain, ids: Ids::from_slice(ids), group, order }
    }

    /// Notes that a message admitted is neither queued nor in flight: it was dropped before it could be.
    pub(crate) fn dismiss(&mut self, order: u64) {
        self.note(Change::Gone { order });
    }

    /// Puts a message in flight that was just sent.
    pub(crate) fn fly(&mut self, packet_id: u16, publish: Queued) {
        self.note(Change::Sent { order: publish.order, packet_id, qos: publish.qos });
        self.inflight_bytes += publish.message.size();
        self.inflight.push_back(InFlight { packet_id, received: false, publish });
        self.sent += 1;
    }

    /// The client received the QoS 2 message at `at`.
    pub(crate) fn receive(&mut self, at: usize) {
        let flight = &mut self.inflight[at];
        let order = flight.publish.order;
        if !std::mem::replace(&mut flight.received, true) {
            self.note(Change::Received { order });
        }
    }

    /// The delivery at `at` is over.
    pub(crate) fn land(&mut self, at: usize) {
        if let Some(flight) = self.inflight.remove(at) {
            self.inflight_bytes -= flight.publish.message.size();
            self.note(Change::Gone { order: flight.publish.order });
        }
        // What an earlier connection sent may be acknowledged before its turn to be sent again has come.
        if at < self.sent {
            self.sent -= 1;
        }
    }

    pub(crate) fn has_room(&self, limits: &Limits, size: usize) -> bool {
        self.queue.len() < limits.max_queued_messages as usize
            && self.queued_bytes + size <= limits.max_queued_bytes as usize
    }

    /// Whether what is in flight leaves room for more: fewer than `window` messages, and fewer bytes than may be queued.
    pub(crate) fn may_fly(&self, limits: &Limits, window: usize) -> bool {
        self.inflight.len() < window && self.inflight_bytes < limits.max_queued_bytes as usize
    }

    pub(crate) fn push(&mut self, queued: Queued) {
        if let Some(at) = queued.message.expires() {
            self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
        }
        self.queued_bytes += queued.message.size();
        self.queue.push_back(queued);
    }

    pub(crate) fn pop(&mut self) -> Option<Queued> {
        let queued = self.queue.pop_front()?;
        self.queued_bytes -= queued.message.size();
        Some(queued)
    }

    pub(crate) fn find_inbound(&self, packet_id: u16) -> Result<usize, usize> {
        self.inbound.binary_search_by_key(&packet_id, |i| i.packet_id)
    }

    /// Where the message with this identifier stands in flight.
    pub(crate) fn find_inflight(&self, packet_id: u16) -> Option<usize> {
        self.inflight.iter().position(|f| f.packet_id == packet_id)
    }

    /// A packet identifier that is not in use ([MQTT-2.2.1-3]), for the message at place `order`, which is to be in flight last.
    /// `inflight.len() < 65535`.
    pub(crate) fn next_packet_id(&mut self, order: u64) -> u16 {
        let oldest = self.inflight.front().map(|f| f.publish.order);
        self.unordered &= oldest.is_some();
        // Identifiers are given in sequence, at most one for each place: if fewer were since the oldest got its, none has come round.
        let is_free = !self.unordered && oldest.is_none_or(|oldest| order - oldest < u64::from(u16::MAX));
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if is_free || self.find_inflight(self.last_id).is_none() {
                return self.last_id;
            }
            self.unordered = true;
        }
    }
}
