//! From what was published to who subscribed: the subscription trie, the retained messages, and the workers' inboxes.
//!
//! A message that somebody is to get is built once ([`Router::prepare`], when it is received), waits with its acknowledgement until it is
//! durable, and is then handed to the workers of its subscribers ([`Router::route`]), one envelope a worker. While nobody subscribes to
//! anything, a message costs one atomic load.
//!
//! # Retained messages
//!
//! A retained message is kept when it is durable, and is matched at that moment, not when it is received: with its place in the store
//! and its subscribers taken under one lock, a subscription that begins meanwhile gets it from one of the two and not from both. The
//! lock of the store is always taken before that of the trie. Of two messages for a topic the one received last stays, whichever is kept
//! first ([`turns`]).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use smallvec::SmallVec;
use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::trie::{Inserted, Matches, Trie, filter_bytes};
use tidegate_mqtt::{Found, Message, Replay, Retained, Retention, SubscribeOptions};

use super::topics::{Topics, Value};
use super::wake::Wake;

mod inboxes;
mod names;
mod published;
mod turns;

pub(crate) use inboxes::{Arrival, Envelope, Inboxes};
pub(crate) use names::{SessionId, Subscriber};
use published::Rare;
pub(crate) use published::{Left, Note, Origin, Published, Receipt, Served, Target, Targets};
use turns::Turns;

/// Most retained messages and the bytes they may take: one for each device of a full gateway, of the size of a reading.
const MAX_RETAINED: usize = 2_000_000;
const MAX_RETAINED_BYTES: usize = 512 << 20;

/// Where a message went.
pub(crate) struct Routed {
    /// The share of the calling worker.
    pub(crate) own: Option<(Message, Targets)>,
    /// To be given before the message is acknowledged.
    pub(crate) receipt: Option<Arc<Receipt>>,
    /// It was to be retained and is not: there is no room for it, or its topic has too many levels.
    pub(crate) unretained: bool,
}

/// Why a subscription is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotSubscribed {
    /// Its filter has more levels than any that is served.
    TooDeep,
    /// The client, or all clients together, have as many as they may.
    TooMany,
    /// Their filters would take more than they may.
    NoRoom,
}

/// See the [module documentation](self).
pub(crate) struct Router {
    trie: RwLock<Trie<u64>>,
    retained: RwLock<Retained>,
    /// The order of the messages that are to be retained.
    turns: Turns,
    /// Whose turn it is to write retained messages to the database.
    retained_turn: Mutex<()>,
    /// Subscriptions in `trie`, readable without its lock.
    subscriptions: AtomicUsize,
    max_subscriptions: usize,
    /// Bytes of their filters.
    max_filter_bytes: usize,
    /// Where the workers' shares go.
    pub(crate) inboxes: Inboxes,
    /// What CoAP endpoints observe.
    pub(crate) topics: Topics,
}

// A panic of another worker ends the process; until then its half-done change may at worst misdeliver a message.
fn unpoisoned<G>(result: Result<G, PoisonError<G>>) -> G {
    result.unwrap_or_else(PoisonError::into_inner)
}

impl Router {
    /// For `workers` workers and at most `max_subscriptions` subscriptions, whose filters take at most `max_filter_bytes`.
    pub(crate) fn new(workers: usize, max_subscriptions: usize, max_filter_bytes: usize) -> Router {
        Router {
            trie: RwLock::new(Trie::new()),
            retained: RwLock::new(Retained::new(MAX_RETAINED, MAX_RETAINED_BYTES)),
            turns: Turns::default(),
            retained_turn: Mutex::new(()),
            subscriptions: AtomicUsize::new(0),
            max_subscriptions,
            max_filter_bytes,
            inboxes: Inboxes::new(workers),
            topics: Topics::new(workers),
        }
    }

    /// The message that is retained for `topic`.
    pub(crate) fn retained_for(&self, topic: &str, now: u64) -> Option<Message> {
        unpoisoned(self.retained.read()).get(topic, now).cloned()
    }

