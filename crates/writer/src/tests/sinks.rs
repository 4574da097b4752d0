//! Sinks: exactly the records of the log, each delivery of one epoch and repeatable, whatever fails on the way.

use std::time::Instant;

use super::*;
use crate::sink::{Sink, SinkHandle, spawn};
use crate::{CursorError, SinkError};

/// The epoch of a delivery and the numbers in it.
type Delivery = (u32, Vec<u64>);

/// What a sink has delivered, by first and last sequence number: as files would be, a repetition replaces.
#[derive(Default)]
struct Shop {
    delivered: Mutex<BTreeMap<(u64, u64), Delivery>>,
    /// Deliveries to fail before they do anything, and after they have done it.
    fail_before: AtomicU64,
    fail_after: AtomicU64,
    panics: AtomicU64,
    attempts: AtomicU64,
}

struct Collect {
    shop: Arc<Shop>,
    taken: Vec<(u64, u32, u64)>,
    each: usize,
}

fn spend(counter: &AtomicU64) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl Sink for Collect {
    fn name(&self) -> &str {
        "collect"
    }

    fn take(&mut self, seq: Seq, epoch: u32, record: &Record<'_>) {
        self.taken.push((seq.0, epoch, number(record)));
    }

    fn due(&self, _now: Instant) -> bool {
        self.taken.len() >= self.each
    }

    fn deliver(&mut self) -> Result<(), SinkError> {
        self.shop.attempts.fetch_add(1, Ordering::SeqCst);
        if spend(&self.shop.fail_before) {
            return Err(SinkError::Refused("not there".into()));
        }
        assert!(!spend(&self.shop.panics), "a sink of this test panics");
        let (first, epoch, _) = self.taken[0];
        let (last, ..) = *self.taken.last().unwrap();
        assert!(self.taken.iter().all(|t| t.1 == epoch), "a delivery of two epochs");
        let numbers = self.taken.drain(..).map(|t| t.2).collect();
        let old = self.shop.delivered.lock().unwrap().insert((first, last), (epoch, numbers));
        if let Some(old) = old {
            assert_eq!(&old, &self.shop.delivered.lock().unwrap()[&(first, last)], "a repetition differs");
        }
        if spend(&self.shop.fail_after) {
            return Err(SinkError::Refused("the answer was lost".into()));
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.taken.clear();
    }
}

impl Shop {
    /// All records delivered, in order; fails on an overlap.
    fn all(&self) -> BTreeMap<u64, u64> {
        let mut all = BTreeMap::new();
        for ((first, last), (_, numbers)) in &*self.delivered.lock().unwrap() {
            assert_eq!(numbers.len() as u64, last - first + 1);
            numbers.iter().enumerate().for_each(|(i, n)| assert!(all.insert(first + i as u64, *n).is_none()));
        }
        all
    }
}

fn start(log: &Log, shop: &Arc<Shop>, each: usize) -> SinkHandle {
    spawn(log, Box::new(Collect { shop: shop.clone(), taken: Vec::new(), each })).unwrap()
}

#[test]
fn everything_is_delivered_once_and_the_rest_at_the_stop() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    let shop = Arc::new(Shop::default());
    let sink = start(&log, &shop, 300);
    store_each(&log, 0..20, 50);
    let stopped = log.stop(LONG);
    let end = sink.stop(LONG);
    assert_eq!((end.position, end.drained), (stopped.durable, true));
    assert_eq!(shop.all(), identity(1..1001));
    assert!(shop.delivered.lock().unwrap().len() >= 3);
}

#[test]
fn a_delivery_is_of_one_epoch() {
    let rig = Rig::new();
    for start in 0..3u64 {
        let (log, _) = rig.open();
        store(&log, 1 + start * 10..11 + start * 10);
    }
    let (log, recovered) = rig.open();
    let shop = Arc::new(Shop::default());
    let end = start(&log, &shop, 1000).stop(LONG);
    assert!(end.drained);
    assert_eq!(shop.all(), identity(1..31));
    let epochs: Vec<_> = shop.delivered.lock().unwrap().values().map(|(epoch, _)| *epoch).collect();
    assert_eq!(epochs, [recovered.epoch - 3, recovered.epoch - 2, recovered.epoch - 1]);
}

