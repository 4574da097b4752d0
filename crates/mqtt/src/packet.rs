//! What a client sends, read in place and strictly.
//!
//! Every field borrows from the input. A packet that these functions return breaks no rule that can be told from the
//! packet alone; rules that need the state of the connection are [`crate::Connection`]'s.

use std::fmt;
use std::ops::Deref;

use ecow::EcoString;
use zeroize::Zeroizing;

use crate::property::{Allowed, Properties, Property};
use crate::reason::Reason;
use crate::topic::{self, Filter};
use crate::violation::Violation;
use crate::wire::Reader;

/// The version of the protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V4,
    /// MQTT 5.0, protocol version 5.
    V5,
}

impl Version {
    /// A name for metrics and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Version::V4 => "3.1.1",
            Version::V5 => "5.0",
        }
    }
}

/// Quality of service (§4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// At most once.
    #[default]
    AtMostOnce = 0,
    /// At least once.
    AtLeastOnce = 1,
    /// Exactly once.
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of this number; 3 is none.
    #[must_use]
    pub const fn from_number(n: u8) -> Option<QoS> {
        match n {
            0 => Some(QoS::AtMostOnce),
            1 => Some(QoS::AtLeastOnce),
            2 => Some(QoS::ExactlyOnce),
            _ => None,
        }
    }
}

/// A secret: it has no text form, and a copy of it is wiped when dropped.
///
/// It borrows from the driver's read buffer, which the driver wipes once the CONNECT is decided.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password<'a>(&'a [u8]);

impl<'a> Password<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Password(bytes)
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &'a [u8] {
        self.0
    }

    /// A copy that outlives the read buffer.
    #[must_use]
    pub fn to_owned(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.to_vec())
    }
}

impl fmt::Debug for Password<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// A CONNECT packet (§3.1).
#[derive(Debug, Clone, Copy)]
pub struct Connect<'a> {
    /// The version asked for.
    pub version: Version,
    /// 1 to 128 bytes that name a device ([`tidegate_record::DeviceId`]); empty if the server is to assign one.
    pub client_id: &'a str,
    /// Clean Session (3.1.1) or Clean Start (5.0): what there is of an earlier session is dropped.
    pub clean_start: bool,
    /// Seconds; 0 is off.
    pub keep_alive: u16,
    /// Seconds that the session outlives the connection as asked for; `u32::MAX` is without end. A 3.1.1 session that is
    /// not clean asks for `u32::MAX`, a clean one for 0.
    pub session_expiry: u32,
    /// The user name, if there is one.
    pub username: Option<&'a str>,
    /// The password, if there is one.
    pub password: Option<Password<'a>>,
    /// The will, if there is one.
    pub will: Option<WillRef<'a>>,
    /// Authentication method (5.0). A connection that named one is to be refused with
    /// [`Reason::BadAuthenticationMethod`] where none is served.
    pub auth_method: Option<&'a str>,
    /// Publishes in flight that the client takes at once (5.0 §3.1.2.11.3); 65,535 if it does not say.
    pub receive_maximum: u16,
    /// Largest packet that the client takes; `u32::MAX` if it does not say.
    pub maximum_packet: u32,
    /// Topic aliases that the client lets the server set.
    pub topic_alias_maximum: u16,
    /// Whether the client asked for response information.
    pub request_response_info: bool,
    /// Whether reason strings and user properties may stand on packets other than PUBLISH, CONNACK and DISCONNECT.
    pub request_problem_info: bool,
    /// All properties (5.0), user properties among them.
    pub properties: Properties<'a>,
}

/// The will in a CONNECT packet.
#[derive(Debug, Clone, Copy)]
pub struct WillRef<'a> {
    /// Where it is to be published.
    pub topic: &'a str,
    /// What is to be published.
    pub payload: &'a [u8],
    /// With which QoS.
    pub qos: QoS,
    /// Whether retained.
    pub retain: bool,
    /// Seconds to wait (5.0 §3.1.3.2.2).
    pub delay: u32,
    /// Seconds that it lives once published.
    pub expiry: Option<u32>,
    /// All properties.
    pub properties: Properties<'a>,
}

/// The topic of a PUBLISH: from the packet, or what its alias stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicName<'a> {
    /// It stood in the packet.
    Given(&'a str),
    /// The packet had an alias for it; a clone shares the text.
    Aliased(EcoString),
}

