//! The caller's clock.

use std::time::Duration;

/// A moment on the caller's clock, in milliseconds.
///
/// The epoch is the caller's business; one that survives a restart (Unix time) is needed where associations are exported
/// and imported. A clock that steps backwards delays timers and loses nothing: all arithmetic saturates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This moment and `after` more.
    #[must_use]
    pub fn plus(self, after: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds, as an association keeps them: 32 bits of Unix time last until 2106.
    pub(crate) fn seconds(self) -> u32 {
        u32::try_from(self.0 / 1000).unwrap_or(u32::MAX)
    }
}
