//! Hellos that come in fragments (RFC 6347 §4.2.3).
//!
//! Nothing is kept of a hello before its cookie has come back. The first fragment carries it, so what is kept begins with the first
//! fragment, and later ones are added. One that overtakes the first is dropped and comes again with the client's next try.

use std::cmp::Reverse;
use std::time::Duration;

use crate::handshake::Fragment;
use crate::handshake::codec::RANDOM_LEN;
use crate::handshake::reassembly::{Accepted, Inbound};
use crate::path::CompactPath;
use crate::time::Timestamp;

/// Longest hello that is put together. OpenSSL's with every suite it knows has some 500 bytes.
pub(super) const MAX_HELLO_LEN: usize = 2048;

/// Most memory that the hellos of one shard take while parts of them are missing; a test holds them to that.
pub const MAX_PARTIAL_BYTES: usize = 90_000;

/// Hellos at a time. The fragments of one arrive at once, so a place is free again in no time.
const MAX_PARTIAL_HELLOS: usize = 32;

/// The hellos of one shard of which a part has come, each with a good cookie.
#[derive(Default)]
pub(super) struct PartialHellos {
    /// The oldest first; at most [`MAX_PARTIAL_HELLOS`], no two of one path.
    hellos: Vec<PartialHello>,
}

struct PartialHello {
    path: CompactPath,
    random: [u8; RANDOM_LEN],
    sequence: u16,
    length: usize,
    expires: Timestamp,
    inbound: Inbound,
}

/// What became of a fragment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The hello is whole.
    Whole(Vec<u8>),
    /// It is kept.
    Kept,
    /// Its first fragment has not come.
    Unknown,
}

impl PartialHellos {
    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        let inbound: usize = self.hellos.iter().map(|hello| hello.inbound.bytes()).sum();
        self.hellos.capacity() * size_of::<PartialHello>() + inbound
    }

    /// Takes the first fragment of a hello whose cookie is good; its length is at most [`MAX_HELLO_LEN`].
    pub(super) fn begin(
        &mut self,
        path: CompactPath,
        random: &[u8; RANDOM_LEN],
        fragment: &Fragment<'_>,
        now: Timestamp,
        lifetime: Duration,
    ) -> Taken {
        self.hellos.retain(|hello| now < hello.expires && (hello.path != path || hello.is_of(random, fragment)));
        if !self.hellos.iter().any(|hello| hello.path == path) {
            if self.hellos.len() >= MAX_PARTIAL_HELLOS {
                self.hellos.remove(self.first_to_go(path));
            }
            self.hellos.push(PartialHello {
                path,
                random: *random,
                sequence: fragment.sequence,
                length: fragment.length,
                expires: now.plus(lifetime),
                inbound: Inbound::new(fragment.sequence, MAX_HELLO_LEN),
            });
        }
        self.add(path, fragment, now)
    }

    /// Which makes room for one by `path`: the oldest of the prefix that has most, as with handshakes ([`crate::shares`]).
    fn first_to_go(&self, path: CompactPath) -> usize {
        let newcomer = path.prefix();
        let has = |prefix| {
            let others = self.hellos.iter().filter(|hello| hello.path.prefix() == prefix).count();
            others + usize::from(prefix == newcomer)
        };
        let ranks = self.hellos.iter().enumerate().map(|(at, hello)| (has(hello.path.prefix()), Reverse(at)));
        ranks.max().map_or(0, |(_, Reverse(at))| at)
    }

    /// Takes a fragment of a hello.
    pub(super) fn add(&mut self, path: CompactPath, fragment: &Fragment<'_>, now: Timestamp) -> Taken {
        let fits = |hello: &PartialHello| {
            hello.path == path && (hello.sequence, hello.length) == (fragment.sequence, fragment.length)
        };
        let Some(at) = self.hellos.iter().position(|hello| fits(hello) && now < hello.expires) else {
            return Taken::Unknown;
        };
        let accepted = self.hellos[at].inbound.accept(fragment, 0);
        debug_assert_eq!(accepted, Accepted::Kept, "it is a part, due and of the right length");
        match self.hellos[at].inbound.next() {
            Some(message) => {
                self.hellos.remove(at);
                Taken::Whole(message.body)
            }
            None => Taken::Kept,
        }
    }
}

