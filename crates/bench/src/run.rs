//! What all generators share: the parts of a run, its threads and the one that watches them.
//!
//! A run has a warm-up (with the ramp), which is left out of the numbers; a measured part; and a drain, in which nothing new
//! is sent and the answers to what was sent are awaited. Generator threads own their devices, sockets and counts. They tell the
//! watching thread a few sums through atomics, once a loop, and lend it their interval histogram once a second. The watching
//! thread prints the progress line, looks at the server's process when the measured part begins and ends, and passes a signal
//! on.

use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Barrier, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use crate::clock::{Clock, SECOND};
use crate::live::Live;
use crate::meter::{Meter, histogram};
use crate::process::{self, KernelSockets, Sample};

/// How a run is driven.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Drive {
    /// Messages are due at a rate, whatever the server does (open loop).
    Rate(f64),
    /// So many messages are in flight at a time (closed loop); each counts from when it was sent.
    Window(usize),
}

/// When a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// After so long, from the end of the warm-up.
    Elapsed(Duration),
    /// After so many messages.
    Messages(u64),
}

/// The parts of a run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What is sent when.
    pub drive: Drive,
    /// The rate or window rises from nothing in this time. It is part of the warm-up.
    pub ramp: Duration,
    /// Left out of the numbers, from the start; at least the ramp.
    pub warm_up: Duration,
    /// When it ends.
    pub until: Until,
    /// Longest wait for outstanding answers at the end.
    pub drain: Duration,
}

impl Plan {
    /// Nothing is sent.
    pub(crate) fn idle() -> Plan {
        let zero = Duration::ZERO;
        Plan { drive: Drive::Window(1), ramp: zero, warm_up: zero, until: Until::Messages(0), drain: zero }
    }

    /// The measured part, on a clock that started with the run. Open-ended if messages are counted.
    #[must_use]
    pub fn measured(&self) -> Range<u64> {
        let from = self.warm_up.max(self.ramp).as_nanos() as u64;
        match self.until {
            Until::Elapsed(duration) => from..from + duration.as_nanos() as u64,
            Until::Messages(_) => from..u64::MAX,
        }
    }
}

/// Where a generator thread is in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// It sends.
    Sending,
    /// It awaits answers.
    Draining,
    /// It is done.
    Done,
}

/// What a generator thread tells the watching one.
#[derive(Debug)]
#[repr(align(128))]
pub struct Shared {
    acked: AtomicU64,
    messages: AtomicU64,
    failed: AtomicU64,
    in_flight: AtomicU64,
    phase: AtomicU8,
    interval: Mutex<Interval>,
}

#[derive(Debug)]
struct Interval {
    latency: Histogram<u64>,
    /// When the thread last lent its histogram.
    at: u64,
}

/// The run, as its threads see it.
#[derive(Debug)]
pub struct Control {
    /// Started with the first stage.
    pub(crate) first_clock: Clock,
    clock: OnceLock<Clock>,
    /// Threads that are ready, and the watching one.
    ready: Barrier,
    /// The parts of the run.
    pub plan: Plan,
    /// Signals that asked to stop.
    stops: AtomicU8,
    wake: EventFd,
    shards: Vec<Shared>,
    /// Threads that belong together, with a name.
    pub(crate) groups: Vec<(String, Range<usize>)>,
    stage: Mutex<Stage>,
    stage_ended: Condvar,
    connected: AtomicU32,
}

/// Runs that first set connections up do so in a stage of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    First,
    Second,
    Off,
}

impl Control {
    /// A run of `threads` generator threads, each of which must call [`Control::ready`], while another calls [`watch`].
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn new(plan: Plan, threads: usize) -> anyhow::Result<Control> {
        Control::grouped(plan, threads, Vec::new())
    }