impl Deref for TopicName<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            TopicName::Given(text) => text,
            TopicName::Aliased(text) => text,
        }
    }
}

/// A PUBLISH packet (§3.3).
#[derive(Debug, Clone)]
pub struct Publish<'a> {
    /// Where.
    pub topic: TopicName<'a>,
    /// What.
    pub payload: &'a [u8],
    /// How surely.
    pub qos: QoS,
    /// Whether it replaces the retained message of its topic.
    pub retain: bool,
    /// Whether the client says that it sent this before.
    pub dup: bool,
    /// Zero for QoS 0.
    pub packet_id: u16,
    /// Topic alias (5.0).
    pub(crate) alias: Option<u16>,
    /// Seconds that it lives (5.0 §3.3.2.3.3).
    pub expiry: Option<u32>,
    /// Content type (5.0), empty if it has none.
    pub content_type: &'a str,
    /// All properties (5.0).
    pub properties: Properties<'a>,
}

/// An acknowledgement in a flow of QoS 1 or 2 (§3.4–3.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Which message.
    pub packet_id: u16,
    /// What became of it.
    pub reason: Reason,
}

/// How a subscription is to be served (§3.8.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SubscribeOptions {
    /// Highest QoS to deliver with.
    pub qos: QoS,
    /// Do not deliver what the subscriber itself published.
    pub no_local: bool,
    /// Deliver the retain flag as published.
    pub retain_as_published: bool,
    /// When retained messages are sent: 0 at each subscribe, 1 if the subscription is new, 2 never.
    pub retain_handling: u8,
}

impl SubscribeOptions {
    /// The byte of §3.8.3.1.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        self.qos as u8 | (self.no_local as u8) << 2 | (self.retain_as_published as u8) << 3 | self.retain_handling << 4
    }

    /// Reads the byte of §3.8.3.1; `None` if it has reserved bits or values.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<SubscribeOptions> {
        let qos = QoS::from_number(byte & 0b11)?;
        let retain_handling = byte >> 4 & 0b11;
        if byte & 0b1100_0000 != 0 || retain_handling == 3 {
            return None;
        }
        Some(SubscribeOptions {
            qos,
            no_local: byte & 0b100 != 0,
            retain_as_published: byte & 0b1000 != 0,
            retain_handling,
        })
    }
}

/// A SUBSCRIBE packet (§3.8).
#[derive(Debug, Clone, Copy)]
pub struct Subscribe<'a> {
    /// To be given back in the SUBACK.
    pub packet_id: u16,
    /// Subscription identifier (5.0); 0 is none.
    pub id: u32,
    /// All properties (5.0).
    pub properties: Properties<'a>,
    /// How many filters there are: each has a reason in the SUBACK.
    pub count: usize,
    filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    /// The filters in order, each with its options.
    pub fn filters(&self) -> impl Iterator<Item = (Filter<'a>, SubscribeOptions)> + use<'a> {
        let mut r = Reader::new(self.filters);
        std::iter::from_fn(move || {
            let filter = Filter::parse(r.text().ok()?)?;
            Some((filter, SubscribeOptions::from_byte(r.u8().ok()?)?))
        })
    }
}

/// An UNSUBSCRIBE packet (§3.10).
#[derive(Debug, Clone, Copy)]
pub struct Unsubscribe<'a> {
    /// To be given back in the UNSUBACK.
    pub packet_id: u16,
    /// All properties (5.0).
    pub properties: Properties<'a>,
    /// How many filters there are: each has a reason in the UNSUBACK of 5.0.
    pub count: usize,
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    /// The filters in order.
    pub fn filters(&self) -> impl Iterator<Item = Filter<'a>> + use<'a> {
        let mut r = Reader::new(self.filters);
        std::iter::from_fn(move || Filter::parse(r.text().ok()?))
    }
}

/// A DISCONNECT packet (§3.14).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disconnect {
    pub(crate) reason: Reason,
    pub(crate) session_expiry: Option<u32>,
}

/// A CONNECT that is refused before it can be offered to the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadConnect {
    pub(crate) violation: Violation,
    /// The version whose CONNACK tells why; `None` for silence.
    pub(crate) answer: Option<Version>,
}

