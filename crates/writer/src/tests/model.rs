//! Random operations, crashes at random bytes, and a model that is a list.
//!
//! The model: every number accepted, in order, and how many of them were said to be durable. After a crash the log must hold a
//! beginning of that list at least as long as what was durable, and go on from there.
//!
//! A failing seed is printed; `TIDEGATE_SEED=<seed> cargo test -p tidegate-writer model` runs that one.

use super::*;
use crate::Refused;

/// Seeds of an ordinary run; `TIDEGATE_SEEDS` sets another number.
const SEEDS: u64 = 60;
const STEPS: u64 = 60;

struct Model {
    rig: Rig,
    /// `written[i]` has the sequence number `i + 1`.
    written: Vec<u64>,
    cursor: u64,
    number: u64,
}

fn run(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut rig = Rig::new();
    rig.config.sinks = vec!["model".into()];
    rig.config.retain = if random.below(2) == 0 { Duration::ZERO } else { Duration::from_secs(60) };
    rig.config.commit_records = 1 + random.below(100) as u32;
    rig.config.commit_bytes = 500 + random.below(20_000) as usize;
    rig.config.verify_sealed = random.below(4) > 0;
    let mut model = Model { rig, written: Vec::new(), cursor: 0, number: 0 };
    let mut log = model.open();
    for _ in 0..STEPS {
        match random.below(20) {
            0..=9 => model.append(&log, &mut random),
            10..=12 => {
                let last = Seq(model.written.len() as u64);
                assert!(log.durable().wait(last, LONG));
            }
            13..=14 => model.progress(&log, &mut random),
            15 => {
                let stopped = log.stop(LONG);
                assert_eq!((stopped.durable.0, stopped.abandoned_records), (model.written.len() as u64, 0));
                log = model.open();
            }
            16 => {
                // The machine stops as it is: nothing more is written, and the open segment stays unsealed.
                model.rig.faults.down.store(true, Ordering::SeqCst);
                log = model.crash(log);
            }
            17..=18 => {
                // The machine stops in the midst of a write.
                model.rig.faults.torn_at.store(random.next() as usize, Ordering::SeqCst);
                model.rig.faults.torn_garbage.store(random.below(2) == 0, Ordering::SeqCst);
                model.rig.faults.torn_after.store(random.below(4), Ordering::SeqCst);
                for _ in 0..random.below(12) {
                    model.append(&log, &mut random);
                }
                model.rig.faults.down.store(true, Ordering::SeqCst);
                log = model.crash(log);
            }
            _ => {
                model.rig.faults.sync_fails.store(true, Ordering::SeqCst);
                model.append(&log, &mut random);
                let last = Seq(model.written.len() as u64);
                if log.durable().get() < last {
                    let _ = log.durable().wait(last, LONG);
                }
                log = model.crash(log);
            }
        }
    }
    let _ = log.stop(LONG);
    model.check();
}

impl Model {
    fn open(&mut self) -> Log {
        let (log, recovered) = self.rig.open();
        assert!(recovered.quarantined.is_empty() && recovered.gaps.is_empty(), "{recovered:?}");
        log
    }

    fn append(&mut self, log: &Log, random: &mut Random) {
        let mut batch = Batch::new();
        let count = random.below(40);
        let largest = 8 + random.below(900);
        for i in 0..count {
            push(&mut batch, self.number + i, 8 + random.below(largest) as usize);
        }
        match log.appender().append(&mut batch) {
            Ok(last) => {
                self.written.extend(self.number..self.number + count);
                self.number += count;
                assert_eq!(last.0, self.written.len() as u64);
            }
            Err(Refused::Full | Refused::Failed | Refused::Backlog) => assert_eq!(batch.len() as u64, count),
            Err(other) => panic!("{other}"),
        }
    }

    fn progress(&mut self, log: &Log, random: &mut Random) {
        let durable = log.durable().get().0;
        if log.durable().failure().is_some() || self.rig.faults.down.load(Ordering::SeqCst) || durable <= self.cursor {
            return;
        }
        let last = self.cursor + 1 + random.below(durable - self.cursor);
        let mut cursor = log.cursor("model").unwrap();
        assert_eq!(cursor.position(), Seq(self.cursor));
        cursor.set_plan(Seq(self.cursor + 1), Seq(last)).unwrap();
        cursor.advance(Seq(last)).unwrap();
        self.cursor = last;
    }

    /// Ends the log as a crash would, and starts again.
    fn crash(&mut self, log: Log) -> Log {
        let durable = log.durable();
        drop(log);
        let durable = durable.get().0;
        let faults = &self.rig.faults;
        faults.torn_after.store(u64::MAX, Ordering::SeqCst);
        faults.down.store(false, Ordering::SeqCst);
        faults.sync_fails.store(false, Ordering::SeqCst);
        let log = self.open();
        let last = log.durable().get().0;
        assert!(last >= durable, "{durable} was durable, {last} is left");
        assert!(last <= self.written.len() as u64, "more than was ever written");
        self.written.truncate(last as usize);
        self.check();
        log
    }

    /// What a reader sees is the end of the list, from no later than the cursor on.
    fn check(&self) {
        let (found, errors) = read(self.rig.dir.path());
        assert!(errors.is_empty(), "{errors:?}");
        if let Some((first, _)) = found.first_key_value() {
            assert!(*first <= self.cursor + 1, "{first} is the oldest, the cursor is at {}", self.cursor);
        } else {
            assert!(self.cursor == self.written.len() as u64, "the log is empty");
        }
        let first = found.first_key_value().map_or(self.written.len() as u64 + 1, |(first, _)| *first);
        let expected: BTreeMap<u64, u64> =
            (first..=self.written.len() as u64).map(|seq| (seq, self.written[seq as usize - 1])).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn random_operations_agree_with_a_list() {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let seeds = match from_env("TIDEGATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let begin = crate::segment::random().unwrap() >> 1;
            begin..begin + from_env("TIDEGATE_SEEDS").unwrap_or(SEEDS)
        }
    };
    for seed in seeds {
        println!("seed {seed}");
        run(seed);
    }
}
