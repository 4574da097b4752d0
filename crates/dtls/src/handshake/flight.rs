//! A flight: messages sent together, and together again until they are answered (RFC 6347 §4.2.4).

use std::ops::Range;

use super::{MESSAGE_HEADER_LEN, message_header};
use crate::crypto::TAG_LEN;
use crate::outbox::Outbox;
use crate::protection::Protection;
use crate::record::{self, ContentType, HEADER_LEN};

/// Most bytes that [`Protection::seal`] adds to a message, a CID aside: header, nonce, tag, inner type.
const PROTECTED_OVERHEAD: usize = HEADER_LEN + 8 + TAG_LEN + 1;

/// Bytes that the bodies of most flights fit in: a hello with a session identifier, a CID and some extensions.
const USUAL_BODIES: usize = 160;

/// The messages of a flight, kept to be sent again. Each transmission takes new record sequence numbers.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// The bodies of all messages, one after the other.
    bodies: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Debug)]
enum Item {
    Message { kind: u8, sequence: u16, protected: bool, body: Range<usize> },
    ChangeCipherSpec,
}

/// What a flight is sent with.
pub(crate) struct Wire<'a, A> {
    pub(crate) out: &'a mut Outbox<A>,
    pub(crate) to: A,
    pub(crate) mtu: usize,
    /// Sequence number of the next unprotected record.
    pub(crate) plain_next: &'a mut u32,
    /// Needed if any message is protected.
    pub(crate) protection: Option<&'a mut Protection>,
    /// The peer's CID, for protected records.
    pub(crate) cid: &'a [u8],
}

impl Flight {
    /// Appends a message whose body `write` writes, and gives the body back, for the transcript.
    pub(crate) fn push(&mut self, kind: u8, sequence: u16, protected: bool, write: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        let start = self.bodies.len();
        if start == 0 {
            self.bodies.reserve(USUAL_BODIES);
        }
        write(&mut self.bodies);
        let body = start..self.bodies.len();
        self.items.push(Item::Message { kind, sequence, protected, body: body.clone() });
        &self.bodies[body]
    }

    pub(crate) fn push_change_cipher_spec(&mut self) {
        self.items.push(Item::ChangeCipherSpec);
    }

    /// Forgets all messages.
    pub(crate) fn clear(&mut self) {
        self.bodies.clear();
        self.items.clear();
    }

    /// Bytes on the heap.
    pub(crate) fn bytes(&self) -> usize {
        self.bodies.capacity() + self.items.capacity() * size_of::<Item>()
    }

    /// Sends all of it, in as few datagrams of `mtu` bytes as it takes.
    pub(crate) fn send<A: Copy>(&self, mut wire: Wire<'_, A>) {
        for item in &self.items {
            match item {
                Item::ChangeCipherSpec => wire.change_cipher_spec(),
                Item::Message { kind, sequence, protected, body } => {
                    wire.message(*kind, *sequence, *protected, &self.bodies[body.clone()]);
                }
            }
        }
        wire.out.finish(wire.to);
    }
}