const LEVEL_V4: u8 = 4;
const LEVEL_V5: u8 = 5;
/// Set by bridges in the protocol level to ask for more than the standard has.
const BRIDGE_BIT: u8 = 0x80;

/// Which version's CONNACK can tell that the CONNECT whose body begins with `body` is too large, if any; `None` while it is not known.
pub(crate) fn announced(body: &[u8]) -> Option<Option<Version>> {
    const V5: &[u8] = &[0, 4, b'M', b'Q', b'T', b'T', LEVEL_V5];
    if body.len() < V5.len() && V5.starts_with(body) {
        return None;
    }
    Some(body.starts_with(V5).then_some(Version::V5))
}

/// Reads the body of a CONNECT.
pub(crate) fn connect<'a>(body: &'a [u8], minimal: bool) -> Result<Connect<'a>, BadConnect> {
    let silent = |violation| BadConnect { violation, answer: None };
    let mut r = Reader::new(body);
    let name = r.binary().map_err(silent)?;
    if name != b"MQTT" && name != b"MQIsdp" {
        return Err(silent(Violation::ProtocolName));
    }
    let level = r.u8().map_err(silent)?;
    let version = match (name, level) {
        (b"MQTT", LEVEL_V4) => Version::V4,
        (b"MQTT", LEVEL_V5) => Version::V5,
        (b"MQTT", level) if level & !BRIDGE_BIT > LEVEL_V5 => {
            return Err(BadConnect { violation: Violation::ProtocolVersion, answer: Some(Version::V5) });
        }
        _ => return Err(BadConnect { violation: Violation::ProtocolVersion, answer: Some(Version::V4) }),
    };
    connect_fields(&mut r, version, minimal).map_err(|violation| BadConnect {
        violation,
        // 3.1.1 has a return code for the identifier alone; other faults close the connection ([MQTT-3.1.4-1]).
        answer: (version == Version::V5 || violation == Violation::ClientId).then_some(version),
    })
}

fn connect_fields<'a>(r: &mut Reader<'a>, version: Version, minimal: bool) -> Result<Connect<'a>, Violation> {
    if version == Version::V5 && !minimal {
        return Err(Violation::RemainingLength);
    }
    let flags = r.u8()?;
    let has = |bit: u8| flags & (1 << bit) != 0;
    let (clean_start, has_will, will_retain) = (has(1), has(2), has(5));
    let (has_password, has_username) = (has(6), has(7));
    let will_qos = QoS::from_number(flags >> 3 & 0b11).ok_or(Violation::ConnectFlags)?;
    if has(0) || (!has_will && (will_qos != QoS::AtMostOnce || will_retain)) {
        return Err(Violation::ConnectFlags);
    }
    if version == Version::V4 && has_password && !has_username {
        return Err(Violation::ConnectFlags);
    }
    let keep_alive = r.u16()?;
    let properties = match version {
        Version::V4 => Properties::default(),
        Version::V5 => Properties::read(r, Allowed::CONNECT)?,
    };
    let mut connect = Connect {
        version,
        client_id: "",
        clean_start,
        keep_alive,
        session_expiry: if version == Version::V4 && !clean_start { u32::MAX } else { 0 },
        username: None,
        password: None,
        will: None,
        auth_method: None,
        receive_maximum: u16::MAX,
        maximum_packet: u32::MAX,
        topic_alias_maximum: 0,
        request_response_info: false,
        request_problem_info: true,
        properties,
    };
    let mut auth_data = false;
    for property in properties.iter() {
        match property {
            Property::SessionExpiry(v) => connect.session_expiry = v,
            Property::ReceiveMaximum(v) => connect.receive_maximum = v,
            Property::MaximumPacketSize(v) => connect.maximum_packet = v,
            Property::TopicAliasMaximum(v) => connect.topic_alias_maximum = v,
            Property::RequestResponseInfo(v) => connect.request_response_info = v,
            Property::RequestProblemInfo(v) => connect.request_problem_info = v,
            Property::AuthMethod(v) => connect.auth_method = Some(v),
            Property::AuthData(_) => auth_data = true,
            _ => {}
        }
    }
    if auth_data && connect.auth_method.is_none() {
        return Err(Violation::PropertyValue);
    }
    connect.client_id = r.text()?;
    if has_will {
        let properties = match version {
            Version::V4 => Properties::default(),
            Version::V5 => Properties::read(r, Allowed::WILL)?,
        };
        let topic = r.text()?;
        let payload = r.binary()?;
        if !topic::is_valid_name(topic) {
            return Err(Violation::TopicName);
        }
        let mut will =
            WillRef { topic, payload, qos: will_qos, retain: will_retain, delay: 0, expiry: None, properties };
        for property in properties.iter() {
            match property {
                Property::WillDelay(v) => will.delay = v,
                Property::MessageExpiry(v) => will.expiry = Some(v),
                _ => {}
            }
        }
        connect.will = Some(will);
    }
    if has_username {
        connect.username = Some(r.text()?);
    }
    if has_password {
        connect.password = Some(Password::new(r.binary()?));
    }
    r.end()?;
    // Last, so that a malformed packet is told as such.
    if connect.client_id.is_empty() {
        if version == Version::V4 && !clean_start {
            return Err(Violation::ClientId);
        }
    } else if tidegate_record::DeviceId::check(connect.client_id).is_err() {
        return Err(Violation::ClientId);
    }
    Ok(connect)
}

