//! The state thread: group commit.
//!
//! It commits when idle and takes what arrived meanwhile as the next transaction, so a single change waits for one sync. A transaction
//! costs some 300 µs of processor time whatever is in it, and a row 1.3 µs where thousands share that: so after a commit of many
//! submissions, which more will follow, it lets them gather for [`GATHER`].

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use redb::{Durability, WriteTransaction};
use tidegate_durable::{guard, lock};

use crate::changes::{self, Change};
use crate::shared::Shared;
use crate::table::Table;

/// Memory that the buffer of changes keeps between commits. More is kept only while it is used.
const KEEP_BYTES: usize = 1 << 20;

/// How long submissions gather after a commit of [`MANY`] or more. A handshake or a login does not notice it, and at 20,000 a second
/// two hundred share a transaction.
const GATHER: Duration = Duration::from_millis(10);

/// Submissions in one commit that tell a flood of devices from workers that take turns, each waiting for its last one.
const MANY: u64 = 16;

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
    let (mut stored, mut gather) = (0, None);
    while let Some(taken) = take(shared, gather, &mut buffer) {
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
        gather = (taken.last - stored >= MANY).then(|| Instant::now() + GATHER);
        stored = taken.last;
        buffer.clear();
        if buffer.capacity() > KEEP_BYTES {
            buffer.shrink_to(KEEP_BYTES);
        }
    }
}

/// Waits for changes, which gather until then if that is said, and takes all there are; `None` once the store is stopped and there
/// are none, or has failed.
fn take(shared: &Shared, gather: Option<Instant>, buffer: &mut Vec<u8>) -> Option<Taken> {
    let mut queue = lock(&shared.queue);
    loop {
        if queue.failed {
            return None;
        }
        let rest = gather.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        // Whoever stops it wakes it, and a queue that is half full is not left to be refused.
        if !rest.is_zero() && queue.stopping.is_none() && queue.pending < shared.pending_bytes / 2 {
            queue = shared.work.wait_timeout(queue, rest).unwrap_or_else(PoisonError::into_inner).0;
            continue;
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
