//! Reads the log in place, while it is written, removed from and recycled, from this process or another.
//!
//! # Operation
//!
//! Segments are found by their names. A frame is taken for valid by its checksum alone, which is bound to the segment, so a file that is
//! used again under the reader can only make frames invalid. What an invalid frame means is found out then: the file is not at its
//! name any more (look again where the next record is), or there is a later segment (this one ended here, or it is damaged),
//! or this is the end. Nothing is skipped without an error that says so.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tidegate_record::{Record, Seq, peek_len};

use crate::error::ReadError;
use crate::format::{MAX_FRAME_BYTES, parse_file_name};
use crate::frames::{Frames, Step, read_header};
use crate::segment::{LOG_DIR, list};
use crate::shared::Shared;

/// Looks at the directory in one call before giving up: each failed one means that a segment was removed in the moment between
/// listing and opening, so this many in a row need a writer that removes segments as fast as they are listed.
const MAX_LOOKS: usize = 64;

/// How far behind an invalid frame at the end of a log that is not ours a valid one is looked for: a frame that is damaged ends within it.
const DAMAGE_WINDOW: u64 = 2 * MAX_FRAME_BYTES as u64;

/// How long the end of a log that is not ours must have stood before what is behind it is searched again. While it is written its end
/// moves with each commit, and a search reads up to [`DAMAGE_WINDOW`], a tenth of a second of a core: a follower would do nothing else.
const SETTLED: Duration = Duration::from_secs(10);

/// One record in its place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its position.
    pub seq: Seq,
    /// The start of the writer that wrote it.
    pub epoch: u32,
    /// The record, borrowed from the reader's buffer.
    pub record: Record<'a>,
}

/// A segment being read.
struct Current {
    frames: Frames,
    path: PathBuf,
    first: u64,
    epoch: u32,
    inode: u64,
    /// Nothing follows in this segment.
    ended: bool,
}

/// What is left of a frame.
#[derive(Debug, Clone, Copy)]
struct Rest {
    /// Sequence number of the next record in it.
    seq: u64,
    /// Records left.
    count: u32,
    /// Where in the buffer the next one is, and where the last one ends.
    at: usize,
    end: usize,
}

/// Gives the records of a log in order, in place.
pub struct Reader {
    dir: PathBuf,
    /// Nothing beyond its `durable` is given.
    limit: Option<Arc<Shared>>,
    /// The sequence number to be given next; zero for the oldest there is.
    next: u64,
    current: Option<Current>,
    rest: Option<Rest>,
    /// An end that was looked behind already: offset, and when the file was last written.
    looked: Option<(PathBuf, u64, SystemTime)>,
    /// The end that was met last, and when it was met first.
    stands: Option<(u64, Instant)>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("dir", &self.dir).field("next", &self.next).finish_non_exhaustive()
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ReadError + use<'a> {
    move |source| ReadError::Io { doing, path: path.into(), source }
}

impl Reader {
    /// A reader of the log in the data directory `dir`, the next record being `from`; [`Seq::NONE`] begins with the oldest there is.
    pub fn open(dir: impl AsRef<Path>, from: Seq) -> Result<Reader, ReadError> {
        let dir = dir.as_ref().join(LOG_DIR);
        fs::read_dir(&dir).map_err(io_error("listing", &dir))?;
        Ok(Reader { dir, limit: None, next: from.0, current: None, rest: None, looked: None, stands: None })
    }

    pub(crate) fn within(shared: Arc<Shared>, from: Seq) -> Reader {
        let dir = shared.dir.clone();
        Reader { dir, limit: Some(shared), next: from.0, current: None, rest: None, looked: None, stands: None }
    }

    /// The sequence number that is expected next; [`Seq::NONE`] if any will do.
    #[must_use]
    pub fn next_seq(&self) -> Seq {
        Seq(self.next)
    }

