//! Packets assembled byte by byte, and a connection to feed them to.

use tidegate_mqtt::client::{self, ConnectOptions, FromServer, Outgoing};
use tidegate_mqtt::{
    Accept, Connection, Delivered, Delivery, Event, Limits, Message, QoS, Reason, Session, SubscribeOptions, Version,
    Violation,
};

pub(crate) const BOTH: [Version; 2] = [Version::V4, Version::V5];

/// When tests begin.
pub(crate) const T0: u64 = 1_764_000_000_000;

/// A packet of a first byte and a body.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut len = body.len();
    loop {
        let byte = (len & 0x7f) as u8;
        len >>= 7;
        out.push(if len > 0 { byte | 0x80 } else { byte });
        if len == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

/// A string or binary field.
pub(crate) fn field(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// Properties with their length, which is below 128.
pub(crate) fn props(raw: &[u8]) -> Vec<u8> {
    assert!(raw.len() < 128);
    [&[raw.len() as u8], raw].concat()
}

/// The variable header of a CONNECT and what follows it.
pub(crate) fn connect_raw(level: u8, flags: u8, keep_alive: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = field("MQTT");
    body.extend([level, flags]);
    body.extend(keep_alive.to_be_bytes());
    if level == 5 {
        body.extend(props(properties));
    }
    body.extend(payload);
    packet(0x10, &body)
}

pub(crate) fn connect(version: Version, id: &str, clean_start: bool) -> Vec<u8> {
    let options = ConnectOptions { client_id: id, clean_start, ..ConnectOptions::default() };
    let mut out = Vec::new();
    client::connect(version, &options, &mut out);
    out
}

pub(crate) fn publish(version: Version, topic: &str, qos: QoS, packet_id: u16) -> Vec<u8> {
    let mut out = Vec::new();
    client::publish(version, &Outgoing { topic, payload: b"x", qos, packet_id, ..Outgoing::default() }, &mut out);
    out
}

/// A PUBLISH of QoS 0 with properties, 5.0.
pub(crate) fn publish_with(properties: &[u8], topic: &str) -> Vec<u8> {
    packet(0x30, &[field(topic), props(properties), b"x".to_vec()].concat())
}

pub(crate) fn ack(first: u8, packet_id: u16) -> Vec<u8> {
    packet(first, &packet_id.to_be_bytes())
}

pub(crate) fn subscribe(version: Version, packet_id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for (filter, options) in filters {
        body.extend(field(filter));
        body.push(*options);
    }
    packet(0x82, &body)
}

/// An event without its borrows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Got {
    Connect { id: String },
    Publish { topic: String, payload: Vec<u8>, qos: QoS, retain: bool, packet_id: u16 },
    Subscribe { packet_id: u16, id: u32, filters: Vec<(String, SubscribeOptions)> },
    Unsubscribe { packet_id: u16, filters: Vec<String> },
    Release(u16),
    Received(u16),
    Acknowledged(u16, Reason),
    Disconnect(Reason),
}

impl From<Event<'_>> for Got {
    fn from(event: Event<'_>) -> Got {
        match event {
            Event::Connect(c) => Got::Connect { id: c.client_id.to_owned() },
            Event::Publish(p) => Got::Publish {
                topic: p.topic.to_string(),
                payload: p.payload.to_vec(),
                qos: p.qos,
                retain: p.retain,
                packet_id: p.packet_id,
            },
            Event::Subscribe(s) => Got::Subscribe {
                packet_id: s.packet_id,
                id: s.id,
                filters: s.filters().map(|(f, o)| (f.text().to_owned(), o)).collect(),
            },
            Event::Unsubscribe(u) => {
                Got::Unsubscribe { packet_id: u.packet_id, filters: u.filters().map(|f| f.text().to_owned()).collect() }
            }
            Event::Release { packet_id } => Got::Release(packet_id),
            Event::Received { packet_id } => Got::Received(packet_id),
            Event::Acknowledged { packet_id, reason } => Got::Acknowledged(packet_id, reason),
            Event::Disconnect { reason } => Got::Disconnect(reason),
            other => panic!("an event that this suite does not know: {other:?}"),
        }
    }
}

/// A connection, its driver's buffers, and a clock.
pub(crate) struct Peer {
    pub(crate) limits: Limits,
    pub(crate) conn: Connection,
    pub(crate) now: u64,
    pub(crate) out: Vec<u8>,
    /// What the connection left unread.
    pub(crate) tail: Vec<u8>,
}

