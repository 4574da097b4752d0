//! The one place where the front ends read the clock: once a batch, never once a message.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Both clocks when the process first asked.
static START: LazyLock<(Instant, u64)> = LazyLock::new(|| (Instant::now(), wall_micros() / 1000));

/// One reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Wall clock, microseconds since the Unix epoch; goes into records.
    pub(crate) micros: u64,
    /// Monotonic; for deadlines.
    pub(crate) instant: Instant,
}

impl Now {
    pub(crate) fn read() -> Now {
        Now { micros: wall_micros(), instant: Instant::now() }
    }

    /// The steady clock in whole seconds, as the session table counts them; 32 bits last until 2106. A wall clock that is set
    /// would make devices look silent, or retransmissions new.
    pub(crate) fn seconds(&self) -> u32 {
        u32::try_from(self.steady_millis() / 1000).unwrap_or(u32::MAX)
    }

    /// Time since the Unix epoch on a clock that never goes back: the wall clock at the start of the process, and the monotonic
    /// one since.
    pub(crate) fn steady(&self) -> Duration {
        let (start, millis) = *START;
        Duration::from_millis(millis) + self.instant.saturating_duration_since(start)
    }

    /// The same in milliseconds.
    pub(crate) fn steady_millis(&self) -> u64 {
        u64::try_from(self.steady().as_millis()).unwrap_or(u64::MAX)
    }

    /// Time since the process first asked for the time.
    pub(crate) fn uptime(&self) -> Duration {
        self.instant.saturating_duration_since(START.0)
    }
}

fn wall_micros() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}
