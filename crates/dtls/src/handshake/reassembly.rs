//! Puts fragments together and messages in order (RFC 6347 §4.2.2, §4.2.3), within bounds.

use super::Fragment;

/// Messages kept ahead of the one that is due. The longest flight of a PSK handshake has five: `ServerHello`,
/// `ServerKeyExchange`, `ServerHelloDone`, and, when it is abbreviated, `Finished` for the second.
const LOOKAHEAD: u16 = 4;

/// A message, in order and whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) sequence: u16,
    pub(crate) epoch: u16,
    pub(crate) body: Vec<u8>,
}

/// What became of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accepted {
    /// It is the message that is due, whole: use its bytes, they are not kept.
    Whole,
    /// It is kept; [`Inbound::next`] may have a message now.
    Kept,
    /// It belongs to a message that was taken before: a retransmission.
    Old,
    /// It is of the message that is due, which is longer than any that is taken.
    TooLong,
    /// It is too far ahead, of a later message that is too long, or contradicts what is kept.
    Refused,
}

/// The messages of one direction of one handshake.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// The `message_seq` that is due.
    due: u16,
    /// Longest message taken.
    limit: usize,
    /// At most [`LOOKAHEAD`], each at most `limit` long.
    partial: Vec<Partial>,
}

#[derive(Debug)]
struct Partial {
    kind: u8,
    sequence: u16,
    epoch: u16,
    /// As long as the message.
    body: Vec<u8>,
    /// One bit for each byte of the body: whether it came.
    came: Vec<u8>,
    /// Bytes that did not come yet.
    missing: usize,
}

impl Inbound {
    pub(crate) fn new(due: u16, limit: usize) -> Inbound {
        Inbound { due, limit, partial: Vec::new() }
    }

    /// Bytes on the heap.
    pub(crate) fn bytes(&self) -> usize {
        let parts: usize = self.partial.iter().map(|p| p.body.capacity() + p.came.capacity()).sum();
        self.partial.capacity() * size_of::<Partial>() + parts
    }

    /// Takes a fragment that came in a record of `epoch`.
    pub(crate) fn accept(&mut self, fragment: &Fragment<'_>, epoch: u16) -> Accepted {
        if fragment.sequence < self.due {
            return Accepted::Old;
        }
        let ahead = fragment.sequence - self.due;
        if ahead >= LOOKAHEAD || fragment.length > self.limit {
            return if ahead == 0 { Accepted::TooLong } else { Accepted::Refused };
        }
        if fragment.sequence == self.due && fragment.is_whole() {
            self.partial.retain(|p| p.sequence != fragment.sequence);
            self.due += 1;
            return Accepted::Whole;
        }
        let at = self.partial.iter().position(|p| p.sequence == fragment.sequence).unwrap_or_else(|| {
            self.partial.push(Partial {
                kind: fragment.kind,
                sequence: fragment.sequence,
                epoch,
                body: vec![0; fragment.length],
                came: vec![0; fragment.length.div_ceil(8)],
                missing: fragment.length,
            });
            self.partial.len() - 1
        });
        let partial = &mut self.partial[at];
        if (partial.kind, partial.epoch, partial.body.len()) != (fragment.kind, epoch, fragment.length) {
            return Accepted::Refused;
        }
        for (at, &byte) in (fragment.offset..).zip(fragment.bytes) {
            let (cell, bit) = (&mut partial.came[at / 8], 1 << (at % 8));
            if *cell & bit == 0 {
                *cell |= bit;
                partial.body[at] = byte;
                partial.missing -= 1;
            }
        }
        Accepted::Kept
    }

