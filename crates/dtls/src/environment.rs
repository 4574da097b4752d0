//! What a state machine asks of its caller: randomness, keys, and remembered sessions.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::session::Sessions;

/// Longest identity accepted; RFC 4279 §5.3 asks for at least this many bytes.
pub const MAX_IDENTITY_LEN: usize = 128;

/// Longest pre-shared key; RFC 4279 §5.3 asks for at least this many bytes.
pub const MAX_KEY_LEN: usize = 64;

/// A cryptographically secure source of random bytes.
pub trait Random {
    /// Fills `out`. A source that can fail must abort rather than return: everything here rests on it.
    fn fill(&mut self, out: &mut [u8]);
}

impl<F: FnMut(&mut [u8])> Random for F {
    fn fill(&mut self, out: &mut [u8]) {
        self(out);
    }
}

/// A pre-shared key of 1 to [`MAX_KEY_LEN`] bytes; overwritten when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    bytes: [u8; MAX_KEY_LEN],
    len: u8,
}

impl Key {
    /// The key `bytes`, unless it is empty or too long.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Key> {
        if bytes.is_empty() || bytes.len() > MAX_KEY_LEN {
            return None;
        }
        let mut key = Key { bytes: [0; MAX_KEY_LEN], len: bytes.len() as u8 };
        key.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(key)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Sixteen bytes that the caller ties to an association, for instance the number of a device. They are exported with it
/// and given back with each event.
pub type Owner = [u8; 16];

/// What belongs to an identity.
#[derive(Debug, Clone)]
pub struct Psk {
    /// The key.
    pub key: Key,
    /// The key before it, while both are valid: a peer that does not know the first yet may use it.
    pub previous: Option<Key>,
    /// Whose it is.
    pub owner: Owner,
    /// Any number that the identity keeps for as long as what was made with it holds: once it has another one, no session that was
    /// made before is resumed.
    pub number: u64,
}

/// The pre-shared keys, by identity.
///
/// A lookup that finds nothing should take as long as one that finds a key. The server does its part: an unknown identity
/// runs on with a random key and ends as a wrong key does.
pub trait Psks {
    /// The key of `identity`, of at most [`MAX_IDENTITY_LEN`] bytes that the peer chose.
    fn psk(&self, identity: &[u8]) -> Option<Psk>;
}

impl<F: Fn(&[u8]) -> Option<Psk>> Psks for F {
    fn psk(&self, identity: &[u8]) -> Option<Psk> {
        self(identity)
    }
}

/// What a server asks of its caller while it handles a datagram.
pub struct Environment<'a> {
    /// The pre-shared keys.
    pub psks: &'a dyn Psks,
    /// Randomness for hello randoms, session identifiers, connection IDs and cookie secrets.
    pub random: &'a mut dyn Random,
    /// Sessions that may be resumed; without it, every handshake is a full one and none gets a session identifier.
    pub sessions: Option<&'a dyn Sessions>,
}

impl fmt::Debug for Environment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}
