//! The log beside the disk it stands on: `cargo bench -p tidegate-benches --bench log [-- DIR]`.
//!
//! Appends and commits records of 128 encoded bytes in batches of a thousand, as fast as they are accepted; reads them back and
//! compares each; opens the log again and so scans it; does the same in a log that recycles its segments; then writes the same bytes in
//! pieces of the average commit with nothing but `pwrite` and `fdatasync`. CPU is that of the whole process, all threads, by `getrusage`:
//! user + system; the latter is the kernel's copying, allocating and writing, which the bare loop pays too. The files are in `DIR` (default: the target
//! directory's file system), and removed afterwards.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use prometheus::Registry;
use tidegate_record::{Protocol, Record, Seq};
use tidegate_writer::{Appender, Batch, Durable, Log, LogConfig, Refused};

const RECORDS: u64 = 8_000_000;
const BATCH: u64 = 1_000;
const ENCODED: usize = 128;
const LONG: Duration = Duration::from_secs(300);

/// User and system time of this process, in nanoseconds.
fn cpu() -> (f64, f64) {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("getrusage of oneself");
    (usage.user_time().num_microseconds() as f64 * 1e3, usage.system_time().num_microseconds() as f64 * 1e3)
}

/// Runs `work` and prints its rate and CPU by the record; returns records per second.
fn measure(what: &str, records: u64, bytes: u64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (wall, before) = (Instant::now(), cpu());
    work()?;
    let (wall, after) = (wall.elapsed().as_secs_f64(), cpu());
    let (user, system) = ((after.0 - before.0) / records as f64, (after.1 - before.1) / records as f64);
    let rate = records as f64 / wall;
    println!(
        "{what:<46} {:>7.2} M records/s {:>6.0} MB/s {:>6.0} ns CPU a record ({user:.0} + {system:.0})",
        rate / 1e6,
        bytes as f64 / wall / 1e6,
        user + system
    );
    Ok(rate)
}

fn fill(batch: &mut Batch, first: u64) -> Result<()> {
    let mut payload = [0x5A; ENCODED - 40 - 15 - 25];
    for number in first..first + BATCH {
        payload[..8].copy_from_slice(&number.to_le_bytes());
        batch.push(&Record {
            received: number,
            protocol: Protocol::Coap,
            qos: 1,
            retain: false,
            content_format: Some(60),
            device: "867997030000001",
            tenant: "",
            content_type: "",
            topic: "meters/water/cold/reading",
            key: None,
            payload: &payload,
        })?;
    }
    ensure!(batch.bytes() == ENCODED * BATCH as usize, "a record has {} bytes", batch.bytes() / BATCH as usize);
    Ok(())
}

/// Writes `total` bytes in pieces of `piece` to files of 256 MiB, each piece synced; the files exist already if `again`.
fn bare(dir: &Path, total: u64, piece: usize, again: bool) -> Result<()> {
    const FILE: u64 = 256 << 20;
    let bytes = vec![0xA5; piece];
    let mut left = total;
    let mut number = 0;
    while left > 0 {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(format!("bare-{number}")))?;
        if !again {
            fallocate(&file, FallocateFlags::empty(), 0, FILE as i64)?;
            file.sync_all()?;
        }
        let mut at = 0;
        while at + piece as u64 <= FILE && left > 0 {
            file.write_all_at(&bytes, at)?;
            file.sync_data()?;
            at += piece as u64;
            left = left.saturating_sub(piece as u64);
        }
        number += 1;
    }
    Ok(())
}

/// Appends `numbers` and waits until they are durable.
fn store(appender: &Appender, durable: &Durable, numbers: std::ops::Range<u64>) -> Result<()> {
    let mut batch = Batch::new();
    for first in numbers.clone().step_by(BATCH as usize) {
        fill(&mut batch, first)?;
        while let Err(refused) = appender.append(&mut batch) {
            ensure!(refused == Refused::Full, "{refused}");
            ensure!(durable.wait(durable.get().next(), LONG), "{:?}", durable.failure());
        }
    }
    ensure!(durable.wait(Seq(numbers.end), LONG), "{:?}", durable.failure());
    Ok(())
}

