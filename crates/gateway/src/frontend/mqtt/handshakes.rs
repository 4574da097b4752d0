//! The connections whose handshakes (TLS, WebSocket, PROXY protocol) are under way.
//!
//! # Constraints
//!
//! - A signature costs as much as the acknowledgements of a hundred readings. So what handshakes may use of a pass is bounded
//!   ([`BUDGET`]), however many are ready; connections that are open are served in between.
//! - Strangers who say nothing cost a place each. Places are bounded (`limits.handshakes`, shared by the workers); one who comes when all are taken
//!   gets that of whoever has been silent for longest, if that was long enough ([`PATIENCE_MS`]).
//!
//! # Operation
//!
//! These connections are in an epoll instance of their own, which is in the worker's like any socket: it is ready when one of them is. A pass
//! takes them one by one until the budget is used up; epoll hands out ready ones in turn, so none is starved. A connection that is
//! open moves to the worker's instance. Deadlines are those of any connection without a CONNECT (`mqtt.connect_timeout`).

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use tracing::{debug, warn};

use super::Now;
use super::clients::Slot;
use super::listeners::MOST;
use super::reactor::Reactor;
use crate::frontend::router::SessionId;

/// Epoll's name for the instance, next to those of the listeners.
pub(super) const HANDSHAKES: u64 = u64::MAX - MOST;

/// Time that handshakes may use of a pass: it adds as much to the latency of open connections. A full handshake takes 0.1 to 0.3 ms, with an RSA
/// key 1 ms; one is always done.
const BUDGET: Duration = Duration::from_micros(500);

/// Silence after which a place may be given to another, in milliseconds: longer than a round trip and a lost segment.
const PATIENCE_MS: u64 = 1_000;

/// How long a listener is left alone when all places are taken.
pub(super) const CROWDED_PAUSE: Duration = Duration::from_millis(50);

/// See the [module documentation](self).
pub(super) struct Handshakes {
    epoll: Epoll,
    most: usize,
    /// When each was last heard, in milliseconds of the steady clock.
    heard: HashMap<SessionId, u64>,
    /// In order of when they were heard, or earlier: with entries of those that are done. At most twice `most` and a few.
    order: VecDeque<(SessionId, u64)>,
    /// How many are in the metric, which all workers share.
    counted: i64,
}

/// Whether there is a place.
pub(super) enum Room {
    /// There is.
    Free,
    /// There is if this one goes.
    Instead(SessionId),
    /// There is none.
    None,
}

impl Handshakes {
    pub(super) fn new(limit: usize, workers: usize) -> io::Result<Handshakes> {
        Ok(Handshakes {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            most: (limit / workers.max(1)).max(1),
            heard: HashMap::new(),
            order: VecDeque::new(),
            counted: 0,
        })
    }

    pub(super) fn watch(&self, epoll: &Epoll) -> io::Result<()> {
        Ok(epoll.add(&self.epoll.0, EpollEvent::new(EpollFlags::EPOLLIN, HANDSHAKES))?)
    }

    /// The instance that has the connections.
    pub(super) fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    pub(super) fn begin(&mut self, id: SessionId, millis: u64) {
        self.heard.insert(id, millis);
        self.order.push_back((id, millis));
        if self.order.len() > 2 * self.most + 64 {
            self.order.retain(|(id, _)| self.heard.contains_key(id));
        }
    }

    /// It said something.
    fn hear(&mut self, id: SessionId, millis: u64) {
        if let Some(heard) = self.heard.get_mut(&id) {
            *heard = millis;
        }
    }

    pub(super) fn end(&mut self, id: SessionId) {
        self.heard.remove(&id);
    }

    /// Looks for a place.
    fn room(&mut self, millis: u64) -> Room {
        if self.heard.len() < self.most {
            return Room::Free;
        }
        for _ in 0..self.order.len() {
            let Some((id, at)) = self.order.pop_front() else { break };
            match self.heard.get(&id) {
                None => {}
                Some(&heard) if heard > at => self.order.push_back((id, heard)),
                Some(_) => {
                    self.order.push_front((id, at));
                    return if millis.saturating_sub(at) >= PATIENCE_MS { Room::Instead(id) } else { Room::None };
                }
            }
        }
        Room::None
    }
}

impl Reactor {
    /// Whether one more handshake may begin; makes room for it if it can.
    pub(super) fn may_shake_hands(&mut self, epoll: &Epoll, now: Now) -> bool {
        loop {
            match self.handshakes.room(now.steady_millis()) {
                Room::Free => return true,
                Room::None => return false,
                Room::Instead(id) => {
                    let Some((slot, client)) = self.clients.by_id(id) else {
                        self.handshakes.end(id);
                        continue;
                    };
                    // What it said may not have been read yet.
                    if client.has_input() {
                        self.handshakes.hear(id, now.steady_millis());
                        continue;
                    }
                    self.close(epoll, slot, "crowded_out", now);
                    self.handshakes.end(id);
                }
            }
        }
    }

