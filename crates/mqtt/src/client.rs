//! The client's side, for load generators and tests: packets are encoded into the caller's buffer, and what a server sends
//! is scanned in place.
//!
//! It is no client library: it keeps no state, and checks of a server's packets what is needed to read them safely.
//! CONNECT, SUBSCRIBE and UNSUBSCRIBE are encoded by `rumqttd::protocol`; PUBLISH and the acknowledgements, which a load
//! generator sends by the million, in place.

use bytes::Bytes;
use rumqttd::protocol::{self, Packet, RetainForwardRule};

use crate::codec;
use crate::encode;
use crate::packet::{QoS, SubscribeOptions, Version};
use crate::property::{Allowed, Properties};
use crate::reason::Reason;
use crate::violation::Violation;
use crate::wire::{self, Reader, put_binary, put_varint, varint_len};

/// What to connect with.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions<'a> {
    /// The client identifier.
    pub client_id: &'a str,
    /// Clean Session or Clean Start.
    pub clean_start: bool,
    /// Seconds; 0 is off.
    pub keep_alive: u16,
    /// User name and password; both empty for none.
    pub login: (&'a str, &'a str),
    /// The will: topic, payload, QoS, retain.
    pub will: Option<(&'a str, &'a [u8], QoS, bool)>,
    /// 5.0: seconds that the session is to outlive the connection.
    pub session_expiry: Option<u32>,
    /// 5.0: publishes in flight that this client takes at once.
    pub receive_maximum: Option<u16>,
    /// 5.0: the largest packet that this client takes.
    pub maximum_packet: Option<u32>,
    /// 5.0: topic aliases that the server may set.
    pub topic_alias_maximum: Option<u16>,
}

fn to_protocol(qos: QoS) -> protocol::QoS {
    match qos {
        QoS::AtMostOnce => protocol::QoS::AtMostOnce,
        QoS::AtLeastOnce => protocol::QoS::AtLeastOnce,
        QoS::ExactlyOnce => protocol::QoS::ExactlyOnce,
    }
}

/// Appends a CONNECT.
pub fn connect(version: Version, options: &ConnectOptions<'_>, out: &mut Vec<u8>) {
    let connect = protocol::Connect {
        keep_alive: options.keep_alive,
        client_id: options.client_id.to_owned(),
        clean_session: options.clean_start,
    };
    let properties = (version == Version::V5).then(|| protocol::ConnectProperties {
        session_expiry_interval: options.session_expiry,
        receive_maximum: options.receive_maximum,
        max_packet_size: options.maximum_packet,
        topic_alias_max: options.topic_alias_maximum,
        request_response_info: None,
        request_problem_info: None,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    });
    let will = options.will.map(|(topic, payload, qos, retain)| protocol::LastWill {
        topic: Bytes::copy_from_slice(topic.as_bytes()),
        message: Bytes::copy_from_slice(payload),
        qos: to_protocol(qos),
        retain,
    });
    let (username, password) = options.login;
    let login = (!username.is_empty() || !password.is_empty())
        .then(|| protocol::Login { username: username.to_owned(), password: password.to_owned() });
    codec::write(version, Packet::Connect(connect, properties, will, None, login), out);
}

/// A message to publish.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outgoing<'a> {
    /// Where; at most 65,535 bytes.
    pub topic: &'a str,
    /// What.
    pub payload: &'a [u8],
    /// How surely.
    pub qos: QoS,
    /// Whether the server is to retain it.
    pub retain: bool,
    /// Whether it was sent before.
    pub dup: bool,
    /// 0 for QoS 0.
    pub packet_id: u16,
}

/// Appends a PUBLISH without properties.
#[inline]
pub fn publish(version: Version, message: &Outgoing<'_>, out: &mut Vec<u8>) {
    let Outgoing { topic, payload, qos, retain, dup, packet_id } = *message;
    let id = if qos == QoS::AtMostOnce { 0 } else { 2 };
    let properties = if version == Version::V5 { 1 } else { 0 };
    let remaining = 2 + topic.len() + id + properties + payload.len();
    out.reserve(1 + varint_len(remaining) + remaining);
    out.push(0x30 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain));
    put_varint(out, remaining as u32);
    put_binary(out, topic.as_bytes());
    if qos != QoS::AtMostOnce {
        out.extend_from_slice(&packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        out.push(0);
    }
    out.extend_from_slice(payload);
}

/// Appends a SUBSCRIBE. 3.1.1 takes only the QoS of the options.
pub fn subscribe(version: Version, packet_id: u16, filters: &[(&str, SubscribeOptions)], out: &mut Vec<u8>) {
    let filters = filters
        .iter()
        .map(|&(path, options)| protocol::Filter {
            path: path.to_owned(),
            qos: to_protocol(options.qos),
            nolocal: options.no_local,
            preserve_retain: options.retain_as_published,
            retain_forward_rule: match options.retain_handling {
                0 => RetainForwardRule::OnEverySubscribe,
                1 => RetainForwardRule::OnNewSubscribe,
                _ => RetainForwardRule::Never,
            },
        })
        .collect();
    codec::write(version, Packet::Subscribe(protocol::Subscribe { pkid: packet_id, filters }, None), out);
}

/// Appends an UNSUBSCRIBE.
pub fn unsubscribe(version: Version, packet_id: u16, filters: &[&str], out: &mut Vec<u8>) {
    let filters = filters.iter().map(|&f| f.to_owned()).collect();
    codec::write(version, Packet::Unsubscribe(protocol::Unsubscribe { pkid: packet_id, filters }, None), out);
}

/// Appends a PUBACK.
pub fn puback(packet_id: u16, out: &mut Vec<u8>) {
    encode::ack(encode::PUBACK, packet_id, Reason::Success, Version::V4, out);
}

