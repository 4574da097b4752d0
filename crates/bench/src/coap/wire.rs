//! The few CoAP messages that a simulated device sends and reads (RFC 7252 §3).
//!
//! A load generator that shared the server's codec would share its mistakes, so this one stands alone.

use std::sync::Arc;

use crate::audit::DEVICE_DIGITS;
use crate::pattern::Pattern;
use crate::payload::Mark;

/// Version 1 in the first byte.
const VERSION: u8 = 0b0100_0000;
/// Length of the tokens that devices use.
pub(crate) const TOKEN_LEN: usize = 4;

const OBSERVE: u16 = 6;
const URI_PATH: u16 = 11;
const CONTENT_FORMAT: u16 = 12;
const URI_QUERY: u16 = 15;
const NO_RESPONSE: u16 = 258;
/// `application/octet-stream` (RFC 7252 §12.3).
pub(crate) const OCTET_STREAM: u16 = 42;
/// No response of any class is wanted (RFC 7967 §2.1).
const NO_RESPONSE_AT_ALL: u8 = 0b11010;

/// Message types (RFC 7252 §3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Confirmable = 0,
    NonConfirmable = 1,
    Acknowledgement = 2,
    Reset = 3,
}

/// A message of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    pub(crate) ty: Type,
    /// Class in the upper three bits, detail below.
    pub(crate) code: u8,
    pub(crate) mid: u16,
    pub(crate) token: &'a [u8],
    /// Options and payload.
    rest: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Reads header and token; `None` if the datagram is no CoAP message.
    pub(crate) fn parse(datagram: &'a [u8]) -> Option<Answer<'a>> {
        let &[first, code, mid_high, mid_low, ..] = datagram else { return None };
        let token_len = usize::from(first & 0x0f);
        if first & 0xc0 != VERSION || token_len > 8 {
            return None;
        }
        let token = datagram.get(4..4 + token_len)?;
        if code == 0 && datagram.len() != 4 {
            return None;
        }
        let ty = match first >> 4 & 0b11 {
            0 => Type::Confirmable,
            1 => Type::NonConfirmable,
            2 => Type::Acknowledgement,
            _ => Type::Reset,
        };
        let rest = &datagram[4 + token_len..];
        Some(Answer { ty, code, mid: u16::from_be_bytes([mid_high, mid_low]), token, rest })
    }

    /// The Observe option, if there is one (RFC 7641 §2), and the payload; `None` if the options are malformed.
    pub(crate) fn content(&self) -> Option<(Option<u32>, &'a [u8])> {
        let mut rest = self.rest;
        let (mut number, mut observe) = (0u32, None);
        loop {
            match rest {
                [] => return Some((observe, rest)),
                [0xff] => return None,
                [0xff, payload @ ..] => return Some((observe, payload)),
                [first, after @ ..] => {
                    rest = after;
                    let delta = take_extended(first >> 4, &mut rest)?;
                    let len = take_extended(first & 0xf, &mut rest)?;
                    number += u32::from(delta);
                    let (value, after) = rest.split_at_checked(usize::from(len))?;
                    rest = after;
                    if number == u32::from(OBSERVE) && value.len() <= 3 {
                        observe = Some(value.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)));
                    }
                }
            }
        }
    }
}

/// A delta or length as its nibble and the bytes after it say (RFC 7252 §3.1).
fn take_extended(nibble: u8, rest: &mut &[u8]) -> Option<u16> {
    match (nibble, *rest) {
        (0..13, _) => Some(u16::from(nibble)),
        (13, [byte, after @ ..]) => {
            *rest = after;
            Some(13 + u16::from(*byte))
        }
        (14, [high, low, after @ ..]) => {
            *rest = after;
            u16::from_be_bytes([*high, *low]).checked_add(269)
        }
        _ => None,
    }
}

/// A code as RFC 7252 §3 writes it: `4.04`.
pub(crate) fn code_name(code: u8) -> String {
    format!("{}.{:02}", code >> 5, code & 0x1f)
}