    /// Serves handshakes until none is ready or the budget is used up.
    pub(super) fn shake_hands(&mut self, epoll: &Epoll, now: Now) {
        let start = Instant::now();
        let mut events = [EpollEvent::empty()];
        while let Ok(1) = self.handshakes.epoll.wait(&mut events, EpollTimeout::ZERO) {
            let Some(id) = SessionId::from_bits(events[0].data()) else { break };
            let flags = events[0].events();
            if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
                && let Some((slot, _)) = self.clients.by_id(id)
            {
                self.handshakes.hear(id, now.steady_millis());
                self.read(epoll, slot, now);
            }
            // At once, or it would be ready again.
            if let Some((slot, client)) = self.clients.by_id(id)
                && (client.flags.dirty || flags.contains(EpollFlags::EPOLLOUT))
            {
                self.flush_client(epoll, slot, now);
            }
            if start.elapsed() >= BUDGET {
                self.owes_a_turn = true;
                break;
            }
        }
        self.count_handshakes();
    }

    /// Tells the metric how many are under way here.
    pub(super) fn count_handshakes(&mut self) {
        let under_way = self.handshakes.heard.len() as i64;
        let before = std::mem::replace(&mut self.handshakes.counted, under_way);
        self.shared.metrics.transports.under_way.add(under_way - before);
    }

    /// Moves a connection whose handshake is done to the worker's epoll instance.
    pub(super) fn finish_handshake(&mut self, epoll: &Epoll, slot: Slot) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(transport) = &client.transport else { return };
        if !client.flags.shaking_hands || !transport.is_open() {
            return;
        }
        let result = match transport.handshake() {
            Some(tidegate_transport::Handshake::Resumed) => "resumed",
            Some(tidegate_transport::Handshake::Full) => "full",
            None => "open",
        };
        self.shared.metrics.transports.handshake(client.kind, result);
        self.handshakes.end(client.id);
        client.flags.shaking_hands = false;
        let event = client.interest();
        let moved = client.fd().map(|fd| self.handshakes.epoll.delete(fd).and_then(|()| epoll.add(fd, event)));
        if let Some(Err(error)) = moved {
            // It would never be heard again; its keep-alive ends it.
            warn!(%error, "a connection could not be registered");
        }
    }

    /// A connection ends whose handshake was under way.
    pub(super) fn abandon_handshake(&mut self, slot: Slot, reason: &'static str) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        if !std::mem::take(&mut client.flags.shaking_hands) {
            return;
        }
        // Its socket may stay open for a while.
        let _ = client.fd().map(|fd| self.handshakes.epoll.delete(fd));
        let fault = client.transport.as_ref().and_then(|transport| transport.fault());
        let (kind, result) = (client.kind, fault.map_or(reason, |fault| fault.name()));
        debug!(transport = kind.name(), peer = ?client.peer(), result, "a handshake failed");
        self.shared.metrics.transports.handshake(kind, result);
        self.handshakes.end(client.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> SessionId {
        SessionId::new(0, 1, n)
    }

    #[test]
    fn the_name_is_no_connections() {
        assert!(SessionId::new(255, u32::MAX, u32::MAX as usize).bits() < HANDSHAKES);
    }

    #[test]
    fn whoever_was_silent_for_longest_makes_room() {
        let mut handshakes = Handshakes::new(3, 1).unwrap();
        for n in 0..3 {
            assert!(matches!(handshakes.room(0), Room::Free));
            handshakes.begin(id(n), n as u64);
        }
        assert!(matches!(handshakes.room(500), Room::None), "nobody was silent for long");
        handshakes.hear(id(0), 900);
        assert!(matches!(handshakes.room(1_001), Room::Instead(silent) if silent == id(1)));
        handshakes.end(id(1));
        assert!(matches!(handshakes.room(1_001), Room::Free));
        handshakes.begin(id(3), 1_001);
        assert!(matches!(handshakes.room(1_002), Room::Instead(silent) if silent == id(2)));
        handshakes.end(id(2));
        handshakes.begin(id(4), 1_002);
        assert!(matches!(handshakes.room(1_899), Room::None));
        assert!(matches!(handshakes.room(1_900), Room::Instead(silent) if silent == id(0)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut handshakes = Handshakes::new(10, 2).unwrap();
        for n in 0..10_000 {
            handshakes.begin(id(n), n as u64);
            handshakes.end(id(n));
        }
        assert!(handshakes.order.len() <= 2 * 5 + 64);
    }
}
