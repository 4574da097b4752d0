//! What holds for any bytes and any sequence of operations; ordinary tests and fuzz targets share it.
#![allow(dead_code, reason = "a fuzz target uses a part of it")]

use bytes::BytesMut;
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::v5::V5;
use rumqttd::protocol::{Packet, Protocol};
use tidegate_mqtt::client::{self, ConnectOptions, Outgoing};
use tidegate_mqtt::{
    Accept, Connection, Delivered, Delivery, Event, Limits, Message, QoS, Reason, Session, SubscribeOptions, Version,
    frame_len,
};

/// When the clock of these checks begins.
const T0: u64 = 1_764_000_000_000;

/// Bounds that input of a few hundred bytes can reach.
#[must_use]
pub(crate) fn limits() -> Limits {
    Limits {
        max_packet: 4096,
        max_connect: 2048,
        receive_maximum: 8,
        topic_alias_maximum: 4,
        topic_aliases_out: 2,
        max_inflight_out: 3,
        max_queued_messages: 5,
        max_queued_bytes: 4096,
        ..Limits::default()
    }
}

/// A connection of `version` that is open.
#[must_use]
pub(crate) fn open(version: Version, limits: &Limits) -> Connection {
    let mut conn = Connection::new(T0);
    let options = ConnectOptions { client_id: "d", session_expiry: Some(60), ..ConnectOptions::default() };
    let mut bytes = Vec::new();
    client::connect(version, &options, &mut bytes);
    let mut out = Vec::new();
    assert!(matches!(conn.next(limits, &mut &bytes[..], T0, &mut out), Ok(Some(Event::Connect(_)))));
    conn.accept(limits, Accept::default(), T0, &mut out);
    conn
}

/// What became of a stream of bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// A line for each event.
    pub(crate) events: Vec<String>,
    /// What was written.
    pub(crate) out: Vec<u8>,
    /// The violation that ended it.
    pub(crate) violation: Option<&'static str>,
    /// Bytes left unread.
    pub(crate) left: usize,
}

/// Feeds `stream`, cut at `cut`, to `conn` and does at once all that a driver does.
pub(crate) fn drive(mut conn: Connection, limits: &Limits, stream: &[u8], cut: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let (head, tail) = stream.split_at(cut.min(stream.len()));
    let mut kept: Vec<u8> = Vec::new();
    'pieces: for piece in [head, tail] {
        kept.extend_from_slice(piece);
        let chunk = std::mem::take(&mut kept);
        let mut input = &chunk[..];
        loop {
            let out = &mut outcome.out;
            match conn.next(limits, &mut input, T0, out) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    outcome.events.push(format!("{event:?}"));
                    answer(&mut conn, limits, event, out);
                }
                Err(violation) => {
                    outcome.violation = Some(violation.name());
                    outcome.left = input.len() + if std::ptr::eq(piece, head) { tail.len() } else { 0 };
                    assert!(conn.is_closed());
                    assert!(matches!(conn.next(limits, &mut input, T0, out), Ok(None)), "it is read no further");
                    break 'pieces;
                }
            }
        }
        kept = input.to_vec();
        outcome.left = kept.len();
        // What waits is less than a packet, unless the connection is over.
        assert!(conn.is_closed() || kept.len() <= limits.max_packet as usize, "{} bytes wait", kept.len());
    }
    assert!(conn.session().is_none_or(|s| s.in_flight() == 0));
    outcome
}

