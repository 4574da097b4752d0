//! Tests of the whole log, each with a data directory of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::Registry;
use tempfile::TempDir;
use tidegate_record::{Protocol, Record, Seq};

use crate::storage::{FileStorage, Space, Storage};
use crate::{Batch, Log, LogConfig, ReadError, Reader, Recovered};

mod bounds;
mod damage;
mod model;
mod sinks;
mod stored;

/// Longer than any wait of a test that succeeds.
const LONG: Duration = Duration::from_secs(60);

/// Small numbers that differ by seed alone.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64*, Vigna 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// A file system that can be told to fail.
struct Faults {
    /// Free bytes that it reports, unless [`u64::MAX`].
    free: AtomicU64,
    /// Writes to come before one writes only a part and fails; negative numbers wrap to never.
    torn_after: AtomicU64,
    /// Bytes that the failing write does write, and whether garbage follows them.
    torn_at: AtomicUsize,
    torn_garbage: AtomicBool,
    /// Set by a torn write: nothing reaches the disk any more.
    down: AtomicBool,
    /// The next sync fails, once.
    sync_fails: AtomicBool,
    /// Allocations fail for want of space.
    no_space: AtomicBool,
    /// What opens a file fails for want of a descriptor.
    no_files: AtomicBool,
    syncs: AtomicU64,
    /// What was written of segments behind their headers: where, and how many bytes.
    writes: Mutex<Vec<(u64, usize)>>,
    /// Files that zeros were written to, each time.
    zeros: Mutex<Vec<u64>>,
    /// Writes of zeros fail for want of space, half-way.
    no_zeros: AtomicBool,
    /// While locked, no sync returns.
    gate: Mutex<()>,
}

impl Default for Faults {
    fn default() -> Self {
        Faults {
            free: AtomicU64::new(u64::MAX),
            torn_after: AtomicU64::new(u64::MAX),
            torn_at: AtomicUsize::new(0),
            torn_garbage: AtomicBool::new(false),
            down: AtomicBool::new(false),
            sync_fails: AtomicBool::new(false),
            no_space: AtomicBool::new(false),
            no_files: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            writes: Mutex::default(),
            zeros: Mutex::default(),
            no_zeros: AtomicBool::new(false),
            gate: Mutex::new(()),
        }
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(nix::errno::Errno::EIO as i32)
}

impl Storage for Faults {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.down.load(Ordering::SeqCst) {
            return Err(eio());
        }
        if offset > 0 {
            self.writes.lock().unwrap().push((offset, bytes.len()));
        }
        if bytes.iter().all(|byte| *byte == 0) {
            self.zeros.lock().unwrap().push(file.metadata()?.ino());
            if self.no_zeros.load(Ordering::SeqCst) {
                FileStorage.write_at(file, &bytes[..bytes.len() / 2], offset)?;
                return Err(io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32));
            }
        }
        if self.torn_after.load(Ordering::SeqCst) == u64::MAX || self.torn_after.fetch_sub(1, Ordering::SeqCst) > 0 {
            return FileStorage.write_at(file, bytes, offset);
        }
        self.down.store(true, Ordering::SeqCst);
        let at = self.torn_at.load(Ordering::SeqCst) % (bytes.len() + 1);
        let mut torn = bytes[..at].to_vec();
        if self.torn_garbage.load(Ordering::SeqCst) {
            torn.extend(bytes[at..].iter().map(|b| b ^ 0x5A));
        }
        FileStorage.write_at(file, &torn, offset)?;
        Err(eio())
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        drop(self.gate.lock().unwrap());
        self.syncs.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) || self.sync_fails.swap(false, Ordering::SeqCst) {
            return Err(eio());
        }
        // The page cache is all that a test looks at; the real call is measured and tested elsewhere.
        let _ = file;
        Ok(())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        if self.no_files.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32));
        }
        if self.down.load(Ordering::SeqCst) { Err(eio()) } else { Ok(()) }
    }

    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        if self.no_space.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32));
        }
        if self.no_files.load(Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32));
        }
        FileStorage.allocate(file, len)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let free = self.free.load(Ordering::SeqCst);
        if free == u64::MAX { FileStorage.space(path) } else { Ok(Space { free, total: u64::MAX }) }
    }
}

