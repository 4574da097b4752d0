//! Sessions that outlive a restart: what is written of them, and where.
//!
//! # Constraints
//!
//! A session that ends with its connection, as most devices' do, costs nothing here. What is acknowledged to a client, or to whoever
//! published to it, is in the database before.
//!
//! # Format
//!
//! All rows of a session begin with its *incarnation*, 8 random bytes that no other session has had, but for the one that its client's
//! name leads to. Integers are big-endian.
//!
//! | table | key | value |
//! |---|---|---|
//! | `Sessions` | client identifier | incarnation (8), session expiry in seconds (4), end of the last connection in ms since 1970 (8), 0 while it lasts; then the device that it belongs to, nothing if that was not asked for |
//! | `Wills` | client identifier | when it is due in ms since 1970 (8), 0 while the connection lasts; then [`Will::write`] |
//! | `Wills` | byte 255, incarnation (8), when it became due in µs since 1970 (8) | lengths of the publisher's name and of its tenant (2 each), both, then [`Message::write`] |
//! | `Subscriptions` | incarnation, topic filter | subscription identifier (4), options as in SUBSCRIBE (1; MQTT 5.0 §3.8.3.1), bit 6 set while retained messages are still to be sent for it |
//! | `Queues` | incarnation, place (8) | [`Session::write`] |
//! | `Inflight` | incarnation, `F`, place (8) | packet identifier (2), 1 if the client has received it (1) |
//! | `Inflight` | incarnation, `H`, packet identifier (2) | nothing: the QoS 2 publish is stored and not released |
//! | `Inflight` | incarnation, `L`, place (8) | nothing: another session has the message, which this one left to it |
//! | `Inflight` | incarnation, `M` | number of the last QoS 2 publish that the rows here tell of (8) |
//! | `Inflight` | incarnation, `U`, number (8) | packet identifier (2): the QoS 2 publish is in the log, and its client was not answered |
//! | `Inflight` | incarnation, `U`, number (8), incarnation (8) and shared subscription (8; 0 for none) of a subscriber | packet identifier (2): that subscriber has it |
//!
//! # Wills
//!
//! A will that is due is published once, and nobody sends it again. So it keeps a row of its own, from the commit that says that its client has
//! none any more until the log has it and so has every queue that it is for. What a start finds of these rows is published then, and may have been
//! before.
//!
//! # What a session leaves
//!
//! A session that is over leaves what it was to get for a shared subscription to other members, which may be on other workers. Each notes
//! in one commit with the message where it has it from (`L`), and only then do the rows of the session that is over go, but for its name, which
//! goes at once. What a start finds in `Queues` of a session without a name is passed on, unless `L` says that it was.
//!
//! # QoS 2 across a crash
//!
//! A QoS 2 publish of such a session goes to the log under a key ([`key_of`]): its incarnation, and a number that rises with each.
//! Once the log has it, and every queue that it is for, `H` and `M` are written, and once those are durable the PUBREC leaves.
//!
//! The queues may be on other workers, which write on their own; so each notes in one commit with the message where it has it from
//! (`U`). `H` and `M` take these rows away in their commit, which is submitted after all of them are durable. What a start finds of them, and
//! what is in the log with a number above `M`, is the beginning of a publish whose client was not told. It is finished when the client
//! sends it again under its identifier: it is not logged again, and those that have it do not get it again. Until then nothing is owed;
//! and what the client sends has the properties, the expiry and the publisher that the log does not tell of. A client that sends a publish
//! without the DUP flag under that identifier has forgotten the first one, and means another message ([MQTT-3.3.1-1]).

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use tidegate_mqtt::{Change, Message, QoS, Session, SubscribeOptions, Will};
use tidegate_record::{DeviceId, MessageKey};
use tidegate_state::{Changes, ReadError, Reader, Table};

use crate::frontend::router::{Left, Origin, Served};

/// Bits of a key's number that are the packet identifier.
const PACKET_ID_BITS: u32 = 16;

/// What is known of a session that is kept. Boxed: most have none.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) incarnation: u64,
    /// The device that it belongs to; `None` if nobody has asked who its client is.
    pub(super) owner: Option<DeviceId>,
    /// The number of its last QoS 2 publish.
    serial: u64,
    /// The number in its row `M`.
    marked: u64,
    /// QoS 2 publishes that an earlier run began to deliver, by packet identifier: see the [module documentation](self).
    unanswered: BTreeMap<u16, Unanswered>,
}

