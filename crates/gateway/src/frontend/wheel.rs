//! Deadlines of many connections, to the second, without a timer each.
//!
//! A wheel of one-second buckets. An entry is found at its second or, if its deadline was beyond the wheel, once a turn; the
//! owner looks at the deadline that it holds *now* and files the entry again if that has moved. So an active connection costs
//! nothing when its deadline moves and one step when its old one passes.

/// Buckets, one a second: a keep-alive of up to 5 minutes (the longest that NATs are kind to) is filed at its own second.
const BUCKETS: usize = 512;

/// Seconds since a start of the owner's choice.
pub(crate) type Second = u64;

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    buckets: Box<[Vec<T>]>,
    /// Everything filed for a second below this one has been handed out.
    next: Second,
}

impl<T> Wheel<T> {
    pub(crate) fn new(now: Second) -> Wheel<T> {
        Wheel { buckets: (0..BUCKETS).map(|_| Vec::new()).collect(), next: now }
    }

    /// Files `entry` to be looked at when `deadline` has passed, or earlier; returns the second that it is filed for.
    pub(crate) fn file(&mut self, deadline: Second, entry: T) -> Second {
        let last = self.next + BUCKETS as Second - 1;
        let second = deadline.clamp(self.next, last);
        self.buckets[bucket(second)].push(entry);
        second
    }

    /// Hands out what is filed for the seconds up to and including `now`, into `due`.
    pub(crate) fn advance(&mut self, now: Second, due: &mut Vec<T>) {
        // After a long stall every bucket is due once, however many turns were missed.
        let from = self.next.max((now + 1).saturating_sub(BUCKETS as Second));
        for second in from..=now {
            let entries = &mut self.buckets[bucket(second)];
            due.append(entries);
            // A burst of connects must not leave its capacity in a bucket for good.
            if entries.capacity() > 1024 {
                *entries = Vec::new();
            }
        }
        self.next = self.next.max(now + 1);
    }
}

fn bucket(second: Second) -> usize {
    (second % BUCKETS as Second) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(wheel: &mut Wheel<u32>, now: Second) -> Vec<u32> {
        let mut due = Vec::new();
        wheel.advance(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn an_entry_is_due_at_its_second_and_once() {
        let mut wheel = Wheel::new(100);
        assert_eq!(wheel.file(102, 1), 102);
        wheel.file(100, 2);
        assert!(due(&mut wheel, 99).is_empty());
        assert_eq!(due(&mut wheel, 100), [2]);
        assert!(due(&mut wheel, 101).is_empty());
        assert_eq!(due(&mut wheel, 102), [1]);
        assert!(due(&mut wheel, 103).is_empty());
    }

    #[test]
    fn a_past_deadline_is_due_next_and_a_far_one_within_a_turn() {
        let mut wheel = Wheel::new(100);
        wheel.advance(100, &mut Vec::new());
        wheel.file(7, 1);
        wheel.file(1_000_000, 2);
        assert_eq!(due(&mut wheel, 101), [1]);
        let last = 101 + BUCKETS as Second - 1;
        assert!(due(&mut wheel, last - 1).is_empty());
        assert_eq!(due(&mut wheel, last), [2], "to be looked at and filed again");
    }

    #[test]
    fn a_long_stall_loses_nothing() {
        let mut wheel = Wheel::new(0);
        for second in 0..600 {
            wheel.file(second, u32::try_from(second).unwrap());
        }
        let all = due(&mut wheel, 10_000);
        assert_eq!(all.len(), 600);
        wheel.file(3, 9);
        assert_eq!(due(&mut wheel, 10_001), [9]);
    }
}
