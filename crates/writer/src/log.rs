//! Log.
use crate::{Batch, Cursor, CursorError, Failure, LogConfig, OpenError, Pressure, ReadError, Reader, Refused};
use std::path::PathBuf;
use std::time::Duration;
use tidegate_record::{Record, Seq};

/// The log of one node, open for writing by this process alone.
#[derive(Debug)]
pub struct Log {}

/// Adds records to the log. Cloned for each front end.
#[derive(Debug, Clone)]
pub struct Appender {}

/// Watches what is durable. Cloned freely.
#[derive(Debug, Clone)]
pub struct Durable {}

/// What opening found on disk.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The epoch that this start writes.
    pub epoch: u32,
    /// The oldest record there is; [`Seq::NONE`] if there is none.
    pub oldest: Seq,
    /// The last record before this start.
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
    /// Ranges of records (first, last) that are missing between those that are there.
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

impl Log {
    /// Opens the log in `config.dir`, recovers it, and starts a new epoch.
    pub fn open(config: LogConfig, registry: &prometheus::Registry) -> Result<(Log, Recovered), OpenError> {
        let _ = (config, registry);
        unimplemented!()
    }
    /// A way to add records.
    #[must_use]
    pub fn appender(&self) -> Appender {
        unimplemented!()
    }
    /// A view of what is durable.
    #[must_use]
    pub fn durable(&self) -> Durable {
        unimplemented!()
    }
    /// The epoch of this start.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        unimplemented!()
    }
    /// A reader that never goes beyond what is durable.
    pub fn reader(&self, from: Seq) -> Result<Reader, ReadError> {
        let _ = from;
        unimplemented!()
    }
    /// Gives every record received at or after `received_us`, in order, to `each`.
    pub fn replay_since(&self, received_us: u64, each: impl FnMut(Seq, &Record<'_>)) -> Result<u64, ReadError> {
        let _ = (received_us, each);
        unimplemented!()
    }
    /// The cursor of the sink `name`, registered: nothing behind it is removed.
    pub fn cursor(&self, name: &str) -> Result<Cursor, CursorError> {
        let _ = name;
        unimplemented!()
    }
    /// Refuses new records, stores those accepted, and ends, within `deadline`.
    #[must_use]
    pub fn stop(self, deadline: Duration) -> Stopped {
        let _ = deadline;
        unimplemented!()
    }
}

impl Appender {
    /// Accepts all records of `batch`, or none; never waits for the disk. On `Ok` the batch is empty and the last record got the
    /// sequence number returned (the first one `last - len + 1`); it is stored once [`Durable::get`] reaches it. On `Err` the batch is as it was.
    pub fn append(&self, batch: &mut Batch) -> Result<Seq, Refused> {
        let _ = batch;
        unimplemented!()
    }
    /// Whether to read on, by a few atomic loads.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        unimplemented!()
    }
    /// Longest encoded record that is accepted.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        unimplemented!()
    }
}

impl Durable {
    /// Every record up to this one survives a crash.
    #[must_use]
    pub fn get(&self) -> Seq {
        unimplemented!()
    }
    /// Why nothing will ever become durable again, if so.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        unimplemented!()
    }
    /// Calls `hook` on the log's thread after [`get`](Self::get) moved or [`failure`](Self::failure) was set. It must be short and must not panic.
    pub fn on_move(&self, hook: impl Fn() + Send + Sync + 'static) {
        let _ = hook;
        unimplemented!()
    }
    /// Waits until `seq` is durable; `false` if the log failed or ended before, or `timeout` passed.
    #[must_use]
    pub fn wait(&self, seq: Seq, timeout: Duration) -> bool {
        let _ = (seq, timeout);
        unimplemented!()
    }
}