/// An empty message: ping (as a CON), empty acknowledgement.
pub(crate) fn empty(ty: Type, mid: u16) -> [u8; 4] {
    let [high, low] = mid.to_be_bytes();
    [VERSION | (ty as u8) << 4, 0, high, low]
}

/// The method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// 0.02
    Post,
    /// 0.03
    Put,
}

/// What distinguishes one request from another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request {
    pub(crate) mid: u16,
    pub(crate) token: u32,
    pub(crate) payload_len: usize,
    /// The number in the name that the path and a pattern have: the device's own, or that of the one it is for.
    pub(crate) name: u32,
    /// The number in the device's own name.
    pub(crate) own: u32,
    pub(crate) mark: Mark,
}

/// What requests have in common.
#[derive(Debug, Clone)]
pub(crate) struct Common<'a> {
    pub(crate) ty: Type,
    pub(crate) method: Method,
    /// `{device}` in it stands for the device's name.
    pub(crate) path: &'a str,
    /// What that name begins with.
    pub(crate) prefix: &'a str,
    /// What the name of the device begins with that sends, if the query is to say it.
    pub(crate) ep: Option<&'a str>,
    pub(crate) no_response: bool,
    pub(crate) content_format: u16,
    pub(crate) pattern: Option<Arc<Pattern>>,
}

/// The common part of all requests, with places for what differs.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    /// Where the digits of the name in the path go.
    digits_at: Vec<usize>,
    /// Where those of the sender's name in the query go.
    own_digits_at: Vec<usize>,
    /// What the payload is, if it is no filler, and what the device's name in it begins with.
    pattern: Option<(Arc<Pattern>, String)>,
}

/// Stands for the device's digits while the template is built.
const PLACEHOLDER: &str = "{device}";

impl Template {
    /// What the token of a registration has behind the device's index, by which its answers are told from others.
    pub(crate) const OBSERVE_TAIL: &'static [u8] = b"o";

    pub(crate) fn new(common: &Common<'_>) -> Template {
        let Common { prefix, .. } = *common;
        let code = match common.method {
            Method::Post => 0x02,
            Method::Put => 0x03,
        };
        let mut template = Template {
            bytes: vec![VERSION | (common.ty as u8) << 4 | TOKEN_LEN as u8, code, 0, 0, 0, 0, 0, 0],
            digits_at: Vec::new(),
            own_digits_at: Vec::new(),
            pattern: common.pattern.clone().map(|pattern| (pattern, prefix.to_owned())),
        };
        let mut previous = 0;
        template.path(&mut previous, common.path, prefix);
        let format = common.content_format.to_be_bytes();
        template.number(&mut previous, CONTENT_FORMAT, &format[format.iter().take_while(|byte| **byte == 0).count()..]);
        template.query(&mut previous, common.ep);
        if common.no_response {
            template.number(&mut previous, NO_RESPONSE, &[NO_RESPONSE_AT_ALL]);
        }
        template.bytes.push(0xff);
        template
    }

    /// Registrations to observe `path` (RFC 7641 §3.1).
    pub(crate) fn observe(path: &str, prefix: &str, ep: bool) -> Template {
        let token_len = TOKEN_LEN + Template::OBSERVE_TAIL.len();
        let mut bytes = vec![VERSION | token_len as u8, 0x01, 0, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(Template::OBSERVE_TAIL);
        let mut template = Template { bytes, digits_at: Vec::new(), own_digits_at: Vec::new(), pattern: None };
        let mut previous = 0;
        // 0, to register, is an integer without bytes (RFC 7252 §3.2).
        template.number(&mut previous, OBSERVE, &[]);
        template.path(&mut previous, path, prefix);
        template.query(&mut previous, ep.then_some(prefix));
        template
    }

    fn query(&mut self, previous: &mut u16, ep: Option<&str>) {
        let Some(prefix) = ep else { return };
        let of_path = self.digits_at.len();
        self.option(previous, URI_QUERY, &format!("ep={PLACEHOLDER}"), prefix);
        self.own_digits_at = self.digits_at.split_off(of_path);
    }

    fn path(&mut self, previous: &mut u16, path: &str, prefix: &str) {
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            self.option(previous, URI_PATH, segment, prefix);
        }
    }

