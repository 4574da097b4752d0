//! Files that devices download, firmware above all, block by block and from any offset.
//!
//! # Constraints
//!
//! A path names a regular file below the directory, whatever links there are: what is elsewhere, hidden (a segment begins with
//! a dot) or no file is not there. Nothing is kept for a download: each block is read when it is asked for, by a thread of its own, so
//! that a slow disk holds up no reading. The file is kept open for a second, as the next block is likely to be of the same one.
//!
//! A file is to be replaced by renaming another one over it; blocks of the two have different entity tags, by which the device
//! notices (RFC 7959 §2.4).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, Instant};
use std::{io, thread};

use nix::fcntl::OFlag;
use tidegate_coap::{Block, block, dedup};

/// Requests that may wait for the thread: more are told to come again.
const MAX_WAITING: usize = 4096;

/// Files kept open: the firmware of so many kinds of devices.
const MAX_OPEN: usize = 64;

/// How long a file is taken to be what it was.
const TRUSTED: Duration = Duration::from_secs(1);

/// A block of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) bytes: Vec<u8>,
    /// Which block it is; none if it is the whole file and no block was asked for.
    pub(super) block2: Option<Block>,
    /// Bytes of the whole file.
    pub(super) size: u64,
    pub(super) etag: [u8; 8],
}

/// Why there is no block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoPart {
    /// 4.04
    #[error("there is no such file")]
    NoFile,
    /// 4.00
    #[error("there is no such block")]
    NoBlock,
    /// 5.00
    #[error("the file cannot be read")]
    Unreadable,
}

struct Request {
    path: Box<str>,
    asked: Option<Block>,
    answer: Box<dyn FnOnce(Result<Part, NoPart>) + Send>,
}

/// Takes requests; see the [module documentation](self).
#[derive(Clone)]
pub(super) struct Files {
    requests: SyncSender<Request>,
}

/// As many requests wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

impl Files {
    /// Starts the thread, which ends when the last clone is dropped. `root` must be there. Blocks have at most 2^(`max_szx` + 4)
    /// bytes.
    pub(super) fn spawn(root: &Path, max_szx: u8) -> io::Result<Files> {
        let mut directory = Directory::open(root, max_szx)?;
        let (requests, asked) = mpsc::sync_channel::<Request>(MAX_WAITING);
        thread::Builder::new().name("files".into()).spawn(move || {
            while let Ok(request) = asked.recv() {
                (request.answer)(directory.part(&request.path, request.asked, Instant::now()));
            }
        })?;
        Ok(Files { requests })
    }

    /// Has `answer` called with the block `asked` of the file at `path`, a topic below the directory.
    pub(super) fn ask(
        &self,
        path: &str,
        asked: Option<Block>,
        answer: impl FnOnce(Result<Part, NoPart>) + Send + 'static,
    ) -> Result<(), Busy> {
        self.requests.try_send(Request { path: path.into(), asked, answer: Box::new(answer) }).map_err(|_| Busy)
    }
}

struct Directory {
    /// Without links.
    root: PathBuf,
    max_szx: u8,
    open: HashMap<Box<str>, Opened>,
}

struct Opened {
    file: File,
    size: u64,
    etag: [u8; 8],
    since: Instant,
}

impl Directory {
    fn open(root: &Path, max_szx: u8) -> io::Result<Directory> {
        let root = root.canonicalize()?;
        if !root.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        Ok(Directory { root, max_szx, open: HashMap::new() })
    }

    fn part(&mut self, path: &str, asked: Option<Block>, now: Instant) -> Result<Part, NoPart> {
        if self.open.get(path).is_none_or(|opened| now.saturating_duration_since(opened.since) >= TRUSTED) {
            self.open.remove(path);
            let opened = self.find(path, now).ok_or(NoPart::NoFile)?;
            if self.open.len() >= MAX_OPEN {
                self.open.retain(|_, opened| now.saturating_duration_since(opened.since) < TRUSTED);
            }
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            self.open.insert(path.into(), opened);
        }
        let opened = &self.open[path];
        let size = usize::try_from(opened.size).map_err(|_| NoPart::Unreadable)?;
        let slice = block::slice(size, asked, self.max_szx).map_err(|_| NoPart::NoBlock)?;
        let mut bytes = vec![0; slice.range.len()];
        opened.file.read_exact_at(&mut bytes, slice.range.start as u64).map_err(|_| NoPart::Unreadable)?;
        Ok(Part { bytes, block2: slice.block2, size: opened.size, etag: opened.etag })
    }

