//! Every bound refuses at its edge and resumes by itself; what was accepted before is stored all the same.

use super::*;
use crate::{OpenError, Pressure, Refused};

/// Appends single records until one is refused for another reason than the disk's pace; returns the next number and the reason.
fn fill(log: &Log, mut next: u64) -> (u64, Refused) {
    let (appender, durable) = (log.appender(), log.durable());
    let mut batch = Batch::new();
    loop {
        push(&mut batch, next, 900);
        match appender.append(&mut batch) {
            Ok(last) => assert_eq!(last.0, next),
            Err(Refused::Full) => {
                batch.clear();
                let now = durable.get();
                if !durable.wait(now.next(), Duration::from_millis(200)) && durable.get() == now {
                    // The log thread is stuck without a segment and the queue is full before the keeper said so.
                    continue;
                }
                continue;
            }
            Err(reason) => return (next, reason),
        }
        next += 1;
    }
}

#[test]
fn pending_bytes_to_the_byte() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    let (appender, durable) = (log.appender(), log.durable());
    let gate = rig.faults.gate.lock().unwrap();
    let mut batch = Batch::new();
    push(&mut batch, 1, 8);
    let overhead = batch.bytes() - 8;
    let mut left = rig.config.pending_bytes - batch.bytes();
    appender.append(&mut batch).unwrap();
    let mut number = 1;
    while left > 0 {
        number += 1;
        let size = if left < 10_000 { left } else { 5_000 };
        push(&mut batch, number, size - overhead);
        assert_eq!(batch.bytes(), size);
        assert_eq!(appender.append(&mut batch), Ok(Seq(number)));
        left -= size;
    }
    assert_eq!(appender.pressure(), Pressure::Refuse(Refused::Full));
    push(&mut batch, number + 1, 8);
    let before = batch.bytes();
    assert_eq!(appender.append(&mut batch), Err(Refused::Full));
    assert_eq!((batch.len(), batch.bytes()), (1, before), "a refused batch stays");
    assert_eq!(log.shared().metrics.refused(Refused::Full).get(), 1);
    drop(gate);
    assert!(durable.wait(Seq(number), LONG));
    until("normal pressure", || appender.pressure() == Pressure::Normal);
    let last = appender.append(&mut batch).unwrap();
    assert!(durable.wait(last, LONG));
    drop(log);
    assert_eq!(read(rig.dir.path()).0, identity(1..number + 2));
}

#[test]
fn below_the_low_water_mark_nothing_is_accepted_until_there_is_space() {
    let mut rig = Rig::new();
    rig.config.low_water_bytes = 1 << 20;
    let (log, _) = rig.open();
    store(&log, 1..11);
    rig.faults.free.store((1 << 20) - 1, Ordering::SeqCst);
    let appender = log.appender();
    until("the refusal", || appender.pressure() == Pressure::Refuse(Refused::DiskLow));
    let mut batch = Batch::new();
    push(&mut batch, 11, 64);
    assert_eq!(appender.append(&mut batch), Err(Refused::DiskLow));
    // Just above is not enough to resume, so that it does not come and go.
    rig.faults.free.store((1 << 20) + 1, Ordering::SeqCst);
    log.shared().kick_keeper();
    assert_eq!(appender.append(&mut batch), Err(Refused::DiskLow));
    rig.faults.free.store(4 << 20, Ordering::SeqCst);
    until("the end of the refusal", || appender.pressure() == Pressure::Normal);
    let last = appender.append(&mut batch).unwrap();
    assert!(log.durable().wait(last, LONG));
}

#[test]
fn without_space_for_a_segment_accepted_records_wait_and_none_is_lost() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    rig.faults.no_space.store(true, Ordering::SeqCst);
    let (next, reason) = fill(&log, 1);
    assert_eq!(reason, Refused::DiskLow);
    assert!(log.durable().failure().is_none());
    rig.faults.no_space.store(false, Ordering::SeqCst);
    assert!(log.durable().wait(Seq(next - 1), LONG));
    until("the end of the refusal", || log.appender().pressure() == Pressure::Normal);
    store(&log, next..next + 10);
    drop(log);
    assert_eq!(read(rig.dir.path()).0, identity(1..next + 10));
    let (_, recovered) = rig.open();
    assert_eq!((recovered.last, recovered.gaps.len(), recovered.quarantined.len()), (Seq(next + 9), 0, 0));
}

