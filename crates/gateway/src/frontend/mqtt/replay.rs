//! Retained messages on their way to new subscriptions, at the pace at which their clients take them.
//!
//! A session that is kept over a restart is owed them after it as well: the row of its subscription says so until the last is on its way. How far it
//! was is not written down, so the next start begins again with the first.

use std::collections::{HashMap, VecDeque};

use tidegate_mqtt::{Delivered, Delivery, Found, QoS, Replay};

use super::Now;
use super::clients::Slot;
use super::kept::{self, Subscription};
use super::reactor::Reactor;
use crate::frontend::router::SessionId;

/// Topics looked at for one client before others have their turn: a millisecond.
const PLACES: u32 = 4096;

/// Messages sent to one client before others have their turn, and how many places each of them counts for.
const MESSAGES: usize = 256;
const MESSAGE: u32 = 16;

/// Places looked at for all clients before the worker reads its sockets again.
const ROUND: u32 = 4 * PLACES;

/// Bytes that may wait to be sent to a client before it is given more retained messages: enough to fill its socket.
const UNSENT: usize = 64 * 1024;

/// Subscriptions of one client whose retained messages are listed; those of more are found by going through all topics, which takes
/// time instead of memory.
const LISTING: usize = 16;

/// Topics looked at in one round of the worker to list those of new subscriptions: some milliseconds. A single read brings thousands of
/// SUBSCRIBEs, each of which may list a thousand; what is listed no more is found by going through all topics.
const LISTABLE: u32 = 65_536;

/// What one subscription is still to be sent.
struct Owed {
    replay: Replay,
    subscription: Subscription,
}

/// Replays of a worker's clients, also of those that are away.
pub(super) struct Replays {
    owed: HashMap<SessionId, VecDeque<Owed>>,
    /// Clients that could be sent more.
    ready: Vec<SessionId>,
    /// Who had the last turn: the next is the one behind.
    last: Option<SessionId>,
    /// What is left of [`LISTABLE`] in this round.
    pub(super) listable: u32,
}

impl Default for Replays {
    fn default() -> Replays {
        Replays { owed: HashMap::new(), ready: Vec::new(), last: None, listable: LISTABLE }
    }
}

impl Replays {
    /// Whether a further replay of `id` may have a list.
    pub(super) fn may_list(&self, id: SessionId) -> bool {
        self.owed.is_empty() || self.owed.get(&id).is_none_or(|owed| owed.len() < LISTING)
    }

    pub(super) fn add(&mut self, id: SessionId, replay: Replay, subscription: Subscription) {
        let owed = self.owed.entry(id).or_default();
        // The filter was subscribed to anew: what was left is part of what is to be sent now.
        owed.retain(|other| other.replay.filter() != replay.filter());
        owed.push_back(Owed { replay, subscription });
        self.ready.push(id);
    }

    /// The client can take more.
    pub(super) fn wake(&mut self, id: SessionId) {
        if !self.owed.is_empty() && self.owed.contains_key(&id) {
            self.ready.push(id);
        }
    }

    /// The client unsubscribed.
    pub(super) fn forget(&mut self, id: SessionId, filter: &str) {
        if let Some(owed) = self.owed.get_mut(&id) {
            owed.retain(|owed| owed.replay.filter() != filter);
            if owed.is_empty() {
                self.owed.remove(&id);
            }
        }
    }

    pub(super) fn forget_all(&mut self, id: SessionId) {
        self.owed.remove(&id);
    }

    /// Whether somebody can be sent more now.
    pub(super) fn are_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Reactor {
    /// Sends retained messages to those clients that take more.
    pub(super) fn replay(&mut self, now: Now) {
        self.replays.listable = LISTABLE;
        if !self.replays.are_ready() {
            return;
        }
        let mut ready = std::mem::take(&mut self.replays.ready);
        ready.sort_unstable();
        ready.dedup();
        let next = ready.partition_point(|id| Some(*id) <= self.replays.last);
        ready.rotate_left(next);
        let mut round = ROUND;
        for id in ready {
            if round == 0 {
                self.replays.ready.push(id);
                continue;
            }
            self.replays.last = Some(id);
            let Some((slot, _)) = self.clients.by_id(id) else {
                self.replays.forget_all(id);
                continue;
            };
            let Some(mut owed) = self.replays.owed.remove(&id) else { continue };
            let places = PLACES.min(round);
            let (left, more) = self.replay_to(slot, &mut owed, places, now);
            round -= places - left;
            if !owed.is_empty() {
                self.replays.owed.insert(id, owed);
            }
            if more {
                self.replays.ready.push(id);
            }
        }
    }

    /// Sends what is owed until the client is full, or others must have their turn, which is when `places` have been looked at; returns how
    /// many were not, and whether the client could be sent more.
    fn replay_to(&mut self, slot: Slot, owed: &mut VecDeque<Owed>, mut places: u32, now: Now) -> (u32, bool) {
        let millis = now.steady_millis();
        for _ in 0..MESSAGES {
            let Some(next) = owed.front_mut() else { return (places, false) };
            let client = self.clients.get(slot).filter(|client| client.socket.is_some());
            let Some(client) = client else { return (places, false) };
            let Subscription { options, id, owed: noted } = next.subscription;
            let room = options.qos == QoS::AtMostOnce || client.connection.has_room(&self.limits);
            if client.unsent() >= UNSENT || !room {
                // It is woken when it has read or acknowledged.
                return (places, false);
            }
            let message = match self.shared.router.next_retained(&mut next.replay, millis, &mut places) {
                Found::Message(message) => message,
                Found::Nothing => return (places, true),
                Found::End => {
                    places = places.saturating_sub(MESSAGE);
                    if let Some(kept) = client.kept.as_ref().filter(|_| noted) {
                        let (rows, filter) = (&mut self.commits.rows, next.replay.filter());
                        let subscription = Subscription { owed: false, ..next.subscription };
                        kept::put_subscription(rows, kept.incarnation, filter, subscription);
                    }
                    owed.pop_front();
                    continue;
                }
            };
            places = places.saturating_sub(MESSAGE);
            let ids = if id == 0 { &[][..] } else { std::slice::from_ref(&id) };
            let delivery = Delivery { qos: options.qos, retain: true, ids, group: 0 };
            let mut out = std::mem::take(&mut self.out);
            let Some(client) = self.clients.get_mut(slot) else { return (places, false) };
            match client.connection.deliver(&self.limits, &message, delivery, millis, &mut out) {
                Delivered::Sent(_) => self.shared.metrics.mqtt_delivered.inc(),
                Delivered::Queued => {}
                Delivered::Dropped(dropped) => {
                    self.shared.metrics.mqtt_undelivered.with_label_values(&[dropped.name()]).inc();
                }
            }
            self.give(slot, &mut out);
            self.out = out;
        }
        (places, true)
    }
}
