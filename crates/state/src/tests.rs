//! The store on a backend that stalls and fails when told, and against a model.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use prometheus::Registry;
use proptest::prelude::*;
use redb::backends::InMemoryBackend;
use redb::{Builder, StorageBackend};
use tempfile::TempDir;

use crate::metrics::Metrics;
use crate::*;

const LONG: Duration = Duration::from_secs(60);

fn config(dir: &TempDir) -> Config {
    Config {
        path: dir.path().join("sub/state.redb"),
        cache_bytes: Some(1 << 20),
        pending_bytes: 1 << 20,
        low_water_bytes: 0,
    }
}

fn open(config: &Config) -> Store {
    Store::open(config.clone(), &Registry::new()).unwrap()
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Changes {
    let mut changes = Changes::new();
    changes.put(table, key, value);
    changes
}

fn read(store: &Store, table: Table, key: &[u8]) -> Option<Vec<u8>> {
    store.reader().get(table, key, <[u8]>::to_vec).unwrap()
}

fn all(store: &Store, table: Table, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    let collect = |key: &[u8], value: &[u8]| {
        found.push((key.to_vec(), value.to_vec()));
        true
    };
    store.reader().scan(table, prefix, collect).unwrap();
    found
}

#[test]
fn the_cache_grows_with_the_file_within_bounds() {
    const MIB: u64 = 1 << 20;
    for (file, cache) in [(0, 64), (640, 64), (650, 65), (10_240, 1024), (10_250, 1024), (1 << 40, 1024)] {
        assert_eq!(store::cache_for(file * MIB) as u64, cache * MIB, "{file} MiB");
    }
}

#[test]
fn what_is_durable_is_there_after_it_is_opened_again() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    let store = open(&config);
    assert_eq!(store.durable().get(), Ticket::NONE);
    assert_eq!(read(&store, Table::Retained, b"a"), None, "a table that was never written to is empty");
    let writer = store.writer();
    let first = writer.submit(&mut put(Table::Retained, b"a", b"1")).unwrap();
    let last = writer.submit(&mut put(Table::Retained, b"b", b"2")).unwrap();
    assert!(first < last);
    assert_eq!(writer.submit(&mut Changes::new()), Ok(last), "no changes are stored when what came before is");
    assert!(store.durable().wait(last, LONG));
    assert_eq!(read(&store, Table::Retained, b"b").as_deref(), Some(&b"2"[..]));
    // What is accepted before the stop is stored too.
    writer.submit(&mut put(Table::Wills, b"c", b"3")).unwrap();
    assert!(store.stop(LONG).clean);
    assert_eq!(writer.submit(&mut put(Table::Wills, b"d", b"4")), Err(Refused::Stopping));

    let store = open(&config);
    assert_eq!(all(&store, Table::Retained, b""), [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())]);
    assert_eq!(read(&store, Table::Wills, b"c").as_deref(), Some(&b"3"[..]));
    assert_eq!(read(&store, Table::Wills, b"d"), None);
    assert_eq!(store.reader().len(Table::Retained).unwrap(), 2);
}

#[test]
fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    let _store = open(&config);
    assert_eq!(std::fs::metadata(&config.path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_one_is_told_who_has_it() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    let _store = open(&config);
    let error = Store::open(config.clone(), &Registry::new()).unwrap_err();
    assert!(matches!(&error, OpenError::Locked { holder: Some(_), .. }), "{error}");
    assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
}

#[test]
fn another_format_and_damage_are_refused() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    let store = open(&config);
    let ticket = store.writer().submit(&mut put(Table::Meta, b"format", b"99")).unwrap();
    assert!(store.durable().wait(ticket, LONG));
    drop(store);
    let error = Store::open(config.clone(), &Registry::new()).unwrap_err();
    assert!(matches!(&error, OpenError::Format { found, .. } if found == "99"), "{error}");
    std::fs::write(&config.path, vec![7; 4096]).unwrap();
    let error = Store::open(config.clone(), &Registry::new()).unwrap_err();
    assert!(matches!(&error, OpenError::Damaged { .. }), "{error}");
}

#[test]
fn a_prefix_is_removed_and_scanned_to_its_edges() {
    let dir = TempDir::new().unwrap();
    let store = open(&config(&dir));
    let mut changes = Changes::new();
    let keys: [&[u8]; 7] = [b"", b"a", b"a/", b"a/x", b"a0", b"\xff", b"\xff\xff"];
    for key in keys {
        changes.put(Table::Queues, key, b"");
    }
    changes.remove_prefix(Table::Queues, b"a/").remove_prefix(Table::Queues, b"\xff");
    // Of one submission a later change finds what an earlier one did.
    changes.put(Table::Queues, b"a/y", b"");
    let ticket = store.writer().submit(&mut changes).unwrap();
    assert!(store.durable().wait(ticket, LONG));
    let keys = |prefix: &[u8]| all(&store, Table::Queues, prefix).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(b""), [&b""[..], b"a", b"a/y", b"a0"]);
    assert_eq!(keys(b"a/"), [b"a/y"]);
    let ticket = store.writer().submit(changes.remove_prefix(Table::Queues, b"")).unwrap();
    assert!(store.durable().wait(ticket, LONG));
    assert!(keys(b"").is_empty());
}

