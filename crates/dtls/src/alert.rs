//! Alerts (RFC 5246 §7.2).

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AlertLevel {
    Warning = 1,
    Fatal = 2,
}

/// What an alert says; the numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Alert(pub u8);

impl Alert {
    /// The peer will send nothing more.
    pub const CLOSE_NOTIFY: Alert = Alert(0);
    /// A message that does not belong here.
    pub const UNEXPECTED_MESSAGE: Alert = Alert(10);
    /// A record that its MAC does not fit: also what a wrong key and an unknown identity get.
    pub const BAD_RECORD_MAC: Alert = Alert(20);
    /// No parameters that both sides accept.
    pub const HANDSHAKE_FAILURE: Alert = Alert(40);
    /// A field out of its range, or that contradicts another.
    pub const ILLEGAL_PARAMETER: Alert = Alert(47);
    /// A message that cannot be parsed.
    pub const DECODE_ERROR: Alert = Alert(50);
    /// A `Finished` that does not fit the handshake.
    pub const DECRYPT_ERROR: Alert = Alert(51);
    /// A version that is not DTLS 1.2.
    pub const PROTOCOL_VERSION: Alert = Alert(70);
    /// No extended master secret where one is required.
    pub const INSUFFICIENT_SECURITY: Alert = Alert(71);
    /// The sender's own trouble.
    pub const INTERNAL_ERROR: Alert = Alert(80);
    /// An offer to negotiate anew is declined (RFC 5246 §7.2.2; a warning).
    pub const NO_RENEGOTIATION: Alert = Alert(100);
    /// An extension that was not asked for (RFC 5246 §7.2.2).
    pub const UNSUPPORTED_EXTENSION: Alert = Alert(110);

    /// The name that the RFC gives it, or `other`: few enough for a label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Alert::CLOSE_NOTIFY => "close_notify",
            Alert::UNEXPECTED_MESSAGE => "unexpected_message",
            Alert::BAD_RECORD_MAC => "bad_record_mac",
            Alert::HANDSHAKE_FAILURE => "handshake_failure",
            Alert::ILLEGAL_PARAMETER => "illegal_parameter",
            Alert::DECODE_ERROR => "decode_error",
            Alert::DECRYPT_ERROR => "decrypt_error",
            Alert::PROTOCOL_VERSION => "protocol_version",
            Alert::INSUFFICIENT_SECURITY => "insufficient_security",
            Alert::INTERNAL_ERROR => "internal_error",
            Alert::NO_RENEGOTIATION => "no_renegotiation",
            Alert::UNSUPPORTED_EXTENSION => "unsupported_extension",
            _ => "other",
        }
    }

    /// Reads the body of an alert record: whether it is fatal, and what it says.
    pub(crate) fn parse(body: &[u8]) -> Option<(AlertLevel, Alert)> {
        match *body {
            [1, description] => Some((AlertLevel::Warning, Alert(description))),
            [2, description] => Some((AlertLevel::Fatal, Alert(description))),
            _ => None,
        }
    }
}
