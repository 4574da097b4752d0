//! The first stage of a run: connections or associations are set up, and what that costs is measured by itself.
//!
//! Each generator thread sets its own up, no more than a bounded number at a time, and tells a [`Part`] ([`live`]); the main one adds
//! the parts and notices when nothing moves any more ([`Lookout`]). The server is looked at before, right after, and once more when it
//! has come to rest.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::bail;
use hdrhistogram::Histogram;

use crate::clock::SECOND;
use crate::meter::histogram;
use crate::process::{self, Sample};
use crate::report::{Connect, Quantiles};
use crate::run::{Control, Observed, Signals, watch};

/// Longest time without anything being set up while something is wanted: longer than the kernel takes to repeat a SYN four times (1 + 2 +
/// 4 + 8 s), and than a DTLS client that follows RFC 7925 takes to repeat a flight (9 s); and a machine that is emulated on a busy one stands still for
/// half a minute.
const STALLED: Duration = Duration::from_secs(60);

/// Time for the server to come to rest after the last one, before its memory is looked at.
const SETTLE: Duration = Duration::from_millis(1_500);

/// What a thread tells when it is done.
pub(crate) type SetUp = anyhow::Result<Part>;

/// The first stage of one thread, or of all.
#[derive(Debug)]
pub(crate) struct Part {
    /// Connections or associations that stood.
    pub(crate) set_up: u32,
    /// How many of them ended to make room for others.
    pub(crate) replaced: u32,
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
        Part { set_up: 0, replaced: 0, refused: 0, reason: None, first: now, last: 0, latency: histogram() }
    }

    /// One that was begun at `since` stands.
    pub(crate) fn count(&mut self, since: u64, now: u64) {
        self.set_up += 1;
        self.latency.saturating_record(now.saturating_sub(since) / 1_000);
        self.last = now;
    }

    pub(crate) fn add(&mut self, other: &Part) {
        self.set_up += other.set_up;
        self.replaced += other.replaced;
        self.refused += other.refused;
        self.reason = self.reason.take().or_else(|| other.reason.clone());
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        // All have the same bounds.
        let _ = self.latency.add(&other.latency);
    }

    /// What the report says of it.
    pub(crate) fn report(&self, before: Option<Sample>, after: Option<Sample>, settled: Option<Sample>) -> Connect {
        let seconds = self.last.saturating_sub(self.first).max(1) as f64 / SECOND as f64;
        let (each, open) = (f64::from(self.set_up), f64::from((self.set_up - self.replaced).max(1)));
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
            server_rss_each: before.zip(settled).map(|(before, after)| (after.rss as f64 - before.rss as f64) / open),
        }
    }
}

/// The devices of one generator thread.
pub(crate) trait Devices {
    /// What is left of them at the end.
    type Remains;

    /// Sets them up.
    fn set_up(&mut self, control: &Control) -> SetUp;

    /// Runs them to the end.
    fn run(self, control: &Control) -> anyhow::Result<Self::Remains>;
}

/// Both stages of one thread, whose devices belong to a group. `None` if there is no second one.
pub(crate) fn live<D: Devices>(
    devices: anyhow::Result<D>,
    group: usize,
    tell: mpsc::Sender<(usize, SetUp)>,
    control: &Control,
) -> Option<anyhow::Result<D::Remains>> {
    let (devices, set_up) = match devices {
        Ok(mut devices) => {
            let set_up = devices.set_up(control);
            (set_up.is_ok().then_some(devices), set_up)
        }
        Err(error) => (None, Err(error)),
    };
    // Nobody listens if another thread failed before.
    tell.send((group, set_up)).ok()?;
    drop(tell);
    let devices = devices?;
    control.go_ahead().then(|| devices.run(control))
}

/// What is looked at besides the generator threads.
pub(crate) struct Lookout<'a> {
    control: &'a Control,
    signals: &'a Signals,
    server: Option<u32>,
    quiet: bool,
    /// The server before anything was set up.
    before: Option<Sample>,
}