    /// The next record, or `None` at the end of what is valid (or, of [`Log::reader`](crate::Log::reader), durable) now; it may be called
    /// again.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        loop {
            if let Some(rest) = &mut self.rest {
                if rest.count == 0 {
                    self.rest = None;
                    continue;
                }
                let current = self.current.as_ref().expect("what is left of a frame is in a segment");
                let buffer = &current.frames.buffer()[..rest.end];
                let (seq, at) = (rest.seq, rest.at);
                if seq < self.next {
                    let Ok(len) = peek_len(&buffer[at..]) else {
                        self.rest = None;
                        continue;
                    };
                    (rest.at, rest.seq, rest.count) = (at + len, seq + 1, rest.count - 1);
                    if rest.at > rest.end {
                        self.rest = None;
                    }
                    continue;
                }
                // Borrowed anew for the answer: the borrow above ends here.
                return self.decode(seq, at);
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    fn decode(&mut self, seq: u64, at: usize) -> Result<Option<Entry<'_>>, ReadError> {
        let rest = self.rest.as_mut().expect("the caller has seen it");
        let current = self.current.as_ref().expect("what is left of a frame is in a segment");
        let bytes = &current.frames.buffer()[at..rest.end];
        self.next = seq + 1;
        match Record::decode(bytes) {
            Ok((record, len)) => {
                (rest.at, rest.seq, rest.count) = (at + len, seq + 1, rest.count - 1);
                Ok(Some(Entry { seq: Seq(seq), epoch: current.epoch, record }))
            }
            Err(source) => {
                match peek_len(bytes) {
                    Ok(len) if len <= bytes.len() => {
                        (rest.at, rest.seq, rest.count) = (at + len, seq + 1, rest.count - 1);
                    }
                    // Where the next one begins is not known; those of this frame that are lost are the gap before the next frame.
                    _ => self.rest = None,
                }
                Err(ReadError::Record { seq: Seq(seq), source })
            }
        }
    }

