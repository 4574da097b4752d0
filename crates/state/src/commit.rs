//! The state thread: group commit.
//!
//! It commits when idle and takes what arrived meanwhile as the next transaction, so a single change waits for one sync and a flood is
//! batched as far as the disk is slow.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use redb::{Durability, WriteTransaction};
use tidegate_durable::{guard, lock};

use crate::changes::{self, Change};
use crate::shared::Shared;
use crate::table::Table;

/// Memory that the buffer of changes keeps between commits. More is kept only while it is used.
const KEEP_BYTES: usize = 1 << 20;

/// What was taken from the queue.
struct Taken {
    changes: u64,
    /// The ticket that is durable with it.
    last: u64,
}

/// Runs until the store is stopped or fails.
pub(crate) fn run(shared: &Arc<Shared>) {
    guard(|| serve(shared), |cause| shared.fail("panic in the state thread", cause), || shared.progress.ended(|| ()));
}

fn serve(shared: &Shared) {
    let mut buffer = Vec::new();
    while let Some(taken) = take(shared, &mut buffer) {
        let begin = Instant::now();
        if let Err(error) = store(shared, &buffer) {
            return shared.fail("committing to the database", error.to_string());
        }
        // Before `durable` moves: who was told that a change is stored must read it.
        *shared.snapshot.write().unwrap_or_else(PoisonError::into_inner) = None;
        let metrics = &shared.metrics;
        metrics.commits.inc();
        metrics.changes.inc_by(taken.changes);
        metrics.commit_seconds.observe(begin.elapsed().as_secs_f64());
        metrics.file_bytes.set(std::fs::metadata(&shared.path).map_or(0, |file| file.len() as i64));
        let low = shared.disk_is_low();
        {
            let mut queue = lock(&shared.queue);
            queue.pending -= buffer.len();
            queue.disk_low = low.then(Instant::now);
            metrics.pending_bytes.set(queue.pending as i64);
        }
        shared.progress.reached(taken.last);
        buffer.clear();
        if buffer.capacity() > KEEP_BYTES {
            buffer.shrink_to(KEEP_BYTES);
        }
    }
}

/// Waits for changes and takes all there are; `None` once the store is stopped and there are none, or has failed.
fn take(shared: &Shared, buffer: &mut Vec<u8>) -> Option<Taken> {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.failed {
            return None;
        }
        if queue.changes > 0 {
            std::mem::swap(&mut queue.bytes, buffer);
            return Some(Taken { changes: std::mem::take(&mut queue.changes), last: queue.last });
        }
        if queue.stopping.is_some() {
            return None;
        }
        queue.idle = true;
        queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        queue.idle = false;
    }
}

fn store(shared: &Shared, bytes: &[u8]) -> Result<(), redb::Error> {
    let database = shared.database.read().unwrap_or_else(PoisonError::into_inner);
    let database = database.as_ref().ok_or(redb::Error::DatabaseClosed)?;
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    apply(&transaction, bytes)?;
    transaction.commit()?;
    Ok(())
}

fn apply(transaction: &WriteTransaction, bytes: &[u8]) -> Result<(), redb::Error> {
    let mut tables = [const { None }; Table::ALL.len()];
    for (table, change) in changes::read(bytes) {
        let open = &mut tables[table as usize];
        let open = match open {
            Some(open) => open,
            None => open.insert(transaction.open_table(table.definition())?),
        };
        match change {
            Change::Put(key, value) => drop(open.insert(key, value)?),
            Change::Remove(key) => drop(open.remove(key)?),
            Change::RemovePrefix(prefix) => match successor(prefix) {
                Some(end) => open.retain_in(prefix..end.as_slice(), |_, _| false)?,
                None => open.retain_in(prefix.., |_, _| false)?,
            },
        }
    }
    Ok(())
}

/// The first key behind all that begin with `prefix`, unless there is none.
pub(crate) fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
