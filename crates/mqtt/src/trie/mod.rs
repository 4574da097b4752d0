//! Subscriptions, and who is to get a message.
//!
//! # Constraints
//!
//! - Made for a million devices that each subscribe to a filter of their own, `cmd/<id>/#`, and for few wildcards before the
//!   last level: such a subscription costs one node, one entry and one slot in two hash tables, some 130 bytes.
//! - A match visits a node at most once and allocates nothing once its [`Matches`] has grown.
//! - A subscriber is a small `Copy` handle of the driver's choice.
//!
//! # Operation
//!
//! A filter is a path in a tree of levels. `+` is a child like others, noted at its parent so that a match need not look
//! for it; a final `#` is a list of its own at the parent. Each subscription is an entry in a doubly linked list at its
//! node and in a list of its subscriber's. A shared subscription is a member of a group instead of the node's list.
//!
//! Where several subscriptions of one subscriber match, it is given the message once, with the highest QoS, the identifiers
//! of all ([MQTT-3.3.4-2] to [MQTT-3.3.4-4]), and the retain flag as published if one of them asks for it.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU32, Ordering};

use foldhash::quality::RandomState;

use crate::packet::{QoS, SubscribeOptions};
use crate::topic::Filter;
pub use crate::tree::MAX_LEVELS;
use crate::tree::{Index, NONE, ROOT, Slab, Tree, Vacant};

mod matches;

pub use matches::{Match, Matches};

/// A handle that names a subscriber: small, and the driver's own.
pub trait Subscriber: Copy + Eq + Ord + Hash + Default + fmt::Debug {}

impl<T: Copy + Eq + Ord + Hash + Default + fmt::Debug> Subscriber for T {}

/// A filter with more than [`MAX_LEVELS`] levels; the client is told [`crate::Reason::QuotaExceeded`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a topic filter of more than {MAX_LEVELS} levels")]
pub struct TooDeep;

/// Whether a subscription is new, which decides whether retained messages are sent (MQTT 5 §3.8.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// There was none of this subscriber with this filter.
    New,
    /// One was replaced ([MQTT-3.8.4-3]).
    Replaced,
}

impl Inserted {
    /// Whether the retained messages that match `filter` are to be sent, as Retain Handling asks ([MQTT-3.3.1-9] to
    /// [MQTT-3.3.1-11]); a shared subscription is sent none (§4.8.2).
    #[must_use]
    pub fn sends_retained(self, filter: &Filter<'_>, options: SubscribeOptions) -> bool {
        filter.group().is_none()
            && match options.retain_handling {
                0 => true,
                1 => self == Inserted::New,
                _ => false,
            }
    }
}

/// What hangs at a node of the tree.
#[derive(Debug)]
struct Place {
    /// First entry of those whose filter ends here.
    here: u32,
    /// First entry of those whose filter goes on with a final `#`.
    below: u32,
    /// The child for `+`.
    plus: u32,
    /// Index of the groups of shared subscriptions.
    shared: u32,
}

impl Default for Place {
    fn default() -> Self {
        Place { here: NONE, below: NONE, plus: NONE, shared: NONE }
    }
}

impl Vacant for Place {
    fn is_vacant(&self) -> bool {
        self.here == NONE && self.below == NONE && self.shared == NONE
    }
}

/// One subscription.
#[derive(Debug, Clone, Copy)]
struct Entry<S> {
    subscriber: S,
    node: u32,
    /// Subscription identifier; 0 is none.
    id: u32,
    /// In the node's list; unused if shared.
    next: u32,
    /// In the node's list; the position among the members if shared.
    previous: u32,
    /// In the subscriber's list.
    next_own: u32,
    /// The group, if shared.
    group: u32,
    options: SubscribeOptions,
    /// The filter has a final `#` below `node`.
    below: bool,
}

impl<S: Default> Default for Entry<S> {
    fn default() -> Self {
        Entry {
            subscriber: S::default(),
            node: NONE,
            id: 0,
            next: NONE,
            previous: NONE,
            next_own: NONE,
            group: NONE,
            options: SubscribeOptions::default(),
            below: false,
        }
    }
}

/// Subscribers that share the messages of one filter between them.
#[derive(Debug, Default)]
struct Group {
    name: Box<str>,
    below: bool,
    /// Entries, in no order. Never empty.
    members: Vec<u32>,
    /// Whose turn it is, modulo the members.
    turn: AtomicU32,
}

