//! Confirmable messages that the server sends: repeated until acknowledged, reset or given up (RFC 7252 §4.2).
//!
//! # Constraints
//!
//! At most [`Exchanges::new`]'s `capacity` messages are under way, and at most NSTART to one peer (§4.7); more are refused, and
//! the caller keeps them back. Memory is exactly proportional to what is under way.
//!
//! # Operation
//!
//! Send the message, then [`start`](Exchanges::start) it. Tell what comes back with [`acknowledged`](Exchanges::acknowledged)
//! and [`refused`](Exchanges::refused). Not later than [`next_deadline`](Exchanges::next_deadline), drain
//! [`poll`](Exchanges::poll).

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::timing::{MAX_RETRANSMIT_LIMIT, Timing};

/// Confirmable messages under way. `K` names a peer (an address, an association), `T` is what the caller wants back with the
/// end of an exchange.
#[derive(Debug)]
pub struct Exchanges<K, T> {
    timing: Timing,
    capacity: usize,
    pending: HashMap<(K, u16), Pending<T>>,
    /// Peers with something under way: how much. None is zero.
    outstanding: HashMap<K, u8>,
    /// One a pending message. The number tells equal times apart.
    deadlines: BTreeMap<Deadline, (K, u16)>,
    started: u64,
}

type Deadline = (Instant, u64);

#[derive(Debug)]
struct Pending<T> {
    message: Box<[u8]>,
    deadline: Deadline,
    /// The wait that ends at `deadline`.
    wait: Duration,
    /// Repetitions left.
    left: u8,
    tag: T,
}

/// The message is not taken on; the caller's to keep back or drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many as allowed are under way.
    #[error("all confirmable messages that may be under way are")]
    Full,
    /// The peer has NSTART messages to acknowledge first (RFC 7252 §4.7).
    #[error("the peer has not acknowledged an earlier confirmable message")]
    Busy,
    /// This message ID is under way to the peer already.
    #[error("the message ID is in use")]
    InUse,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<'a, K, T> {
    /// Send this again.
    Retransmit {
        /// To whom.
        peer: K,
        /// The message.
        message: &'a [u8],
    },
    /// The peer did not answer; the exchange has ended.
    GaveUp {
        /// Who.
        peer: K,
        /// The message ID.
        mid: u16,
        /// What `start` was given.
        tag: T,
    },
}

impl<K: Copy + Eq + Hash, T> Exchanges<K, T> {
    /// None under way, `capacity` at most.
    #[must_use]
    pub fn new(timing: Timing, capacity: usize) -> Exchanges<K, T> {
        Exchanges {
            timing,
            capacity,
            pending: HashMap::new(),
            outstanding: HashMap::new(),
            deadlines: BTreeMap::new(),
            started: 0,
        }
    }

    /// How many are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Whether `peer` may be sent another one.
    #[must_use]
    pub fn is_free(&self, peer: &K) -> bool {
        self.outstanding.get(peer).is_none_or(|&n| n < self.timing.nstart.max(1))
    }

    /// Takes on `message`, which is confirmable, has the ID `mid` and was sent to `peer` at `now`. `random` is any 32 bits.
    pub fn start(
        &mut self,
        now: Instant,
        peer: K,
        mid: u16,
        message: &[u8],
        random: u32,
        tag: T,
    ) -> Result<(), Refused> {
        if !self.is_free(&peer) {
            return Err(Refused::Busy);
        }
        if self.pending.contains_key(&(peer, mid)) {
            return Err(Refused::InUse);
        }
        if self.pending.len() >= self.capacity {
            return Err(Refused::Full);
        }
        let wait = self.timing.initial_timeout(random);
        let deadline = (now + wait, self.started);
        self.started += 1;
        let left = self.timing.max_retransmit.min(MAX_RETRANSMIT_LIMIT);
        self.deadlines.insert(deadline, (peer, mid));
        *self.outstanding.entry(peer).or_insert(0) += 1;
        self.pending.insert((peer, mid), Pending { message: message.into(), deadline, wait, left, tag });
        Ok(())
    }

    /// `peer` acknowledges `mid`. None if that is not under way: a late or repeated acknowledgement.
    pub fn acknowledged(&mut self, peer: K, mid: u16) -> Option<T> {
        let pending = self.end(peer, mid)?;
        self.deadlines.remove(&pending.deadline);
        Some(pending.tag)
    }

    /// `peer` resets `mid`: it has no use for the message, which is not repeated. None if that is not under way.
    pub fn refused(&mut self, peer: K, mid: u16) -> Option<T> {
        self.acknowledged(peer, mid)
    }

    fn end(&mut self, peer: K, mid: u16) -> Option<Pending<T>> {
        let pending = self.pending.remove(&(peer, mid))?;
        if let Some(n) = self.outstanding.get_mut(&peer) {
            *n -= 1;
            if *n == 0 {
                self.outstanding.remove(&peer);
            }
        }
        Some(pending)
    }

