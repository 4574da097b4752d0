//! What protects the records of an association, once its handshake has made keys: the same for both roles.
//!
//! A record in epoch 1 is `header ‖ explicit nonce (8) ‖ ciphertext ‖ tag (8)`. The explicit nonce that we send is epoch and
//! sequence number, as RFC 6655 §3 suggests, so it is unique as long as no sequence number is used twice; what we receive
//! may have any.
//!
//! # What the tag covers beside the text
//!
//! Without a CID (RFC 5246 §6.2.3.3, RFC 6347 §4.1.2.1): `epoch ‖ sequence ‖ type ‖ version ‖ length of plaintext`.
//! With one (RFC 9146 §5.3): `ff × 8 ‖ 25 ‖ length of CID ‖ 25 ‖ version ‖ epoch ‖ sequence ‖ CID ‖ length of inner
//! plaintext`; there the plaintext is `content ‖ type ‖ zeros`, so type and true length are hidden.

use std::ops::Range;

use crate::crypto::{DirectionKey, EXPLICIT_NONCE_LEN, TAG_LEN};
use crate::record::{self, ContentType, MAX_PLAINTEXT, MAX_SEQUENCE, RecordHeader};
use crate::replay::{Freshness, ReplayWindow};

/// The one epoch that is protected: renegotiation is refused, so there is no second.
pub(crate) const PROTECTED_EPOCH: u16 = 1;

/// Bytes that protection adds after the header, padding aside.
const OVERHEAD: usize = EXPLICIT_NONCE_LEN + TAG_LEN;

/// Room for the longest additional data: 23 fixed bytes and a CID.
const MAX_ADDITIONAL: usize = 23 + 16;

/// Keys and sequence numbers of both directions.
pub(crate) struct Protection {
    write_key: DirectionKey,
    read_key: DirectionKey,
    /// Sequence number of the next record that we send; above [`MAX_SEQUENCE`] none is left.
    pub(crate) next_write: u64,
    pub(crate) window: ReplayWindow,
}

/// A record that proved authentic and new.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub(crate) content_type: ContentType,
    /// Where its text lies in the datagram.
    pub(crate) text: Range<usize>,
    pub(crate) newest: bool,
}

/// Why a record was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// Its sequence number was seen, or is too old to tell.
    Replayed,
    /// It is not in the one protected epoch or has another version.
    Foreign,
    /// It is too short or its tag does not fit.
    Forged,
    /// It is authentic, but its inner type is missing or no type of DTLS.
    BadType,
}