struct Rig {
    dir: TempDir,
    faults: Arc<Faults>,
    config: LogConfig,
}

impl Rig {
    fn new() -> Rig {
        // In memory where that is possible: thousands of logs are opened, and what a disk does is simulated.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let faults = Arc::new(Faults::default());
        let config = LogConfig {
            dir: dir.path().into(),
            node: "test".into(),
            segment_bytes: 64 << 10,
            commit_bytes: 16 << 10,
            commit_records: 64,
            pending_bytes: 48 << 10,
            low_water_bytes: 0,
            max_bytes: 64 << 20,
            storage: faults.clone(),
            ..LogConfig::default()
        };
        Rig { dir, faults, config }
    }

    fn open(&self) -> (Log, Recovered) {
        Log::open(self.config.clone(), &Registry::new()).unwrap()
    }

    /// The segments' files in order.
    fn segments(&self) -> Vec<PathBuf> {
        segments(self.dir.path())
    }
}

fn segments(data: &Path) -> Vec<PathBuf> {
    crate::segment::list(&data.join("log")).unwrap().into_iter().map(|(.., path)| path).collect()
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            // The keeper may have recycled it since it was listed.
            match std::fs::copy(entry.path(), target) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                copied => assert!(copied.is_ok(), "{copied:?}"),
            }
        }
    }
}

/// The record that stands for `number`, `size` bytes of payload long.
fn push(batch: &mut Batch, number: u64, size: usize) {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(size.max(8), number as u8);
    batch
        .push(&Record {
            received: 1_000_000 + number,
            protocol: Protocol::Coap,
            qos: 1,
            retain: false,
            content_format: None,
            device: "device",
            tenant: "",
            content_type: "",
            topic: "t",
            key: None,
            payload: &payload,
        })
        .unwrap();
}

fn number(record: &Record<'_>) -> u64 {
    let number = u64::from_le_bytes(record.payload[..8].try_into().unwrap());
    assert!(record.payload[8..].iter().all(|b| *b == number as u8), "payload of {number}");
    number
}

/// Appends records `numbers`, in one batch, and waits until they are durable.
fn store(log: &Log, numbers: std::ops::Range<u64>) -> Seq {
    let mut batch = Batch::new();
    numbers.for_each(|n| push(&mut batch, n, 64));
    let last = log.appender().append(&mut batch).unwrap();
    assert!(log.durable().wait(last, LONG), "{:?}", log.durable().failure());
    last
}

/// Stores the commits `commits` of `size` records each, numbered from one.
fn store_each(log: &Log, commits: std::ops::Range<u64>, size: u64) {
    for i in commits {
        store(log, 1 + i * size..1 + (i + 1) * size);
    }
}

/// Waits until `condition` holds; the keeper looks by itself several times a second.
fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what} never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// All that a reader of another process sees: number by sequence number, and the errors that it was told.
fn read(dir: &Path) -> (BTreeMap<u64, u64>, Vec<ReadError>) {
    drain(&mut Reader::open(dir, Seq::NONE).unwrap())
}

fn drain(reader: &mut Reader) -> (BTreeMap<u64, u64>, Vec<ReadError>) {
    let mut found = BTreeMap::new();
    let mut errors = Vec::new();
    let mut last = 0;
    loop {
        match reader.next() {
            Ok(Some(entry)) => {
                assert!(entry.seq.0 > last, "{} after {last}", entry.seq);
                last = entry.seq.0;
                found.insert(last, number(&entry.record));
            }
            Ok(None) => return (found, errors),
            Err(error) => errors.push(error),
        }
        assert!(errors.len() < 1000, "the same error again and again: {:?}", errors.last());
    }
}

/// Numbers equal to their sequence numbers, as [`store`] of `1..` makes them.
fn identity(numbers: impl Iterator<Item = u64>) -> BTreeMap<u64, u64> {
    numbers.map(|n| (n, n)).collect()
}