    /// The message that is due, if it is whole.
    pub(crate) fn next(&mut self) -> Option<Message> {
        let at = self.partial.iter().position(|p| p.sequence == self.due && p.missing == 0)?;
        let Partial { kind, sequence, epoch, body, .. } = self.partial.swap_remove(at);
        self.due += 1;
        Some(Message { kind, sequence, epoch, body })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fragment<'a>(sequence: u16, body: &'a [u8], offset: usize, len: usize) -> Fragment<'a> {
        Fragment { kind: 1, length: body.len(), sequence, offset, bytes: &body[offset..offset + len] }
    }

    proptest! {
        #[test]
        fn any_order_with_overlaps_gives_the_messages_in_order(
            cuts in proptest::collection::vec((0u16..3, 0usize..60, 1usize..30), 0..40),
            seed in any::<u64>(),
        ) {
            let bodies: Vec<Vec<u8>> = (0..3u8).map(|n| (0..60).map(|b| b ^ n << 6).collect()).collect();
            let mut parts: Vec<(u16, usize, usize)> =
                cuts.into_iter().map(|(m, at, len)| (m, at, len.min(60 - at))).collect();
            // Whatever was cut, everything comes at least once.
            parts.extend((0..3).flat_map(|m| [(m, 0, 25), (m, 25, 35)]));
            let mut state = seed | 1;
            for at in (1..parts.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                parts.swap(at, (state >> 33) as usize % (at + 1));
            }
            let mut inbound = Inbound::new(5, 60);
            let mut got = Vec::new();
            for (m, at, len) in parts {
                let accepted = inbound.accept(&fragment(5 + m, &bodies[usize::from(m)], at, len), 0);
                prop_assert!(accepted != Accepted::Refused);
                while let Some(message) = inbound.next() {
                    got.push(message.body);
                }
            }
            prop_assert_eq!(got, bodies);
            prop_assert_eq!(inbound.partial.len(), 0);
        }
    }

    #[test]
    fn what_is_whole_and_due_is_not_kept() {
        let mut inbound = Inbound::new(0, 100);
        assert_eq!(inbound.accept(&fragment(0, b"hello", 0, 2), 0), Accepted::Kept);
        assert_eq!(inbound.accept(&fragment(0, b"hello", 0, 5), 0), Accepted::Whole);
        assert_eq!(inbound.accept(&fragment(0, b"hello", 0, 5), 0), Accepted::Old);
        assert_eq!((inbound.due, inbound.next()), (1, None));
        assert_eq!(inbound.accept(&fragment(1, b"", 0, 0), 0), Accepted::Whole, "a message may be empty");
    }

    #[test]
    fn bounds_and_contradictions_are_refused() {
        let mut inbound = Inbound::new(0, 100);
        assert_eq!(inbound.accept(&fragment(4, b"ahead", 0, 5), 0), Accepted::Refused);
        assert_eq!(inbound.accept(&fragment(0, &[0; 101], 0, 5), 0), Accepted::TooLong);
        assert_eq!(inbound.accept(&fragment(1, &[0; 101], 0, 5), 0), Accepted::Refused);
        assert_eq!(inbound.accept(&fragment(1, b"hello", 0, 2), 0), Accepted::Kept);
        assert_eq!(inbound.accept(&fragment(1, b"hello", 2, 3), 1), Accepted::Refused, "another epoch");
        assert_eq!(inbound.accept(&fragment(1, b"hello!", 2, 3), 0), Accepted::Refused, "another length");
        let mut kind = fragment(1, b"hello", 2, 3);
        kind.kind = 2;
        assert_eq!(inbound.accept(&kind, 0), Accepted::Refused);
        for sequence in 0..u16::MAX {
            inbound.accept(&fragment(sequence, &[1; 100], 0, 50), 0);
        }
        assert!(inbound.bytes() <= usize::from(LOOKAHEAD) * (size_of::<Partial>() + 100 + 13));
    }

    #[test]
    fn the_last_sequence_number_does_not_wrap() {
        let mut inbound = Inbound::new(u16::MAX - 1, 100);
        assert_eq!(inbound.accept(&fragment(u16::MAX - 1, b"a", 0, 1), 0), Accepted::Whole);
        assert_eq!(inbound.accept(&fragment(0, b"a", 0, 1), 0), Accepted::Old);
    }
}
