//! What is stored is there: across commits, rolls, restarts and recycling, for readers of any kind.

use std::fs::DirEntry;

use super::*;
use crate::format::HEADER_LEN;
use crate::segment::SPARE_EXTENSION;
use crate::{Failure, OpenError, Refused};

#[test]
fn records_come_back_in_order_across_rolls_and_starts() {
    let rig = Rig::new();
    let (log, first) = rig.open();
    assert_eq!((first.last, first.oldest), (Seq::NONE, Seq::NONE));
    for i in 0..60 {
        assert_eq!(store(&log, 1 + i * 50..51 + i * 50), Seq(50 + i * 50));
    }
    assert!(rig.segments().len() > 3);
    let stopped = log.stop(LONG);
    assert_eq!((stopped.durable, stopped.abandoned_records), (Seq(3000), 0));

    let (log, second) = rig.open();
    assert_eq!((second.oldest, second.last, second.records), (Seq(1), Seq(3000), 3000));
    assert_eq!(second.epoch, first.epoch + 1);
    assert!(second.quarantined.is_empty() && second.gaps.is_empty() && second.cut_bytes == 0);
    assert_eq!(log.durable().get(), Seq(3000));
    store(&log, 3001..3011);

    let (found, errors) = read(rig.dir.path());
    assert_eq!(found, identity(1..3011));
    assert!(errors.is_empty(), "{errors:?}");
    let mut reader = log.reader(Seq(2999));
    let mut epochs = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        epochs.push((entry.seq.0, entry.epoch));
    }
    assert_eq!(epochs[0], (2999, first.epoch));
    assert_eq!(epochs[2], (3001, second.epoch));
    assert_eq!(epochs.len(), 12);
}

#[test]
fn sealed_segments_take_no_more_than_their_length() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..101);
    let _ = log.stop(LONG);
    let segments = rig.segments();
    let lens: Vec<_> = segments.iter().map(|s| std::fs::metadata(s).unwrap().len()).collect();
    assert!(lens.iter().sum::<u64>() < 20 << 10, "{lens:?}");
}

#[test]
fn empty_starts_leave_one_segment_and_take_an_epoch_each() {
    let rig = Rig::new();
    let mut epochs = Vec::new();
    for _ in 0..5 {
        let (log, recovered) = rig.open();
        epochs.push(recovered.epoch - epochs.first().copied().unwrap_or(recovered.epoch));
        if epochs[0] == 0 && epochs.len() == 1 {
            epochs[0] = recovered.epoch;
        }
        let _ = log.stop(LONG);
        assert_eq!(rig.segments().len(), 1);
    }
    assert_eq!(epochs[1..], [1, 2, 3, 4]);
}

#[test]
fn a_wiped_directory_does_not_begin_with_the_same_epoch() {
    let epochs: Vec<_> = (0..4).map(|_| Rig::new().open().1.epoch).collect();
    let mut unique = epochs.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), epochs.len(), "{epochs:?}");
}

#[test]
fn one_writer_at_a_time() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    assert!(matches!(Log::open(rig.config.clone(), &Registry::new()), Err(OpenError::Locked(_))));
    drop(log);
    rig.open();
}

#[test]
fn concurrent_appenders_get_ranges_of_their_own() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    let threads: Vec<_> = (0..4u64)
        .map(|thread| {
            let (appender, durable) = (log.appender(), log.durable());
            std::thread::spawn(move || {
                let mut batch = Batch::new();
                let mut given = BTreeMap::new();
                let mut sent = 0;
                while sent < 2000 {
                    let n = 1 + sent % 17;
                    (0..n).for_each(|i| push(&mut batch, thread << 32 | (sent + i), 20));
                    match appender.append(&mut batch) {
                        Ok(last) => {
                            assert!(batch.is_empty());
                            (0..n).for_each(|i| {
                                assert!(given.insert(last.0 + 1 - n + i, thread << 32 | (sent + i)).is_none());
                            });
                            sent += n;
                        }
                        Err(Refused::Full) => {
                            assert_eq!(batch.len() as u64, n);
                            batch.clear();
                            let now = durable.get();
                            assert!(durable.wait(now.next(), LONG));
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
                given
            })
        })
        .collect();
    let mut given = BTreeMap::new();
    for thread in threads {
        given.extend(thread.join().unwrap());
    }
    assert_eq!(log.stop(LONG).abandoned_records, 0);
    let (found, errors) = read(rig.dir.path());
    assert!(errors.is_empty());
    assert_eq!(found, given);
    assert_eq!(found.keys().copied().collect::<Vec<_>>(), (1..=found.len() as u64).collect::<Vec<_>>());
}

#[test]
fn what_arrives_during_a_sync_is_one_commit() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..2);
    let before = log.shared().metrics.commits.get();
    let gate = rig.faults.gate.lock().unwrap();
    let mut batch = Batch::new();
    let mut last = Seq::NONE;
    for n in 2..32 {
        push(&mut batch, n, 64);
        last = log.appender().append(&mut batch).unwrap();
    }
    assert_eq!(log.durable().get(), Seq(1));
    drop(gate);
    assert!(log.durable().wait(last, LONG));
    let commits = log.shared().metrics.commits.get() - before;
    assert!(commits <= 2, "{commits} commits");
}

