//! The few CoAP messages that a simulated device sends and reads (RFC 7252 §3).
//!
//! A load generator that shared the server's codec would share its mistakes, so this one stands alone.

use crate::audit::DEVICE_DIGITS;
use crate::payload::Mark;

/// Version 1 in the first byte.
const VERSION: u8 = 0b0100_0000;
/// Length of the tokens that devices use.
pub(crate) const TOKEN_LEN: usize = 4;

const URI_PATH: u16 = 11;
const CONTENT_FORMAT: u16 = 12;
const URI_QUERY: u16 = 15;
const NO_RESPONSE: u16 = 258;
/// `application/octet-stream` (RFC 7252 §12.3).
const OCTET_STREAM: u8 = 42;
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
        Some(Answer { ty, code, mid: u16::from_be_bytes([mid_high, mid_low]), token })
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
    /// The number in the device's name.
    pub(crate) name: u32,
    pub(crate) mark: Mark,
}

/// The common part of all requests, with places for what differs.
#[derive(Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    /// Where the digits of the device's index go.
    digits_at: Vec<usize>,
}

/// Stands for the device's digits while the template is built.
const PLACEHOLDER: &str = "{device}";

impl Template {
    /// Requests to `path` (in which `{device}` stands for the device's name), of the device `ep` if its query is wanted.
    pub(crate) fn new(ty: Type, method: Method, path: &str, prefix: &str, ep: bool, no_response: bool) -> Template {
        let code = match method {
            Method::Post => 0x02,
            Method::Put => 0x03,
        };
        let mut template = Template {
            bytes: vec![VERSION | (ty as u8) << 4 | TOKEN_LEN as u8, code, 0, 0, 0, 0, 0, 0],
            digits_at: Vec::new(),
        };
        let mut previous = 0;
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            template.option(&mut previous, URI_PATH, segment, prefix);
        }
        template.number(&mut previous, CONTENT_FORMAT, &[OCTET_STREAM]);
        if ep {
            template.option(&mut previous, URI_QUERY, &format!("ep={PLACEHOLDER}"), prefix);
        }
        if no_response {
            template.number(&mut previous, NO_RESPONSE, &[NO_RESPONSE_AT_ALL]);
        }
        template.bytes.push(0xff);
        template
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

    /// Appends a whole request.
    #[inline]
    pub(crate) fn write(&self, request: &Request, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let bytes = &mut out[start..];
        bytes[2..4].copy_from_slice(&request.mid.to_be_bytes());
        bytes[4..8].copy_from_slice(&request.token.to_be_bytes());
        if !self.digits_at.is_empty() {
            let digits = digits(request.name);
            for &at in &self.digits_at {
                bytes[at..at + DEVICE_DIGITS].copy_from_slice(&digits);
            }
        }
        request.mark.write(request.payload_len, out);
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

    fn request(device: u32) -> Request {
        Request {
            mid: 0x1234,
            token: 0xa1b2_c3d4,
            payload_len: 64,
            name: device,
            mark: Mark { run: 1, device, number: 2, due_micros: 3 },
        }
    }

    #[test]
    fn a_request_is_laid_out_as_the_rfc_says() {
        let template = Template::new(Type::Confirmable, Method::Post, "/a/{device}/b", "bench-", true, false);
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
        let template = Template::new(Type::NonConfirmable, Method::Put, "t", "x", false, true);
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
        assert_eq!(answer, Answer { ty: Type::Acknowledgement, code: 0x44, mid: 0x1234, token: &[1, 2, 3, 4] });
        assert_eq!(code_name(answer.code), "2.04");
        let ack = empty(Type::Acknowledgement, 0x0102);
        assert_eq!(Answer::parse(&ack), Some(Answer { ty: Type::Acknowledgement, code: 0, mid: 0x0102, token: &[] }));
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
}
