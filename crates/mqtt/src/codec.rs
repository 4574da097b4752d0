//! What a server writes rarely, encoded by `rumqttd::protocol`: CONNACK, SUBACK, UNSUBACK.

use bytes::BytesMut;
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::v5::V5;
use rumqttd::protocol::{
    ConnAck, ConnAckProperties, ConnectReturnCode, Packet, Protocol, SubAck, SubscribeReasonCode, UnsubAck,
    UnsubAckReason,
};

use crate::limits::Limits;
use crate::packet::Version;
use crate::reason::Reason;
use crate::wire::varint_len;

/// Bytes of a CONNACK of 5.0 that refuses.
const REFUSAL: u32 = 5;

/// What a CONNACK tells one client (MQTT 5 §3.2.2.3); the rest is in [`Limits`].
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) session_present: bool,
    /// Granted in place of what the client asked for.
    pub(crate) session_expiry: Option<u32>,
    /// Imposed in place of the client's.
    pub(crate) keep_alive: Option<u16>,
    pub(crate) assigned_client_id: Option<&'a str>,
    pub(crate) response_information: Option<&'a str>,
    /// Largest packet that the client takes.
    pub(crate) maximum_packet: u32,
}

/// Bytes that most of these packets fit.
const TYPICAL: usize = 64;

pub(crate) fn write(version: Version, packet: Packet, out: &mut Vec<u8>) {
    let mut buffer = BytesMut::with_capacity(TYPICAL);
    let written = match version {
        Version::V4 => V4.write(packet, &mut buffer),
        Version::V5 => V5.write(packet, &mut buffer),
    };
    // It fails on what exceeds the format alone, which no caller here can make.
    debug_assert!(written.is_ok(), "{written:?}");
    if written.is_ok() {
        out.extend_from_slice(&buffer);
    }
}

/// Appends the CONNACK that accepts; false, and nothing, if it is larger than the client takes. Of what it tells only the response information
/// may be left out: the rest binds the client, and is not less than it should know.
#[must_use]
pub(crate) fn accept(version: Version, limits: &Limits, terms: &Terms<'_>, out: &mut Vec<u8>) -> bool {
    let connack = ConnAck { session_present: terms.session_present, code: ConnectReturnCode::Success };
    if version == Version::V4 {
        write(version, Packet::ConnAck(connack, None), out);
        return true;
    }
    let properties = ConnAckProperties {
        session_expiry_interval: terms.session_expiry,
        receive_max: (limits.receive_maximum < u16::MAX).then_some(limits.receive_maximum),
        max_qos: None,
        retain_available: (!limits.retain_available).then_some(0),
        max_packet_size: Some(limits.max_packet),
        assigned_client_identifier: terms.assigned_client_id.map(str::to_owned),
        topic_alias_max: (limits.topic_alias_maximum > 0).then_some(limits.topic_alias_maximum),
        reason_string: None,
        user_properties: Vec::new(),
        wildcard_subscription_available: None,
        subscription_identifiers_available: None,
        shared_subscription_available: (!limits.shared_subscriptions).then_some(0),
        server_keep_alive: terms.keep_alive,
        response_information: terms.response_information.map(str::to_owned),
        server_reference: None,
        authentication_method: None,
        authentication_data: None,
    };
    let start = out.len();
    write(version, Packet::ConnAck(connack, Some(properties)), out);
    if out.len() - start <= terms.maximum_packet as usize {
        return true;
    }
    out.truncate(start);
    terms.response_information.is_some()
        && accept(version, limits, &Terms { response_information: None, ..*terms }, out)
}