    /// When [`poll`](Self::poll) will have something; none if nothing is under way.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first_key_value().map(|(&(at, _), _)| at)
    }

    /// What is due at `now`; to be called until it returns none.
    pub fn poll(&mut self, now: Instant) -> Option<Due<'_, K, T>> {
        let first = self.deadlines.first_entry().filter(|entry| entry.key().0 <= now)?;
        let ((_, number), (peer, mid)) = first.remove_entry();
        if self.pending.get(&(peer, mid)).is_none_or(|pending| pending.left == 0) {
            let pending = self.end(peer, mid)?;
            return Some(Due::GaveUp { peer, mid, tag: pending.tag });
        }
        let pending = self.pending.get_mut(&(peer, mid))?;
        pending.left -= 1;
        pending.wait *= 2;
        // From now, not from when it was due: a caller that was late must not send twice in a row.
        pending.deadline = (now + pending.wait, number);
        self.deadlines.insert(pending.deadline, (peer, mid));
        Some(Due::Retransmit { peer, message: &pending.message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"\x40\x45\0\x01";

    fn exchanges(capacity: usize) -> Exchanges<u8, &'static str> {
        Exchanges::new(Timing::RFC7252, capacity)
    }

    #[test]
    fn the_waits_double_and_the_last_one_ends_the_exchange() {
        let start = Instant::now();
        for (random, first) in [(0, 2), (u32::MAX, 3)] {
            let mut exchanges = exchanges(1);
            exchanges.start(start, 1, 7, MESSAGE, random, "tag").unwrap();
            let mut now = start;
            for repetition in 0..4 {
                let due = exchanges.next_deadline().unwrap();
                assert_eq!((due - now).as_secs(), first << repetition);
                assert_eq!(exchanges.poll(due - Duration::from_millis(1)), None);
                assert_eq!(exchanges.poll(due), Some(Due::Retransmit { peer: 1, message: MESSAGE }));
                assert_eq!(exchanges.poll(due), None);
                now = due;
            }
            let end = exchanges.next_deadline().unwrap();
            assert_eq!(exchanges.poll(end), Some(Due::GaveUp { peer: 1, mid: 7, tag: "tag" }));
            assert!(exchanges.is_empty() && exchanges.next_deadline().is_none() && exchanges.is_free(&1));
            // 2 × (2⁵ − 1) and, with the factor, MAX_TRANSMIT_WAIT.
            assert_eq!((end - start).as_secs(), first * 31);
        }
    }

    #[test]
    fn an_answer_ends_it_once() {
        let now = Instant::now();
        let mut exchanges = exchanges(2);
        exchanges.start(now, 1, 7, MESSAGE, 0, "one").unwrap();
        exchanges.start(now, 2, 7, MESSAGE, 0, "two").unwrap();
        assert_eq!(exchanges.acknowledged(1, 8), None);
        assert_eq!(exchanges.acknowledged(1, 7), Some("one"));
        assert_eq!(exchanges.acknowledged(1, 7), None);
        assert_eq!(exchanges.refused(2, 7), Some("two"));
        assert_eq!(exchanges.poll(now + Duration::from_secs(1000)), None);
    }

    #[test]
    fn nstart_and_capacity_hold() {
        let now = Instant::now();
        let mut exchanges = exchanges(2);
        exchanges.start(now, 1, 1, MESSAGE, 0, "").unwrap();
        assert_eq!(exchanges.start(now, 1, 2, MESSAGE, 0, ""), Err(Refused::Busy));
        exchanges.start(now, 2, 1, MESSAGE, 0, "").unwrap();
        assert_eq!(exchanges.start(now, 3, 1, MESSAGE, 0, ""), Err(Refused::Full));
        exchanges.acknowledged(1, 1).unwrap();
        exchanges.start(now, 1, 2, MESSAGE, 0, "").unwrap();

        let mut wider = Exchanges::new(Timing { nstart: 2, ..Timing::RFC7252 }, 9);
        wider.start(now, 1, 1, MESSAGE, 0, "").unwrap();
        assert_eq!(wider.start(now, 1, 1, MESSAGE, 0, ""), Err(Refused::InUse));
        wider.start(now, 1, 2, MESSAGE, 0, "").unwrap();
        assert_eq!(wider.start(now, 1, 3, MESSAGE, 0, ""), Err(Refused::Busy));
    }

    #[test]
    fn a_late_poll_repeats_each_once() {
        let start = Instant::now();
        let mut exchanges = exchanges(100);
        for peer in 0..100 {
            exchanges.start(start, peer, 1, MESSAGE, u32::from(peer) << 24, "").unwrap();
        }
        let late = start + Duration::from_secs(600);
        let mut repeated = 0;
        while let Some(due) = exchanges.poll(late) {
            assert!(matches!(due, Due::Retransmit { .. }));
            repeated += 1;
        }
        assert_eq!(repeated, 100);
    }
}
