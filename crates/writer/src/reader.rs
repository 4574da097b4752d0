//! Reader.
use crate::ReadError;
use std::path::Path;
use tidegate_record::{Record, Seq};

/// One record in its place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its position.
    pub seq: Seq,
    /// The start of the writer that wrote it.
    pub epoch: u32,
    /// The record, borrowed from the reader's buffer.
    pub record: Record<'a>,
}

/// Gives the records of a log in order, in place, while it is written, removed from and recycled, from any process.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// A reader of the log in the data directory `dir`, the next record being `from`; [`Seq::NONE`] begins with the oldest there is.
    pub fn open(dir: impl AsRef<Path>, from: Seq) -> Result<Reader, ReadError> {
        let _ = (dir.as_ref(), from);
        unimplemented!()
    }

    /// The next record, or `None` at the end of what is valid (or, of [`Log::reader`](crate::Log::reader), durable) now; it may be called again.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        unimplemented!()
    }
}
