//! Datagrams that wait to be sent.

use std::ops::Range;

/// Datagrams to send, in order, each with where it goes: a [`crate::Path`] for a server, nothing for a client, which
/// has one peer.
///
/// All bytes lie in one buffer that is kept by [`Outbox::clear`], so that a worker which reuses its outbox allocates nothing.
#[derive(Debug)]
pub struct Outbox<A = crate::Path> {
    bytes: Vec<u8>,
    /// Ends are ascending and at most `bytes.len()`; what lies beyond the last is a datagram still being written.
    ends: Vec<(A, usize)>,
}

impl<A> Default for Outbox<A> {
    fn default() -> Self {
        Outbox { bytes: Vec::new(), ends: Vec::new() }
    }
}

impl<A: Copy> Outbox<A> {
    /// An empty outbox.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many datagrams wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of all the datagrams that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The datagrams, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (A, &[u8])> {
        (0..self.ends.len()).map(|at| (self.ends[at].0, &self.bytes[self.range(at)]))
    }

    /// Takes all datagrams of `other`, behind its own.
    pub fn append(&mut self, other: &mut Outbox<A>) {
        debug_assert_eq!(self.unfinished(), 0);
        let before = self.bytes.len();
        self.bytes.append(&mut other.bytes);
        self.ends.extend(other.ends.drain(..).map(|(to, end)| (to, before + end)));
    }

    /// Forgets all datagrams; the memory stays.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn range(&self, at: usize) -> Range<usize> {
        let start = at.checked_sub(1).map_or(0, |before| self.ends[before].1);
        start..self.ends[at].1
    }

    /// The buffer, to append to a datagram that [`Outbox::finish`] will close.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Length of the datagram being written.
    pub(crate) fn unfinished(&self) -> usize {
        self.bytes.len() - self.ends.last().map_or(0, |(_, end)| *end)
    }

    /// Closes the datagram being written, if it has any bytes.
    pub(crate) fn finish(&mut self, to: A) {
        if self.unfinished() > 0 {
            self.ends.push((to, self.bytes.len()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_out_in_order_and_an_empty_one_never() {
        let mut out: Outbox<u8> = Outbox::new();
        out.finish(0);
        assert!(out.is_empty());
        out.buffer().extend_from_slice(b"one");
        assert_eq!(out.unfinished(), 3);
        out.finish(1);
        out.buffer().extend_from_slice(b"second");
        out.finish(2);
        assert_eq!(out.iter().collect::<Vec<_>>(), [(1, &b"one"[..]), (2, &b"second"[..])]);
        assert_eq!((out.len(), out.bytes()), (2, 9));
        let mut more = Outbox::new();
        more.buffer().extend_from_slice(b"3");
        more.finish(3);
        out.append(&mut more);
        assert_eq!(out.iter().last(), Some((3, &b"3"[..])));
        assert!(more.is_empty() && more.bytes() == 0);
        out.clear();
        assert_eq!(out.iter().count(), 0);
    }
}