/// Appends a PUBREC.
pub fn pubrec(packet_id: u16, out: &mut Vec<u8>) {
    encode::ack(encode::PUBREC, packet_id, Reason::Success, Version::V4, out);
}

/// Appends a PUBREL.
pub fn pubrel(packet_id: u16, out: &mut Vec<u8>) {
    encode::ack(encode::PUBREL, packet_id, Reason::Success, Version::V4, out);
}

/// Appends a PUBCOMP.
pub fn pubcomp(packet_id: u16, out: &mut Vec<u8>) {
    encode::ack(encode::PUBCOMP, packet_id, Reason::Success, Version::V4, out);
}

/// Appends a PINGREQ.
pub fn pingreq(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Appends a DISCONNECT: normal, which takes the will back.
pub fn disconnect(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xE0, 0]);
}

/// What a server sent. `code` is as it stood on the wire: return codes of 3.1.1 or reasons of 5.0.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FromServer<'a> {
    /// The answer to a CONNECT.
    ConnAck {
        /// Whether the server had a session of this client.
        session_present: bool,
        /// 0 is accepted.
        code: u8,
        /// 5.0: what the server grants.
        properties: Properties<'a>,
    },
    /// A message.
    Publish {
        /// Where; empty if a topic alias stands for it.
        topic: &'a str,
        /// What.
        payload: &'a [u8],
        /// How surely.
        qos: QoS,
        /// The retain flag.
        retain: bool,
        /// Whether it may have been sent before.
        dup: bool,
        /// 0 for QoS 0.
        packet_id: u16,
        /// 5.0: its properties.
        properties: Properties<'a>,
    },
    /// A QoS 1 publish is stored.
    PubAck {
        /// Which one.
        packet_id: u16,
        /// Below 0x80 is success.
        code: u8,
    },
    /// A QoS 2 publish is stored.
    PubRec {
        /// Which one.
        packet_id: u16,
        /// Below 0x80 is success.
        code: u8,
    },
    /// The server releases a QoS 2 message.
    PubRel {
        /// Which one.
        packet_id: u16,
        /// Below 0x80 is success.
        code: u8,
    },
    /// A QoS 2 publish is over.
    PubComp {
        /// Which one.
        packet_id: u16,
        /// Below 0x80 is success.
        code: u8,
    },
    /// The answer to a SUBSCRIBE.
    SubAck {
        /// Which one.
        packet_id: u16,
        /// One a filter.
        codes: &'a [u8],
    },
    /// The answer to an UNSUBSCRIBE.
    UnsubAck {
        /// Which one.
        packet_id: u16,
        /// One a filter; 3.1.1: none.
        codes: &'a [u8],
    },
    /// The answer to a PINGREQ.
    PingResp,
    /// 5.0: the server closes the connection.
    Disconnect {
        /// Why.
        code: u8,
    },
}

/// Takes the next packet of a server off the front of `input`; `None` while it is incomplete.
#[inline]
pub fn scan<'a>(version: Version, input: &mut &'a [u8]) -> Result<Option<FromServer<'a>>, Violation> {
    let Some(&first) = input.first() else { return Ok(None) };
    let Some(frame) = wire::frame(input, u32::MAX)? else { return Ok(None) };
    let packet = packet(version, first, frame.body)?;
    *input = &input[frame.total..];
    Ok(Some(packet))
}

#[inline]
fn packet(version: Version, first: u8, body: &[u8]) -> Result<FromServer<'_>, Violation> {
    let mut r = Reader::new(body);
    let properties = |r: &mut Reader<'_>| match version {
        Version::V4 => Ok(()),
        Version::V5 => Properties::read(r, Allowed::FROM_SERVER).map(|_| ()),
    };
    let code = |r: &mut Reader<'_>| if r.is_empty() { Ok(0) } else { r.u8() };
    Ok(match first >> 4 {
        2 => {
            let (flags, code) = (r.u8()?, r.u8()?);
            let properties = match version {
                Version::V5 if !r.is_empty() => Properties::read(&mut r, Allowed::FROM_SERVER)?,
                _ => Properties::default(),
            };
            FromServer::ConnAck { session_present: flags & 1 != 0, code, properties }
        }
        3 => {
            let qos = QoS::from_number(first >> 1 & 0b11).ok_or(Violation::QoS)?;
            let topic = r.text()?;
            let packet_id = if qos == QoS::AtMostOnce { 0 } else { r.packet_id()? };
            let properties = match version {
                Version::V4 => Properties::default(),
                Version::V5 => Properties::read(&mut r, Allowed::FROM_SERVER)?,
            };
            let (retain, dup) = (first & 1 != 0, first & 0b1000 != 0);
            FromServer::Publish { topic, payload: r.rest, qos, retain, dup, packet_id, properties }
        }
        4 => FromServer::PubAck { packet_id: r.packet_id()?, code: code(&mut r)? },
        5 => FromServer::PubRec { packet_id: r.packet_id()?, code: code(&mut r)? },
        6 => FromServer::PubRel { packet_id: r.packet_id()?, code: code(&mut r)? },
        7 => FromServer::PubComp { packet_id: r.packet_id()?, code: code(&mut r)? },
        9 => {
            let packet_id = r.packet_id()?;
            properties(&mut r)?;
            FromServer::SubAck { packet_id, codes: r.rest }
        }
        11 => {
            let packet_id = r.packet_id()?;
            properties(&mut r)?;
            FromServer::UnsubAck { packet_id, codes: r.rest }
        }
        13 => FromServer::PingResp,
        14 => FromServer::Disconnect { code: code(&mut r)? },
        _ => return Err(Violation::PacketType),
    })
}