/// How far an earlier run came with a QoS 2 publish.
#[derive(Debug, Clone, Default)]
pub(super) struct Unanswered {
    pub(super) serial: u64,
    /// The log has it.
    pub(super) logged: bool,
    /// Who has it.
    pub(super) served: Vec<Served>,
}

impl Kept {
    pub(super) fn new() -> Kept {
        let random = RandomState::new();
        Kept::restored(random.hash_one(0u8), None)
    }

    /// A session of which no more is known yet.
    pub(super) fn restored(incarnation: u64, owner: Option<DeviceId>) -> Kept {
        Kept { incarnation, owner, serial: 0, marked: 0, unanswered: BTreeMap::new() }
    }

    /// Its next QoS 2 publish.
    pub(super) fn next_origin(&mut self, packet_id: u16) -> Origin {
        self.serial += 1;
        self.origin(self.serial, packet_id)
    }

    /// Its QoS 2 publish of this number.
    pub(super) fn origin(&self, serial: u64, packet_id: u16) -> Origin {
        Origin { incarnation: self.incarnation, serial, packet_id }
    }

    /// The QoS 2 publish with this identifier, if an earlier run has begun with it.
    pub(super) fn unanswered(&self, packet_id: u16) -> Option<&Unanswered> {
        self.unanswered.get(&packet_id)
    }

    /// Notes that an earlier run has begun with a publish; returns what is known of it. An older one under the same identifier is over,
    /// since the client has used the identifier again.
    pub(super) fn begun(&mut self, rows: &mut Changes, Origin { serial, packet_id, .. }: Origin) -> &mut Unanswered {
        self.serial = self.serial.max(serial);
        if self.unanswered(packet_id).is_some_and(|known| known.serial < serial) {
            self.settle(rows, packet_id);
        }
        let known = self.unanswered.entry(packet_id).or_default();
        known.serial = serial;
        known
    }

    /// Notes that the log has a publish; if no row tells of it, its client was not answered.
    pub(super) fn logged(&mut self, rows: &mut Changes, origin: Origin) {
        if origin.serial <= self.marked {
            return;
        }
        self.begun(rows, origin).logged = true;
        let key = Key::new(self.incarnation).unanswered(origin.serial);
        rows.put(Table::Inflight, key.as_slice(), &origin.packet_id.to_be_bytes());
        self.mark(rows, origin.serial);
    }

    /// How many publishes an earlier run has begun with.
    pub(super) fn all_unanswered(&self) -> usize {
        self.unanswered.len()
    }

    /// Forgets what an earlier run began under an identifier: the client is answered, or it means another message by it.
    pub(super) fn settle(&mut self, rows: &mut Changes, packet_id: u16) {
        if let Some(settled) = self.unanswered.remove(&packet_id) {
            remove_unanswered(rows, self.origin(settled.serial, packet_id));
        }
    }

    /// What the row `M` says.
    pub(super) fn restore_mark(&mut self, marked: u64) {
        self.marked = marked;
        self.serial = self.serial.max(marked);
    }

    /// Notes that rows tell of the publish `serial`, as of those before it.
    pub(super) fn mark(&mut self, rows: &mut Changes, serial: u64) {
        if serial > self.marked {
            self.marked = serial;
            rows.put(Table::Inflight, Key::new(self.incarnation).mark().as_slice(), &serial.to_be_bytes());
        }
    }
}

/// The key of a QoS 2 publish in the log.
pub(super) fn key_of(origin: Origin) -> MessageKey {
    MessageKey { scope: origin.incarnation, number: origin.serial << PACKET_ID_BITS | u64::from(origin.packet_id) }
}

/// Number and packet identifier of a QoS 2 publish in the log.
pub(super) fn of_key(key: MessageKey) -> (u64, u16) {
    (key.number >> PACKET_ID_BITS, key.number as u16)
}

