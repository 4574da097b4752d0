//! How the log thread and other workers wake a front-end task.

use std::sync::atomic::{AtomicBool, Ordering, fence};

use tokio::sync::Notify;

/// Wakes one task, and only when it asked for it: a commit that nobody waits for costs one load.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    notify: Notify,
    /// The task has answers that wait for `durable`.
    waiting: AtomicBool,
}

impl Wake {
    /// From the log thread, after `durable` moved or the log failed.
    pub(crate) fn durable_moved(&self) {
        // One fence here between storing `durable` and looking at `waiting`, one there between storing `waiting` and looking at
        // `durable`: at least one side sees the other's store.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) {
            self.notify.notify_one();
        }
    }

    /// From anywhere, always.
    pub(crate) fn now(&self) {
        self.notify.notify_one();
    }

    /// Says whether the task wants to hear of commits. Look at `durable` after setting it, before waiting.
    pub(crate) fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Waits for a wake; one that came before is not lost.
    pub(crate) async fn woken(&self) {
        self.notify.notified().await;
    }
}
