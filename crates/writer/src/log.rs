//! The log as its users see it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use tidegate_durable::{Failure, lock};
use tidegate_record::{Record, Seq};

use crate::batch::Batch;
use crate::config::LogConfig;
use crate::cursor::{self, CURSOR_DIR, Cursor};
use crate::error::{CursorError, OpenError, Pressure, ReadError, Refused};
use crate::format::FRAME_HEADER_LEN;
use crate::keeper::{self, Keeper};
use crate::metrics::Metrics;
use crate::reader::{Reader, first_since};
use crate::recovery::{Recovery, recover};
use crate::segment::{self, LOG_DIR, QUARANTINE_DIR, Spare};
use crate::shared::{Files, Holder, Shared};
use crate::{commit, shared};

/// Locked by the process that writes.
const LOCK_FILE: &str = "lock";

/// Time that a log which is dropped without [`Log::stop`] has to store what it accepted: a full queue on a disk of 13 MB/s.
const DROP_DEADLINE: Duration = Duration::from_secs(5);

/// Time that the log's thread has to end once it has given up: a busy machine may not run it for that long.
const GIVING_UP: Duration = Duration::from_secs(1);

/// The log of one node, open for writing by this process alone. Dropping it stops it.
#[derive(Debug)]
pub struct Log {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Held by the threads too, so that it lasts as long as anything is written.
    _lock: Arc<Flock<File>>,
}

/// Adds records to the log. Cloned for each front end.
#[derive(Debug, Clone)]
pub struct Appender {
    shared: Arc<Shared>,
}

/// Watches what is durable. Cloned freely.
#[derive(Debug, Clone)]
pub struct Durable {
    shared: Arc<Shared>,
}

/// What opening found on disk.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The epoch that this start writes.
    pub epoch: u32,
    /// The oldest record there is; [`Seq::NONE`] if there is none.
    pub oldest: Seq,
    /// The last sequence number before this start.
    pub last: Seq,
    /// Records that were checked.
    pub records: u64,
    /// Bytes that were checked.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Bytes of a commit that had not ended when the writer did: nobody was told that they are stored.
    pub cut_bytes: u64,
    /// Files that were damaged, with what was wrong; each is kept in `log/quarantine/`, and what was valid in it is still in the log.
    pub quarantined: Vec<Quarantined>,
    /// Ranges of records (first, last) that are missing between or behind those that are there.
    pub gaps: Vec<(Seq, Seq)>,
}

/// A damaged file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Where it is kept now.
    pub path: PathBuf,
    /// First damaged byte.
    pub offset: u64,
    /// What is wrong.
    pub problem: String,
}

/// How the log ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// All up to here is stored.
    pub durable: Seq,
    /// Records accepted after it that were not stored: their devices were never told that they were.
    pub abandoned_records: u64,
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> OpenError + use<'a> {
    move |source| OpenError::Io { doing, path: path.into(), source }
}

