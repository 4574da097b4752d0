//! Who observes (RFC 7641) by way of this worker, and telling them.
//!
//! # Constraints
//!
//! An endpoint that observes takes 64 bytes here and, a relation, 48 ([`tidegate_coap::observe`]); it has no timer. Not more than NSTART
//! notifications are under way to it (RFC 7641 §4.5.1), and not more than [`ROUND`] are begun between two looks at the
//! socket, so that the acknowledgements of a change that a hundred thousand observe are read while it is told.
//!
//! # Operation
//!
//! What changed is put in line ([`Observers::changed`]) and told in rounds ([`Observers::tell`]). A notification that cannot leave yet
//! stays with its relation, which is silent until it can: because another one is under way to its endpoint (its acknowledgement lets the
//! next one go), because all exchanges are taken (the endpoint is put in line again), or because nobody answered. In the last case the
//! device sleeps. When it is heard of, from whatever address and by whichever worker, its silent relations move
//! there ([`Observers::leave`], [`Observers::adopt`]) and are told what they missed.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use slab::Slab;
use thin_vec::ThinVec;
use tidegate_coap::Seconds;
use tidegate_coap::mid::Sequence;
use tidegate_coap::observe::{ANY_NUMBER, Begin, Ended, Notification, Policy, Registered, Relations, is_newer};
use tidegate_record::DeviceId;

use super::transport::Endpoint;
use crate::frontend::topics::{TopicRef, Topics};

/// Notifications begun between two looks at the socket: some milliseconds' worth.
const ROUND: usize = 1024;

/// Endpoints looked at in a second for relations that are silent for too long: a million in a quarter of an hour.
const SWEPT: usize = 1024;

/// The relations of an endpoint are all its own, so it has one number for [`Relations`].
const OWN: u32 = 0;

/// What is under way with an endpoint, as its exchange remembers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    /// A response apart from its acknowledgement.
    Response,
    /// A notification.
    Notification,
    /// An empty message, to be answered by a Reset.
    Ping,
}

/// Whether a notification has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// With this message ID.
    Yes(u16),
    /// The same, and the relation has ended with it (RFC 7641 §4.2).
    Last(u16),
    /// Another one is under way to the endpoint, or it was sent too many already: on its acknowledgement.
    Later,
    /// There is no room for another exchange: as soon as there is.
    Full,
}

