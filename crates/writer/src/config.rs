//! The bounds of the log.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::OpenError;
use crate::format::{FRAME_HEADER_LEN, HEADER_LEN, MAX_FRAME_BYTES, MAX_NODE_LEN};
use crate::storage::{FileStorage, Storage};

/// Longest encoded record. A device's reading is four orders of magnitude below; an MQTT packet of this size is bounded
/// here so that one client cannot fill the queue of all.
pub const MAX_RECORD_BYTES: usize = 16 << 20;

/// Smallest segment: below it a segment would be mostly its own header.
pub const MIN_SEGMENT_BYTES: u64 = 64 << 10;

/// Where the log is and what bounds it.
#[derive(Clone)]
pub struct LogConfig {
    /// The data directory; the log is in `log/`, the cursors in `cursors/`.
    pub dir: PathBuf,
    /// Name of this node, written to every segment: 1 to 64 of `a-z`, `A-Z`, `0-9`, `-`, `_` and `.`, as it becomes part of file names.
    pub node: String,
    /// Size of a segment when it is allocated. 256 MiB: rolling once a second at a million records a second, and a full log is 64 files.
    pub segment_bytes: u64,
    /// Most bytes of records in one frame. 1 MiB: beyond it the disk's bandwidth bounds a commit, not its latency.
    pub commit_bytes: usize,
    /// Most records in one frame. 8192 of 128 bytes are `commit_bytes`.
    pub commit_records: u32,
    /// Most bytes accepted and not yet durable. 64 MiB: half a second of a disk that writes 128 MB/s.
    pub pending_bytes: usize,
    /// Free space that the log leaves to others (Parquet files being written, the state database): appends are refused below it.
    pub low_water_bytes: u64,
    /// Most bytes of all files of the log together, preallocated ones included; a lagging sink is refused beyond it.
    pub max_bytes: u64,
    /// How long a segment stays after its last write, when every sink has passed it and `max_bytes` and the disk allow: for
    /// `tidegate records` and for the deduplication state that a restart rebuilds.
    pub retain: Duration,
    /// The sinks that will be run, so that nothing they still need is removed before they have registered.
    pub sinks: Vec<String>,
    /// Whether opening checks every byte of sealed segments too, not only those that were open at the last stop.
    pub verify_sealed: bool,
    /// The system calls; a test puts one with faults here.
    pub storage: Arc<dyn Storage>,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig {
            dir: PathBuf::from("data"),
            node: "tidegate".into(),
            segment_bytes: 256 << 20,
            commit_bytes: 1 << 20,
            commit_records: 8192,
            pending_bytes: 64 << 20,
            low_water_bytes: 512 << 20,
            max_bytes: 16 << 30,
            retain: Duration::from_secs(3600),
            sinks: Vec::new(),
            verify_sealed: true,
            storage: Arc::new(FileStorage),
        }
    }
}

impl fmt::Debug for LogConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogConfig")
            .field("dir", &self.dir)
            .field("node", &self.node)
            .field("segment_bytes", &self.segment_bytes)
            .field("commit_bytes", &self.commit_bytes)
            .field("commit_records", &self.commit_records)
            .field("pending_bytes", &self.pending_bytes)
            .field("low_water_bytes", &self.low_water_bytes)
            .field("max_bytes", &self.max_bytes)
            .field("retain", &self.retain)
            .field("sinks", &self.sinks)
            .field("verify_sealed", &self.verify_sealed)
            .finish_non_exhaustive()
    }
}

impl LogConfig {
    /// Says which key cannot work, and why.
    pub fn check(&self) -> Result<(), OpenError> {
        let wrong = |key, problem: String| Err(OpenError::Config { key, problem });
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.node.is_empty() || self.node.len() > MAX_NODE_LEN || !self.node.chars().all(allowed) {
            return wrong(
                "node",
                format!("{:?}: 1 to {MAX_NODE_LEN} of a-z, A-Z, 0-9, -, _ and . are allowed", self.node),
            );
        }
        if self.segment_bytes < MIN_SEGMENT_BYTES || self.segment_bytes > u64::from(u32::MAX) {
            return wrong(
                "segment_bytes",
                format!("{}: {MIN_SEGMENT_BYTES} to {} are allowed", self.segment_bytes, u32::MAX),
            );
        }
        if self.max_bytes < 2 * self.segment_bytes {
            return wrong(
                "max_bytes",
                format!("{}: at least two segments of segment_bytes are needed", self.max_bytes),
            );
        }
        if self.commit_bytes == 0 || self.commit_bytes > MAX_FRAME_BYTES {
            return wrong("commit_bytes", format!("{}: 1 to {MAX_FRAME_BYTES} are allowed", self.commit_bytes));
        }
        if self.commit_records == 0 {
            return wrong("commit_records", "0: a commit has at least one record".into());
        }
        if self.pending_bytes < self.commit_bytes {
            return wrong("pending_bytes", format!("{}: less than commit_bytes", self.pending_bytes));
        }
        for name in &self.sinks {
            crate::cursor::check_name(name)?;
        }
        Ok(())
    }

    /// Longest record that this configuration can store.
    #[must_use]
    pub fn max_record_bytes(&self) -> usize {
        let segment = self.segment_bytes as usize - HEADER_LEN - 2 * FRAME_HEADER_LEN;
        segment.min(MAX_RECORD_BYTES).min(self.pending_bytes)
    }
}
