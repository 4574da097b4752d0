//! The log thread: group commit.
//!
//! # Operation
//!
//! It commits when idle and takes what arrived meanwhile as the next commit, so a single record waits for one sync and a flood is
//! batched as far as the disk is slow. No timer is involved. What it has taken is cut into frames, each written at once and
//! synced before the next is written; `durable` moves after each.
//!
//! A failed write or sync is the end: how much of the frame is on the medium, and whether the kernel still knows that it is
//! not, cannot be found out. A segment that cannot be allocated or begun for want of space, or of a file descriptor, is no failure,
//! since nothing of the records is written by then: they wait, and new ones are refused, until there is one.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tidegate_durable::{guard, lock};
use tidegate_record::peek_len;

use crate::format::{FRAME_HEADER_LEN, finish_frame};
use crate::segment::{self, AHEAD, Active, Sealed};
use crate::shared::Shared;

/// Commits of the largest size that a buffer has memory for at all times. More is kept only while it is used, so that a flood does not
/// fault its pages in again and again, and goes back with the first buffer that used less than [`USED`] of it.
const KEEP_COMMITS: usize = 4;

/// The part, one in this many, of its memory that a buffer must have used to keep it.
const USED: usize = 8;

/// How long to wait for a segment before looking again whether the keeper has one: it wakes this thread when it does.
const SEGMENT_WAIT: Duration = Duration::from_millis(250);

/// Why the thread ends before its work is done.
enum Halt {
    /// The log has failed.
    Failed,
    /// The deadline of the stop passed while there was no segment to write to.
    Deadline,
}

struct Committer {
    shared: Arc<Shared>,
    active: Option<Active>,
    /// Sequence number of the next record to be written.
    next: u64,
    /// [`AHEAD`] zeros.
    zeros: Box<[u8]>,
}

/// Runs until the log is stopped or fails.
pub(crate) fn run(shared: Arc<Shared>, active: Option<Active>) {
    let next = shared.durable().0 + 1;
    let mut committer = Committer { shared: shared.clone(), active, next, zeros: vec![0; AHEAD].into() };
    guard(
        || committer.run(),
        |cause| shared.fail("panic in the log thread", cause),
        || shared.progress.ended(|| shared.kick_keeper()),
    );
}

impl Committer {
    fn run(&mut self) {
        let mut buffer = vec![0; FRAME_HEADER_LEN];
        while let Some(count) = self.take(&mut buffer) {
            if self.store(&mut buffer, count).is_err() {
                return;
            }
            if buffer.len() < buffer.capacity() / USED {
                buffer.truncate(FRAME_HEADER_LEN);
                buffer.shrink_to(KEEP_COMMITS * self.shared.config.commit_bytes);
            }
            buffer.truncate(FRAME_HEADER_LEN);
        }
        if !self.shared.has_failed() {
            self.close();
        }
    }

    /// Waits for records and takes all there are; `None` once the log is stopped and there are none, or has failed.
    fn take(&mut self, buffer: &mut Vec<u8>) -> Option<u64> {
        let shared = self.shared.clone();
        let mut queue = lock(&shared.queue);
        loop {
            if queue.failed {
                return None;
            }
            if queue.count > 0 {
                std::mem::swap(&mut queue.buffer, buffer);
                return Some(std::mem::take(&mut queue.count));
            }
            if queue.stopping.is_some() {
                return None;
            }
            queue.idle = true;
            queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle = false;
        }
    }

    /// Stores `count` records, which stand in `buffer` behind space for a frame's header.
    fn store(&mut self, buffer: &mut [u8], mut count: u64) -> Result<(), Halt> {
        // A frame's header is written over the end of the frame before, which is stored by then.
        let mut start = FRAME_HEADER_LEN;
        while count > 0 {
            let first = peek_len(&buffer[start..]).expect("the batch encoded it");
            self.make_room(FRAME_HEADER_LEN + first)?;
            let (end, records) = self.cut(buffer, start, count);
            self.commit(&mut buffer[start - FRAME_HEADER_LEN..end], records)?;
            count -= u64::from(records);
            start = end;
        }
        Ok(())
    }

    /// Where the frame that begins with the record at `start` ends, and its number of records: as many as a commit may have and the
    /// segment can take, and one at least.
    fn cut(&self, buffer: &[u8], start: usize, count: u64) -> (usize, u32) {
        let config = &self.shared.config;
        let room = self.active.as_ref().map_or(0, |active| active.usable() as usize);
        let most_bytes = config.commit_bytes.min(room);
        if buffer.len() - start <= most_bytes && count <= u64::from(config.commit_records) {
            return (buffer.len(), count as u32);
        }
        let mut end = start;
        let mut records = 0;
        while u64::from(records) < count && records < config.commit_records {
            let len = peek_len(&buffer[end..]).expect("the batch encoded it");
            if records > 0 && end + len - start > most_bytes {
                break;
            }
            end += len;
            records += 1;
        }
        (end, records)
    }

