//! Topics that CoAP endpoints observe (RFC 7641), what was last published to them, and who is to hear of it.
//!
//! # Constraints
//!
//! A topic is here while somebody observes it, or is about to. It takes some 100 bytes and its name, and with more than one observer 8 for each; a value is held as the message that MQTT
//! subscribers get. While nobody observes anything, a message that is published costs one atomic load.
//!
//! # Operation
//!
//! A registration [pins](Topics::pin) its topic, so that what is published from then on is noted, finds out the topic's value, and
//! then [watches](Topics::watch) it. A message that is published to a topic that is [found](Topics::find) here [changes](Topics::changed)
//! it once it is due, which puts the topic on the list of each worker that has observers of it; a worker
//! [takes](Topics::take) its list, and of each topic its value and which of its observers are concerned. A topic is on a list once,
//! however often it changes: observers get the last state (RFC 7641 §1.3).

use std::hash::BuildHasher;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use thin_vec::ThinVec;
use tidegate_mqtt::Message;

use super::acks::MAX_WORKERS;

/// Locks that publishers and registrations spread over.
const SHARDS: usize = 256;

/// What was published to a topic.
#[derive(Debug, Clone)]
pub(crate) struct Value {
    pub(crate) message: Message,
    /// The Content-Format that a CoAP device gave it (RFC 7252 §12.3).
    pub(crate) content_format: Option<u16>,
}

/// A topic that is observed, or about to be.
#[derive(Debug, Clone)]
pub(crate) struct TopicRef(Arc<Topic>);

impl PartialEq for TopicRef {
    fn eq(&self, other: &TopicRef) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Debug)]
struct Topic {
    name: Box<str>,
    state: Mutex<State>,
}

// With the two counts of its `Arc`, what an allocator gives in 80 bytes; a million of these are held.
const _: () = assert!(size_of::<Topic>() <= 56);

#[derive(Debug, Default)]
struct State {
    /// The value's message and Content-Format.
    message: Option<Message>,
    content_format: Option<u16>,
    /// Registrations that do not watch yet.
    pins: u32,
    watchers: Watchers,
}

#[derive(Debug, Clone, Copy)]
struct Watcher {
    slot: u32,
    worker: u8,
    /// The topic is on the worker's list. All watchers of one worker agree.
    listed: bool,
}

/// The watchers of a topic. Most topics are a device's own and have one.
#[derive(Debug, Default)]
enum Watchers {
    #[default]
    None,
    One(Watcher),
    Many(ThinVec<Watcher>),
}

impl Deref for Watchers {
    type Target = [Watcher];

    fn deref(&self) -> &[Watcher] {
        match self {
            Watchers::None => &[],
            Watchers::One(watcher) => std::slice::from_ref(watcher),
            Watchers::Many(watchers) => watchers,
        }
    }
}

impl DerefMut for Watchers {
    fn deref_mut(&mut self) -> &mut [Watcher] {
        match self {
            Watchers::None => &mut [],
            Watchers::One(watcher) => std::slice::from_mut(watcher),
            Watchers::Many(watchers) => watchers,
        }
    }
}

impl Watchers {
    fn push(&mut self, watcher: Watcher) {
        match self {
            Watchers::None => *self = Watchers::One(watcher),
            Watchers::One(first) => *self = Watchers::Many(ThinVec::from([*first, watcher].as_slice())),
            Watchers::Many(watchers) => watchers.push(watcher),
        }
    }

    fn remove(&mut self, at: usize) {
        match self {
            Watchers::None => {}
            Watchers::One(_) => *self = Watchers::None,
            Watchers::Many(watchers) => {
                watchers.swap_remove(at);
                if let [last] = watchers[..] {
                    *self = Watchers::One(last);
                }
            }
        }
    }
}

impl State {
    fn value(&self) -> Option<Value> {
        Some(Value { message: self.message.clone()?, content_format: self.content_format })
    }

    fn set(&mut self, value: Value) {
        (self.message, self.content_format) = (Some(value.message), value.content_format);
    }
}

