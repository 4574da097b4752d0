//! From what was published to who subscribed: the subscription trie, the retained messages, and the workers' inboxes.
//!
//! A message that somebody is to get is built once ([`Router::prepare`], when it is received), waits with its acknowledgement until it is
//! durable, and is then handed to the workers of its subscribers ([`Router::publish`]), one envelope a worker. While nobody subscribes to
//! anything, a message costs one atomic load.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use socket2::Socket;
use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::trie::{Inserted, Matches, TooDeep, Trie};
use tidegate_mqtt::{Message, QoS, Retained, SubscribeOptions};
use tidegate_transport::Transport;

use super::wake::Wake;

/// Most retained messages and the bytes they may take: one for each device of a full gateway, of the size of a reading.
const MAX_RETAINED: usize = 2_000_000;
const MAX_RETAINED_BYTES: usize = 512 << 20;

/// Names an MQTT session: its worker (8 bits), a generation (24 bits) and its slot there (32 bits). Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(NonZeroU64);

impl SessionId {
    pub(crate) fn new(worker: usize, generation: u32, slot: usize) -> SessionId {
        // The top bit keeps it from being zero, and from being the listener's name in epoll.
        let generation = u64::from(generation & 0x7F_FFFF);
        let bits = (worker as u64 & 0xFF) << 55 | generation << 32 | slot as u64 & 0xFFFF_FFFF;
        SessionId(NonZeroU64::MIN.saturating_add(bits))
    }

