//! Opening the database, submitting to it, and stopping it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prometheus::Registry;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, StorageError};
use tidegate_durable::{Failure, lock};

use crate::Changes;
use crate::commit;
use crate::error::{OpenError, Refused};
use crate::metrics::Metrics;
use crate::reader::Reader;
use crate::shared::Shared;
use crate::table::Table;

/// The format that is written, below [`FORMAT_KEY`].
pub(crate) const FORMAT: &str = "1";

/// The key of [`Table::Meta`] that holds the format.
const FORMAT_KEY: &[u8] = b"format";

/// Where the database is, and what it may take.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file; its directory is made if need be.
    pub path: PathBuf,
    /// Memory for pages of the file; `None` is 64 MiB, or a tenth of the file if that is more, and 1 GiB at most.
    pub cache_bytes: Option<usize>,
    /// Bytes of changes that may wait for the disk.
    pub pending_bytes: usize,
    /// Free disk space below which nothing is accepted; 0 for no such mark.
    pub low_water_bytes: u64,
}

/// Names a submission: those before it have smaller numbers. [`Ticket::NONE`] is durable from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

impl Ticket {
    /// Comes before every submission.
    pub const NONE: Ticket = Ticket(0);
}

/// The open database. Dropped, it stores what was accepted and closes the file.
#[derive(Debug)]
pub struct Store {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Submits changes. Clones submit to the same database.
#[derive(Debug, Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

/// How far submissions are stored.
#[derive(Debug, Clone)]
pub struct Durable {
    shared: Arc<Shared>,
}

/// How a store ended.
#[derive(Debug, Clone)]
pub struct Stopped {
    /// Whether everything accepted is stored, and the file closed in good order.
    pub clean: bool,
}

impl Store {
    /// Opens the database, or makes a new one, and starts its thread. After a crash, the whole file is read to check it.
    pub fn open(config: Config, registry: &Registry) -> Result<Store, OpenError> {
        let metrics = Metrics::new(registry)?;
        let database = open_file(&config)?;
        check_format(&database, &config.path)?;
        Self::start(database, config, metrics)
    }

    pub(crate) fn start(database: Database, config: Config, metrics: Metrics) -> Result<Store, OpenError> {
        let path = config.path.clone();
        let shared =
            Arc::new(Shared::new(database, config.path, config.pending_bytes, config.low_water_bytes, metrics));
        let thread = thread::Builder::new().name("state".into()).spawn({
            let shared = shared.clone();
            move || commit::run(&shared)
        });
        let thread = thread.map_err(|source| OpenError::Io { doing: "starting the thread of", path, source })?;
        Ok(Store { shared, thread: Some(thread) })
    }

    /// A way to submit changes.
    #[must_use]
    pub fn writer(&self) -> Writer {
        Writer { shared: self.shared.clone() }
    }

    /// A way to read what is committed.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader { shared: self.shared.clone() }
    }

    /// A way to hear of commits.
    #[must_use]
    pub fn durable(&self) -> Durable {
        Durable { shared: self.shared.clone() }
    }

    /// Accepts nothing more, stores what was accepted, and closes the file; all within `timeout`.
    pub fn stop(mut self, timeout: Duration) -> Stopped {
        self.end(timeout)
    }

    #[cfg(test)]
    pub(crate) fn shared_metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    fn end(&mut self, timeout: Duration) -> Stopped {
        let shared = &self.shared;
        let Some(thread) = self.thread.take() else { return Stopped { clean: true } };
        lock(&shared.queue).stopping = Some(Instant::now() + timeout);
        shared.work.notify_all();
        if !shared.progress.wait_until(timeout, || shared.progress.has_ended()) {
            return Stopped { clean: false };
        }
        let joined = thread.join().is_ok();
        *shared.snapshot.write().unwrap_or_else(PoisonError::into_inner) = None;
        let database = shared.database.write().unwrap_or_else(PoisonError::into_inner).take();
        let closed = database.is_none_or(|database| database.close().is_ok());
        Stopped { clean: joined && closed && shared.progress.failure().is_none() }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        /// Longer than any disk takes that still works.
        const LAST: Duration = Duration::from_secs(60);
        self.end(LAST);
    }
}

impl Writer {
    /// Accepts all of `changes`, or none; never waits for the disk. On `Ok` they are cleared, and stored once [`Durable::get`] reaches the
    /// ticket; on `Err` they are as they were. No changes get the ticket of the last submission before.
    pub fn submit(&self, changes: &mut Changes) -> Result<Ticket, Refused> {
        let shared = &self.shared;
        let mut queue = lock(&shared.queue);
        if changes.is_empty() {
            return Ok(Ticket(queue.last));
        }
        if let Some(reason) = shared.refusal(&mut queue, changes.bytes.len()) {
            drop(queue);
            shared.metrics.refused(reason).inc();
            return Err(reason);
        }
        queue.bytes.extend_from_slice(&changes.bytes);
        queue.changes += u64::from(changes.count);
        let bytes = changes.bytes.len();
        queue.pending += bytes;
        queue.last += 1;
        let ticket = Ticket(queue.last);
        // One that lets changes gather is woken when they have become half of what may wait.
        let half = shared.pending_bytes / 2;
        let filled = queue.pending >= half && queue.pending - bytes < half;
        let wake = std::mem::take(&mut queue.idle) || filled;
        drop(queue);
        if wake {
            shared.work.notify_all();
        }
        changes.clear();
        Ok(ticket)
    }