/// What is read of `Sessions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) incarnation: u64,
    pub(super) expiry: u32,
    /// `None` while the connection lasts.
    pub(super) ended: Option<u64>,
    /// As [`Kept::owner`]; rows of an earlier format do not tell.
    pub(super) owner: Option<DeviceId>,
}

impl Row {
    pub(super) fn put(&self, changes: &mut Changes, client: &DeviceId) {
        let owner = self.owner.as_ref().map_or("", DeviceId::as_str);
        let mut value = Vec::with_capacity(20 + owner.len());
        value.extend(self.incarnation.to_be_bytes());
        value.extend(self.expiry.to_be_bytes());
        value.extend(self.ended.unwrap_or(0).to_be_bytes());
        value.extend(owner.as_bytes());
        changes.put(Table::Sessions, client.as_str().as_bytes(), &value);
    }

    pub(super) fn read(value: &[u8]) -> Option<Row> {
        let (incarnation, rest) = value.split_first_chunk()?;
        let (expiry, rest) = rest.split_first_chunk()?;
        let (ended, owner) = rest.split_first_chunk()?;
        let (incarnation, expiry) = (u64::from_be_bytes(*incarnation), u32::from_be_bytes(*expiry));
        let ended = u64::from_be_bytes(*ended);
        let owner = match owner {
            [] => None,
            owner => Some(DeviceId::new(std::str::from_utf8(owner).ok()?).ok()?),
        };
        Some(Row { incarnation, expiry, ended: (ended != 0).then_some(ended), owner })
    }
}

/// Forgets that there is a session, but not its will nor its messages and flows.
pub(super) fn remove_session(changes: &mut Changes, client: &DeviceId, incarnation: u64) {
    let prefix = incarnation.to_be_bytes();
    changes.remove(Table::Sessions, client.as_str().as_bytes()).remove_prefix(Table::Subscriptions, &prefix);
}

/// Forgets a session's messages and flows.
pub(super) fn remove_state(changes: &mut Changes, incarnation: u64) {
    let prefix = incarnation.to_be_bytes();
    changes.remove_prefix(Table::Queues, &prefix).remove_prefix(Table::Inflight, &prefix);
}

/// Notes that another session has a message that was left to it.
pub(super) fn put_left(changes: &mut Changes, Left { incarnation, order }: Left) {
    changes.put(Table::Inflight, Key::new(incarnation).left(order).as_slice(), &[]);
}

/// Forgets a message that another session has.
pub(super) fn remove_message(changes: &mut Changes, Left { incarnation, order }: Left) {
    let key = Key::new(incarnation);
    changes
        .remove(Table::Queues, key.message(order).as_slice())
        .remove(Table::Inflight, key.flight(order).as_slice())
        .remove(Table::Inflight, key.left(order).as_slice());
}

/// Notes a will, due at `due` or when the connection ends, or that there is none.
pub(super) fn put_will(changes: &mut Changes, client: &DeviceId, will: Option<(&Will, Option<u64>)>) {
    let key = client.as_str().as_bytes();
    match will {
        None => changes.remove(Table::Wills, key),
        Some((will, due)) => {
            let mut value = due.unwrap_or(0).to_be_bytes().to_vec();
            will.write(&mut value);
            changes.put(Table::Wills, key, &value)
        }
    };
}

pub(super) fn read_will(value: &[u8]) -> Option<(Will, Option<u64>)> {
    let (due, form) = value.split_first_chunk()?;
    let due = u64::from_be_bytes(*due);
    Some((Will::read(form)?, (due != 0).then_some(due)))
}

/// Where a will that is due is kept. No client's name begins as this does, for it is UTF-8.
pub(super) type DueKey = [u8; 17];

const DUE: u8 = 255;

/// The key of a will that became due at `micros` with the session `incarnation`, which has at most one in a microsecond.
pub(super) fn due_key(incarnation: u64, micros: u64) -> DueKey {
    let mut key = [DUE; size_of::<DueKey>()];
    key[1..9].copy_from_slice(&incarnation.to_be_bytes());
    key[9..].copy_from_slice(&micros.to_be_bytes());
    key
}

