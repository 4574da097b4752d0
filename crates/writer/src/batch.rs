//! The records of one pass of a front end, encoded before any lock is taken.

use tidegate_record::{EncodeError, Record};

/// Records that go to the log in one [`append`](crate::Appender::append).
///
/// A front end keeps one and fills it again and again: an accepted append clears it and leaves its memory in place.
#[derive(Debug, Default)]
pub struct Batch {
    /// The encoded records, one after the other.
    pub(crate) bytes: Vec<u8>,
    /// How many there are in `bytes`.
    pub(crate) count: u32,
    /// Encoded length of the longest record since the last clear.
    pub(crate) longest: usize,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Encodes `record` behind those already there; on an error the batch is as before.
    pub fn push(&mut self, record: &Record<'_>) -> Result<(), EncodeError> {
        let before = self.bytes.len();
        record.encode(&mut self.bytes)?;
        self.longest = self.longest.max(self.bytes.len() - before);
        self.count += 1;
        Ok(())
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Encoded bytes of all records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no record.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets the records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
        self.longest = 0;
    }
}