/// Appends the CONNACK that refuses, if the client takes packets of its size; 3.1.1 has few codes ([`Reason::connack_v4`]).
pub(crate) fn refuse(version: Version, reason: Reason, maximum_packet: u32, out: &mut Vec<u8>) {
    if version == Version::V5 && maximum_packet < REFUSAL {
        return;
    }
    let code = match (version, reason) {
        (Version::V4, reason) => match reason.connack_v4() {
            1 => ConnectReturnCode::RefusedProtocolVersion,
            2 => ConnectReturnCode::ClientIdentifierNotValid,
            4 => ConnectReturnCode::BadUserNamePassword,
            5 => ConnectReturnCode::NotAuthorized,
            _ => ConnectReturnCode::ServiceUnavailable,
        },
        (_, Reason::MalformedPacket) => ConnectReturnCode::MalformedPacket,
        (_, Reason::ProtocolError) => ConnectReturnCode::ProtocolError,
        (_, Reason::ImplementationSpecific) => ConnectReturnCode::ImplementationSpecificError,
        (_, Reason::UnsupportedVersion) => ConnectReturnCode::UnsupportedProtocolVersion,
        (_, Reason::ClientIdNotValid) => ConnectReturnCode::ClientIdentifierNotValid,
        (_, Reason::BadCredentials) => ConnectReturnCode::BadUserNamePassword,
        (_, Reason::NotAuthorized) => ConnectReturnCode::NotAuthorized,
        (_, Reason::ServerUnavailable | Reason::ServerShuttingDown) => ConnectReturnCode::ServerUnavailable,
        (_, Reason::ServerBusy) => ConnectReturnCode::ServerBusy,
        (_, Reason::Banned) => ConnectReturnCode::Banned,
        (_, Reason::BadAuthenticationMethod) => ConnectReturnCode::BadAuthenticationMethod,
        (_, Reason::TopicNameInvalid) => ConnectReturnCode::TopicNameInvalid,
        (_, Reason::PacketTooLarge) => ConnectReturnCode::PacketTooLarge,
        (_, Reason::QuotaExceeded) => ConnectReturnCode::QuotaExceeded,
        (_, Reason::PayloadFormatInvalid) => ConnectReturnCode::PayloadFormatInvalid,
        (_, Reason::RetainNotSupported) => ConnectReturnCode::RetainNotSupported,
        (_, Reason::QoSNotSupported) => ConnectReturnCode::QoSNotSupported,
        (_, Reason::UseAnotherServer) => ConnectReturnCode::UseAnotherServer,
        (_, Reason::ServerMoved) => ConnectReturnCode::ServerMoved,
        (_, Reason::ConnectionRateExceeded) => ConnectReturnCode::ConnectionRateExceeded,
        _ => ConnectReturnCode::UnspecifiedError,
    };
    write(version, Packet::ConnAck(ConnAck { session_present: false, code }, None), out);
}

/// Bytes of a SUBACK or UNSUBACK of 5.0 with so many reasons.
pub(crate) fn suback_len(reasons: usize) -> usize {
    // Packet identifier, length of the properties, of which there are none.
    let remaining = 2 + 1 + reasons;
    1 + varint_len(remaining) + remaining
}

/// Appends a SUBACK; 3.1.1 knows one failure.
pub(crate) fn suback(version: Version, packet_id: u16, reasons: impl IntoIterator<Item = Reason>, out: &mut Vec<u8>) {
    let code = |reason: Reason| match reason {
        Reason::Success => SubscribeReasonCode::QoS0,
        Reason::GrantedQoS1 => SubscribeReasonCode::QoS1,
        Reason::GrantedQoS2 => SubscribeReasonCode::QoS2,
        _ if version == Version::V4 => SubscribeReasonCode::Failure,
        Reason::ImplementationSpecific => SubscribeReasonCode::ImplementationSpecific,
        Reason::NotAuthorized => SubscribeReasonCode::NotAuthorized,
        Reason::TopicFilterInvalid => SubscribeReasonCode::TopicFilterInvalid,
        Reason::PacketIdInUse => SubscribeReasonCode::PkidInUse,
        Reason::QuotaExceeded => SubscribeReasonCode::QuotaExceeded,
        Reason::SharedSubscriptionsNotSupported => SubscribeReasonCode::SharedSubscriptionsNotSupported,
        Reason::SubscriptionIdsNotSupported => SubscribeReasonCode::SubscriptionIdNotSupported,
        Reason::WildcardSubscriptionsNotSupported => SubscribeReasonCode::WildcardSubscriptionsNotSupported,
        _ => SubscribeReasonCode::Unspecified,
    };
    let return_codes = reasons.into_iter().map(code).collect();
    write(version, Packet::SubAck(SubAck { pkid: packet_id, return_codes }, None), out);
}

/// Appends an UNSUBACK; that of 3.1.1 has no reasons.
pub(crate) fn unsuback(version: Version, packet_id: u16, reasons: impl IntoIterator<Item = Reason>, out: &mut Vec<u8>) {
    let code = |reason: Reason| match reason {
        Reason::Success => UnsubAckReason::Success,
        Reason::NoSubscriptionExisted => UnsubAckReason::NoSubscriptionExisted,
        Reason::ImplementationSpecific => UnsubAckReason::ImplementationSpecificError,
        Reason::NotAuthorized => UnsubAckReason::NotAuthorized,
        Reason::TopicFilterInvalid => UnsubAckReason::TopicFilterInvalid,
        Reason::PacketIdInUse => UnsubAckReason::PacketIdentifierInUse,
        _ => UnsubAckReason::UnspecifiedError,
    };
    let reasons = reasons.into_iter().map(code).collect();
    write(version, Packet::UnsubAck(UnsubAck { pkid: packet_id, reasons }, None), out);
}