/// Notes a will that is due, of `device` and its `tenant`.
pub(super) fn put_due(changes: &mut Changes, key: &DueKey, device: &str, tenant: &str, message: &Message) {
    let mut value = Vec::new();
    for name in [device, tenant] {
        value.extend_from_slice(&(name.len() as u16).to_be_bytes());
    }
    value.extend_from_slice(device.as_bytes());
    value.extend_from_slice(tenant.as_bytes());
    message.write(&mut value);
    changes.put(Table::Wills, key, &value);
}

/// It is where it is for.
pub(super) fn remove_due(changes: &mut Changes, key: &DueKey) {
    changes.remove(Table::Wills, key);
}

/// Calls `each` with the wills that are due: key, publisher, tenant and message, or `None` for a row that cannot be read.
pub(super) fn scan_due(
    reader: &Reader,
    mut each: impl FnMut(Option<(DueKey, &str, &str, Message)>) -> bool,
) -> Result<(), ReadError> {
    reader.scan(Table::Wills, &[DUE], |key, value| {
        each((|| {
            let (lengths, rest) = value.split_first_chunk::<4>()?;
            let [device, tenant] = [[lengths[0], lengths[1]], [lengths[2], lengths[3]]].map(u16::from_be_bytes);
            let (device, rest) = rest.split_at_checked(device.into())?;
            let (tenant, form) = rest.split_at_checked(tenant.into())?;
            let [device, tenant] = [device, tenant].map(std::str::from_utf8);
            Some((key.try_into().ok()?, device.ok()?, tenant.ok()?, Message::read(form)?))
        })())
    })
}

/// What is kept of a subscription besides its filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Subscription {
    pub(super) options: SubscribeOptions,
    pub(super) id: u32,
    /// Retained messages are still to be sent for it.
    pub(super) owed: bool,
}

/// Bit of [`Subscription::owed`]; reserved in SUBSCRIBE.
const OWED: u8 = 1 << 6;

pub(super) fn put_subscription(changes: &mut Changes, incarnation: u64, filter: &str, subscription: Subscription) {
    let Subscription { options, id, owed } = subscription;
    let [a, b, c, d] = id.to_be_bytes();
    let options = options.qos as u8
        | u8::from(options.no_local) << 2
        | u8::from(options.retain_as_published) << 3
        | options.retain_handling << 4
        | if owed { OWED } else { 0 };
    changes.put(Table::Subscriptions, &subscription_key(incarnation, filter), &[a, b, c, d, options]);
}

pub(super) fn remove_subscription(changes: &mut Changes, incarnation: u64, filter: &str) {
    changes.remove(Table::Subscriptions, &subscription_key(incarnation, filter));
}

pub(super) fn read_subscription(value: &[u8]) -> Option<Subscription> {
    let &[a, b, c, d, options] = value else { return None };
    let owed = options & OWED != 0;
    let options = SubscribeOptions {
        qos: QoS::from_number(options & 0b11)?,
        no_local: options & 1 << 2 != 0,
        retain_as_published: options & 1 << 3 != 0,
        retain_handling: options >> 4 & 0b11,
    };
    Some(Subscription { options, id: u32::from_be_bytes([a, b, c, d]), owed })
}

fn subscription_key(incarnation: u64, filter: &str) -> Vec<u8> {
    [&incarnation.to_be_bytes()[..], filter.as_bytes()].concat()
}

/// Incarnation and the rest of a key.
pub(super) fn split_key(key: &[u8]) -> Option<(u64, &[u8])> {
    let (incarnation, rest) = key.split_first_chunk()?;
    Some((u64::from_be_bytes(*incarnation), rest))
}

/// A row of `Inflight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// A message sent.
    Sent { order: u64, packet_id: u16, received: bool },
    /// A publish stored and not released.
    Held(u16),
    /// A message that another session has.
    Left(u64),
    /// The number of the last publish that rows tell of.
    Mark(u64),
    /// A publish whose client was not answered, and who has it: incarnation and shared subscription; `None` is the log.
    Unanswered { serial: u64, packet_id: u16, served: Option<(u64, u64)> },
}