#[derive(Debug)]
struct Observer {
    endpoint: Endpoint,
    /// Whose it is, if it said so.
    device: Option<DeviceId>,
    relations: Relations<TopicRef>,
    /// Message IDs of what is sent to it, if it is no device's.
    mids: Sequence,
    /// It did not answer.
    asleep: bool,
    /// It is in line to be told what is silent.
    in_line: bool,
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Observers {
    worker: usize,
    policy: Policy,
    slots: Slab<Observer>,
    by_endpoint: HashTable<u32>,
    hasher: RandomState,
    /// Relations of all endpoints.
    relations: usize,
    /// Topics that changed and the endpoints that are to hear of it.
    line: VecDeque<(u32, Option<TopicRef>)>,
    /// The endpoints of devices that sleep.
    asleep: HashMap<DeviceId, ThinVec<u32>>,
    /// The highest number of relations that ended, whose observers may come back, and when one last did.
    ended: Option<(u32, Duration)>,
    /// Slot that the sweep goes on with, and when it last did.
    swept: (usize, u64),
    /// Scratch.
    topics: Vec<TopicRef>,
    found: Vec<u32>,
}

impl Observers {
    pub(super) fn new(worker: usize, policy: Policy) -> Observers {
        Observers {
            worker,
            policy,
            slots: Slab::new(),
            by_endpoint: HashTable::new(),
            hasher: RandomState::default(),
            relations: 0,
            line: VecDeque::new(),
            asleep: HashMap::new(),
            ended: None,
            swept: (0, 0),
            topics: Vec::new(),
            found: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Relations held.
    pub(super) fn relations(&self) -> usize {
        self.relations
    }

    /// Whether there is something to tell.
    pub(super) fn has_news(&self) -> bool {
        !self.line.is_empty()
    }

    fn slot(&self, endpoint: &Endpoint) -> Option<u32> {
        let hash = self.hasher.hash_one(endpoint);
        self.by_endpoint.find(hash, |&slot| self.slots[slot as usize].endpoint == *endpoint).copied()
    }

    fn slot_or_insert(&mut self, endpoint: Endpoint, device: Option<&DeviceId>, random: u32) -> u32 {
        if let Some(slot) = self.slot(&endpoint) {
            let observer = &mut self.slots[slot as usize];
            if observer.device.is_none() {
                observer.device = device.cloned();
            }
            return slot;
        }
        let slot = self.slots.insert(Observer {
            endpoint,
            device: device.cloned(),
            relations: Relations::new(),
            mids: Sequence::new(random as u16),
            asleep: false,
            in_line: false,
        }) as u32;
        let Observers { by_endpoint, hasher, slots, .. } = self;
        let hash = |slot: &u32| hasher.hash_one(slots[*slot as usize].endpoint);
        by_endpoint.insert_unique(hash(&slot), slot, hash);
        slot
    }

    /// Registers the request with `token`. The caller has pinned `topic` and lets it go afterwards.
    #[expect(clippy::too_many_arguments, reason = "each is another thing, and there is one caller")]
    pub(super) fn register(
        &mut self,
        topics: &Topics,
        of: (Endpoint, Option<&DeviceId>),
        token: &[u8],
        topic: &TopicRef,
        (szx, format): (u8, u16),
        now: Duration,
        random: u32,
    ) -> Registered {
        let begin = Begin { szx, format, above: self.above(now) };
        let slot = self.slot_or_insert(of.0, of.1, random);
        let observer = &mut self.slots[slot as usize];
        let before = observer.relations.observed(OWN, token).cloned();
        let observed = observer.relations.of_topic(topic) > 0;
        let registered = observer.relations.register(OWN, token, topic.clone(), begin, now, &self.policy);
        if registered != Registered::No {
            if !observed {
                topics.watch(topic, self.worker, slot);
            }
            match before {
                None => self.relations += 1,
                Some(before) if before != *topic => {
                    if observer.relations.of_topic(&before) == 0 {
                        topics.unwatch(&before, self.worker, slot);
                    }
                }
                Some(_) => {}
            }
        }
        self.remove_if_empty(slot);
        registered
    }

    /// The number that those of a new relation must exceed, for an observer that had one before.
    fn above(&self, now: Duration) -> Option<u32> {
        let (number, at) = self.ended?;
        (now.saturating_sub(at).as_secs() <= u64::from(ANY_NUMBER)).then_some(number)
    }

    /// The response that registered `endpoint` with `token` has a message ID of its own: a reset of it ends the relation.
    pub(super) fn responded(&mut self, endpoint: &Endpoint, token: &[u8], mid: u16) {
        if let Some(slot) = self.slot(endpoint) {
            self.slots[slot as usize].relations.responded(OWN, token, mid);
        }
    }

    /// Ends the relation with `token`.
    pub(super) fn deregister(&mut self, topics: &Topics, endpoint: &Endpoint, token: &[u8], now: Duration) {
        if let Some(slot) = self.slot(endpoint) {
            self.end(topics, slot, token, now);
        }
    }

    fn end(&mut self, topics: &Topics, slot: u32, token: &[u8], now: Duration) {
        let Some(observer) = self.slots.get_mut(slot as usize) else { return };
        if let Some(ended) = observer.relations.deregister(OWN, token) {
            self.ended(topics, slot, &ended, now);
        }
    }

    /// The notification with `mid` was reset: the relation ends.
    pub(super) fn refused(&mut self, topics: &Topics, endpoint: &Endpoint, mid: u16, now: Duration) -> bool {
        let Some(slot) = self.slot(endpoint) else { return false };
        let ended = self.slots[slot as usize].relations.refused(OWN, mid);
        if let Some(ended) = &ended {
            self.ended(topics, slot, ended, now);
        }
        // What waited for the exchange can go now.
        self.put_in_line(slot);
        ended.is_some()
    }

    fn ended(&mut self, topics: &Topics, slot: u32, ended: &Ended<TopicRef>, now: Duration) {
        self.relations -= 1;
        if self.slots[slot as usize].relations.of_topic(&ended.topic) == 0 {
            topics.unwatch(&ended.topic, self.worker, slot);
        }
        let higher = self.above(now).filter(|&above| is_newer(above, ended.number));
        self.ended = Some((higher.unwrap_or(ended.number), now));
        self.remove_if_empty(slot);
    }

    fn remove_if_empty(&mut self, slot: u32) {
        let observer = &self.slots[slot as usize];
        if !observer.relations.is_empty() {
            return;
        }
        if observer.asleep {
            self.wake(slot);
        }
        let hash = self.hasher.hash_one(self.slots[slot as usize].endpoint);
        if let Ok(entry) = self.by_endpoint.find_entry(hash, |&other| other == slot) {
            entry.remove();
        }
        self.slots.remove(slot as usize);
    }

    /// Takes the slot off the list of those that sleep.
    fn wake(&mut self, slot: u32) {
        let observer = &mut self.slots[slot as usize];
        observer.asleep = false;
        let Some(device) = &observer.device else { return };
        if let Some(slots) = self.asleep.get_mut(device) {
            slots.retain(|&other| other != slot);
            if slots.is_empty() {
                self.asleep.remove(device);
            }
        }
    }

    /// Puts in line what changed since the last call.
    pub(super) fn changed(&mut self, topics: &Topics) {
        topics.take_list(self.worker, &mut self.topics);
        for topic in self.topics.drain(..) {
            topics.take(&topic, self.worker, &mut self.found);
            self.line.extend(self.found.drain(..).map(|slot| (slot, Some(topic.clone()))));
        }
    }

    fn put_in_line(&mut self, slot: u32) {
        if let Some(observer) = self.slots.get_mut(slot as usize)
            && !observer.in_line
            && observer.relations.any_silent()
        {
            observer.in_line = true;
            self.line.push_back((slot, None));
        }
    }

    /// Tells a round of what is in line. `send` sends the notification to the endpoint.
    pub(super) fn tell(
        &mut self,
        topics: &Topics,
        now: Duration,
        mut send: impl FnMut(&Endpoint, Option<&DeviceId>, &mut Sequence, Notification<'_, TopicRef>) -> Sent,
    ) {
        for _ in 0..ROUND {
            let Some((slot, topic)) = self.line.pop_front() else { return };
            let Some(observer) = self.slots.get_mut(slot as usize) else { continue };
            let Observer { endpoint, device, relations, mids, asleep, in_line, .. } = observer;
            let mut full = false;
            let mut last: Vec<Box<[u8]>> = Vec::new();
            let send = |notification: Notification<'_, TopicRef>| {
                // Who sleeps is told on waking.
                if full || *asleep {
                    return None;
                }
                let token = notification.token;
                match send(endpoint, device.as_ref(), mids, notification) {
                    Sent::Yes(mid) => Some(mid),
                    Sent::Last(mid) => {
                        last.push(token.into());
                        Some(mid)
                    }
                    Sent::Later => None,
                    Sent::Full => {
                        full = true;
                        None
                    }
                }
            };
            match topic {
                // The slot may be another endpoint's by now, which then does not observe the topic.
                Some(topic) => relations.notify(&topic, now, &self.policy, send),
                None => {
                    *in_line = false;
                    if !*asleep {
                        relations.heard(now, &self.policy, send);
                    }
                }
            }
            for token in last {
                self.end(topics, slot, &token, now);
            }
            if full {
                self.put_in_line(slot);
                return;
            }
        }
    }

    /// What was under way to `endpoint` with `mid` is acknowledged.
    pub(super) fn acknowledged(
        &mut self,
        topics: &Topics,
        endpoint: &Endpoint,
        mid: u16,
        now: Duration,
        mut send: impl FnMut(&Endpoint, Option<&DeviceId>, &mut Sequence, Notification<'_, TopicRef>) -> Sent,
    ) {
        let Some(slot) = self.slot(endpoint) else { return };
        let Observer { endpoint, device, relations, mids, .. } = &mut self.slots[slot as usize];
        let mut last: Option<Box<[u8]>> = None;
        relations.acknowledged(OWN, mid, now, &self.policy, |notification| {
            let token = notification.token;
            match send(endpoint, device.as_ref(), mids, notification) {
                Sent::Yes(mid) => Some(mid),
                Sent::Last(mid) => {
                    last = Some(token.into());
                    Some(mid)
                }
                Sent::Later | Sent::Full => None,
            }
        });
        if let Some(token) = last {
            self.end(topics, slot, &token, now);
        }
        self.put_in_line(slot);
    }

    /// What was under way to `endpoint` with `mid` was not answered. Returns the device, if it is known and now counts as asleep.
    pub(super) fn gave_up(
        &mut self,
        topics: &Topics,
        endpoint: &Endpoint,
        mid: u16,
        now: Duration,
    ) -> Option<DeviceId> {
        let slot = self.slot(endpoint)?;
        let observer = &mut self.slots[slot as usize];
        // Only a device that says its name can be known again at another address; of others, the RFC has it right.
        let silence = if observer.device.is_some() { self.policy.silence } else { 0 };
        let policy = Policy { silence, ..self.policy };
        if let Some(ended) = observer.relations.gave_up(OWN, mid, now, &policy) {
            self.ended(topics, slot, &ended, now);
            self.put_in_line(slot);
            return None;
        }
        if observer.asleep || !observer.relations.any_silent() {
            return None;
        }
        observer.asleep = true;
        let device = observer.device.clone()?;
        self.asleep.entry(device.clone()).or_default().push(slot);
        Some(device)
    }

    /// `endpoint` sent something.
    pub(super) fn heard(&mut self, endpoint: &Endpoint) {
        if let Some(slot) = self.slot(endpoint)
            && self.slots[slot as usize].asleep
        {
            self.wake(slot);
            self.put_in_line(slot);
        }
    }

    /// `device` was heard of at `endpoint`: what of it slept here is told, if it is there still; otherwise it leaves, to be
    /// [adopted](Self::adopt) by whoever serves that endpoint.
    /// Its topics are pinned, one by each relation.
    pub(super) fn leave(
        &mut self,
        topics: &Topics,
        device: &DeviceId,
        endpoint: &Endpoint,
    ) -> Option<Relations<TopicRef>> {
        let mut leaving: Option<Relations<TopicRef>> = None;
        for slot in self.asleep.remove(device).unwrap_or_default() {
            let observer = &mut self.slots[slot as usize];
            observer.asleep = false;
            if observer.endpoint == *endpoint {
                self.put_in_line(slot);
                continue;
            }
            let silent = observer.relations.take_silent();
            for topic in silent.topics() {
                topics.pin(topic.name());
                // One that is observed twice is unwatched once.
                if self.slots[slot as usize].relations.of_topic(topic) == 0 {
                    topics.unwatch(topic, self.worker, slot);
                }
            }
            self.relations -= silent.len();
            self.remove_if_empty(slot);
            match &mut leaving {
                None => leaving = Some(silent),
                Some(leaving) => leaving.adopt(silent, &self.policy, |topic| topics.unpin(&topic)),
            }
        }
        leaving
    }

    /// Takes what [left](Self::leave) a worker, this one or another.
    pub(super) fn adopt(
        &mut self,
        topics: &Topics,
        endpoint: Endpoint,
        device: &DeviceId,
        taken: Relations<TopicRef>,
        random: u32,
    ) {
        let slot = self.slot_or_insert(endpoint, Some(device), random);
        let observer = &mut self.slots[slot as usize];
        let pinned: Vec<TopicRef> = taken.topics().cloned().collect();
        let mut watched: Vec<TopicRef> = observer.relations.topics().cloned().collect();
        let before = observer.relations.len();
        // What has no place here ends.
        observer.relations.adopt(taken, &self.policy, |_| ());
        self.relations += observer.relations.len() - before;
        for topic in observer.relations.topics() {
            if !watched.contains(topic) {
                topics.watch(topic, self.worker, slot);
                watched.push(topic.clone());
            }
        }
        for topic in pinned {
            topics.unpin(&topic);
        }
        self.put_in_line(slot);
        self.remove_if_empty(slot);
    }

    /// A message ID for a message to `endpoint`, if it observes and is no device's.
    pub(super) fn next_mid(&mut self, endpoint: &Endpoint, now: Seconds, lifetime: u32) -> Option<u16> {
        let slot = self.slot(endpoint)?;
        let observer = &mut self.slots[slot as usize];
        if observer.device.is_some() { None } else { observer.mids.next(now, lifetime) }
    }

    /// Ends relations that are silent for too long, some at a call. Returns the devices of which nothing sleeps here any more.
    pub(super) fn sweep(&mut self, topics: &Topics, now: Duration) -> Vec<DeviceId> {
        let mut gone = Vec::new();
        if self.is_empty() || self.swept.1 == now.as_secs() {
            return gone;
        }
        let from = self.swept.0;
        let upto = (from + SWEPT).min(self.slots.capacity());
        self.swept = (if upto >= self.slots.capacity() { 0 } else { upto }, now.as_secs());
        let mut ended = Vec::new();
        for slot in from..upto {
            let Some(observer) = self.slots.get_mut(slot) else { continue };
            observer.relations.expire(now, &self.policy, |topic| ended.push(topic));
            for topic in ended.drain(..) {
                // Ending the last one removes the slot, so the count goes down with each.
                self.relations -= 1;
                if self.slots[slot].relations.of_topic(&topic) == 0 {
                    topics.unwatch(&topic, self.worker, slot as u32);
                }
            }
            if !self.slots[slot].relations.any_silent() && self.slots[slot].asleep {
                gone.extend(self.slots[slot].device.clone());
                self.wake(slot as u32);
            }
            self.remove_if_empty(slot as u32);
        }
        gone
    }
}
