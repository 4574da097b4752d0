//! When the messages of an open-loop run are due.
//!
//! The k-th message has a due time that depends on k alone, never on how the server did with those before it. Latency counts
//! from that time. A generator that waits for a slow answer before it sends the next message, and counts from when it sent,
//! leaves out of its numbers just those messages that would have waited (coordinated omission).
//!
//! Due times are rounded up to a tick, so that messages leave in batches and not with a system call each: the arrivals at the
//! server are bursts of `rate × tick`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::clock::SECOND;
use crate::payload::mix;
use crate::timer::{WAKES, Wheel};

/// Default distance between two bursts: at 30,000 messages/s they hold 15 each, and waking 2,000 times a second costs the generator 1–2 %
/// of a core.
pub const DEFAULT_TICK_MICROS: u64 = 500;

/// A rate that rises from zero in a straight line during `ramp`, then holds.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Messages per second, > 0.
    rate: f64,
    ramp_seconds: f64,
    tick: u64,
}

impl Schedule {
    /// `rate` messages per second, reached after `ramp_seconds`, in bursts every `tick_micros` (0: no rounding).
    #[must_use]
    pub fn new(rate: f64, ramp_seconds: f64, tick_micros: u64) -> Schedule {
        Schedule { rate, ramp_seconds, tick: tick_micros.max(1) * 1_000 }
    }

    /// When message `k` (from 0) is due, in nanoseconds from the start of the schedule. Never decreases with `k`.
    #[must_use]
    pub fn due(&self, k: u64) -> u64 {
        let k = k as f64;
        // The integral of the rate: r·t²/(2·ramp) within the ramp, r·(t − ramp/2) after it.
        let in_ramp = self.rate * self.ramp_seconds / 2.0;
        let seconds = if k < in_ramp {
            (2.0 * self.ramp_seconds * k / self.rate).sqrt()
        } else {
            k / self.rate + self.ramp_seconds / 2.0
        };
        ((seconds * SECOND as f64) as u64).next_multiple_of(self.tick)
    }
}

/// When each device of a population reports: once a period, at a moment of its own.
#[derive(Debug, Clone)]
pub struct Timetable {
    /// Nanoseconds between two messages of a device, at least a millisecond.
    pub period: u64,
    /// Each wait is longer or shorter than the period by up to this share of it, `0.0..1.0`.
    pub jitter: f64,
    /// All devices report at the same time, once a period, spread over so many nanoseconds; stages do not apply then.
    pub aligned: Option<u64>,
    /// Devices are switched on one after another in this time, in nanoseconds.
    pub ramp: u64,
    /// How much of the load there is until when: the end of each stage in nanoseconds, ascending, and a factor. After the last it is 1.
    pub stages: Arc<[(u64, f64)]>,
    /// Devices of the population, in all processes.
    pub devices: u32,
    /// Makes one run differ from another.
    pub seed: u64,
}

/// A number from 0 to 1 that depends on `x` alone.
pub(crate) fn unit(x: u64) -> f64 {
    (mix(x) >> 11) as f64 / (1u64 << 53) as f64
}

impl Timetable {
    /// When a device reports first.
    #[must_use]
    pub fn first(&self, device: u32) -> u64 {
        let draw = unit(self.seed ^ u64::from(device));
        match self.aligned {
            Some(spread) => self.ramp + (spread as f64 * draw) as u64,
            None => {
                let switched_on = self.ramp as f64 * f64::from(device) / f64::from(self.devices.max(1));
                self.after_silence((switched_on + self.period as f64 * draw) as u64)
            }
        }
    }

    /// When a device reports next that reported at `due`.
    #[must_use]
    pub fn next(&self, device: u32, due: u64) -> u64 {
        if let Some(spread) = self.aligned {
            let round = due.saturating_sub(self.ramp) / self.period + 1;
            let draw = unit(self.seed ^ u64::from(device) ^ round << 32);
            return self.ramp + round * self.period + (spread as f64 * draw) as u64;
        }
        let draw = unit(self.seed ^ u64::from(device) ^ due.rotate_left(20));
        let wait = self.period as f64 / self.load(due) * (1.0 + self.jitter * (2.0 * draw - 1.0));
        self.after_silence(due + (wait as u64).max(1))
    }

    fn load(&self, at: u64) -> f64 {
        self.stages.iter().find(|(end, _)| at < *end).map_or(1.0, |(_, load)| *load)
    }

    /// The same moment, or the end of the stages without any load that it falls into.
    fn after_silence(&self, mut at: u64) -> u64 {
        for &(end, load) in self.stages.iter() {
            if end > at && load > 0.0 {
                break;
            }
            at = at.max(end);
        }
        at
    }
}

/// The timetable of one thread's devices, turned into messages that are due.
///
/// Times are rounded up to a millisecond, so that messages leave in batches.
#[derive(Debug)]
pub(crate) struct Calendar {
    table: Timetable,
    /// Index in the population of device 0 of the thread.
    first: u32,
    wheel: Wheel,
    /// Devices that are due, of which `ready[..taken]` were taken.
    ready: Vec<u32>,
    taken: usize,
    /// Messages that are due while their device still waits for the answer to an earlier one.
    backlog: HashMap<u32, VecDeque<u64>>,
}

impl Calendar {
    pub(crate) const BYTES_PER_DEVICE: usize = Wheel::BYTES_PER_DEVICE;

    pub(crate) fn new(table: Timetable, first: u32, devices: usize) -> Calendar {
        let mut wheel = Wheel::geared(WAKES, devices);
        for i in 0..devices as u32 {
            wheel.set(i, table.first(first + i).div_ceil(1_000_000));
        }
        Calendar { table, first, wheel, ready: Vec::new(), taken: 0, backlog: HashMap::new() }
    }