impl PartialHello {
    fn is_of(&self, random: &[u8; RANDOM_LEN], fragment: &Fragment<'_>) -> bool {
        (&self.random, self.sequence, self.length) == (random, fragment.sequence, fragment.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::message;
    use crate::path::Path;

    const LIFETIME: Duration = Duration::from_secs(75);

    fn path(port: u16) -> CompactPath {
        Path::new(([192, 0, 2, 1], port).into(), 0).into()
    }

    fn fragment(sequence: u16, body: &[u8], offset: usize, len: usize) -> Fragment<'_> {
        let bytes = &body[offset..offset + len];
        Fragment { kind: message::CLIENT_HELLO, length: body.len(), sequence, offset, bytes }
    }

    #[test]
    fn a_hello_is_put_together_behind_its_first_fragment() {
        let body: Vec<u8> = (0..=255).collect();
        let mut hellos = PartialHellos::default();
        let now = Timestamp(0);
        let (first, rest) = (fragment(1, &body, 0, 100), fragment(1, &body, 100, 156));
        assert_eq!(hellos.add(path(1), &rest, now), Taken::Unknown);
        assert_eq!(hellos.bytes(), 0, "nothing is kept of it");
        assert_eq!(hellos.begin(path(1), &[1; 32], &first, now, LIFETIME), Taken::Kept);
        assert_eq!(hellos.add(path(2), &rest, now), Taken::Unknown, "another address");
        assert_eq!(hellos.add(path(1), &fragment(2, &body, 100, 156), now), Taken::Unknown, "another message");
        assert_eq!(hellos.begin(path(1), &[1; 32], &first, now, LIFETIME), Taken::Kept, "sent again");
        assert_eq!(hellos.add(path(1), &rest, now), Taken::Whole(body.clone()));
        assert_eq!(hellos.add(path(1), &rest, now), Taken::Unknown);
        // Another hello from there takes the place of the one before, and no hello waits for ever.
        hellos.begin(path(1), &[1; 32], &first, now, LIFETIME);
        hellos.begin(path(1), &[2; 32], &fragment(1, &[7; 256], 0, 100), now, LIFETIME);
        assert_eq!(hellos.add(path(1), &fragment(1, &[7; 256], 100, 156), now), Taken::Whole(vec![7; 256]));
        hellos.begin(path(1), &[1; 32], &first, now, LIFETIME);
        assert_eq!(hellos.add(path(1), &rest, now.plus(LIFETIME)), Taken::Unknown);
    }

    #[test]
    fn they_are_bounded_in_number_and_in_bytes_and_the_oldest_makes_room() {
        let mut hellos = PartialHellos::default();
        let body = [9; MAX_HELLO_LEN];
        for port in 1..=100 {
            hellos.begin(path(port), &[1; 32], &fragment(0, &body, 0, 100), Timestamp(0), LIFETIME);
        }
        assert_eq!(hellos.hellos.len(), MAX_PARTIAL_HELLOS);
        assert!(hellos.bytes() <= MAX_PARTIAL_BYTES, "{} bytes", hellos.bytes());
        let rest = fragment(0, &body, 100, MAX_HELLO_LEN - 100);
        assert_eq!(hellos.add(path(100 - MAX_PARTIAL_HELLOS as u16), &rest, Timestamp(0)), Taken::Unknown);
        // Another address is not the one to go, however many come.
        let other = CompactPath::from(Path::new(([192, 0, 2, 2], 1).into(), 0));
        hellos.begin(other, &[1; 32], &fragment(0, &body, 0, 100), Timestamp(0), LIFETIME);
        for port in 101..=200 {
            hellos.begin(path(port), &[1; 32], &fragment(0, &body, 0, 100), Timestamp(0), LIFETIME);
        }
        assert_eq!(hellos.add(path(200), &rest, Timestamp(0)), Taken::Whole(body.to_vec()));
        assert_eq!(hellos.add(other, &rest, Timestamp(0)), Taken::Whole(body.to_vec()));
    }
}