fn answer(conn: &mut Connection, limits: &Limits, event: Event<'_>, out: &mut Vec<u8>) {
    match event {
        Event::Connect(_) => conn.accept(limits, Accept::default(), T0, out),
        Event::Publish(publish) => {
            let message = Message::from_publish(&publish, T0);
            assert_eq!((message.topic(), message.payload()), (&*publish.topic, publish.payload));
            assert!(tidegate_mqtt::topic::is_valid_name(&publish.topic));
            conn.stored(publish.packet_id, publish.qos, Reason::Success, out);
        }
        Event::Subscribe(subscribe) => {
            let reasons = subscribe.filters().map(|(_, options)| Reason::granted(options.qos));
            conn.suback(subscribe.packet_id, reasons, out);
        }
        Event::Unsubscribe(unsubscribe) => {
            conn.unsuback(unsubscribe.packet_id, unsubscribe.filters().map(|_| Reason::Success), out);
        }
        Event::Release { packet_id } => conn.completed(packet_id, out),
        Event::Received { packet_id } => conn.release(packet_id, out),
        _ => {}
    }
}

/// Any bytes on an open connection: no panic, the same in one piece and in two, a clean farewell, and no packet accepted
/// that the codec does not accept as well.
pub(crate) fn stream(version: Version, bytes: &[u8]) {
    let limits = limits();
    let whole = drive(open(version, &limits), &limits, bytes, bytes.len());
    let cut = bytes.first().map_or(0, |&b| usize::from(b) % (bytes.len() + 1));
    let pieces = drive(open(version, &limits), &limits, bytes, cut);
    assert_eq!(whole.events, pieces.events);
    assert_eq!(whole.out, pieces.out);
    assert_eq!(whole.violation, pieces.violation);
    well_formed(version, &whole.out, whole.violation.is_some());
    let read = bytes.len() - whole.left;
    let mut accepted = &bytes[..read];
    // A packet that broke a rule may have been taken off the input.
    while let Some(len) = frame_len(accepted).filter(|&len| len <= accepted.len()) {
        let (packet, rest) = accepted.split_at(len);
        accepted = rest;
        if accepted.is_empty() && whole.violation.is_some() {
            break;
        }
        agrees(version, packet);
    }
}

/// Any bytes as the first of a connection.
pub(crate) fn first_packets(bytes: &[u8]) {
    let limits = limits();
    let whole = drive(Connection::new(T0), &limits, bytes, bytes.len());
    let cut = bytes.last().map_or(0, |&b| usize::from(b) % (bytes.len() + 1));
    let pieces = drive(Connection::new(T0), &limits, bytes, cut);
    assert_eq!((whole.events, whole.out, whole.violation), (pieces.events, pieces.out, pieces.violation));
}

/// What was written can be read, and the farewell is the version's.
fn well_formed(version: Version, out: &[u8], violated: bool) {
    let mut input = out;
    let mut last_is_disconnect = false;
    while let Some(packet) = client::scan(version, &mut input).expect("what a server writes is well-formed") {
        last_is_disconnect = matches!(packet, client::FromServer::Disconnect { code } if code >= 0x80);
    }
    assert!(input.is_empty(), "half a packet");
    assert_eq!(last_is_disconnect, violated && version == Version::V5);
}

/// The codec reads a packet that was accepted, but for what it is known not to.
fn agrees(version: Version, packet: &[u8]) {
    let mut buffer = BytesMut::from(packet);
    let read = match version {
        Version::V4 => V4.read_mut(&mut buffer, packet.len()),
        Version::V5 => V5.read_mut(&mut buffer, packet.len()),
    };
    let body = packet.len() - packet.iter().skip(1).position(|b| b & 0x80 == 0).unwrap() - 2;
    let kind = packet[0] >> 4;
    match read {
        Ok(Packet::Publish(publish, properties)) => {
            let mut rewritten = BytesMut::new();
            // Its own bytes come out again: topic, identifier, flags and payload were read alike.
            let has_properties = properties.is_some();
            match version {
                Version::V4 => V4.write(Packet::Publish(publish, None), &mut rewritten).unwrap(),
                Version::V5 => V5.write(Packet::Publish(publish, properties), &mut rewritten).unwrap(),
            };
            if !has_properties && minimal(packet) {
                assert_eq!(&rewritten[..], packet);
            }
        }
        Ok(_) => {}
        Err(error) => {
            // It wants a property length after the reason code, where §3.4.2.2.1, §3.14.2.2.1 let it be left out.
            let short = version == Version::V5 && (matches!(kind, 4..=7) && body == 3 || kind == 14 && body == 1);
            // It counts the bytes of a subscription identifier wrongly.
            let identified = version == Version::V5 && kind == 8;
            assert!(short || identified, "{version:?} {error}: {packet:02x?}");
        }
    }
}

