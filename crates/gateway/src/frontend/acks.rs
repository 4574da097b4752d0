//! Answers that wait for the disk.
//!
//! A front end appends a batch of records, learns the sequence number of the last one, and queues the answers of the whole
//! batch behind it. When `durable` reaches that number the answers leave, in the order in which their requests came.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tidegate_record::Seq;

/// Names a group of answers of one worker, in 48 bits: 8 of the worker, 40 of a count that starts at 1. What was restored
/// from the log is older than all groups and has the ticket 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(pub(crate) u64);

/// Bits of a ticket that count: at 100,000 groups a second they last four months of uninterrupted full load.
const COUNT_BITS: u32 = 40;

/// Workers that a ticket can name.
pub(crate) const MAX_WORKERS: usize = 256;

impl Ticket {
    fn new(worker: usize, count: u64) -> Ticket {
        Ticket((worker as u64) << COUNT_BITS | count & ((1 << COUNT_BITS) - 1))
    }

    pub(crate) fn worker(self) -> usize {
        (self.0 >> COUNT_BITS) as usize
    }

    pub(crate) fn count(self) -> u64 {
        self.0 & ((1 << COUNT_BITS) - 1)
    }
}

/// A FIFO of answers, in groups that become due together.
///
/// Invariants: the groups' sequence numbers never fall; `groups` cover a prefix of `answers`, and what lies behind it is the
/// open group, which no release touches.
#[derive(Debug)]
pub(crate) struct AckQueue<A> {
    answers: VecDeque<A>,
    groups: VecDeque<Group>,
    /// Answers in closed groups: `closed <= answers.len()`.
    closed: usize,
    /// Groups closed so far.
    groups_closed: u64,
}

#[derive(Debug)]
struct Group {
    after: Seq,
    /// When its requests were received.
    received: Instant,
    len: usize,
}

impl<A> AckQueue<A> {
    pub(crate) fn new() -> AckQueue<A> {
        AckQueue { answers: VecDeque::new(), groups: VecDeque::new(), closed: 0, groups_closed: 0 }
    }

    /// Adds an answer to the open group.
    pub(crate) fn push(&mut self, answer: A) {
        self.answers.push_back(answer);
    }

    /// Closes the open group, whose requests were received at `received`: its answers become due when `after` is durable.
    pub(crate) fn close(&mut self, after: Seq, received: Instant) {
        let len = self.answers.len() - self.closed;
        if len == 0 {
            return;
        }
        // A group without a record of its own waits for those before it, so that answers keep their order.
        let after = self.groups.back().map_or(after, |last| last.after.max(after));
        self.groups.push_back(Group { after, received, len });
        self.closed += len;
        self.groups_closed += 1;
    }

    /// The ticket of the open group.
    pub(crate) fn ticket(&self, worker: usize) -> Ticket {
        Ticket::new(worker, self.groups_closed + 1)
    }

    /// The ticket of the last group that left.
    pub(crate) fn released_ticket(&self, worker: usize) -> Ticket {
        Ticket::new(worker, self.groups_closed - self.groups.len() as u64)
    }

    /// Whether a release would hand over anything.
    pub(crate) fn due(&self, durable: Seq) -> bool {
        self.groups.front().is_some_and(|group| group.after <= durable)
    }

    /// Answers whose requests were received at least `delay` before `now`, the oldest first.
    pub(crate) fn overdue_mut(&mut self, now: Instant, delay: Duration) -> impl Iterator<Item = &mut A> {
        let overdue = |group: &&Group| now.saturating_duration_since(group.received) >= delay;
        let count = self.groups.iter().take_while(overdue).map(|group| group.len).sum();
        self.answers.iter_mut().take(count)
    }

    /// Takes the answers of the open group back: their records were not stored.
    pub(crate) fn retract(&mut self) -> impl Iterator<Item = A> {
        self.answers.drain(self.closed..)
    }

    /// Hands over the next answer that is due when `durable` is, with the time its request was received.
    pub(crate) fn release_one(&mut self, durable: Seq) -> Option<(A, Instant)> {
        let group = self.groups.front_mut().filter(|group| group.after <= durable)?;
        let received = group.received;
        group.len -= 1;
        if group.len == 0 {
            self.groups.pop_front();
        }
        self.closed -= 1;
        Some((self.answers.pop_front()?, received))
    }

