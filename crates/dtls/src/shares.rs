//! Which handshake makes room for a new one.
//!
//! A cookie proves that somebody receives at an address, and one who does can begin as many handshakes as there are ports. So the places are shared
//! by prefix ([`CompactPath::prefix`]): the prefix that has most of them loses its oldest, and of prefixes that have equally many the one whose
//! oldest is the oldest of all. While there is room, a NAT with a whole fleet behind it may take all of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::path::Prefix;

/// What the handshakes of each prefix have. Each call takes time with the logarithm of their number.
#[derive(Default)]
pub(crate) struct Shares {
    /// Every handshake: prefix, when it began, slot.
    waiting: BTreeSet<(Prefix, u64, u32)>,
    shares: BTreeMap<Prefix, Share>,
    /// Every prefix, the one that is to lose a place last.
    ranks: BTreeSet<(Share, Prefix)>,
    /// How many handshakes have begun.
    begun: u64,
}

/// What one prefix has; it is never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Share {
    count: usize,
    oldest: Reverse<u64>,
}

impl Shares {
    /// Notes a handshake in a slot; the number is what [`Shares::end`] wants to know it by.
    pub(crate) fn begin(&mut self, prefix: Prefix, index: u32) -> u64 {
        self.begun += 1;
        self.waiting.insert((prefix, self.begun, index));
        let share = match self.shares.get(&prefix) {
            Some(&share) => {
                self.ranks.remove(&(share, prefix));
                Share { count: share.count + 1, ..share }
            }
            None => Share { count: 1, oldest: Reverse(self.begun) },
        };
        self.shares.insert(prefix, share);
        self.ranks.insert((share, prefix));
        self.begun
    }

    /// Notes the end of a handshake.
    pub(crate) fn end(&mut self, prefix: Prefix, begun: u64, index: u32) {
        if !self.waiting.remove(&(prefix, begun, index)) {
            return;
        }
        let Some(share) = self.shares.remove(&prefix) else { return };
        self.ranks.remove(&(share, prefix));
        if let Some(oldest) = self.oldest(prefix) {
            let share = Share { count: share.count - 1, oldest: Reverse(oldest.0) };
            self.shares.insert(prefix, share);
            self.ranks.insert((share, prefix));
        }
    }

    /// The slot of the handshake that makes room for one of `newcomer`, if there is any. The newcomer counts with what its prefix has.
    pub(crate) fn first_to_go(&self, newcomer: Prefix) -> Option<u32> {
        let &(most, prefix) = self.ranks.last()?;
        let own = self.shares.get(&newcomer).map_or(0, |share| share.count);
        let prefix = if own >= most.count { newcomer } else { prefix };
        self.oldest(prefix).map(|(_, index)| index)
    }

    /// When the oldest handshake of a prefix began, and its slot.
    fn oldest(&self, prefix: Prefix) -> Option<(u64, u32)> {
        let &(_, begun, index) = self.waiting.range((prefix, 0, 0)..=(prefix, u64::MAX, u32::MAX)).next()?;
        Some((begun, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::CompactPath;
    use crate::support::Rng;

    fn prefix(number: u8) -> Prefix {
        CompactPath::from(crate::Path::from(std::net::SocketAddr::from(([10, 0, 0, number], 1)))).prefix()
    }

    #[test]
    fn the_prefix_that_has_most_loses_its_oldest_as_a_model_does() {
        for seed in 1..=8u64 {
            println!("seed {seed}");
            let mut rng = Rng(seed);
            let mut shares = Shares::default();
            // The oldest first.
            let mut model: Vec<(u8, u64, u32)> = Vec::new();
            for index in 0..3_000u32 {
                let newcomer = rng.below(1 + rng.0 % 9) as u8;
                let count = |of: u8| model.iter().filter(|&&(number, ..)| number == of).count();
                let most = model.iter().map(|&(number, ..)| count(number)).max();
                let loses = most.map(|most| {
                    let own = count(newcomer) >= most;
                    let goes = |number: u8| if own { number == newcomer } else { count(number) == most };
                    model.iter().find(|&&(number, ..)| goes(number)).unwrap().2
                });
                assert_eq!(shares.first_to_go(prefix(newcomer)), loses);
                if model.len() > 40 || rng.chance(30) && !model.is_empty() {
                    let (number, begun, index) = model.remove(rng.below(model.len() as u64) as usize);
                    shares.end(prefix(number), begun, index);
                }
                model.push((newcomer, shares.begin(prefix(newcomer), index), index));
            }
            for (number, begun, index) in model {
                shares.end(prefix(number), begun, index);
            }
            assert!(shares.waiting.is_empty() && shares.shares.is_empty() && shares.ranks.is_empty());
        }
    }
}
