//! Walks the frames of one segment through a buffer that is used again, bounded by the longest frame.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use tidegate_record::FIXED_LEN;

use crate::format::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, Header, HeaderError};

/// Bytes asked of the file at once. 256 KiB: a read costs little beside the checksum of what it brings, and stays in the cache.
const CHUNK: usize = 256 << 10;

/// Buffer kept between frames; a longer one is given back after the long frame that needed it.
const KEEP: usize = 4 << 20;

/// What stands at the position of a [`Frames`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// A valid frame; its records are at this range of [`Frames::buffer`].
    Frame {
        /// Sequence number of its first record.
        base: u64,
        /// How many records it has.
        count: u32,
        /// Where they are in the buffer.
        records: Range<usize>,
    },
    /// The segment ends here.
    Seal,
    /// No valid frame, with the reason.
    Invalid(&'static str),
}

/// A position in a segment.
#[derive(Debug)]
pub(crate) struct Frames {
    file: File,
    seed: u32,
    buffer: Vec<u8>,
    /// The part of `buffer` that holds bytes of the file from `offset` on.
    held: Range<usize>,
    /// Where the next frame is in the file.
    offset: u64,
    /// The `base` that it must have.
    next: u64,
}

/// Reads the header of a segment.
pub(crate) fn read_header(file: &File) -> io::Result<Result<(Header, bool), HeaderError>> {
    let mut bytes = vec![0; HEADER_LEN];
    let mut have = 0;
    while have < HEADER_LEN {
        match file.read_at(&mut bytes[have..], have as u64)? {
            0 => break,
            n => have += n,
        }
    }
    bytes.truncate(have);
    Ok(Header::decode(&bytes))
}

impl Frames {
    /// Stands before the first frame of the segment with this header.
    pub(crate) fn new(file: File, header: &Header) -> Frames {
        Frames {
            file,
            seed: header.seed(),
            buffer: Vec::new(),
            held: 0..0,
            offset: HEADER_LEN as u64,
            next: header.first,
        }
    }

