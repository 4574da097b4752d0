//! The session table: one entry a device, whichever protocol it speaks.
//!
//! # Constraints
//!
//! A million devices live here at once, so an entry is a 16-byte name and whatever state the protocols keep (`P`, with the time when the device
//! was last heard of), held in line in a sharded hash table ([`dashmap`]). Nothing is allocated for a device whose name has at most 15 bytes, no
//! device has a timer, and no message walks more than one shard.
//!
//! The number of devices is bounded ([`Config::max_devices`]): a device that is not in the table is turned away when it is
//! full, and those that are in it notice nothing.
//!
//! # Operation
//!
//! [`Table::with`] runs a closure on a device's entry under its shard's lock and notes that the device was seen.
//! [`Table::sweep`] walks the shards one at a time, which holds each lock for some 2,000 entries of a million; it drops devices
//! that have been silent for [`Config::idle`] unless their state says that it must stay, and counts the rest. Call it
//! every so often from a thread that serves no device.

use std::sync::atomic::{AtomicUsize, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as MapEntry;
use foldhash::quality::RandomState;
use tidegate_record::DeviceId;

/// A time in whole seconds since a start that the caller chose; 32 bits last 136 years.
pub type Seconds = u32;

/// Shards of the table. Workers meet in a shard's lock, which is held for a few tenths of a microsecond: with this many, one of sixty-four workers
/// finds it taken in less than a hundredth of its look-ups. A look-up waits for the memory of the lock, of some control bytes and of the entry. The
/// locks, a cache line each, and the control bytes, which lie together in a shard, stay in a core's second-level cache better than those of 4,096
/// shards while 50,000 devices report. At a million devices a shard has some 2,000 entries; growing it takes some 50 microseconds, and a sweep,
/// which looks into what each device keeps, may hold its lock for some tenths of a millisecond. Nearly all shards have just doubled there, which is
/// 6 bytes a device more than with 4,096.
const SHARDS: usize = 512;

/// Bounds of the table.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Most devices held at once.
    pub max_devices: usize,
    /// Silence after which a device is dropped, in seconds.
    pub idle: Seconds,
}

/// What the protocols keep of a device between two messages.
pub trait State: Default {
    /// What [`tidy`](Self::tidy) needs to know.
    type Policy;

    /// Where the table keeps when the device was last heard of: within the state, as four bytes beside it would take eight.
    fn last_seen(&mut self) -> &mut Seconds;

    /// Which of [`Counts`] this device adds to; below [`KINDS`].
    fn kind(&self) -> usize;

    /// Called by every sweep: frees what time has made useless, and says whether the entry must stay however long the
    /// device has been silent.
    fn tidy(&mut self, now: Seconds, policy: &Self::Policy) -> Keep;
}

/// Whether a sweep may drop a silent device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It has state that must outlive silence (an open connection, for instance).
    Pinned,
    /// It may go once it has been silent for [`Config::idle`].
    WhileSeen,
}

/// Kinds of devices that are counted apart ([`State::kind`]).
pub const KINDS: usize = 4;

/// Devices by kind and by whether they were seen since the last sweep but one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Seen within [`Config::idle`] / 8, by kind.
    pub active: [usize; KINDS],
    /// The others, by kind.
    pub idle: [usize; KINDS],
    /// Dropped by this sweep.
    pub dropped: usize,
}

/// The table is full and the device is not in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableFull;

impl std::fmt::Display for TableFull {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the session table is full")
    }
}

impl std::error::Error for TableFull {}

/// See the [module documentation](self).
pub struct Table<P> {
    map: DashMap<DeviceId, P, RandomState>,
    /// Entries in `map`, give or take those being inserted at this moment.
    len: AtomicUsize,
    config: Config,
}

impl<P: State> Table<P> {
    /// An empty table.
    #[must_use]
    pub fn new(config: Config) -> Table<P> {
        Table {
            map: DashMap::with_hasher_and_shard_amount(RandomState::default(), SHARDS),
            len: AtomicUsize::new(0),
            config,
        }
    }

    /// Runs `f` on the state of `device`, which is made if it is not there yet; the device counts as seen at `now`. A clone of
    /// the name that `f` gets allocates nothing.
    ///
    /// `device` must be a valid name ([`DeviceId::check`]); `None` says that it is not. Do not call the table again from
    /// within `f`: the shard is locked.
    pub fn with<R>(
        &self,
        device: &str,
        now: Seconds,
        f: impl FnOnce(&DeviceId, &mut P) -> R,
    ) -> Result<Option<R>, TableFull> {
        if let Some(mut entry) = self.map.get_mut(device) {
            let (id, state) = entry.pair_mut();
            saw(state, now);
            return Ok(Some(f(id, state)));
        }
        let Ok(device) = DeviceId::new(device) else { return Ok(None) };
        self.with_id(device, now, f).map(Some)
    }

    /// [`with`](Self::with) for a name that has been checked.
    pub fn with_id<R>(
        &self,
        device: DeviceId,
        now: Seconds,
        f: impl FnOnce(&DeviceId, &mut P) -> R,
    ) -> Result<R, TableFull> {
        match self.map.entry(device) {
            MapEntry::Occupied(entry) => {
                let mut entry = entry.into_ref();
                let (id, state) = entry.pair_mut();
                saw(state, now);
                Ok(f(id, state))
            }
            MapEntry::Vacant(vacant) => {
                if self.len.fetch_add(1, Ordering::Relaxed) >= self.config.max_devices {
                    self.len.fetch_sub(1, Ordering::Relaxed);
                    return Err(TableFull);
                }
                let mut state = P::default();
                *state.last_seen() = now;
                let result = f(vacant.key(), &mut state);
                vacant.insert(state);
                Ok(result)
            }
        }
    }

    /// Runs `f` on the state of `device` if it is in the table; the device does not count as seen.
    pub fn peek<R>(&self, device: &str, f: impl FnOnce(&mut P) -> R) -> Option<R> {
        self.map.get_mut(device).map(|mut state| f(&mut state))
    }

    /// Drops silent devices and counts the rest; see the [module documentation](self).
    pub fn sweep(&self, now: Seconds, policy: &P::Policy) -> Counts {
        let mut counts = Counts::default();
        let active_after = now.saturating_sub(self.config.idle / 8);
        self.map.retain(|_, state| {
            let keep = state.tidy(now, policy);
            let last_seen = *state.last_seen();
            if keep == Keep::WhileSeen && now.saturating_sub(last_seen) >= self.config.idle {
                counts.dropped += 1;
                return false;
            }
            let by_kind = if last_seen >= active_after { &mut counts.active } else { &mut counts.idle };
            by_kind[state.kind()] += 1;
            true
        });
        self.len.fetch_sub(counts.dropped, Ordering::Relaxed);
        counts
    }

    /// Devices in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether no device is in the table.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the table's entries take in line, spare buckets included; what `P` allocates comes on top.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        // hashbrown keeps one control byte a bucket and fills at most 7 of 8 buckets.
        self.map.capacity() * 8 / 7 * (size_of::<(DeviceId, P)>() + 1)
    }
}

fn saw<P: State>(state: &mut P, now: Seconds) {
    let last_seen = state.last_seen();
    *last_seen = now.max(*last_seen);
}

#[cfg(test)]
mod tests;
