//! What the CoAP sides of all workers have in common: unfinished uploads, what needs the disk to be answered, and what one worker has for
//! another.

use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Context;
use foldhash::quality::RandomState;
use tidegate_coap::block::{Limits, Uploads};
use tidegate_coap::dedup::Policy;
use tidegate_coap::echo::Challenger;
use tidegate_coap::observe::Relations;
use tidegate_record::DeviceId;
use tidegate_writer::Durable;

use super::files::{Files, NoPart, Part};
use super::transport::Endpoint;
use super::values::{Bounds, Reading, Values};
use crate::config::Config;
use crate::frontend::Now;
use crate::frontend::topics::TopicRef;
use crate::frontend::wake::Wake;

/// Names a request that waits for an answer: who sent it and its message ID.
pub(super) type Waiting = (Endpoint, u16);

/// What a worker gets from elsewhere.
pub(super) enum Arrival {
    /// The last reading of the topic that was asked for.
    Value(Waiting, Option<Reading>),
    /// The block of a file that was asked for.
    Part(Waiting, Result<Part, NoPart>),
    /// The message of this ID was acknowledged, or reset, by way of a worker that has not sent it: the device has moved.
    Answered { endpoint: Endpoint, mid: u16, is_reset: bool },
    /// A device that sleeps was heard of by a worker.
    Heard { device: DeviceId, endpoint: Endpoint, worker: usize },
    /// Relations of a device that was heard of here.
    Moved { device: DeviceId, endpoint: Endpoint, relations: Relations<TopicRef> },
}

struct Inbox {
    /// There is something in `arrivals`; readable without its lock.
    filled: AtomicBool,
    arrivals: Mutex<Vec<Arrival>>,
    wake: Arc<Wake>,
}

/// See the [module documentation](self).
pub(crate) struct Common {
    uploads: Mutex<Uploads>,
    pub(super) challenger: Challenger,
    values: OnceLock<Values>,
    files: OnceLock<Files>,
    inboxes: Box<[Inbox]>,
    /// Relations of all workers.
    relations: AtomicUsize,
    hasher: RandomState,
}

impl Common {
    pub(crate) fn new(config: &Config, dedup: &Policy, wakes: impl Iterator<Item = Arc<Wake>>) -> Common {
        let coap = &config.coap;
        let limits = Limits {
            max_body: coap.upload_bytes,
            per_device: coap.uploads_per_device,
            total: coap.uploads_bytes,
            lifetime: dedup.exchange_lifetime,
            max_szx: coap.block_bytes,
        };
        let inbox = |wake| Inbox { filled: AtomicBool::new(false), arrivals: Mutex::default(), wake };
        // A key that nobody knows, for the values that prove where a request came from.
        let mut key = [0; 32];
        getrandom::fill(&mut key).expect("the system gives randomness");
        Common {
            uploads: Mutex::new(Uploads::new(limits)),
            challenger: Challenger::new(&key),
            values: OnceLock::new(),
            files: OnceLock::new(),
            inboxes: wakes.map(inbox).collect(),
            relations: AtomicUsize::new(0),
            hasher: RandomState::default(),
        }
    }

    /// Starts the threads that read the disk. An error says which key is to blame.
    pub(crate) fn start(&self, config: &Config, durable: Durable) -> anyhow::Result<()> {
        let coap = &config.coap;
        if let Some(dir) = &coap.files {
            let files = Files::spawn(dir, coap.block_bytes)
                .with_context(|| format!("coap.files: cannot read the directory {}", dir.display()))?;
            let _ = self.files.set(files);
        }
        if coap.last_values > 0 {
            let bounds =
                Bounds { topics: coap.last_values, bytes: coap.last_values_bytes, records: coap.last_values_records };
            let _ = self.values.set(Values::spawn(bounds, durable).context("starting the thread of last values")?);
        }
        Ok(())
    }

    pub(super) fn uploads(&self) -> MutexGuard<'_, Uploads> {
        // A panic of another worker ends the process; until then an upload may at worst be lost.
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells endpoints and devices apart, for the names of uploads.
    pub(super) fn number(&self, of: impl Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    pub(super) fn values(&self) -> Option<&Values> {
        self.values.get()
    }

    pub(super) fn files(&self) -> Option<&Files> {
        self.files.get()
    }

    /// Observations of all workers.
    pub(super) fn relations(&self) -> usize {
        self.relations.load(Ordering::Relaxed)
    }

    /// A worker has `now` instead of `before` observations.
    pub(super) fn count_relations(&self, before: usize, now: usize) {
        if now >= before {
            self.relations.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.relations.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// Workers.
    pub(super) fn workers(&self) -> usize {
        self.inboxes.len()
    }

    pub(super) fn deliver(&self, worker: usize, arrival: Arrival) {
        let Some(inbox) = self.inboxes.get(worker) else { return };
        inbox.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        inbox.filled.store(true, Ordering::Release);
        inbox.wake.now();
    }

    /// What arrived for a worker; usually nothing, which costs a load.
    pub(super) fn take(&self, worker: usize) -> Vec<Arrival> {
        let Some(inbox) = self.inboxes.get(worker) else { return Vec::new() };
        if !inbox.filled.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut arrivals = inbox.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        inbox.filled.store(false, Ordering::Relaxed);
        std::mem::take(&mut *arrivals)
    }

    /// Gives up uploads that were not continued; returns how many, how many are left, and the bytes that these hold.
    pub(crate) fn sweep_uploads(&self, now: Now) -> (usize, usize, usize) {
        let mut uploads = self.uploads();
        let expired = uploads.expire(tidegate_coap::Seconds(now.seconds()));
        (expired, uploads.len(), uploads.held())
    }
}