    /// The same, with threads in groups that are shown by themselves.
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn grouped(plan: Plan, threads: usize, groups: Vec<(String, Range<usize>)>) -> anyhow::Result<Control> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
            .context("cannot make an event descriptor")?;
        let shard = || Shared {
            acked: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            phase: AtomicU8::new(Phase::Sending as u8),
            interval: Mutex::new(Interval { latency: histogram(), at: 0 }),
        };
        Ok(Control {
            first_clock: Clock::start(),
            clock: OnceLock::new(),
            ready: Barrier::new(threads + 1),
            plan,
            stops: AtomicU8::new(0),
            wake,
            shards: std::iter::repeat_with(shard).take(threads).collect(),
            groups,
            stage: Mutex::new(Stage::First),
            stage_ended: Condvar::new(),
            connected: AtomicU32::new(0),
        })
    }

    /// A thread of a first stage waits for the second; false if there is none.
    pub(crate) fn go_ahead(&self) -> bool {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        while *stage == Stage::First {
            stage = self.stage_ended.wait(stage).unwrap_or_else(PoisonError::into_inner);
        }
        *stage == Stage::Second
    }

    /// Lets the threads into the second stage.
    pub(crate) fn let_go(&self) {
        self.end_stage(Stage::Second);
    }

    /// Ends the threads after the first stage.
    pub(crate) fn call_off(&self) {
        self.stops.store(2, Relaxed);
        self.end_stage(Stage::Off);
    }

    fn end_stage(&self, stage: Stage) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        self.stage_ended.notify_all();
    }

    /// A thread of a first stage counts a connection.
    pub(crate) fn count_connected(&self) {
        self.connected.fetch_add(1, Relaxed);
    }

    /// Connections of all threads.
    pub(crate) fn connected(&self) -> u32 {
        self.connected.load(Relaxed)
    }

    /// A generator thread has made its devices. Waits until all have, and gives the clock, which starts then.
    pub fn ready(&self) -> Clock {
        self.ready.wait();
        self.ready.wait();
        self.clock()
    }

    fn clock(&self) -> Clock {
        *self.clock.get_or_init(Clock::start)
    }

    /// Whether a signal asked to stop sending.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stops.load(Relaxed) > 0
    }

    /// Whether a second signal asked not to wait for outstanding answers.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.stops.load(Relaxed) > 1
    }

    /// A thread tells where it is. Cheap enough for every loop.
    pub fn publish(&self, shard: usize, meter: &mut Meter, in_flight: usize, now: u64) {
        let shared = &self.shards[shard];
        let counts = &meter.counts;
        // A message without an answer to wait for counts as done when it is sent.
        shared.acked.store(counts.acked + counts.unconfirmed, Relaxed);
        shared.messages.store(counts.messages, Relaxed);
        shared.failed.store(counts.refusals() + counts.timed_out + counts.lost, Relaxed);
        shared.in_flight.store(in_flight as u64, Relaxed);
        if let Ok(mut interval) = shared.interval.try_lock()
            && now >= interval.at + SECOND / 4
        {
            interval.at = now;
            // Both have the same bounds.
            let _ = interval.latency.add(&meter.interval);
            meter.interval.reset();
        }
    }

    /// A thread enters a phase.
    pub fn enter(&self, shard: usize, phase: Phase) {
        self.shards[shard].phase.store(phase as u8, Relaxed);
        // The counter cannot overflow: three writes a thread.
        let _ = self.wake.write(1);
    }

    fn sum(&self, value: impl Fn(&Shared) -> &AtomicU64) -> u64 {
        self.shards.iter().map(|shard| value(shard).load(Relaxed)).sum()
    }

    pub(crate) fn all_reached(&self, phase: Phase) -> bool {
        self.shards.iter().all(|shard| shard.phase.load(Relaxed) >= phase as u8)
    }
}

/// Sums and processor time at a moment of the run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Moment {
    /// Nanoseconds of the run's clock.
    pub at: u64,
    /// Messages acknowledged so far.
    pub acked: u64,
    /// Messages sent so far.
    pub messages: u64,
    /// The server's process, if it is watched and was alive.
    pub server: Option<Sample>,
    /// Processor time of the generator.
    pub own_cpu_millis: u64,
    /// What the kernel keeps for sockets, if the server is watched.
    pub sockets: Option<KernelSockets>,
}