/// See the [module documentation](self).
#[derive(Debug)]
pub(crate) struct Topics {
    shards: Box<[RwLock<HashTable<TopicRef>>]>,
    hasher: RandomState,
    /// Topics in all shards.
    len: AtomicUsize,
    /// Topics that changed, by worker.
    lists: Box<[Mutex<Vec<TopicRef>>]>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another worker ends the process; until then its half-done change may at worst misdeliver a notification.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl TopicRef {
    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// What was last published to it since it is observed, or what it was [given](TopicRef::give).
    pub(crate) fn value(&self) -> Option<Value> {
        lock(&self.0.state).value()
    }

    /// Gives it the value that it had before it was observed, unless something was published since.
    pub(crate) fn give(&self, value: Value) {
        let mut state = lock(&self.0.state);
        if state.message.is_none() {
            state.set(value);
        }
    }
}

impl Topics {
    pub(crate) fn new(workers: usize) -> Topics {
        Topics {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            hasher: RandomState::default(),
            len: AtomicUsize::new(0),
            lists: (0..workers).map(|_| Mutex::default()).collect(),
        }
    }

    /// Topics that are observed.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    fn place(&self, name: &str) -> (u64, &RwLock<HashTable<TopicRef>>) {
        let hash = self.hasher.hash_one(name);
        // Not the bits that the table takes.
        (hash, &self.shards[(hash >> 32) as usize % SHARDS])
    }

