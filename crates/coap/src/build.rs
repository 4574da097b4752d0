//! Messages written into a buffer that the caller reuses: everything is appended, nothing is allocated for.

use crate::code::{Code, Type};
use crate::message::{HEADER_LEN, PAYLOAD_MARKER};
use crate::option::{Block, NoResponse, number, uint_bytes};
use crate::token::{MAX_EXTENDED_TOKEN, MAX_PLAIN_TOKEN, Token};

/// Longest diagnostic payload (RFC 7252 §5.5.2) in bytes: a sentence, and with header and options still below the 64 bytes
/// or so that cost an NB-IoT device a further transport block.
pub const MAX_DIAGNOSTIC: usize = 96;

/// Appends an empty acknowledgement (RFC 7252 §4.2).
#[inline]
pub fn empty_ack(out: &mut Vec<u8>, mid: u16) {
    empty(out, Type::Ack, mid);
}

/// Appends a reset (RFC 7252 §4.2).
#[inline]
pub fn reset(out: &mut Vec<u8>, mid: u16) {
    empty(out, Type::Rst, mid);
}

/// Appends a ping: an empty confirmable message (RFC 7252 §4.3).
#[inline]
pub fn ping(out: &mut Vec<u8>, mid: u16) {
    empty(out, Type::Con, mid);
}

#[inline]
fn empty(out: &mut Vec<u8>, kind: Type, mid: u16) {
    let [high, low] = mid.to_be_bytes();
    out.extend_from_slice(&[first_byte(kind, 0), 0, high, low]);
}

/// Appends a piggybacked response without options or payload: what most readings are answered with.
#[inline]
pub fn bare_ack(out: &mut Vec<u8>, code: Code, mid: u16, token: &[u8]) {
    header(out, Type::Ack, code, mid, token);
}

#[inline]
const fn first_byte(kind: Type, tkl: u8) -> u8 {
    0x40 | (kind as u8) << 4 | tkl
}

/// Appends header and token. A token longer than [`MAX_EXTENDED_TOKEN`] is cut there; none that was received is.
#[inline]
fn header(out: &mut Vec<u8>, kind: Type, code: Code, mid: u16, token: &[u8]) {
    let [high, low] = mid.to_be_bytes();
    if token.len() <= MAX_PLAIN_TOKEN {
        let mut bytes = [0; HEADER_LEN + MAX_PLAIN_TOKEN];
        bytes[..HEADER_LEN].copy_from_slice(&[first_byte(kind, token.len() as u8), code.0, high, low]);
        bytes[HEADER_LEN..HEADER_LEN + token.len()].copy_from_slice(token);
        out.extend_from_slice(&bytes[..HEADER_LEN + token.len()]);
    } else {
        let token = &token[..token.len().min(MAX_EXTENDED_TOKEN)];
        let (tkl, extension, used) = extend(token.len());
        out.extend_from_slice(&[first_byte(kind, tkl), code.0, high, low]);
        out.extend_from_slice(&extension[..used]);
        out.extend_from_slice(token);
    }
}

/// The nibble for `value` and the bytes that extend it (RFC 7252 §3.1). `value` is at most 65,804.
#[inline]
fn extend(value: usize) -> (u8, [u8; 2], usize) {
    match value {
        0..13 => (value as u8, [0; 2], 0),
        13..269 => (13, [(value - 13) as u8, 0], 1),
        _ => (14, ((value - 269) as u16).to_be_bytes(), 2),
    }
}

/// Writes one message: header and token, options in ascending order, payload.
#[derive(Debug)]
pub struct Builder<'o> {
    out: &'o mut Vec<u8>,
    /// The number of the last option written.
    last: u16,
}

impl<'o> Builder<'o> {
    /// Begins a message at the end of `out`.
    #[inline]
    pub fn new(out: &'o mut Vec<u8>, kind: Type, code: Code, mid: u16, token: &[u8]) -> Builder<'o> {
        header(out, kind, code, mid, token);
        Builder { out, last: 0 }
    }

    /// Appends an option.
    ///
    /// # Panics
    ///
    /// If `number` is below that of an option already written, or the value is longer than a length can say (65,804).
    #[inline]
    pub fn option(mut self, number: u16, value: &[u8]) -> Builder<'o> {
        self.put(number, value);
        self
    }

