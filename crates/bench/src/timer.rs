//! Timers of simulated devices: one each, set and cancelled once per message, and hardly ever expiring.
//!
//! A hashed wheel whose lists run through arrays by device index: setting, moving and cancelling take constant time and
//! allocate nothing, and a device costs 12 bytes. One wheel holds the timeouts of exchanges, another when devices wake.

/// Width of a slot, in milliseconds. The shortest timeout of RFC 7252 §4.8 is 2 s, so it rounds by less than half a percent.
pub const TICK_MILLIS: u64 = 8;

/// Slots of the wheel: it turns once in 65.5 s, which is beyond the longest single wait of an exchange (RFC 7252 §4.8: 3 s · 2⁴). A later
/// deadline is met after several turns.
const SLOTS: usize = 8_192;

const NONE: u32 = u32::MAX;
/// Marks a backward link as a slot's number and not a device's.
const SLOT: u32 = 1 << 31;

/// How finely a wheel turns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gear {
    tick_millis: u64,
    slots: usize,
}

/// For the timeouts of exchanges.
const TIMEOUTS: Gear = Gear { tick_millis: TICK_MILLIS, slots: SLOTS };

/// For when devices wake: to the millisecond, over two minutes a turn.
pub(crate) const WAKES: Gear = Gear { tick_millis: 1, slots: 1 << 17 };

/// One timer for each of `0..len` devices.
#[derive(Debug)]
pub struct Wheel {
    gear: Gear,
    /// First device of each slot.
    heads: Box<[u32]>,
    links: Vec<Link>,
    /// Everything due at or before this tick has expired.
    now: u64,
    running: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    /// The device before it, or `SLOT | slot` for the first of a slot, or `NONE` if the timer does not run.
    previous: u32,
    /// In ticks.
    deadline: u32,
}

impl Wheel {
    /// What a device costs.
    pub const BYTES_PER_DEVICE: usize = size_of::<Link>();

    /// No timer runs; the time is 0.
    ///
    /// # Panics
    ///
    /// If there are more than 2³¹ − 1 devices.
    #[must_use]
    pub fn new(len: usize) -> Wheel {
        Wheel::geared(TIMEOUTS, len)
    }

    /// The same, as finely as is wanted.
    pub(crate) fn geared(gear: Gear, len: usize) -> Wheel {
        assert!(len < SLOT as usize, "a device index fits 31 bits");
        Wheel {
            gear,
            heads: vec![NONE; gear.slots].into_boxed_slice(),
            links: vec![Link { next: NONE, previous: NONE, deadline: 0 }; len],
            now: 0,
            running: 0,
        }
    }

    /// Timers that run.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running
    }

    /// Sets or moves the timer of device `i` to expire at `millis` (rounded up to a tick, at least one tick ahead).
    pub fn set(&mut self, i: u32, millis: u64) {
        self.cancel(i);
        let deadline = millis.div_ceil(self.gear.tick_millis).max(self.now + 1);
        self.insert(i, deadline);
    }

    /// Stops the timer of device `i`, if it runs.
    pub fn cancel(&mut self, i: u32) {
        let Link { next, previous, .. } = self.links[i as usize];
        if previous == NONE {
            return;
        }
        if previous & SLOT == 0 {
            self.links[previous as usize].next = next;
        } else {
            self.heads[(previous & !SLOT) as usize] = next;
        }
        if next != NONE {
            self.links[next as usize].previous = previous;
        }
        self.links[i as usize].previous = NONE;
        self.running -= 1;
    }

    fn insert(&mut self, i: u32, deadline: u64) {
        let slot = deadline as usize % self.gear.slots;
        let next = std::mem::replace(&mut self.heads[slot], i);
        if next != NONE {
            self.links[next as usize].previous = i;
        }
        self.links[i as usize] = Link { next, previous: SLOT | slot as u32, deadline: deadline as u32 };
        self.running += 1;
    }

    /// Moves the time to `millis` and appends the devices whose timers expired, which run no more, to `expired`.
    pub fn advance(&mut self, millis: u64, expired: &mut Vec<u32>) {
        let target = millis / self.gear.tick_millis;
        if self.running == 0 {
            self.now = self.now.max(target);
            return;
        }
        // After a full turn every slot was seen; the deadline itself says who is due.
        let from = self.now + 1;
        let last = target.min(self.now + self.gear.slots as u64);
        for tick in from..=last {
            let mut i = self.heads[tick as usize % self.gear.slots];
            while i != NONE {
                let link = self.links[i as usize];
                if u64::from(link.deadline) <= target {
                    self.cancel(i);
                    expired.push(i);
                }
                i = link.next;
            }
        }
        self.now = self.now.max(target);
    }

    /// When the timer of device `i` was last set to expire, in milliseconds, rounded up to a tick.
    pub(crate) fn deadline(&self, i: u32) -> u64 {
        u64::from(self.links[i as usize].deadline) * self.gear.tick_millis
    }

    /// The first tick after now, and not after `until`, at which a timer may expire, in milliseconds.
    pub(crate) fn next(&self, until: u64) -> u64 {
        let ticks = (until / self.gear.tick_millis).saturating_sub(self.now).min(self.gear.slots as u64);
        let busy = (1..=ticks).find(|tick| self.heads[(self.now + tick) as usize % self.gear.slots] != NONE);
        busy.map_or(until, |tick| (self.now + tick) * self.gear.tick_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The wheel against a plain list of deadlines, with random operations.
    #[test]
    fn it_expires_what_a_list_of_deadlines_would() {
        let seed = 0x7469_6465u64;
        println!("seed {seed:#x}");
        let mut state = seed;
        let mut random = |below: u64| {
            state = crate::payload::mix(state);
            state % below
        };
        const DEVICES: u64 = 50;
        let mut wheel = Wheel::new(DEVICES as usize);
        let mut model = vec![None; DEVICES as usize];
        let mut now = 0;
        for _ in 0..50_000 {
            let i = random(DEVICES) as u32;
            match random(4) {
                0 | 1 => {
                    // Beyond a whole turn as well, and in the past.
                    let deadline = (now + random(200_000)).saturating_sub(100);
                    wheel.set(i, deadline);
                    model[i as usize] = Some(deadline.div_ceil(TICK_MILLIS).max(now / TICK_MILLIS + 1));
                }
                2 => {
                    wheel.cancel(i);
                    model[i as usize] = None;
                }
                _ => {
                    now += if random(20) == 0 { random(300_000) } else { random(500) };
                    let mut expired = Vec::new();
                    wheel.advance(now, &mut expired);
                    expired.sort_unstable();
                    let expected: Vec<u32> = (0..DEVICES as u32)
                        .filter(|&i| model[i as usize].is_some_and(|deadline| deadline <= now / TICK_MILLIS))
                        .collect();
                    assert_eq!(expired, expected, "at {now} ms");
                    for i in expired {
                        model[i as usize] = None;
                    }
                }
            }
            assert_eq!(wheel.running(), model.iter().flatten().count());
        }
    }
}