pub(super) fn read_flow(rest: &[u8], value: &[u8]) -> Option<Flow> {
    match rest {
        [b'F', order @ ..] => {
            let &[high, low, received] = value else { return None };
            let order = u64::from_be_bytes(order.try_into().ok()?);
            Some(Flow::Sent { order, packet_id: u16::from_be_bytes([high, low]), received: received == 1 })
        }
        &[b'H', high, low] => Some(Flow::Held(u16::from_be_bytes([high, low]))),
        [b'L', order @ ..] => Some(Flow::Left(u64::from_be_bytes(order.try_into().ok()?))),
        b"M" => Some(Flow::Mark(u64::from_be_bytes(value.try_into().ok()?))),
        [b'U', rest @ ..] => {
            let (serial, rest) = rest.split_first_chunk()?;
            let served = match rest.split_first_chunk() {
                None if rest.is_empty() => None,
                None => return None,
                Some((incarnation, group)) => {
                    Some((u64::from_be_bytes(*incarnation), u64::from_be_bytes(group.try_into().ok()?)))
                }
            };
            let packet_id = u16::from_be_bytes(value.try_into().ok()?);
            Some(Flow::Unanswered { serial: u64::from_be_bytes(*serial), packet_id, served })
        }
        _ => None,
    }
}

/// Notes that the session `incarnation` has a publish whose client is not answered yet.
pub(super) fn put_served(rows: &mut Changes, origin: Origin, incarnation: u64, group: u64) {
    let key = Key::new(origin.incarnation).unanswered(origin.serial);
    let key = key.with(&[&incarnation.to_be_bytes(), &group.to_be_bytes()]);
    rows.put(Table::Inflight, key.as_slice(), &origin.packet_id.to_be_bytes());
}

/// Forgets who has a publish: its client is answered, by what is written with this.
pub(super) fn remove_unanswered(rows: &mut Changes, origin: Origin) {
    rows.remove_prefix(Table::Inflight, Key::new(origin.incarnation).unanswered(origin.serial).as_slice());
}

/// Turns the changes of `session` into rows. True if what the changes let the client see must wait until they are durable: else, after a
/// crash, a packet identifier could name one message to the client and another to us.
pub(super) fn write(
    rows: &mut Changes,
    incarnation: u64,
    session: Option<&Session>,
    changes: &mut Vec<Change>,
    scratch: &mut Vec<u8>,
) -> bool {
    let key = Key::new(incarnation);
    let mut gated = false;
    for change in changes.drain(..) {
        match change {
            Change::Added { order } => {
                scratch.clear();
                if session.is_some_and(|session| session.write(order, scratch)) {
                    rows.put(Table::Queues, key.message(order).as_slice(), scratch);
                }
            }
            Change::Sent { order, packet_id, qos } => {
                let [high, low] = packet_id.to_be_bytes();
                rows.put(Table::Inflight, key.flight(order).as_slice(), &[high, low, 0]);
                gated |= qos == QoS::ExactlyOnce;
            }
            Change::Received { order } => {
                if let Some(packet_id) = session.and_then(|session| session.packet_id(order)) {
                    let [high, low] = packet_id.to_be_bytes();
                    rows.put(Table::Inflight, key.flight(order).as_slice(), &[high, low, 1]);
                }
                gated = true;
            }
            Change::Gone { order } => {
                rows.remove(Table::Queues, key.message(order).as_slice());
                rows.remove(Table::Inflight, key.flight(order).as_slice());
            }
            Change::Held { packet_id } => {
                rows.put(Table::Inflight, key.held(packet_id).as_slice(), &[]);
                gated = true;
            }
            Change::Released { packet_id } => {
                rows.remove(Table::Inflight, key.held(packet_id).as_slice());
                gated = true;
            }
        }
    }
    gated
}

/// A key of a session's rows, without an allocation.
#[derive(Clone, Copy)]
struct Key {
    bytes: [u8; 33],
    len: usize,
}

impl Key {
    fn new(incarnation: u64) -> Key {
        let mut bytes = [0; 33];
        bytes[..8].copy_from_slice(&incarnation.to_be_bytes());
        Key { bytes, len: 8 }
    }

    fn with(mut self, parts: &[&[u8]]) -> Key {
        for part in parts {
            self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
            self.len += part.len();
        }
        self
    }

    fn message(self, order: u64) -> Key {
        self.with(&[&order.to_be_bytes()])
    }

    fn flight(self, order: u64) -> Key {
        self.with(&[b"F", &order.to_be_bytes()])
    }

