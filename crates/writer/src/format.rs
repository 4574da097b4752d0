//! The bytes of a segment. With this page alone a second reader can be written; a test holds a byte string against it.
//!
//! # Constraints
//!
//! - A frame that was not written whole is not valid; nor is a frame that an earlier use of the same file left behind.
//! - One damaged frame does not make the others unreadable; one damaged header copy does not either.
//! - A record costs no framing of its own: sequence numbers are implied, the checksum is shared by all records of a commit.
//!
//! # Format
//!
//! All integers are little-endian. `crc32c` is CRC-32C (Castagnoli) as of RFC 3720 §12.1, so `crc32c("123456789") = 0xE3069283`;
//! `crc32c(seed, x)` goes on from the value `seed`, so `crc32c(crc32c(a), b) = crc32c(a ‖ b)`.
//!
//! A segment is a file `<first>-<epoch>.seg`, both in decimal, zero-padded to 20 and 10 digits, so that names sort as records do. It is
//! a header of [`HEADER_LEN`] bytes, then frames without space between them. The header is a block of 512 bytes at offset 0, the
//! same block again at offset 2048, and zeros:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic, the bytes `TIDELOG` and 0x0A |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | `epoch`: which start of the gateway wrote it |
//! | 16 | 8 | `first`: sequence number of the first record |
//! | 24 | 8 | `salt`: random |
//! | 32 | 8 | `created`: microseconds since 1970-01-01T00:00:00Z; no record in it was received much before |
//! | 40 | 2 | `node_len`, at most 64 |
//! | 42 | 64 | `node` in ASCII, zero-padded |
//! | 106 | 402 | zeros |
//! | 508 | 4 | `crc32c` of the 508 bytes before |
//!
//! A frame is one commit, [`FRAME_HEADER_LEN`] bytes and the records:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `len`: bytes of the records, at most [`MAX_FRAME_BYTES`] |
//! | 4 | 4 | checksum: `crc32c(crc32c(epoch ‖ first ‖ salt), len ‖ base ‖ count ‖ records)`, epoch, first and salt as in the header |
//! | 8 | 8 | `base`: sequence number of the first record |
//! | 16 | 4 | `count`: number of records |
//! | 20 | `len` | `count` encoded records ([`tidegate_record`]), the i-th (from 0) having the sequence number `base + i` |
//!
//! The first frame's `base` is the header's `first`; each next frame's is the one before's `base + count`. A frame with `len` and
//! `count` zero seals the segment: nothing follows it, and its `base` is the `first` of the next segment.
//!
//! # Reading
//!
//! Take the segments in the order of their names and read frames while `base` is as expected and the checksum holds. At a seal, or at a
//! frame that is not valid, go to the segment that begins with the expected number, if there is one. Otherwise, in the last segment, it
//! is the end of the log (a writer may be about to append); anywhere else it is damage. Segments are allocated in full before
//! they are used, and files are used again: what lies behind the last valid frame means nothing.
//!
//! The salt makes the checksum of a frame unknown to whoever sends payloads, so a reading cannot contain what recovery would take for a
//! frame.

use tidegate_record::{FIXED_LEN, peek_len};

/// Bytes before the first frame of a segment: one page, so that frames never share a sector with it.
pub const HEADER_LEN: usize = 4096;
/// Bytes of a frame before its records.
pub const FRAME_HEADER_LEN: usize = 20;
/// Longest node name.
pub const MAX_NODE_LEN: usize = 64;
/// Most bytes of records in a frame: one longest record.
pub const MAX_FRAME_BYTES: usize = crate::MAX_RECORD_BYTES;
/// The version that this module reads and writes.
pub const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"TIDELOG\n";
/// Bytes of a header block, checksum included: a sector of any disk.
const BLOCK_LEN: usize = 512;
/// Where the second block is; in another sector, so that one bad sector leaves one of them.
const SECOND_BLOCK: usize = 2048;
const NODE_AT: usize = 42;

const _: () = assert!(SECOND_BLOCK + BLOCK_LEN <= HEADER_LEN && NODE_AT + MAX_NODE_LEN < BLOCK_LEN - 4);
const _: () = assert!(MAX_FRAME_BYTES <= u32::MAX as usize - FRAME_HEADER_LEN);

