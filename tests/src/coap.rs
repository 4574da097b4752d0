//! CoAP, byte by byte (RFC 7252 §3, with the longer tokens of RFC 8974), with an endpoint that sends whatever a test wants.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::dtls::Tunnel;
use crate::wait::DEADLINE;

/// Message types, as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Confirmable.
    Con = 0,
    /// Non-confirmable.
    Non = 1,
    /// Acknowledgement.
    Ack = 2,
    /// Reset.
    Rst = 3,
}

/// The code `class.detail`.
#[must_use]
pub const fn code(class: u8, detail: u8) -> u8 {
    class << 5 | detail
}

/// Codes that the tests use.
pub const EMPTY: u8 = 0;
/// GET.
pub const GET: u8 = code(0, 1);
/// POST.
pub const POST: u8 = code(0, 2);
/// PUT.
pub const PUT: u8 = code(0, 3);
/// DELETE.
pub const DELETE: u8 = code(0, 4);
/// FETCH (RFC 8132).
pub const FETCH: u8 = code(0, 5);
/// PATCH (RFC 8132).
pub const PATCH: u8 = code(0, 6);
/// iPATCH (RFC 8132).
pub const IPATCH: u8 = code(0, 7);
/// 2.02 Deleted.
pub const DELETED: u8 = code(2, 2);
/// 2.03 Valid.
pub const VALID: u8 = code(2, 3);
/// 2.31 Continue.
pub const CONTINUE: u8 = code(2, 31);
/// 4.00 Bad Request.
pub const BAD_REQUEST: u8 = code(4, 0);
/// 4.04 Not Found.
pub const NOT_FOUND: u8 = code(4, 4);
/// 4.05 Method Not Allowed.
pub const NOT_ALLOWED: u8 = code(4, 5);
/// 4.06 Not Acceptable.
pub const NOT_ACCEPTABLE: u8 = code(4, 6);
/// 4.08 Request Entity Incomplete.
pub const INCOMPLETE: u8 = code(4, 8);
/// 2.04 Changed.
pub const CHANGED: u8 = code(2, 4);
/// 2.05 Content.
pub const CONTENT: u8 = code(2, 5);
/// 4.01 Unauthorized.
pub const UNAUTHORIZED: u8 = code(4, 1);
/// 4.02 Bad Option.
pub const BAD_OPTION: u8 = code(4, 2);
/// 4.13 Request Entity Too Large.
pub const TOO_LARGE: u8 = code(4, 13);
/// 5.03 Service Unavailable.
pub const UNAVAILABLE: u8 = code(5, 3);

/// Option numbers that the tests use.
pub const URI_PATH: u16 = 11;
/// Content-Format.
pub const CONTENT_FORMAT: u16 = 12;
/// Max-Age.
pub const MAX_AGE: u16 = 14;
/// Uri-Query.
pub const URI_QUERY: u16 = 15;
/// ETag.
pub const ETAG: u16 = 4;
/// Observe (RFC 7641).
pub const OBSERVE: u16 = 6;

/// Whether the Observe number `second`, which came within 128 seconds of `first`, is the newer one (RFC 7641 §3.4).
#[must_use]
pub const fn is_newer(second: u64, first: u64) -> bool {
    let ahead = second.wrapping_sub(first) % (1 << 24);
    ahead != 0 && ahead < 1 << 23
}

/// Hop-Limit (RFC 8768).
pub const HOP_LIMIT: u16 = 16;
/// Accept.
pub const ACCEPT: u16 = 17;
/// Block2 (RFC 7959).
pub const BLOCK2: u16 = 23;
/// Block1 (RFC 7959).
pub const BLOCK1: u16 = 27;
/// Size2 (RFC 7959).
pub const SIZE2: u16 = 28;
/// Echo (RFC 9175).
pub const ECHO: u16 = 252;
/// Request-Tag (RFC 9175).
pub const REQUEST_TAG: u16 = 292;
/// Size1.
pub const SIZE1: u16 = 60;
/// No-Response (RFC 7967).
pub const NO_RESPONSE: u16 = 258;

/// Which block of a body, and of which size: 2^(szx + 4) bytes (RFC 7959 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Its number.
    pub num: u32,
    /// More follow.
    pub more: bool,
    /// Size exponent.
    pub szx: u8,
}