    /// The topic, if it is observed.
    pub(crate) fn find(&self, name: &str) -> Option<TopicRef> {
        if self.len() == 0 {
            return None;
        }
        let (hash, shard) = self.place(name);
        let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, |topic| *topic.0.name == *name).cloned()
    }

    /// The topic, which stays until it is [watched](Self::watch) or [let go](Self::unpin).
    pub(crate) fn pin(&self, name: &str) -> TopicRef {
        let (hash, shard) = self.place(name);
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.entry(hash, |topic| *topic.0.name == *name, |topic| self.hasher.hash_one(&*topic.0.name));
        let entry = entry.or_insert_with(|| {
            self.len.fetch_add(1, Ordering::Relaxed);
            TopicRef(Arc::new(Topic { name: name.into(), state: Mutex::default() }))
        });
        let topic = entry.get().clone();
        lock(&topic.0.state).pins += 1;
        topic
    }

    /// Lets a pinned topic go.
    pub(crate) fn unpin(&self, topic: &TopicRef) {
        self.remove_if_unused(topic, |state| state.pins -= 1);
    }

    /// Tells `worker` of changes of `topic` from now on, for its observer `slot`.
    pub(crate) fn watch(&self, topic: &TopicRef, worker: usize, slot: u32) {
        let mut state = lock(&topic.0.state);
        let listed = state.watchers.iter().any(|w| usize::from(w.worker) == worker && w.listed);
        state.watchers.push(Watcher { slot, worker: worker as u8, listed });
    }

    /// No more.
    pub(crate) fn unwatch(&self, topic: &TopicRef, worker: usize, slot: u32) {
        self.remove_if_unused(topic, |state| {
            let mine = |w: &Watcher| w.slot == slot && usize::from(w.worker) == worker;
            if let Some(at) = state.watchers.iter().position(mine) {
                state.watchers.remove(at);
            }
        });
    }

    fn remove_if_unused(&self, topic: &TopicRef, change: impl FnOnce(&mut State)) {
        let (hash, shard) = self.place(topic.name());
        // Before the topic's own lock, as in `pin`, so that nobody pins what is being removed.
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = lock(&topic.0.state);
        change(&mut state);
        if state.watchers.is_empty() && state.pins == 0 {
            drop(state);
            if let Ok(entry) = shard.find_entry(hash, |other| other == topic) {
                entry.remove();
                self.len.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Something was published to `topic`: puts it on the lists of the workers that have observers, and calls `wake` with those
    /// on whose list it was not.
    pub(crate) fn changed(&self, topic: &TopicRef, value: Value, mut wake: impl FnMut(usize)) {
        let mut news = [0u64; MAX_WORKERS / 64];
        {
            let mut state = lock(&topic.0.state);
            state.set(value);
            for watcher in state.watchers.iter_mut().filter(|watcher| !watcher.listed) {
                watcher.listed = true;
                news[usize::from(watcher.worker / 64)] |= 1 << (watcher.worker % 64);
            }
        }
        for (i, word) in news.into_iter().enumerate().filter(|(_, word)| *word != 0) {
            for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
                let worker = i * 64 + bit;
                if let Some(list) = self.lists.get(worker) {
                    lock(list).push(topic.clone());
                    wake(worker);
                }
            }
        }
    }

    /// Moves the list of `worker` to the end of `topics`.
    pub(crate) fn take_list(&self, worker: usize, topics: &mut Vec<TopicRef>) {
        topics.append(&mut lock(&self.lists[worker]));
    }

    /// The observers of `worker` that are to hear of a topic from its list, into `slots`. From now on the topic can be on the
    /// list again.
    pub(crate) fn take(&self, topic: &TopicRef, worker: usize, slots: &mut Vec<u32>) {
        let mut state = lock(&topic.0.state);
        for watcher in state.watchers.iter_mut().filter(|w| usize::from(w.worker) == worker) {
            watcher.listed = false;
            slots.push(watcher.slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_mqtt::QoS;

    use super::*;

    fn value(text: &str) -> Value {
        let message = Message::new("t", text.as_bytes(), QoS::AtLeastOnce, false);
        Value { message, content_format: None }
    }

    fn woken(topics: &Topics, topic: &TopicRef, text: &str) -> Vec<usize> {
        let mut woken = Vec::new();
        topics.changed(topic, value(text), |worker| woken.push(worker));
        woken
    }

    fn taken(topics: &Topics, worker: usize) -> Vec<(String, Vec<u32>)> {
        let mut list = Vec::new();
        topics.take_list(worker, &mut list);
        list.iter()
            .map(|topic| {
                let mut slots = Vec::new();
                topics.take(topic, worker, &mut slots);
                slots.sort_unstable();
                (topic.name().to_owned(), slots)
            })
            .collect()
    }

    #[test]
    fn a_topic_is_there_while_it_is_pinned_or_watched() {
        let topics = Topics::new(1);
        assert!(topics.find("a").is_none());
        let topic = topics.pin("a");
        assert_eq!(topics.pin("a"), topic);
        topics.watch(&topic, 0, 7);
        topics.unpin(&topic);
        topics.unpin(&topic);
        assert!(topics.find("a") == Some(topic.clone()) && topics.find("b").is_none());
        topics.unwatch(&topic, 0, 7);
        assert!(topics.find("a").is_none());
        assert_eq!(topics.len(), 0);
        assert_ne!(topics.pin("a"), topic, "another of the same name");
    }

    #[test]
    fn each_worker_hears_of_a_topic_once_until_it_has_taken_it() {
        let topics = Topics::new(MAX_WORKERS);
        let topic = topics.pin("a");
        for (worker, slot) in [(0, 1), (0, 2), (3, 1), (255, 9)] {
            topics.watch(&topic, worker, slot);
        }
        assert_eq!(woken(&topics, &topic, "one"), [0, 3, 255]);
        assert!(woken(&topics, &topic, "two").is_empty());
        topics.watch(&topic, 3, 4);
        assert!(woken(&topics, &topic, "three").is_empty(), "who joins is told with the others");
        assert_eq!(taken(&topics, 0), [("a".to_owned(), vec![1, 2])]);
        assert_eq!(woken(&topics, &topic, "four"), [0]);
        assert_eq!(taken(&topics, 3), [("a".to_owned(), vec![1, 4])]);
        assert_eq!(topic.value().unwrap().message.payload(), b"four");
    }

    #[test]
    fn watchers_come_and_go_in_any_number() {
        let topics = Topics::new(1);
        let topic = topics.pin("a");
        topics.watch(&topic, 0, 0);
        topics.unpin(&topic);
        for slot in 1..5 {
            topics.watch(&topic, 0, slot);
        }
        for (gone, left) in
            [(2, vec![0, 1, 3, 4]), (0, vec![1, 3, 4]), (9, vec![1, 3, 4]), (4, vec![1, 3]), (1, vec![3])]
        {
            topics.unwatch(&topic, 0, gone);
            assert_eq!(woken(&topics, &topic, "x"), [0]);
            assert_eq!(taken(&topics, 0), [("a".to_owned(), left)]);
        }
        topics.unwatch(&topic, 0, 3);
        assert_eq!((topics.len(), topics.find("a")), (0, None));
    }

    #[test]
    fn what_it_had_before_does_not_replace_what_came_since() {
        let topics = Topics::new(1);
        let topic = topics.pin("a");
        topic.give(value("before"));
        topics.changed(&topic, value("since"), |_| ());
        topic.give(value("before"));
        assert_eq!(topic.value().unwrap().message.payload(), b"since");
    }
}