/// One second of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since the start of the run.
    pub at: f64,
    /// Messages sent in it, per second.
    pub messages_per_second: f64,
    /// Messages acknowledged in it, per second.
    pub acks_per_second: f64,
    /// Messages refused, lost or given up in it.
    pub failed: u64,
    /// Messages in flight at its end.
    pub in_flight: u64,
    /// Median latency in it, in microseconds.
    pub p50_micros: u64,
    /// 99th percentile of latency in it, in microseconds.
    pub p99_micros: u64,
    /// Processors that the server kept busy in it.
    pub server_cores: Option<f64>,
    /// The server's resident memory at its end, in bytes.
    pub server_rss: Option<u64>,
    /// The populations of a scenario, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub populations: Vec<PopulationSecond>,
}

impl Second {
    /// Adds the same second of another process; of latencies, the longer one.
    pub(crate) fn add(&mut self, other: &Second) {
        self.messages_per_second += other.messages_per_second;
        self.acks_per_second += other.acks_per_second;
        self.failed += other.failed;
        self.in_flight += other.in_flight;
        self.p50_micros = self.p50_micros.max(other.p50_micros);
        self.p99_micros = self.p99_micros.max(other.p99_micros);
        for (one, two) in self.populations.iter_mut().zip(&other.populations) {
            one.acked += two.acked;
            one.failed += two.failed;
            one.p99_micros = one.p99_micros.max(two.p99_micros);
        }
    }
}

/// One second of one population.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PopulationSecond {
    /// Messages acknowledged since the start of the run.
    pub acked: u64,
    /// Messages refused, lost or given up since the start of the run.
    pub failed: u64,
    /// 99th percentile of latency in the second, in microseconds.
    pub p99_micros: u64,
}

/// What the watching thread saw.
#[derive(Debug)]
pub struct Observed {
    /// Start of the measured part.
    pub begin: Moment,
    /// End of the measured part.
    pub end: Moment,
    /// The seconds of the run.
    pub timeline: Vec<Second>,
    /// A signal ended the run early.
    pub interrupted: bool,
}

/// SIGINT and SIGTERM of this process, as a descriptor. Made before any thread is started, which inherit the mask.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    ///
    /// The process has too many open files.
    pub fn take() -> anyhow::Result<Signals> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGINT);
        set.add(Signal::SIGTERM);
        set.thread_block().context("cannot block signals")?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .context("cannot make a signal descriptor")?;
        Ok(Signals(fd))
    }

    /// Whether one has come since it was last asked.
    pub(crate) fn came(&self) -> bool {
        matches!(self.0.read_signal(), Ok(Some(_)))
    }

    /// Waits until something can be read from a descriptor; false if a signal came first.
    pub(crate) fn wait_for(&self, fd: &impl AsFd) -> bool {
        loop {
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN), PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            // An error here (EINTR) is a wake-up like any other.
            let _ = ppoll(&mut fds, None, None);
            if self.came() {
                return false;
            }
            if fds[0].any() == Some(true) {
                return true;
            }
        }
    }
}

