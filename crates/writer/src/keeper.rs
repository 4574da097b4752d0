//! The keeper: a thread for all that the log thread must not wait for. It watches free space, gives back what sealed segments
//! do not need, removes or recycles those that nobody needs, and has the next segment allocated before it is wanted.
//!
//! # What may be removed
//!
//! The oldest segments first, and only those that every cursor has passed. They stay for `retain` after their last record. If there is a
//! sink, so that what it has passed is elsewhere too, they go without regard to `retain` when the next segment would not fit
//! `max_bytes`, or the disk.
//!
//! A cursor file whose sink is neither in the configuration nor was asked for since the start still holds its segments, but not
//! against the records of sinks that are there: when it alone stands in the way, it is passed over, and that is said.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use tidegate_durable::{guard, lock};

use crate::commit::is_out_of_space;
use crate::error::Refused;
use crate::segment::{self, SPARE_EXTENSION, Sealed, Spare};
use crate::shared::Shared;
use crate::storage::Space;

/// Time between looks at the disk. At 200 MB/s others would fill 50 MB in it, a tenth of the default low-water mark.
const TICK: Duration = Duration::from_millis(250);

/// Passed segments kept for use again, beside the one that is ready. A log in balance removes one for each it begins, so one is enough;
/// the second covers a sink that advances in larger steps.
const MAX_SPARES: usize = 2;

/// A refusal for want of disk ends this part above the low-water mark, so that it does not come and go with every file.
const RESUME_MARGIN: u64 = 16;

pub(crate) struct Keeper {
    shared: Arc<Shared>,
    /// Names the next `.pre` file.
    number: u64,
    warned: Option<Refused>,
}