    /// Subscriptions held.
    pub(crate) fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// Subscribes, or replaces a subscription to the same filter, which is always allowed; a new one only if the subscriber's filters
    /// take no more than `room` with it: `None` if it may have no further one. Says which it was, and what retained messages are to be sent;
    /// `budget` as for [`Retained::replay`].
    pub(crate) fn subscribe(
        &self,
        filter: &Filter<'_>,
        subscriber: Subscriber,
        options: SubscribeOptions,
        id: u32,
        room: Option<usize>,
        budget: &mut u32,
    ) -> Result<(Inserted, Option<Replay>), NotSubscribed> {
        let retained = unpoisoned(self.retained.read());
        let mut trie = unpoisoned(self.trie.write());
        let bytes = filter_bytes(filter);
        let refusal = match room {
            None => Some(NotSubscribed::TooMany),
            Some(_) if trie.len() >= self.max_subscriptions => Some(NotSubscribed::TooMany),
            Some(room) if trie.filter_bytes_of(subscriber.bits()) + bytes > room => Some(NotSubscribed::NoRoom),
            Some(_) if trie.filter_bytes() + bytes > self.max_filter_bytes => Some(NotSubscribed::NoRoom),
            Some(_) => None,
        };
        if let Some(refusal) = refusal
            && !trie.contains(subscriber.bits(), filter)
        {
            return Err(refusal);
        }
        let inserted = trie.insert(subscriber.bits(), filter, options, id).map_err(|_| NotSubscribed::TooDeep)?;
        self.subscriptions.store(trie.len(), Ordering::Relaxed);
        drop(trie);
        let replay = inserted.sends_retained(filter, options).then(|| retained.replay(filter, budget)).flatten();
        Ok((inserted, replay))
    }

    /// Unsubscribes; false if there was no such subscription.
    pub(crate) fn unsubscribe(&self, filter: &Filter<'_>, subscriber: Subscriber) -> bool {
        let mut trie = unpoisoned(self.trie.write());
        let there = trie.remove(subscriber.bits(), filter);
        self.subscriptions.store(trie.len(), Ordering::Relaxed);
        there
    }

    /// The filters that `subscriber` has subscribed to.
    pub(crate) fn subscriptions_of(&self, subscriber: Subscriber) -> Vec<String> {
        unpoisoned(self.trie.read()).of(subscriber.bits()).map(|(filter, _, _)| filter).collect()
    }

    pub(crate) fn unsubscribe_all(&self, subscriber: Subscriber) {
        let mut trie = unpoisoned(self.trie.write());
        trie.remove_all(subscriber.bits());
        self.subscriptions.store(trie.len(), Ordering::Relaxed);
    }

    /// Whether the client of a session with shared subscriptions is there: one that is away is passed over.
    pub(crate) fn set_present(&self, subscriber: Subscriber, present: bool) {
        unpoisoned(self.trie.write()).set_present(subscriber.bits(), present);
    }

    /// The retained messages for a subscription, if there is such a one, from the first on.
    pub(crate) fn replay(&self, filter: &Filter<'_>, subscriber: Subscriber) -> Option<Replay> {
        let is_there = unpoisoned(self.trie.read()).contains(subscriber.bits(), filter);
        is_there.then(|| unpoisoned(self.retained.read()).replay(filter, &mut 0)).flatten()
    }

    /// The next retained message of `replay`, looking at `budget` places at most.
    pub(crate) fn next_retained(&self, replay: &mut Replay, now: u64, budget: &mut u32) -> Found {
        unpoisoned(self.retained.read()).next(replay, now, budget)
    }