    /// Why a submission would be refused now, if so.
    #[must_use]
    pub fn refusing(&self) -> Option<Refused> {
        self.shared.refusal(&mut lock(&self.shared.queue), 1)
    }
}

impl Durable {
    /// Every submission up to this one survives a crash.
    #[must_use]
    pub fn get(&self) -> Ticket {
        Ticket(self.shared.progress.durable())
    }

    /// Why nothing will ever become durable again, if so.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.shared.progress.failure().cloned()
    }

    /// Calls `hook` on the state thread after [`get`](Self::get) moved, [`failure`](Self::failure) was set, or the store ended. It must be
    /// short; if it panics the store fails.
    pub fn on_move(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.shared.progress.on_move(hook);
    }

    /// Waits until `ticket` is durable; `false` if the store failed or ended before, or `timeout` passed.
    #[must_use]
    pub fn wait(&self, ticket: Ticket, timeout: Duration) -> bool {
        self.shared.progress.wait(ticket.0, timeout)
    }
}

/// Memory for pages of a file of `len` bytes unless it is given: enough for all of its trees but their leaves, so that a device is looked up with few
/// reads, and little beside what as many devices take themselves.
pub(crate) fn cache_for(len: u64) -> usize {
    usize::try_from(len / 10).unwrap_or(usize::MAX).clamp(64 << 20, 1 << 30)
}

fn open_file(config: &Config) -> Result<Database, OpenError> {
    let path = &config.path;
    let io = |doing| move |source| OpenError::Io { doing, path: path.clone(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir).map_err(io("making the directory of"))?;
    if !path.exists() {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        match created {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io("creating")(error)),
        }
        // The file's name must be as durable as what is written into it.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("syncing the directory of"))?;
    }
    let begin = Instant::now();
    let repaired = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut builder = Builder::new();
    let len = fs::metadata(path).map_err(io("looking at"))?.len();
    builder.set_cache_size(config.cache_bytes.unwrap_or_else(|| cache_for(len)));
    builder.set_repair_callback({
        let repaired = repaired.clone();
        move |_| repaired.store(true, std::sync::atomic::Ordering::Relaxed)
    });
    let database = builder.create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::Locked { path: path.clone(), holder: holder(path) },
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != io::ErrorKind::InvalidData => {
            io("opening")(source)
        }
        DatabaseError::UpgradeRequired(version) => {
            OpenError::Format { path: path.clone(), found: format!("redb {version}") }
        }
        error => OpenError::Damaged { path: path.clone(), problem: error.to_string() },
    })?;
    if repaired.load(std::sync::atomic::Ordering::Relaxed) {
        let bytes = fs::metadata(path).map_or(0, |file| file.len());
        tracing::info!(bytes, seconds = begin.elapsed().as_secs_f64(), "the database was checked after a crash");
    }
    Ok(database)
}

/// Writes the format into a new database, and compares that of an old one.
fn check_format(database: &Database, path: &Path) -> Result<(), OpenError> {
    let damaged = |error: redb::Error| OpenError::Damaged { path: path.into(), problem: error.to_string() };
    let read = || -> Result<Option<String>, redb::Error> {
        let table = match database.begin_read()?.open_table(Table::Meta.definition()) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(table.get(FORMAT_KEY)?.map(|found| String::from_utf8_lossy(found.value()).into_owned()))
    };
    match read().map_err(damaged)? {
        Some(found) if found == FORMAT => Ok(()),
        Some(found) => Err(OpenError::Format { path: path.into(), found }),
        None => {
            let write = || -> Result<(), redb::Error> {
                let transaction = database.begin_write()?;
                transaction.open_table(Table::Meta.definition())?.insert(FORMAT_KEY, FORMAT.as_bytes())?;
                Ok(transaction.commit()?)
            };
            write().map_err(damaged)
        }
    }
}

/// The process that has `path` locked, as far as `/proc/locks` tells.
fn holder(path: &Path) -> Option<String> {
    let inode = fs::metadata(path).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let pid = locks.lines().find_map(|line| {
        // `1: FLOCK  ADVISORY  WRITE 4321 08:01:1234 0 EOF`
        let mut words = line.split_whitespace().skip(4);
        let pid = words.next()?;
        // -1 is that of a lock which belongs to an open file and not to a process.
        (words.next()?.rsplit(':').next()? == inode && pid != "-1").then_some(pid)
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("{} (process {pid})", if name.is_empty() { "another process" } else { name.trim() }))
}