/// Runs until the log thread has ended.
pub(crate) fn run(shared: Arc<Shared>) {
    let mut keeper = Keeper::new(shared.clone());
    let rounds = || {
        while !shared.progress.has_ended() {
            keeper.look();
            let kicked = lock(&shared.kicked);
            let mut kicked = if *kicked {
                kicked
            } else {
                shared.kick.wait_timeout(kicked, TICK).unwrap_or_else(PoisonError::into_inner).0
            };
            *kicked = false;
        }
    };
    guard(rounds, |cause| shared.fail("panic in the log's keeper", cause), || ());
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>) -> Keeper {
        Keeper { shared, number: 0, warned: None }
    }

    /// One round of all duties.
    pub(crate) fn look(&mut self) {
        if self.shared.has_failed() {
            return;
        }
        self.trim();
        self.retire();
        let space = self.watch_space();
        let no_next = self.prepare(space).err();
        {
            let mut queue = lock(&self.shared.queue);
            queue.no_next = no_next;
            self.shared.publish(&queue);
        }
        if no_next != self.warned {
            match no_next {
                Some(reason) => tracing::warn!(reason = reason.name(), "no segment can be allocated: {reason}"),
                None => tracing::info!("segments can be allocated again"),
            }
            self.warned = no_next;
        }
        if no_next.is_none() {
            self.shared.work.notify_all();
        }
        self.measure();
    }

    fn watch_space(&self) -> Space {
        let config = &self.shared.config;
        let space = match config.storage.space(&self.shared.dir) {
            Ok(space) => space,
            Err(error) => {
                // Space that is not known must not stop the devices; a write that fails will.
                tracing::warn!(%error, "asking for the free space of the disk");
                Space { free: u64::MAX, total: u64::MAX }
            }
        };
        self.shared.metrics.disk_free_bytes.set(i64::try_from(space.free).unwrap_or(i64::MAX));
        let low = config.low_water_bytes;
        if space.free < low + low / RESUME_MARGIN {
            self.relieve();
        }
        let mut queue = lock(&self.shared.queue);
        let was = queue.disk_low;
        queue.disk_low = if was { space.free < low + low / RESUME_MARGIN } else { space.free < low };
        if queue.disk_low != was {
            if was {
                tracing::info!(free = space.free, low, "the disk has space again: storing goes on");
            } else {
                tracing::error!(
                    free = space.free,
                    low,
                    "the disk is below the low-water mark: new readings are refused"
                );
            }
        }
        space
    }

    /// Gives back one file that is only kept for convenience. One a round: a file system may count freed space late.
    fn relieve(&self) {
        let spare = lock(&self.shared.files).spares.pop();
        if let Some(spare) = spare {
            let _ = fs::remove_file(&spare.path);
        } else if let Some(oldest) = self.passed(true) {
            self.remove(&oldest, false);
        }
    }

    fn trim(&self) {
        let paths = std::mem::take(&mut lock(&self.shared.files).untrimmed);
        for path in paths {
            let len = lock(&self.shared.files).sealed.iter().find(|s| s.path == path).map(|s| s.len);
            if let Some(len) = len
                && let Err(error) = segment::truncate(&*self.shared.config.storage, &path, len)
            {
                // Its records are durable without it. The next start does it again.
                tracing::warn!(segment = %path.display(), %error, "truncating a segment");
            }
        }
    }

    /// Removes what nobody needs and `retain` allows.
    fn retire(&self) {
        let retain = self.shared.config.retain;
        while let Some(segment) = self.passed(false)
            && SystemTime::now().duration_since(segment.ended).is_ok_and(|age| age >= retain)
        {
            self.remove(&segment, true);
        }
    }

    /// The oldest segment, if all who need it have passed it; `force` leaves out those that are not wanted any more.
    fn passed(&self, force: bool) -> Option<Sealed> {
        let files = lock(&self.shared.files);
        let oldest = files.sealed.front()?;
        if files.sealed.len() == 1 && files.active_len == 0 {
            // It alone tells the next start which epoch and number come next.
            return None;
        }
        let holds = |position: u64| position + 1 < oldest.next;
        if files.cursors.values().any(|c| (c.wanted || !force) && holds(c.position)) {
            return None;
        }
        if force && !files.cursors.values().any(|c| c.wanted) {
            // Nobody has what is in it.
            return None;
        }
        if force {
            for (sink, cursor) in files.cursors.iter().filter(|(_, c)| holds(c.position)) {
                tracing::error!(
                    sink,
                    position = cursor.position,
                    removed_to = oldest.next - 1,
                    "a sink that is not configured any more has not delivered records that are removed now to make room; \
                     remove its cursor file if it will not come back"
                );
            }
        }
        Some(oldest.clone())
    }

    /// Takes the segment out of the log; its file may be used again.
    fn remove(&self, segment: &Sealed, recycle: bool) {
        let shared = &self.shared;
        // From here on no new reader finds it.
        lock(&shared.files).sealed.pop_front();
        let spares = lock(&shared.files).spares.len();
        let large_enough = segment.len >= shared.config.segment_bytes / 2;
        if recycle && spares < MAX_SPARES && large_enough {
            let path = self.spare_path(&segment.path);
            match fs::rename(&segment.path, &path) {
                Ok(()) => {
                    lock(&shared.files).spares.push(Spare { path, len: segment.len, written: segment.len });
                    shared.metrics.segments_recycled.inc();
                    return;
                }
                Err(error) => tracing::warn!(segment = %segment.path.display(), %error, "recycling a segment"),
            }
        }
        match fs::remove_file(&segment.path) {
            Ok(()) => shared.metrics.segments_removed.inc(),
            Err(error) => tracing::error!(segment = %segment.path.display(), %error, "removing a segment"),
        }
    }

    fn spare_path(&self, segment: &std::path::Path) -> PathBuf {
        // Named after the segment it was, so that it is unlike any other.
        segment.with_extension(SPARE_EXTENSION)
    }

    /// Has a file ready for the next segment, or says why there is none.
    pub(crate) fn prepare(&mut self, mut space: Space) -> Result<(), Refused> {
        let shared = self.shared.clone();
        let config = &shared.config;
        let need = config.segment_bytes;
        if lock(&shared.files).next.is_some() {
            return Ok(());
        }
        loop {
            let spare = lock(&shared.files).spares.pop();
            if let Some(spare) = spare {
                match segment::allocate(&*config.storage, &spare.path, need) {
                    Ok(()) => {
                        lock(&shared.files).next = Some(Spare { len: need, ..spare });
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::warn!(%error, file = %spare.path.display(), "a file cannot be used again; removing it");
                        let _ = fs::remove_file(&spare.path);
                        continue;
                    }
                }
            }
            let reason = if lock(&shared.files).total_bytes() + need > config.max_bytes {
                Refused::Backlog
            } else if space.free < config.low_water_bytes.saturating_add(need) {
                Refused::DiskLow
            } else {
                match self.allocate_new(need) {
                    Ok(spare) => {
                        lock(&shared.files).next = Some(spare);
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::warn!(%error, "allocating a segment");
                        if !is_out_of_space(&error) {
                            return Err(Refused::DiskLow);
                        }
                        Refused::DiskLow
                    }
                }
            };
            // Make room with what is only kept for convenience; a file that holds no more than its records is used again as it is.
            let Some(oldest) = self.passed(true) else { return Err(reason) };
            self.remove(&oldest, true);
            if let Ok(now) = config.storage.space(&shared.dir) {
                space = now;
            }
        }
    }

    fn allocate_new(&mut self, len: u64) -> io::Result<Spare> {
        let dir = &self.shared.dir;
        let path = loop {
            self.number += 1;
            let path = dir.join(format!("new-{}.{SPARE_EXTENSION}", self.number));
            if !path.exists() {
                break path;
            }
        };
        if let Err(error) = segment::allocate(&*self.shared.config.storage, &path, len) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(Spare { path, len, written: 0 })
    }

    fn measure(&self) {
        let metrics = &self.shared.metrics;
        let durable = self.shared.durable().0;
        let files = lock(&self.shared.files);
        metrics.segments.set((files.sealed.len() + usize::from(files.active_len > 0)) as i64);
        metrics.log_bytes.set(files.total_bytes() as i64);
        for (sink, cursor) in &files.cursors {
            metrics.sink_position.with_label_values(&[sink]).set(cursor.position as i64);
            metrics.sink_backlog.with_label_values(&[sink]).set(durable.saturating_sub(cursor.position) as i64);
        }
    }
}