/// Whether the remaining length takes no more bytes than it needs.
fn minimal(packet: &[u8]) -> bool {
    let last = packet.iter().skip(1).position(|b| b & 0x80 == 0).unwrap();
    last == 0 || packet[1 + last] != 0
}

/// Bytes as operations on a client's session over several connections; the rules of flow control and of identifiers hold
/// after each.
pub(crate) fn operations(bytes: &[u8]) {
    let limits = limits();
    let mut input = bytes.iter().copied();
    let mut version = Version::V5;
    let mut conn = open(version, &limits);
    let mut model = Model::default();
    let mut out = Vec::new();
    while let Some(operation) = input.next() {
        let argument = input.next().unwrap_or(0);
        match operation % 12 {
            // A message for the client.
            0..=2 => {
                let qos = QoS::from_number(argument % 3).unwrap_or_default();
                let message = Message::new("t", &[argument; 40], qos, false);
                let ids = [u32::from(argument) + 1];
                let delivery =
                    Delivery { qos: QoS::ExactlyOnce, ids: &ids[..usize::from(argument & 1)], ..Delivery::default() };
                let delivered = conn.deliver(&limits, &message, delivery, T0, &mut out);
                assert!(conn.is_open() || matches!(delivered, Delivered::Dropped(_)));
            }
            // The client acknowledges something in flight, or something else.
            3..=5 => {
                let (id, received) = match model.in_flight.get(usize::from(argument) % 4) {
                    Some(&(id, received)) => (id, received),
                    None => (u16::from(argument), false),
                };
                if id == 0 {
                    continue;
                }
                let first = match (operation % 3, received) {
                    (0, _) => 0x40,
                    (1, false) => 0x50,
                    _ => 0x70,
                };
                let [high, low] = id.to_be_bytes();
                model.stray = (first == 0x50 && model.in_flight.iter().all(|e| e.0 != id)).then_some(id);
                feed(&mut conn, &limits, &[first, 2, high, low], &mut model, &mut out);
            }
            // The client publishes, or releases.
            6 | 7 => {
                let qos = QoS::from_number(argument % 3).unwrap_or_default();
                let packet_id = if qos == QoS::AtMostOnce { 0 } else { u16::from(argument >> 2) + 1 };
                let mut packet = Vec::new();
                client::publish(version, &Outgoing { topic: "u", qos, packet_id, ..Outgoing::default() }, &mut packet);
                feed(&mut conn, &limits, &packet, &mut model, &mut out);
            }
            8 => feed(&mut conn, &limits, &[0x62, 2, 0, (argument >> 2) + 1], &mut model, &mut out),
            // A publish becomes durable, or is refused.
            9 => {
                if !model.pending.is_empty() {
                    let (id, qos) = model.pending.remove(0);
                    let reason = if argument & 1 == 0 { Reason::Success } else { Reason::QuotaExceeded };
                    conn.stored(id, qos, reason, &mut out);
                }
            }
            10 => {
                let mut packet = Vec::new();
                client::subscribe(version, 1, &[("a/#", SubscribeOptions::default())], &mut packet);
                feed(&mut conn, &limits, &packet, &mut model, &mut out);
            }
            // The connection ends, and the client comes back in either version.
            _ => {
                let mut session = conn.end().session;
                for (id, qos) in model.pending.drain(..) {
                    if qos == QoS::ExactlyOnce
                        && let Some(session) = &mut session
                    {
                        session.stored(id);
                    }
                }
                assert_eq!(session.as_ref().map_or(0, |s| s.unstored()), 0);
                model.see(version, &out);
                out.clear();
                model.in_flight.clear();
                version = if argument & 1 == 0 { Version::V4 } else { Version::V5 };
                conn = resume(version, &limits, session, &mut out);
                model.resumed = true;
            }
        }
        model.see(version, &out);
        out.clear();
        model.check(&conn, &limits);
    }
}

