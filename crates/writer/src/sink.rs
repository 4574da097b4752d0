//! Sinks.
use crate::{CursorError, Log, SinkError};
use std::time::{Duration, Instant};
use tidegate_record::{Record, Seq};

/// Where records go from the log: Parquet files, a broker, a database.
///
/// The thread that runs it ([`spawn`]) calls, in this order and again and again: [`take`](Self::take) for each record, in the order of the
/// log and of one epoch only; once [`due`](Self::due), the cursor's plan is written, then [`deliver`](Self::deliver) makes all that was
/// taken durable at its destination, then the cursor advances. After a crash, or after an error, the sink is [`reset`](Self::reset),
/// takes exactly the records of the plan again and delivers them again: a delivery that names itself after its first and last
/// sequence number duplicates nothing.
pub trait Sink: Send + 'static {
    /// Names the cursor: 1 to 64 of `a-z`, `0-9`, `-` and `_`. It is the value of the metrics' `sink` label.
    fn name(&self) -> &str;

    /// Takes one record. What goes wrong is said by [`deliver`](Self::deliver).
    fn take(&mut self, seq: Seq, epoch: u32, record: &Record<'_>);

    /// Whether to deliver now; asked after every frame, and regularly while nothing comes, if anything was taken.
    fn due(&self, now: Instant) -> bool;

    /// Delivers all that was taken; `Ok` means that it is durable there, and the sink is empty again.
    fn deliver(&mut self) -> Result<(), SinkError>;

    /// Forgets all that was taken.
    fn reset(&mut self);
}

/// A running sink.
#[derive(Debug)]
pub struct SinkHandle {}

/// Where a sink stood when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkStopped {
    /// All up to here is delivered.
    pub position: Seq,
    /// Whether that is all there was; the rest is delivered after the next start.
    pub drained: bool,
}

/// Runs `sink` on a thread of its own.
pub fn spawn(log: &Log, sink: Box<dyn Sink>) -> Result<SinkHandle, CursorError> {
    let _ = (log, sink);
    unimplemented!()
}

impl SinkHandle {
    /// All up to here is delivered.
    #[must_use]
    pub fn position(&self) -> Seq {
        unimplemented!()
    }

    /// Delivers what is durable, for at most `deadline`, then ends the thread.
    #[must_use]
    pub fn stop(self, deadline: Duration) -> SinkStopped {
        let _ = deadline;
        unimplemented!()
    }
}
