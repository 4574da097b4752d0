//! A message on its way to subscribers: encoded once, shared by all of them.
//!
//! # Format
//!
//! One allocation, which all who have the message share, holds what every PUBLISH of it has in common, as it stands on the wire:
//!
//! ```text
//! topic length, topic | properties without alias, expiry and subscription identifiers | payload
//! ```
//!
//! A PUBLISH differs per subscriber only in front of and between those three: flags, packet identifier, remaining expiry,
//! subscription identifiers, alias. So one form serves both versions, and a fan-out copies bytes but encodes nothing.

use triomphe::ThinArc;

use crate::encode;
use crate::packet::{Publish, QoS, Version, WillRef};
use crate::property::{Allowed, Properties, Property, id};
use crate::topic;
use crate::wire::put_binary;

/// Milliseconds in a second.
const SECOND: u64 = 1000;

/// Bytes before a message's own in its written form.
const WRITTEN_HEAD: usize = 17;
const RETAIN: u8 = 1 << 2;
const EXPIRES: u8 = 1 << 3;

/// A message as it was published. The queues of its subscribers and the retained store share it: a clone is one more reference.
#[derive(Clone, PartialEq, Eq)]
pub struct Message(ThinArc<Head, u8>);

/// What a message has besides its bytes, which are in the module's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    /// When it expires, in milliseconds of the driver's clock.
    expires: Option<u64>,
    /// Where the properties start; `2 + topic length`.
    properties_at: u32,
    /// Where the payload starts.
    payload_at: u32,
    qos: QoS,
    retain: bool,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message")
            .field("topic", &self.topic())
            .field("qos", &self.qos())
            .field("retain", &self.retain())
            .field("payload_len", &self.payload().len())
            .finish_non_exhaustive()
    }
}

impl Message {
    /// A message without properties, from elsewhere than an MQTT client. `topic` is a valid name ([`crate::topic`]).
    #[must_use]
    pub fn new(topic: &str, payload: &[u8], qos: QoS, retain: bool) -> Message {
        Self::build(topic, Properties::default(), "", payload, qos, retain, None)
    }

    /// The same with a content type, as CoAP's Content-Format tells it.
    #[must_use]
    pub fn with_content_type(topic: &str, content_type: &str, payload: &[u8], qos: QoS, retain: bool) -> Message {
        Self::build(topic, Properties::default(), content_type, payload, qos, retain, None)
    }

    /// The message that a client published, received at `now`. What is forwarded is kept as it came, user properties in
    /// their order ([MQTT-3.3.2-17], [MQTT-3.3.2-18]).
    #[must_use]
    pub fn from_publish(publish: &Publish<'_>, now: u64) -> Message {
        Self::build(
            &publish.topic,
            publish.properties,
            "",
            publish.payload,
            publish.qos,
            publish.retain,
            publish.expiry.map(|s| now + u64::from(s) * SECOND),
        )
    }

    /// A will's message, not yet published: its expiry starts with [`Will::publish`].
    fn from_will(will: &WillRef<'_>) -> Message {
        Self::build(will.topic, will.properties, "", will.payload, will.qos, will.retain, None)
    }

