//! Sinks: where records go from the log, each on its own thread at its own pace.
//!
//! # Operation
//!
//! Read what is durable, let the sink take it; when the sink says that it is due, plan the range, deliver, advance the
//! cursor. A delivery never spans epochs. Whatever goes wrong, a panic of the sink included, is answered in one way, the one that a
//! crash takes too: forget all that was taken, wait, and begin again at the cursor with the plan that may be there. The wait doubles from
//! `FIRST_RETRY` to `LAST_RETRY`, for ever: a dead sink only grows the backlog, which is measured and bounded by the log.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntGauge};
use tidegate_record::{Record, Seq};

use crate::cursor::Cursor;
use crate::error::{CursorError, ReadError, SinkError};
use crate::log::Log;
use crate::reader::Reader;
use crate::shared::Shared;

/// Wait before the first repetition of what failed.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest wait: how late a sink notices that its destination is back.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Pause of a sink that has caught up. The log may commit thousands of times a second; a sink that read after each would cost more
/// than the commits.
const PACE: Duration = Duration::from_millis(10);

/// How often an idle sink is asked whether it is due.
const TICK: Duration = Duration::from_millis(100);

/// Records between two questions whether the sink is due: a thousandth of a row group of Parquet.
const DUE_EVERY: u64 = 128;

/// Where records go from the log: Parquet files, a broker, a database.
///
/// The thread that runs it ([`spawn`]) calls, in this order and again and again: [`take`](Self::take) for each record, in the order of
/// the log and of one epoch only; once [`due`](Self::due), the cursor's plan is written, then [`deliver`](Self::deliver) makes all that was
/// taken durable at its destination, then the cursor advances. After a crash, or after an error, the sink is [`reset`](Self::reset),
/// takes exactly the records of the plan again and delivers them again: a delivery that names itself after its first and last
/// sequence number duplicates nothing.
pub trait Sink: Send + 'static {
    /// Names the cursor: 1 to 64 of `a-z`, `0-9`, `-` and `_`. It is the value of the metrics' `sink` label.
    fn name(&self) -> &str;

    /// Takes one record. What goes wrong is said by [`deliver`](Self::deliver).
    fn take(&mut self, seq: Seq, epoch: u32, record: &Record<'_>);

    /// Whether to deliver now; asked every few records, and regularly while nothing comes, if anything was taken.
    fn due(&self, now: Instant) -> bool;

    /// Delivers all that was taken; `Ok` means that it is durable there, and the sink is empty again.
    fn deliver(&mut self) -> Result<(), SinkError>;

    /// Forgets all that was taken.
    fn reset(&mut self);
}

/// A running sink. Dropping it lets the sink deliver what is durable and end, without waiting for it.
#[derive(Debug)]
pub struct SinkHandle {
    control: Arc<Control>,
    thread: Thread,
    shared: Arc<Shared>,
}

/// Where a sink stood when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SinkStopped {
    /// All up to here is delivered.
    pub position: Seq,
    /// Whether that is all there was; the rest is delivered after the next start.
    pub drained: bool,
}

#[derive(Debug, Default)]
struct Control {
    /// Deliver what is durable, then end.
    stop: AtomicBool,
    /// End without delivering more.
    abandon: AtomicBool,
    ended: AtomicBool,
    position: AtomicU64,
}

struct Runner {
    shared: Arc<Shared>,
    control: Arc<Control>,
    cursor: Cursor,
    sink: Box<dyn Sink>,
    metrics: SinkMetrics,
}

struct SinkMetrics {
    position: IntGauge,
    backlog: IntGauge,
    delivered: IntCounter,
    errors: IntCounter,
    missed: IntCounter,
}

/// What the sink has taken and not delivered.
#[derive(Debug, Clone, Copy)]
struct Taken {
    first: u64,
    last: u64,
    epoch: u32,
    count: u64,
}