/// What was seen in both stages.
pub(crate) struct Seen {
    /// The first stage of each group.
    pub(crate) stages: Vec<Part>,
    pub(crate) observed: Observed,
    /// The server before the first stage, right after it, and at rest.
    server: [Option<Sample>; 3],
}

impl Seen {
    /// What the report says of a part of the first stage, and of the server in it.
    pub(crate) fn report(&self, part: &Part) -> Connect {
        let [before, after, settled] = self.server;
        part.report(before, after, settled)
    }

    /// The server's memory before anything was set up.
    pub(crate) fn idle_rss(&self) -> Option<u64> {
        self.server[0].map(|sample| sample.rss)
    }
}

/// A run that ended in its first stage.
pub(crate) struct NotBegun {
    /// Why.
    pub(crate) why: anyhow::Error,
    /// What its threads told until then.
    pub(crate) stages: Vec<Part>,
    /// Connections or associations that stood, those of threads that told nothing included.
    pub(crate) set_up: u32,
}

impl From<NotBegun> for anyhow::Error {
    fn from(not_begun: NotBegun) -> anyhow::Error {
        not_begun.why
    }
}

impl<'a> Lookout<'a> {
    /// To be called before anything is set up.
    pub(crate) fn new(control: &'a Control, signals: &'a Signals, server: Option<u32>, quiet: bool) -> Lookout<'a> {
        let before = server.and_then(|pid| process::sample(pid).ok());
        Lookout { control, signals, server, quiet, before }
    }

    /// Waits for the first stage of `threads` threads, which want `wanted` connections in all; lets them into the second if `accept`
    /// does; and watches it to its end.
    pub(crate) fn watch(
        &self,
        told: &mpsc::Receiver<(usize, SetUp)>,
        (threads, groups): (usize, usize),
        wanted: u32,
        accept: impl FnOnce(&[Part]) -> anyhow::Result<()>,
    ) -> Result<Seen, NotBegun> {
        let Lookout { control, signals, server, quiet, before } = *self;
        let sample = || server.and_then(|pid| process::sample(pid).ok());
        let mut stages: Vec<Part> = (0..groups).map(|_| Part::begin(u64::MAX)).collect();
        if let Err(why) =
            await_all(told, threads, &mut stages, wanted, control, signals, quiet).and_then(|()| accept(&stages))
        {
            control.call_off();
            return Err(NotBegun { why, stages, set_up: control.connected() });
        }
        let after = sample();
        if wanted > 0 {
            std::thread::sleep(SETTLE);
        }
        let settled = sample();
        control.let_go();
        let observed = watch(control, signals, server, quiet);
        Ok(Seen { stages, observed, server: [before, after, settled] })
    }
}

/// Waits for the parts of `threads` threads, adds each to the stage of its group, and sees whether they get on towards `wanted` in all.
fn await_all(
    told: &mpsc::Receiver<(usize, SetUp)>,
    threads: usize,
    stages: &mut [Part],
    wanted: u32,
    control: &Control,
    signals: &Signals,
    quiet: bool,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut heard = 0;
    let (mut last_count, mut last_moved) = (0, Instant::now());
    let mut last_line = started;
    while heard < threads {
        match told.recv_timeout(Duration::from_millis(100)) {
            Ok((group, part)) => {
                stages[group].add(&part?);
                heard += 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("a generator thread ended early"),
        }
        let count = control.connected();
        if signals.came() {
            bail!("a signal ended the run before it began: {count} of {wanted} were connected");
        }
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_that_of_those_who_stayed() {
        let part = Part { set_up: 20, replaced: 17, ..Part::begin(0) };
        let sample = |rss, cpu_millis| Some(Sample { rss, cpu_millis, ..Sample::default() });
        let report = part.report(sample(1_000, 0), sample(0, 1), sample(1_300, 0));
        assert_eq!((report.connections, report.server_rss_each), (20, Some(100.0)));
        assert_eq!(report.server_cpu_micros_each, Some(50.0), "all took their time");
    }
}