/// All sequence numbers are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Protection {
    pub(crate) fn new(write_key: DirectionKey, read_key: DirectionKey) -> Protection {
        Protection { write_key, read_key, next_write: 0, window: ReplayWindow::default() }
    }

    /// The protection that an export holds: writes go on at `next_write`, reads above `window`.
    pub(crate) fn resumed(
        write_key: DirectionKey,
        read_key: DirectionKey,
        next_write: u64,
        window: ReplayWindow,
    ) -> Protection {
        Protection { write_key, read_key, next_write, window }
    }

    /// One without keys, which are made or taken where it lies: a move would leave a copy of them behind.
    pub(crate) fn blank() -> Protection {
        Protection::new(DirectionKey::blank(), DirectionKey::blank())
    }

    /// Where its keys are, to derive them: for writing and for reading.
    pub(crate) fn keys_mut(&mut self) -> (&mut DirectionKey, &mut DirectionKey) {
        (&mut self.write_key, &mut self.read_key)
    }

    /// Goes on where `other` is, whose keys are overwritten there.
    pub(crate) fn take(&mut self, other: &mut Protection) {
        self.write_key.take(&mut other.write_key);
        self.read_key.take(&mut other.read_key);
        self.next_write = other.next_write;
        self.window = std::mem::take(&mut other.window);
    }

    pub(crate) fn keys(&self) -> (&DirectionKey, &DirectionKey) {
        (&self.write_key, &self.read_key)
    }

    /// Opens the record that `header` describes, in place, and marks it as seen if it is authentic.
    pub(crate) fn open(&mut self, datagram: &mut [u8], header: &RecordHeader) -> Result<Opened, OpenError> {
        if header.epoch != PROTECTED_EPOCH || header.version != record::VERSION {
            return Err(OpenError::Foreign);
        }
        let freshness = self.window.check(header.sequence);
        if freshness == Freshness::Replayed {
            return Err(OpenError::Replayed);
        }
        let text = self.decrypt(datagram, header).ok_or(OpenError::Forged)?;
        self.window.mark(header.sequence);
        let newest = freshness == Freshness::Newest;
        if header.content_type != ContentType::Cid {
            return Ok(Opened { content_type: header.content_type, text, newest });
        }
        // RFC 9146 §5.1: the type is the last byte that is not zero.
        let body = &datagram[text.clone()];
        let end = body.iter().rposition(|&b| b != 0).ok_or(OpenError::BadType)?;
        let content_type = match ContentType::from_number(body[end]) {
            Some(ContentType::Cid) | None => return Err(OpenError::BadType),
            Some(inner) => inner,
        };
        Ok(Opened { content_type, text: text.start..text.start + end, newest })
    }

    /// Whether the record is authentic; it stays as it is.
    pub(crate) fn would_open(&self, datagram: &[u8], header: &RecordHeader) -> bool {
        self.decrypt(&mut datagram[..header.body.end].to_vec(), header).is_some()
    }

    /// Decrypts the record in place and gives where its text lies; none if it is not authentic.
    fn decrypt(&self, datagram: &mut [u8], header: &RecordHeader) -> Option<Range<usize>> {
        let text = header.body.start + EXPLICIT_NONCE_LEN..header.body.end.saturating_sub(TAG_LEN);
        // RFC 9146 §4: with a CID, the type stands behind the content.
        let inner_type = usize::from(header.content_type == ContentType::Cid);
        if header.body.len() < OVERHEAD || text.len() > MAX_PLAINTEXT + inner_type {
            return None;
        }
        let (head, rest) = datagram.split_at_mut(text.start);
        let (body, tag) = rest.split_at_mut(text.len());
        let explicit = *head.last_chunk()?;
        let tag = *tag.first_chunk()?;
        let mut additional = [0; MAX_ADDITIONAL];
        let cid = &head[header.cid.clone()];
        let additional = additional_data(&mut additional, header.content_type, header.sequence, cid, text.len());
        self.read_key.open(explicit, additional, body, &tag).ok()?;
        Some(text)
    }

    /// Appends a protected record of `text`. With a `cid` of some bytes it is a `tls12_cid` record whose inner plaintext is
    /// padded to a multiple of `pad_to`, if that is not zero.
    pub(crate) fn seal(
        &mut self,
        out: &mut Vec<u8>,
        content_type: ContentType,
        text: &[u8],
        cid: &[u8],
        pad_to: u16,
    ) -> Result<(), Exhausted> {
        debug_assert!(text.len() <= MAX_PLAINTEXT);
        let sequence = self.next_write;
        if sequence > MAX_SEQUENCE {
            return Err(Exhausted);
        }
        self.next_write += 1;
        let (outer, inner_len) = if cid.is_empty() {
            (content_type, text.len())
        } else {
            (ContentType::Cid, padded(text.len() + 1, pad_to))
        };
        record::write_header(out, outer, PROTECTED_EPOCH, sequence, cid, inner_len + OVERHEAD);
        let explicit = record::epoch_and_sequence(PROTECTED_EPOCH, sequence);
        out.extend_from_slice(&explicit);
        let start = out.len();
        out.extend_from_slice(text);
        if outer == ContentType::Cid {
            out.push(content_type as u8);
            out.resize(start + inner_len, 0);
        }
        let mut additional = [0; MAX_ADDITIONAL];
        let additional = additional_data(&mut additional, outer, sequence, cid, inner_len);
        let tag = self.write_key.seal(explicit, additional, &mut out[start..]);
        out.extend_from_slice(&tag);
        Ok(())
    }
}