    fn find(&self, path: &str, now: Instant) -> Option<Opened> {
        // Segments were checked with the topic: none is empty, `.` or `..`, or has a slash or NUL.
        if path.is_empty() || path.split('/').any(|segment| segment.is_empty() || segment.starts_with('.')) {
            return None;
        }
        let target = self.root.join(path).canonicalize().ok()?;
        if !target.starts_with(&self.root) {
            return None;
        }
        // Neither a link put there since, nor a pipe that opens when somebody writes.
        let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&target).ok()?;
        let meta = file.metadata().ok()?;
        if !meta.is_file() {
            return None;
        }
        let identity = [meta.dev(), meta.ino(), meta.len(), meta.mtime() as u64, meta.mtime_nsec() as u64];
        let bytes: Vec<u8> = identity.iter().flat_map(|part| part.to_be_bytes()).collect();
        Some(Opened { file, size: meta.len(), etag: dedup::scope_in(0, &bytes).to_be_bytes(), since: now })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("sub/.hidden")).unwrap();
        fs::write(root.join("fw.bin"), (0..5000u32).map(|n| n as u8).collect::<Vec<_>>()).unwrap();
        fs::write(root.join("empty"), "").unwrap();
        fs::write(root.join("sub/a"), "in a directory").unwrap();
        fs::write(root.join("sub/.hidden/a"), "hidden").unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("fw.bin", root.join("latest")).unwrap();
        nix::unistd::mkfifo(&root.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let directory = Directory::open(&root, 6).unwrap();
        (dir, directory)
    }

    fn whole(directory: &mut Directory, path: &str) -> Result<Vec<u8>, NoPart> {
        directory.part(path, None, Instant::now()).map(|part| part.bytes)
    }

    #[test]
    fn what_is_not_a_file_of_the_directory_is_not_there() {
        let (_dir, mut directory) = directory();
        assert_eq!(whole(&mut directory, "sub/a").unwrap(), b"in a directory");
        assert_eq!(whole(&mut directory, "latest").unwrap().len(), 1024, "a link within it");
        for path in
            ["", "nothing", "sub", "sub/.hidden/a", "out", "up/secret", "../secret", "/etc/passwd", "pipe", "a/"]
        {
            assert_eq!(whole(&mut directory, path), Err(NoPart::NoFile), "{path:?}");
        }
    }

    #[test]
    fn any_block_can_be_asked_for_in_any_size() {
        let (_dir, mut directory) = directory();
        let now = Instant::now();
        let first = directory.part("fw.bin", None, now).unwrap();
        assert_eq!(first.block2, Some(Block { num: 0, more: true, szx: 6 }));
        let mut all = Vec::new();
        for num in 0..5000u32.div_ceil(64) {
            let part = directory.part("fw.bin", Some(Block { num, more: false, szx: 2 }), now).unwrap();
            assert_eq!((part.size, part.etag), (5000, first.etag));
            assert_eq!(part.block2, Some(Block { num, more: all.len() + 64 < 5000, szx: 2 }));
            all.extend(part.bytes);
        }
        assert_eq!(all, (0..5000u32).map(|n| n as u8).collect::<Vec<_>>());
        let beyond = Some(Block { num: 79, more: false, szx: 2 });
        assert_eq!(directory.part("fw.bin", beyond, now), Err(NoPart::NoBlock));
        assert_eq!(directory.part("empty", None, now).unwrap().bytes, b"");
    }

    #[test]
    fn a_file_that_is_replaced_has_another_tag_after_a_second() {
        let (dir, mut directory) = directory();
        let now = Instant::now();
        let before = directory.part("fw.bin", None, now).unwrap();
        fs::write(dir.path().join("new"), [7; 3000]).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("root/fw.bin")).unwrap();
        assert_eq!(directory.part("fw.bin", None, now).unwrap(), before, "a download that is under way goes on");
        let after = directory.part("fw.bin", None, now + TRUSTED).unwrap();
        assert_eq!((after.size, after.bytes[0]), (3000, 7));
        assert_ne!(after.etag, before.etag);
    }

    #[test]
    fn open_files_are_bounded() {
        let (dir, mut directory) = directory();
        for n in 0..200 {
            fs::write(dir.path().join(format!("root/{n}")), "x").unwrap();
            whole(&mut directory, &n.to_string()).unwrap();
            assert!(directory.open.len() <= MAX_OPEN);
        }
    }
}
