//! What the front ends, the log thread, the keeper and the sinks have in common.
//!
//! Two locks, never held together: `queue`, taken by every append for the time of one copy, and `files`, which no append takes.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use tidegate_durable::{Failure, Progress, lock};
use tidegate_record::Seq;

use crate::config::LogConfig;
use crate::error::{Pressure, Refused};
use crate::format::FRAME_HEADER_LEN;
use crate::metrics::Metrics;
use crate::segment::{Sealed, Spare};

/// Of the room that is left, what one pass of a front end may add before the next look at [`Shared::pressure`]: 64 datagrams of
/// a reading each.
const ONE_PASS: usize = 64 << 10;

pub(crate) struct Shared {
    pub(crate) config: LogConfig,
    pub(crate) dir: PathBuf,
    pub(crate) epoch: u32,
    pub(crate) metrics: Metrics,

    pub(crate) queue: Mutex<Queue>,
    /// The log thread waits here: for records when idle, for a segment when it has none.
    pub(crate) work: Condvar,
    /// The sequence number up to which all is stored; sinks that stop are woken by it too.
    pub(crate) progress: Progress,
    /// See [`encode_pressure`].
    pressure: AtomicU8,

    /// The segment that was written last, by its first sequence number, and where its last stored frame ends.
    pub(crate) written: Mutex<(u64, u64)>,
    pub(crate) files: Mutex<Files>,
    /// Set to make the keeper look at once.
    pub(crate) kicked: Mutex<bool>,
    pub(crate) kick: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("epoch", &self.epoch).field("progress", &self.progress).finish_non_exhaustive()
    }
}

/// Records accepted and not yet taken by the log thread.
#[derive(Debug)]
pub(crate) struct Queue {
    /// [`FRAME_HEADER_LEN`] bytes for the frame's header, then encoded records.
    pub(crate) buffer: Vec<u8>,
    /// Records in `buffer`.
    pub(crate) count: u64,
    /// Sequence number of the next record to be accepted.
    pub(crate) next: u64,
    /// Bytes accepted and not durable, those that the log thread has taken included; at most `pending_bytes`.
    pub(crate) pending: usize,
    /// The log thread waits for records.
    pub(crate) idle: bool,
    /// No more is accepted; what was is stored until then.
    pub(crate) stopping: Option<Instant>,
    /// Nothing is stored any more.
    pub(crate) failed: bool,
    /// Free space is below the low-water mark.
    pub(crate) disk_low: bool,
    /// Why no segment can be allocated behind the one being written. None as long as the keeper has not found out: what is accepted
    /// until then, at most `pending_bytes`, may have to wait.
    pub(crate) no_next: Option<Refused>,
    /// Bytes that the segment being written can still take.
    pub(crate) room: u64,
}

/// The files of the log and who still needs them.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// In order.
    pub(crate) sealed: VecDeque<Sealed>,
    /// Paths and lengths of sealed segments whose allocation is still to be given back.
    pub(crate) untrimmed: Vec<PathBuf>,
    /// Allocated bytes of the segment being written, zero if there is none.
    pub(crate) active_len: u64,
    /// What the log thread takes when it needs a segment.
    pub(crate) next: Option<Spare>,
    /// Passed segments that may become `next`.
    pub(crate) spares: Vec<Spare>,
    pub(crate) cursors: BTreeMap<String, Holder>,
}

/// A cursor, as far as removing segments is concerned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Holder {
    pub(crate) position: u64,
    /// Named in the configuration or asked for since the start. One that is not is a file that an earlier configuration
    /// left; it holds segments too, but not against new records.
    pub(crate) wanted: bool,
}

impl Files {
    pub(crate) fn total_bytes(&self) -> u64 {
        self.sealed.iter().map(|s| s.len).sum::<u64>()
            + self.active_len
            + self.next.iter().chain(&self.spares).map(|s| s.len).sum::<u64>()
    }
}

