//! The window that tells a record that was seen from one that was not (RFC 6347 §4.1.2.6).

/// Records that the window reaches back, as many as its bitmap has bits; RFC 6347 §4.1.2.6 prefers 64.
const WIDTH: u64 = 64;

/// How a sequence number stands to those seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// Higher than all.
    Newest,
    /// Lower than the highest, yet not seen.
    Late,
    /// Seen, or too old to tell.
    Replayed,
}

/// Sequence numbers seen in one epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReplayWindow {
    /// One past the highest number seen; zero before the first.
    next: u64,
    /// Bit `n` stands for the number `next - 1 - n`.
    seen: u64,
}

impl ReplayWindow {
    /// A window that takes nothing below `next`.
    pub(crate) fn starting_at(next: u64) -> ReplayWindow {
        ReplayWindow { next, seen: u64::MAX }
    }

    /// One past the highest number seen.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Where `sequence` stands. Nothing is marked: that waits until the record proves authentic.
    #[inline]
    pub(crate) fn check(&self, sequence: u64) -> Freshness {
        if sequence >= self.next {
            return Freshness::Newest;
        }
        let back = self.next - 1 - sequence;
        if back >= WIDTH || self.seen >> back & 1 == 1 { Freshness::Replayed } else { Freshness::Late }
    }

    /// Marks `sequence` as seen.
    #[inline]
    pub(crate) fn mark(&mut self, sequence: u64) {
        if sequence >= self.next {
            let by = sequence - self.next + 1;
            self.seen = if by >= WIDTH { 1 } else { self.seen << by | 1 };
            self.next = sequence + 1;
        } else {
            let back = self.next - 1 - sequence;
            if back < WIDTH {
                self.seen |= 1 << back;
            }
        }
    }

    /// Takes nothing at or below `sequence` any more.
    pub(crate) fn raise(&mut self, sequence: u64) {
        if sequence >= self.next {
            *self = ReplayWindow::starting_at(sequence + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// What the window must say, from the set of everything seen.
    fn reference(seen: &BTreeSet<u64>, sequence: u64) -> Freshness {
        match seen.last() {
            None => Freshness::Newest,
            Some(&highest) if sequence > highest => Freshness::Newest,
            Some(&highest) if highest - sequence >= WIDTH || seen.contains(&sequence) => Freshness::Replayed,
            Some(_) => Freshness::Late,
        }
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(steps in proptest::collection::vec((0u64..90, any::<bool>()), 1..200)) {
            let mut window = ReplayWindow::default();
            let mut seen = BTreeSet::new();
            let mut base = 0;
            for (step, advance) in steps {
                let sequence = base + step;
                if advance {
                    base += step;
                }
                prop_assert_eq!(window.check(sequence), reference(&seen, sequence));
                if window.check(sequence) != Freshness::Replayed {
                    window.mark(sequence);
                    seen.insert(sequence);
                }
            }
        }
    }

    #[test]
    fn a_raised_window_takes_only_what_lies_above() {
        let mut window = ReplayWindow::default();
        window.mark(5);
        window.raise(9);
        assert_eq!(window.check(9), Freshness::Replayed);
        assert_eq!(window.check(7), Freshness::Replayed);
        assert_eq!(window.check(10), Freshness::Newest);
        window.raise(3);
        assert_eq!(window.next(), 10, "it never goes down");
    }

    #[test]
    fn the_largest_sequence_number_fits() {
        let mut window = ReplayWindow::default();
        window.mark(crate::record::MAX_SEQUENCE);
        assert_eq!(window.check(crate::record::MAX_SEQUENCE), Freshness::Replayed);
    }
}