#[test]
fn failures_and_panics_are_tried_again_with_the_same_range() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    let shop = Arc::new(Shop::default());
    shop.fail_before.store(1, Ordering::SeqCst);
    shop.fail_after.store(1, Ordering::SeqCst);
    shop.panics.store(1, Ordering::SeqCst);
    let sink = start(&log, &shop, 100);
    store_each(&log, 0..10, 50);
    let deadline = Instant::now() + LONG;
    while sink.position() < Seq(400) {
        assert!(Instant::now() < deadline, "the sink never recovered");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(log.shared().metrics.sink_errors.with_label_values(&["collect"]).get(), 3);
    let _ = log.stop(LONG);
    assert!(sink.stop(LONG).drained);
    assert_eq!(shop.all(), identity(1..501));
}

#[test]
fn a_dead_sink_delays_nothing_but_itself() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    let shop = Arc::new(Shop::default());
    shop.fail_before.store(u64::MAX, Ordering::SeqCst);
    let sink = start(&log, &shop, 1);
    store_each(&log, 0..20, 50);
    assert_eq!(sink.position(), Seq::NONE);
    let end = sink.stop(LONG);
    assert!(!end.drained);
    // After a restart it has it all.
    drop(log);
    let (log, _) = rig.open();
    shop.fail_before.store(0, Ordering::SeqCst);
    assert!(start(&log, &shop, 100).stop(LONG).drained);
    assert_eq!(shop.all(), identity(1..1001));
}

#[test]
fn a_plan_is_repeated_exactly_after_a_crash() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store_each(&log, 0..4, 50);
    let mut cursor = log.cursor("collect").unwrap();
    cursor.advance(Seq(20)).unwrap();
    cursor.set_plan(Seq(21), Seq(77)).unwrap();
    // Dies here: the delivery may have been made, or not.
    drop((cursor, log));

    let (log, _) = rig.open();
    let cursor = log.cursor("collect").unwrap();
    assert_eq!((cursor.position(), cursor.plan()), (Seq(20), Some(21..=77)));
    drop(cursor);
    let shop = Arc::new(Shop::default());
    assert!(start(&log, &shop, 1).stop(LONG).drained);
    let ranges: Vec<_> = shop.delivered.lock().unwrap().keys().copied().collect();
    assert_eq!(ranges[0], (21, 77), "not more, not less, though the sink would have been due at once");
    assert_eq!(shop.all(), identity(21..201));
}

#[test]
fn a_cursor_cannot_be_moved_wrongly() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..101);
    let mut cursor = log.cursor("c").unwrap();
    let misuse = |r: Result<(), CursorError>| assert!(matches!(r, Err(CursorError::Misuse { .. })));
    misuse(cursor.advance(Seq(101)));
    misuse(cursor.set_plan(Seq(1), Seq(101)));
    misuse(cursor.set_plan(Seq(0), Seq(5)));
    misuse(cursor.set_plan(Seq(5), Seq(4)));
    cursor.set_plan(Seq(1), Seq(50)).unwrap();
    cursor.set_plan(Seq(1), Seq(50)).unwrap();
    misuse(cursor.set_plan(Seq(1), Seq(51)));
    misuse(cursor.advance(Seq(49)));
    cursor.advance(Seq(50)).unwrap();
    misuse(cursor.advance(Seq(49)));
    assert_eq!((cursor.position(), cursor.plan()), (Seq(50), None));
    assert!(matches!(log.cursor("../c"), Err(CursorError::Name(_))));
}

#[test]
fn a_damaged_cursor_is_for_somebody_to_decide() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    log.cursor("c").unwrap().advance(Seq(5)).unwrap();
    drop(log);
    let path = rig.dir.path().join("cursors/c");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[16] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = Log::open(rig.config.clone(), &Registry::new()).unwrap_err();
    assert!(error.to_string().contains("cursors/c"), "{error}");
}

#[test]
fn numbers_that_a_sink_has_delivered_are_not_given_out_again() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    log.cursor("c").unwrap().advance(Seq(10)).unwrap();
    drop(log);
    std::fs::remove_dir_all(rig.dir.path().join("log")).unwrap();
    let (log, recovered) = rig.open();
    assert_eq!(recovered.last, Seq(10));
    assert_eq!(recovered.gaps, [(Seq(1), Seq(10))]);
    assert_eq!(store(&log, 11..12), Seq(11));
}
