//! What a peer did wrong, and what it is told.

use crate::reason::Reason;

macro_rules! violations {
    ($($(#[$doc:meta])* $name:ident: $reason:ident, $label:literal, $text:literal;)*) => {
        /// A rule that the peer broke; the connection ends with it.
        ///
        /// On the wire: a 3.1.1 peer sees the connection close (after CONNACK 0x01 or 0x02 where its CONNECT was at
        /// fault in that way), an MQTT 5 peer gets [`reason`](Self::reason) in a CONNACK or a DISCONNECT first (§4.13).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
        #[non_exhaustive]
        pub enum Violation {
            $(#[doc = concat!("The peer's fault: ", $text, ".")] $(#[$doc])* #[error($text)] $name,)*
        }

        impl Violation {
            /// Every violation, for resolving counters up front.
            pub const ALL: &[Violation] = &[$(Violation::$name,)*];

            /// The reason code that an MQTT 5 peer is told.
            #[must_use]
            pub const fn reason(self) -> Reason {
                match self {
                    $(Violation::$name => Reason::$reason,)*
                }
            }

            /// A label for a counter: one of a fixed set.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Violation::$name => $label,)*
                }
            }
        }
    };
}

violations! {
    Truncated: MalformedPacket, "truncated", "the fields of a packet are longer than the packet";
    TrailingBytes: MalformedPacket, "trailing_bytes", "a packet goes on after its last field";
    RemainingLength: MalformedPacket, "remaining_length", "a length takes more bytes than it needs or than four";
    FixedHeaderFlags: MalformedPacket, "fixed_header_flags", "reserved flags of a fixed header are not as required";
    PacketType: MalformedPacket, "packet_type", "a reserved packet type";
    Utf8: MalformedPacket, "utf8", "text that is not UTF-8 or has U+0000";
    QoS: MalformedPacket, "qos", "a QoS of 3, or DUP on QoS 0";
    PacketId: ProtocolError, "packet_id", "a packet identifier of zero";
    PropertyUnknown: MalformedPacket, "property_unknown", "a property that this packet cannot have";
    PropertyRepeated: ProtocolError, "property_repeated", "a property given twice";
    PropertyValue: ProtocolError, "property_value", "a property with a value that is not allowed";
    ReasonCode: MalformedPacket, "reason_code", "a reason code that this packet cannot have";
    NotConnect: ProtocolError, "not_connect", "the first packet is not CONNECT";
    SecondConnect: ProtocolError, "second_connect", "a second CONNECT";
    ServerPacket: ProtocolError, "server_packet", "a packet that only a server sends";
    ProtocolName: UnsupportedVersion, "protocol_name", "a protocol name that is not MQTT";
    ProtocolVersion: UnsupportedVersion, "protocol_version", "a protocol version other than 3.1.1 and 5.0";
    ConnectFlags: MalformedPacket, "connect_flags", "connect flags that contradict each other or are reserved";
    ClientId: ClientIdNotValid, "client_id", "a client identifier that is not allowed";
    TopicName: TopicNameInvalid, "topic_name", "a topic name that is empty or has wildcards";
    ResponseTopic: ProtocolError, "response_topic", "a response topic that is not a topic name";
    NoTopic: ProtocolError, "no_topic", "neither a topic name nor a topic alias that was set";
    TopicAlias: TopicAliasInvalid, "topic_alias", "a topic alias of zero or above the maximum";
    AliasBytes: QuotaExceeded, "alias_bytes", "topic aliases for longer topics than may be kept";
    PacketTooLarge: PacketTooLarge, "packet_too_large", "a packet above the maximum packet size";
    ReceiveMaximum: ReceiveMaximumExceeded, "receive_maximum", "more publishes unacknowledged than the receive maximum";
    Unreleased: QuotaExceeded, "unreleased", "too many QoS 2 publishes that are not released";
    EarlyRelease: ProtocolError, "early_release", "a PUBREL before the PUBREC was sent";
    Retain: RetainNotSupported, "retain", "a retained message, which this server does not serve";
    RetainedLevels: QuotaExceeded, "retained_levels", "a message to be retained under more topic levels than can be, whose acknowledgement could not tell";
    TopicFilter: TopicFilterInvalid, "topic_filter", "a topic filter whose wildcards or share name are misplaced";
    NoFilters: ProtocolError, "no_filters", "a SUBSCRIBE or UNSUBSCRIBE without a topic filter";
    AnswerTooLarge: PacketTooLarge, "answer_too_large", "more topic filters than the answer that the peer takes has room for";
    SubscribeOptions: MalformedPacket, "subscribe_options", "subscription options that are reserved";
    NoLocalShared: ProtocolError, "no_local_shared", "No Local on a shared subscription";
    SharedSubscription: SharedSubscriptionsNotSupported, "shared_subscription", "a shared subscription, which this server does not serve";
    SessionExpiry: ProtocolError, "session_expiry", "a DISCONNECT that revives a session of no expiry";
    AuthMethod: BadAuthenticationMethod, "auth_method", "an authentication method, and none is served";
    Auth: ProtocolError, "auth", "an AUTH packet without an authentication method";
    ConnectTimeout: Unspecified, "connect_timeout", "no CONNECT in time";
    KeepAlive: KeepAliveTimeout, "keep_alive", "nothing heard for one and a half keep-alive intervals";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_violation_has_a_failure_code_and_a_label_of_its_own() {
        let mut labels = std::collections::HashSet::new();
        for v in Violation::ALL {
            assert!(v.reason().is_failure(), "{v:?}");
            assert!(labels.insert(v.name()), "{v:?}");
        }
    }
}