#[test]
fn small_frames_are_written_over_zeros() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 1 << 20;
    let (log, _) = rig.open();
    store_each(&log, 0..400, 10);
    assert_eq!(rig.segments().len(), 1);
    let writes = rig.faults.writes.lock().unwrap().clone();
    let mut end = 0;
    let mut extensions = 0;
    for (offset, len) in &writes {
        let reached = offset + *len as u64;
        extensions += usize::from(reached > end);
        end = end.max(reached);
    }
    // The first frame, the one that crosses 256 KiB, and zeros behind both.
    assert_eq!((writes.len(), extensions, end), (402, 4, 512 << 10));
    drop(log);
    assert_eq!(read(rig.dir.path()).0, identity(1..4001));
}

#[test]
fn large_frames_are_written_once() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 1 << 20;
    rig.config.commit_bytes = 64 << 10;
    rig.config.commit_records = 1000;
    rig.config.pending_bytes = 128 << 10;
    let (log, _) = rig.open();
    store(&log, 1..301);
    let bytes = log.shared().metrics.committed_bytes.get() as usize;
    assert!(bytes > 16 << 10, "{bytes}");
    assert_eq!(*rig.faults.writes.lock().unwrap(), [(HEADER_LEN as u64, bytes)]);
}

#[test]
fn files_get_zeros_in_their_first_use_alone() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 600_000;
    rig.config.retain = Duration::ZERO;
    let (log, _) = rig.open();
    let recycled = log.shared().metrics.segments_recycled.clone();
    let mut commits = 0;
    while recycled.get() < 8 {
        store_each(&log, commits..commits + 50, 20);
        commits += 50;
        assert!(commits < 10_000, "{} recycled", recycled.get());
    }
    let mut files = BTreeMap::new();
    rig.faults.zeros.lock().unwrap().iter().for_each(|file| *files.entry(*file).or_insert(0) += 1);
    // Three times 256 KiB are more than such a file has. The newest ones may not be full yet.
    assert!(files.values().all(|zeros| *zeros <= 3), "{files:?}");
    assert!(files.values().filter(|zeros| **zeros == 3).count() >= 2, "{files:?}");
}

#[test]
fn spares_of_an_earlier_process_get_zeros() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 1 << 20;
    let (log, _) = rig.open();
    store(&log, 1..2);
    let spares = || -> Vec<u64> {
        let entries = std::fs::read_dir(rig.dir.path().join("log")).unwrap().map(Result::unwrap);
        let spare = |entry: &DirEntry| entry.path().extension().is_some_and(|end| end == SPARE_EXTENSION);
        entries.filter(spare).map(|entry| entry.metadata().unwrap().ino()).collect()
    };
    until("a file that is allocated in advance", || !spares().is_empty());
    drop(log);
    rig.faults.zeros.lock().unwrap().clear();
    let spares = spares();
    let (log, _) = rig.open();
    store(&log, 2..3);
    let zeros = rig.faults.zeros.lock().unwrap().clone();
    assert!(zeros.len() == 1 && spares.contains(&zeros[0]), "{zeros:?} of {spares:?}");
}