/// Bytes of the datagram that [`Protection::seal`] makes of `text` bytes.
pub(crate) fn sealed_len(text: usize, cid: usize, pad_to: u16) -> usize {
    let inner = if cid == 0 { text } else { padded(text + 1, pad_to) };
    record::HEADER_LEN + cid + OVERHEAD + inner
}

/// `len`, rounded up to a multiple of `pad_to` as far as a record takes it.
fn padded(len: usize, pad_to: u16) -> usize {
    if pad_to == 0 { len } else { len.next_multiple_of(usize::from(pad_to)).min(MAX_PLAINTEXT.max(len)) }
}

fn additional_data<'a>(
    out: &'a mut [u8; MAX_ADDITIONAL],
    content_type: ContentType,
    sequence: u64,
    cid: &[u8],
    length: usize,
) -> &'a [u8] {
    let sequence = record::epoch_and_sequence(PROTECTED_EPOCH, sequence);
    let length = (length as u16).to_be_bytes();
    if content_type != ContentType::Cid {
        out[..8].copy_from_slice(&sequence);
        out[8] = content_type as u8;
        out[9..11].copy_from_slice(&record::VERSION);
        out[11..13].copy_from_slice(&length);
        return &out[..13];
    }
    let cid_type = ContentType::Cid as u8;
    out[..8].fill(0xff);
    out[8..11].copy_from_slice(&[cid_type, cid.len() as u8, cid_type]);
    out[11..13].copy_from_slice(&record::VERSION);
    out[13..21].copy_from_slice(&sequence);
    out[21..21 + cid.len()].copy_from_slice(cid);
    let end = 21 + cid.len();
    out[end..end + 2].copy_from_slice(&length);
    &out[..end + 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Protection, Protection) {
        let key = |n| DirectionKey::new([n; 16], [n; 4]);
        (Protection::new(key(1), key(2)), Protection::new(key(2), key(1)))
    }

    #[test]
    fn additional_data_is_that_of_the_rfcs() {
        let mut out = [0; MAX_ADDITIONAL];
        // By hand from RFC 9146 §5.3: CID ca fe, sequence 7, nineteen bytes of inner plaintext.
        assert_eq!(
            additional_data(&mut out, ContentType::Cid, 7, &[0xca, 0xfe], 19),
            [
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 25, 2, 25, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, 7, 0xca,
                0xfe, 0, 19
            ]
        );
        // By hand from RFC 5246 §6.2.3.3.
        assert_eq!(
            additional_data(&mut out, ContentType::Application, 0x0102_0304_0506, &[], 258),
            [0, 1, 1, 2, 3, 4, 5, 6, 23, 0xfe, 0xfd, 1, 2]
        );
        assert_eq!(additional_data(&mut out, ContentType::Cid, 0, &[0; 16], 0).len(), MAX_ADDITIONAL);
    }

    /// The bytes are those of `tests/vectors/vectors.py`: CID ca fe, sequence 7, "hello", three zeros of padding.
    #[test]
    fn a_record_with_a_cid_is_the_one_made_elsewhere() {
        let key = || DirectionKey::new(std::array::from_fn(|n| n as u8), [0xf0, 0xf1, 0xf2, 0xf3]);
        let mut expected = Vec::new();
        let text = "19fefd0001000000000007cafe00190001000000000007c6ef5f101b0f2248c2bcea916d2eb5f510";
        for at in (0..text.len()).step_by(2) {
            expected.push(u8::from_str_radix(&text[at..at + 2], 16).unwrap());
        }
        let mut a = Protection::new(key(), key());
        a.next_write = 7;
        let mut out = Vec::new();
        a.seal(&mut out, ContentType::Application, b"hello", &[0xca, 0xfe], 9).unwrap();
        assert_eq!(out, expected);
        let header = RecordHeader::parse(&out, 0, 2).unwrap();
        let opened = a.open(&mut out, &header).unwrap();
        assert_eq!((&out[opened.text], opened.content_type), (&b"hello"[..], ContentType::Application));
    }

    #[test]
    fn records_open_once_and_only_unaltered() {
        for cid in [&[][..], &[1, 2, 3]] {
            for pad_to in [0, 16] {
                let (mut a, mut b) = pair();
                let mut out = Vec::new();
                a.seal(&mut out, ContentType::Application, b"twenty-one degrees", cid, pad_to).unwrap();
                assert_eq!(out.len(), sealed_len(18, cid.len(), pad_to));
                for at in 0..out.len() {
                    let mut altered = out.clone();
                    altered[at] ^= 1;
                    if let Ok(header) = RecordHeader::parse(&altered, 0, cid.len()) {
                        let opened = b.open(&mut altered, &header);
                        assert!(opened.is_err(), "a flipped bit in byte {at} passed as {opened:?}");
                    }
                }
                let header = RecordHeader::parse(&out, 0, cid.len()).unwrap();
                let copy = out.clone();
                let opened = b.open(&mut out, &header).unwrap();
                assert_eq!(&out[opened.text], b"twenty-one degrees");
                assert_eq!((opened.content_type, opened.newest), (ContentType::Application, true));
                assert_eq!(b.open(&mut copy.clone(), &header), Err(OpenError::Replayed));
            }
        }
    }

    #[test]
    fn the_longest_text_opens_and_a_longer_one_does_not() {
        for cid in [&[][..], &[1, 2, 3]] {
            let (mut a, mut b) = pair();
            let mut out = Vec::new();
            a.seal(&mut out, ContentType::Application, &[7; MAX_PLAINTEXT], cid, 0).unwrap();
            let header = RecordHeader::parse(&out, 0, cid.len()).unwrap();
            assert_eq!(b.open(&mut out, &header).unwrap().text.len(), MAX_PLAINTEXT);
            // One byte more, as padding or as text.
            out.push(0);
            let longer = header.body.start..header.body.end + 1;
            assert_eq!(b.open(&mut out, &RecordHeader { body: longer, sequence: 9, ..header }), Err(OpenError::Forged));
        }
    }

    #[test]
    fn an_inner_plaintext_without_a_type_is_refused() {
        let (mut a, mut b) = pair();
        // Sealed as an outer type that no peer would choose: zeros alone, and a type that may not be nested.
        for inner in [0u8, 25] {
            let mut out = Vec::new();
            let sequence = a.next_write;
            a.next_write += 1;
            let explicit = record::epoch_and_sequence(1, sequence);
            record::write_header(&mut out, ContentType::Cid, 1, sequence, &[9], 1 + OVERHEAD);
            out.extend_from_slice(&explicit);
            let start = out.len();
            out.push(inner);
            let mut additional = [0; MAX_ADDITIONAL];
            let additional = additional_data(&mut additional, ContentType::Cid, sequence, &[9], 1);
            let tag = a.write_key.seal(explicit, additional, &mut out[start..]);
            out.extend_from_slice(&tag);
            let header = RecordHeader::parse(&out, 0, 1).unwrap();
            assert_eq!(b.open(&mut out, &header), Err(OpenError::BadType));
        }
    }

    #[test]
    fn no_sequence_number_is_used_beyond_the_last() {
        let (mut a, _) = pair();
        a.next_write = MAX_SEQUENCE;
        let mut out = Vec::new();
        assert_eq!(a.seal(&mut out, ContentType::Application, b"x", &[], 0), Ok(()));
        let before = out.len();
        assert_eq!(a.seal(&mut out, ContentType::Application, b"x", &[], 0), Err(Exhausted));
        assert_eq!(out.len(), before);
    }
}
