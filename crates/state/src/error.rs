//! What can go wrong, one enum per operation, each naming who is at fault.

use std::io;
use std::path::PathBuf;

/// Why a submission was not accepted. The changes are as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Refused {
    /// More is waiting for the disk than `pending_bytes` allows: the disk is slower than the changes.
    #[error("the database is behind: too much is waiting for the disk")]
    Full = 1,
    /// Free disk space is below the low-water mark.
    #[error("the disk is nearly full")]
    DiskLow = 2,
    /// A write failed: nothing is stored any more until the process is started again.
    #[error("the database has failed")]
    Failed = 3,
    /// The store is being stopped.
    #[error("the database is stopping")]
    Stopping = 4,
    /// The changes of this submission alone are more than `pending_bytes`; they will never be accepted.
    #[error("these changes are more than the database takes at once")]
    TooLarge = 5,
}

impl Refused {
    /// Every reason, in the order of its number.
    pub const ALL: [Refused; 5] =
        [Refused::Full, Refused::DiskLow, Refused::Failed, Refused::Stopping, Refused::TooLarge];

    /// The name used as a metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Refused::Full => "full",
            Refused::DiskLow => "disk_low",
            Refused::Failed => "failed",
            Refused::Stopping => "stopping",
            Refused::TooLarge => "too_large",
        }
    }
}

/// Why the database could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{path} is in use by {}", .holder.as_deref().unwrap_or("another process"))]
    Locked {
        /// The database.
        path: PathBuf,
        /// Name and number of the process, where the system tells.
        holder: Option<String>,
    },
    /// It was written by a version that this one does not know.
    #[error("{path} has format {found}, this version reads format {}", crate::store::FORMAT)]
    Format {
        /// The database.
        path: PathBuf,
        /// What it says of itself.
        found: String,
    },
    /// Its bytes are not those that were written.
    #[error("{path} is damaged: {problem}; restore it from a backup")]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
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

/// Why a value could not be read: the disk failed or the file is damaged.
#[derive(Debug, Clone, thiserror::Error)]
#[error("reading table {table}: {problem}")]
pub struct ReadError {
    /// Where.
    pub table: &'static str,
    /// What the database said.
    pub problem: String,
}
