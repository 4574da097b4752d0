//! What simulated devices send: a payload that says which message it is, so that an audit finds it again.
//!
//! # Format
//!
//! Integers are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `TGB1` |
//! | 4 | 4 | CRC32C of all that follows |
//! | 8 | 8 | run |
//! | 16 | 4 | device: its index in the run |
//! | 20 | 4 | number of the message among those of its device, from 0 |
//! | 24 | 8 | when it was due, microseconds since 1970 |
//! | 32 | … | filler up to the size: pseudo-random bytes, which do not compress |
//!
//! In a payload that is text ([`crate::pattern`]) the mark is [`MARK_LEN`] letters somewhere in it: `tgb:`, the CRC32C in 8 hexadecimal digits
//! of all that is before and behind those digits, and bytes 8 to 31 of the table in base64.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Smallest payload.
pub const MIN_LEN: usize = 32;

const MAGIC: &[u8; 4] = b"TGB1";

/// Bytes of a mark in a text.
pub const MARK_LEN: usize = TEXT_MAGIC.len() + CRC_DIGITS + TEXT_BODY;

const TEXT_MAGIC: &[u8; 4] = b"tgb:";
const CRC_DIGITS: usize = 8;
/// 24 bytes in base64, which need no padding.
const TEXT_BODY: usize = (MIN_LEN - BODY_AT) / 3 * 4;
const CRC_AT: usize = 4;
const BODY_AT: usize = 8;

/// Names one message of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Which run, chosen at random at its start.
    pub run: u64,
    /// Index of the device.
    pub device: u32,
    /// Number of the message, from 0.
    pub number: u32,
    /// When it was due, microseconds since 1970.
    pub due_micros: u64,
}

/// A payload of a simulated device that is not as it was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the checksum does not match")]
pub struct Corrupt;

impl Mark {
    /// Appends the payload of `size >= MIN_LEN` bytes.
    pub fn write(&self, size: usize, out: &mut Vec<u8>) {
        debug_assert!(size >= MIN_LEN);
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; BODY_AT - CRC_AT]);
        out.extend_from_slice(&self.run.to_le_bytes());
        out.extend_from_slice(&self.device.to_le_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.due_micros.to_le_bytes());
        let end = start + size;
        let mut word = mix(self.run ^ (u64::from(self.device) << 32 | u64::from(self.number)));
        while out.len() < end {
            word = mix(word);
            let bytes = word.to_le_bytes();
            out.extend_from_slice(&bytes[..bytes.len().min(end - out.len())]);
        }
        let crc = crc32c::crc32c(&out[start + BODY_AT..]);
        out[start + CRC_AT..start + BODY_AT].copy_from_slice(&crc.to_le_bytes());
    }

    /// Appends the mark as text; [`Mark::sum_text`] completes it when the whole payload is there.
    pub(crate) fn write_text(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(TEXT_MAGIC);
        out.extend_from_slice(&[b'0'; CRC_DIGITS]);
        let mut body = [0; MIN_LEN - BODY_AT];
        body[..8].copy_from_slice(&self.run.to_le_bytes());
        body[8..12].copy_from_slice(&self.device.to_le_bytes());
        body[12..16].copy_from_slice(&self.number.to_le_bytes());
        body[16..].copy_from_slice(&self.due_micros.to_le_bytes());
        let at = out.len();
        out.resize(at + TEXT_BODY, 0);
        // It fits: that is how long 24 bytes are.
        let _ = URL_SAFE_NO_PAD.encode_slice(body, &mut out[at..]);
    }

    /// Writes the checksum of a payload into its mark at `at`.
    pub(crate) fn sum_text(payload: &mut [u8], at: usize) {
        let digits = at + TEXT_MAGIC.len()..at + TEXT_MAGIC.len() + CRC_DIGITS;
        let crc = text_crc(payload, digits.clone());
        payload[digits].copy_from_slice(format!("{crc:08x}").as_bytes());
    }

    fn read_text(payload: &[u8], at: usize) -> Result<Mark, Corrupt> {
        let digits = at + TEXT_MAGIC.len()..at + TEXT_MAGIC.len() + CRC_DIGITS;
        let crc = payload.get(digits.clone()).ok_or(Corrupt)?;
        if crc != format!("{:08x}", text_crc(payload, digits.clone())).as_bytes() {
            return Err(Corrupt);
        }
        let text = payload.get(digits.end..digits.end + TEXT_BODY).ok_or(Corrupt)?;
        let mut body = [0; MIN_LEN - BODY_AT];
        URL_SAFE_NO_PAD.decode_slice(text, &mut body).map_err(|_| Corrupt)?;
        Ok(Mark::of(&body))
    }

    fn of(body: &[u8; MIN_LEN - BODY_AT]) -> Mark {
        let word = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Mark { run: long(0), device: word(8), number: word(12), due_micros: long(16) }
    }

    /// Reads the mark of a payload; `None` if it is none of a simulated device.
    ///
    /// # Errors
    ///
    /// The payload was one, but is damaged.
    pub fn read(payload: &[u8]) -> Result<Option<Mark>, Corrupt> {
        if !payload.starts_with(MAGIC) {
            let at = payload.windows(TEXT_MAGIC.len()).position(|window| window == TEXT_MAGIC);
            return at.map(|at| Mark::read_text(payload, at)).transpose();
        }
        let (Some(crc), Some(body)) = (payload.get(CRC_AT..BODY_AT), payload.get(BODY_AT..)) else {
            return Err(Corrupt);
        };
        if crc32c::crc32c(body).to_le_bytes() != crc {
            return Err(Corrupt);
        }
        let header = body.first_chunk().ok_or(Corrupt)?;
        Ok(Some(Mark::of(header)))
    }
}

/// The checksum of a text but for the digits of the checksum itself.
fn text_crc(payload: &[u8], digits: std::ops::Range<usize>) -> u32 {
    let before = crc32c::crc32c(&payload[..digits.start]);
    crc32c::crc32c_append(before, &payload[digits.end..])
}

/// One step of SplitMix64: spreads a counter over 64 bits.
#[must_use]
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Fills `out` with numbers that follow from `state`, which moves on. Nothing of it is secret.
pub(crate) fn fill(state: &mut u64, out: &mut [u8]) {
    for chunk in out.chunks_mut(8) {
        *state = mix(*state);
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { run: 0x0102_0304_0506_0708, device: 42, number: 7, due_micros: 1_700_000_000_000_000 };

    #[test]
    fn a_mark_survives_at_every_size_and_the_same_message_is_the_same_bytes() {
        for size in MIN_LEN..300 {
            let (mut first, mut again) = (vec![9; 3], Vec::new());
            MARK.write(size, &mut first);
            MARK.write(size, &mut again);
            assert_eq!(first[3..], again);
            assert_eq!(again.len(), size);
            assert_eq!(Mark::read(&again), Ok(Some(MARK)));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let mut payload = Vec::new();
        MARK.write(64, &mut payload);
        for bit in 32..payload.len() * 8 {
            payload[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::read(&payload), Err(Corrupt), "bit {bit}");
            payload[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 4..payload.len() {
            assert_eq!(Mark::read(&payload[..len]), Err(Corrupt), "{len} bytes");
        }
        assert_eq!(Mark::read(b"{\"t\":21.5}"), Ok(None));
        assert_eq!(Mark::read(b""), Ok(None));
    }
}