fn resume(version: Version, limits: &Limits, session: Option<Box<Session>>, out: &mut Vec<u8>) -> Connection {
    let mut conn = Connection::new(T0);
    let options = ConnectOptions {
        client_id: "d",
        session_expiry: Some(60),
        receive_maximum: Some(2),
        topic_alias_maximum: Some(1),
        ..ConnectOptions::default()
    };
    let mut bytes = Vec::new();
    client::connect(version, &options, &mut bytes);
    assert!(matches!(conn.next(limits, &mut &bytes[..], T0, out), Ok(Some(Event::Connect(_)))));
    conn.accept(limits, Accept { session_present: session.is_some(), session, ..Accept::default() }, T0, out);
    conn
}

/// What the client of [`operations`] knows.
#[derive(Default)]
struct Model {
    /// Identifiers that the server uses, and whether the PUBREC was sent.
    in_flight: Vec<(u16, bool)>,
    /// Publishes that wait to be stored.
    pending: Vec<(u16, QoS)>,
    /// The connection resumed a session, which may hold what was not sent again yet.
    resumed: bool,
    /// The PUBREC under way is of an identifier that the client was not sent.
    stray: Option<u16>,
}

fn feed(conn: &mut Connection, limits: &Limits, packet: &[u8], model: &mut Model, out: &mut Vec<u8>) {
    let mut input = packet;
    while let Ok(Some(event)) = conn.next(limits, &mut input, T0, out) {
        match event {
            Event::Publish(publish) if publish.qos != QoS::AtMostOnce => {
                model.pending.push((publish.packet_id, publish.qos));
            }
            Event::Acknowledged { packet_id, .. } => {
                let before = model.in_flight.len();
                model.in_flight.retain(|(id, _)| *id != packet_id);
                let known = before == model.in_flight.len() + 1;
                assert!(known || model.resumed, "an acknowledgement of {packet_id}, which was not in flight");
            }
            Event::Received { packet_id } => {
                for entry in model.in_flight.iter_mut().filter(|e| e.0 == packet_id) {
                    entry.1 = true;
                }
                conn.release(packet_id, out);
            }
            other => answer(conn, limits, other, out),
        }
        // The acknowledgement freed its identifier before the next message took one.
        model.see(conn.version(), out);
        out.clear();
    }
}

impl Model {
    /// Reads what the server sent.
    fn see(&mut self, version: Version, out: &[u8]) {
        let mut input = out;
        while let Some(packet) = client::scan(version, &mut input).expect("what a server writes is well-formed") {
            match packet {
                client::FromServer::Publish { qos, packet_id, .. } if qos != QoS::AtMostOnce => {
                    assert!(packet_id != 0);
                    assert!(self.in_flight.iter().all(|(id, _)| *id != packet_id), "{packet_id} is in use");
                    self.in_flight.push((packet_id, false));
                }
                client::FromServer::PubRel { packet_id, .. } => {
                    match self.in_flight.iter_mut().find(|e| e.0 == packet_id) {
                        Some(entry) => entry.1 = true,
                        // After a resume the release alone comes again.
                        None if self.stray != Some(packet_id) => self.in_flight.push((packet_id, true)),
                        None => {}
                    }
                }
                _ => {}
            }
        }
        assert!(input.is_empty(), "half a packet");
    }

    fn check(&self, conn: &Connection, limits: &Limits) {
        let Some(session) = conn.session() else { return };
        assert!(session.in_flight() <= usize::from(limits.max_inflight_out));
        assert!(session.queued() <= limits.max_queued_messages as usize);
        assert!(session.queued_bytes() <= limits.max_queued_bytes as usize);
    }
}