    pub(crate) fn from_bits(bits: u64) -> Option<SessionId> {
        NonZeroU64::new(bits).map(SessionId)
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

/// A message and who is to get it.
pub(crate) struct Published {
    message: Arc<Message>,
    targets: Vec<Target>,
    retain: bool,
}

/// One subscriber of a message.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) to: SessionId,
    /// Highest QoS of its subscriptions that matched.
    pub(crate) qos: QoS,
    /// The retain flag that it gets.
    pub(crate) retain: bool,
    /// Identifiers of its subscriptions that matched.
    pub(crate) ids: Box<[u32]>,
}

/// What a worker gets from others.
pub(crate) enum Envelope {
    /// A message for some of its clients.
    Message { message: Arc<Message>, targets: Vec<Target> },
    /// A connection whose session is here, with the MQTT bytes that were read from it.
    Connection { arrival: Arrival, bytes: Vec<u8> },
}

/// A connection that comes to a worker.
pub(crate) struct Arrival {
    pub(crate) socket: Socket,
    /// What is between the socket and MQTT; `None` if nothing is.
    pub(crate) transport: Option<Box<Transport>>,
}

struct Inbox {
    envelopes: Mutex<Vec<Envelope>>,
    mqtt: Arc<Wake>,
    coap: Arc<Wake>,
}

/// See the [module documentation](self).
pub(crate) struct Router {
    trie: RwLock<Trie<u64>>,
    retained: RwLock<Retained>,
    /// Subscriptions in `trie`, readable without its lock.
    subscriptions: AtomicUsize,
    inboxes: Box<[Inbox]>,
}

// A panic of another worker ends the process; until then its half-done change may at worst misdeliver a message.
fn unpoisoned<G>(result: Result<G, PoisonError<G>>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    pub(crate) fn new(workers: usize) -> Router {
        let inbox = || Inbox { envelopes: Mutex::default(), mqtt: Arc::default(), coap: Arc::default() };
        Router {
            trie: RwLock::new(Trie::new()),
            retained: RwLock::new(Retained::new(MAX_RETAINED, MAX_RETAINED_BYTES)),
            subscriptions: AtomicUsize::new(0),
            inboxes: (0..workers).map(|_| inbox()).collect(),
        }
    }

    pub(crate) fn coap_wake(&self, worker: usize) -> Arc<Wake> {
        self.inboxes[worker].coap.clone()
    }

    pub(crate) fn mqtt_wake(&self, worker: usize) -> Arc<Wake> {
        self.inboxes[worker].mqtt.clone()
    }

    /// Wakes the tasks that wait for commits.
    pub(crate) fn durable_moved(&self) {
        for inbox in &self.inboxes {
            inbox.coap.durable_moved();
            inbox.mqtt.durable_moved();
        }
    }

    pub(crate) fn wake_all(&self) {
        for inbox in &self.inboxes {
            inbox.coap.now();
            inbox.mqtt.now();
        }
    }

    /// Subscriptions held.
    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// Subscribes, or replaces a subscription to the same filter; says which.
    pub(crate) fn subscribe(
        &self,
        filter: &Filter<'_>,
        subscriber: SessionId,
        options: SubscribeOptions,
        id: u32,
    ) -> Result<Inserted, TooDeep> {
        let mut trie = unpoisoned(self.trie.write());
        let inserted = trie.insert(subscriber.bits(), filter, options, id);
        self.subscriptions.store(trie.len(), Ordering::Relaxed);
        inserted
    }

    /// Unsubscribes; false if there was no such subscription.
    pub(crate) fn unsubscribe(&self, filter: &Filter<'_>, subscriber: SessionId) -> bool {
        let mut trie = unpoisoned(self.trie.write());
        let there = trie.remove(subscriber.bits(), filter);
        self.subscriptions.store(trie.len(), Ordering::Relaxed);
        there
    }

    pub(crate) fn unsubscribe_all(&self, subscriber: SessionId) {
        let mut trie = unpoisoned(self.trie.write());
        trie.remove_all(subscriber.bits());
        self.subscriptions.store(trie.len(), Ordering::Relaxed);
    }

    /// The retained messages that match `filter`.
    pub(crate) fn retained(&self, filter: &Filter<'_>, now: u64) -> Vec<Arc<Message>> {
        let mut messages = Vec::new();
        unpoisoned(self.retained.read()).matches(filter, now, |message| {
            messages.push(Arc::clone(message));
            true
        });
        messages
    }

    /// Who is to get what `from` publishes to `topic`; `None` if nobody is, and it is not retained. `message` builds the message
    /// if somebody is. `matches` is scratch.
    pub(crate) fn prepare(
        &self,
        topic: &str,
        retain: bool,
        from: Option<SessionId>,
        matches: &mut Matches<u64>,
        message: impl FnOnce() -> Message,
    ) -> Option<Box<Published>> {
        if self.subscriptions() == 0 && !retain {
            return None;
        }
        let trie = unpoisoned(self.trie.read());
        trie.matches(topic, from.map(SessionId::bits), matches);
        if matches.is_empty() && !retain {
            return None;
        }
        let mut targets = Vec::with_capacity(matches.found().len());
        let mut target = |subscriber: u64, qos, as_published: bool, ids: &[u32]| {
            if let Some(to) = SessionId::from_bits(subscriber) {
                targets.push(Target { to, qos, retain: retain && as_published, ids: ids.into() });
            }
        };
        for found in matches.found() {
            target(found.subscriber, found.qos, found.retain_as_published, matches.ids(found));
        }
        if matches.has_groups() {
            trie.pick(
                matches,
                |_| true,
                |subscriber, qos, as_published, id| {
                    let ids = if id == 0 { &[][..] } else { std::slice::from_ref(&id) };
                    target(subscriber, qos, as_published, ids);
                },
            );
        }
        drop(trie);
        Some(Box::new(Published { message: Arc::new(message()), targets, retain }))
    }

    /// Retains the message if it asks for it, and puts it in the inboxes of the workers of its subscribers. The share of `local`,
    /// the calling worker, is given back instead.
    pub(crate) fn publish(&self, published: Published, local: Option<usize>) -> Option<(Arc<Message>, Vec<Target>)> {
        let Published { message, targets, retain } = published;
        if retain {
            unpoisoned(self.retained.write()).set(&message);
        }
        let worker = targets.first()?.to.worker();
        if targets.iter().all(|target| target.to.worker() == worker) {
            if local == Some(worker) {
                return Some((message, targets));
            }
            self.send(worker, Envelope::Message { message, targets });
            return None;
        }
        let mut shares: Vec<Vec<Target>> = vec![Vec::new(); self.inboxes.len()];
        for target in targets {
            if let Some(share) = shares.get_mut(target.to.worker()) {
                share.push(target);
            }
        }
        let mut own = None;
        for (worker, targets) in shares.into_iter().enumerate().filter(|(_, targets)| !targets.is_empty()) {
            if local == Some(worker) {
                own = Some((message.clone(), targets));
            } else {
                self.send(worker, Envelope::Message { message: message.clone(), targets });
            }
        }
        own
    }

    /// Puts an envelope in a worker's inbox.
    pub(crate) fn send(&self, worker: usize, envelope: Envelope) {
        let Some(inbox) = self.inboxes.get(worker) else { return };
        let mut envelopes = unpoisoned(inbox.envelopes.lock());
        let first = envelopes.is_empty();
        envelopes.push(envelope);
        drop(envelopes);
        if first {
            inbox.mqtt.now();
        }
    }

    /// Moves what is in a worker's inbox into `envelopes`, which is empty.
    pub(crate) fn take(&self, worker: usize, envelopes: &mut Vec<Envelope>) {
        std::mem::swap(&mut *unpoisoned(self.inboxes[worker].envelopes.lock()), envelopes);
    }

    /// Removes retained messages that have expired by `now`, some of them at each call.
    pub(crate) fn expire_retained(&self, now: u64, budget: u32) {
        unpoisoned(self.retained.write()).expire(now, budget);
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

    fn prepared(router: &Router, topic: &str, retain: bool) -> Option<Box<Published>> {
        router.prepare(topic, retain, None, &mut Matches::new(), || {
            Message::new(topic, b"payload", QoS::AtLeastOnce, retain)
        })
    }

    #[test]
    fn a_message_that_nobody_wants_is_not_built() {
        let router = Router::new(1);
        let build = || -> Message { panic!("built") };
        assert!(router.prepare("a", false, None, &mut Matches::new(), build).is_none());
        let id = SessionId::new(0, 1, 0);
        let filter = Filter::parse("b").unwrap();
        assert_eq!(router.subscribe(&filter, id, SubscribeOptions::default(), 0), Ok(Inserted::New));
        assert!(router.prepare("a", false, None, &mut Matches::new(), build).is_none());
        assert!(router.unsubscribe(&filter, id));
        assert_eq!(router.subscriptions(), 0);
    }

    #[test]
    fn each_worker_gets_one_envelope_and_the_caller_its_share() {
        let router = Router::new(3);
        let filter = Filter::parse("#").unwrap();
        for (worker, slot) in [(0, 1), (1, 1), (1, 2), (2, 1)] {
            router.subscribe(&filter, SessionId::new(worker, 1, slot), SubscribeOptions::default(), 0).unwrap();
        }
        let (_, own) = router.publish(*prepared(&router, "a", false).unwrap(), Some(1)).unwrap();
        assert_eq!(own.len(), 2);
        let count = |worker: usize| {
            let mut envelopes = Vec::new();
            router.take(worker, &mut envelopes);
            envelopes.len()
        };
        assert_eq!([count(0), count(1), count(2)], [1, 0, 1]);
        assert_eq!(count(0), 0, "taken");
    }

    #[test]
    fn what_is_retained_is_found_by_a_later_subscriber() {
        let router = Router::new(1);
        assert!(router.publish(*prepared(&router, "a/b", true).unwrap(), Some(0)).is_none());
        let found = router.retained(&Filter::parse("a/+").unwrap(), 0);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].topic(), "a/b");
    }
}
