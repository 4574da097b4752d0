//! Message IDs for what the server sends first: non-confirmable responses, separate responses, notifications.
//!
//! To one endpoint no ID may return within EXCHANGE_LIFETIME (RFC 7252 §4.4). IDs ascend, so an ID returns after all the
//! others; the sequence notes when it crossed from one half of them to the other, and crosses back only when that is long
//! enough ago. That bounds one endpoint to 32,768 messages in EXCHANGE_LIFETIME, 132 a second with the default timers.

use crate::timing::Seconds;

/// The next message ID to one endpoint, in 6 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Sequence {
    next: u16,
    /// When the sequence entered the half that it is in, which is when it last took from the other one; high half first. Zero
    /// if it has not crossed yet.
    entered: [u16; 2],
}

/// Begins at zero.
impl Default for Sequence {
    fn default() -> Sequence {
        Sequence::new(0)
    }
}

const _: () = assert!(size_of::<Sequence>() == 6);

const HALF: u16 = 1 << 15;

impl Sequence {
    /// Begins at `start`, which should be random: it makes an answer harder to forge (RFC 7252 §4.4), and after a restart it
    /// keeps clear of the IDs used before.
    #[must_use]
    pub const fn new(start: u16) -> Sequence {
        Sequence { next: start, entered: [0, 0] }
    }

    /// Takes the next ID. None if it was in use less than `lifetime` seconds ago; ask again later.
    #[inline]
    pub fn next(&mut self, now: Seconds, lifetime: u32) -> Option<u16> {
        let mid = self.next;
        if mid.is_multiple_of(HALF) {
            let entered = u32::from(self.entered[0]) << 16 | u32::from(self.entered[1]);
            if entered != 0 && now.since(Seconds(entered)) < lifetime {
                return None;
            }
            self.entered = [(now.0 >> 16) as u16, now.0 as u16];
        }
        self.next = mid.wrapping_add(1);
        Some(mid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const LIFETIME: u32 = 247;

    #[test]
    fn no_id_returns_within_the_lifetime_whatever_the_pace() {
        for start in [0, 1, HALF - 1, HALF, u16::MAX] {
            for per_second in [1_000, 132, 20_000] {
                let mut sequence = Sequence::new(start);
                let mut last = HashMap::new();
                let (mut taken, mut refused) = (0, 0);
                for second in 1_000..3_000 {
                    for _ in 0..per_second {
                        let Some(mid) = sequence.next(Seconds(second), LIFETIME) else {
                            refused += 1;
                            break;
                        };
                        taken += 1;
                        if let Some(before) = last.insert(mid, second) {
                            assert!(second - before >= LIFETIME, "{mid} came back after {} s", second - before);
                        }
                    }
                }
                assert!(taken > 130 * 2_000, "{taken} at {per_second}/s");
                assert_eq!(refused > 0, per_second > 132, "{refused} refused at {per_second}/s");
            }
        }
    }
}
