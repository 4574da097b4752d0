//! Parquet files, partitioned by hour and sorted by device.
//!
//! # Constraints
//!
//! - A file is visible (ends in `.parquet`) only once it is whole and synced; it is never changed afterwards.
//! - A record is in exactly one file, whatever crashes: the names of a roll's files follow from its records alone, so that a
//!   repetition of the same roll, which is what the cursor's plan asks for, finds or replaces the same files.
//! - Memory is bounded by [`ParquetConfig::roll_bytes`]: one buffer of encoded records while they are taken; about 28 bytes a record
//!   and one row group more while they are delivered.
//! - An error never loses a record: the runner repeats the roll. A record that no file can hold (received past the year 9999) is
//!   kept beside the files, in `set-aside`, counted and logged, and the others go on.
//!
//! # Format
//!
//! ```text
//! <dir>/dt=YYYY-MM-DD/hr=HH/<node>-<epoch>-<first>-<last>.parquet      the hour is that of `received`, UTC
//! <dir>/dt=YYYY-MM-DD/hr=HH/.<node>-<epoch>-<first>-<last>.tmp         the same in the making
//! <dir>/set-aside/<node>-<epoch>-<first>-<last>.records                what no file can hold: sequence number (8 bytes,
//!                                                                      little-endian), encoded record, repeated
//! ```
//!
//! A roll is a run of the log. Its records of one hour make one file, so a roll that spans hours makes several, and the ranges in
//! their names may overlap: **`first` and `last` are the lowest and highest sequence number that the file holds; that it holds a
//! number in between is said by its column `seq` only.** Where the row count (`tidegate.count` in the file's metadata) is
//! `last − first + 1`, it holds them all. The union of a roll's files is exactly the roll.
//!
//! | column | Parquet type | |
//! |---|---|---|
//! | `seq` | INT64, UINT_64 | position in the node's log |
//! | `ts` | INT64, TIMESTAMP(MICROS, UTC) | when it was received |
//! | `device`, `tenant`, `protocol`, `topic` | BYTE_ARRAY, STRING | |
//! | `qos` | INT32, UINT_8 | |
//! | `retain` | BOOLEAN | |
//! | `content_format` | INT32, UINT_16, optional | CoAP number |
//! | `content_type` | BYTE_ARRAY, STRING, optional | null if the device named none |
//! | `key_scope`, `key_number` | INT64, UINT_64, optional | both or neither |
//! | `payload` | BYTE_ARRAY | |
//!
//! Rows are sorted by (`device`, `ts`, `seq`), which the metadata says, in row groups of [`ROW_GROUP_ROWS`]; statistics of
//! those three, for the row group and each page. All is compressed with zstd level 1, payloads only where a sample of the first row group says that it
//! takes off a tenth or more. The metadata has `tidegate.node`, `.epoch`, `.first`, `.last`, `.count` and `.version`.
//!
//! # Operation
//!
//! [`ParquetSink`] takes records until one of these is so, then delivers: [`roll_bytes`](ParquetConfig::roll_bytes) are held;
//! [`roll_seconds`](ParquetConfig::roll_seconds) have passed since the first; a new hour has begun. [`scan`] reads the files back
//! in the order of the log.

mod decode;
mod disk;
mod encode;
mod hold;
mod metrics;
mod name;
mod read;
mod schema;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use prometheus::Registry;
use tidegate_record::{Record, Seq};
use tidegate_writer::{Sink, SinkError};

pub use disk::DeliverError;
pub use name::{FileName, Hour, MAX_NODE_LEN};
pub use read::{Filter, ReadError, Records, Scan, Stored, StoredFile, files, read, scan};
pub use schema::ROW_GROUP_ROWS;

use encode::Columns;
use hold::{Group, Hold};
use metrics::Metrics;

/// Least [`ParquetConfig::roll_bytes`]: below it files are too small to be worth opening.
pub const MIN_ROLL_BYTES: usize = 64 << 10;

