//! The options that this crate knows, and the values that some of them hold.
//!
//! From RFC 7252 §5.10, RFC 7641 (Observe), RFC 7959 (Block, Size2), RFC 7967 (No-Response), RFC 8613 (OSCORE), RFC 8768
//! (Hop-Limit), RFC 9175 (Echo, Request-Tag), RFC 9177 (Q-Block) and RFC 9668 (EDHOC). An option in this table is not
//! necessarily supported: that is the server's decision ([`crate::server`]).

use crate::code::Code;

/// What an option's value is (RFC 7252 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Nothing.
    Empty,
    /// Bytes.
    Opaque,
    /// A number in network byte order.
    Uint,
    /// UTF-8 text.
    String,
}

/// A known option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its number.
    pub number: u16,
    /// Its name, as the RFC writes it.
    pub name: &'static str,
    /// What its value is.
    pub format: Format,
    /// Fewest bytes of a value.
    pub min: u16,
    /// Most bytes of a value.
    pub max: u16,
    /// Whether it may occur more than once.
    pub repeatable: bool,
}

/// Whether an endpoint that does not know the option must not process the message (RFC 7252 §5.4.6).
#[inline]
#[must_use]
pub const fn is_critical(number: u16) -> bool {
    number & 1 != 0
}

/// Whether a proxy that does not know the option must not forward the message (RFC 7252 §5.4.6).
#[must_use]
pub const fn is_unsafe(number: u16) -> bool {
    number & 2 != 0
}

/// Whether the option is no part of a cache's key (RFC 7252 §5.4.6). Only meaningful if it is safe to forward.
#[must_use]
pub const fn is_no_cache_key(number: u16) -> bool {
    number & 0x1E == 0x1C
}

macro_rules! options {
    ($($name:ident = $number:literal, $text:literal, $format:ident, $min:literal..=$max:literal, $repeatable:literal;)*) => {
        /// The numbers by name.
        pub mod number {
            $(#[doc = $text] pub const $name: u16 = $number;)*
        }

        /// Every known option, by ascending number.
        pub const REGISTRY: &[Definition] = &[$(Definition {
            number: $number, name: $text, format: Format::$format, min: $min, max: $max, repeatable: $repeatable,
        }),*];

        /// What is known about the option with this number.
        #[inline]
        #[must_use]
        pub const fn definition(number: u16) -> Option<&'static Definition> {
            // The arms read from constants of their own, so that the compiler makes a jump table of them.
            match number {
                $($number => {
                    const DEFINITION: &Definition = &Definition {
                        number: $number, name: $text, format: Format::$format, min: $min, max: $max,
                        repeatable: $repeatable,
                    };
                    Some(DEFINITION)
                })*
                _ => None,
            }
        }
    };
}

options! {
    IF_MATCH = 1, "If-Match", Opaque, 0..=8, true;
    URI_HOST = 3, "Uri-Host", String, 1..=255, false;
    ETAG = 4, "ETag", Opaque, 1..=8, true;
    IF_NONE_MATCH = 5, "If-None-Match", Empty, 0..=0, false;
    OBSERVE = 6, "Observe", Uint, 0..=3, false;
    URI_PORT = 7, "Uri-Port", Uint, 0..=2, false;
    LOCATION_PATH = 8, "Location-Path", String, 0..=255, true;
    OSCORE = 9, "OSCORE", Opaque, 0..=255, false;
    URI_PATH = 11, "Uri-Path", String, 0..=255, true;
    CONTENT_FORMAT = 12, "Content-Format", Uint, 0..=2, false;
    MAX_AGE = 14, "Max-Age", Uint, 0..=4, false;
    URI_QUERY = 15, "Uri-Query", String, 0..=255, true;
    HOP_LIMIT = 16, "Hop-Limit", Uint, 1..=1, false;
    ACCEPT = 17, "Accept", Uint, 0..=2, false;
    Q_BLOCK1 = 19, "Q-Block1", Uint, 0..=3, false;
    LOCATION_QUERY = 20, "Location-Query", String, 0..=255, true;
    EDHOC = 21, "EDHOC", Empty, 0..=0, false;
    BLOCK2 = 23, "Block2", Uint, 0..=3, false;
    BLOCK1 = 27, "Block1", Uint, 0..=3, false;
    SIZE2 = 28, "Size2", Uint, 0..=4, false;
    Q_BLOCK2 = 31, "Q-Block2", Uint, 0..=3, true;
    PROXY_URI = 35, "Proxy-Uri", String, 1..=1034, false;
    PROXY_SCHEME = 39, "Proxy-Scheme", String, 1..=255, false;
    SIZE1 = 60, "Size1", Uint, 0..=4, false;
    ECHO = 252, "Echo", Opaque, 1..=40, false;
    NO_RESPONSE = 258, "No-Response", Uint, 0..=1, false;
    REQUEST_TAG = 292, "Request-Tag", Opaque, 0..=8, true;
}

/// The number that `value` holds: network byte order, leading zeros allowed, empty for zero (RFC 7252 §3.2). What exceeds
/// 32 bits is cut, which no value within its option's bounds does.
#[inline]
#[must_use]
pub fn uint(value: &[u8]) -> u32 {
    value.iter().fold(0, |n, &b| n << 8 | u32::from(b))
}