#[derive(Debug, Default)]
struct Faults {
    fail: AtomicBool,
    /// Syncs wait while it is set.
    stalled: Mutex<bool>,
    go: Condvar,
    syncs: AtomicUsize,
}

#[derive(Debug)]
struct Faulty(InMemoryBackend, Arc<Faults>);

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.syncs.fetch_add(1, Ordering::SeqCst);
        let mut stalled = self.1.stalled.lock().unwrap();
        while *stalled {
            stalled = self.1.go.wait(stalled).unwrap();
        }
        if self.1.fail.load(Ordering::SeqCst) { Err(io::Error::other("the disk is gone")) } else { Ok(()) }
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

fn faulty(pending_bytes: usize) -> (Store, Arc<Faults>) {
    let faults = Arc::new(Faults::default());
    let database = Builder::new().create_with_backend(Faulty(InMemoryBackend::new(), faults.clone())).unwrap();
    let config = Config { path: "/nonexistent".into(), cache_bytes: Some(1 << 20), pending_bytes, low_water_bytes: 0 };
    let store = Store::start(database, config, Metrics::new(&Registry::new()).unwrap()).unwrap();
    (store, faults)
}

fn stall(faults: &Faults, stalled: bool) {
    *faults.stalled.lock().unwrap() = stalled;
    faults.go.notify_all();
}