#[test]
fn no_space_for_zeros_is_no_failure() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 1 << 20;
    let (log, _) = rig.open();
    rig.faults.no_zeros.store(true, Ordering::SeqCst);
    store_each(&log, 0..400, 10);
    assert_eq!(rig.faults.zeros.lock().unwrap().len(), 1, "not tried again in this segment");
    drop(log);
    let (found, errors) = read(rig.dir.path());
    assert!(errors.is_empty(), "{errors:?}");
    assert_eq!(found, identity(1..4001));
    assert_eq!(rig.open().1.last, Seq(4000));
}

#[test]
fn a_record_longer_than_a_commit_is_stored_and_one_longer_than_a_segment_is_refused() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    let appender = log.appender();
    let overhead = {
        let mut batch = Batch::new();
        push(&mut batch, 1, 8);
        batch.bytes() - 8
    };
    let longest = appender.max_record_bytes() - overhead;
    assert!(longest > rig.config.commit_bytes);
    let mut batch = Batch::new();
    push(&mut batch, 1, 8);
    push(&mut batch, 2, longest - 1000);
    let last = appender.append(&mut batch).unwrap();
    assert!(log.durable().wait(last, LONG));
    push(&mut batch, 3, longest);
    let last = appender.append(&mut batch).unwrap();
    assert!(log.durable().wait(last, LONG));
    push(&mut batch, 4, longest + 1);
    assert_eq!(appender.append(&mut batch), Err(Refused::TooLarge));
    assert_eq!(batch.len(), 1);
    drop(log);
    assert_eq!(read(rig.dir.path()).0, identity(1..4));
    assert_eq!(rig.open().1.last, Seq(3));
}

#[test]
fn a_follower_goes_through_rolls_restarts_removal_and_recycling() {
    let mut rig = Rig::new();
    rig.config.retain = Duration::ZERO;
    let (log, _) = rig.open();
    let mut external = Reader::open(rig.dir.path(), Seq::NONE).unwrap();
    let mut seen = 0;
    for round in 0..400u64 {
        store(&log, 1 + round * 20..21 + round * 20);
        let (found, errors) = drain(&mut external);
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(found, identity(seen + 1..21 + round * 20));
        seen += found.len() as u64;
    }
    assert!(log.shared().metrics.segments_recycled.get() > 3);
    let _ = log.stop(LONG);
    let (log, _) = rig.open();
    assert!(external.next().unwrap().is_none());
    store(&log, 8001..8002);
    assert_eq!(drain(&mut external).0, identity(8001..8002));
}

#[test]
fn what_was_removed_while_it_was_read_is_not_called_damaged() {
    let mut rig = Rig::new();
    rig.config.retain = Duration::ZERO;
    let (log, _) = rig.open();
    let mut external = Reader::open(rig.dir.path(), Seq::NONE).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let (_, errors) = drain(&mut external);
                assert!(errors.iter().all(|error| matches!(error, ReadError::Gap { .. })), "{errors:?}");
            }
        });
        store_each(&log, 0..20_000, 20);
        done.store(true, Ordering::SeqCst);
    });
}

#[test]
fn a_reader_that_was_overtaken_by_removal_is_told_so() {
    let mut rig = Rig::new();
    rig.config.retain = Duration::ZERO;
    let (log, _) = rig.open();
    store(&log, 1..21);
    let mut slow = Reader::open(rig.dir.path(), Seq::NONE).unwrap();
    assert_eq!(slow.next().unwrap().unwrap().seq, Seq(1));
    for round in 1..300u64 {
        store(&log, 1 + round * 20..21 + round * 20);
    }
    // All it had in its buffer, then the gap, then the rest.
    let (found, errors) = drain(&mut slow);
    let [ReadError::Gap { expected, found: to }] = errors[..] else { panic!("{errors:?}") };
    assert!(found.contains_key(&2) && found.contains_key(&6000));
    assert!((expected.0..to.0).all(|seq| !found.contains_key(&seq)));
    assert_eq!(found.len() as u64 + (to.0 - expected.0) + 1, 6000);
}