    /// Nobody else reads retained messages for the database while this is held.
    pub(crate) fn retained_turn(&self) -> MutexGuard<'_, ()> {
        unpoisoned(self.retained_turn.lock())
    }

    /// The retained message of `topic`, be it expired.
    pub(crate) fn retained_message(&self, topic: &str) -> Option<Message> {
        unpoisoned(self.retained.read()).get(topic, 0).cloned()
    }

    /// Keeps a retained message that was kept before; false if there is no room for it.
    pub(crate) fn restore_retained(&self, message: &Message) -> bool {
        unpoisoned(self.retained.write()).set(message) != Retention::Refused
    }

    /// Whether a message of `size` bytes for `topic` could be retained now.
    pub(crate) fn may_retain(&self, topic: &str, size: usize) -> bool {
        unpoisoned(self.retained.read()).has_room(topic, size)
    }

    /// Retained messages held, and their bytes.
    pub(crate) fn retained(&self) -> (usize, usize) {
        let retained = unpoisoned(self.retained.read());
        (retained.len(), retained.bytes())
    }

    /// What `from` publishes to `topic` and who is to get it; `None` if nobody is, and it is not retained. `message` builds the message
    /// if somebody is. `matches` is scratch.
    pub(crate) fn prepare(
        &self,
        topic: &str,
        retain: bool,
        from: Option<Subscriber>,
        matches: &mut Matches<u64>,
        message: impl FnOnce() -> Message,
    ) -> Option<Published> {
        let observed = self.topics.find(topic);
        let mut known = None;
        if !retain {
            if self.subscriptions() == 0 && observed.is_none() {
                return None;
            }
            let trie = unpoisoned(self.trie.read());
            trie.matches(topic, from.map(Subscriber::bits), matches);
            if matches.is_empty() && observed.is_none() {
                return None;
            }
            if !matches.has_groups() {
                known = Some(targets_of(&trie, matches, false));
            }
        }
        let message = message();
        let is_open = known.is_none();
        let rare = (is_open || observed.is_some()).then(|| {
            let turn = retain.then(|| self.turns.take(&message));
            Box::new(Rare { is_open, turn, from, observed, ..Rare::default() })
        });
        Some(Published { message, targets: known.unwrap_or_default(), rare })
    }

    /// Retains the message if it asks for it, and puts it in the inboxes of the workers of its subscribers. The share of `local`,
    /// the calling worker, is given back instead. The receipt, if there is one, wakes `wake`.
    pub(crate) fn route(&self, published: Published, local: Option<usize>, wake: Option<&Arc<Wake>>) -> Routed {
        let Published { message, targets: known, rare } = published;
        let Rare { is_open, turn, from, observed, content_format, origin, served } =
            rare.map(|rare| *rare).unwrap_or_default();
        let mut routed = Routed { own: None, receipt: None, unretained: false };
        let mut outdated = false;
        let mut targets = known;
        if is_open {
            let mut retained = turn.as_ref().map(|turn| (unpoisoned(self.retained.write()), turn));
            if let Some((retained, turn)) = &mut retained {
                outdated = !turn.comes();
                if !outdated {
                    routed.unretained = retained.set(&message) == Retention::Refused;
                }
            }
            let trie = unpoisoned(self.trie.read());
            let mut matches = Matches::new();
            trie.matches(message.topic(), from.map(Subscriber::bits), &mut matches);
            targets = targets_of(&trie, &matches, turn.is_some());
        }
        if !outdated && let Some(topic) = observed.or_else(|| self.topics.find(message.topic())) {
            let value = Value { message: message.clone(), content_format };
            self.topics.changed(&topic, value, |worker| self.inboxes.wake_coap(worker));
        }
        if !served.is_empty() {
            targets.retain(|target| !target.is_served(&served));
        }
        let Some(worker) = targets.first().map(|target| target.to.worker()) else { return routed };
        let mut shares: SmallVec<[(usize, Targets); 1]> = SmallVec::new();
        if targets.iter().all(|target| target.to.worker() == worker) {
            shares.push((worker, targets));
        } else {
            shares.extend((0..self.inboxes.len()).map(|worker| (worker, Targets::new())));
            for target in targets {
                if let Some((_, share)) = shares.get_mut(target.to.worker()) {
                    share.push(target);
                }
            }
            shares.retain(|(_, targets)| !targets.is_empty());
        }
        let needs_receipt = |worker: usize, targets: &[Target]| {
            local != Some(worker) && targets.iter().any(|target| target.is_stored(&message))
        };
        if let Some(wake) = wake {
            let left = shares.iter().filter(|(worker, targets)| needs_receipt(*worker, targets)).count();
            routed.receipt = (left > 0).then(|| Receipt::new(left, wake));
        }
        for (worker, targets) in shares {
            if local == Some(worker) {
                routed.own = Some((message.clone(), targets));
            } else {
                let receipt = routed.receipt.clone().filter(|_| needs_receipt(worker, &targets));
                let note = origin.map(Note::Served);
                self.inboxes.send(worker, Envelope::Message { message: message.clone(), targets, note, receipt });
            }
        }
        routed
    }

    /// The next member of the shared subscription `group`, which is to get a message that a session left which is over.
    pub(crate) fn member(&self, message: &Message, group: u64) -> Option<Target> {
        let mut matches = Matches::new();
        let trie = unpoisoned(self.trie.read());
        trie.matches(message.topic(), None, &mut matches);
        targets_of(&trie, &matches, message.retain()).into_iter().find(|target| target.group == group)
    }

    /// Removes retained messages that have expired by `now`, of `budget` topics at each call, and adds their topics to `gone`.
    pub(crate) fn expire_retained(&self, now: u64, budget: u32, gone: &mut Vec<Box<str>>) {
        unpoisoned(self.retained.write()).expire(now, budget, |topic| gone.push(topic.into()));
    }
}