#[test]
fn without_a_descriptor_for_a_segment_accepted_records_wait_and_none_is_lost() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    rig.faults.no_files.store(true, Ordering::SeqCst);
    let (next, reason) = fill(&log, 1);
    assert_eq!((reason, log.durable().failure()), (Refused::DiskLow, None));
    rig.faults.no_files.store(false, Ordering::SeqCst);
    assert!(log.durable().wait(Seq(next - 1), LONG));
    until("the end of the refusal", || log.appender().pressure() == Pressure::Normal);
    store(&log, next..next + 10);
    drop(log);
    assert_eq!(read(rig.dir.path()).0, identity(1..next + 10));
    let (_, recovered) = rig.open();
    assert_eq!((recovered.last, recovered.gaps.len(), recovered.quarantined.len()), (Seq(next + 9), 0, 0));
}

#[test]
fn a_full_disk_at_start_refuses_and_resumes() {
    let mut rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    drop(log);
    rig.config.low_water_bytes = 1 << 20;
    rig.faults.free.store(1000, Ordering::SeqCst);
    let (log, recovered) = rig.open();
    assert_eq!(recovered.last, Seq(10));
    let mut batch = Batch::new();
    push(&mut batch, 11, 64);
    assert_eq!(log.appender().append(&mut batch), Err(Refused::DiskLow));
    assert_eq!(drain(&mut log.reader(Seq::NONE)).0, identity(1..11));
    rig.faults.free.store(1 << 30, Ordering::SeqCst);
    until("the end of the refusal", || log.appender().pressure() == Pressure::Normal);
    store(&log, 11..21);
}

#[test]
fn a_disk_that_can_never_do_is_said_at_start() {
    let mut rig = Rig::new();
    rig.config.low_water_bytes = u64::MAX >> 1;
    assert!(matches!(Log::open(rig.config.clone(), &Registry::new()), Err(OpenError::DiskTooSmall { .. })));
}

#[test]
fn a_log_that_waits_for_space_says_at_the_stop_what_it_abandons() {
    let mut rig = Rig::new();
    rig.config.low_water_bytes = 1 << 20;
    let (log, _) = rig.open();
    rig.faults.no_space.store(true, Ordering::SeqCst);
    // More than the two segments that there are, before the keeper can notice.
    let mut batch = Batch::new();
    let mut accepted = 0;
    while rig.segments().len() < 3 {
        push(&mut batch, accepted + 1, 900);
        match log.appender().append(&mut batch) {
            Ok(_) => accepted += 1,
            Err(Refused::Full) => batch.clear(),
            Err(_) => break,
        }
    }
    let stopped = log.stop(Duration::from_millis(50));
    assert_eq!(stopped.durable.0 + stopped.abandoned_records, accepted);
    rig.faults.no_space.store(false, Ordering::SeqCst);
    let (_, recovered) = rig.open();
    assert_eq!(recovered.last, stopped.durable);
}

#[test]
fn a_stop_without_time_leaves_the_directory_free() {
    let rig = Rig::new();
    for round in 0..20 {
        let (log, _) = rig.open();
        let mut batch = Batch::new();
        push(&mut batch, round + 1, 900);
        log.appender().append(&mut batch).unwrap();
        let _ = log.stop(Duration::ZERO);
    }
}