    /// The next message that is due: its device and when.
    pub(crate) fn poll(&mut self, now: u64) -> Option<(usize, u64)> {
        if self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
            self.wheel.advance(now / 1_000_000, &mut self.ready);
        }
        let i = *self.ready.get(self.taken)?;
        self.taken += 1;
        let due = self.wheel.deadline(i) * 1_000_000;
        self.wheel.set(i, self.table.next(self.first + i, due).div_ceil(1_000_000));
        Some((i as usize, due))
    }

    /// When [`Calendar::poll`] may have something next; `until` if not before.
    pub(crate) fn next(&self, until: u64) -> u64 {
        if self.taken < self.ready.len() { 0 } else { (self.wheel.next(until / 1_000_000) * 1_000_000).min(until) }
    }

    /// A message that must wait.
    pub(crate) fn defer(&mut self, i: usize, due: u64) {
        self.backlog.entry(i as u32).or_default().push_back(due);
    }

    /// When the first message of a device was due that waits.
    pub(crate) fn deferred(&mut self, i: usize) -> Option<u64> {
        let waiting = self.backlog.get_mut(&(i as u32))?;
        let due = waiting.pop_front();
        if waiting.is_empty() {
            self.backlog.remove(&(i as u32));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_spread_evenly_in_ticks() {
        let schedule = Schedule::new(30_000.0, 0.0, 500);
        assert_eq!(schedule.due(0), 0);
        let mut last = 0;
        let mut bursts = std::collections::BTreeMap::<u64, u32>::new();
        for k in 0..30_000 {
            let due = schedule.due(k);
            assert!(due >= last && due.is_multiple_of(500_000));
            let exact = k as f64 / 30_000.0 * SECOND as f64;
            assert!((due as f64 - exact) < 500_000.0 + 1.0 && due as f64 >= exact - 1.0);
            *bursts.entry(due).or_default() += 1;
            last = due;
        }
        assert!(bursts.values().all(|&n| n <= 16));
    }

    #[test]
    fn a_ramp_sends_half_of_its_time_s_worth() {
        let schedule = Schedule::new(1_000.0, 10.0, 1);
        // In a ramp of 10 s to 1,000/s lie 5,000 messages; a quarter of them in its first half.
        assert_eq!(schedule.due(1_250).div_ceil(1_000_000), 5_000);
        assert_eq!(schedule.due(5_000), 10 * SECOND);
        assert_eq!(schedule.due(6_000), 11 * SECOND);
        let mut last = 0;
        for k in 0..20_000 {
            assert!(schedule.due(k) >= last);
            last = schedule.due(k);
        }
    }

    fn table(period: u64) -> Timetable {
        Timetable { period, jitter: 0.0, aligned: None, ramp: 0, stages: Arc::new([]), devices: 1_000, seed: 7 }
    }

    /// Messages of a thread's devices until a time, by device.
    fn until(table: &Timetable, end: u64) -> Vec<Vec<u64>> {
        let mut calendar = Calendar::new(table.clone(), 0, table.devices as usize);
        let mut dues = vec![Vec::new(); table.devices as usize];
        for now in (0..=end).step_by(3_000_000) {
            while let Some((i, due)) = calendar.poll(now) {
                assert!(due <= now && now - due < 3_000_000 + 1_000_000, "due {due} at {now}");
                dues[i].push(due);
            }
        }
        dues
    }

    #[test]
    fn each_device_reports_once_a_period_at_a_moment_of_its_own() {
        let table = Timetable { jitter: 0.2, ..table(10 * SECOND) };
        let dues = until(&table, 100 * SECOND);
        for device in &dues {
            assert!((8..=12).contains(&device.len()), "{device:?}");
            assert!(
                device
                    .windows(2)
                    .all(|pair| (8 * SECOND - 1_000_000..=12 * SECOND + 1_000_000).contains(&(pair[1] - pair[0])))
            );
        }
        // They are spread: no tenth of the period has more than a fifth of the first messages.
        for tenth in 0..10 {
            let in_tenth = dues.iter().filter(|device| device[0] / SECOND == tenth).count();
            assert!((50..200).contains(&in_tenth), "{in_tenth} in {tenth}");
        }
    }

    #[test]
    fn aligned_devices_report_together_after_the_ramp() {
        let table = Timetable { aligned: Some(SECOND), ramp: 2 * SECOND, ..table(20 * SECOND) };
        for device in until(&table, 60 * SECOND) {
            assert_eq!(device.len(), 3, "{device:?}");
            for (round, due) in device.iter().enumerate() {
                let from = 2 * SECOND + round as u64 * 20 * SECOND;
                assert!((from..=from + SECOND + 1_000_000).contains(due));
            }
        }
    }

    #[test]
    fn stages_scale_the_load_and_zero_is_silence() {
        let stages: Arc<[(u64, f64)]> = Arc::new([(20 * SECOND, 1.0), (40 * SECOND, 4.0), (60 * SECOND, 0.0)]);
        let dues = until(&Timetable { stages, ..table(4 * SECOND) }, 80 * SECOND);
        let within = |from: u64, to: u64| {
            dues.iter().flatten().filter(|due| (from * SECOND..to * SECOND).contains(*due)).count() as f64
        };
        assert!((within(0, 20) / 5_000.0 - 1.0).abs() < 0.2, "{}", within(0, 20));
        assert!((within(20, 40) / 20_000.0 - 1.0).abs() < 0.2, "{}", within(20, 40));
        assert_eq!(within(41, 60), 0.0);
        assert!(within(60, 80) > 3_000.0);
    }
}