    fn number(&mut self, previous: &mut u16, number: u16, value: &[u8]) {
        let (delta, delta_bytes) = extended(number - *previous);
        let (len, len_bytes) = extended(value.len() as u16);
        self.bytes.push(delta << 4 | len);
        self.bytes.extend(delta_bytes.into_iter().flatten());
        self.bytes.extend(len_bytes.into_iter().flatten());
        self.bytes.extend_from_slice(value);
        *previous = number;
    }

    fn option(&mut self, previous: &mut u16, number: u16, value: &str, prefix: &str) {
        // Zeros hold the place, so that the length is right.
        let zeros = "0".repeat(DEVICE_DIGITS);
        let mut text = String::new();
        let mut digits = Vec::new();
        for (i, part) in value.split(PLACEHOLDER).enumerate() {
            if i > 0 {
                text.push_str(prefix);
                digits.push(text.len());
                text.push_str(&zeros);
            }
            text.push_str(part);
        }
        self.number(previous, number, text.as_bytes());
        let start = self.bytes.len() - text.len();
        self.digits_at.extend(digits.into_iter().map(|at| start + at));
    }

    /// Appends all of a request but its payload.
    #[inline]
    pub(crate) fn write_head(&self, mid: u16, token: u32, name: u32, own: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let bytes = &mut out[start..];
        bytes[2..4].copy_from_slice(&mid.to_be_bytes());
        bytes[4..8].copy_from_slice(&token.to_be_bytes());
        for (places, name) in [(&self.digits_at, name), (&self.own_digits_at, own)] {
            if !places.is_empty() {
                let digits = digits(name);
                for &at in places {
                    bytes[at..at + DEVICE_DIGITS].copy_from_slice(&digits);
                }
            }
        }
    }

    /// Appends a whole request.
    #[inline]
    pub(crate) fn write(&self, request: &Request, out: &mut Vec<u8>) {
        self.write_head(request.mid, request.token, request.name, request.own, out);
        match &self.pattern {
            None => request.mark.write(request.payload_len, out),
            Some((pattern, prefix)) => pattern.write(&request.mark, prefix, request.name, out),
        }
    }
}

/// A delta or length as a nibble and the bytes that extend it (RFC 7252 §3.1).
fn extended(value: u16) -> (u8, [Option<u8>; 2]) {
    match value {
        0..13 => (value as u8, [None, None]),
        13..269 => (13, [Some((value - 13) as u8), None]),
        _ => {
            let [high, low] = (value - 269).to_be_bytes();
            (14, [Some(high), Some(low)])
        }
    }
}