/// Most [`ParquetConfig::roll_bytes`]: places in the buffer are 32 bits wide, and a roll may be exceeded by a record.
pub const MAX_ROLL_BYTES: usize = 1 << 30;

/// How far the newest record must be into its hour before the hour before is closed: front ends stamp a record before they append
/// it, so that records of both hours mix for a moment, which would make a few tiny files.
const HOUR_SLACK_MICROS: u64 = 5_000_000;

/// Where records go that no file can hold.
const SET_ASIDE: &str = "set-aside";

/// What a [`ParquetSink`] is told.
#[derive(Debug, Clone)]
pub struct ParquetConfig {
    /// The directory of the partitions; made if it is not there.
    pub dir: PathBuf,
    /// Names the gateway: 1 to [`MAX_NODE_LEN`] letters, digits, `.`, `_` and `-`, beginning with a letter or digit.
    pub node: String,
    /// Bytes of encoded records after which a roll is due: [`MIN_ROLL_BYTES`] to [`MAX_ROLL_BYTES`].
    pub roll_bytes: usize,
    /// Time after which a roll is due.
    pub roll_seconds: u64,
}

impl ParquetConfig {
    /// The defaults for `node`, with files below `dir`. 64 MiB are half a million small records: four row groups, and a minute of a
    /// busy gateway.
    #[must_use]
    pub fn new(dir: PathBuf, node: String) -> ParquetConfig {
        ParquetConfig { dir, node, roll_bytes: 64 << 20, roll_seconds: 60 }
    }
}

/// Why a sink could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configured node name cannot begin a file's name.
    #[error(
        "`{0}` cannot name a node: 1 to {MAX_NODE_LEN} letters, digits, `.`, `_` and `-`, beginning with a letter or digit"
    )]
    Node(String),
    /// The configured roll is too small or too large.
    #[error("a roll of {0} bytes: {MIN_ROLL_BYTES} to {MAX_ROLL_BYTES} are allowed")]
    RollBytes(usize),
    /// The directory cannot be made.
    #[error(transparent)]
    Directory(#[from] DeliverError),
    /// What a crash left behind cannot be removed.
    #[error("cannot remove unfinished files below {}: {source}", dir.display())]
    Clean {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metrics are registered already.
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// Writes the records of the log to Parquet files.
#[derive(Debug)]
pub struct ParquetSink {
    config: ParquetConfig,
    metrics: Metrics,
    hold: Hold,
    columns: Columns,
    /// Records that no file can hold, and the epoch of the last.
    unstorable: Vec<(Seq, Vec<u8>)>,
    epoch: u32,
    /// When the first of the records held was taken.
    since: Option<Instant>,
    /// Files of a delivery that failed later: they are there, and the repetition needs no room for them.
    published: Vec<FileName>,
}

impl ParquetSink {
    /// Makes the directory, and removes what a crash of this node left half-written there.
    pub fn new(config: ParquetConfig, registry: &Registry) -> Result<ParquetSink, OpenError> {
        if !name::is_node(&config.node) {
            return Err(OpenError::Node(config.node));
        }
        if !(MIN_ROLL_BYTES..=MAX_ROLL_BYTES).contains(&config.roll_bytes) {
            return Err(OpenError::RollBytes(config.roll_bytes));
        }
        disk::create_directory(&config.dir)?;
        match disk::remove_temporaries(&config.dir, &config.node) {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, dir = %config.dir.display(), "removed unfinished Parquet files"),
            Err(source) => return Err(OpenError::Clean { dir: config.dir, source }),
        }
        Ok(ParquetSink {
            config,
            metrics: Metrics::new(registry)?,
            hold: Hold::default(),
            columns: Columns::default(),
            unstorable: Vec::new(),
            epoch: 0,
            since: None,
            published: Vec::new(),
        })
    }

    /// Bytes of the records held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.hold.bytes()
    }

    fn try_deliver(&mut self) -> Result<(), DeliverError> {
        for group in self.hold.groups() {
            self.publish(&group)?;
        }
        self.set_aside()
    }

    fn publish(&mut self, group: &Group) -> Result<(), DeliverError> {
        let Group { epoch, hour, first, last, ref rows } = *group;
        let name = FileName { node: self.config.node.clone(), epoch, first, last, hour };
        // Whoever makes room on a full disk may have removed it.
        if self.published.contains(&name) && name.directory(&self.config.dir).join(name.visible()).exists() {
            return Ok(());
        }
        let (hold, columns) = (&self.hold, &mut self.columns);
        let bytes = disk::publish(&self.config.dir, &name, |out| encode::encode(out, &name, hold, group, columns))?;
        self.metrics.files.inc();
        self.metrics.rows.inc_by(rows.len() as u64);
        self.metrics.bytes.inc_by(bytes);
        tracing::debug!(file = %name.visible(), rows = rows.len(), bytes, "wrote a Parquet file");
        self.published.push(name);
        Ok(())
    }

    fn set_aside(&mut self) -> Result<(), DeliverError> {
        let (Some((first, _)), Some((last, _))) = (self.unstorable.first(), self.unstorable.last()) else {
            return Ok(());
        };
        let stem = format!("{}-{}-{first}-{last}", self.config.node, self.epoch);
        let directory = self.config.dir.join(SET_ASIDE);
        disk::publish_as(&self.config.dir, &directory, &format!(".{stem}.tmp"), &format!("{stem}.records"), |out| {
            for (seq, record) in &self.unstorable {
                io::Write::write_all(out, &seq.0.to_le_bytes())?;
                io::Write::write_all(out, record)?;
            }
            Ok(())
        })?;
        let records = self.unstorable.len();
        tracing::error!(records, %first, %last, dir = %directory.display(), "set records aside that no Parquet file can hold");
        self.metrics.set_aside.inc_by(records as u64);
        Ok(())
    }
}

