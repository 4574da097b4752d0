//! Why a datagram was not taken as a reading: bounded names for a counter's label.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// Why a datagram was not taken as a request to serve.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason: the one at `i` has `reason as usize == i`.
            pub const ALL: &[Reason] = &[$(Reason::$variant),*];

            /// Its name in a counter.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Shorter than a header (RFC 7252 §3).
    Short = "short";
    /// Another version than 1: ignored (RFC 7252 §3).
    Version = "version";
    /// A token length of 15 (RFC 8974 §2.1).
    TokenLength = "token_length";
    /// The token is longer than what is there.
    TokenCut = "token_cut";
    /// An option delta of 15 that is not a payload marker (RFC 7252 §3.1).
    OptionDelta = "option_delta";
    /// An option length of 15 (RFC 7252 §3.1).
    OptionLength = "option_length";
    /// An option is longer than what is there.
    OptionCut = "option_cut";
    /// An option number above 65,535.
    OptionNumber = "option_number";
    /// A payload marker with nothing behind it (RFC 7252 §3).
    EmptyPayload = "empty_payload";
    /// An empty message with something behind its message ID (RFC 7252 §4.1).
    EmptyNotEmpty = "empty_not_empty";
    /// Code class 1, 6 or 7 (RFC 7252 §4.2, §4.3).
    ReservedClass = "reserved_class";
    /// A non-confirmable message that is empty (RFC 7252 §4.3).
    EmptyNon = "empty_non";
    /// An acknowledgement that carries a request (RFC 7252 §4.2).
    AckRequest = "ack_request";
    /// A reset that is not empty (RFC 7252 §4.2, §4.3).
    ResetNotEmpty = "reset_not_empty";
    /// An empty confirmable message: a ping, answered by a reset (RFC 7252 §4.3).
    Ping = "ping";
    /// A response that nobody asked for (RFC 7252 §4.2, §5.3.2).
    UnexpectedResponse = "unexpected_response";
    /// Sent to a group (RFC 7252 §8); the server does not take part in any.
    Multicast = "multicast";
    /// A critical option that is unknown, unsupported, out of bounds or repeated, in a confirmable request: 4.02.
    BadOption = "bad_option";
    /// The same in a non-confirmable request: ignored.
    BadOptionNon = "bad_option_non";
    /// Proxy-Uri or Proxy-Scheme: 5.05 (RFC 7252 §5.10.2).
    Proxy = "proxy";
    /// A method that the resource does not have: 4.05.
    Method = "method";
    /// A token longer than the server keeps: 4.00 (RFC 8974 §2.2.2).
    TokenTooLong = "token_too_long";
    /// A path that cannot be a topic: 4.00.
    Path = "path";
    /// A path that is nobody's: 4.04.
    NotFound = "not_found";
    /// A topic that only the server publishes to: 4.03.
    ServerTopic = "server_topic";
    /// A query that is not text, or a device name that is none: 4.00.
    Query = "query";
    /// A block option with the reserved size or out of place: 4.00.
    Block = "block";
    /// A payload longer than the server takes: 4.13.
    TooLarge = "too_large";
    /// Accept names a format that there is not: 4.06.
    NotAcceptable = "not_acceptable";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_own_and_its_place() {
        let names: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for (i, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, i);
            assert!(reason.name().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        }
    }
}