#[test]
fn a_sink_that_lags_holds_the_log_at_its_bound_and_frees_it() {
    let mut rig = Rig::new();
    rig.config.max_bytes = 4 * rig.config.segment_bytes;
    rig.config.sinks = vec!["slow".into()];
    let (log, _) = rig.open();
    let (next, reason) = fill(&log, 1);
    assert_eq!(reason, Refused::Backlog);
    // What the last sealed segment had allocated and did not use is given back a moment later.
    until("a log within its bound", || {
        let bytes: u64 = rig.segments().iter().map(|s| std::fs::metadata(s).unwrap().len()).sum();
        bytes <= rig.config.max_bytes
    });
    assert_eq!(log.appender().pressure(), Pressure::Refuse(Refused::Backlog));

    // It has not been seen since the start, so its file, not yet there, is as good as a position before everything.
    let mut cursor = log.cursor("slow").unwrap();
    assert_eq!(cursor.position(), Seq::NONE);
    cursor.advance(log.durable().get()).unwrap();
    // What was accepted before the keeper could say no has waited, and is stored now.
    assert!(log.durable().wait(Seq(next - 1), LONG));
    until("the end of the refusal", || log.appender().pressure() == Pressure::Normal);
    store(&log, next..next + 10);
    let (found, _) = read(rig.dir.path());
    assert!(!found.contains_key(&1), "retain yields to the bound");
    assert!(found.contains_key(&(next + 9)));
}

#[test]
fn what_a_cursor_needs_stays_and_goes_when_it_has_passed() {
    let mut rig = Rig::new();
    rig.config.retain = Duration::ZERO;
    let (log, _) = rig.open();
    let mut cursor = log.cursor("sink").unwrap();
    store_each(&log, 0..60, 50);
    log.shared().kick_keeper();
    assert_eq!(read(rig.dir.path()).0.len(), 3000);
    cursor.advance(Seq(3000)).unwrap();
    until("the removal", || rig.segments().len() == 1);

    // With time to live, they stay.
    rig.config.retain = Duration::from_secs(3600);
    drop(cursor);
    drop(log);
    let (log, _) = rig.open();
    store_each(&log, 60..120, 50);
    log.cursor("sink").unwrap().advance(Seq(6000)).unwrap();
    log.shared().kick_keeper();
    assert!(rig.segments().len() > 3);
}

#[test]
fn the_cursor_of_a_sink_that_is_gone_does_not_refuse_anybody() {
    let mut rig = Rig::new();
    rig.config.max_bytes = 4 * rig.config.segment_bytes;
    let (log, _) = rig.open();
    store(&log, 1..11);
    log.cursor("gone").unwrap().advance(Seq(5)).unwrap();
    drop(log);
    let (log, _) = rig.open();
    // As long as there is no sink at all, nobody has what is in the log.
    let (mut next, reason) = fill(&log, 11);
    assert_eq!(reason, Refused::Backlog);
    let mut here = log.cursor("here").unwrap();
    here.advance(log.durable().get()).unwrap();
    assert!(log.durable().wait(Seq(next - 1), LONG));
    until("the end of the refusal", || log.appender().pressure() == Pressure::Normal);
    for _ in 0..100 {
        let last = store(&log, next..next + 60);
        here.advance(last).unwrap();
        next += 60;
    }
    assert_eq!(log.appender().pressure(), Pressure::Normal);
    assert!(!read(rig.dir.path()).0.contains_key(&6));
}

#[test]
fn values_that_cannot_work_are_named() {
    type Change = fn(&mut LogConfig);
    let wrong: [(&str, Change); 7] = [
        ("node", |c| c.node = "a/b".into()),
        ("segment_bytes", |c| c.segment_bytes = 4096),
        ("max_bytes", |c| c.max_bytes = c.segment_bytes),
        ("commit_bytes", |c| c.commit_bytes = 0),
        ("commit_bytes", |c| c.commit_bytes = 17 << 20),
        ("commit_records", |c| c.commit_records = 0),
        ("pending_bytes", |c| c.pending_bytes = 1),
    ];
    for (wanted, change) in wrong {
        let mut rig = Rig::new();
        change(&mut rig.config);
        let error = Log::open(rig.config.clone(), &Registry::new()).unwrap_err();
        assert!(matches!(error, OpenError::Config { key, .. } if key == wanted), "{error}");
    }
    LogConfig::default().check().unwrap();
}