    /// The same, in the memory of `old`.
    pub(crate) fn reuse(old: Frames, file: File, header: &Header) -> Frames {
        Frames { buffer: old.buffer, ..Frames::new(file, header) }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    pub(crate) fn buffer(&self) -> &[u8] {
        &self.buffer
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The sequence number that the next frame begins with.
    pub(crate) fn next_seq(&self) -> u64 {
        self.next
    }

    /// Goes to a frame found by [`find_after`](Self::find_after).
    pub(crate) fn jump(&mut self, offset: u64, base: u64) {
        self.offset = offset;
        self.next = base;
        self.held = 0..0;
    }

    /// Looks at the next frame, and goes behind it if it is valid. What is not valid is read once more, as the buffer may be older
    /// than the file. No more is read ahead than up to `end`, what is behind it not being written yet: that would make the kernel fill
    /// pages with zeros, which are read again when they are.
    pub(crate) fn step(&mut self, end: u64) -> io::Result<Step> {
        if self.buffer.len() > KEEP {
            self.buffer = Vec::new();
            self.held = 0..0;
        }
        match self.look(end)? {
            Step::Invalid(_) => {
                self.held = 0..0;
                self.look(end)
            }
            step => Ok(step),
        }
    }

    fn look(&mut self, end: u64) -> io::Result<Step> {
        if !self.hold(FRAME_HEADER_LEN, end)? {
            return Ok(Step::Invalid("the file ends within a frame's header"));
        }
        let header = FrameHeader::read(&self.buffer[self.held.clone()]).expect("it is held");
        if header.base != self.next {
            return Ok(Step::Invalid("the sequence number is not the next one"));
        }
        if !header.is_plausible() {
            return Ok(Step::Invalid("the length and the count cannot be"));
        }
        if !self.hold(header.frame_len(), end)? {
            return Ok(Step::Invalid("the file ends within a frame"));
        }
        let records = self.held.start + FRAME_HEADER_LEN..self.held.start + header.frame_len();
        if header.checksum(self.seed, &self.buffer[records.clone()]) != header.crc {
            return Ok(Step::Invalid("the checksum does not hold"));
        }
        self.held.start = records.end;
        self.offset += header.frame_len() as u64;
        self.next += u64::from(header.count);
        Ok(if header.count == 0 { Step::Seal } else { Step::Frame { base: header.base, count: header.count, records } })
    }

    /// Has at least `len` bytes of the file in the buffer, and more if they are cheap; `false` if it ends before.
    fn hold(&mut self, len: usize, end: u64) -> io::Result<bool> {
        if self.held.len() >= len {
            return Ok(true);
        }
        self.buffer.copy_within(self.held.clone(), 0);
        self.held = 0..self.held.len();
        let written = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let want = len.max(CHUNK.min(written));
        if self.buffer.len() < want {
            self.buffer.resize(want, 0);
        }
        while self.held.end < len {
            match self.file.read_at(&mut self.buffer[self.held.end..want], self.offset + self.held.end as u64) {
                Ok(0) => return Ok(false),
                Ok(n) => self.held.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Searches `window` bytes behind the position, which is not a valid frame, for one that is; returns its offset and `base`.
    ///
    /// Only a frame of this segment can be found: its checksum is seeded with the segment's identity, and its `base` must lie between
    /// the one expected here and what the records on the way to it, of [`FIXED_LEN`] bytes at least, could have counted up to.
    pub(crate) fn find_after(&self, window: u64) -> io::Result<Option<(u64, u64)>> {
        let end = self.file.metadata()?.len().min(self.offset.saturating_add(window));
        let mut chunk = vec![0; CHUNK];
        let mut frame = Vec::new();
        let mut at = self.offset + 1;
        while at + FRAME_HEADER_LEN as u64 <= end {
            let have = read_some(&self.file, &mut chunk, at)?;
            if have < FRAME_HEADER_LEN {
                break;
            }
            let starts = have - FRAME_HEADER_LEN + 1;
            for i in 0..starts {
                let base = u64::from_le_bytes(std::array::from_fn(|k| chunk[i + 8 + k]));
                let offset = at + i as u64;
                let most = self.next + (offset - self.offset) / FIXED_LEN as u64;
                if base < self.next || base > most {
                    continue;
                }
                let header = FrameHeader::read(&chunk[i..]).expect("enough bytes are there");
                if !header.is_plausible() {
                    continue;
                }
                frame.resize(header.len as usize, 0);
                let read = read_some(&self.file, &mut frame, offset + FRAME_HEADER_LEN as u64)?;
                if read == frame.len() && header.checksum(self.seed, &frame) == header.crc {
                    return Ok(Some((offset, base)));
                }
            }
            at += starts as u64;
        }
        Ok(None)
    }

    /// Bytes at the position that a commit cut off by a crash may have left, as far as they can be told from older ones.
    pub(crate) fn torn_bytes(&self) -> io::Result<u64> {
        let left = self.file.metadata()?.len().saturating_sub(self.offset);
        let mut bytes = [0; FRAME_HEADER_LEN];
        let have = read_some(&self.file, &mut bytes, self.offset)?;
        if have < FRAME_HEADER_LEN {
            return Ok(have as u64);
        }
        let header = FrameHeader::read(&bytes).expect("it is whole");
        let begun = header.base == self.next && header.is_plausible();
        Ok(if begun { left.min(header.frame_len() as u64) } else { 0 })
    }
}

/// Fills `buffer` from `offset` as far as the file goes.
fn read_some(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::format::finish_frame;

    #[test]
    fn what_is_not_written_is_not_read() {
        let header = Header { epoch: 1, first: 1, salt: 2, created: 3, node: "n".into() };
        let mut frame = vec![7; FRAME_HEADER_LEN + FIXED_LEN];
        finish_frame(&mut frame, header.seed(), 1, 1);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&header.encode()).unwrap();
        file.write_all(&frame).unwrap();
        file.write_all(&[0; 3 * CHUNK]).unwrap();

        let written = (HEADER_LEN + frame.len()) as u64;
        for (end, most) in [(written, 0), (written + 10, 10), (u64::MAX, CHUNK)] {
            let mut frames = Frames::new(file.try_clone().unwrap(), &header);
            assert!(matches!(frames.step(end).unwrap(), Step::Frame { base: 1, count: 1, .. }));
            assert!(frames.held.len() <= most, "{} bytes are held of what follows", frames.held.len());
        }
        // What its caller knows of the end may be old: a frame is read all the same.
        let mut frames = Frames::new(file, &header);
        assert!(matches!(frames.step(0).unwrap(), Step::Frame { base: 1, count: 1, .. }));
    }
}