/// Runs `sink` on a thread of its own, from where its cursor stands.
pub fn spawn(log: &Log, sink: Box<dyn Sink>) -> Result<SinkHandle, CursorError> {
    let shared = log.shared().clone();
    let name = sink.name().to_owned();
    let cursor = log.cursor(&name)?;
    let control = Arc::new(Control { position: AtomicU64::new(cursor.position().0), ..Control::default() });
    let metrics = SinkMetrics {
        position: shared.metrics.sink_position.with_label_values(&[&name]),
        backlog: shared.metrics.sink_backlog.with_label_values(&[&name]),
        delivered: shared.metrics.sink_delivered.with_label_values(&[&name]),
        errors: shared.metrics.sink_errors.with_label_values(&[&name]),
        missed: shared.metrics.sink_missed.with_label_values(&[&name]),
    };
    let mut runner = Runner { shared: shared.clone(), control: control.clone(), cursor, sink, metrics };
    let thread = thread::Builder::new().name(format!("sink-{name}")).spawn(move || {
        runner.run();
        runner.control.ended.store(true, Ordering::Release);
        runner.shared.progress.wake();
    });
    let thread =
        thread.map_err(|source| CursorError::Io { doing: "starting the thread of", path: name.into(), source })?;
    Ok(SinkHandle { control, thread: thread.thread().clone(), shared })
}

impl SinkHandle {
    /// All up to here is delivered.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.control.position.load(Ordering::Acquire))
    }

    /// Delivers what is durable, for at most `deadline`, then ends the thread. To have all of it, stop the log first.
    #[must_use]
    pub fn stop(self, deadline: Duration) -> SinkStopped {
        self.ask_to_stop();
        let until = Instant::now() + deadline;
        while !self.control.ended.load(Ordering::Acquire) && Instant::now() < until {
            // Not by the log's own waiting, which ends with the log.
            thread::park_timeout(Duration::from_millis(1));
        }
        self.control.abandon.store(true, Ordering::Release);
        self.thread.unpark();
        let position = self.position();
        SinkStopped { position, drained: position >= self.shared.durable() }
    }

    fn ask_to_stop(&self) {
        self.control.stop.store(true, Ordering::Release);
        self.thread.unpark();
        self.shared.progress.wake();
    }
}

impl Drop for SinkHandle {
    fn drop(&mut self) {
        self.ask_to_stop();
    }
}

