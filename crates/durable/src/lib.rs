//! How far things are stored, and who waits for that: what the log and the database have in common.
//!
//! # Constraints
//!
//! - The number up to which all is stored never falls, and stays once storing has failed.
//! - The first failure is the one that counts, and is final.
//! - Nobody waits for longer than it can still come true: whoever waits is woken by every move, by the failure and by the end.
//!
//! # Operation
//!
//! Whoever stores has a [`Progress`], and says [`reached`](Progress::reached) with every commit, [`failed`](Progress::failed) once, and
//! [`ended`](Progress::ended) when it is gone. [`guard`] runs its thread, so that a panic is a failure as well. Each of these
//! calls wakes those who wait, then calls the hooks, on the thread of whoever stores.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

type Hook = Arc<dyn Fn() + Send + Sync>;

/// Why nothing is stored any more. It is final: the process must exit, and the next one begins with what is on the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{during}: {cause}")]
pub struct Failure {
    /// What was being done.
    pub during: &'static str,
    /// What the system said.
    pub cause: String,
}

/// See the [crate documentation](self).
#[derive(Default)]
pub struct Progress {
    durable: AtomicU64,
    failure: OnceLock<Failure>,
    ended: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
    waiting: Mutex<()>,
    moved: Condvar,
}

/// A lock whose holder panicked is taken all the same. What it protects must be whole at every point where that may happen, or the panic
/// a failure, as it is in [`guard`].
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("durable", &self.durable())
            .field("failure", &self.failure())
            .finish_non_exhaustive()
    }
}

impl Progress {
    /// All up to `durable` is stored from the start.
    #[must_use]
    pub fn new(durable: u64) -> Progress {
        Progress { durable: durable.into(), ..Progress::default() }
    }

    /// All up to this number is stored.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Why nothing will ever be stored again, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    /// Whether whoever stores is gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether nothing will ever be stored again: it has failed or ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.failure().is_some() || self.has_ended()
    }

    /// All up to `durable` is stored. Never after a failure.
    pub fn reached(&self, durable: u64) {
        self.durable.store(durable, Ordering::Release);
        self.tell();
    }

    /// The end of all storing. `spread` makes it known where it must be before anybody is told.
    pub fn failed(&self, failure: Failure, spread: impl FnOnce()) {
        let _ = self.failure.set(failure);
        spread();
        self.tell();
    }

    /// Whoever stores is gone. `spread` is as for [`failed`](Self::failed).
    pub fn ended(&self, spread: impl FnOnce()) {
        self.ended.store(true, Ordering::Release);
        spread();
        self.tell();
    }

    /// Calls `hook` after each move, the failure, and the end.
    pub fn on_move(&self, hook: impl Fn() + Send + Sync + 'static) {
        lock(&self.hooks).push(Arc::new(hook));
    }

    fn tell(&self) {
        // Before the hooks: one that panics must not leave anybody waiting.
        self.wake();
        // Called without the lock, so that a hook may add one.
        let hooks = lock(&self.hooks).clone();
        for hook in hooks {
            hook();
        }
    }

    /// Makes those in [`wait_until`](Self::wait_until) look again.
    pub fn wake(&self) {
        drop(lock(&self.waiting));
        self.moved.notify_all();
    }

    /// Waits until `done`, which is looked at after each move, or it is over, or `timeout` passes; returns what `done` says then.
    pub fn wait_until(&self, timeout: Duration, done: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut guard = lock(&self.waiting);
        loop {
            if done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_over() {
                return done();
            }
            guard = self.moved.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until all up to `number` is stored; `false` if it is over before, or `timeout` passed.
    #[must_use]
    pub fn wait(&self, number: u64, timeout: Duration) -> bool {
        self.wait_until(timeout, || self.durable() >= number)
    }
}

/// Runs the thread of whoever stores: a panic in `body` goes to `fail` with its message, and `end` comes last. Hooks are called by all
/// three, and one that panicked may do so again: that is let pass.
pub fn guard(body: impl FnOnce(), fail: impl FnOnce(String), end: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        let _ = catch_unwind(AssertUnwindSafe(|| fail(message(&*panic))));
    }
    let _ = catch_unwind(AssertUnwindSafe(end));
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than anything here takes.
    const LONG: Duration = Duration::from_secs(60);

    fn failure(cause: &str) -> Failure {
        Failure { during: "testing", cause: cause.into() }
    }

    #[test]
    fn waiting_ends_with_the_number_the_failure_and_the_end() {
        let reach = |progress: &Progress| progress.reached(7);
        let fail = |progress: &Progress| progress.failed(failure("a cause"), || ());
        let end = |progress: &Progress| progress.ended(|| ());
        for (act, reached) in [(&reach as &(dyn Fn(&Progress) + Sync), true), (&fail, false), (&end, false)] {
            let progress = Progress::new(3);
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| progress.wait(7, LONG));
                act(&progress);
                assert_eq!(waiting.join().unwrap(), reached);
            });
            assert_eq!((progress.durable() == 7, progress.is_over()), (reached, !reached));
        }
        assert!(!Progress::new(3).wait(4, Duration::from_millis(1)), "nobody moves it");
    }

    #[test]
    fn the_first_failure_counts_and_spreads_before_anybody_is_told() {
        let progress = Arc::new(Progress::new(0));
        let told = Arc::new(Mutex::new(Vec::new()));
        progress.on_move({
            let (progress, told) = (Arc::downgrade(&progress), told.clone());
            move || {
                let progress = progress.upgrade().unwrap();
                lock(&told).push((progress.durable(), progress.failure().cloned(), progress.has_ended()));
            }
        });
        progress.reached(1);
        progress.failed(failure("first"), || assert_eq!(lock(&told).len(), 1));
        progress.failed(failure("second"), || ());
        progress.ended(|| assert_eq!(lock(&told).len(), 3));
        let first = Some(failure("first"));
        let expected = [(1, None, false), (1, first.clone(), false), (1, first.clone(), false), (1, first, true)];
        assert_eq!(*lock(&told), expected);
    }

    #[test]
    fn a_hook_may_add_one_and_one_that_panics_leaves_nobody_waiting() {
        let progress = Arc::new(Progress::new(0));
        progress.on_move({
            let progress = Arc::downgrade(&progress);
            move || progress.upgrade().unwrap().on_move(|| panic!("a hook of this test"))
        });
        progress.reached(1);
        let waiting = std::thread::spawn({
            let progress = progress.clone();
            move || progress.wait_until(LONG, || progress.failure().is_some())
        });
        guard(|| progress.reached(2), |cause| progress.failed(failure(&cause), || ()), || progress.ended(|| ()));
        assert!(waiting.join().unwrap());
        assert_eq!(progress.failure().unwrap().cause, "a hook of this test");
        assert!(progress.has_ended());
    }
}