    /// Has the next frame in the buffer, or returns `false` at the end.
    fn advance(&mut self) -> Result<bool, ReadError> {
        let mut looks = 0;
        loop {
            let durable = self.limit.as_ref().map_or(u64::MAX, |shared| shared.durable().0);
            if self.next.max(1) > durable {
                return Ok(false);
            }
            let Some(current) = &mut self.current else {
                looks += 1;
                if looks <= MAX_LOOKS && self.find()? {
                    continue;
                }
                return Ok(false);
            };
            if current.frames.next_seq() > durable {
                // What is durable ends before this frame, which may have been written already.
                return Ok(false);
            }
            if current.ended {
                if self.follow()? {
                    continue;
                }
                return Ok(false);
            }
            let end = self.limit.as_ref().map_or(u64::MAX, |shared| shared.written(current.first));
            match current.frames.step(end).map_err(io_error("reading", &current.path))? {
                Step::Frame { base, count, records } => return self.take(base, count, records),
                Step::Seal => current.ended = true,
                Step::Invalid(problem) => {
                    if !self.judge(problem)? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    fn take(&mut self, base: u64, count: u32, records: std::ops::Range<usize>) -> Result<bool, ReadError> {
        if base + u64::from(count) > self.next {
            self.rest = Some(Rest { seq: base, count, at: records.start, end: records.end });
        }
        let expected = self.next;
        if base > expected {
            self.next = base;
            if expected != 0 {
                return Err(ReadError::Gap { expected: Seq(expected), found: Seq(base) });
            }
        }
        Ok(true)
    }

    /// Opens the segment that holds the next record, or the first one behind it. `false` if there is none.
    fn find(&mut self) -> Result<bool, ReadError> {
        let listed = list(&self.dir).map_err(io_error("listing", &self.dir))?;
        let at = listed.partition_point(|(first, ..)| *first <= self.next).saturating_sub(1);
        if listed.is_empty() {
            return Ok(false);
        }
        self.enter(&listed, at)
    }

    /// Goes to the segment behind the current one, if there is one.
    fn follow(&mut self) -> Result<bool, ReadError> {
        let current = self.current.as_ref().expect("there is one to go on from");
        let key = (current.first, current.epoch);
        let next = current.frames.next_seq();
        let listed = list(&self.dir).map_err(io_error("listing", &self.dir))?;
        let at = listed.partition_point(|(first, epoch, _)| (*first, *epoch) <= key);
        if at == listed.len() {
            return Ok(false);
        }
        // All but the last of those that begin here are empty.
        let at = listed.partition_point(|(first, ..)| *first <= next).saturating_sub(1).max(at);
        self.enter(&listed, at)
    }

    fn enter(&mut self, listed: &[(u64, u32, PathBuf)], at: usize) -> Result<bool, ReadError> {
        let (first, epoch, path) = &listed[at];
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // Removed since it was listed.
                self.current = None;
                return Ok(true);
            }
            Err(e) => return Err(io_error("opening", path)(e)),
        };
        let inode = file.metadata().map_err(io_error("examining", path))?.ino();
        let header = match read_header(&file).map_err(io_error("reading", path))? {
            Ok((header, _)) if (header.first, header.epoch) == (*first, *epoch) => header,
            other => {
                self.current = None;
                if !is_at(path, inode) {
                    return Ok(true);
                }
                let problem = match other {
                    Ok((header, _)) => format!("the header is that of {}", header.file_name()),
                    Err(error) => error.to_string(),
                };
                let Some((following, ..)) = listed.get(at + 1) else {
                    // There is nothing behind it to go on with; say it once, then wait for more.
                    let seen = (path.clone(), 0, SystemTime::UNIX_EPOCH);
                    if self.looked.as_ref() == Some(&seen) {
                        return Ok(false);
                    }
                    self.looked = Some(seen);
                    return Err(ReadError::Damaged { segment: path.clone(), offset: 0, problem });
                };
                self.next = self.next.max(*following);
                return Err(ReadError::Damaged { segment: path.clone(), offset: 0, problem });
            }
        };
        let frames = match self.current.take() {
            Some(current) => Frames::reuse(current.frames, file, &header),
            None => Frames::new(file, &header),
        };
        self.current = Some(Current { frames, path: path.clone(), first: *first, epoch: *epoch, inode, ended: false });
        Ok(true)
    }

    /// Finds out what an invalid frame means. `true` if there is something to go on with.
    fn judge(&mut self, problem: &'static str) -> Result<bool, ReadError> {
        let current = self.current.as_mut().expect("the frame is in it");
        if !is_at(&current.path, current.inode) {
            self.current = None;
            return Ok(true);
        }
        let key = (current.first, current.epoch);
        let listed = list(&self.dir).map_err(io_error("listing", &self.dir))?;
        let following = listed.iter().find(|(first, epoch, _)| (*first, *epoch) > key).map(|(first, ..)| *first);
        let durable = self.limit.as_ref().is_some_and(|shared| current.frames.next_seq() <= shared.durable().0);

        if following == Some(current.frames.next_seq()) {
            // Its writer died before it sealed it, or is about to.
            current.ended = true;
            return Ok(true);
        }
        if following.is_none() && !durable {
            let modified = current.frames.file().metadata().and_then(|m| m.modified());
            let modified = modified.map_err(io_error("reading", &current.path))?;
            let seen = (current.path.clone(), current.frames.offset(), modified);
            let since = match self.stands {
                Some((end, since)) if end == current.frames.next_seq() => since,
                _ => Instant::now(),
            };
            self.stands = Some((current.frames.next_seq(), since));
            // The first end is searched behind at once: whoever reads once is told of damage there.
            let settled = self.looked.is_none() || since.elapsed() >= SETTLED;
            if self.looked.as_ref() == Some(&seen) || !settled {
                return Ok(false);
            }
            let found = current.frames.find_after(DAMAGE_WINDOW).map_err(io_error("reading", &current.path))?;
            self.looked = Some(seen);
            if found.is_none() {
                return Ok(false);
            }
        }
        // The frame may have been written since it was looked at, and others behind it.
        let (offset, base) = (current.frames.offset(), current.frames.next_seq());
        match current.frames.step(u64::MAX).map_err(io_error("reading", &current.path))? {
            Step::Invalid(_) => {}
            Step::Seal | Step::Frame { .. } => {
                current.frames.jump(offset, base);
                return Ok(true);
            }
        }
        match current.frames.find_after(u64::MAX).map_err(io_error("reading", &current.path))? {
            Some((behind, base)) => current.frames.jump(behind, base),
            None if following.is_some() => current.ended = true,
            None => {
                let seen = (current.path.clone(), offset, SystemTime::UNIX_EPOCH);
                if self.looked.as_ref() == Some(&seen) {
                    return Ok(false);
                }
                self.looked = Some(seen);
            }
        }
        if !is_at(&current.path, current.inode) {
            // It was removed meanwhile, and its file may have been used again before it was read.
            self.current = None;
            return Ok(true);
        }
        Err(ReadError::Damaged { segment: current.path.clone(), offset, problem: problem.into() })
    }
}

/// Whether the file at `path` is still the one with this inode.
fn is_at(path: &Path, inode: u64) -> bool {
    fs::metadata(path).is_ok_and(|m| m.ino() == inode)
}

/// The first record of the oldest segment that can hold one received at or after `received_us`; [`Seq::NONE`] if that is the oldest.
pub(crate) fn first_since(dir: &Path, received_us: u64) -> Result<Seq, ReadError> {
    for (first, _, path) in list(dir).map_err(io_error("listing", dir))?.into_iter().rev() {
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => break,
            Err(e) => return Err(io_error("opening", &path)(e)),
        };
        if let Ok((header, _)) = read_header(&file).map_err(io_error("reading", &path))?
            && header.created <= received_us
        {
            debug_assert!(path.file_name().and_then(|n| n.to_str()).and_then(parse_file_name).is_some());
            return Ok(Seq(first));
        }
    }
    Ok(Seq::NONE)
}

#[cfg(test)]
impl Reader {
    /// Behind which offset was searched last.
    pub(crate) fn searched_behind(&self) -> Option<u64> {
        self.looked.as_ref().map(|(_, offset, _)| *offset)
    }
}
