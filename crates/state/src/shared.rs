//! What the front ends and the state thread have in common.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::{Duration, Instant};

use redb::Database;
use tidegate_durable::{Failure, Progress, lock};

use crate::error::Refused;
use crate::metrics::Metrics;
use crate::reader::Snapshot;

/// How long a look at the free disk space holds once there was too little.
const DISK_LOOK: Duration = Duration::from_secs(1);

pub(crate) struct Shared {
    /// Empty while the store is stopped: the file is closed, and may be opened anew.
    pub(crate) database: RwLock<Option<Database>>,
    pub(crate) path: PathBuf,
    pub(crate) pending_bytes: usize,
    pub(crate) low_water_bytes: u64,
    pub(crate) metrics: Metrics,
    pub(crate) queue: Mutex<Queue>,
    /// The state thread waits here.
    pub(crate) work: Condvar,
    /// What reads see since the last commit; taken away by the next.
    pub(crate) snapshot: RwLock<Option<Arc<Snapshot>>>,
    /// The ticket up to which all is stored.
    pub(crate) progress: Progress,
}

/// Changes accepted and not yet taken by the state thread.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) bytes: Vec<u8>,
    /// Changes in `bytes`.
    pub(crate) changes: u64,
    /// The ticket of the last submission accepted.
    pub(crate) last: u64,
    /// Bytes accepted and not durable, those that the state thread has taken included.
    pub(crate) pending: usize,
    /// The state thread waits for changes.
    pub(crate) idle: bool,
    /// No more is accepted; what was is stored until then.
    pub(crate) stopping: Option<Instant>,
    pub(crate) failed: bool,
    /// Free space was below the low-water mark at this time.
    pub(crate) disk_low: Option<Instant>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("path", &self.path).field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        database: Database,
        path: PathBuf,
        pending_bytes: usize,
        low_water_bytes: u64,
        metrics: Metrics,
    ) -> Shared {
        Shared {
            database: RwLock::new(Some(database)),
            path,
            pending_bytes,
            low_water_bytes,
            metrics,
            queue: Mutex::default(),
            work: Condvar::new(),
            snapshot: RwLock::default(),
            progress: Progress::new(0),
        }
    }

    /// Why `bytes` more would not be accepted.
    pub(crate) fn refusal(&self, queue: &mut Queue, bytes: usize) -> Option<Refused> {
        if queue.failed {
            return Some(Refused::Failed);
        }
        if queue.stopping.is_some() {
            return Some(Refused::Stopping);
        }
        if bytes > self.pending_bytes {
            return Some(Refused::TooLarge);
        }
        if queue.disk_low.is_some_and(|at| at.elapsed() >= DISK_LOOK) {
            queue.disk_low = self.disk_is_low().then(Instant::now);
        }
        if queue.disk_low.is_some() {
            return Some(Refused::DiskLow);
        }
        (queue.pending + bytes > self.pending_bytes).then_some(Refused::Full)
    }

    /// Whether the file system has less free space than the low-water mark. One that does not say is taken to have enough.
    pub(crate) fn disk_is_low(&self) -> bool {
        if self.low_water_bytes == 0 {
            return false;
        }
        let dir = self.path.parent().unwrap_or(&self.path);
        nix::sys::statvfs::statvfs(dir)
            .is_ok_and(|stat| stat.blocks_available() * stat.fragment_size() < self.low_water_bytes)
    }

    /// The end of all storing.
    pub(crate) fn fail(&self, during: &'static str, cause: String) {
        let failure = Failure { during, cause };
        tracing::error!(%failure, "the database has failed: nothing more is stored");
        self.progress.failed(failure, || {
            self.metrics.failed.set(1);
            lock(&self.queue).failed = true;
            self.work.notify_all();
        });
    }
}