impl Sink for ParquetSink {
    fn name(&self) -> &str {
        "parquet"
    }

    fn take(&mut self, seq: Seq, epoch: u32, record: &Record<'_>) {
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
        self.epoch = epoch;
        if Hour::of(record.received).is_none() {
            let mut bytes = Vec::new();
            record.encode(&mut bytes).expect("a record of the log was encoded before");
            self.unstorable.push((seq, bytes));
            return;
        }
        self.hold.take(seq, epoch, record, self.config.roll_bytes);
    }

    fn due(&self, now: Instant) -> bool {
        self.metrics.held_bytes.set(self.hold.bytes() as i64);
        let Some(since) = self.since else { return false };
        if self.hold.bytes() >= self.config.roll_bytes
            || now.saturating_duration_since(since) >= Duration::from_secs(self.config.roll_seconds)
        {
            return true;
        }
        self.hold.times().is_some_and(|(oldest, newest)| {
            Hour::of(oldest) != Hour::of(newest)
                && Hour::of(newest).is_some_and(|hour| newest - hour.start() >= HOUR_SLACK_MICROS)
        })
    }

    fn deliver(&mut self) -> Result<(), SinkError> {
        let timer = self.metrics.deliver_seconds.start_timer();
        let result = self.try_deliver();
        timer.observe_duration();
        match result {
            Ok(()) => {
                self.published.clear();
                self.reset();
                Ok(())
            }
            Err(error) => {
                self.metrics.failed(&error);
                Err(match error {
                    DeliverError::NoRoom { ref source, .. } | DeliverError::Io { ref source, .. } => {
                        SinkError::Io(io::Error::new(source.kind(), error))
                    }
                    DeliverError::Encode { .. } => SinkError::Refused(error.to_string()),
                })
            }
        }
    }

    fn reset(&mut self) {
        // After a full roll the next is soon full too, and would get the same memory from the system at the price of its page
        // faults; after any other it is given back.
        if self.hold.bytes() >= self.config.roll_bytes {
            self.hold.clear();
        } else {
            self.hold = Hold::default();
            self.columns = Columns::default();
        }
        self.unstorable.clear();
        self.since = None;
        self.metrics.held_bytes.set(0);
    }
}