impl Log {
    /// Opens the log in `config.dir`, recovers it, and starts a new epoch. The metrics are registered on `registry`.
    ///
    /// The epoch is one more than any that the directory has seen; in a fresh directory it is random, so that files named after it are
    /// not those of an earlier directory with the same node's name (one chance in two thousand million).
    pub fn open(config: LogConfig, registry: &prometheus::Registry) -> Result<(Log, Recovered), OpenError> {
        config.check()?;
        let begin = Instant::now();
        let dir = config.dir.join(LOG_DIR);
        for dir in [&dir, &dir.join(QUARANTINE_DIR), &config.dir.join(CURSOR_DIR)] {
            fs::create_dir_all(dir).map_err(io_error("creating", dir))?;
        }
        let guard = lock_dir(&dir)?;
        for dir in [&config.dir, &dir] {
            config.storage.sync_dir(dir).map_err(io_error("syncing", dir))?;
        }
        let space = config.storage.space(&dir).map_err(io_error("asking for the space of", &dir))?;
        let need = config.low_water_bytes.saturating_add(2 * config.segment_bytes);
        if space.total < need {
            return Err(OpenError::DiskTooSmall { dir, total: space.total, need });
        }
        let metrics = Metrics::new(registry)?;
        let mut recovery = recover(&config.dir, &config.storage, config.verify_sealed)?;
        let cursors = holders(&config, &mut recovery)?;
        let epoch = match recovery.epoch {
            Some(epoch) => epoch.wrapping_add(1).max(1),
            // Half of the numbers, so that those after it are never used up.
            None => (segment::random().map_err(io_error("reading", Path::new("/dev/urandom")))? as u32 >> 1).max(1),
        };
        let recovered = report(epoch, &recovery, begin.elapsed(), &metrics);

        let spare = |path: PathBuf| Spare { len: fs::metadata(&path).map_or(0, |m| m.len()), path, written: 0 };
        let spares = recovery.spares.into_iter().map(spare);
        let files = Files { sealed: recovery.sealed.into(), spares: spares.collect(), cursors, ..Files::default() };
        let shared = Arc::new(Shared::new(config, dir, epoch, metrics, recovery.next, files));
        let active = first_segment(&shared, recovery.next)?;
        let log_thread = spawn("tidegate-log", &guard, {
            let shared = shared.clone();
            move || commit::run(shared, active)
        })?;
        let keeper_thread = spawn("tidegate-keeper", &guard, {
            let shared = shared.clone();
            move || keeper::run(shared)
        })?;
        Ok((Log { shared, threads: vec![log_thread, keeper_thread], _lock: guard }, recovered))
    }

    /// A way to add records.
    #[must_use]
    pub fn appender(&self) -> Appender {
        Appender { shared: self.shared.clone() }
    }

    /// A view of what is durable.
    #[must_use]
    pub fn durable(&self) -> Durable {
        Durable { shared: self.shared.clone() }
    }

    /// The epoch of this start.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.shared.epoch
    }

    /// A reader that never goes beyond what is durable.
    #[must_use]
    pub fn reader(&self, from: Seq) -> Reader {
        Reader::within(self.shared.clone(), from)
    }

    /// Gives every durable record received at or after `received_us`, in order, to `each`; returns how many. What is missing or
    /// unreadable on the way has been said at start; it is passed over.
    ///
    /// It begins at the newest segment that was begun before that time, so it costs the reading of what it gives and at most one segment.
    pub fn replay_since(&self, received_us: u64, mut each: impl FnMut(Seq, &Record<'_>)) -> Result<u64, ReadError> {
        let mut reader = self.reader(first_since(&self.shared.dir, received_us)?);
        let mut given = 0;
        loop {
            match reader.next() {
                Ok(Some(entry)) if entry.record.received >= received_us => {
                    each(entry.seq, &entry.record);
                    given += 1;
                }
                Ok(Some(_)) => {}
                Ok(None) => return Ok(given),
                Err(error @ ReadError::Io { .. }) => return Err(error),
                Err(error) => tracing::warn!(%error, "replaying the log"),
            }
        }
    }

    /// The cursor of the sink `name`, registered: nothing behind it is removed. One that has no file yet stands before the oldest
    /// record.
    pub fn cursor(&self, name: &str) -> Result<Cursor, CursorError> {
        Cursor::open(self.shared.clone(), name)
    }

    /// Refuses new records, stores those accepted, and ends, within `deadline`. What is not stored then is given up; only a disk that holds
    /// the log's thread keeps the lock of the directory more than a second longer.
    #[must_use]
    pub fn stop(mut self, deadline: Duration) -> Stopped {
        self.finish(deadline)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn finish(&mut self, deadline: Duration) -> Stopped {
        let shared = &self.shared;
        {
            let mut queue = lock(&shared.queue);
            queue.stopping = Some(Instant::now() + deadline);
            shared.publish(&queue);
        }
        shared.work.notify_all();
        // A log that waits for a segment gives up at the deadline by itself; one that waits for the disk cannot be waited for.
        let until = Instant::now() + deadline + GIVING_UP;
        while !shared.progress.has_ended() && Instant::now() < until {
            if shared.has_failed() {
                // Its thread ends at once, unless the disk holds it.
                thread::sleep(Duration::from_millis(1));
            }
            let left = until.saturating_duration_since(Instant::now());
            shared.progress.wait_until(left, || shared.progress.has_ended());
        }
        if shared.progress.has_ended() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
        self.threads.clear();
        let durable = shared.durable();
        Stopped { durable, abandoned_records: lock(&shared.queue).next - 1 - durable.0 }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let _ = self.finish(DROP_DEADLINE);
        }
    }
}