/// Identity of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Which start of the gateway wrote it.
    pub epoch: u32,
    /// Sequence number of its first record.
    pub first: u64,
    /// Random; part of every checksum.
    pub salt: u64,
    /// When it was begun, in microseconds since the Unix epoch.
    pub created: u64,
    /// Who wrote it; at most [`MAX_NODE_LEN`] bytes.
    pub node: String,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// All zeros: allocated, never begun.
    #[error("the header was never written")]
    Blank,
    /// Neither copy has the magic.
    #[error("not a segment of this log: no magic")]
    Foreign,
    /// Valid, and of a version that this module does not know.
    #[error("version {0} is not supported, {VERSION} is")]
    Version(u32),
    /// Neither copy's checksum holds.
    #[error("both copies of the header are damaged")]
    Damaged,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

impl Header {
    /// The header's bytes.
    ///
    /// # Panics
    /// If the node's name is longer than [`MAX_NODE_LEN`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.node.len() <= MAX_NODE_LEN, "the configuration was checked");
        let mut block = [0u8; BLOCK_LEN];
        block[0..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&VERSION.to_le_bytes());
        block[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        block[16..24].copy_from_slice(&self.first.to_le_bytes());
        block[24..32].copy_from_slice(&self.salt.to_le_bytes());
        block[32..40].copy_from_slice(&self.created.to_le_bytes());
        block[40..42].copy_from_slice(&(self.node.len() as u16).to_le_bytes());
        block[NODE_AT..NODE_AT + self.node.len()].copy_from_slice(self.node.as_bytes());
        let crc = crc32c::crc32c(&block[..BLOCK_LEN - 4]);
        block[BLOCK_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        let mut bytes = vec![0; HEADER_LEN];
        bytes[..BLOCK_LEN].copy_from_slice(&block);
        bytes[SECOND_BLOCK..SECOND_BLOCK + BLOCK_LEN].copy_from_slice(&block);
        bytes
    }

    /// Reads a header from the beginning of a segment; the flag says whether every byte of it is as it was written.
    pub fn decode(bytes: &[u8]) -> Result<(Header, bool), HeaderError> {
        if bytes.iter().take(HEADER_LEN).all(|b| *b == 0) {
            return Err(HeaderError::Blank);
        }
        let mut worst = HeaderError::Foreign;
        for at in [0, SECOND_BLOCK] {
            let Some(block) = bytes.get(at..at + BLOCK_LEN) else { break };
            match Self::decode_block(block) {
                Ok(header) => {
                    let whole = bytes.get(..HEADER_LEN) == Some(header.encode().as_slice());
                    return Ok((header, whole));
                }
                Err(HeaderError::Foreign) => {}
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }

    fn decode_block(block: &[u8]) -> Result<Header, HeaderError> {
        if block[0..8] != MAGIC {
            return Err(HeaderError::Foreign);
        }
        if crc32c::crc32c(&block[..BLOCK_LEN - 4]) != u32_at(block, BLOCK_LEN - 4) {
            return Err(HeaderError::Damaged);
        }
        let version = u32_at(block, 8);
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let node_len = usize::from(u16::from_le_bytes([block[40], block[41]])).min(MAX_NODE_LEN);
        Ok(Header {
            epoch: u32_at(block, 12),
            first: u64_at(block, 16),
            salt: u64_at(block, 24),
            created: u64_at(block, 32),
            node: String::from_utf8_lossy(&block[NODE_AT..NODE_AT + node_len]).into_owned(),
        })
    }

    /// What the checksums of this segment's frames begin with.
    #[must_use]
    pub fn seed(&self) -> u32 {
        let mut identity = [0u8; 20];
        identity[0..4].copy_from_slice(&self.epoch.to_le_bytes());
        identity[4..12].copy_from_slice(&self.first.to_le_bytes());
        identity[12..20].copy_from_slice(&self.salt.to_le_bytes());
        crc32c::crc32c(&identity)
    }

    /// The segment's file name.
    #[must_use]
    pub fn file_name(&self) -> String {
        file_name(self.first, self.epoch)
    }
}

/// The name of the segment that begins with `first` and was written in `epoch`.
#[must_use]
pub fn file_name(first: u64, epoch: u32) -> String {
    format!("{first:020}-{epoch:010}.seg")
}

/// `(first, epoch)` of a segment's file name.
#[must_use]
pub fn parse_file_name(name: &str) -> Option<(u64, u32)> {
    let (first, epoch) = name.strip_suffix(".seg")?.split_once('-')?;
    let (first, epoch) = (first.parse().ok()?, epoch.parse().ok()?);
    (file_name(first, epoch) == name).then_some((first, epoch))
}

/// The beginning of a frame, not verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the records.
    pub len: u32,
    /// The checksum.
    pub crc: u32,
    /// Sequence number of the first record.
    pub base: u64,
    /// Number of records; zero in a seal.
    pub count: u32,
}

impl FrameHeader {
    /// Reads one, if there are enough bytes.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<FrameHeader> {
        let bytes = bytes.first_chunk::<FRAME_HEADER_LEN>()?;
        Some(FrameHeader {
            len: u32_at(bytes, 0),
            crc: u32_at(bytes, 4),
            base: u64_at(bytes, 8),
            count: u32_at(bytes, 16),
        })
    }

    /// Whether a frame can be like this, whatever its checksum.
    #[must_use]
    pub fn is_plausible(&self) -> bool {
        let len = self.len as usize;
        let least = (self.count as usize).saturating_mul(FIXED_LEN);
        len <= MAX_FRAME_BYTES && least <= len && (self.count == 0) == (len == 0)
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_LEN + self.len as usize
    }

    /// The checksum that a frame with these fields and records has in the segment with this seed.
    #[must_use]
    pub fn checksum(&self, seed: u32, records: &[u8]) -> u32 {
        let mut fields = [0u8; 16];
        fields[0..4].copy_from_slice(&self.len.to_le_bytes());
        fields[4..12].copy_from_slice(&self.base.to_le_bytes());
        fields[12..16].copy_from_slice(&self.count.to_le_bytes());
        crc32c::crc32c_append(crc32c::crc32c_append(seed, &fields), records)
    }
}

/// Fills the first [`FRAME_HEADER_LEN`] bytes of `frame`, whose others are `count` encoded records.
///
/// # Panics
/// If the frame is shorter than its header or longer than a frame can be.
pub fn finish_frame(frame: &mut [u8], seed: u32, base: u64, count: u32) {
    let (fields, records) = frame.split_at_mut(FRAME_HEADER_LEN);
    let len = u32::try_from(records.len()).expect("frames are bounded by MAX_FRAME_BYTES");
    let header = FrameHeader { len, crc: 0, base, count };
    let crc = header.checksum(seed, records);
    fields[0..4].copy_from_slice(&len.to_le_bytes());
    fields[4..8].copy_from_slice(&crc.to_le_bytes());
    fields[8..16].copy_from_slice(&base.to_le_bytes());
    fields[16..20].copy_from_slice(&count.to_le_bytes());
}

/// The frame that says that the next record, `next`, is in another segment.
#[must_use]
pub fn seal_frame(seed: u32, next: u64) -> [u8; FRAME_HEADER_LEN] {
    let mut frame = [0; FRAME_HEADER_LEN];
    finish_frame(&mut frame, seed, next, 0);
    frame
}

/// Whether `records` are exactly `count` records by their length fields.
#[must_use]
pub fn is_filled(mut records: &[u8], count: u32) -> bool {
    for _ in 0..count {
        let Some(rest) = peek_len(records).ok().and_then(|len| records.get(len..)) else { return false };
        records = rest;
    }
    records.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_record::{Protocol, Record};

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    }