impl Runner {
    fn run(&mut self) {
        let mut wait = FIRST_RETRY;
        loop {
            let before = self.cursor.position();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                self.sink.reset();
                self.work()
            }));
            let error = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(_) => SinkError::Refused("the sink panicked".into()),
            };
            if self.cursor.position() > before {
                wait = FIRST_RETRY;
            }
            self.metrics.errors.inc();
            tracing::error!(
                sink = self.cursor.name(), position = %self.cursor.position(), %error, retry_seconds = wait.as_secs_f64(),
                "a sink did not deliver; it is tried again"
            );
            // A sink that fails while stopping is given up: it goes on after the next start.
            if self.is_stopping() || self.pause(wait) {
                return;
            }
            wait = (wait * 2).min(LAST_RETRY);
        }
    }

    fn is_stopping(&self) -> bool {
        self.control.stop.load(Ordering::Acquire)
    }

    fn is_abandoned(&self) -> bool {
        self.control.abandon.load(Ordering::Acquire)
    }

    /// Waits for `time`; `true` if it is to stop.
    fn pause(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        while !self.is_stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
        }
        true
    }

    /// From the cursor on until it is to stop, or something fails.
    fn work(&mut self) -> Result<(), SinkError> {
        let position = self.cursor.position();
        // The oldest there is, if nothing was ever delivered; else what follows, so that a gap is noticed.
        let from = if position == Seq::NONE { Seq::NONE } else { position.next() };
        let mut reader = Reader::within(self.shared.clone(), from);
        let mut taken: Option<Taken> = None;
        // What a plan left by a crash or an error ends with; the sink is not asked whether that is due.
        let mut planned = self.cursor.plan().map(|plan| *plan.end());
        loop {
            if self.is_abandoned() {
                return Ok(());
            }
            let entry = match reader.next() {
                Ok(entry) => entry,
                Err(ReadError::Io { doing, path, source }) => {
                    return Err(SinkError::Refused(format!("{doing} {}: {source}", path.display())));
                }
                Err(error) => {
                    if let ReadError::Gap { expected, found } = &error {
                        self.metrics.missed.inc_by(found.0 - expected.0);
                    } else if let ReadError::Record { .. } = &error {
                        self.metrics.missed.inc();
                    }
                    tracing::error!(sink = self.cursor.name(), %error, "a sink cannot have all records");
                    continue;
                }
            };
            if let Some(entry) = entry {
                let seq = entry.seq.0;
                if planned.is_some_and(|last| seq > last) {
                    self.deliver_plan(&mut taken)?;
                    planned = None;
                }
                if let Some(old) = taken
                    && old.epoch != entry.epoch
                {
                    deliver(&mut *self.sink, &mut self.cursor, &self.metrics, &self.control, old)?;
                    taken = None;
                }
                self.sink.take(entry.seq, entry.epoch, &entry.record);
                let mut now = taken.unwrap_or(Taken { first: seq, last: seq, epoch: entry.epoch, count: 0 });
                (now.last, now.count) = (seq, now.count + 1);
                taken = Some(now);
                if planned == Some(seq) {
                    self.deliver_plan(&mut taken)?;
                    planned = None;
                } else if planned.is_none() && now.count.is_multiple_of(DUE_EVERY) && self.sink.due(Instant::now()) {
                    self.deliver(now)?;
                    taken = None;
                }
                continue;
            }
            // Caught up.
            let stopping = self.is_stopping();
            let durable = self.shared.durable().0;
            if planned.is_some_and(|last| last <= durable) {
                // The end of the plan is missing from the log; what is left of it is delivered under its name.
                self.deliver_plan(&mut taken)?;
                planned = None;
            } else if let Some(now) = taken
                && planned.is_none()
                && (stopping || self.sink.due(Instant::now()))
            {
                self.deliver(now)?;
                taken = None;
            }
            self.metrics.backlog.set(durable.saturating_sub(self.cursor.position().0) as i64);
            if stopping {
                if self.shared.durable().0 == durable {
                    return Ok(());
                }
                continue;
            }
            self.pause(PACE);
            if self.shared.progress.is_over() {
                self.pause(TICK);
            } else {
                self.shared.progress.wait_until(TICK, || self.shared.durable().0 > durable || self.is_stopping());
            }
        }
    }

    fn deliver(&mut self, taken: Taken) -> Result<(), SinkError> {
        deliver(&mut *self.sink, &mut self.cursor, &self.metrics, &self.control, taken)
    }

    /// Delivers what there is of the plan, under the plan's own range.
    fn deliver_plan(&mut self, taken: &mut Option<Taken>) -> Result<(), SinkError> {
        let plan = self.cursor.plan().expect("it is there until it is done");
        if let Some(now) = taken.take() {
            self.deliver(Taken { first: *plan.start(), last: *plan.end(), ..now })
        } else {
            self.cursor.advance(Seq(*plan.end())).map_err(|e| cursor_error(&e))
        }
    }
}

fn deliver(
    sink: &mut dyn Sink,
    cursor: &mut Cursor,
    metrics: &SinkMetrics,
    control: &Control,
    taken: Taken,
) -> Result<(), SinkError> {
    if cursor.plan().is_none() {
        cursor.set_plan(Seq(taken.first), Seq(taken.last)).map_err(|e| cursor_error(&e))?;
    }
    sink.deliver()?;
    cursor.advance(Seq(taken.last)).map_err(|e| cursor_error(&e))?;
    control.position.store(taken.last, Ordering::Release);
    metrics.position.set(taken.last as i64);
    metrics.delivered.inc_by(taken.count);
    Ok(())
}

fn cursor_error(error: &CursorError) -> SinkError {
    SinkError::Refused(error.to_string())
}
