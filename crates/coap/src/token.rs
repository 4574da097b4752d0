//! A token kept beyond its datagram (RFC 7252 §5.3.1, RFC 8974).

use std::fmt;

/// Longest token whose length the header holds: 8 in RFC 7252, 12 in RFC 8974 §2.1, which updates it.
pub const MAX_PLAIN_TOKEN: usize = 12;

/// Longest token that an extended length can say (RFC 8974 §2.1): 269 + 65,535.
pub const MAX_EXTENDED_TOKEN: usize = 269 + u16::MAX as usize;

/// Longest token held without an allocation: all of RFC 7252, the 64 and 128 bit ones of stateless clients with a check
/// value, and what makes the whole 24 bytes.
const INLINE: usize = 22;

const _: () = assert!(size_of::<Token>() == 24 && INLINE >= MAX_PLAIN_TOKEN);

/// A token, owned. It takes 24 bytes, and one of up to 22 is held within them.
#[derive(Clone)]
pub struct Token(Repr);

#[derive(Clone)]
enum Repr {
    Inline {
        /// At most [`INLINE`].
        len: u8,
        bytes: [u8; INLINE],
    },
    Heap(Box<[u8]>),
}

impl Token {
    /// A copy of `token`.
    #[inline]
    #[must_use]
    pub fn new(token: &[u8]) -> Token {
        if token.len() > INLINE {
            return Token(Repr::Heap(token.into()));
        }
        let mut bytes = [0; INLINE];
        bytes[..token.len()].copy_from_slice(token);
        Token(Repr::Inline { len: token.len() as u8, bytes })
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }
}

impl Default for Token {
    fn default() -> Token {
        Token::new(&[])
    }
}

impl PartialEq for Token {
    fn eq(&self, other: &Token) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Token {}

impl std::hash::Hash for Token {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_tokens_come_back() {
        for len in [0, 1, MAX_PLAIN_TOKEN, INLINE, INLINE + 1, 300] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let token = Token::new(&bytes);
            assert_eq!(token.as_slice(), bytes);
            assert_eq!(token.clone(), token);
            assert_eq!(matches!(token.0, Repr::Inline { .. }), len <= INLINE);
        }
    }
}
