//! Message types, codes and methods (RFC 7252 §3, §12.1), with the numbers that `coap-lite` gives them.

use std::fmt;

/// The type of a message (RFC 7252 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Type {
    /// Confirmable: wants an acknowledgement or a reset.
    Con = 0,
    /// Non-confirmable.
    Non = 1,
    /// Acknowledgement, with or without a piggybacked response.
    Ack = 2,
    /// Reset.
    Rst = 3,
}

impl Type {
    /// The type in bits 4 and 5 of a message's first byte.
    #[inline]
    #[must_use]
    pub const fn of_first_byte(byte: u8) -> Type {
        match byte >> 4 & 0b11 {
            0 => Type::Con,
            1 => Type::Non,
            2 => Type::Ack,
            _ => Type::Rst,
        }
    }
}

/// The code of a message: a class in the upper three bits, a detail in the lower five (RFC 7252 §3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u8);

/// Defines the constants and the list that the test compares with `coap-lite`.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $class:literal, $detail:literal;)*) => {
        impl Code {
            $($(#[$doc])* pub const $name: Code = Code($class << 5 | $detail);)*

            #[cfg(test)]
            const NAMED: &[Code] = &[$(Code::$name),*];
        }
    };
}

codes! {
    /// 0.00: an empty message.
    EMPTY = 0, 0;
    /// 0.01
    GET = 0, 1;
    /// 0.02
    POST = 0, 2;
    /// 0.03
    PUT = 0, 3;
    /// 0.04
    DELETE = 0, 4;
    /// 0.05 (RFC 8132)
    FETCH = 0, 5;
    /// 0.06 (RFC 8132)
    PATCH = 0, 6;
    /// 0.07 (RFC 8132)
    IPATCH = 0, 7;
    /// 2.01
    CREATED = 2, 1;
    /// 2.02
    DELETED = 2, 2;
    /// 2.03
    VALID = 2, 3;
    /// 2.04
    CHANGED = 2, 4;
    /// 2.05
    CONTENT = 2, 5;
    /// 2.31 (RFC 7959)
    CONTINUE = 2, 31;
    /// 4.00
    BAD_REQUEST = 4, 0;
    /// 4.01
    UNAUTHORIZED = 4, 1;
    /// 4.02
    BAD_OPTION = 4, 2;
    /// 4.03
    FORBIDDEN = 4, 3;
    /// 4.04
    NOT_FOUND = 4, 4;
    /// 4.05
    METHOD_NOT_ALLOWED = 4, 5;
    /// 4.06
    NOT_ACCEPTABLE = 4, 6;
    /// 4.08 (RFC 7959)
    REQUEST_ENTITY_INCOMPLETE = 4, 8;
    /// 4.09 (RFC 8132)
    CONFLICT = 4, 9;
    /// 4.12
    PRECONDITION_FAILED = 4, 12;
    /// 4.13
    REQUEST_ENTITY_TOO_LARGE = 4, 13;
    /// 4.15
    UNSUPPORTED_CONTENT_FORMAT = 4, 15;
    /// 4.22 (RFC 8132)
    UNPROCESSABLE_ENTITY = 4, 22;
    /// 4.29 (RFC 8516)
    TOO_MANY_REQUESTS = 4, 29;
    /// 5.00
    INTERNAL_SERVER_ERROR = 5, 0;
    /// 5.01
    NOT_IMPLEMENTED = 5, 1;
    /// 5.02
    BAD_GATEWAY = 5, 2;
    /// 5.03
    SERVICE_UNAVAILABLE = 5, 3;
    /// 5.04
    GATEWAY_TIMEOUT = 5, 4;
    /// 5.05
    PROXYING_NOT_SUPPORTED = 5, 5;
    /// 5.08 (RFC 8768)
    HOP_LIMIT_REACHED = 5, 8;
}

impl Code {
    /// The class: 0 a request (or an empty message), 2 success, 4 client error, 5 server error.
    #[inline]
    #[must_use]
    pub const fn class(self) -> u8 {
        self.0 >> 5
    }

    /// The detail.
    #[inline]
    #[must_use]
    pub const fn detail(self) -> u8 {
        self.0 & 0x1F
    }

    /// A request, known or not (0.01 to 0.31).
    #[inline]
    #[must_use]
    pub const fn is_request(self) -> bool {
        self.class() == 0 && self.0 != 0
    }

    /// A response, known or not (2.00 to 5.31).
    #[inline]
    #[must_use]
    pub const fn is_response(self) -> bool {
        matches!(self.class(), 2..=5)
    }

    /// A class that nobody may use yet: 1, 6 and 7. (3 is a response class without codes, RFC 7252 §12.1.2.)
    #[inline]
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        matches!(self.class(), 1 | 6 | 7)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.class(), self.detail())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<coap_lite::MessageClass> for Code {
    fn from(class: coap_lite::MessageClass) -> Code {
        Code(u8::from(class))
    }
}

impl From<Code> for coap_lite::MessageClass {
    fn from(code: Code) -> coap_lite::MessageClass {
        code.0.into()
    }
}

/// What a request asks for (RFC 7252 §5.8, RFC 8132).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Method {
    /// 0.01
    Get = 1,
    /// 0.02
    Post = 2,
    /// 0.03
    Put = 3,
    /// 0.04
    Delete = 4,
    /// 0.05
    Fetch = 5,
    /// 0.06
    Patch = 6,
    /// 0.07
    IPatch = 7,
}

impl Method {
    /// The method with this code; none for a method that no RFC names, or for what is not a request.
    #[inline]
    #[must_use]
    pub const fn from_code(code: Code) -> Option<Method> {
        Some(match code {
            Code::GET => Method::Get,
            Code::POST => Method::Post,
            Code::PUT => Method::Put,
            Code::DELETE => Method::Delete,
            Code::FETCH => Method::Fetch,
            Code::PATCH => Method::Patch,
            Code::IPATCH => Method::IPatch,
            _ => return None,
        })
    }

    /// Its code.
    #[must_use]
    pub const fn code(self) -> Code {
        Code(self as u8)
    }

    /// Whether the request may carry a payload; in the others it is ignored (RFC 7252 §5.5).
    #[inline]
    #[must_use]
    pub const fn has_payload(self) -> bool {
        !matches!(self, Method::Get | Method::Delete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coap_lite::MessageClass;

    #[test]
    fn every_named_code_is_the_one_coap_lite_names_and_reads_alike() {
        for &code in Code::NAMED {
            let class = MessageClass::from(code);
            assert!(!matches!(class, MessageClass::Reserved(_)), "{code} is unknown to coap-lite");
            assert_eq!(class.to_string(), code.to_string());
            assert_eq!(Code::from(class), code);
        }
        let known = (0..=u8::MAX).filter(|&n| !matches!(MessageClass::from(n), MessageClass::Reserved(_)));
        assert_eq!(known.count(), Code::NAMED.len());
    }

    #[test]
    fn each_code_is_empty_a_request_a_response_or_reserved() {
        for code in (0..=u8::MAX).map(Code) {
            let kinds = [code == Code::EMPTY, code.is_request(), code.is_response(), code.is_reserved()];
            assert_eq!(kinds.iter().filter(|&&k| k).count(), 1, "{code}");
        }
        assert!(Code(3 << 5).is_response(), "3.xx has no codes, but it is a response class");
    }

    #[test]
    fn methods_are_their_codes() {
        for n in 0..=u8::MAX {
            let method = Method::from_code(Code(n));
            assert_eq!(method.is_some(), (1..=7).contains(&n));
            assert!(method.is_none_or(|m| m.code() == Code(n)));
        }
    }
}