/// Reads a PUBLISH. An empty topic is left to the caller: it needs an alias.
#[inline]
pub(crate) fn publish<'a>(first: u8, body: &'a [u8], version: Version) -> Result<Publish<'a>, Violation> {
    let qos = QoS::from_number(first >> 1 & 0b11).ok_or(Violation::QoS)?;
    let dup = first & 0b1000 != 0;
    if dup && qos == QoS::AtMostOnce {
        return Err(Violation::QoS);
    }
    let mut r = Reader::new(body);
    let topic = std::str::from_utf8(r.binary()?).map_err(|_| Violation::Utf8)?;
    topic::check_name(topic)?;
    let packet_id = if qos == QoS::AtMostOnce { 0 } else { r.packet_id()? };
    let mut publish = Publish {
        topic: TopicName::Given(topic),
        payload: &[],
        qos,
        retain: first & 1 != 0,
        dup,
        packet_id,
        alias: None,
        expiry: None,
        content_type: "",
        properties: Properties::default(),
    };
    if version == Version::V5 {
        publish.properties = Properties::read(&mut r, Allowed::PUBLISH)?;
        for property in publish.properties.iter() {
            match property {
                Property::TopicAlias(v) => publish.alias = Some(v),
                Property::MessageExpiry(v) => publish.expiry = Some(v),
                Property::ContentType(v) => publish.content_type = v,
                _ => {}
            }
        }
    }
    publish.payload = r.rest;
    Ok(publish)
}

/// Reads a PUBACK, PUBREC, PUBREL or PUBCOMP; `codes` tells the reason codes that it may have.
pub(crate) fn ack(body: &[u8], version: Version, codes: fn(Reason) -> bool) -> Result<Ack, Violation> {
    let mut r = Reader::new(body);
    let packet_id = r.packet_id()?;
    let mut reason = Reason::Success;
    if version == Version::V5 && !r.is_empty() {
        reason = Reason::from_code(r.u8()?).filter(|&r| codes(r)).ok_or(Violation::ReasonCode)?;
        if !r.is_empty() {
            Properties::read(&mut r, Allowed::ACK)?;
        }
    }
    r.end()?;
    Ok(Ack { packet_id, reason })
}

/// Reason codes of PUBACK and PUBREC (§3.4.2.1, §3.5.2.1).
pub(crate) fn publish_codes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Success
            | Reason::NoMatchingSubscribers
            | Reason::Unspecified
            | Reason::ImplementationSpecific
            | Reason::NotAuthorized
            | Reason::TopicNameInvalid
            | Reason::PacketIdInUse
            | Reason::QuotaExceeded
            | Reason::PayloadFormatInvalid
    )
}

/// Reason codes of PUBREL and PUBCOMP (§3.6.2.1, §3.7.2.1).
pub(crate) fn release_codes(reason: Reason) -> bool {
    matches!(reason, Reason::Success | Reason::PacketIdNotFound)
}