fn lock_dir(dir: &Path) -> Result<Arc<Flock<File>>, OpenError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(io_error("opening", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Arc::new(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(OpenError::Locked(dir.into())),
        Err((_, errno)) => Err(io_error("locking", &path)(errno.into())),
    }
}

/// Who holds segments: the sinks configured and the cursor files found. No sequence number at or before a cursor is given out again.
fn holders(
    config: &LogConfig,
    recovery: &mut Recovery,
) -> Result<std::collections::BTreeMap<String, Holder>, OpenError> {
    let mut cursors: std::collections::BTreeMap<_, _> =
        config.sinks.iter().map(|name| (name.clone(), Holder { position: 0, wanted: true })).collect();
    let end = recovery.sealed.last().map_or(1, |last| last.next);
    for (name, state) in cursor::list(&config.dir)? {
        let wanted = cursors.contains_key(&name);
        if !wanted {
            tracing::warn!(
                sink = name,
                position = state.position,
                "a sink that is not configured has a cursor: its records are kept while there is room"
            );
        }
        let reached = state.plan.map_or(state.position, |(_, last)| last);
        if reached >= end {
            tracing::error!(
                sink = name,
                reached,
                end = end - 1,
                "a sink has delivered records that the log does not have"
            );
        }
        recovery.next = recovery.next.max(reached + 1);
        cursors.insert(name, Holder { position: state.position, wanted });
    }
    if recovery.next > end {
        recovery.gaps.push((Seq(end), Seq(recovery.next - 1)));
    }
    Ok(cursors)
}

fn report(epoch: u32, recovery: &Recovery, took: Duration, metrics: &Metrics) -> Recovered {
    let holds_records = |s: &&segment::Sealed| s.first < s.next;
    let recovered = Recovered {
        epoch,
        oldest: recovery.sealed.iter().find(holds_records).map_or(Seq::NONE, |s| Seq(s.first)),
        last: Seq(recovery.next - 1),
        records: recovery.records,
        bytes: recovery.bytes,
        took,
        cut_bytes: recovery.cut_bytes,
        quarantined: recovery.quarantined.clone(),
        gaps: recovery.gaps.clone(),
    };
    metrics.epoch.set(i64::from(epoch));
    metrics.durable_seq.set(recovered.last.0 as i64);
    metrics.next_seq.set(recovery.next as i64);
    metrics.recovery_records.inc_by(recovered.records);
    metrics.recovery_cut_bytes.inc_by(recovered.cut_bytes);
    metrics.quarantined_files.inc_by(recovered.quarantined.len() as u64);
    for (first, last) in &recovered.gaps {
        tracing::error!(%first, %last, "records are missing from the log");
        metrics.recovery_missing_records.inc_by(last.0 - first.0 + 1);
    }
    if recovered.cut_bytes > 0 {
        tracing::warn!(bytes = recovered.cut_bytes, "cut an unfinished commit; nobody was told that it is stored");
    }
    tracing::info!(
        epoch, oldest = %recovered.oldest, last = %recovered.last, records = recovered.records, bytes = recovered.bytes,
        seconds = took.as_secs_f64(), "the log is recovered"
    );
    recovered
}

/// Begins this start's segment if there is space for one, and removes the empty ones of earlier starts.
fn first_segment(shared: &Arc<Shared>, next: u64) -> Result<Option<segment::Active>, OpenError> {
    let mut keeper = Keeper::new(shared.clone());
    keeper.look();
    let Some(spare) = lock(&shared.files).next.take() else {
        tracing::error!("no space for a segment: new readings are refused until there is");
        return Ok(None);
    };
    let config = &shared.config;
    let active = segment::begin(&*config.storage, &shared.dir, &spare, &config.node, shared.epoch, next);
    let active = active.map_err(io_error("beginning a segment in", &shared.dir))?;
    lock(&shared.queue).room = active.usable();
    let mut files = lock(&shared.files);
    files.active_len = active.len;
    files.sealed.retain(|segment| {
        // What cannot be removed is harmless: the next start tries again.
        segment.first < segment.next || fs::remove_file(&segment.path).is_err()
    });
    drop(files);
    keeper.look();
    Ok(Some(active))
}

fn spawn(
    name: &str,
    lock: &Arc<Flock<File>>,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OpenError> {
    let lock = lock.clone();
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        body();
        drop(lock);
    });
    thread.map_err(|source| OpenError::Io { doing: "starting the thread", path: name.into(), source })
}