impl<A: Copy> Wire<'_, A> {
    fn change_cipher_spec(&mut self) {
        if self.out.unfinished() + HEADER_LEN + 1 > self.mtu {
            self.out.finish(self.to);
        }
        let sequence = self.plain_sequence();
        let out = self.out.buffer();
        record::write_header(out, ContentType::ChangeCipherSpec, 0, sequence, &[], 1);
        out.push(1);
    }

    fn message(&mut self, kind: u8, sequence: u16, protected: bool, body: &[u8]) {
        let overhead = MESSAGE_HEADER_LEN + if protected { PROTECTED_OVERHEAD + self.cid.len() } else { HEADER_LEN };
        let mut offset = 0;
        loop {
            let used = self.out.unfinished();
            let left = body.len() - offset;
            let alone = self.mtu.saturating_sub(overhead);
            let room = self.mtu.checked_sub(used + overhead);
            // It goes on in this datagram if it fits, or if a whole datagram could not hold it either.
            let goes_on = room.is_some_and(|room| left <= room || (room > 0 && left > alone));
            if used > 0 && !goes_on {
                self.out.finish(self.to);
                continue;
            }
            let len = left.min(room.unwrap_or(0).max(1));
            let header = message_header(kind, body.len(), sequence, offset, len);
            self.fragment(protected, &header, &body[offset..offset + len]);
            offset += len;
            if offset >= body.len() {
                return;
            }
        }
    }

    fn fragment(&mut self, protected: bool, header: &[u8; MESSAGE_HEADER_LEN], body: &[u8]) {
        if !protected {
            let sequence = self.plain_sequence();
            let out = self.out.buffer();
            record::write_header(out, ContentType::Handshake, 0, sequence, &[], header.len() + body.len());
            out.extend_from_slice(header);
            out.extend_from_slice(body);
            return;
        }
        let Some(protection) = self.protection.as_deref_mut() else {
            debug_assert!(false, "a protected message without keys");
            return;
        };
        let text = [&header[..], body].concat();
        // All numbers are used up after 2⁴⁸ records, which no handshake reaches.
        let sealed = protection.seal(self.out.buffer(), ContentType::Handshake, &text, self.cid, 0);
        debug_assert_eq!(sealed, Ok(()));
    }

    fn plain_sequence(&mut self) -> u64 {
        let sequence = *self.plain_next;
        *self.plain_next = sequence.saturating_add(1);
        u64::from(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::DirectionKey;
    use crate::handshake::Fragment;
    use crate::handshake::reassembly::{Accepted, Inbound};
    use crate::record::RecordHeader;

    #[test]
    fn a_flight_fits_its_datagrams_and_comes_out_whole() {
        let key = |n| DirectionKey::new([n; 16], [n; 4]);
        for mtu in [96, 100, 128, 200, 1200] {
            for cid in [&[][..], &[7; 16]] {
                let mut flight = Flight::default();
                let bodies: [Vec<u8>; 3] = [vec![1; 150], Vec::new(), vec![3; 12]];
                flight.push(2, 0, false, |out| out.extend_from_slice(&bodies[0]));
                flight.push(14, 1, false, |_| ());
                flight.push_change_cipher_spec();
                flight.push(20, 2, true, |out| out.extend_from_slice(&bodies[2]));
                let mut out: Outbox<()> = Outbox::new();
                let mut protection = Protection::new(key(1), key(2));
                let mut plain_next = 3;
                flight.send(Wire {
                    out: &mut out,
                    to: (),
                    mtu,
                    plain_next: &mut plain_next,
                    protection: Some(&mut protection),
                    cid,
                });
                let mut peer = Protection::new(key(2), key(1));
                let mut inbound = Inbound::new(0, 1024);
                let mut got = Vec::new();
                let mut sequences = Vec::new();
                for (_, datagram) in out.iter() {
                    assert!(datagram.len() <= mtu, "{} bytes in a datagram of {mtu}", datagram.len());
                    let mut datagram = datagram.to_vec();
                    let mut at = 0;
                    while at < datagram.len() {
                        let header = RecordHeader::parse(&datagram, at, cid.len()).unwrap();
                        at = header.body.end;
                        let text = if header.epoch == 1 {
                            peer.open(&mut datagram, &header).unwrap().text
                        } else {
                            sequences.push(header.sequence);
                            header.body.clone()
                        };
                        if header.content_type == ContentType::ChangeCipherSpec {
                            continue;
                        }
                        let (fragment, rest) = Fragment::parse(&datagram[text]).unwrap();
                        assert!(rest.is_empty());
                        match inbound.accept(&fragment, header.epoch) {
                            Accepted::Whole => got.push(fragment.bytes.to_vec()),
                            Accepted::Kept => got.extend(inbound.next().map(|m| m.body)),
                            other => panic!("{other:?}"),
                        }
                    }
                }
                assert_eq!(got, bodies);
                assert_eq!(sequences, (3..u64::from(plain_next)).collect::<Vec<_>>());
            }
        }
    }
}