    /// Appends an option whose value is the parts one after the other.
    ///
    /// # Panics
    ///
    /// As [`option`](Self::option) does.
    #[must_use]
    pub fn option_of_parts(mut self, number: u16, parts: &[&[u8]]) -> Builder<'o> {
        self.put_head(number, parts.iter().map(|p| p.len()).sum());
        parts.iter().for_each(|p| self.out.extend_from_slice(p));
        self
    }

    #[inline]
    fn put(&mut self, number: u16, value: &[u8]) {
        self.put_head(number, value.len());
        self.out.extend_from_slice(value);
    }

    #[inline]
    fn put_head(&mut self, number: u16, len: usize) {
        assert!(number >= self.last && len <= 269 + usize::from(u16::MAX), "options out of order, or one too long");
        let (delta, delta_extension, delta_used) = extend(usize::from(number - self.last));
        let (length, length_extension, length_used) = extend(len);
        self.out.push(delta << 4 | length);
        self.out.extend_from_slice(&delta_extension[..delta_used]);
        self.out.extend_from_slice(&length_extension[..length_used]);
        self.last = number;
    }

    /// Appends an option whose value is a number, in as few bytes as hold it.
    ///
    /// # Panics
    ///
    /// If `number` is below that of an option already written.
    #[inline]
    pub fn uint(mut self, number: u16, value: u32) -> Builder<'o> {
        self.put_uint(number, value);
        self
    }

    #[inline]
    fn put_uint(&mut self, number: u16, value: u32) {
        let (bytes, used) = uint_bytes(value);
        self.put(number, &bytes[4 - used..]);
    }

    /// Appends the payload, with its marker unless it is empty, and ends the message.
    #[inline]
    pub fn payload(self, payload: &[u8]) {
        if !payload.is_empty() {
            self.out.push(PAYLOAD_MARKER);
            self.out.extend_from_slice(payload);
        }
    }
}

/// What a response needs of the request that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplyTo {
    /// Type of the request: [`Type::Con`] or [`Type::Non`].
    pub kind: Type,
    /// Its message ID.
    pub mid: u16,
    /// Responses that its sender does not want.
    pub no_response: NoResponse,
    /// Its token.
    pub token: Token,
}

impl ReplyTo {
    /// Whether a response of this code is a message at all: one that its sender does not want is, if an acknowledgement is
    /// (RFC 7967 §2.1).
    #[must_use]
    pub fn is_told(&self, code: Code) -> bool {
        self.kind == Type::Con || !self.no_response.suppresses(code)
    }
}

/// What [`Response::write`] appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// An acknowledgement with the response in it.
    Piggybacked,
    /// An empty acknowledgement: the sender does not want the response (RFC 7967 §2.1), but must not repeat its request.
    EmptyAck,
    /// A message of its own, with the message ID that was given.
    Separate,
    /// Nothing: the sender does not want the response.
    Nothing,
}

/// A response. Its options are written in the order of their numbers whatever order they are set in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The code.
    pub code: Code,
    /// ETag; absent if empty.
    pub etag: &'a [u8],
    /// Observe: the sequence number of a notification (RFC 7641 §3.4).
    pub observe: Option<u32>,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// Max-Age in seconds. In a 5.03, when to try again (RFC 7252 §5.9.3.4).
    pub max_age: Option<u32>,
    /// Block2: which part of a body the payload is.
    pub block2: Option<Block>,
    /// Block1: which part of the request's body this answers.
    pub block1: Option<Block>,
    /// Size2: bytes of the whole body.
    pub size2: Option<u32>,
    /// Size1: in a 4.13, bytes that the server takes (RFC 7252 §5.9.2.9).
    pub size1: Option<u32>,
    /// Echo (RFC 9175 §2); absent if empty.
    pub echo: &'a [u8],
    /// The payload; absent if empty.
    pub payload: &'a [u8],
}

