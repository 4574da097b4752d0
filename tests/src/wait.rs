//! Waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what should happen at once. It is long because the machine may be busy with other tests, and
/// costs nothing as long as the gateway works.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Waits until `condition` gives something, and returns that; panics with `what` after [`DEADLINE`].
pub fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {DEADLINE:?} for: {what}");
        thread::sleep(POLL);
    }
}
