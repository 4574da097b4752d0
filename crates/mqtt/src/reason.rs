//! Reason codes (MQTT 5.0 §2.4) and what a 3.1.1 peer is told instead.

use crate::packet::QoS;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// A reason code of MQTT 5.0 §2.4.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $name = $code,)*
        }

        impl Reason {
            /// The reason with this code, if the specification has one.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Reason> {
                match code {
                    $($code => Some(Reason::$name),)*
                    _ => None,
                }
            }

            /// A name for metrics and logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$name => $text,)*
                }
            }
        }
    };
}

reasons! {
    /// Success, normal disconnection, or QoS 0 granted.
    Success = 0x00, "success";
    /// QoS 1 granted.
    GrantedQoS1 = 0x01, "granted_qos_1";
    /// QoS 2 granted.
    GrantedQoS2 = 0x02, "granted_qos_2";
    /// Disconnect, but publish the will.
    DisconnectWithWill = 0x04, "disconnect_with_will";
    /// Accepted, though nobody is subscribed.
    NoMatchingSubscribers = 0x10, "no_matching_subscribers";
    /// There was no such subscription to remove.
    NoSubscriptionExisted = 0x11, "no_subscription_existed";
    /// Go on with the authentication.
    ContinueAuthentication = 0x18, "continue_authentication";
    /// Start a new authentication.
    Reauthenticate = 0x19, "reauthenticate";
    /// No other reason applies, or it is not told.
    Unspecified = 0x80, "unspecified";
    /// A packet that cannot be parsed.
    MalformedPacket = 0x81, "malformed_packet";
    /// A packet out of order or with contents that contradict each other.
    ProtocolError = 0x82, "protocol_error";
    /// Valid, but this server does not take it.
    ImplementationSpecific = 0x83, "implementation_specific";
    /// A protocol version that is not served.
    UnsupportedVersion = 0x84, "unsupported_version";
    /// A client identifier that is not allowed.
    ClientIdNotValid = 0x85, "client_id_not_valid";
    /// Wrong user name or password.
    BadCredentials = 0x86, "bad_credentials";
    /// Known, but not allowed to do this.
    NotAuthorized = 0x87, "not_authorized";
    /// The server is not available.
    ServerUnavailable = 0x88, "server_unavailable";
    /// The server is busy.
    ServerBusy = 0x89, "server_busy";
    /// Banned by an operator.
    Banned = 0x8A, "banned";
    /// The server stops.
    ServerShuttingDown = 0x8B, "server_shutting_down";
    /// An authentication method that is not served.
    BadAuthenticationMethod = 0x8C, "bad_authentication_method";
    /// Nothing was heard for one and a half keep-alive intervals.
    KeepAliveTimeout = 0x8D, "keep_alive_timeout";
    /// Another connection uses the same client identifier.
    SessionTakenOver = 0x8E, "session_taken_over";
    /// A topic filter that is not accepted.
    TopicFilterInvalid = 0x8F, "topic_filter_invalid";
    /// A topic name that is not accepted.
    TopicNameInvalid = 0x90, "topic_name_invalid";
    /// The packet identifier is in use already.
    PacketIdInUse = 0x91, "packet_id_in_use";
    /// The packet identifier is not known.
    PacketIdNotFound = 0x92, "packet_id_not_found";
    /// More publishes unacknowledged than the receive maximum.
    ReceiveMaximumExceeded = 0x93, "receive_maximum_exceeded";
    /// A topic alias of zero, above the maximum, or never set.
    TopicAliasInvalid = 0x94, "topic_alias_invalid";
    /// A packet above the maximum packet size.
    PacketTooLarge = 0x95, "packet_too_large";
    /// Too many messages in too short a time.
    MessageRateTooHigh = 0x96, "message_rate_too_high";
    /// A limit of the implementation or the operator is exceeded.
    QuotaExceeded = 0x97, "quota_exceeded";
    /// Closed by an operator.
    AdministrativeAction = 0x98, "administrative_action";
    /// The payload is not what its format indicator says.
    PayloadFormatInvalid = 0x99, "payload_format_invalid";
    /// Retained messages are not served.
    RetainNotSupported = 0x9A, "retain_not_supported";
    /// A QoS above the maximum.
    QoSNotSupported = 0x9B, "qos_not_supported";
    /// Use another server for now.
    UseAnotherServer = 0x9C, "use_another_server";
    /// Use another server from now on.
    ServerMoved = 0x9D, "server_moved";
    /// Shared subscriptions are not served.
    SharedSubscriptionsNotSupported = 0x9E, "shared_subscriptions_not_supported";
    /// Connections come at too high a rate.
    ConnectionRateExceeded = 0x9F, "connection_rate_exceeded";
    /// The time granted to a connection is over.
    MaximumConnectTime = 0xA0, "maximum_connect_time";
    /// Subscription identifiers are not served.
    SubscriptionIdsNotSupported = 0xA1, "subscription_ids_not_supported";
    /// Wildcard subscriptions are not served.
    WildcardSubscriptionsNotSupported = 0xA2, "wildcard_subscriptions_not_supported";
}

impl Reason {
    /// The code on the wire.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether it tells of a failure (§2.4: 0x80 and above).
    #[must_use]
    pub const fn is_failure(self) -> bool {
        self as u8 >= 0x80
    }

    /// What a SUBACK says to a subscription granted with this QoS.
    #[must_use]
    pub const fn granted(qos: QoS) -> Reason {
        match qos {
            QoS::AtMostOnce => Reason::Success,
            QoS::AtLeastOnce => Reason::GrantedQoS1,
            QoS::ExactlyOnce => Reason::GrantedQoS2,
        }
    }

    /// The CONNACK return code of 3.1.1 §3.2.2.3 that comes closest.
    #[must_use]
    pub const fn connack_v4(self) -> u8 {
        match self {
            Reason::Success => 0,
            Reason::UnsupportedVersion => 1,
            Reason::ClientIdNotValid => 2,
            Reason::BadCredentials => 4,
            Reason::NotAuthorized | Reason::Banned | Reason::BadAuthenticationMethod => 5,
            _ => 3,
        }
    }
}