/// Everybody who is to get what matched.
fn targets_of(trie: &Trie<u64>, matches: &Matches<u64>, retain: bool) -> Targets {
    let mut targets = Targets::with_capacity(matches.found().len());
    let mut target = |group, subscriber: u64, qos, as_published: bool, ids: &[u32]| {
        if let (Some(to), kept) = Subscriber::from_bits(subscriber) {
            targets.push(Target { to, group, kept, qos, retain: retain && as_published, ids: ids.into() });
        }
    };
    for found in matches.found() {
        target(0, found.subscriber, found.qos, found.retain_as_published, matches.ids(found));
    }
    if matches.has_groups() {
        trie.pick(matches, |picked| {
            let ids = if picked.id == 0 { &[][..] } else { std::slice::from_ref(&picked.id) };
            target(picked.group, picked.subscriber, picked.qos, picked.retain_as_published, ids);
        });
    }
    targets
}

#[cfg(test)]
mod tests {
    use tidegate_mqtt::QoS;

    use super::*;

    fn router(workers: usize) -> Router {
        Router::new(workers, 1000, 1 << 20)
    }

    fn prepared(router: &Router, topic: &str, retain: bool) -> Option<Published> {
        router.prepare(topic, retain, None, &mut Matches::new(), || {
            Message::new(topic, b"payload", QoS::AtLeastOnce, retain)
        })
    }

    fn subscribe(router: &Router, filter: &str, to: SessionId) -> Result<(Inserted, Option<Replay>), NotSubscribed> {
        let filter = Filter::parse(filter).unwrap();
        router.subscribe(&filter, to.subscriber(false), SubscribeOptions::default(), 0, Some(1 << 20), &mut 1000)
    }

    #[test]
    fn a_message_that_nobody_wants_is_not_built() {
        let router = router(1);
        let build = || -> Message { panic!("built") };
        assert!(router.prepare("a", false, None, &mut Matches::new(), build).is_none());
        let id = SessionId::new(0, 1, 0);
        assert_eq!(subscribe(&router, "b", id).unwrap().0, Inserted::New);
        assert!(router.prepare("a", false, None, &mut Matches::new(), build).is_none());
        assert!(router.unsubscribe(&Filter::parse("b").unwrap(), id.subscriber(false)));
        assert_eq!(router.subscriptions(), 0);
    }

    #[test]
    fn each_worker_gets_one_envelope_and_the_caller_its_share() {
        let router = router(3);
        for (worker, slot) in [(0, 1), (1, 1), (1, 2), (2, 1)] {
            subscribe(&router, "#", SessionId::new(worker, 1, slot)).unwrap();
        }
        let (_, own) = router.route(prepared(&router, "a", false).unwrap(), Some(1), None).own.unwrap();
        assert_eq!(own.len(), 2);
        let count = |worker: usize| {
            let mut envelopes = Vec::new();
            router.inboxes.take(worker, &mut envelopes);
            envelopes.len()
        };
        assert_eq!([count(0), count(1), count(2)], [1, 0, 1]);
        assert_eq!(count(0), 0, "taken");
    }

    #[test]
    fn what_is_retained_is_found_by_a_later_subscriber() {
        let router = router(1);
        assert!(router.route(prepared(&router, "a/b", true).unwrap(), Some(0), None).own.is_none());
        let (_, replay) = subscribe(&router, "a/+", SessionId::new(0, 1, 0)).unwrap();
        let mut replay = replay.unwrap();
        let Found::Message(found) = router.next_retained(&mut replay, 0, &mut 10) else { panic!("nothing") };
        assert_eq!(found.topic(), "a/b");
        assert!(matches!(router.next_retained(&mut replay, 0, &mut 10), Found::End));
    }

    #[test]
    fn of_two_retained_messages_the_one_received_last_stays_whichever_is_kept_first() {
        let router = router(1);
        let prepared = |payload: &[u8]| {
            let build = || Message::new("t", payload, QoS::AtLeastOnce, true);
            router.prepare("t", true, None, &mut Matches::new(), build).unwrap()
        };
        let kept = || router.retained_message("t").map(|message| message.payload().to_vec());
        let subscriber = SessionId::new(0, 1, 0);
        subscribe(&router, "t", subscriber).unwrap();
        for last in [&b"new"[..], b""] {
            let (old, new) = (prepared(b"old"), prepared(last));
            router.route(new, Some(0), None);
            let after = kept();
            assert_eq!(after, (!last.is_empty()).then(|| last.to_vec()));
            assert!(router.route(old, Some(0), None).own.is_some(), "subscribers get both");
            assert_eq!(kept(), after);
        }
        let (lost, old) = (prepared(b"not stored"), prepared(b"old"));
        router.route(old, Some(0), None);
        drop(lost);
        router.route(prepared(b"next"), Some(0), None);
        assert_eq!(kept().as_deref(), Some(&b"next"[..]));
    }