/// A CoAP message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub kind: Kind,
    /// Code.
    pub code: u8,
    /// Message ID.
    pub mid: u16,
    /// Token.
    pub token: Vec<u8>,
    /// Options, in any order; encoding sorts them.
    pub options: Vec<(u16, Vec<u8>)>,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Message {
    /// A message without token, options or payload.
    #[must_use]
    pub fn new(kind: Kind, code: u8, mid: u16) -> Message {
        Message { kind, code, mid, token: Vec::new(), options: Vec::new(), payload: Vec::new() }
    }

    /// A POST to `path` from the device `ep`, with a token made of the message ID.
    #[must_use]
    pub fn post(kind: Kind, mid: u16, path: &str, ep: &str, payload: &[u8]) -> Message {
        let mut message = Message::new(kind, POST, mid).path(path).option(URI_QUERY, format!("ep={ep}").as_bytes());
        message.token = mid.to_be_bytes().to_vec();
        message.payload = payload.to_vec();
        message
    }

    /// A request for `path` with a token made of the message ID.
    #[must_use]
    pub fn request(kind: Kind, code: u8, mid: u16, path: &str) -> Message {
        let mut message = Message::new(kind, code, mid).path(path);
        message.token = mid.to_be_bytes().to_vec();
        message
    }

    /// Adds a query parameter.
    #[must_use]
    pub fn query(self, query: &str) -> Message {
        self.option(URI_QUERY, query.as_bytes())
    }

    /// Adds an option that holds a number, in as few bytes as hold it (RFC 7252 §3.2).
    #[must_use]
    pub fn uint(self, number: u16, value: u32) -> Message {
        let bytes = value.to_be_bytes();
        self.option(number, &bytes[value.leading_zeros() as usize / 8..])
    }

    /// Adds a block option (RFC 7959 §2.2).
    #[must_use]
    pub fn block(self, number: u16, block: Block) -> Message {
        self.uint(number, block.num << 4 | u32::from(block.more) << 3 | u32::from(block.szx))
    }

    /// The value of a block option.
    #[must_use]
    pub fn find_block(&self, number: u16) -> Option<Block> {
        let value = self.find_uint(number)? as u32;
        Some(Block { num: value >> 4, more: value & 8 != 0, szx: (value & 7) as u8 })
    }

    /// Its payload as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }

    /// Adds the segments of a path.
    #[must_use]
    pub fn path(mut self, path: &str) -> Message {
        self.options.extend(path.split('/').map(|segment| (URI_PATH, segment.as_bytes().to_vec())));
        self
    }

    /// Adds an option.
    #[must_use]
    pub fn option(mut self, number: u16, value: &[u8]) -> Message {
        self.options.push((number, value.to_vec()));
        self
    }

    /// The first value of an option.
    #[must_use]
    pub fn find(&self, number: u16) -> Option<&[u8]> {
        self.options.iter().find(|(n, _)| *n == number).map(|(_, value)| value.as_slice())
    }

    /// The first value of an option that holds a number (RFC 7252 §3.2).
    #[must_use]
    pub fn find_uint(&self, number: u16) -> Option<u64> {
        Some(self.find(number)?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (token_len, token_len_more) = nibble(self.token.len());
        let mut out = vec![1 << 6 | (self.kind as u8) << 4 | token_len, self.code];
        out.extend(self.mid.to_be_bytes());
        out.extend(token_len_more);
        out.extend(&self.token);
        let mut options = self.options.clone();
        options.sort_by_key(|(number, _)| *number);
        let mut last = 0;
        for (number, value) in options {
            let (delta, delta_more) = nibble(usize::from(number - last));
            let (len, len_more) = nibble(value.len());
            out.push(delta << 4 | len);
            out.extend(delta_more);
            out.extend(len_more);
            out.extend(value);
            last = number;
        }
        if !self.payload.is_empty() {
            out.push(0xFF);
            out.extend(&self.payload);
        }
        out
    }

    /// The message in `bytes`; a malformed one fails the test, because the gateway must not send such.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Message {
        Self::read(bytes).unwrap_or_else(|| panic!("the gateway sent a malformed message: {bytes:02x?}"))
    }

    fn read(bytes: &[u8]) -> Option<Message> {
        let (head, mut rest) = bytes.split_first_chunk::<4>()?;
        if head[0] >> 6 != 1 {
            return None;
        }
        let kind = [Kind::Con, Kind::Non, Kind::Ack, Kind::Rst][usize::from(head[0] >> 4 & 3)];
        let token_len = extended(head[0] & 0xF, &mut rest)?;
        let mut message = Message::new(kind, head[1], u16::from_be_bytes([head[2], head[3]]));
        let (token, tail) = rest.split_at_checked(token_len)?;
        message.token = token.to_vec();
        rest = tail;
        let mut number = 0;
        while let Some((&first, tail)) = rest.split_first() {
            rest = tail;
            if first == 0xFF {
                if rest.is_empty() {
                    return None;
                }
                message.payload = rest.to_vec();
                break;
            }
            number += extended(first >> 4, &mut rest)?;
            let len = extended(first & 0xF, &mut rest)?;
            let (value, tail) = rest.split_at_checked(len)?;
            message.options.push((u16::try_from(number).ok()?, value.to_vec()));
            rest = tail;
        }
        if message.code == EMPTY && bytes.len() != 4 {
            return None;
        }
        Some(message)
    }
}

fn nibble(value: usize) -> (u8, Vec<u8>) {
    match value {
        0..=12 => (value as u8, Vec::new()),
        13..=268 => (13, vec![(value - 13) as u8]),
        _ => (14, u16::try_from(value - 269).expect("an option of at most 64 kB").to_be_bytes().to_vec()),
    }
}