    fn header() -> Header {
        Header { epoch: 7, first: 1000, salt: 0x0123_4567_89AB_CDEF, created: 1_764_000_000_000_000, node: "n1".into() }
    }

    /// Written by hand from the module's page; the two checksums were computed by a bitwise CRC-32C that shares nothing with the crate
    /// in use (`bitwise` below).
    const GOLDEN_HEADER: &str =
        "54494445 4c4f470a 01000000 07000000 e803000000000000 efcdab8967452301 0040624159440600 0200 6e31";
    const GOLDEN_FRAME: &str = "
        2c000000 CCCCCCCC e803000000000000 01000000
        28000000 0040624159440600 01 11 0000 0100 0000 0000 0100 0900000000000000 0500000000000000 64 74 aabb";

    fn bitwise(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, b| {
            (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { (c >> 1) ^ 0x82F6_3B78 } else { c >> 1 })
        })
    }

    #[test]
    fn the_check_value_of_the_standard() {
        assert_eq!(bitwise(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn a_header_written_by_hand_is_the_header() {
        let mut block = unhex(GOLDEN_HEADER);
        block.resize(508, 0);
        let crc = bitwise(&block);
        block.extend_from_slice(&crc.to_le_bytes());
        let mut bytes = block.clone();
        bytes.resize(2048, 0);
        bytes.extend_from_slice(&block);
        bytes.resize(HEADER_LEN, 0);
        assert!(header().encode() == bytes);
        assert_eq!(Header::decode(&bytes), Ok((header(), true)));
        assert_eq!(header().file_name(), "00000000000000001000-0000000007.seg");
    }

    #[test]
    fn a_frame_written_by_hand_is_the_frame() {
        let mut bytes = unhex(&GOLDEN_FRAME.replace("CCCCCCCC", "00000000"));
        let identity = unhex("07000000 e803000000000000 efcdab8967452301");
        let covered: Vec<u8> = [&identity, &bytes[0..4], &bytes[8..]].concat();
        let crc = bitwise(&covered);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());

        let record = Record {
            received: 1_764_000_000_000_000,
            protocol: Protocol::Coap,
            qos: 1,
            retain: false,
            content_format: None,
            device: "d",
            tenant: "",
            content_type: "",
            topic: "t",
            key: Some(tidegate_record::MessageKey { scope: 9, number: 5 }),
            payload: &[0xAA, 0xBB],
        };
        let mut frame = vec![0; FRAME_HEADER_LEN];
        record.encode(&mut frame).unwrap();
        finish_frame(&mut frame, header().seed(), 1000, 1);
        assert_eq!(frame, bytes);
        let read = FrameHeader::read(&frame).unwrap();
        assert_eq!((read.base, read.count, read.frame_len()), (1000, 1, frame.len()));
        assert!(is_filled(&frame[FRAME_HEADER_LEN..], 1));
        assert!(!is_filled(&frame[FRAME_HEADER_LEN..], 2));
        assert!(!is_filled(&frame[FRAME_HEADER_LEN..frame.len() - 1], 1));
    }

    #[test]
    fn either_copy_of_the_header_will_do_but_damage_is_seen_at_every_byte() {
        let good = header().encode();
        for at in 0..HEADER_LEN {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(Header::decode(&bad), Ok((header(), false)), "byte {at}");
        }
        let mut both = good.clone();
        both[20] ^= 1;
        both[SECOND_BLOCK + 33] ^= 1;
        assert_eq!(Header::decode(&both), Err(HeaderError::Damaged));
        assert_eq!(Header::decode(&[0; HEADER_LEN]), Err(HeaderError::Blank));
        assert_eq!(Header::decode(&[]), Err(HeaderError::Blank));
        assert_eq!(Header::decode(&[7; HEADER_LEN]), Err(HeaderError::Foreign));
    }

    #[test]
    fn a_later_version_is_said_by_its_number() {
        let mut bytes = header().encode();
        for at in [0, SECOND_BLOCK] {
            bytes[at + 8] = 2;
            let crc = crc32c::crc32c(&bytes[at..at + BLOCK_LEN - 4]);
            bytes[at + BLOCK_LEN - 4..at + BLOCK_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        assert_eq!(Header::decode(&bytes), Err(HeaderError::Version(2)));
    }

    #[test]
    fn names_that_are_not_ours() {
        assert_eq!(parse_file_name(&file_name(u64::MAX, u32::MAX)), Some((u64::MAX, u32::MAX)));
        for name in ["1-1.seg", "00000000000000001000-0000000007.pre", "x.seg", "00000000000000001000-0000000007"] {
            assert_eq!(parse_file_name(name), None, "{name}");
        }
    }
}
