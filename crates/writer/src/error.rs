//! What can go wrong, one enum per operation, each naming who is at fault.

use std::io;
use std::path::PathBuf;

use tidegate_record::{DecodeError, Seq};

/// Why an append stored nothing. The batch is as it was; the caller answers its devices and may try again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Refused {
    /// More is waiting for the disk than `pending_bytes` allows: the disk is slower than the devices.
    #[error("the log is behind: too much is waiting for the disk")]
    Full = 1,
    /// Free disk space is below the low-water mark, or no further segment can be allocated.
    #[error("the disk is nearly full")]
    DiskLow = 2,
    /// The log is at `max_bytes` and a sink has not passed its oldest segment.
    #[error("a sink is behind: the log has reached its maximum size")]
    Backlog = 3,
    /// A write failed: nothing is stored any more until the process is started again.
    #[error("the log has failed")]
    Failed = 4,
    /// The log is being stopped.
    #[error("the log is stopping")]
    Stopping = 5,
    /// A record of the batch is longer than [`Appender::max_record_bytes`](crate::Appender::max_record_bytes); it will never be accepted.
    #[error("a record is longer than the log can store")]
    TooLarge = 6,
}

impl Refused {
    /// Every reason, in the order of its number.
    pub const ALL: [Refused; 6] =
        [Refused::Full, Refused::DiskLow, Refused::Backlog, Refused::Failed, Refused::Stopping, Refused::TooLarge];

    /// The name used as a metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Refused::Full => "full",
            Refused::DiskLow => "disk_low",
            Refused::Backlog => "backlog",
            Refused::Failed => "failed",
            Refused::Stopping => "stopping",
            Refused::TooLarge => "too_large",
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Refused> {
        Self::ALL.into_iter().find(|r| *r as u8 == number)
    }
}

/// How much the log can take, for a front end that decides whether to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pressure {
    /// Everything is accepted.
    Normal,
    /// It gets tight: drop what no device waits for (NON, QoS 0) before what one does.
    Shed,
    /// An append would be refused for this reason.
    Refuse(Refused),
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another log of this one, has it open.
    #[error("{0} is in use by another process")]
    Locked(PathBuf),
    /// A value of the configuration cannot work; names the key, and what is allowed.
    #[error("log.{key}: {problem}")]
    Config {
        /// The key below `log`.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The file system could never hold two segments and the low-water mark.
    #[error("the disk of {dir} has {total} bytes, {need} are needed: lower log.segment_bytes or log.low_water_bytes")]
    DiskTooSmall {
        /// Where the log is.
        dir: PathBuf,
        /// Size of its file system.
        total: u64,
        /// Smallest size that would do.
        need: u64,
    },
    /// A cursor file cannot be understood.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The metrics are registered already.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The system refused something.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a reader cannot give the next record. Those marked *once* are said once; the next call goes on behind them.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// *Once.* Records are missing: their segments have been removed, or were lost to damage. The next call gives `found`.
    #[error("records {expected} to {} are missing", .found.0 - 1)]
    Gap {
        /// The record that should have come.
        expected: Seq,
        /// The next one there is.
        found: Seq,
    },
    /// *Once.* The bytes of a segment are not what was written. The next call goes on at the next valid frame.
    #[error("{segment} is damaged at byte {offset}: {problem}")]
    Damaged {
        /// The segment's file.
        segment: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        problem: String,
    },
    /// *Once.* A record of a valid frame does not decode: it was written by something else.
    #[error("record {seq}: {source}")]
    Record {
        /// Which one.
        seq: Seq,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The system refused something; the call may be repeated.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a cursor could not be read or moved.
#[derive(Debug, thiserror::Error)]
pub enum CursorError {
    /// The name would not be a good file name: 1 to 64 of `a-z`, `0-9`, `-` and `_`.
    #[error("{0:?} cannot name a sink: 1 to 64 of a-z, 0-9, - and _ can")]
    Name(String),
    /// The file's checksum does not hold, or it is of another version. Somebody must decide: what the sink has delivered is not known.
    #[error("{path} is not a valid cursor: {problem}; remove it to deliver again all that the log still has")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The caller moved it backwards, beyond its plan, or planned nothing.
    #[error("cursor {name} at {position}: {problem}")]
    Misuse {
        /// Whose it is.
        name: String,
        /// Where it stands.
        position: Seq,
        /// What the caller did.
        problem: &'static str,
    },
    /// The system refused something.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a sink did not deliver. It is always tried again: a dead sink only grows the backlog.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The system refused something.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What the sink delivers to refused, or cannot be reached.
    #[error("{0}")]
    Refused(String),
}