fn extended(nibble: u8, rest: &mut &[u8]) -> Option<usize> {
    match nibble {
        13 => {
            let (&more, tail) = rest.split_first()?;
            *rest = tail;
            Some(usize::from(more) + 13)
        }
        14 => {
            let (more, tail) = rest.split_first_chunk::<2>()?;
            *rest = tail;
            Some(usize::from(u16::from_be_bytes(*more)) + 269)
        }
        15 => None,
        small => Some(usize::from(small)),
    }
}

/// An endpoint: one UDP socket towards one gateway.
#[derive(Debug)]
pub struct Endpoint {
    socket: UdpSocket,
    gateway: SocketAddr,
    mid: u16,
    /// What it is behind; open as long as it lives.
    tunnel: Option<Tunnel>,
}

impl Endpoint {
    /// A new endpoint on a free port. It is not connected, so that a gateway that is down is silent, as it is from afar.
    #[must_use]
    pub fn new(gateway: SocketAddr) -> Endpoint {
        let any = if gateway.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(any).expect("a free port");
        Endpoint { socket, gateway, mid: 0, tunnel: None }
    }

    /// The same over DTLS, as the device `identity`.
    #[must_use]
    pub fn secure(gateway: SocketAddr, identity: &str, key: &[u8]) -> Endpoint {
        let tunnel = Tunnel::open(gateway, identity, key);
        let mut endpoint = Endpoint::new(tunnel.address);
        endpoint.tunnel = Some(tunnel);
        endpoint
    }

    /// A message ID that this endpoint has not used.
    pub fn mid(&mut self) -> u16 {
        self.mid += 1;
        self.mid
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.socket.send_to(bytes, self.gateway).expect("loopback takes a datagram");
    }

    /// Sends a message.
    pub fn send(&self, message: &Message) {
        self.send_bytes(&message.encode());
    }

    /// The next message, if one comes within `patience`.
    #[must_use]
    pub fn try_receive(&self, patience: Duration) -> Option<Message> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; 65536];
        loop {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.socket.set_read_timeout(Some(left)).expect("a positive time");
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) if from == self.gateway => return Some(Message::decode(&buffer[..len])),
                Ok((_, from)) => panic!("a datagram from {from}, not from the gateway's address {}", self.gateway),
                Err(_) => {}
            }
        }
    }

    /// The next message.
    #[must_use]
    pub fn receive(&self) -> Message {
        self.try_receive(DEADLINE).expect("the gateway sends something")
    }

    /// Sends `message` and returns the next message.
    #[must_use]
    pub fn exchange(&self, message: &Message) -> Message {
        self.send(message);
        self.receive()
    }

    /// GETs `path` as a confirmable message and returns the answer, once it is there.
    pub fn get(&mut self, path: &str) -> Message {
        let message = Message::request(Kind::Con, GET, self.mid(), path);
        self.ask(&message)
    }

    /// Sends a confirmable request and returns its response, which is acknowledged if it comes apart from the acknowledgement.
    pub fn ask(&mut self, request: &Message) -> Message {
        self.send(request);
        loop {
            let answer = self.receive();
            if answer.kind == Kind::Ack && answer.mid == request.mid && answer.code == EMPTY {
                continue;
            }
            if answer.token == request.token {
                if answer.kind == Kind::Con {
                    self.acknowledge(&answer);
                }
                return answer;
            }
        }
    }

    /// Registers to observe `path` with `token`; returns the response.
    pub fn observe(&mut self, path: &str, token: &[u8], ep: Option<&str>) -> Message {
        let mut request = Message::request(Kind::Con, GET, self.mid(), path).option(OBSERVE, &[]);
        if let Some(ep) = ep {
            request = request.query(&format!("ep={ep}"));
        }
        request.token = token.to_vec();
        self.ask(&request)
    }

    /// Acknowledges a confirmable message.
    pub fn acknowledge(&self, message: &Message) {
        if message.kind == Kind::Con {
            self.send(&Message::new(Kind::Ack, EMPTY, message.mid));
        }
    }

    /// The next message, which is acknowledged if it wants to be.
    pub fn notified(&self) -> Message {
        let message = self.receive();
        self.acknowledge(&message);
        message
    }

    /// POSTs a reading as a confirmable message and returns the answer.
    pub fn post(&mut self, path: &str, ep: &str, payload: &[u8]) -> Message {
        let message = Message::post(Kind::Con, self.mid(), path, ep, payload);
        self.exchange(&message)
    }

    /// Shows that nothing is on its way: a ping (RFC 7252 §4.3), sent after everything else from the same port and so handled
    /// after it, is answered by a Reset, which must be the next message. Panics with that message if it is another.
    pub fn expect_silence(&mut self) {
        let mid = self.mid();
        let pong = self.exchange(&Message::new(Kind::Con, EMPTY, mid));
        assert_eq!(pong, Message::new(Kind::Rst, EMPTY, mid), "an answer came where there should be none");
    }
}
