//! The client's side, as far as simulated devices and tests need it: a reading built, a response read.

use crate::build::Builder;
use crate::code::{Code, Type};
use crate::message::Message;
use crate::option::{NoResponse, number};

/// A request that carries a reading.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// [`Type::Con`] or [`Type::Non`].
    pub kind: Type,
    /// [`Code::POST`], or another method.
    pub code: Code,
    /// The message ID.
    pub mid: u16,
    /// The token.
    pub token: &'a [u8],
    /// The topic: its levels become Uri-Path options. Empty for none.
    pub path: &'a str,
    /// The device, as the query `ep=`; none if empty.
    pub ep: &'a str,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// Responses that are not wanted.
    pub no_response: NoResponse,
    /// The reading.
    pub payload: &'a [u8],
}

impl<'a> Reading<'a> {
    /// A confirmable POST.
    #[must_use]
    pub const fn confirmable(mid: u16, token: &'a [u8], path: &'a str, ep: &'a str, payload: &'a [u8]) -> Reading<'a> {
        Reading {
            kind: Type::Con,
            code: Code::POST,
            mid,
            token,
            path,
            ep,
            content_format: None,
            no_response: NoResponse::NONE,
            payload,
        }
    }

    /// Appends the request to `out`.
    ///
    /// # Panics
    ///
    /// If a level of the path or the device is longer than an option's length can say (65,804 bytes).
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut builder = Builder::new(out, self.kind, self.code, self.mid, self.token);
        if !self.path.is_empty() {
            for level in self.path.split('/') {
                builder = builder.option(number::URI_PATH, level.as_bytes());
            }
        }
        if let Some(format) = self.content_format {
            builder = builder.uint(number::CONTENT_FORMAT, u32::from(format));
        }
        if !self.ep.is_empty() {
            builder = builder.option_of_parts(number::URI_QUERY, &[b"ep=", self.ep.as_bytes()]);
        }
        if self.no_response != NoResponse::NONE {
            builder = builder.uint(number::NO_RESPONSE, u32::from(self.no_response.0));
        }
        builder.payload(self.payload);
    }
}

/// What a server sent.
#[derive(Debug, Clone, Copy)]
pub enum Reply<'a> {
    /// It has the request with this message ID; the response comes later (RFC 7252 §5.2.2).
    Acknowledged {
        /// The message ID.
        mid: u16,
    },
    /// It rejects the message with this ID, or answers a ping.
    Reset {
        /// The message ID.
        mid: u16,
    },
    /// A response. If its type is [`Type::Con`], it wants an [empty acknowledgement](crate::build::empty_ack).
    Response(Message<'a>),
}

impl<'a> Reply<'a> {
    /// Reads `datagram`; none if a client has no use for it.
    #[must_use]
    pub fn parse(datagram: &'a [u8]) -> Option<Reply<'a>> {
        let message = Message::parse(datagram).ok()?;
        let mid = message.mid;
        match message.kind {
            Type::Ack if message.code == Code::EMPTY => Some(Reply::Acknowledged { mid }),
            Type::Rst => Some(Reply::Reset { mid }),
            _ if message.code.is_response() => Some(Reply::Response(message)),
            _ => None,
        }
    }
}

/// Max-Age of a response in seconds: 60 if it says none (RFC 7252 §5.10.5).
#[must_use]
pub fn max_age(response: &Message<'_>) -> u32 {
    response.option(number::MAX_AGE).map_or(60, |o| o.uint())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::{self, Response};
    use crate::server::{Outcome, Rules, Target};

    #[test]
    fn the_server_reads_what_the_client_writes() {
        let rules = Rules::default();
        let reading = Reading {
            kind: Type::Non,
            content_format: Some(60),
            no_response: NoResponse::ALL,
            ..Reading::confirmable(7, b"tok", "meters/cold/1", "867997030000001", b"reading")
        };
        let (mut out, mut topic) = (Vec::new(), String::new());
        reading.write(&mut out);
        let Outcome::Request(request) = rules.classify(&out, &mut topic) else { panic!() };
        assert_eq!(request.target, Target::Topic("meters/cold/1"));
        assert_eq!((request.message.kind, request.message.mid, request.message.token), (Type::Non, 7, &b"tok"[..]));
        assert_eq!(request.ep, Some("867997030000001"));
        assert_eq!((request.content_format, request.no_response), (Some(60), NoResponse::ALL));
        assert_eq!(request.payload, b"reading");
    }

    #[test]
    fn the_client_reads_what_the_server_writes() {
        let mut out = Vec::new();
        build::empty_ack(&mut out, 1);
        assert!(matches!(Reply::parse(&out), Some(Reply::Acknowledged { mid: 1 })));
        out.clear();
        build::reset(&mut out, 2);
        assert!(matches!(Reply::parse(&out), Some(Reply::Reset { mid: 2 })));
        out.clear();
        Response::unavailable(9).write_message(&mut out, Type::Con, 3, b"t");
        let Some(Reply::Response(response)) = Reply::parse(&out) else { panic!() };
        assert_eq!((response.code, max_age(&response), response.token), (Code::SERVICE_UNAVAILABLE, 9, &b"t"[..]));
        out.clear();
        build::bare_ack(&mut out, Code::CHANGED, 3, b"t");
        let Some(Reply::Response(response)) = Reply::parse(&out) else { panic!() };
        assert_eq!(max_age(&response), 60);
        out.clear();
        Reading::confirmable(1, b"", "t", "", b"").write(&mut out);
        assert!(Reply::parse(&out).is_none(), "a request is nothing to a client");
    }
}