impl Peer {
    pub(crate) fn fresh() -> Peer {
        Peer::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Peer {
        Peer { limits, conn: Connection::new(T0), now: T0, out: Vec::new(), tail: Vec::new() }
    }

    /// A connection accepted.
    pub(crate) fn open(version: Version) -> Peer {
        Peer::open_with(version, Limits::default())
    }

    pub(crate) fn open_with(version: Version, limits: Limits) -> Peer {
        Peer::open_as(limits, &connect(version, "meter-1", true), None)
    }

    pub(crate) fn open_as(limits: Limits, connect: &[u8], session: Option<Box<Session>>) -> Peer {
        let mut peer = Peer::with(limits);
        let got = peer.feed(connect).unwrap();
        assert!(matches!(got[..], [Got::Connect { .. }]), "{got:?}");
        peer.accept(Accept { session_present: session.is_some(), session, ..Accept::default() });
        peer
    }

    pub(crate) fn accept(&mut self, accept: Accept<'_>) {
        self.conn.accept(&self.limits, accept, self.now, &mut self.out);
    }

    /// Gives the connection bytes; returns the events until it wants more.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Got>, Violation> {
        self.tail.extend_from_slice(bytes);
        let chunk = std::mem::take(&mut self.tail);
        let mut input = &chunk[..];
        let mut got = Vec::new();
        let result = loop {
            match self.conn.next(&self.limits, &mut input, self.now, &mut self.out) {
                Ok(Some(event)) => got.push(event.into()),
                Ok(None) => break Ok(got),
                Err(violation) => break Err(violation),
            }
        };
        self.tail = input.to_vec();
        result
    }

    /// What was written since it was last asked.
    pub(crate) fn sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// The same, read as packets.
    pub(crate) fn packets(&mut self) -> Vec<Sent> {
        let bytes = self.sent();
        read(self.conn.version(), &bytes)
    }

    pub(crate) fn deliver(&mut self, message: &Message, qos: QoS) -> Delivered {
        self.deliver_with(message, Delivery { qos, ..Delivery::default() })
    }

    pub(crate) fn deliver_with(&mut self, message: &Message, delivery: Delivery<'_>) -> Delivered {
        self.conn.deliver(&self.limits, message, delivery, self.now, &mut self.out)
    }
}

/// A packet of a server without its borrows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    ConnAck { session_present: bool, code: u8, properties: String },
    Publish { topic: String, payload: Vec<u8>, qos: QoS, retain: bool, dup: bool, packet_id: u16, properties: String },
    PubAck(u16, u8),
    PubRec(u16, u8),
    PubRel(u16),
    PubComp(u16, u8),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    Disconnect(u8),
}

pub(crate) fn read(version: Version, bytes: &[u8]) -> Vec<Sent> {
    let mut input = bytes;
    let mut sent = Vec::new();
    while let Some(packet) = client::scan(version, &mut input).unwrap() {
        sent.push(match packet {
            FromServer::ConnAck { session_present, code, properties } => {
                Sent::ConnAck { session_present, code, properties: format!("{properties:?}") }
            }
            FromServer::Publish { topic, payload, qos, retain, dup, packet_id, properties } => Sent::Publish {
                topic: topic.to_owned(),
                payload: payload.to_vec(),
                qos,
                retain,
                dup,
                packet_id,
                properties: format!("{properties:?}"),
            },
            FromServer::PubAck { packet_id, code } => Sent::PubAck(packet_id, code),
            FromServer::PubRec { packet_id, code } => Sent::PubRec(packet_id, code),
            FromServer::PubRel { packet_id, .. } => Sent::PubRel(packet_id),
            FromServer::PubComp { packet_id, code } => Sent::PubComp(packet_id, code),
            FromServer::SubAck { packet_id, codes } => Sent::SubAck(packet_id, codes.to_vec()),
            FromServer::UnsubAck { packet_id, codes } => Sent::UnsubAck(packet_id, codes.to_vec()),
            FromServer::PingResp => Sent::PingResp,
            FromServer::Disconnect { code } => Sent::Disconnect(code),
            other => panic!("a packet that this suite does not know: {other:?}"),
        });
    }
    assert!(input.is_empty(), "half a packet was sent: {input:?}");
    sent
}

/// A PUBLISH as [`Sent`], payload `x`, without properties.
pub(crate) fn sent_publish(topic: &str, qos: QoS, dup: bool, packet_id: u16) -> Sent {
    Sent::Publish {
        topic: topic.to_owned(),
        payload: b"x".to_vec(),
        qos,
        retain: false,
        dup,
        packet_id,
        properties: "[]".to_owned(),
    }
}

pub(crate) fn message(topic: &str, qos: QoS) -> Message {
    Message::new(topic, b"x", qos, false)
}

/// The first message that a connection offers.
pub(crate) fn message_of(peer: &mut Peer, packet: &[u8]) -> Message {
    let mut input = packet;
    match peer.conn.next(&peer.limits, &mut input, peer.now, &mut peer.out) {
        Ok(Some(Event::Publish(publish))) => Message::from_publish(&publish, peer.now),
        other => panic!("{other:?}"),
    }
}

/// Numbers for tests that vary: the seed is printed, and taken from `TIDEGATE_SEED` if that is set.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn seeded() -> Random {
        let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            use std::hash::{BuildHasher, RandomState};
            RandomState::new().hash_one(0)
        });
        println!("TIDEGATE_SEED={seed}");
        Random(seed)
    }

    /// SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
