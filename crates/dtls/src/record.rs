//! The record layer's framing (RFC 6347 §4.1, RFC 9146 §4).
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | content type |
//! | 1 | 2 | version, `fe fd` for DTLS 1.2; `fe ff` is met in the first flights of some clients |
//! | 3 | 2 | epoch |
//! | 5 | 6 | sequence number |
//! | 11 | n | connection ID, in records of type `tls12_cid` alone |
//! | 11 + n | 2 | length of what follows |
//!
//! A datagram holds one or more records. One of an unknown type is passed over; one that cannot be parsed hides what follows it,
//! and RFC 6347 §4.1.2.7 has all of that dropped in silence.

use std::ops::Range;

/// DTLS 1.2 on the wire.
pub(crate) const VERSION: [u8; 2] = [254, 253];

/// DTLS 1.0, which some clients put in the header of their first records (RFC 6347 §4.2.1 does so itself).
pub(crate) const VERSION_1_0: [u8; 2] = [254, 255];

/// Header of a record without a CID.
pub(crate) const HEADER_LEN: usize = 13;

/// Where the CID of a record lies.
pub(crate) const CID_OFFSET: usize = 11;

/// Most plaintext in a record (RFC 5246 §6.2.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// Most bytes after the header (RFC 5246 §6.2.3).
const MAX_FRAGMENT: usize = MAX_PLAINTEXT + 2048;

/// Largest sequence number: it has 48 bits.
pub(crate) const MAX_SEQUENCE: u64 = (1 << 48) - 1;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentType {
    ChangeCipherSpec = 20,
    Alert = 21,
    Handshake = 22,
    Application = 23,
    /// The true type is encrypted, behind the content (RFC 9146 §4).
    Cid = 25,
}

impl ContentType {
    pub(crate) fn from_number(number: u8) -> Option<ContentType> {
        Some(match number {
            20 => ContentType::ChangeCipherSpec,
            21 => ContentType::Alert,
            22 => ContentType::Handshake,
            23 => ContentType::Application,
            25 => ContentType::Cid,
            _ => return None,
        })
    }
}

/// The header of a record and where its parts lie in the datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) content_type: ContentType,
    pub(crate) version: [u8; 2],
    pub(crate) epoch: u16,
    /// At most [`MAX_SEQUENCE`].
    pub(crate) sequence: u64,
    pub(crate) cid: Range<usize>,
    pub(crate) body: Range<usize>,
}

/// Why a record, and mostly the rest of its datagram, cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FramingError {
    /// It ends within a record.
    Truncated,
    /// It has a length that DTLS does not know, or is of no DTLS.
    Malformed,
    /// It is of a type that we do not know; what follows it can be read.
    UnknownType {
        /// Where it ends.
        end: usize,
    },
}

impl RecordHeader {
    /// Reads the record at `at`. `cid_len` is the length of the CIDs that we gave out.
    #[inline]
    pub(crate) fn parse(datagram: &[u8], at: usize, cid_len: usize) -> Result<RecordHeader, FramingError> {
        let header = datagram.get(at..at + CID_OFFSET).ok_or(FramingError::Truncated)?;
        let content_type = ContentType::from_number(header[0]);
        if content_type.is_none() && header[1] != VERSION[0] {
            return Err(FramingError::Malformed);
        }
        let cid_start = at + CID_OFFSET;
        let cid_end = if content_type == Some(ContentType::Cid) { cid_start + cid_len } else { cid_start };
        let length = datagram.get(cid_end..cid_end + 2).ok_or(FramingError::Truncated)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let body = cid_end + 2..cid_end + 2 + length;
        if length > MAX_FRAGMENT {
            return Err(FramingError::Malformed);
        }
        if body.end > datagram.len() {
            return Err(FramingError::Truncated);
        }
        let content_type = content_type.ok_or(FramingError::UnknownType { end: body.end })?;
        Ok(RecordHeader {
            content_type,
            version: [header[1], header[2]],
            epoch: u16::from_be_bytes([header[3], header[4]]),
            sequence: u64::from_be_bytes([0, 0, header[5], header[6], header[7], header[8], header[9], header[10]]),
            cid: cid_start..cid_end,
            body,
        })
    }
}

/// Appends the header of a record; `length` is what follows it.
pub(crate) fn write_header(
    out: &mut Vec<u8>,
    content_type: ContentType,
    epoch: u16,
    sequence: u64,
    cid: &[u8],
    length: usize,
) {
    debug_assert!(sequence <= MAX_SEQUENCE && length <= MAX_FRAGMENT);
    out.push(content_type as u8);
    out.extend_from_slice(&VERSION);
    out.extend_from_slice(&epoch_and_sequence(epoch, sequence));
    out.extend_from_slice(cid);
    out.extend_from_slice(&(length as u16).to_be_bytes());
}

/// Epoch and sequence number as the header and the MAC have them.
pub(crate) fn epoch_and_sequence(epoch: u16, sequence: u64) -> [u8; 8] {
    (u64::from(epoch) << 48 | sequence).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_they_are_written() {
        let mut datagram = Vec::new();
        write_header(&mut datagram, ContentType::Handshake, 0, 7, &[], 3);
        datagram.extend_from_slice(b"abc");
        let second = datagram.len();
        write_header(&mut datagram, ContentType::Cid, 1, MAX_SEQUENCE, &[9, 8], 2);
        datagram.extend_from_slice(b"de");
        let first = RecordHeader::parse(&datagram, 0, 2).unwrap();
        assert_eq!((first.epoch, first.sequence, first.cid.len()), (0, 7, 0));
        assert_eq!((&datagram[first.body.clone()], first.body.end), (&b"abc"[..], second));
        let next = RecordHeader::parse(&datagram, second, 2).unwrap();
        assert_eq!((next.content_type, next.epoch, next.sequence), (ContentType::Cid, 1, MAX_SEQUENCE));
        assert_eq!((&datagram[next.cid.clone()], &datagram[next.body]), (&[9, 8][..], &b"de"[..]));
        for end in second + 1..datagram.len() {
            assert_eq!(RecordHeader::parse(&datagram[..end], second, 2), Err(FramingError::Truncated));
        }
        assert_eq!(RecordHeader::parse(&[24; 40], 0, 2), Err(FramingError::Malformed));
        datagram[0] = 26;
        assert_eq!(RecordHeader::parse(&datagram, 0, 2), Err(FramingError::UnknownType { end: second }));
        assert_eq!(
            RecordHeader::parse(&[22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff], 0, 2),
            Err(FramingError::Malformed)
        );
    }
}
