//! Echo values (RFC 9175 §2): a server that doubts a request answers 4.01 with one, and the request that brings it back is fresh
//! and comes from the address that it says.
//!
//! # Constraints
//!
//! The server keeps nothing for a challenge (RFC 9175 §2.4, method 3): the value says when it was made and proves it.
//!
//! # Format
//!
//! Four bytes of [`Seconds`], big-endian, and the first [`TAG_LEN`] of HMAC-SHA-256 over them and the peer. Whoever makes up
//! tags hits one in 2⁶⁴ tries, at one datagram each, and gains the age of one request.

use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::build::Response;
use crate::code::Code;
use crate::timing::Seconds;

/// Bytes of an Echo value; the option holds 1 to 40.
pub const ECHO_LEN: usize = 4 + TAG_LEN;

/// Bytes of its proof.
pub const TAG_LEN: usize = 8;

/// Makes and checks Echo values.
#[derive(Clone)]
pub struct Challenger {
    /// Keyed once, cloned for each value.
    keyed: Hmac<Sha256>,
}

impl std::fmt::Debug for Challenger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Challenger")
    }
}

impl Challenger {
    /// With a random key of this process. After a restart, values made before are not recognised, and requests challenged anew.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Challenger {
        // A block of SHA-256 is 64 bytes: a key of 32 is taken as it is, by padding, and cannot be refused.
        let mut block = [0; 64];
        block[..32].copy_from_slice(key);
        Challenger { keyed: Hmac::new(&block.into()) }
    }

    fn tag(&self, peer: &[u8], made: [u8; 4]) -> Hmac<Sha256> {
        self.keyed.clone().chain_update(made).chain_update(peer)
    }

    /// A value for `peer` (its address, its association) at `now`.
    #[must_use]
    pub fn make(&self, peer: &[u8], now: Seconds) -> [u8; ECHO_LEN] {
        let made = now.0.to_be_bytes();
        let tag = self.tag(peer, made).finalize().into_bytes();
        let mut value = [0; ECHO_LEN];
        value[..4].copy_from_slice(&made);
        value[4..].copy_from_slice(&tag[..TAG_LEN]);
        value
    }

    /// Whether `value` was made here for `peer` at most `max_age` seconds before `now`.
    #[must_use]
    pub fn is_fresh(&self, peer: &[u8], value: &[u8], now: Seconds, max_age: u32) -> bool {
        let Some((&made, tag)) = value.split_first_chunk::<4>().filter(|(_, tag)| tag.len() == TAG_LEN) else {
            return false;
        };
        let at = Seconds(u32::from_be_bytes(made));
        // In constant time.
        self.tag(peer, made).verify_truncated_left(tag).is_ok() && at <= now && now.since(at) <= max_age
    }
}

/// The challenge: 4.01 with the value (RFC 9175 §2.3).
#[must_use]
pub const fn challenge(value: &[u8; ECHO_LEN]) -> Response<'_> {
    let mut response = Response::new(Code::UNAUTHORIZED);
    response.echo = value;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::code::Type;
    use crate::message::Message;
    use crate::option::number;

    #[test]
    fn a_value_is_fresh_for_its_peer_until_its_age_is_over() {
        let challenger = Challenger::new(&[7; 32]);
        let value = challenger.make(b"peer", Seconds(1_000));
        assert!(challenger.is_fresh(b"peer", &value, Seconds(1_000), 60));
        assert!(challenger.is_fresh(b"peer", &value, Seconds(1_060), 60));
        assert!(!challenger.is_fresh(b"peer", &value, Seconds(1_061), 60));
        assert!(!challenger.is_fresh(b"peer", &value, Seconds(999), 60), "from the future");
        assert!(!challenger.is_fresh(b"other", &value, Seconds(1_000), 60));
        assert!(!Challenger::new(&[8; 32]).is_fresh(b"peer", &value, Seconds(1_000), 60));
    }

    #[test]
    fn a_value_that_was_tampered_with_is_not_fresh() {
        let challenger = Challenger::new(&[7; 32]);
        let value = challenger.make(b"peer", Seconds(1_000));
        for bit in 0..ECHO_LEN * 8 {
            let mut bad = value;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!challenger.is_fresh(b"peer", &bad, Seconds(1_000), u32::MAX), "bit {bit}");
        }
        for len in 0..ECHO_LEN {
            assert!(!challenger.is_fresh(b"peer", &value[..len], Seconds(1_000), u32::MAX));
        }
        assert!(!challenger.is_fresh(b"peer", &[&value[..], b"x"].concat(), Seconds(1_000), u32::MAX));
    }

    #[test]
    fn the_challenge_is_a_4_01_with_the_value() {
        let value = Challenger::new(&[7; 32]).make(b"peer", Seconds(1_000));
        let mut out = Vec::new();
        challenge(&value).write_message(&mut out, Type::Ack, 1, b"t");
        let message = Message::parse(&out).unwrap();
        assert_eq!((message.code, message.option(number::ECHO).unwrap().value), (Code::UNAUTHORIZED, &value[..]));
    }

    #[test]
    fn the_key_is_the_one_of_hmac() {
        // The same by the definition of HMAC (RFC 2104), with nothing but the hash.
        use sha2::Digest;
        let pad = |with: u8| -> Vec<u8> { (0..64).map(|i| if i < 32 { 7 ^ with } else { with }).collect() };
        let inner = Sha256::digest([&pad(0x36)[..], &1_000u32.to_be_bytes(), b"peer"].concat());
        let outer = Sha256::digest([&pad(0x5C)[..], &inner].concat());
        assert_eq!(Challenger::new(&[7; 32]).make(b"peer", Seconds(1_000))[4..], outer[..TAG_LEN]);
    }
}
