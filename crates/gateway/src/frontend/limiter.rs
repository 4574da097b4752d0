//! Bounds how often an address may be told that it is unknown.
//!
//! Whoever asks without a valid name costs an answer; a thousand answers a second help nobody but an attacker who spoofs the
//! address. A token bucket a slot, the slot found by a keyed hash of the address: a fixed amount of memory however many addresses
//! come, and two addresses in one slot share its allowance.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

/// Slots of a worker: 64 KiB, and a hundred noisy addresses rarely meet.
const SLOTS: usize = 4096;

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Limiter {
    per_second: u32,
    start: Instant,
    hasher: RandomState,
    slots: Box<[Slot]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// When `used` was last lowered, in milliseconds since the limiter's start.
    at: u64,
    /// Thousandths of answers given and not yet forgotten: `0 <= used <= per_second * 1000`.
    used: u64,
}

impl Limiter {
    /// Allows each address `per_second` answers a second, in bursts of as many; 0 allows all.
    pub(crate) fn new(per_second: u32, start: Instant) -> Limiter {
        Limiter { per_second, start, hasher: RandomState::new(), slots: vec![Slot::default(); SLOTS].into() }
    }

    /// Whether `address` may be answered at `now`; if so, that is counted against it.
    pub(crate) fn allows(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.per_second == 0 {
            return true;
        }
        let rate = u64::from(self.per_second);
        let now = u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        let index = self.hasher.hash_one(address) as usize % SLOTS;
        let slot = &mut self.slots[index];
        // A rate per second in thousandths is a rate per millisecond.
        slot.used = slot.used.saturating_sub(now.saturating_sub(slot.at).saturating_mul(rate));
        slot.at = slot.at.max(now);
        if slot.used + 1000 > rate * 1000 {
            return false;
        }
        slot.used += 1000;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut limiter = Limiter::new(10, start);
        let burst = (0..20).filter(|_| limiter.allows(A, start)).count();
        assert_eq!(burst, 10);
        let second_later = start + Duration::from_millis(500);
        let more = (0..20).filter(|_| limiter.allows(A, second_later)).count();
        assert_eq!(more, 5, "half a second's worth");
    }

    #[test]
    fn one_address_does_not_use_up_what_others_may() {
        let start = Instant::now();
        let mut limiter = Limiter::new(1, start);
        let answered = (0..200u8).filter(|n| limiter.allows(Ipv4Addr::new(198, 51, 100, *n).into(), start)).count();
        assert!(answered > 150, "{answered} of 200 addresses were answered, the others share a slot");
    }

    #[test]
    fn zero_allows_all() {
        let mut limiter = Limiter::new(0, Instant::now());
        assert!((0..1000).all(|_| limiter.allows(A, Instant::now())));
    }
}