    fn held(self, packet_id: u16) -> Key {
        self.with(&[b"H", &packet_id.to_be_bytes()])
    }

    fn left(self, order: u64) -> Key {
        self.with(&[b"L", &order.to_be_bytes()])
    }

    fn mark(self) -> Key {
        self.with(&[b"M"])
    }

    fn unanswered(self, serial: u64) -> Key {
        self.with(&[b"U", &serial.to_be_bytes()])
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::router::SessionId;

    #[test]
    fn rows_are_read_as_they_were_written() {
        for (ended, owner) in [(None, ""), (Some(1_764_000_000_000), ""), (Some(1_764_000_000_000), "meter-1")] {
            let row = Row { incarnation: u64::MAX - 1, expiry: 77, ended, owner: DeviceId::new(owner).ok() };
            let ended = ended.unwrap_or(0).to_be_bytes();
            let value = [&row.incarnation.to_be_bytes()[..], &77u32.to_be_bytes(), &ended, owner.as_bytes()];
            assert_eq!(Row::read(&value.concat()), Some(row));
        }
        assert_eq!(Row::read(&[0; 19]), None);
        assert_eq!(Row::read(&[&[0; 20][..], b"\xff"].concat()), None);
        let options =
            SubscribeOptions { qos: QoS::ExactlyOnce, no_local: true, retain_as_published: true, retain_handling: 2 };
        for (owed, byte) in [(false, 0b0010_1110), (true, 0b0110_1110)] {
            let subscription = Subscription { options, id: 256, owed };
            assert_eq!(read_subscription(&[0, 0, 1, 0, byte]), Some(subscription));
        }
        assert_eq!(read_subscription(&[0, 0, 1, 0, 3]), None);
    }

    #[test]
    fn keys_lead_back_to_what_they_name() {
        let key = Key::new(5);
        for (key, value, flow) in [
            (key.flight(9), &[1, 2, 1][..], Flow::Sent { order: 9, packet_id: 258, received: true }),
            (key.held(7), &[], Flow::Held(7)),
            (key.left(4), &[], Flow::Left(4)),
            (key.mark(), &3u64.to_be_bytes(), Flow::Mark(3)),
            (key.unanswered(8), &[1, 2], Flow::Unanswered { serial: 8, packet_id: 258, served: None }),
            (
                key.unanswered(8).with(&[&6u64.to_be_bytes(), &7u64.to_be_bytes()]),
                &[1, 2],
                Flow::Unanswered { serial: 8, packet_id: 258, served: Some((6, 7)) },
            ),
        ] {
            let (incarnation, rest) = split_key(key.as_slice()).unwrap();
            assert_eq!((incarnation, read_flow(rest, value)), (5, Some(flow)));
        }
        let mut kept = Kept { serial: 6, ..Kept::restored(4, None) };
        assert_eq!(of_key(key_of(kept.next_origin(65_535))), (7, 65_535));
        assert_eq!(of_key(key_of(kept.next_origin(1))), (8, 1));
    }

    #[test]
    fn an_identifier_that_is_used_again_names_the_later_publish_alone() {
        let mut kept = Kept::restored(4, None);
        let mut rows = Changes::new();
        let served = Served { to: SessionId::new(0, 1, 0), group: 0 };
        kept.begun(&mut rows, kept.origin(7, 1)).served.push(served);
        kept.begun(&mut rows, kept.origin(7, 1)).served.push(served);
        assert!(rows.is_empty(), "as they are");
        assert_eq!(kept.unanswered(1).map(|known| (known.serial, known.served.len())), Some((7, 2)));
        kept.logged(&mut rows, kept.origin(9, 1));
        let known = kept.unanswered(1).cloned().unwrap();
        assert_eq!((known.serial, known.logged, known.served.len()), (9, true, 0));
        assert!(!rows.is_empty());
        assert_eq!((kept.next_origin(2).serial, kept.all_unanswered()), (10, 1));
        // What rows tell of is told by them.
        kept.logged(&mut rows, kept.origin(8, 3));
        assert!(kept.unanswered(3).is_none());
        kept.settle(&mut rows, 1);
        assert_eq!(kept.all_unanswered(), 0);
    }
}
