//! The handshake protocol: framing of messages (RFC 6347 §4.2.2) and what is hashed of them.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | type |
//! | 1 | 3 | length of the whole message |
//! | 4 | 2 | `message_seq`, counted by each side within a handshake |
//! | 6 | 3 | offset of this fragment |
//! | 9 | 3 | length of this fragment |
//!
//! A record holds one or more fragments.

use sha2::{Digest, Sha256};

use crate::crypto::HASH_LEN;

pub(crate) mod codec;
pub(crate) mod cookie;
pub(crate) mod flight;
pub(crate) mod reassembly;

/// Header of a handshake message.
pub(crate) const MESSAGE_HEADER_LEN: usize = 12;

/// Longest handshake message accepted. With PSK the longest is a `ServerHello` or a `ServerKeyExchange` with a hint; both are
/// far shorter.
pub(crate) const MAX_MESSAGE_LEN: usize = 1024;

/// The types of message that a PSK handshake has; the numbers are those of the wire.
pub(crate) mod message {
    pub(crate) const HELLO_REQUEST: u8 = 0;
    pub(crate) const CLIENT_HELLO: u8 = 1;
    pub(crate) const SERVER_HELLO: u8 = 2;
    pub(crate) const HELLO_VERIFY_REQUEST: u8 = 3;
    pub(crate) const SERVER_KEY_EXCHANGE: u8 = 12;
    pub(crate) const SERVER_HELLO_DONE: u8 = 14;
    pub(crate) const CLIENT_KEY_EXCHANGE: u8 = 16;
    pub(crate) const FINISHED: u8 = 20;
}

/// A message that is not laid out as its RFC says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A part of a message, or a whole one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment<'a> {
    pub(crate) kind: u8,
    /// Length of the whole message.
    pub(crate) length: usize,
    pub(crate) sequence: u16,
    /// `offset + bytes.len() <= length`.
    pub(crate) offset: usize,
    pub(crate) bytes: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads the first fragment of `body`, and gives what follows it.
    pub(crate) fn parse(body: &'a [u8]) -> Result<(Fragment<'a>, &'a [u8]), Malformed> {
        let (header, rest) = body.split_first_chunk::<MESSAGE_HEADER_LEN>().ok_or(Malformed)?;
        let u24 =
            |at: usize| usize::from(header[at]) << 16 | usize::from(header[at + 1]) << 8 | usize::from(header[at + 2]);
        let (length, offset, fragment) = (u24(1), u24(6), u24(9));
        if offset + fragment > length || fragment > rest.len() {
            return Err(Malformed);
        }
        let (bytes, rest) = rest.split_at(fragment);
        let sequence = u16::from_be_bytes([header[4], header[5]]);
        Ok((Fragment { kind: header[0], length, sequence, offset, bytes }, rest))
    }

    /// Whether it is the whole message.
    pub(crate) fn is_whole(&self) -> bool {
        self.bytes.len() == self.length
    }
}

/// The header of a fragment.
pub(crate) fn message_header(
    kind: u8,
    length: usize,
    sequence: u16,
    offset: usize,
    fragment: usize,
) -> [u8; MESSAGE_HEADER_LEN] {
    let u24 = |n: usize| [(n >> 16) as u8, (n >> 8) as u8, n as u8];
    let ([l0, l1, l2], [o0, o1, o2], [f0, f1, f2]) = (u24(length), u24(offset), u24(fragment));
    let [s0, s1] = sequence.to_be_bytes();
    [kind, l0, l1, l2, s0, s1, o0, o1, o2, f0, f1, f2]
}

/// The hash over all messages of a handshake, each as if it had not been fragmented (RFC 6347 §4.2.6). The first
/// `ClientHello` and the `HelloVerifyRequest` are not in it.
#[derive(Clone, Default)]
pub(crate) struct Transcript(Sha256);

impl Transcript {
    pub(crate) fn add(&mut self, kind: u8, sequence: u16, body: &[u8]) {
        self.0.update(message_header(kind, body.len(), sequence, 0, body.len()));
        self.0.update(body);
    }

    pub(crate) fn hash(&self) -> [u8; HASH_LEN] {
        self.0.clone().finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_read_as_they_are_written() {
        let mut body = message_header(message::FINISHED, 0x01_0203, 7, 0x01_0000, 3).to_vec();
        body.extend_from_slice(b"abcrest");
        let (fragment, rest) = Fragment::parse(&body).unwrap();
        let expected = Fragment { kind: 20, length: 0x01_0203, sequence: 7, offset: 0x01_0000, bytes: &b"abc"[..] };
        assert_eq!((fragment, rest), (expected, &b"rest"[..]));
        assert!(!fragment.is_whole());
        for end in 0..MESSAGE_HEADER_LEN + 3 {
            assert_eq!(Fragment::parse(&body[..end]), Err(Malformed));
        }
        let beyond = message_header(message::FINISHED, 4, 0, 3, 2);
        assert_eq!(Fragment::parse(&[&beyond[..], b"ab"].concat()), Err(Malformed), "it ends beyond the message");
    }
}
