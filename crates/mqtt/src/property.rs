//! Properties (MQTT 5.0 §2.2.2), read in place.

use crate::packet::Password;
use crate::topic;
use crate::violation::Violation;
use crate::wire::Reader;

/// Identifiers of §2.2.2.2.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTH_METHOD: u8 = 0x15;
    pub(crate) const AUTH_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFO: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFO: u8 = 0x19;
    pub(crate) const RESPONSE_INFO: u8 = 0x1A;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDS_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2A;
}

/// The properties that a packet may have, as a set of identifiers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed(u64);

impl Allowed {
    const fn of(ids: &[u8]) -> Allowed {
        let mut set = 0;
        let mut i = 0;
        while i < ids.len() {
            set |= 1 << ids[i];
            i += 1;
        }
        Allowed(set)
    }

    pub(crate) const CONNECT: Allowed = Allowed::of(&[
        id::SESSION_EXPIRY,
        id::RECEIVE_MAXIMUM,
        id::MAXIMUM_PACKET_SIZE,
        id::TOPIC_ALIAS_MAXIMUM,
        id::REQUEST_RESPONSE_INFO,
        id::REQUEST_PROBLEM_INFO,
        id::USER_PROPERTY,
        id::AUTH_METHOD,
        id::AUTH_DATA,
    ]);
    pub(crate) const WILL: Allowed = Allowed::of(&[
        id::WILL_DELAY,
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::USER_PROPERTY,
    ]);
    /// From a client: without a subscription identifier ([MQTT-3.3.4-6]).
    pub(crate) const PUBLISH: Allowed = Allowed::of(&[
        id::PAYLOAD_FORMAT,
        id::MESSAGE_EXPIRY,
        id::CONTENT_TYPE,
        id::RESPONSE_TOPIC,
        id::CORRELATION_DATA,
        id::TOPIC_ALIAS,
        id::USER_PROPERTY,
    ]);
    pub(crate) const ACK: Allowed = Allowed::of(&[id::REASON_STRING, id::USER_PROPERTY]);
    pub(crate) const SUBSCRIBE: Allowed = Allowed::of(&[id::SUBSCRIPTION_ID, id::USER_PROPERTY]);
    pub(crate) const UNSUBSCRIBE: Allowed = Allowed::of(&[id::USER_PROPERTY]);
    /// From a client: without a server reference.
    pub(crate) const DISCONNECT: Allowed = Allowed::of(&[id::SESSION_EXPIRY, id::REASON_STRING, id::USER_PROPERTY]);
    /// From a server, for the client's side.
    pub(crate) const FROM_SERVER: Allowed = Allowed(u64::MAX);
}

/// One property with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as in §2.2.2.2")]
pub enum Property<'a> {
    PayloadFormat(u8),
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(u32),
    SessionExpiry(u32),
    AssignedClientId(&'a str),
    ServerKeepAlive(u16),
    AuthMethod(&'a str),
    AuthData(Password<'a>),
    RequestProblemInfo(bool),
    WillDelay(u32),
    RequestResponseInfo(bool),
    ResponseInfo(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(u8),
    RetainAvailable(bool),
    UserProperty(&'a str, &'a str),
    MaximumPacketSize(u32),
    WildcardAvailable(bool),
    SubscriptionIdsAvailable(bool),
    SharedAvailable(bool),
}

/// The properties of one packet, checked, as they stood on the wire (without their length).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Properties<'a> {
    raw: &'a [u8],
}

impl std::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

fn flag(r: &mut Reader<'_>) -> Result<bool, Violation> {
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Violation::PropertyValue),
    }
}

fn above_zero<T: Default + PartialEq>(value: T) -> Result<T, Violation> {
    if value == T::default() { Err(Violation::PropertyValue) } else { Ok(value) }
}

