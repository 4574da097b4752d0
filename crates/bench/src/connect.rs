//! The first stage of a run: connections or associations are set up, and what that costs is measured by itself.
//!
//! Each generator thread sets its own up, no more than a bounded number at a time, and tells a [`Part`]; [`await_all`] adds the parts and
//! notices when nothing moves any more. The server is looked at before, right after, and once more when it has come to rest.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::bail;
use hdrhistogram::Histogram;

use crate::clock::SECOND;
use crate::meter::histogram;
use crate::process::Sample;
use crate::report::{Connect, Quantiles};
use crate::run::Control;

/// Longest time without anything being set up while something is wanted: longer than the kernel takes to repeat a SYN four times (1 + 2 +
/// 4 + 8 s), and than a DTLS client that follows RFC 7925 takes to repeat a flight (9 s).
const STALLED: Duration = Duration::from_secs(30);

/// Time for the server to come to rest after the last one, before its memory is looked at.
pub(crate) const SETTLE: Duration = Duration::from_millis(1_500);

/// What a thread tells when it is done.
pub(crate) type SetUp = anyhow::Result<Part>;

/// The first stage of one thread, or of all.
#[derive(Debug)]
pub(crate) struct Part {
    /// Connections or associations that stand.
    pub(crate) set_up: u32,
    pub(crate) refused: u32,
    /// What the server said to one that it refused.
    pub(crate) reason: Option<String>,
    /// When the first was begun, in nanoseconds of a clock that all threads share.
    pub(crate) first: u64,
    /// When the last one stood.
    pub(crate) last: u64,
    pub(crate) latency: Histogram<u64>,
}

impl Part {
    pub(crate) fn begin(now: u64) -> Part {
        Part { set_up: 0, refused: 0, reason: None, first: now, last: 0, latency: histogram() }
    }

    /// One that was begun at `since` stands.
    pub(crate) fn count(&mut self, since: u64, now: u64) {
        self.set_up += 1;
        self.latency.saturating_record(now.saturating_sub(since) / 1_000);
        self.last = now;
    }

    pub(crate) fn add(&mut self, other: Part) {
        self.set_up += other.set_up;
        self.refused += other.refused;
        self.reason = self.reason.take().or(other.reason);
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        // All have the same bounds.
        let _ = self.latency.add(&other.latency);
    }

    /// What the report says of it.
    pub(crate) fn report(&self, before: Option<Sample>, after: Option<Sample>, settled: Option<Sample>) -> Connect {
        let seconds = self.last.saturating_sub(self.first).max(1) as f64 / SECOND as f64;
        let each = f64::from(self.set_up);
        let cpu = before.zip(after).map(|(before, after)| after.cpu_millis.saturating_sub(before.cpu_millis) as f64);
        Connect {
            connections: self.set_up,
            refused: self.refused,
            seconds,
            per_second: each / seconds,
            latency: Quantiles::from(&self.latency),
            server_cpu_micros_each: cpu.map(|millis| millis * 1_000.0 / each),
            server_rss_before: before.map(|sample| sample.rss),
            server_rss_after: settled.map(|sample| sample.rss),
            server_rss_each: before.zip(settled).map(|(before, after)| (after.rss as f64 - before.rss as f64) / each),
        }
    }
}

/// Waits for the parts of `threads` threads, which want `wanted` in all.
pub(crate) fn await_all(
    told: &mpsc::Receiver<(usize, SetUp)>,
    threads: usize,
    wanted: u32,
    control: &Control,
    quiet: bool,
) -> anyhow::Result<Part> {
    let mut stages = await_groups(told, threads, 1, wanted, control, quiet)?;
    Ok(stages.remove(0))
}

/// The same, for threads that each belong to one of some groups and say which.
pub(crate) fn await_groups(
    told: &mpsc::Receiver<(usize, SetUp)>,
    threads: usize,
    groups: usize,
    wanted: u32,
    control: &Control,
    quiet: bool,
) -> anyhow::Result<Vec<Part>> {
    let started = Instant::now();
    let mut stages: Vec<Part> = (0..groups).map(|_| Part::begin(u64::MAX)).collect();
    let mut heard = 0;
    let (mut last_count, mut last_moved) = (0, Instant::now());
    let mut last_line = started;
    while heard < threads {
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok((group, part)) => {
                stages[group].add(part?);
                heard += 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("a generator thread ended early"),
        }
        let count = control.connected();
        if count != last_count {
            (last_count, last_moved) = (count, Instant::now());
        } else if count < wanted && last_moved.elapsed() > STALLED {
            bail!(
                "the server accepted {count} of {wanted} connections and then none for {} s; is its limit of open files or connections \
                 reached?",
                STALLED.as_secs()
            );
        }
        if !quiet && wanted > 0 && last_line.elapsed() >= Duration::from_secs(1) {
            last_line = Instant::now();
            eprintln!("{:>5.0} s  {count} of {wanted} connected", started.elapsed().as_secs_f64());
        }
    }
    Ok(stages)
}
