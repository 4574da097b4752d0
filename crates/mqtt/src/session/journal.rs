//! What of a session has to survive a restart of the server.
//!
//! # Constraints
//!
//! A change is small and tells what to write under which key, so that a driver gathers the changes of many sessions in one
//! commit. A message's bytes are written once, when it is added.
//!
//! # Operation
//!
//! A session that keeps a journal ([`Session::keep_journal`]) notes each change; the driver takes them
//! ([`Session::take_changes`]) after each turn, writes them, and lets what the turn wrote to the client go once they are durable:
//! then a QoS 2 message reaches the client once even if the server dies at any moment. After a restart
//! [`Session::restore`] makes the session of what was written.
//!
//! | change | what to write |
//! |---|---|
//! | [`Added`](Change::Added) | under `order`, what [`Session::write`] gives, if it still gives it |
//! | [`Sent`](Change::Sent) | under `order`, the packet identifier |
//! | [`Received`](Change::Received) | under `order`, that the client has it |
//! | [`Gone`](Change::Gone) | nothing under `order` any more |
//! | [`Held`](Change::Held), [`Released`](Change::Released) | that the identifier of a QoS 2 publish is in use, or not any more |
//!
//! # Format
//!
//! A message in a session: one byte (bits 0–1 QoS, bit 2 retain, bit 3 shared subscription), one byte count of subscription identifiers,
//! those in 4 bytes each (big-endian), the shared subscription in 8 bytes if it came by one, then the message in its own form
//! ([`Message::write`]).

use super::{Ids, InFlight, Inbound, Queued, Session};
use crate::message::Message;
use crate::packet::QoS;

/// Subscription identifiers that are kept with a message; a client with more that overlap loses the rest over a restart.
const MAX_IDS: usize = u8::MAX as usize;

const RETAIN: u8 = 1 << 2;
const SHARED: u8 = 1 << 3;

/// A change of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// A message was added.
    Added {
        /// Its place in the session.
        order: u64,
    },
    /// A message was sent.
    Sent {
        /// Its place in the session.
        order: u64,
        /// Under which identifier.
        packet_id: u16,
        /// With which QoS. What is sent with QoS 2 must be durable before it leaves, or the identifier could name another message
        /// after a crash, which the client would take for the same.
        qos: QoS,
    },
    /// The client has a QoS 2 message, and is to be sent its release.
    Received {
        /// Its place in the session.
        order: u64,
    },
    /// A message is not in the session any more.
    Gone {
        /// Its place in the session.
        order: u64,
    },
    /// A QoS 2 publish of the client is stored; another with its identifier is the same.
    Held {
        /// The identifier.
        packet_id: u16,
    },
    /// The client released it.
    Released {
        /// The identifier.
        packet_id: u16,
    },
}

/// A message of a session as it was written.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    /// Its place in the session.
    pub order: u64,
    /// What [`Session::write`] gave.
    pub form: &'a [u8],
    /// The packet identifier that it was sent under, and whether the client has it, if it was sent.
    pub flight: Option<(u16, bool)>,
}

/// What was written does not make a session. The store's fault: its checksums should have told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// A message is cut short or has values that none has.
    #[error("the message at place {0} of a session cannot be read")]
    Message(u64),
    /// Places are not in order, or what is queued stands before what is in flight.
    #[error("the message at place {0} of a session is out of order")]
    Order(u64),
}

impl Session {
    /// Notes changes from now on.
    pub fn keep_journal(&mut self) {
        self.journal.get_or_insert_default();
    }

    /// Moves the changes since it was last asked to `changes`, in order.
    pub fn take_changes(&mut self, changes: &mut Vec<Change>) {
        if let Some(journal) = &mut self.journal {
            changes.append(journal);
        }
    }

    pub(super) fn note(&mut self, change: Change) {
        if let Some(journal) = &mut self.journal {
            journal.push(change);
        }
    }

    /// Appends the message at place `order` in its written form; false if it is not there any more.
    pub fn write(&self, order: u64, out: &mut Vec<u8>) -> bool {
        let in_flight =
            self.inflight.binary_search_by_key(&order, |f| f.publish.order).map(|at| &self.inflight[at].publish);
        let found =
            in_flight.or_else(|_| self.queue.binary_search_by_key(&order, |q| q.order).map(|at| &self.queue[at]));
        let Ok(Queued { message, qos, retain, ids, group, .. }) = found else { return false };
        let ids = ids.as_slice();
        let ids = &ids[..ids.len().min(MAX_IDS)];
        out.push(*qos as u8 | if *retain { RETAIN } else { 0 } | if *group != 0 { SHARED } else { 0 });
        out.push(ids.len() as u8);
        out.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
        if *group != 0 {
            out.extend(group.to_be_bytes());
        }
        message.write(out);
        true
    }

    /// The session of these messages, in the order of their places, and identifiers held. It keeps a journal.
    pub fn restore<'a>(
        messages: impl IntoIterator<Item = Stored<'a>>,
        held: impl IntoIterator<Item = u16>,
    ) -> Result<Session, Corrupt> {
        let mut session = Session { journal: Some(Vec::new()), ..Session::default() };
        let inbound = |packet_id| Inbound { packet_id, stored: true, counted: false };
        session.inbound = held.into_iter().map(inbound).collect();
        session.inbound.sort_unstable_by_key(|i| i.packet_id);
        session.inbound.dedup_by_key(|i| i.packet_id);
        for Stored { order, form, flight } in messages {
            if order < session.next_order {
                return Err(Corrupt::Order(order));
            }
            session.next_order = order + 1;
            let publish = read(order, form).ok_or(Corrupt::Message(order))?;
            match flight {
                None => session.push(publish),
                Some(_) if !session.queue.is_empty() => return Err(Corrupt::Order(order)),
                Some((packet_id, received)) => {
                    session.inflight_bytes += publish.message.size();
                    session.inflight.push_back(InFlight { packet_id, received, publish });
                    session.last_id = packet_id;
                    session.unordered = true;
                }
            }
        }
        Ok(session)
    }
}

fn read(order: u64, form: &[u8]) -> Option<Queued> {
    let (&[flags, count], rest) = form.split_first_chunk::<2>()?;
    let (ids, mut rest) = rest.split_at_checked(usize::from(count) * 4)?;
    let ids: Vec<u32> = ids.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])).collect();
    let qos =
        QoS::from_number(flags & 0b11).filter(|&q| q != QoS::AtMostOnce && flags & !(0b11 | RETAIN | SHARED) == 0)?;
    let mut group = 0;
    if flags & SHARED != 0 {
        let (bytes, message) = rest.split_first_chunk()?;
        (group, rest) = (u64::from_be_bytes(*bytes), message);
    }
    let message = Message::read(rest)?;
    Some(Queued { message, qos, retain: flags & RETAIN != 0, ids: Ids::from_slice(&ids), group, order })
}