/// Reads one property with its identifier, checking what its value alone can break.
fn read<'a>(r: &mut Reader<'a>) -> Result<(u8, Property<'a>), Violation> {
    // Identifiers are variable byte integers, and all that exist take one byte.
    let id = r.u8()?;
    let property = match id {
        id::PAYLOAD_FORMAT => match r.u8()? {
            v @ (0 | 1) => Property::PayloadFormat(v),
            _ => return Err(Violation::PropertyValue),
        },
        id::MESSAGE_EXPIRY => Property::MessageExpiry(r.u32()?),
        id::CONTENT_TYPE => Property::ContentType(r.text()?),
        id::RESPONSE_TOPIC => {
            let topic = r.text()?;
            if !topic::is_valid_name(topic) {
                return Err(Violation::ResponseTopic);
            }
            Property::ResponseTopic(topic)
        }
        id::CORRELATION_DATA => Property::CorrelationData(r.binary()?),
        id::SUBSCRIPTION_ID => Property::SubscriptionId(above_zero(r.varint()?)?),
        id::SESSION_EXPIRY => Property::SessionExpiry(r.u32()?),
        id::ASSIGNED_CLIENT_ID => Property::AssignedClientId(r.text()?),
        id::SERVER_KEEP_ALIVE => Property::ServerKeepAlive(r.u16()?),
        id::AUTH_METHOD => Property::AuthMethod(r.text()?),
        id::AUTH_DATA => Property::AuthData(Password::new(r.binary()?)),
        id::REQUEST_PROBLEM_INFO => Property::RequestProblemInfo(flag(r)?),
        id::WILL_DELAY => Property::WillDelay(r.u32()?),
        id::REQUEST_RESPONSE_INFO => Property::RequestResponseInfo(flag(r)?),
        id::RESPONSE_INFO => Property::ResponseInfo(r.text()?),
        id::SERVER_REFERENCE => Property::ServerReference(r.text()?),
        id::REASON_STRING => Property::ReasonString(r.text()?),
        id::RECEIVE_MAXIMUM => Property::ReceiveMaximum(above_zero(r.u16()?)?),
        id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(r.u16()?),
        id::TOPIC_ALIAS => match r.u16()? {
            0 => return Err(Violation::TopicAlias),
            alias => Property::TopicAlias(alias),
        },
        id::MAXIMUM_QOS => Property::MaximumQoS(r.u8()?),
        id::RETAIN_AVAILABLE => Property::RetainAvailable(flag(r)?),
        id::USER_PROPERTY => Property::UserProperty(r.text()?, r.text()?),
        id::MAXIMUM_PACKET_SIZE => Property::MaximumPacketSize(above_zero(r.u32()?)?),
        id::WILDCARD_AVAILABLE => Property::WildcardAvailable(flag(r)?),
        id::SUBSCRIPTION_IDS_AVAILABLE => Property::SubscriptionIdsAvailable(flag(r)?),
        id::SHARED_AVAILABLE => Property::SharedAvailable(flag(r)?),
        _ => return Err(Violation::PropertyUnknown),
    };
    Ok((id, property))
}

impl<'a> Properties<'a> {
    /// Reads and checks the properties that `r` stands before: each is allowed, none but user properties twice.
    pub(crate) fn read(r: &mut Reader<'a>, allowed: Allowed) -> Result<Properties<'a>, Violation> {
        let len = r.varint()? as usize;
        if len == 0 {
            return Ok(Properties { raw: &[] });
        }
        Self::check(r.take(len)?, allowed)
    }

    /// Checks the properties in `raw`.
    pub(crate) fn check(raw: &'a [u8], allowed: Allowed) -> Result<Properties<'a>, Violation> {
        let mut inner = Reader::new(raw);
        let mut seen = 0u64;
        while let Some(&id) = inner.rest.first() {
            // Told before the value is read, whose shape depends on it.
            if id >= 64 || allowed.0 & (1 << id) == 0 {
                return Err(Violation::PropertyUnknown);
            }
            read(&mut inner)?;
            let may_repeat =
                id == id::USER_PROPERTY || (id == id::SUBSCRIPTION_ID && allowed.0 == Allowed::FROM_SERVER.0);
            if seen & (1 << id) != 0 && !may_repeat {
                return Err(Violation::PropertyRepeated);
            }
            seen |= 1 << id;
        }
        Ok(Properties { raw })
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Each property in order.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut r = Reader::new(self.raw);
        std::iter::from_fn(move || if r.is_empty() { None } else { read(&mut r).ok().map(|(_, p)| p) })
    }

    /// Each property with its bytes.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (Property<'a>, &'a [u8])> + use<'a> {
        let mut r = Reader::new(self.raw);
        std::iter::from_fn(move || {
            if r.is_empty() {
                return None;
            }
            let before = r.rest;
            let (_, property) = read(&mut r).ok()?;
            Some((property, &before[..before.len() - r.rest.len()]))
        })
    }

    /// The user properties in order.
    pub fn user(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.iter().filter_map(|p| if let Property::UserProperty(k, v) = p { Some((k, v)) } else { None })
    }
}