    #[test]
    fn a_subscriber_between_receipt_and_commit_gets_a_retained_message_once() {
        let router = router(1);
        let received = prepared(&router, "a/b", true).unwrap();
        let id = SessionId::new(0, 1, 0);
        assert!(subscribe(&router, "a/+", id).unwrap().1.is_none(), "it is not kept before it is durable");
        let (_, targets) = router.route(received, Some(0), None).own.unwrap();
        assert_eq!(targets.iter().map(|target| target.to).collect::<Vec<_>>(), [id]);
    }

    #[test]
    fn the_member_of_a_group_is_chosen_when_the_message_is_durable() {
        let router = router(1);
        let (first, second) = (SessionId::new(0, 1, 0), SessionId::new(0, 1, 1));
        subscribe(&router, "$share/g/t", first).unwrap();
        let received = prepared(&router, "t", false).unwrap();
        subscribe(&router, "$share/g/t", second).unwrap();
        router.set_present(first.subscriber(false), false);
        let (_, targets) = router.route(received, Some(0), None).own.unwrap();
        assert_eq!(targets.iter().map(|target| target.to).collect::<Vec<_>>(), [second]);
    }

    #[test]
    fn the_filters_of_a_client_and_of_all_are_bounded_by_their_bytes() {
        let (first, second) = (SessionId::new(0, 1, 0), SessionId::new(0, 1, 1));
        let [a, b, c] = ["a/long/filter", "b/long/filter", "c/long/filter"].map(|text| Filter::parse(text).unwrap());
        let each = filter_bytes(&a);
        let router = Router::new(1, 1000, 3 * each);
        let subscribe = |filter: &Filter<'_>, to: SessionId, room: usize| {
            let options = SubscribeOptions::default();
            router
                .subscribe(filter, to.subscriber(false), options, 0, Some(room), &mut 1000)
                .map(|(inserted, _)| inserted)
        };
        assert_eq!(subscribe(&a, first, each), Ok(Inserted::New));
        assert_eq!(subscribe(&b, first, 2 * each - 1), Err(NotSubscribed::NoRoom));
        assert_eq!(subscribe(&b, first, 2 * each), Ok(Inserted::New));
        assert_eq!(subscribe(&a, first, 0), Ok(Inserted::Replaced));
        // Of all: three.
        assert_eq!(subscribe(&a, second, usize::MAX), Ok(Inserted::New));
        assert_eq!(subscribe(&c, second, usize::MAX), Err(NotSubscribed::NoRoom));
        assert!(router.unsubscribe(&b, first.subscriber(false)));
        assert_eq!(subscribe(&c, second, usize::MAX), Ok(Inserted::New));
        router.unsubscribe_all(second.subscriber(false));
        assert_eq!(subscribe(&c, first, 2 * each), Ok(Inserted::New));
    }

    #[test]
    fn subscriptions_are_bounded_and_one_that_is_there_may_be_replaced() {
        let router = Router::new(1, 2, 1 << 20);
        let id = SessionId::new(0, 1, 0);
        subscribe(&router, "a", id).unwrap();
        subscribe(&router, "b", id).unwrap();
        assert_eq!(subscribe(&router, "c", id).unwrap_err(), NotSubscribed::TooMany);
        assert_eq!(subscribe(&router, "b", id).unwrap().0, Inserted::Replaced);
        let deep = vec!["a"; 200].join("/");
        router.unsubscribe_all(id.subscriber(false));
        assert_eq!(subscribe(&router, &deep, id).unwrap_err(), NotSubscribed::TooDeep);
        // A client's own bound is its worker's to know.
        let filter = Filter::parse("a").unwrap();
        let refused = router.subscribe(&filter, id.subscriber(false), SubscribeOptions::default(), 0, None, &mut 1000);
        assert_eq!(refused.unwrap_err(), NotSubscribed::TooMany);
    }
}
