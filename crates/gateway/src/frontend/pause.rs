//! Leaves the sockets alone while a commit is under way.
//!
//! What arrives during a commit cannot be stored before the next one, which begins when this one ends. Taking it in as it
//! trickles in would cost a wake, a pass and a small append for every few messages; so a front end that has handed records to the
//! log reads on when the commit has ended, and takes all that came meanwhile at once. The kernel's queues hold it until then. A slow
//! commit must not fill them, nor keep pings and retransmissions waiting, hence [`LONGEST`].

use std::time::{Duration, Instant};

/// Longest pause. The smallest queue that a system gives a socket holds some 250 datagrams, which is 2 ms of 100,000 a second;
/// and a commit that takes longer than that is on a disk whose latency nobody will tell this from.
const LONGEST: Duration = Duration::from_millis(2);

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(super) struct Pause {
    until: Option<Instant>,
}

impl Pause {
    /// What was there has been handed to the log: all of it, so that the pause begins, or not all, and there is none.
    pub(super) fn set(&mut self, took_all: bool) {
        self.until = took_all.then(|| Instant::now() + LONGEST);
    }

    /// The pause has been long enough.
    pub(super) fn end(&mut self) {
        self.until = None;
    }

    /// When it ends, unless a commit does before.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// Waits until `pause`, or for ever.
pub(super) async fn sleep_until(pause: Option<Instant>) {
    match pause {
        Some(until) => tokio::time::sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}