fn main() -> Result<()> {
    let dir = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let dir = match dir {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir_in(Path::new(env!("CARGO_TARGET_TMPDIR")))?,
    };
    let bytes = RECORDS * ENCODED as u64;
    let config = LogConfig { dir: dir.path().join("data"), node: "bench".into(), ..LogConfig::default() };

    let registry = Registry::new();
    let (log, _) = Log::open(config.clone(), &registry)?;
    let (appender, durable) = (log.appender(), log.durable());
    let ours =
        measure("append and commit, encoding included", RECORDS, bytes, || store(&appender, &durable, 0..RECORDS))?;
    let commits = registry
        .gather()
        .iter()
        .find(|family| family.name() == "tidegate_log_commits_total")
        .and_then(|family| family.get_metric().first().map(|m| m.get_counter().get_value()))
        .context("commits are counted")?;
    let piece = (bytes as f64 / commits).round() as usize;
    println!("{:<46} {commits:>7.0} commits of {piece} B", "");

    let mut reader = log.reader(Seq(1));
    measure("read and compare", RECORDS, bytes, || {
        let mut next = 0;
        while let Some(entry) = reader.next()? {
            let number = u64::from_le_bytes(entry.record.payload[..8].try_into()?);
            ensure!(entry.seq == Seq(next + 1) && number == next && entry.record.received == next, "record {next}");
            next += 1;
        }
        ensure!(next == RECORDS, "{next} records were read");
        Ok(())
    })?;
    let stopped = log.stop(LONG);
    ensure!(stopped.durable == Seq(RECORDS) && stopped.abandoned_records == 0, "{stopped:?}");

    let mut recovered = None;
    measure("open again: the whole scan", RECORDS, bytes, || {
        recovered = Some(Log::open(config.clone(), &Registry::new())?);
        Ok(())
    })?;
    let (log, recovered) = recovered.context("it was opened")?;
    ensure!(recovered.records == RECORDS && recovered.last == Seq(RECORDS), "{recovered:?}");
    let rate = RECORDS as f64 / recovered.took.as_secs_f64();
    println!("{:<46} {:>7.2} M records/s by Recovered::took", "", rate / 1e6);
    drop(log);
    std::fs::remove_dir_all(&config.dir)?;

    // Nothing holds a segment once it is sealed, so after the first few each is written over an earlier one.
    let (log, _) = Log::open(LogConfig { retain: Duration::ZERO, ..config.clone() }, &Registry::new())?;
    let (appender, durable) = (log.appender(), log.durable());
    store(&appender, &durable, 0..RECORDS)?;
    let recycled = measure("append and commit to recycled segments", RECORDS, bytes, || {
        store(&appender, &durable, RECORDS..2 * RECORDS)
    })?;
    let mut reader = log.reader(Seq::NONE);
    let mut last = None;
    while let Some(entry) = reader.next()? {
        last = Some((entry.seq, entry.record.received));
    }
    ensure!(last == Some((Seq(2 * RECORDS), 2 * RECORDS - 1)), "{last:?}");
    drop(log);
    std::fs::remove_dir_all(&config.dir)?;
    File::open(dir.path())?.sync_all()?;

    let fresh =
        measure("bare pwrite + fdatasync, fallocated files", RECORDS, bytes, || bare(dir.path(), bytes, piece, false))?;
    let again = measure("bare pwrite + fdatasync, the same files again", RECORDS, bytes, || {
        bare(dir.path(), bytes, piece, true)
    })?;
    println!("{:<46} {:>7.2} of the bare loop on fallocated files", "append and commit", ours / fresh);
    println!(
        "{:<46} {:>7.2} of the bare loop on the same files again",
        "append and commit to recycled segments",
        recycled / again
    );
    println!("{:<46} {:>7.2} of fallocated", "writing files again", again / fresh);
    Ok(())
}
