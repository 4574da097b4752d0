//! When the messages of an open-loop run are due.
//!
//! The k-th message has a due time that depends on k alone, never on how the server did with those before it. Latency counts
//! from that time. A generator that waits for a slow answer before it sends the next message, and counts from when it sent,
//! leaves out of its numbers just those messages that would have waited (coordinated omission).
//!
//! Due times are rounded up to a tick, so that messages leave in batches and not with a system call each: the arrivals at the
//! server are bursts of `rate × tick`.

use crate::clock::SECOND;

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
}