    /// Hands over every answer that is due when `durable` is, with the time its request was received; returns how many.
    pub(crate) fn release(&mut self, durable: Seq, mut send: impl FnMut(A, Instant)) -> usize {
        let mut released = 0;
        while let Some(group) = self.groups.pop_front_if(|group| group.after <= durable) {
            for answer in self.answers.drain(..group.len) {
                send(answer, group.received);
            }
            self.closed -= group.len;
            released += group.len;
        }
        released
    }

    pub(crate) fn len(&self) -> usize {
        self.answers.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(queue: &mut AckQueue<u32>, durable: u64) -> Vec<u32> {
        let mut out = Vec::new();
        let count = queue.release(Seq(durable), |a, _| out.push(a));
        assert_eq!(count, out.len());
        out
    }

    #[test]
    fn answers_leave_in_order_once_their_group_is_durable() {
        let mut queue = AckQueue::new();
        queue.push(1);
        queue.push(2);
        queue.close(Seq(2), Instant::now());
        queue.push(3);
        queue.close(Seq(3), Instant::now());
        assert!(released(&mut queue, 1).is_empty());
        assert_eq!(released(&mut queue, 2), [1, 2]);
        assert!(released(&mut queue, 2).is_empty());
        assert_eq!(released(&mut queue, 9), [3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn answers_leave_one_by_one_as_well() {
        let now = Instant::now();
        let mut queue = AckQueue::new();
        for (group, after) in [(&[1, 2][..], 5), (&[3], 9)] {
            group.iter().for_each(|answer| queue.push(*answer));
            queue.close(Seq(after), now);
        }
        queue.push(4);
        assert_eq!(queue.release_one(Seq(4)), None);
        assert_eq!(queue.release_one(Seq(5)), Some((1, now)));
        assert_eq!(queue.released_ticket(0).count(), 0, "the group has not left");
        assert_eq!(released(&mut queue, 5), [2]);
        assert_eq!((queue.release_one(Seq(8)), queue.release_one(Seq(9))), (None, Some((3, now))));
        assert_eq!((queue.released_ticket(0).count(), queue.release_one(Seq(99))), (2, None));
        assert_eq!(queue.retract().collect::<Vec<_>>(), [4]);
    }

    #[test]
    fn the_open_group_never_leaves_and_can_be_retracted() {
        let mut queue = AckQueue::new();
        queue.push(1);
        queue.close(Seq(1), Instant::now());
        queue.push(2);
        queue.push(3);
        assert_eq!(released(&mut queue, u64::MAX), [1]);
        assert_eq!(queue.retract().collect::<Vec<_>>(), [2, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_group_without_records_keeps_its_place() {
        let mut queue = AckQueue::new();
        queue.push(1);
        queue.close(Seq(5), Instant::now());
        queue.push(2);
        queue.close(Seq::NONE, Instant::now());
        assert!(released(&mut queue, 4).is_empty());
        assert_eq!(released(&mut queue, 5), [1, 2]);
        queue.push(3);
        queue.close(Seq::NONE, Instant::now());
        assert_eq!(released(&mut queue, 0), [3], "nothing before it waits");
    }

    #[test]
    fn what_has_waited_too_long_is_found_group_by_group() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut queue = AckQueue::new();
        queue.push(1);
        queue.push(2);
        queue.close(Seq(2), start);
        queue.push(3);
        queue.close(Seq(3), start + second);
        assert_eq!(queue.overdue_mut(start, second).count(), 0);
        assert_eq!(queue.overdue_mut(start + second, second).map(|a| *a).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(queue.overdue_mut(start + 2 * second, second).count(), 3);
    }

    #[test]
    fn tickets_tell_what_has_left() {
        let mut queue = AckQueue::new();
        let first = queue.ticket(3);
        queue.push(1);
        queue.close(Seq(1), Instant::now());
        let second = queue.ticket(3);
        queue.push(2);
        queue.close(Seq(2), Instant::now());
        assert_eq!((first.worker(), second.worker()), (3, 3));
        released(&mut queue, 1);
        let left = queue.released_ticket(3);
        assert!(first.count() <= left.count() && left.count() < second.count());
        released(&mut queue, 2);
        assert!(second.count() <= queue.released_ticket(3).count());
    }
}