/// Decimal digits with leading zeros.
pub(crate) fn digits(mut index: u32) -> [u8; DEVICE_DIGITS] {
    let mut digits = [b'0'; DEVICE_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (index % 10) as u8;
        index /= 10;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::device_name;

    const COMMON: Common<'_> = Common {
        ty: Type::Confirmable,
        method: Method::Post,
        path: "/a/{device}/b",
        prefix: "bench-",
        ep: Some("bench-"),
        no_response: false,
        content_format: OCTET_STREAM,
        pattern: None,
    };

    fn request(device: u32) -> Request {
        Request {
            mid: 0x1234,
            token: 0xa1b2_c3d4,
            payload_len: 64,
            name: device,
            own: device,
            mark: Mark { run: 1, device, number: 2, due_micros: 3 },
        }
    }

    #[test]
    fn a_request_is_laid_out_as_the_rfc_says() {
        let template = Template::new(&COMMON);
        let mut bytes = vec![7];
        template.write(&request(42), &mut bytes);
        let name = device_name("bench-", 42);
        let mut expected = vec![7, 0x44, 0x02, 0x12, 0x34, 0xa1, 0xb2, 0xc3, 0xd4];
        expected.extend([0xb1, b'a']);
        expected.extend([0x0d, 1]); // no delta, 14 bytes
        expected.extend(name.as_bytes());
        expected.extend([0x01, b'b']);
        expected.extend([0x11, 42]); // Content-Format
        expected.extend([0x3d, 4]); // Uri-Query, 17 bytes
        expected.extend(format!("ep={name}").as_bytes());
        expected.push(0xff);
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(bytes.len() - expected.len(), 64);
        assert_eq!(Mark::read(&bytes[expected.len()..]), Ok(Some(request(42).mark)));
    }

    #[test]
    fn no_response_takes_an_extended_delta() {
        let template = Template::new(&Common {
            ty: Type::NonConfirmable,
            method: Method::Put,
            path: "t",
            prefix: "x",
            ep: None,
            no_response: true,
            ..COMMON
        });
        let mut bytes = Vec::new();
        template.write(&request(1), &mut bytes);
        // 258 − 12 = 246 = 13 + 233
        assert_eq!(bytes[..2], [0x54, 0x03]);
        assert_eq!(bytes[8..16], [0xb1, b't', 0x11, 42, 0xd1, 233, 0b11010, 0xff]);
    }

    #[test]
    fn answers_are_read_and_what_is_none_is_refused() {
        let piggybacked = [0x64, 0x44, 0x12, 0x34, 1, 2, 3, 4, 0xff, 9];
        let answer = Answer::parse(&piggybacked).unwrap();
        let expected =
            Answer { ty: Type::Acknowledgement, code: 0x44, mid: 0x1234, token: &[1, 2, 3, 4], rest: &[0xff, 9] };
        assert_eq!(answer, expected);
        assert_eq!(answer.content(), Some((None, &[9][..])));
        assert_eq!(code_name(answer.code), "2.04");
        let ack = empty(Type::Acknowledgement, 0x0102);
        let expected = Answer { ty: Type::Acknowledgement, code: 0, mid: 0x0102, token: &[], rest: &[] };
        assert_eq!(Answer::parse(&ack), Some(expected));
        let bad: [&[u8]; 6] = [
            b"",
            &[0x60, 0, 1],
            &[0xa0, 0x44, 0, 1],                            // version 2
            &[0x69, 0x44, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9], // token of 9 bytes
            &[0x64, 0x44, 0, 1, 1, 2, 3],                   // cut within the token
            &[0x60, 0, 0, 1, 0xff, 1],                      // an empty message that is not
        ];
        for datagram in bad {
            assert_eq!(Answer::parse(datagram), None, "{datagram:02x?}");
        }
    }

    #[test]
    fn a_registration_is_laid_out_as_the_rfc_says_and_a_notification_is_read() {
        let mut bytes = Vec::new();
        Template::observe("cmd/{device}", "m-", true).write_head(0x1234, 0x0000_2a00, 42, 42, &mut bytes);
        let name = device_name("m-", 42);
        let mut expected = vec![0x45, 0x01, 0x12, 0x34, 0, 0, 0x2a, 0, b'o', 0x60, 0x53, b'c', b'm', b'd', 0x0a];
        expected.extend(name.as_bytes());
        expected.extend([0x4d, 0]);
        expected.extend(format!("ep={name}").as_bytes());
        assert_eq!(bytes, expected);

        let notification = [0x45, 0x45, 1, 2, 0, 0, 0x2a, 0, b'o', 0x62, 1, 2, 0x61, 50, 0xd1, 1, 7, 0xff, 9, 9];
        let answer = Answer::parse(&notification).unwrap();
        assert_eq!(answer.content(), Some((Some(0x0102), &[9, 9][..])));
        for cut in 10..notification.len() {
            // Cut between options it is a shorter message, elsewhere none.
            let between = [12, 14, 17].contains(&cut);
            assert_eq!(Answer::parse(&notification[..cut]).unwrap().content().is_some(), between || cut == 19, "{cut}");
        }
    }

    #[test]
    fn a_content_format_has_as_many_bytes_as_it_needs() {
        for (format, option) in [(0u16, &[0xc0][..]), (50, &[0xc1, 50]), (11_542, &[0xc2, 0x2d, 0x16])] {
            let mut bytes = Vec::new();
            let common = Common { path: "", ep: None, content_format: format, ..COMMON };
            Template::new(&common).write_head(0, 0, 0, 0, &mut bytes);
            assert_eq!(bytes[8..], [option, &[0xff]].concat());
        }
    }
}