/// Starts a run once its threads are ready, and watches it until all of its threads are done.
pub fn watch(control: &Control, signals: &Signals, server: Option<u32>, quiet: bool) -> Observed {
    control.ready.wait();
    let clock = control.clock();
    control.ready.wait();
    let measured = control.plan.measured();
    let moment = || Moment {
        at: clock.now(),
        acked: control.sum(|s| &s.acked),
        messages: control.sum(|s| &s.messages),
        server: server.and_then(|pid| process::sample(pid).ok()),
        own_cpu_millis: process::own_cpu_millis(),
        sockets: server.map(|_| process::kernel_sockets()),
    };
    let mut observed =
        Observed { begin: Moment::default(), end: Moment::default(), timeline: Vec::new(), interrupted: false };
    let (mut begun, mut ended) = (false, false);
    let mut last = moment();
    let mut last_failed = 0;
    let mut next_line = SECOND;
    let mut live = Live::new();
    loop {
        let now = clock.now();
        if !begun && now >= measured.start {
            observed.begin = moment();
            begun = true;
        }
        if !ended && (now >= measured.end || control.all_reached(Phase::Draining)) {
            observed.end = moment();
            ended = true;
        }
        let done = control.all_reached(Phase::Done);
        if now >= next_line || done && last.at + SECOND / 10 < now {
            let here = moment();
            let failed = control.sum(|s| &s.failed);
            let second = second(control, &last, &here, failed - last_failed);
            if !quiet {
                live.show(control, &second, now, server.is_some());
            }
            observed.timeline.push(second);
            (last, last_failed) = (here, failed);
            next_line = (now / SECOND + 1) * SECOND;
        }
        if done {
            // A run that was stopped in its warm-up measured nothing.
            if !begun {
                observed.begin = observed.end;
            }
            return observed;
        }
        let mut until = next_line;
        if !begun {
            until = until.min(measured.start);
        }
        if !ended {
            until = until.min(measured.end);
        }
        let wait = Duration::from_nanos(until.saturating_sub(clock.now()));
        let mut fds =
            [PollFd::new(control.wake.as_fd(), PollFlags::POLLIN), PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
        // An error here (EINTR) is a wake-up like any other.
        let _ = ppoll(&mut fds, Some(TimeSpec::from(wait)), None);
        let _ = control.wake.read();
        if signals.came() {
            observed.interrupted = true;
            control.stops.fetch_add(1, Relaxed);
        }
    }
}

fn second(control: &Control, last: &Moment, here: &Moment, failed: u64) -> Second {
    let seconds = (here.at - last.at).max(1) as f64 / SECOND as f64;
    let mut latency = histogram();
    let mut populations = Vec::new();
    let take = |shards: &[Shared]| {
        let mut part = histogram();
        for shard in shards {
            if let Ok(mut interval) = shard.interval.lock() {
                let _ = part.add(&interval.latency);
                interval.latency.reset();
            }
        }
        part
    };
    for (_, shards) in &control.groups {
        let shards = &control.shards[shards.clone()];
        let part = take(shards);
        populations.push(PopulationSecond {
            acked: shards.iter().map(|shard| shard.acked.load(Relaxed)).sum(),
            failed: shards.iter().map(|shard| shard.failed.load(Relaxed)).sum(),
            p99_micros: part.value_at_quantile(0.99),
        });
        let _ = latency.add(&part);
    }
    if control.groups.is_empty() {
        latency = take(&control.shards);
    }
    let server_cores = last
        .server
        .zip(here.server)
        .map(|(last, here)| here.cpu_millis.saturating_sub(last.cpu_millis) as f64 / 1_000.0 / seconds);
    Second {
        at: here.at as f64 / SECOND as f64,
        messages_per_second: (here.messages - last.messages) as f64 / seconds,
        acks_per_second: (here.acked - last.acked) as f64 / seconds,
        failed,
        in_flight: control.sum(|s| &s.in_flight),
        p50_micros: latency.value_at_quantile(0.5),
        p99_micros: latency.value_at_quantile(0.99),
        server_cores,
        server_rss: here.server.map(|server| server.rss),
        populations,
    }
}

/// A number that no other run has, near enough.
pub(crate) fn new_id() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hash keys are the random numbers it offers.
    RandomState::new().hash_one(std::process::id())
}

/// A time in microseconds, for people.
#[must_use]
pub fn micros(value: u64) -> String {
    match value {
        0..10_000 => format!("{value} µs"),
        10_000..10_000_000 => format!("{:.1} ms", value as f64 / 1e3),
        _ => format!("{:.1} s", value as f64 / 1e6),
    }
}