/// The shortest bytes that hold `value`, at the end of the array, and how many they are (RFC 7252 §3.2).
#[inline]
#[must_use]
pub(crate) const fn uint_bytes(value: u32) -> ([u8; 4], usize) {
    (value.to_be_bytes(), 4 - value.leading_zeros() as usize / 8)
}

/// The value of a Block1 or Block2 option (RFC 7959 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Block {
    /// Which block, from 0; below 2²⁰.
    pub num: u32,
    /// More blocks follow.
    pub more: bool,
    /// Size exponent: the block has 2^(szx+4) bytes; at most 6.
    pub szx: u8,
}

/// Largest block number: 20 bits (RFC 7959 §2.2).
pub const MAX_BLOCK_NUM: u32 = (1 << 20) - 1;

impl Block {
    /// From the option's number; none for the reserved size exponent 7.
    #[inline]
    #[must_use]
    pub const fn from_uint(value: u32) -> Option<Block> {
        let szx = (value & 0b111) as u8;
        if szx == 7 {
            return None;
        }
        Some(Block { num: value >> 4, more: value & 0b1000 != 0, szx })
    }

    /// The option's number.
    #[inline]
    #[must_use]
    pub const fn to_uint(self) -> u32 {
        self.num << 4 | (self.more as u32) << 3 | self.szx as u32
    }

    /// Bytes of a whole block.
    #[inline]
    #[must_use]
    pub const fn size(self) -> usize {
        16 << self.szx
    }

    /// Where the block begins in the body.
    #[inline]
    #[must_use]
    pub const fn offset(self) -> usize {
        self.num as usize * self.size()
    }
}

/// Which responses a client does not want (RFC 7967 §2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct NoResponse(pub u8);

impl NoResponse {
    /// Every response is wanted.
    pub const NONE: NoResponse = NoResponse(0);
    /// No response is wanted at all: 2.xx, 4.xx and 5.xx.
    pub const ALL: NoResponse = NoResponse(0b11010);

    /// Whether a response with this code is unwanted: bit `class - 1` is set.
    #[inline]
    #[must_use]
    pub const fn suppresses(self, code: Code) -> bool {
        code.class() != 0 && self.0 >> (code.class() - 1) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coap_lite::CoapOption;

    #[test]
    fn the_registry_ascends_and_the_lookup_agrees_with_it() {
        assert!(REGISTRY.is_sorted_by(|a, b| a.number < b.number));
        for number in 0..=u16::MAX {
            assert_eq!(definition(number), REGISTRY.iter().find(|d| d.number == number), "{number}");
        }
    }

    #[test]
    fn numbers_and_names_are_those_of_coap_lite() {
        let mut shared = 0;
        for definition in REGISTRY {
            let theirs = CoapOption::from(definition.number);
            if !matches!(theirs, CoapOption::Unknown(_)) {
                let name = definition.name.replace('-', "").to_lowercase();
                assert_eq!(format!("{theirs:?}").to_lowercase(), name);
                shared += 1;
            }
        }
        let known = (0..=u16::MAX).filter(|&n| !matches!(CoapOption::from(n), CoapOption::Unknown(_)));
        assert_eq!(known.count(), shared, "coap-lite knows an option that the registry does not");
    }

    #[test]
    fn classes_are_those_of_the_table_in_rfc_7252() {
        // RFC 7252 §5.10, table 4: the columns C, U and N.
        let table = [
            (1, true, false, false),
            (3, true, true, false),
            (4, false, false, false),
            (5, true, false, false),
            (7, true, true, false),
            (8, false, false, false),
            (11, true, true, false),
            (12, false, false, false),
            (14, false, true, false),
            (15, true, true, false),
            (17, true, false, false),
            (20, false, false, false),
            (35, true, true, false),
            (39, true, true, false),
            (60, false, false, true),
        ];
        for (number, critical, not_safe, no_cache_key) in table {
            assert_eq!(
                (is_critical(number), is_unsafe(number), is_no_cache_key(number)),
                (critical, not_safe, no_cache_key)
            );
        }
    }

    #[test]
    fn numbers_are_as_short_as_can_be_and_leading_zeros_are_read() {
        for (value, len) in [(0, 0), (1, 1), (255, 1), (256, 2), (65_536, 3), (u32::MAX, 4)] {
            let (bytes, used) = uint_bytes(value);
            assert_eq!(used, len);
            assert_eq!(uint(&bytes[4 - used..]), value);
        }
        assert_eq!(uint(&[0, 0, 40]), 40);
    }

    #[test]
    fn blocks_come_back_and_the_reserved_size_does_not() {
        for value in [0, 0x8, 0x16, 0xFF_FFF6] {
            assert_eq!(Block::from_uint(value).unwrap().to_uint(), value);
        }
        assert_eq!(Block::from_uint(0x17), None);
        let block = Block::from_uint(2 << 4 | 0x8 | 2).unwrap();
        assert_eq!((block.num, block.more, block.size(), block.offset()), (2, true, 64, 128));
    }

    #[test]
    fn no_response_silences_by_class() {
        for (value, silenced) in [(0, &[][..]), (2, &[2]), (8, &[4]), (16, &[5]), (24, &[4, 5]), (26, &[2, 4, 5])] {
            for class in 0..=7 {
                let code = Code(class << 5 | 1);
                assert_eq!(NoResponse(value).suppresses(code), silenced.contains(&class), "{value} and {code}");
            }
        }
        assert_eq!(NoResponse::ALL, NoResponse(26));
    }
}
