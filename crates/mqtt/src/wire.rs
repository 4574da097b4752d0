//! The parts that packets are made of (MQTT 5.0 §1.5, §2.1), read in place.

use crate::violation::Violation;

/// Largest value of a variable byte integer (§1.5.5).
pub(crate) const MAX_VARINT: u32 = 268_435_455;

/// A packet found at the start of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// What follows the remaining length.
    pub(crate) body: &'a [u8],
    /// Bytes of the whole packet.
    pub(crate) total: usize,
    /// Whether the remaining length took no more bytes than it needs.
    pub(crate) minimal: bool,
}

/// The fixed header at the start of `bytes`: its length, the remaining length, and whether that is minimal; `None` while
/// it is incomplete.
#[inline]
fn fixed_header(bytes: &[u8]) -> Result<Option<(usize, usize, bool)>, Violation> {
    let mut value = 0usize;
    for i in 0..4 {
        let Some(&byte) = bytes.get(1 + i) else { return Ok(None) };
        value |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((2 + i, value, i == 0 || byte != 0)));
        }
    }
    Err(Violation::RemainingLength)
}

/// The packet at the start of `bytes`; `None` while it is incomplete. One above `max` is refused as soon as its length is
/// known.
#[inline]
pub(crate) fn frame(bytes: &[u8], max: u32) -> Result<Option<Frame<'_>>, Violation> {
    let Some((header, remaining, minimal)) = fixed_header(bytes)? else { return Ok(None) };
    let total = header + remaining;
    if total > max as usize {
        return Err(Violation::PacketTooLarge);
    }
    Ok(bytes.get(header..total).map(|body| Frame { body, total, minimal }))
}

/// What is there of the body of the packet that `bytes` begins with, be it too large.
pub(crate) fn body(bytes: &[u8]) -> &[u8] {
    let header = fixed_header(bytes).ok().flatten().map_or(bytes.len(), |(header, ..)| header);
    &bytes[header..]
}

/// Bytes of the packet that `bytes` begins with, once its length can be told: what a driver makes room for when it keeps
/// an unfinished tail.
#[must_use]
pub fn frame_len(bytes: &[u8]) -> Option<usize> {
    let (header, remaining, _) = fixed_header(bytes).ok()??;
    Some(header + remaining)
}

/// Reads fields off the front of a packet's body.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Self {
        Reader { rest }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that is left must have been read.
    pub(crate) fn end(&self) -> Result<(), Violation> {
        if self.rest.is_empty() { Ok(()) } else { Err(Violation::TrailingBytes) }
    }

    #[inline]
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], Violation> {
        let (head, tail) = self.rest.split_at_checked(n).ok_or(Violation::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Violation> {
        let (&first, tail) = self.rest.split_first().ok_or(Violation::Truncated)?;
        self.rest = tail;
        Ok(first)
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> Result<u16, Violation> {
        let (head, tail) = self.rest.split_first_chunk::<2>().ok_or(Violation::Truncated)?;
        self.rest = tail;
        Ok(u16::from_be_bytes(*head))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Violation> {
        let (head, tail) = self.rest.split_first_chunk::<4>().ok_or(Violation::Truncated)?;
        self.rest = tail;
        Ok(u32::from_be_bytes(*head))
    }

    /// A variable byte integer (§1.5.5) in as few bytes as it needs.
    #[inline]
    pub(crate) fn varint(&mut self) -> Result<u32, Violation> {
        let mut value = 0;
        for i in 0..4 {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                return if i > 0 && byte == 0 { Err(Violation::RemainingLength) } else { Ok(value) };
            }
        }
        Err(Violation::RemainingLength)
    }

    /// A packet identifier, which is never zero (§2.2.1).
    #[inline]
    pub(crate) fn packet_id(&mut self) -> Result<u16, Violation> {
        match self.u16()? {
            0 => Err(Violation::PacketId),
            id => Ok(id),
        }
    }

    /// Binary data (§1.5.6).
    #[inline]
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Violation> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A UTF-8 string (§1.5.4): no surrogates, no U+0000; U+FEFF is kept.
    #[inline]
    pub(crate) fn text(&mut self) -> Result<&'a str, Violation> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Violation::Utf8)?;
        if text.as_bytes().contains(&0) { Err(Violation::Utf8) } else { Ok(text) }
    }
}

/// Appends a variable byte integer. `value <= MAX_VARINT`.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u32) {
    debug_assert!(value <= MAX_VARINT);
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of a variable byte integer.
pub(crate) const fn varint_len(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// Appends binary data or a string. `bytes.len() <= 65535`.
pub(crate) fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX));
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_byte_integer_takes_as_few_bytes_as_it_needs() {
        for value in [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152, MAX_VARINT] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value as usize));
            let mut r = Reader::new(&out);
            assert_eq!(r.varint(), Ok(value));
            assert!(r.is_empty());
        }
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), Err(Violation::RemainingLength));
        assert_eq!(Reader::new(&[0xff, 0xff, 0xff, 0xff, 0x01]).varint(), Err(Violation::RemainingLength));
        assert_eq!(Reader::new(&[0xff]).varint(), Err(Violation::Truncated));
    }

    #[test]
    fn a_frame_is_told_from_its_fixed_header() {
        assert!(frame(&[], 100).unwrap().is_none());
        assert!(frame(&[0xc0], 100).unwrap().is_none());
        let ping = frame(&[0xc0, 0x00, 0xff], 100).unwrap().unwrap();
        assert_eq!((ping.body.len(), ping.total, ping.minimal), (0, 2, true));
        assert!(!frame(&[0xc0, 0x80, 0x00], 100).unwrap().unwrap().minimal);
        assert_eq!(frame(&[0x30, 0xff, 0x7f], 100).err(), Some(Violation::PacketTooLarge));
        assert_eq!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x01], u32::MAX).err(), Some(Violation::RemainingLength));
        assert_eq!(frame_len(&[0x30, 0x80, 0x01]), Some(131));
        assert_eq!(frame_len(&[0x30, 0x80]), None);
    }

    #[test]
    fn text_is_utf8_without_nul() {
        let text = |b: &[u8]| Reader::new(b).text().map(str::to_owned);
        assert_eq!(text(b"\x00\x03abc"), Ok("abc".into()));
        assert_eq!(text(b"\x00\x03a\0c"), Err(Violation::Utf8));
        assert_eq!(text(b"\x00\x03\xed\xa0\x80"), Err(Violation::Utf8), "a surrogate");
        assert_eq!(text(b"\x00\x03\xef\xbb\xbf"), Ok("\u{feff}".into()), "U+FEFF is not stripped");
        assert_eq!(text(b"\x00\x04abc"), Err(Violation::Truncated));
    }
}