/// The subscriptions of all clients.
#[derive(Debug)]
pub struct Trie<S> {
    tree: Tree<Place>,
    entries: Slab<Entry<S>>,
    groups: Slab<Group>,
    /// The groups at each node that has some.
    shared: Slab<Vec<u32>>,
    /// The first entry of each subscriber.
    own: Index<(S, u32)>,
    hasher: RandomState,
    len: usize,
}

impl<S: Subscriber> Default for Trie<S> {
    fn default() -> Self {
        Trie::new()
    }
}

impl<S: Subscriber> Trie<S> {
    /// A trie without subscriptions.
    #[must_use]
    pub fn new() -> Trie<S> {
        Trie {
            tree: Tree::new(),
            entries: Slab::new(),
            groups: Slab::new(),
            shared: Slab::new(),
            own: Index::new(),
            hasher: RandomState::default(),
            len: 0,
        }
    }

    /// Subscriptions held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes held, but for levels longer than 15 bytes and the groups of shared subscriptions.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.tree.bytes() + self.entries.bytes() + self.own.bytes()
    }

    /// Subscribes, or replaces the subscription that `subscriber` has with this very filter. `id` is the subscription
    /// identifier; 0 is none.
    pub fn insert(
        &mut self,
        subscriber: S,
        filter: &Filter<'_>,
        options: SubscribeOptions,
        id: u32,
    ) -> Result<Inserted, TooDeep> {
        if filter.pattern().split('/').count() > MAX_LEVELS {
            return Err(TooDeep);
        }
        let (path, below) = path(filter);
        let mut node = ROOT;
        for level in path {
            let child = self.tree.child_or_insert(node, level);
            if level == "+" {
                self.tree.value_mut(node).plus = child;
            }
            node = child;
        }
        if let Some((entry, _)) = self.find_own(subscriber, node, below, filter.group()) {
            let entry = self.entries.get_mut(entry);
            entry.options = options;
            entry.id = id;
            return Ok(Inserted::Replaced);
        }
        let entry = Entry { subscriber, node, id, options, below, ..Entry::default() };
        let at = self.entries.insert(entry);
        match filter.group() {
            None => self.link(at),
            Some(group) => self.join(at, group),
        }
        self.own_push(subscriber, at);
        self.len += 1;
        Ok(Inserted::New)
    }

    /// Unsubscribes; false if there was no such subscription.
    pub fn remove(&mut self, subscriber: S, filter: &Filter<'_>) -> bool {
        let (path, below) = path(filter);
        let mut node = ROOT;
        for level in path {
            let Some(child) = self.tree.child(node, level) else { return false };
            node = child;
        }
        let Some((at, before)) = self.find_own(subscriber, node, below, filter.group()) else { return false };
        let next_own = self.entries.get(at).next_own;
        if before != NONE {
            self.entries.get_mut(before).next_own = next_own;
        } else if next_own != NONE {
            let hash = self.hasher.hash_one(subscriber);
            if let Some((_, head)) = self.own.find_mut(hash, |(s, _)| *s == subscriber) {
                *head = next_own;
            }
        } else {
            let hash = self.hasher.hash_one(subscriber);
            self.own.remove(hash, |(s, _)| *s == subscriber);
        }
        self.drop_entry(at);
        true
    }

    /// Removes every subscription of `subscriber`; returns how many there were.
    pub fn remove_all(&mut self, subscriber: S) -> usize {
        let hash = self.hasher.hash_one(subscriber);
        let Some((_, mut at)) = self.own.remove(hash, |(s, _)| *s == subscriber) else { return 0 };
        let mut count = 0;
        while at != NONE {
            let next = self.entries.get(at).next_own;
            self.drop_entry(at);
            at = next;
            count += 1;
        }
        count
    }

    /// Gives every subscription of `from` to `to`, which has none: a session that goes on under another handle. Returns how
    /// many there are.
    pub fn rename(&mut self, from: S, to: S) -> usize {
        let hash = self.hasher.hash_one(from);
        let Some((_, head)) = self.own.remove(hash, |(s, _)| *s == from) else { return 0 };
        debug_assert!(self.own_head(to) == NONE);
        let hasher = &self.hasher;
        self.own.insert(hasher.hash_one(to), (to, head), |(s, _)| hasher.hash_one(*s));
        let (mut at, mut count) = (head, 0);
        while at != NONE {
            let entry = self.entries.get_mut(at);
            entry.subscriber = to;
            at = entry.next_own;
            count += 1;
        }
        count
    }

    /// The subscriptions of `subscriber`: filter, options, identifier. To be kept across restarts, and to be shown.
    pub fn of(&self, subscriber: S) -> impl Iterator<Item = (String, SubscribeOptions, u32)> + '_ {
        let mut at = self.own_head(subscriber);
        std::iter::from_fn(move || {
            if at == NONE {
                return None;
            }
            let entry = self.entries.get(at);
            at = entry.next_own;
            Some((self.text(entry), entry.options, entry.id))
        })
    }

    fn text(&self, entry: &Entry<S>) -> String {
        let mut text = String::new();
        if entry.group != NONE {
            text = format!("$share/{}/", self.groups.get(entry.group).name);
        }
        if entry.node == ROOT {
            text.push('#');
            return text;
        }
        text.push_str(&self.tree.path(entry.node));
        if entry.below {
            text.push_str("/#");
        }
        text
    }

    fn own_head(&self, subscriber: S) -> u32 {
        let hash = self.hasher.hash_one(subscriber);
        self.own.find(hash, |(s, _)| *s == subscriber).map_or(NONE, |&(_, head)| head)
    }

    fn own_push(&mut self, subscriber: S, at: u32) {
        let hash = self.hasher.hash_one(subscriber);
        if let Some((_, head)) = self.own.find_mut(hash, |(s, _)| *s == subscriber) {
            self.entries.get_mut(at).next_own = std::mem::replace(head, at);
            return;
        }
        let hasher = &self.hasher;
        self.own.insert(hash, (subscriber, at), |(s, _)| hasher.hash_one(*s));
    }

    /// The entry of `subscriber` at `node`, and the one before it in the subscriber's list. A subscriber has few filters; a
    /// node may have a million entries.
    fn find_own(&self, subscriber: S, node: u32, below: bool, group: Option<&str>) -> Option<(u32, u32)> {
        let (mut at, mut before) = (self.own_head(subscriber), NONE);
        while at != NONE {
            let entry = self.entries.get(at);
            let same_group = match group {
                None => entry.group == NONE,
                Some(name) => entry.group != NONE && *self.groups.get(entry.group).name == *name,
            };
            if entry.node == node && entry.below == below && same_group {
                return Some((at, before));
            }
            before = at;
            at = entry.next_own;
        }
        None
    }

    /// Puts the entry in its node's list.
    fn link(&mut self, at: u32) {
        let &Entry { node, below, .. } = self.entries.get(at);
        let place = self.tree.value_mut(node);
        let head = if below { &mut place.below } else { &mut place.here };
        let next = std::mem::replace(head, at);
        self.entries.get_mut(at).next = next;
        if next != NONE {
            self.entries.get_mut(next).previous = at;
        }
    }

    /// Makes the entry a member of its group.
    fn join(&mut self, at: u32, name: &str) {
        let &Entry { node, below, .. } = self.entries.get(at);
        let mut list = self.tree.get(node).value.shared;
        if list == NONE {
            list = self.shared.insert(Vec::new());
            self.tree.value_mut(node).shared = list;
        }
        let known = self.shared.get(list).iter().copied().find(|&g| {
            let group = self.groups.get(g);
            group.below == below && *group.name == *name
        });
        let group = known.unwrap_or_else(|| {
            let group = Group { name: name.into(), below, ..Group::default() };
            let id = self.groups.insert(group);
            self.shared.get_mut(list).push(id);
            id
        });
        let members = &mut self.groups.get_mut(group).members;
        members.push(at);
        let position = members.len() as u32 - 1;
        let entry = self.entries.get_mut(at);
        entry.group = group;
        entry.previous = position;
    }

    /// Takes the entry out of its node's list or its group, and prunes what is not needed any more.
    fn drop_entry(&mut self, at: u32) {
        let entry = self.entries.remove(at);
        self.len -= 1;
        if entry.group == NONE {
            if entry.next != NONE {
                self.entries.get_mut(entry.next).previous = entry.previous;
            }
            if entry.previous == NONE {
                let place = self.tree.value_mut(entry.node);
                *(if entry.below { &mut place.below } else { &mut place.here }) = entry.next;
            } else {
                self.entries.get_mut(entry.previous).next = entry.next;
            }
        } else {
            self.leave(&entry);
        }
        self.tree.prune(entry.node, |parent, level| {
            if level == "+" {
                parent.plus = NONE;
            }
        });
    }

    fn leave(&mut self, entry: &Entry<S>) {
        let members = &mut self.groups.get_mut(entry.group).members;
        members.swap_remove(entry.previous as usize);
        if let Some(&moved) = members.get(entry.previous as usize) {
            self.entries.get_mut(moved).previous = entry.previous;
        }
        if !members.is_empty() {
            return;
        }
        self.groups.remove(entry.group);
        let place = self.tree.value_mut(entry.node);
        let list = self.shared.get_mut(place.shared);
        list.retain(|&g| g != entry.group);
        if list.is_empty() {
            self.shared.remove(place.shared);
            place.shared = NONE;
        }
    }

    /// Finds who is to get a message published to `topic` by `from` (for No Local).
    pub fn matches(&self, topic: &str, from: Option<S>, into: &mut Matches<S>) {
        into.clear();
        let dollar = topic.starts_with('$');
        into.todo.push((ROOT, 0));
        while let Some((mut node, mut at)) = into.todo.pop() {
            loop {
                let place = &self.tree.get(node).value;
                // A wildcard at the first level matches no topic that begins with `$` ([MQTT-4.7.2-1]).
                let wild = !(dollar && node == ROOT);
                if wild {
                    self.take(place.below, from, into);
                    self.take_groups(place.shared, true, into);
                }
                let Some(rest) = topic.get(at..) else {
                    self.take(place.here, from, into);
                    self.take_groups(place.shared, false, into);
                    break;
                };
                let level = rest.split('/').next().unwrap_or_default();
                // One past the end after the last level, where `get` finds nothing.
                at += level.len() + 1;
                if wild && place.plus != NONE {
                    into.todo.push((place.plus, at));
                }
                if !self.tree.has_child_but(node, place.plus) {
                    break;
                }
                let Some(child) = self.tree.child(node, level) else { break };
                node = child;
            }
        }
        into.merge();
    }

    fn take(&self, head: u32, from: Option<S>, into: &mut Matches<S>) {
        if head == NONE {
            return;
        }
        into.lists += 1;
        let mut at = head;
        while at != NONE {
            let entry = self.entries.get(at);
            at = entry.next;
            if !(entry.options.no_local && from == Some(entry.subscriber)) {
                into.push(entry.subscriber, entry.options, entry.id);
            }
        }
    }

    fn take_groups(&self, list: u32, below: bool, into: &mut Matches<S>) {
        if list != NONE {
            into.groups.extend(self.shared.get(list).iter().filter(|&&g| self.groups.get(g).below == below));
        }
    }

    /// The members of the groups that matched, one of each: the next in turn that `ready` says yes to, of a few that are
    /// asked; else the next in turn, whose session will keep the message.
    pub fn pick(
        &self,
        matches: &Matches<S>,
        mut ready: impl FnMut(S) -> bool,
        mut each: impl FnMut(S, QoS, bool, u32),
    ) {
        /// Members asked: with one of two away, one in 65,536 messages is kept for a member that is away.
        const ASKED: usize = 16;
        for &group in &matches.groups {
            let group = self.groups.get(group);
            let turn = group.turn.fetch_add(1, Ordering::Relaxed) as usize;
            let member = |i: usize| self.entries.get(group.members[(turn + i) % group.members.len()]);
            let asked = group.members.len().min(ASKED);
            let chosen = (0..asked).map(member).find(|e| ready(e.subscriber)).unwrap_or_else(|| member(0));
            let options = chosen.options;
            each(chosen.subscriber, options.qos, options.retain_as_published, chosen.id);
        }
    }
}

/// The levels of a filter's path in the tree, and whether a `#` follows.
fn path<'a>(filter: &Filter<'a>) -> (impl Iterator<Item = &'a str> + use<'a>, bool) {
    let pattern = filter.pattern();
    let (levels, below) = match pattern.strip_suffix('#') {
        Some("") => (None, true),
        Some(rest) => (rest.strip_suffix('/'), true),
        None => (Some(pattern), false),
    };
    (levels.into_iter().flat_map(|l| l.split('/')), below)
}