    fn commit(&mut self, frame: &mut [u8], records: u32) -> Result<(), Halt> {
        let shared = &self.shared;
        let storage = &*shared.config.storage;
        let active = self.active.as_mut().expect("there is room");
        let begin = Instant::now();
        finish_frame(frame, active.seed, self.next, records);
        if let Err(error) = storage.write_at(&active.file, frame, active.offset) {
            return Err(self.fail("writing a commit", &error));
        }
        let end = active.offset + frame.len() as u64;
        let ahead = &self.zeros[..active.ahead(frame.len())];
        let zeros = if ahead.is_empty() { Ok(()) } else { storage.write_at(&active.file, ahead, end) };
        active.written = match zeros {
            Ok(()) => active.written.max(end + ahead.len() as u64),
            // A file system that copies what is written over may have none left; zeros are not worth the log, and not tried again.
            Err(error) if is_out_of_space(&error) => active.len,
            Err(error) => return Err(self.fail("writing ahead of commits", &error)),
        };
        if let Err(error) = storage.sync_data(&active.file) {
            return Err(self.fail("syncing a commit", &error));
        }
        active.offset = end;
        *lock(&shared.written) = (active.first, active.offset);
        self.next += u64::from(records);
        let bytes = frame.len() - FRAME_HEADER_LEN;
        {
            let mut queue = lock(&shared.queue);
            queue.pending -= bytes;
            queue.room = active.usable();
            shared.publish(&queue);
            shared.metrics.pending_bytes.set(queue.pending as i64);
            shared.metrics.next_seq.set(queue.next as i64);
        }
        let metrics = &shared.metrics;
        metrics.commits.inc();
        metrics.committed_bytes.inc_by(frame.len() as u64);
        metrics.committed_records.inc_by(u64::from(records));
        metrics.commit_seconds.observe(begin.elapsed().as_secs_f64());
        shared.set_durable(self.next - 1);
        Ok(())
    }

    fn fail(&self, during: &'static str, error: &io::Error) -> Halt {
        self.shared.fail(during, error.to_string());
        Halt::Failed
    }

    /// Has a segment that can take a frame of `len` bytes and a seal; rolls to the next one, and waits for it, if need be.
    fn make_room(&mut self, len: usize) -> Result<(), Halt> {
        let need = (len + FRAME_HEADER_LEN) as u64;
        if self.active.as_ref().is_some_and(|active| active.room() >= need) {
            return Ok(());
        }
        self.seal()?;
        loop {
            let spare = lock(&self.shared.files).next.take();
            if let Some(spare) = spare {
                let shared = &self.shared;
                let config = &shared.config;
                match segment::begin(&*config.storage, &shared.dir, &spare, &config.node, shared.epoch, self.next) {
                    Ok(active) => {
                        lock(&shared.files).active_len = active.len;
                        lock(&shared.queue).room = active.usable();
                        self.active = Some(active);
                        shared.kick_keeper();
                        return Ok(());
                    }
                    Err(error) if is_out_of_space(&error) || is_out_of_files(&error) => {
                        // Nothing of the records is in it: the file is given back, and they wait. If it has its new name already, the
                        // next one replaces it.
                        tracing::warn!(%error, "a segment cannot be begun");
                        let _ = std::fs::remove_file(&spare.path);
                    }
                    Err(error) => return Err(self.fail("beginning a segment", &error)),
                }
            }
            self.wait_for_segment()?;
        }
    }

    fn wait_for_segment(&self) -> Result<(), Halt> {
        let shared = &self.shared;
        shared.kick_keeper();
        let queue = lock(&shared.queue);
        if queue.failed {
            return Err(Halt::Failed);
        }
        let now = Instant::now();
        let wait = match queue.stopping {
            Some(deadline) if deadline <= now => return Err(Halt::Deadline),
            Some(deadline) => (deadline - now).min(SEGMENT_WAIT),
            None => SEGMENT_WAIT,
        };
        drop(shared.work.wait_timeout(queue, wait));
        Ok(())
    }

    /// Ends the segment being written, if there is one, and leaves it to the keeper.
    fn seal(&mut self) -> Result<(), Halt> {
        let Some(mut active) = self.active.take() else { return Ok(()) };
        let shared = &self.shared;
        if let Err(error) = active.seal(&*shared.config.storage, self.next) {
            return Err(self.fail("sealing a segment", &error));
        }
        {
            let mut files = lock(&shared.files);
            files.active_len = 0;
            files.untrimmed.push(active.path.clone());
            files.sealed.push_back(Sealed {
                path: active.path,
                epoch: active.epoch,
                first: active.first,
                next: self.next,
                len: active.offset,
                ended: SystemTime::now(),
            });
        }
        lock(&shared.queue).room = 0;
        Ok(())
    }

    /// Ends the log in good order: a sealed last segment tells the next start that nothing was cut off.
    fn close(&mut self) {
        let Some(active) = &self.active else { return };
        let path = active.path.clone();
        let sealed = self.seal().is_ok();
        let len = lock(&self.shared.files).sealed.back().map_or(0, |s| s.len);
        if sealed && let Err(error) = segment::truncate(&*self.shared.config.storage, &path, len) {
            // All is durable without it; the next start does it.
            tracing::warn!(segment = %path.display(), %error, "truncating the last segment");
        }
    }
}

/// Whether an error only says that the disk, or the owner's share of it, is full.
pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error only says that this process, or all together, have as many files open as they may.
fn is_out_of_files(error: &io::Error) -> bool {
    use nix::errno::Errno;
    error.raw_os_error().map(Errno::from_raw).is_some_and(|errno| matches!(errno, Errno::EMFILE | Errno::ENFILE))
}