impl Appender {
    /// Accepts all records of `batch`, or none; never waits for the disk. On `Ok` the batch is empty and the last record got the
    /// sequence number returned (the first one `last - len + 1`); it is stored once [`Durable::get`] reaches it. On `Err` the batch is
    /// as it was. An empty batch gets the number of the last record accepted before it.
    pub fn append(&self, batch: &mut Batch) -> Result<Seq, Refused> {
        let shared = &self.shared;
        let refuse = |reason| {
            shared.metrics.refused(reason).inc_by(u64::from(batch.count));
            Err(reason)
        };
        if batch.longest > self.max_record_bytes() {
            return refuse(Refused::TooLarge);
        }
        let mut queue = lock(&shared.queue);
        if let Some(reason) = shared.refusal(&queue, batch.bytes.len(), u64::from(batch.count)) {
            shared.publish(&queue);
            drop(queue);
            return refuse(reason);
        }
        queue.buffer.extend_from_slice(&batch.bytes);
        queue.count += u64::from(batch.count);
        queue.next += u64::from(batch.count);
        queue.pending += batch.bytes.len();
        let last = Seq(queue.next - 1);
        let wake = std::mem::take(&mut queue.idle);
        shared.publish(&queue);
        drop(queue);
        if wake {
            shared.work.notify_all();
        }
        batch.clear();
        Ok(last)
    }

    /// Whether to read on, by an atomic load.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        self.shared.pressure()
    }

    /// Longest encoded record that is accepted.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        self.shared.config.max_record_bytes()
    }
}

impl Durable {
    /// Every record up to this one survives a crash.
    #[must_use]
    pub fn get(&self) -> Seq {
        self.shared.durable()
    }

    /// A reader as [`Log::reader`] gives it.
    #[must_use]
    pub fn reader(&self, from: Seq) -> Reader {
        Reader::within(self.shared.clone(), from)
    }

    /// Why nothing will ever become durable again, if so.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.shared.progress.failure().cloned()
    }

    /// Calls `hook` on the log's thread after [`get`](Self::get) moved, [`failure`](Self::failure) was set, or the log ended. It must be
    /// short; if it panics the log fails.
    pub fn on_move(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.shared.progress.on_move(hook);
    }

    /// Waits until `seq` is durable; `false` if the log failed or ended before, or `timeout` passed.
    #[must_use]
    pub fn wait(&self, seq: Seq, timeout: Duration) -> bool {
        self.shared.progress.wait(seq.0, timeout)
    }
}

const _: () =
    assert!(FRAME_HEADER_LEN < tidegate_record::FIXED_LEN, "a frame's header is written over the record before it");
const _: fn() = || {
    fn shared_by_threads<T: Send + Sync>() {}
    shared_by_threads::<Appender>();
    shared_by_threads::<shared::Shared>();
};