impl<'a> Response<'a> {
    /// A response with this code, without options and payload.
    #[inline]
    #[must_use]
    pub const fn new(code: Code) -> Response<'a> {
        Response {
            code,
            etag: &[],
            observe: None,
            content_format: None,
            max_age: None,
            block2: None,
            block1: None,
            size2: None,
            size1: None,
            echo: &[],
            payload: &[],
        }
    }

    /// An error with a text for the human who reads it (RFC 7252 §5.5.2), cut to [`MAX_DIAGNOSTIC`] bytes.
    #[must_use]
    pub fn diagnostic(code: Code, text: &'a str) -> Response<'a> {
        let end = text.floor_char_boundary(MAX_DIAGNOSTIC);
        Response { payload: &text.as_bytes()[..end], ..Response::new(code) }
    }

    /// A 5.03 that says when to try again (RFC 7252 §5.9.3.4).
    #[must_use]
    pub const fn unavailable(retry_after_seconds: u32) -> Response<'a> {
        Response { max_age: Some(retry_after_seconds), ..Response::new(Code::SERVICE_UNAVAILABLE) }
    }

    /// A 4.13 that says how much is taken (RFC 7252 §5.9.2.9).
    #[must_use]
    pub const fn too_large(limit: u32) -> Response<'a> {
        Response { size1: Some(limit), ..Response::new(Code::REQUEST_ENTITY_TOO_LARGE) }
    }

    /// Appends the answer to a request that has not been answered yet: piggybacked on the acknowledgement of a confirmable
    /// one, non-confirmable with the message ID `mid` to a non-confirmable one (RFC 7252 §5.2.1, §5.2.3).
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, to: &ReplyTo, mid: u16) -> Written {
        let suppressed = to.no_response.suppresses(self.code);
        match to.kind {
            Type::Con if suppressed => {
                empty_ack(out, to.mid);
                Written::EmptyAck
            }
            Type::Con => {
                self.write_message(out, Type::Ack, to.mid, to.token.as_slice());
                Written::Piggybacked
            }
            _ => self.write_separate(out, Type::Non, to, mid),
        }
    }

    /// Appends the answer to a request that got its empty acknowledgement before (RFC 7252 §5.2.2), as a message of `kind`
    /// with the message ID `mid`.
    #[inline]
    pub fn write_separate(&self, out: &mut Vec<u8>, kind: Type, to: &ReplyTo, mid: u16) -> Written {
        if to.no_response.suppresses(self.code) {
            return Written::Nothing;
        }
        self.write_message(out, kind, mid, to.token.as_slice());
        Written::Separate
    }

    /// Appends the response as a message of `kind`, to whomever wants it: a notification is one (RFC 7641 §4.2).
    #[inline]
    pub fn write_message(&self, out: &mut Vec<u8>, kind: Type, mid: u16, token: &[u8]) {
        let mut builder = Builder::new(out, kind, self.code, mid, token);
        let b = &mut builder;
        if !self.etag.is_empty() {
            b.put(number::ETAG, self.etag);
        }
        let uints = [
            (number::OBSERVE, self.observe),
            (number::CONTENT_FORMAT, self.content_format.map(u32::from)),
            (number::MAX_AGE, self.max_age),
            (number::BLOCK2, self.block2.map(Block::to_uint)),
            (number::BLOCK1, self.block1.map(Block::to_uint)),
            (number::SIZE2, self.size2),
            (number::SIZE1, self.size1),
        ];
        for (number, value) in uints {
            if let Some(value) = value {
                b.put_uint(number, value);
            }
        }
        if !self.echo.is_empty() {
            b.put(number::ECHO, self.echo);
        }
        builder.payload(self.payload);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use coap_lite::{CoapOption, MessageType, Packet};

    fn to(kind: Type, no_response: NoResponse) -> ReplyTo {
        ReplyTo { kind, mid: 0x1234, no_response, token: Token::new(b"tok") }
    }

    #[test]
    fn the_usual_answer_byte_by_byte() {
        let mut out = vec![0xEE];
        bare_ack(&mut out, Code::CHANGED, 0x1234, b"tok");
        assert_eq!(out, b"\xEE\x63\x44\x12\x34tok");
        let mut same = vec![0xEE];
        let written = Response::new(Code::CHANGED).write(&mut same, &to(Type::Con, NoResponse::NONE), 9);
        assert_eq!((written, same), (Written::Piggybacked, out));
    }

    #[test]
    fn empty_messages_byte_by_byte() {
        let mut out = Vec::new();
        empty_ack(&mut out, 0xABCD);
        reset(&mut out, 0xABCD);
        ping(&mut out, 0xABCD);
        assert_eq!(out, b"\x60\0\xAB\xCD\x70\0\xAB\xCD\x40\0\xAB\xCD");
    }

    #[test]
    fn a_confirmable_request_is_answered_in_its_acknowledgement_and_a_non_confirmable_one_in_a_message_of_its_own() {
        let response = Response::new(Code::CONTENT);
        for (kind, written, first, mid) in
            [(Type::Con, Written::Piggybacked, Type::Ack, 0x1234), (Type::Non, Written::Separate, Type::Non, 7)]
        {
            let mut out = Vec::new();
            assert_eq!(response.write(&mut out, &to(kind, NoResponse::NONE), 7), written);
            let message = Message::parse(&out).unwrap();
            assert_eq!((message.kind, message.mid, message.token), (first, mid, &b"tok"[..]));
        }
    }

    #[test]
    fn an_unwanted_response_is_not_sent_but_a_confirmable_request_is_acknowledged() {
        let quiet = NoResponse(0b10);
        let (ok, error) = (Response::new(Code::CHANGED), Response::new(Code::BAD_REQUEST));
        let mut out = Vec::new();
        assert_eq!(ok.write(&mut out, &to(Type::Non, quiet), 7), Written::Nothing);
        assert!(out.is_empty());
        assert_eq!(ok.write_separate(&mut out, Type::Con, &to(Type::Con, quiet), 7), Written::Nothing);
        assert!(out.is_empty());
        assert_eq!(ok.write(&mut out, &to(Type::Con, quiet), 7), Written::EmptyAck);
        assert_eq!(out, b"\x60\0\x12\x34");
        assert_eq!(error.write(&mut out, &to(Type::Con, quiet), 7), Written::Piggybacked);
    }

    #[test]
    fn every_option_is_read_back_by_coap_lite() {
        let block = Block { num: 3, more: true, szx: 2 };
        let response = Response {
            etag: b"\x01\x02",
            observe: Some(0x01_0203),
            content_format: Some(60),
            max_age: Some(300),
            block2: Some(block),
            block1: Some(block),
            size2: Some(70_000),
            size1: Some(0),
            echo: b"echo",
            payload: b"payload",
            ..Response::new(Code::CONTENT)
        };
        let mut out = Vec::new();
        response.write(&mut out, &to(Type::Non, NoResponse::NONE), 0xBEEF);
        let packet = Packet::from_bytes(&out).unwrap();
        assert_eq!(packet.header.get_type(), MessageType::NonConfirmable);
        assert_eq!(packet.header.message_id, 0xBEEF);
        assert_eq!(packet.get_token(), b"tok");
        assert_eq!(packet.payload, b"payload");
        let expected: [(CoapOption, &[u8]); 9] = [
            (CoapOption::ETag, b"\x01\x02"),
            (CoapOption::Observe, b"\x01\x02\x03"),
            (CoapOption::ContentFormat, b"\x3C"),
            (CoapOption::MaxAge, b"\x01\x2C"),
            (CoapOption::Block2, b"\x3A"),
            (CoapOption::Block1, b"\x3A"),
            (CoapOption::Size2, b"\x01\x11\x70"),
            (CoapOption::Size1, b""),
            (CoapOption::Unknown(number::ECHO), b"echo"),
        ];
        assert_eq!(packet.options().count(), expected.len());
        for (option, value) in expected {
            assert_eq!(packet.get_first_option(option).unwrap(), value, "{option:?}");
        }
    }

    #[test]
    fn lengths_and_deltas_at_every_edge_are_read_back() {
        let value = vec![0x5A; 269 + usize::from(u16::MAX)];
        for delta in [0, 12, 13, 268, 269, u16::MAX] {
            for length in [0, 12, 13, 268, 269, value.len()] {
                let mut out = Vec::new();
                Builder::new(&mut out, Type::Con, Code::POST, 1, b"").option(delta, &value[..length]).payload(b"p");
                let message = Message::parse(&out).unwrap();
                let options: Vec<_> = message.options().map(|o| (o.number, o.value.len())).collect();
                assert_eq!(options, [(delta, length)]);
                assert_eq!(message.payload, b"p");
            }
        }
    }

    #[test]
    fn tokens_of_every_length_are_read_back() {
        for len in [0, 8, 9, 12, 13, 268, 269, 1000, MAX_EXTENDED_TOKEN] {
            let token = vec![7; len];
            let mut out = Vec::new();
            bare_ack(&mut out, Code::CHANGED, 1, &token);
            assert_eq!(Message::parse(&out).unwrap().token, token);
        }
    }

    #[test]
    fn a_diagnostic_is_cut_between_characters() {
        let text = format!("{}é", "x".repeat(MAX_DIAGNOSTIC - 1));
        assert_eq!(Response::diagnostic(Code::BAD_REQUEST, &text).payload.len(), MAX_DIAGNOSTIC - 1);
        assert_eq!(Response::diagnostic(Code::BAD_REQUEST, "short").payload, b"short");
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn options_out_of_order_are_a_fault_of_the_caller() {
        let mut out = Vec::new();
        Builder::new(&mut out, Type::Con, Code::POST, 1, b"").option(11, b"a").option(3, b"h").payload(b"");
    }
}