    fn build(
        topic: &str,
        properties: Properties<'_>,
        content_type: &str,
        payload: &[u8],
        qos: QoS,
        retain: bool,
        expires: Option<u64>,
    ) -> Message {
        let mut bytes = Vec::with_capacity(2 + topic.len() + content_type.len() + 3 + payload.len());
        put_binary(&mut bytes, topic.as_bytes());
        let properties_at = bytes.len() as u32;
        if !content_type.is_empty() {
            bytes.push(id::CONTENT_TYPE);
            put_binary(&mut bytes, content_type.as_bytes());
        }
        for (property, span) in properties.spans() {
            if !matches!(property, Property::TopicAlias(_) | Property::MessageExpiry(_) | Property::WillDelay(_)) {
                bytes.extend_from_slice(span);
            }
        }
        let payload_at = bytes.len() as u32;
        bytes.extend_from_slice(payload);
        let head = Head { expires, properties_at, payload_at, qos, retain };
        Message(ThinArc::from_header_and_slice(head, &bytes))
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn bytes(&self) -> &[u8] {
        &self.0.slice
    }

    /// Where it was published.
    #[must_use]
    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.topic_field()[2..]).unwrap_or_default()
    }

    /// What was published.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes()[self.head().payload_at as usize..]
    }

    /// The content type that it was published with; empty if with none.
    #[must_use]
    pub fn content_type(&self) -> &str {
        Properties::check(self.properties(), Allowed::PUBLISH)
            .ok()
            .and_then(|properties| {
                properties.iter().find_map(|p| if let Property::ContentType(text) = p { Some(text) } else { None })
            })
            .unwrap_or_default()
    }

    /// With which QoS it was published.
    #[must_use]
    pub fn qos(&self) -> QoS {
        self.head().qos
    }

    /// Whether it was published to be retained.
    #[must_use]
    pub fn retain(&self) -> bool {
        self.head().retain
    }

    /// When it expires, in milliseconds of the driver's clock.
    #[must_use]
    pub fn expires(&self) -> Option<u64> {
        self.head().expires
    }

    /// Whether it has expired at `now`.
    #[must_use]
    pub fn is_expired(&self, now: u64) -> bool {
        self.expires().is_some_and(|at| at <= now)
    }

    /// Bytes that it occupies, for the bounds of queues and stores.
    #[must_use]
    pub fn size(&self) -> usize {
        // Behind a count and a length.
        2 * size_of::<usize>() + size_of::<Head>() + self.bytes().len()
    }

    /// Appends the form in which it is kept across restarts: one byte of flags (bits 0–1 QoS, bit 2 retain, bit 3 that it expires),
    /// 8 bytes when it expires, 4 bytes each where properties and payload start, then its bytes; integers are big-endian.
    pub fn write(&self, out: &mut Vec<u8>) {
        let head = self.head();
        out.reserve(WRITTEN_HEAD + self.bytes().len());
        let retain = if head.retain { RETAIN } else { 0 };
        let expires = if head.expires.is_some() { EXPIRES } else { 0 };
        out.push(head.qos as u8 | retain | expires);
        out.extend_from_slice(&head.expires.unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&head.properties_at.to_be_bytes());
        out.extend_from_slice(&head.payload_at.to_be_bytes());
        out.extend_from_slice(self.bytes());
    }

    /// The message that was written as `form`; `None` if none was.
    #[must_use]
    pub fn read(form: &[u8]) -> Option<Message> {
        let (head, bytes) = form.split_first_chunk::<WRITTEN_HEAD>()?;
        let u32_at = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let expires = u64::from_be_bytes(std::array::from_fn(|i| head[1 + i]));
        let (flags, properties_at, payload_at) = (head[0], u32_at(9), u32_at(13));
        let topic = bytes.get(2..properties_at as usize)?;
        let topic_len = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
        let properties = bytes.get(properties_at as usize..payload_at as usize)?;
        let known = flags & !(0b11 | RETAIN | EXPIRES) == 0;
        let expires = (flags & EXPIRES != 0).then_some(expires);
        if !known || topic.len() != topic_len || !topic::is_valid_name(std::str::from_utf8(topic).ok()?) {
            return None;
        }
        Properties::check(properties, Allowed::PUBLISH).ok()?;
        let qos = QoS::from_number(flags & 0b11)?;
        let head = Head { expires, properties_at, payload_at, qos, retain: flags & RETAIN != 0 };
        Some(Message(ThinArc::from_header_and_slice(head, bytes)))
    }

    pub(crate) fn topic_field(&self) -> &[u8] {
        &self.bytes()[..self.head().properties_at as usize]
    }

    pub(crate) fn properties(&self) -> &[u8] {
        &self.bytes()[self.head().properties_at as usize..self.head().payload_at as usize]
    }

    /// Appends its PUBLISH for one subscriber.
    pub(crate) fn encode(&self, version: Version, head: encode::Head<'_>, now: u64, out: &mut Vec<u8>) {
        encode::publish(self, version, head, now, out);
    }
}

/// The will of a connection, kept until the connection ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    message: Message,
    /// Seconds to wait after the connection ended.
    pub delay: u32,
    expiry: Option<u32>,
}

impl Will {
    pub(crate) fn new(will: &WillRef<'_>) -> Will {
        Will { message: Message::from_will(will), delay: will.delay, expiry: will.expiry }
    }

    /// Where it is to be published.
    #[must_use]
    pub fn topic(&self) -> &str {
        self.message.topic()
    }

    /// Appends the form in which it is kept across restarts: its delay (4 bytes), its expiry (4 bytes, `u32::MAX` for none), and its message
    /// ([`Message::write`]); integers are big-endian.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.delay.to_be_bytes());
        out.extend_from_slice(&self.expiry.unwrap_or(u32::MAX).to_be_bytes());
        self.message.write(out);
    }

    /// The will that was written as `form`; `None` if none was.
    #[must_use]
    pub fn read(form: &[u8]) -> Option<Will> {
        let (delay, rest) = form.split_first_chunk()?;
        let (expiry, rest) = rest.split_first_chunk()?;
        let expiry = u32::from_be_bytes(*expiry);
        Some(Will {
            message: Message::read(rest)?,
            delay: u32::from_be_bytes(*delay),
            expiry: (expiry != u32::MAX).then_some(expiry),
        })
    }

    /// The message to publish at `now`: once [`delay`](Self::delay) seconds have passed since the end of the connection, or
    /// the session ended, whichever comes first, and the client has not come back (5.0 §3.1.3.2.2).
    #[must_use]
    pub fn publish(self, now: u64) -> Message {
        let expires = self.expiry.map(|s| now + u64::from(s) * SECOND);
        let head = Head { expires, ..*self.message.head() };
        Message(ThinArc::from_header_and_slice(head, self.message.bytes()))
    }
}