fn encode_pressure(pressure: Pressure) -> u8 {
    match pressure {
        Pressure::Normal => 0,
        Pressure::Shed => u8::MAX,
        Pressure::Refuse(reason) => reason as u8,
    }
}

impl Shared {
    pub(crate) fn new(
        config: LogConfig,
        dir: PathBuf,
        epoch: u32,
        metrics: Metrics,
        next: u64,
        files: Files,
    ) -> Shared {
        Shared {
            config,
            dir,
            epoch,
            metrics,
            queue: Mutex::new(Queue {
                buffer: vec![0; FRAME_HEADER_LEN],
                count: 0,
                next,
                pending: 0,
                idle: false,
                stopping: None,
                failed: false,
                disk_low: false,
                no_next: None,
                room: 0,
            }),
            work: Condvar::new(),
            progress: Progress::new(next - 1),
            pressure: AtomicU8::new(0),
            written: Mutex::default(),
            files: Mutex::new(files),
            kicked: Mutex::new(false),
            kick: Condvar::new(),
        }
    }

    pub(crate) fn durable(&self) -> Seq {
        Seq(self.progress.durable())
    }

    /// Up to where the segment that begins with the record `first` is worth reading.
    pub(crate) fn written(&self, first: u64) -> u64 {
        let (segment, end) = *lock(&self.written);
        if segment == first { end } else { u64::MAX }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.progress.failure().is_some()
    }

    pub(crate) fn pressure(&self) -> Pressure {
        match self.pressure.load(Ordering::Relaxed) {
            0 => Pressure::Normal,
            u8::MAX => Pressure::Shed,
            number => Refused::from_number(number).map_or(Pressure::Normal, Pressure::Refuse),
        }
    }

    /// Makes known that all up to `seq` is stored. Only the log thread does, and never after a failure.
    pub(crate) fn set_durable(&self, seq: u64) {
        self.metrics.durable_seq.set(seq as i64);
        self.progress.reached(seq);
    }

    /// The end of all storing.
    pub(crate) fn fail(&self, during: &'static str, cause: String) {
        let failure = Failure { during, cause };
        tracing::error!(%failure, "the log has failed: nothing more is stored, and no further reading is acknowledged");
        self.progress.failed(failure, || {
            self.metrics.failed.set(1);
            let mut queue = lock(&self.queue);
            queue.failed = true;
            self.publish(&queue);
            drop(queue);
            self.work.notify_all();
            self.kick_keeper();
        });
    }

    pub(crate) fn kick_keeper(&self) {
        *lock(&self.kicked) = true;
        self.kick.notify_all();
    }

    /// Why `records` more, of `bytes`, would not be accepted.
    pub(crate) fn refusal(&self, queue: &Queue, bytes: usize, records: u64) -> Option<Refused> {
        if queue.failed {
            return Some(Refused::Failed);
        }
        if queue.stopping.is_some() {
            return Some(Refused::Stopping);
        }
        if queue.disk_low {
            return Some(Refused::DiskLow);
        }
        if let Some(reason) = queue.no_next {
            // With nothing behind this segment, only what is sure to fit is accepted: each record may become a frame of its own.
            let frames = queue.next - 1 - self.durable().0 + records;
            if (queue.pending + bytes) as u64 + frames * FRAME_HEADER_LEN as u64 > queue.room {
                return Some(reason);
            }
        }
        (queue.pending + bytes > self.config.pending_bytes).then_some(Refused::Full)
    }

    /// Brings what [`pressure`](Self::pressure) says up to date with the queue.
    pub(crate) fn publish(&self, queue: &Queue) {
        // With small bounds one pass would be all of it.
        let one_pass = ONE_PASS.min(self.config.pending_bytes / 8);
        let pressure = match self.refusal(queue, one_pass, 1) {
            Some(reason) => Pressure::Refuse(reason),
            None if queue.no_next.is_some() || queue.pending > self.config.pending_bytes / 2 => Pressure::Shed,
            None => Pressure::Normal,
        };
        self.pressure.store(encode_pressure(pressure), Ordering::Relaxed);
    }
}