#[test]
fn a_failed_sync_is_not_tried_again_and_ends_everything() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    let told = Arc::new(Mutex::new(Vec::new()));
    let durable = log.durable();
    durable.on_move({
        let (told, durable) = (told.clone(), log.durable());
        move || told.lock().unwrap().push((durable.get(), durable.failure().is_some()))
    });
    let before = rig.faults.syncs.load(Ordering::SeqCst);
    rig.faults.sync_fails.store(true, Ordering::SeqCst);
    let mut batch = Batch::new();
    push(&mut batch, 11, 64);
    let last = log.appender().append(&mut batch).unwrap();
    assert!(!durable.wait(last, LONG));
    assert_eq!(durable.get(), Seq(10));
    assert!(matches!(durable.failure(), Some(Failure { during: "syncing a commit", .. })));
    push(&mut batch, 12, 64);
    assert_eq!(log.appender().append(&mut batch), Err(Refused::Failed));
    assert_eq!(log.appender().pressure(), crate::Pressure::Refuse(Refused::Failed));
    let stopped = log.stop(LONG);
    assert_eq!((stopped.durable, stopped.abandoned_records), (Seq(10), 1));
    assert_eq!(rig.faults.syncs.load(Ordering::SeqCst), before + 1, "a sync was tried again");
    let told = told.lock().unwrap();
    assert!(told.iter().all(|t| t.0 == Seq(10)) && told.last() == Some(&(Seq(10), true)), "{told:?}");

    // The record may be there, as here, or not; nobody was told. What is there is made durable before it counts.
    let before = rig.faults.syncs.load(Ordering::SeqCst);
    let (log, recovered) = rig.open();
    assert_eq!(recovered.last, Seq(11));
    assert!(rig.faults.syncs.load(Ordering::SeqCst) > before);
    store(&log, 12..13);
    assert_eq!(read(rig.dir.path()).0, identity(1..13));
}

#[test]
fn a_panic_on_the_log_thread_fails_the_log() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    log.durable().on_move(|| panic!("a hook of this test"));
    let mut batch = Batch::new();
    push(&mut batch, 1, 8);
    let last = log.appender().append(&mut batch).unwrap();
    let durable = log.durable();
    // It was stored before the hook was called.
    assert!(durable.wait(last, LONG));
    assert!(log.shared().progress.wait_until(LONG, || durable.failure().is_some()));
    assert_eq!(durable.failure().unwrap().cause, "a hook of this test");
    push(&mut batch, 2, 8);
    assert_eq!(log.appender().append(&mut batch), Err(Refused::Failed));
}

#[test]
fn replay_gives_what_was_received_since() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    for i in 0..60 {
        store(&log, 1 + i * 50..51 + i * 50);
    }
    let mut given = Vec::new();
    let n = log.replay_since(1_000_000 + 2990, |seq, record| given.push((seq.0, number(record)))).unwrap();
    assert_eq!(n, 11);
    assert_eq!(given, (2990..3001).map(|n| (n, n)).collect::<Vec<_>>());
    // The segments were begun long after these times of reception, so all were looked at; later than all, only the last is.
    assert_eq!(log.replay_since(u64::MAX, |_, _| panic!("nothing was")).unwrap(), 0);
}

#[test]
fn a_reader_of_the_log_never_sees_what_is_not_durable() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    for last in [5, 10] {
        let gate = rig.faults.gate.lock().unwrap();
        let mut batch = Batch::new();
        (last - 4..last + 1).for_each(|n| push(&mut batch, n, 64));
        log.appender().append(&mut batch).unwrap();
        let mut external = Reader::open(rig.dir.path(), Seq(last)).unwrap();
        let deadline = std::time::Instant::now() + LONG;
        while external.next().unwrap().is_none() {
            assert!(std::time::Instant::now() < deadline, "it is never written");
        }
        assert_eq!(drain(&mut log.reader(Seq::NONE)).0, identity(1..last - 4));
        assert!(log.reader(Seq(last)).next().unwrap().is_none());
        drop(gate);
        assert!(log.durable().wait(Seq(last), LONG));
        assert_eq!(drain(&mut log.reader(Seq::NONE)).0, identity(1..last + 1));
    }
}

#[test]
fn a_follower_does_not_search_behind_an_end_that_moves() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    let mut reader = Reader::open(rig.dir.path(), Seq::NONE).unwrap();
    assert_eq!(drain(&mut reader).0, identity(1..11));
    let first = reader.searched_behind();
    assert!(first.is_some(), "whoever reads once is told of what is behind the end");
    store(&log, 11..21);
    assert_eq!(drain(&mut reader).0, identity(11..21));
    assert_eq!(reader.searched_behind(), first);
}
