//! What sessions are called: [`SessionId`] everywhere but in the subscription trie, and [`Subscriber`] there.

use std::num::NonZeroU64;

/// Names an MQTT session: its worker (8 bits), a generation (24 bits) and its slot there (32 bits; the last number is left out, so
/// that the top bit stays free). Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(NonZeroU64);

impl SessionId {
    /// Names no session: no gateway has so many workers.
    pub(crate) const NOBODY: SessionId = SessionId(NonZeroU64::MAX);

    pub(crate) fn new(worker: usize, generation: u32, slot: usize) -> SessionId {
        // The top bit keeps it from being zero, and from being the listener's name in epoll.
        let generation = u64::from(generation & 0x7F_FFFF);
        let bits = (worker as u64 & 0xFF) << 55 | generation << 32 | slot as u64 & 0xFFFF_FFFF;
        SessionId(NonZeroU64::MIN.saturating_add(bits))
    }

    pub(crate) fn from_bits(bits: u64) -> Option<SessionId> {
        NonZeroU64::new(bits).map(SessionId)
    }

    /// Its name in the trie, which tells whether the session outlives a restart.
    pub(crate) fn subscriber(self, kept: bool) -> Subscriber {
        Subscriber(self.0.get() | u64::from(kept) << 63)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn worker(self) -> usize {
        ((self.0.get() - 1) >> 55) as usize
    }

    pub(crate) fn slot(self) -> usize {
        ((self.0.get() - 1) & 0xFFFF_FFFF) as usize
    }
}

/// A session in the subscription trie: its [`SessionId`], and in the top bit, which that leaves free, whether it is kept over a restart.
/// That does not change while the session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subscriber(u64);

impl Subscriber {
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn from_bits(bits: u64) -> (Option<SessionId>, bool) {
        (SessionId::from_bits(bits & !(1 << 63)), bits >> 63 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_keeps_its_parts_and_is_never_zero_nor_the_listener() {
        for (worker, generation, slot) in [(0, 0, 0), (255, u32::MAX, u32::MAX as usize), (3, 77, 123_456)] {
            let id = SessionId::new(worker, generation, slot);
            assert_eq!((id.worker(), id.slot()), (worker, slot));
            assert_eq!(SessionId::from_bits(id.bits()), Some(id));
            assert_ne!(id.bits(), u64::MAX);
        }
        assert_ne!(SessionId::new(0, 1, 0), SessionId::new(0, 2, 0));
    }

    #[test]
    fn a_subscriber_is_its_session_and_whether_it_is_kept() {
        for kept in [false, true] {
            let id = SessionId::new(255, u32::MAX, u32::MAX as usize - 1);
            assert_eq!(Subscriber::from_bits(id.subscriber(kept).0), (Some(id), kept));
        }
    }
}
