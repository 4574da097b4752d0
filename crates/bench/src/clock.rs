//! One clock for a run.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// Nanoseconds since the start of the run, on the monotonic clock; and the wall-clock time of that start, so that a time of the
/// run can be written into a payload and compared by whoever receives it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
    epoch_micros: u64,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), epoch_micros: since_epoch.as_micros() as u64 }
    }

    /// Nanoseconds since the start.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Microseconds since 1970 of a time of this clock.
    #[must_use]
    pub fn wall_micros(&self, ns: u64) -> u64 {
        self.epoch_micros + ns / 1_000
    }
}