/// Reason codes of a DISCONNECT from a server (§3.14.2.1).
pub(crate) fn farewell_codes(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::GrantedQoS1
            | Reason::GrantedQoS2
            | Reason::DisconnectWithWill
            | Reason::NoMatchingSubscribers
            | Reason::NoSubscriptionExisted
            | Reason::ContinueAuthentication
            | Reason::Reauthenticate
            | Reason::UnsupportedVersion
            | Reason::ClientIdNotValid
            | Reason::BadCredentials
            | Reason::ServerUnavailable
            | Reason::Banned
            | Reason::BadAuthenticationMethod
            | Reason::PacketIdInUse
            | Reason::PacketIdNotFound
    )
}

/// Checks the filters that `r` is at, with what `each` reads behind each of them, and counts them. Their number is bounded by the packet's
/// size.
fn filters<'a>(
    r: &Reader<'a>,
    mut each: impl FnMut(&mut Reader<'a>, Filter<'a>) -> Result<(), Violation>,
) -> Result<(&'a [u8], usize), Violation> {
    let raw = r.rest;
    let mut inner = *r;
    let mut count = 0;
    while !inner.is_empty() {
        count += 1;
        let filter = Filter::parse(inner.text()?).ok_or(Violation::TopicFilter)?;
        each(&mut inner, filter)?;
    }
    if count == 0 { Err(Violation::NoFilters) } else { Ok((raw, count)) }
}

/// Reads a SUBSCRIBE.
pub(crate) fn subscribe(body: &[u8], version: Version) -> Result<Subscribe<'_>, Violation> {
    let mut r = Reader::new(body);
    let packet_id = r.packet_id()?;
    let properties = match version {
        Version::V4 => Properties::default(),
        Version::V5 => Properties::read(&mut r, Allowed::SUBSCRIBE)?,
    };
    let id = properties.iter().find_map(|p| if let Property::SubscriptionId(v) = p { Some(v) } else { None });
    let (filters, count) = filters(&r, |r, filter| {
        let byte = r.u8()?;
        let options = SubscribeOptions::from_byte(byte).ok_or(Violation::SubscribeOptions)?;
        if version == Version::V4 && byte & !0b11 != 0 {
            return Err(Violation::SubscribeOptions);
        }
        if options.no_local && filter.group().is_some() {
            return Err(Violation::NoLocalShared);
        }
        Ok(())
    })?;
    Ok(Subscribe { packet_id, id: id.unwrap_or(0), properties, count, filters })
}

/// Reads an UNSUBSCRIBE.
pub(crate) fn unsubscribe(body: &[u8], version: Version) -> Result<Unsubscribe<'_>, Violation> {
    let mut r = Reader::new(body);
    let packet_id = r.packet_id()?;
    let properties = match version {
        Version::V4 => Properties::default(),
        Version::V5 => Properties::read(&mut r, Allowed::UNSUBSCRIBE)?,
    };
    let (filters, count) = filters(&r, |_, _| Ok(()))?;
    Ok(Unsubscribe { packet_id, properties, count, filters })
}

/// Reads a DISCONNECT from a client (§3.14).
pub(crate) fn disconnect(body: &[u8], version: Version) -> Result<Disconnect, Violation> {
    let mut r = Reader::new(body);
    let mut disconnect = Disconnect { reason: Reason::Success, session_expiry: None };
    if version == Version::V5 && !r.is_empty() {
        disconnect.reason = Reason::from_code(r.u8()?)
            .filter(|r| {
                matches!(
                    r,
                    Reason::Success
                        | Reason::DisconnectWithWill
                        | Reason::Unspecified
                        | Reason::MalformedPacket
                        | Reason::ProtocolError
                        | Reason::ImplementationSpecific
                        | Reason::TopicNameInvalid
                        | Reason::ReceiveMaximumExceeded
                        | Reason::TopicAliasInvalid
                        | Reason::PacketTooLarge
                        | Reason::MessageRateTooHigh
                        | Reason::QuotaExceeded
                        | Reason::AdministrativeAction
                        | Reason::PayloadFormatInvalid
                )
            })
            .ok_or(Violation::ReasonCode)?;
        if !r.is_empty() {
            let properties = Properties::read(&mut r, Allowed::DISCONNECT)?;
            disconnect.session_expiry =
                properties.iter().find_map(|p| if let Property::SessionExpiry(v) = p { Some(v) } else { None });
        }
    }
    r.end()?;
    Ok(disconnect)
}
