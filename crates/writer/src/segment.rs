//! The files of the log: where they are, how one is allocated ahead of its use, begun, and ended.
//!
//! # Operation
//!
//! A file is allocated as `<n>.pre` and holds nothing. To begin a segment, its header is written and synced, the file is renamed to
//! its segment name and the directory is synced; only then are frames written. So a `.seg` file whose header cannot be read is
//! damage, never the trace of a crash. A removed segment may become a `.pre` file again: its old frames are
//! bound to the old header and can not be taken for new ones.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::format::{FRAME_HEADER_LEN, HEADER_LEN, Header, parse_file_name, seal_frame};
use crate::storage::Storage;

/// Directory of the segments in the data directory.
pub(crate) const LOG_DIR: &str = "log";
/// Directory of damaged files in the log's.
pub(crate) const QUARANTINE_DIR: &str = "quarantine";
/// Extension of a file allocated and not in use.
pub(crate) const SPARE_EXTENSION: &str = "pre";
/// Extension of a file that was being written when the process ended; removed at start.
pub(crate) const TEMPORARY_EXTENSION: &str = "tmp";

/// A segment that is not written any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub(crate) path: PathBuf,
    pub(crate) epoch: u32,
    /// Sequence number of its first record.
    pub(crate) first: u64,
    /// Sequence number behind its last record; `first <= next`.
    pub(crate) next: u64,
    /// Bytes of the file.
    pub(crate) len: u64,
    /// When its last record was written.
    pub(crate) ended: SystemTime,
}

/// Small frames are written over zeros that one of them had written behind itself, up to a multiple of this.
///
/// What was allocated and never written, the file system has to mark as written when it is. ext4 leaves that to a worker of the kernel and lets the sync
/// wait for it: nothing while processors are idle, and many milliseconds for one sync in a hundred while they are not. So that is done once for many
/// frames. A frame of more than a sixteenth is not followed by zeros: so much is written then that writing it twice costs more.
pub(crate) const AHEAD: usize = 256 << 10;

/// A file allocated for the next segment.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) len: u64,
    /// How far it was written in an earlier use; 0 if that is not known.
    pub(crate) written: u64,
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) epoch: u32,
    pub(crate) first: u64,
    pub(crate) seed: u32,
    /// Where the next frame goes.
    pub(crate) offset: u64,
    /// Allocated bytes; `offset` never passes it.
    pub(crate) len: u64,
    /// How far the file was written, whatever with; what is only allocated is behind. All of it counts as written where there is no space for zeros.
    pub(crate) written: u64,
}

/// Microseconds since the Unix epoch.
pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as u64)
}

/// Random bits of the system.
pub(crate) fn random() -> io::Result<u64> {
    Ok(getrandom::u64()?)
}

/// The segments in `dir` by their names, in order: `(first, epoch, path)`.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<(u64, u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if let Some((first, epoch)) = entry.file_name().to_str().and_then(parse_file_name) {
            found.push((first, epoch, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Allocates the file `path`, new or old, for a segment of `len` bytes.
pub(crate) fn allocate(storage: &dyn Storage, path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    storage.allocate(&file, len)?;
    storage.sync_data(&file)
}

/// Begins a segment in `spare`; returns once its header and its name are durable.
pub(crate) fn begin(
    storage: &dyn Storage,
    dir: &Path,
    spare: &Spare,
    node: &str,
    epoch: u32,
    first: u64,
) -> io::Result<Active> {
    let header = Header { epoch, first, salt: random()?, created: now_us(), node: node.into() };
    let file = OpenOptions::new().read(true).write(true).open(&spare.path)?;
    storage.write_at(&file, &header.encode(), 0)?;
    storage.sync_data(&file)?;
    let path = dir.join(header.file_name());
    fs::rename(&spare.path, &path)?;
    storage.sync_dir(dir)?;
    Ok(Active {
        file,
        path,
        epoch,
        first,
        seed: header.seed(),
        offset: HEADER_LEN as u64,
        len: spare.len,
        written: spare.written,
    })
}

impl Active {
    /// Number of zeros to be written behind a frame of `len` bytes that goes to `offset`: see [`AHEAD`].
    pub(crate) fn ahead(&self, len: usize) -> usize {
        let end = self.offset + len as u64;
        if end <= self.written || len > AHEAD / 16 {
            return 0;
        }
        (end.next_multiple_of(AHEAD as u64).min(self.len) - end) as usize
    }

    /// Bytes that a frame may still take, a seal behind it included.
    pub(crate) fn room(&self) -> u64 {
        self.len - self.offset
    }

    /// Bytes of records that it can still take in one frame.
    pub(crate) fn usable(&self) -> u64 {
        self.room().saturating_sub(2 * FRAME_HEADER_LEN as u64)
    }

    /// Writes the seal; `next` is the sequence number that the next segment begins with. It need not be durable: without it the
    /// beginning of the next segment says the same.
    pub(crate) fn seal(&mut self, storage: &dyn Storage, next: u64) -> io::Result<()> {
        let seal = seal_frame(self.seed, next);
        storage.write_at(&self.file, &seal, self.offset)?;
        self.offset += seal.len() as u64;
        Ok(())
    }
}

/// Gives back what a sealed segment does not need of its allocation, and makes its seal and length durable.
pub(crate) fn truncate(storage: &dyn Storage, path: &Path, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    storage.sync_data(&file)?;
    file.set_len(len)?;
    storage.sync_data(&file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_written_where_nothing_was_behind_small_frames() {
        let ahead = |offset, written: usize, len| {
            let file = tempfile::tempfile().unwrap();
            let (path, written) = (PathBuf::new(), written as u64);
            Active { file, path, epoch: 1, first: 1, seed: 0, offset, len: 1_000_000, written }.ahead(len)
        };
        assert_eq!(ahead(4096, 0, 904), AHEAD - 5000);
        assert_eq!(ahead(4096, AHEAD, 904), 0, "there are some");
        assert_eq!(ahead(260_000, AHEAD, AHEAD - 260_000), 0, "the last frame that they suffice for");
        assert_eq!(ahead(260_000, AHEAD, AHEAD - 260_000 + 1), AHEAD - 1);
        assert_eq!(ahead(4096, 0, AHEAD / 16), AHEAD - 4096 - AHEAD / 16);
        assert_eq!(ahead(4096, 0, AHEAD / 16 + 1), 0, "a large frame");
        assert_eq!(ahead(900_000, 0, 1000), 1_000_000 - 901_000, "no further than the file");
        assert_eq!(ahead(999_000, 0, 1000), 0);
    }
}