fn wait_for(what: impl Fn() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

#[test]
fn a_failed_sync_is_the_end() {
    let (store, faults) = faulty(1 << 20);
    let writer = store.writer();
    let heard = Arc::new(AtomicUsize::new(0));
    store.durable().on_move({
        let heard = heard.clone();
        move || {
            heard.fetch_add(1, Ordering::SeqCst);
        }
    });
    let stored = writer.submit(&mut put(Table::Wills, b"a", b"1")).unwrap();
    assert!(store.durable().wait(stored, LONG));
    faults.fail.store(true, Ordering::SeqCst);
    let lost = writer.submit(&mut put(Table::Wills, b"b", b"2")).unwrap();
    assert!(!store.durable().wait(lost, LONG));
    assert_eq!(store.durable().get(), stored);
    let failure = store.durable().failure().expect("it says so");
    assert!(failure.to_string().contains("the disk is gone"), "{failure}");
    // Of the commit and of the failure.
    wait_for(|| heard.load(Ordering::SeqCst) >= 2);
    // The disk being back changes nothing.
    faults.fail.store(false, Ordering::SeqCst);
    assert_eq!(writer.submit(&mut put(Table::Wills, b"c", b"3")), Err(Refused::Failed));
    assert!(!store.stop(LONG).clean);
}

#[test]
fn what_comes_during_a_commit_is_the_next_one_and_bounded() {
    let (store, faults) = faulty(1000);
    let writer = store.writer();
    stall(&faults, true);
    let before = faults.syncs.load(Ordering::SeqCst);
    writer.submit(&mut put(Table::Wills, b"first", b"")).unwrap();
    wait_for(|| faults.syncs.load(Ordering::SeqCst) > before);
    // Sixteen bytes each with their header.
    let mut accepted = 0;
    let refused = loop {
        match writer.submit(&mut put(Table::Wills, b"second", b"")) {
            Ok(_) => accepted += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, accepted), (Refused::Full, (1000 - 15) / 16));
    assert_eq!(writer.refusing(), None, "one byte fits");
    let mut large = put(Table::Wills, b"large", &[0; 1000]);
    assert_eq!(writer.submit(&mut large), Err(Refused::TooLarge));
    assert_eq!(large.len(), 1, "what is refused is kept");
    stall(&faults, false);
    let last = writer.submit(&mut Changes::new()).unwrap();
    assert!(store.durable().wait(last, LONG));
    assert_eq!(store.shared_metrics().commits.get(), 2, "all that waited is one transaction");
    assert!(writer.submit(&mut put(Table::Wills, b"third", b"")).is_ok(), "there is room again");
}

#[test]
fn a_flood_gathers_and_nobody_waits_for_more_of_it() {
    let (store, faults) = faulty(1 << 20);
    let writer = store.writer();
    let submit = |count: usize| {
        (0..count).for_each(|n| assert!(writer.submit(&mut put(Table::Wills, &n.to_be_bytes(), b"")).is_ok()));
        writer.submit(&mut Changes::new()).unwrap()
    };
    // All but the first share a commit, which so is one of many.
    stall(&faults, true);
    let before = faults.syncs.load(Ordering::SeqCst);
    submit(1);
    wait_for(|| faults.syncs.load(Ordering::SeqCst) > before);
    let last = submit(100);
    stall(&faults, false);
    assert!(store.durable().wait(last, LONG));
    // What comes now is let gather, and stored though nothing follows it.
    assert!(store.durable().wait(submit(1), LONG));
    let last = submit(100);
    assert!(store.stop(LONG).clean, "a stop ends the gathering");
    assert_eq!(writer.submit(&mut put(Table::Wills, b"late", b"")), Err(Refused::Stopping));
    assert!(last > Ticket(200));
}

#[test]
fn a_hook_that_panics_fails_the_store() {
    let (store, _) = faulty(1000);
    store.durable().on_move({
        let durable = store.durable();
        move || assert!(durable.failure().is_some(), "as it must")
    });
    store.writer().submit(&mut put(Table::Wills, b"a", b"")).unwrap();
    let durable = store.durable();
    wait_for(|| durable.failure().is_some());
    assert_eq!(store.writer().submit(&mut put(Table::Wills, b"b", b"")), Err(Refused::Failed));
}

#[test]
fn a_disk_that_is_nearly_full_refuses_until_it_is_not() {
    let dir = TempDir::new().unwrap();
    let store = open(&Config { low_water_bytes: u64::MAX, ..config(&dir) });
    // The first one is accepted: nobody has looked yet.
    let ticket = store.writer().submit(&mut put(Table::Wills, b"a", b"")).unwrap();
    assert!(store.durable().wait(ticket, LONG));
    assert_eq!(store.writer().submit(&mut put(Table::Wills, b"b", b"")), Err(Refused::DiskLow));
}

#[test]
fn the_pages_that_a_snapshot_kept_are_used_again() {
    let dir = TempDir::new().unwrap();
    let config = config(&dir);
    let store = open(&config);
    let writer = store.writer();
    let mut size = 0;
    for round in 0..300_u32 {
        let ticket = writer.submit(&mut put(Table::Retained, b"topic", &[round as u8; 8192])).unwrap();
        assert!(store.durable().wait(ticket, LONG));
        // Each read opens the snapshot of its commit; none of them may be kept.
        assert_eq!(read(&store, Table::Retained, b"topic").unwrap()[0], round as u8);
        if round == 100 {
            size = std::fs::metadata(&config.path).unwrap().len();
        }
    }
    assert_eq!(std::fs::metadata(&config.path).unwrap().len(), size, "the file does not grow");
}

#[derive(Debug, Clone)]
enum Op {
    Put(u8, Vec<u8>, Vec<u8>),
    Remove(u8, Vec<u8>),
    RemovePrefix(u8, Vec<u8>),
    /// Ends the submission.
    Submit,
    /// Closes the database and opens it again.
    Reopen,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let table = 4..8_u8;
    // Few and short, so that they meet.
    let key = || prop::collection::vec(prop::sample::select(vec![0_u8, 1, b'a', 254, 255]), 0..4);
    prop::collection::vec(
        prop_oneof![
            5 => (table.clone(), key(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(t, k, v)| Op::Put(t, k, v)),
            2 => (table.clone(), key()).prop_map(|(t, k)| Op::Remove(t, k)),
            1 => (table, key()).prop_map(|(t, k)| Op::RemovePrefix(t, k)),
            3 => Just(Op::Submit),
            1 => Just(Op::Reopen),
        ],
        0..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn it_does_what_maps_do(ops in ops()) {
        let dir = TempDir::new().unwrap();
        let config = config(&dir);
        let mut store = open(&config);
        let mut model: BTreeMap<u8, BTreeMap<Vec<u8>, Vec<u8>>> = BTreeMap::new();
        let mut changes = Changes::new();
        for op in ops.into_iter().chain([Op::Submit, Op::Reopen]) {
            match op {
                Op::Put(table, key, value) => {
                    changes.put(Table::ALL[table as usize], &key, &value);
                    model.entry(table).or_default().insert(key, value);
                }
                Op::Remove(table, key) => {
                    changes.remove(Table::ALL[table as usize], &key);
                    model.entry(table).or_default().remove(&key);
                }
                Op::RemovePrefix(table, prefix) => {
                    changes.remove_prefix(Table::ALL[table as usize], &prefix);
                    model.entry(table).or_default().retain(|key, _| !key.starts_with(&prefix));
                }
                Op::Submit => {
                    let ticket = store.writer().submit(&mut changes).unwrap();
                    prop_assert!(store.durable().wait(ticket, LONG));
                    for (table, expected) in &model {
                        let found = all(&store, Table::ALL[*table as usize], b"");
                        prop_assert_eq!(found, expected.clone().into_iter().collect::<Vec<_>>());
                    }
                }
                Op::Reopen => {
                    store.writer().submit(&mut changes).unwrap();
                    drop(store);
                    store = open(&config);
                    for (table, expected) in &model {
                        for (key, value) in expected {
                            let found = read(&store, Table::ALL[*table as usize], key);
                            prop_assert_eq!(found.as_ref(), Some(value));
                        }
                    }
                }
            }
        }
    }
}
