//! Sessions that a peer may resume (RFC 5246 §7.3, abbreviated handshake).

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::environment::Owner;
use crate::time::Timestamp;

/// Length of the session identifiers that a server of ours gives out, the longest that TLS allows.
pub const SESSION_ID_LEN: usize = 32;

/// Length of a master secret (RFC 5246 §8.1).
pub(crate) const MASTER_SECRET_LEN: usize = 48;

/// Names a session, in at most [`SESSION_ID_LEN`] bytes; empty where there is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SessionId {
    bytes: [u8; SESSION_ID_LEN],
    len: u8,
}

impl SessionId {
    /// The identifier `bytes`, unless it is too long.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<SessionId> {
        if bytes.len() > SESSION_ID_LEN {
            return None;
        }
        let mut id = SessionId { bytes: [0; SESSION_ID_LEN], len: bytes.len() as u8 };
        id.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(id)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({} bytes)", self.len)
    }
}

/// What both sides must remember to resume: overwritten when dropped, never printed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Session {
    pub(crate) master_secret: [u8; MASTER_SECRET_LEN],
    /// Whether the master secret is bound to its handshake; RFC 7627 §5.3 forbids to mix the two kinds.
    pub(crate) extended: bool,
    #[zeroize(skip)]
    pub(crate) id: SessionId,
    #[zeroize(skip)]
    pub(crate) owner: Owner,
    #[zeroize(skip)]
    pub(crate) identity: Box<[u8]>,
    /// See [`crate::Psk::number`].
    #[zeroize(skip)]
    pub(crate) number: u64,
}

impl Session {
    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// The identity that it was opened with.
    #[must_use]
    pub fn identity(&self) -> &[u8] {
        &self.identity
    }

    /// The [number](crate::Psk::number) that the identity had then.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Where a server keeps its sessions. Shards of one server share it, since a peer resumes from wherever it wakes.
///
/// The server asks [`crate::Psks`] again before it resumes, and resumes only if the identity still has the same owner and
/// number: neither a revoked device nor a key that was replaced can come back by an old session.
pub trait Sessions {
    /// Remembers a session.
    fn insert(&self, session: Session, now: Timestamp);
    /// The session of this name.
    fn get(&self, id: &SessionId, now: Timestamp) -> Option<Session>;
    /// Forgets a session. RFC 5246 §7.2.2 demands it after a fatal alert.
    fn remove(&self, id: &SessionId);
}

/// A bounded [`Sessions`] in memory: at most `capacity` sessions, each for `lifetime`; the oldest makes room.
#[derive(Debug)]
pub struct SessionCache {
    capacity: usize,
    lifetime: Duration,
    inner: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    /// Each lies in a place of its own: a map that grows moves what is in it, and would leave copies behind.
    sessions: HashMap<SessionId, (Timestamp, Box<Session>)>,
    /// Identifiers in the order of their insertion; one that was removed since is skipped when its turn comes. It never
    /// outgrows twice the capacity.
    order: VecDeque<(Timestamp, SessionId)>,
}

impl SessionCache {
    /// An empty cache.
    #[must_use]
    pub fn new(capacity: usize, lifetime: Duration) -> SessionCache {
        SessionCache { capacity, lifetime, inner: Mutex::default() }
    }

    /// How many sessions are remembered, expired ones included that nobody has met yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    /// Whether none is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the sessions for which `keep` says false: those of a revoked device, which may be given another key for the same identity, must
    /// not be what it proves itself by. It looks at all sessions.
    pub fn retain(&self, mut keep: impl FnMut(&Session) -> bool) {
        self.lock().sessions.retain(|_, (_, session)| keep(session));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cached> {
        // No code under the lock can panic half-way; a poisoned map is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    fn pop_oldest(&mut self) -> bool {
        let Some((inserted, id)) = self.order.pop_front() else { return false };
        if self.sessions.get(&id).is_some_and(|(at, _)| *at == inserted) {
            self.sessions.remove(&id);
        }
        true
    }
}

impl Sessions for SessionCache {
    fn insert(&self, session: Session, now: Timestamp) {
        if self.capacity == 0 || session.id.is_empty() {
            return;
        }
        let mut inner = self.lock();
        while inner.order.front().is_some_and(|(at, _)| now.since(*at) > self.lifetime) {
            inner.pop_oldest();
        }
        while inner.sessions.len() >= self.capacity || inner.order.len() >= self.capacity.saturating_mul(2) {
            if !inner.pop_oldest() {
                break;
            }
        }
        inner.order.push_back((now, session.id));
        inner.sessions.insert(session.id, (now, Box::new(session)));
    }

    fn get(&self, id: &SessionId, now: Timestamp) -> Option<Session> {
        let inner = self.lock();
        let (inserted, session) = inner.sessions.get(id)?;
        (now.since(*inserted) <= self.lifetime).then(|| Session::clone(session))
    }

    fn remove(&self, id: &SessionId) {
        self.lock().sessions.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(number: u32) -> Session {
        Session {
            master_secret: [7; MASTER_SECRET_LEN],
            extended: true,
            id: SessionId::new(&number.to_be_bytes()).unwrap(),
            owner: [0; 16],
            identity: Box::default(),
            number: 0,
        }
    }

    #[test]
    fn the_cache_is_bounded_and_forgets_the_oldest() {
        let cache = SessionCache::new(10, Duration::from_secs(60));
        for number in 0..100 {
            cache.insert(session(number), Timestamp(u64::from(number)));
            // Removing as we go must not let the order grow.
            if number % 3 == 0 {
                cache.remove(session(number).id());
            }
        }
        assert!(cache.len() <= 10);
        assert!(cache.lock().order.len() <= 20);
        assert!(cache.get(session(98).id(), Timestamp(100)).is_some());
        assert!(cache.get(session(5).id(), Timestamp(100)).is_none());
    }

    #[test]
    fn those_that_are_not_to_be_kept_are_gone() {
        let cache = SessionCache::new(10, Duration::from_secs(60));
        for number in 0..10 {
            let mut session = session(number);
            session.owner = [u8::from(number % 2 == 0); 16];
            cache.insert(session, Timestamp(0));
        }
        cache.retain(|session| *session.owner() != [1; 16]);
        assert_eq!(cache.len(), 5);
        assert!(
            cache.get(session(2).id(), Timestamp(0)).is_none() && cache.get(session(3).id(), Timestamp(0)).is_some()
        );
    }

    #[test]
    fn a_session_ends_with_its_lifetime() {
        let cache = SessionCache::new(10, Duration::from_secs(60));
        cache.insert(session(1), Timestamp(1000));
        assert!(cache.get(session(1).id(), Timestamp(61_000)).is_some());
        assert!(cache.get(session(1).id(), Timestamp(61_001)).is_none());
        cache.insert(session(2), Timestamp(200_000));
        assert_eq!(cache.len(), 1, "an expired session leaves when another comes");
    }
}
