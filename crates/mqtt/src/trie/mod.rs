//! Subscriptions, and who is to get a message.
//!
//! # Constraints
//!
//! - Made for a million devices that each subscribe to a filter of their own, `cmd/<id>/#`, and for few wildcards before the
//!   last level: such a subscription costs one node, one entry and one slot in three hash tables, some 140 bytes.
//! - Subscribing and unsubscribing take the same time however many subscriptions the subscriber or the filter has: a driver does it
//!   under a lock that everybody's publishes wait for.
//! - A match visits a node at most once and allocates nothing once its [`Matches`] has grown.
//! - A subscriber is a small `Copy` handle of the driver's choice.
//!
//! # Operation
//!
//! A filter is a path in a tree of levels. `+` is a child like others, noted at its parent so that a match need not look
//! for it; a final `#` is a list of its own at the parent. Each subscription is an entry in a doubly linked list at its
//! node and in a list of its subscriber's, and is found by subscriber and filter in a table. A shared subscription is a member of
//! a group instead of the node's list; members that are away ([`Trie::set_present`]) get what it is given only if all are.
//!
//! Where several subscriptions of one subscriber match, it is given the message once, with the highest QoS, the identifiers
//! of all ([MQTT-3.3.4-2] to [MQTT-3.3.4-4]), and the retain flag as published if one of them asks for it.

use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicU32, Ordering};

use foldhash::quality::RandomState;
use sha2::{Digest, Sha256};

use crate::packet::SubscribeOptions;
use crate::topic::Filter;
pub use crate::tree::MAX_LEVELS;
use crate::tree::{Index, NONE, ROOT, Slab, Tree, Vacant};

mod matches;

pub use matches::{Match, Matches, Picked};

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

/// Bytes that a level of a filter takes beside its text: a node of the tree.
const LEVEL_BYTES: usize = 64;

/// Bytes that the filter of a subscription takes at most, for bounds: where filters begin alike they share the levels.
#[must_use]
pub fn filter_bytes(filter: &Filter<'_>) -> usize {
    filter.text().len() + LEVEL_BYTES * filter.pattern().split('/').take(MAX_LEVELS).count()
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
    previous_own: u32,
    /// The group, if shared.
    group: u32,
    /// Of its filter, see [`filter_bytes`].
    bytes: u32,
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
            previous_own: NONE,
            group: NONE,
            bytes: 0,
            options: SubscribeOptions::default(),
            below: false,
        }
    }
}

/// The subscriptions of one subscriber.
#[derive(Debug)]
struct Own<S> {
    subscriber: S,
    /// The first entry.
    head: u32,
    /// Sum of the entries' bytes, as far as that goes: drivers bound it far below.
    bytes: u32,
}

/// Subscribers that share the messages of one filter between them.
#[derive(Debug, Default)]
struct Group {
    name: Box<str>,
    /// See [`Picked::group`].
    key: u64,
    node: u32,
    below: bool,
    /// Entries: those that are present, then those that are away. Never empty.
    members: Vec<u32>,
    /// Members that are present: `present <= members.len()`.
    present: u32,
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
    /// What each subscriber has.
    own: Index<Own<S>>,
    /// Every entry, by subscriber and filter.
    known: Index<u32>,
    /// Every group, by filter and name.
    named: Index<u32>,
    hasher: RandomState,
    len: usize,
    /// Sum of the entries' bytes.
    filter_bytes: usize,
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
            known: Index::new(),
            named: Index::new(),
            hasher: RandomState::default(),
            len: 0,
            filter_bytes: 0,
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
        self.tree.bytes() + self.entries.bytes() + self.own.bytes() + self.known.bytes()
    }

    /// Sum of [`filter_bytes`] over all subscriptions.
    #[must_use]
    pub fn filter_bytes(&self) -> usize {
        self.filter_bytes
    }

    /// The same of one subscriber, `u32::MAX` at most.
    #[must_use]
    pub fn filter_bytes_of(&self, subscriber: S) -> usize {
        let hash = self.hasher.hash_one(subscriber);
        self.own.find(hash, |own| own.subscriber == subscriber).map_or(0, |own| own.bytes as usize)
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
        if let Some(entry) = self.find(subscriber, node, below, filter.group()) {
            let entry = self.entries.get_mut(entry);
            entry.options = options;
            entry.id = id;
            return Ok(Inserted::Replaced);
        }
        // A filter has 64 kB and 128 levels at most.
        let bytes = filter_bytes(filter) as u32;
        let entry = Entry { subscriber, node, id, bytes, options, below, ..Entry::default() };
        let at = self.entries.insert(entry);
        match filter.group() {
            None => self.link(at),
            Some(group) => self.join(at, group, filter.pattern()),
        }
        self.own_push(subscriber, at);
        self.know(at);
        self.len += 1;
        self.filter_bytes += bytes as usize;
        Ok(Inserted::New)
    }

    /// Whether `subscriber` has a subscription with this very filter.
    #[must_use]
    pub fn contains(&self, subscriber: S, filter: &Filter<'_>) -> bool {
        let (path, below) = path(filter);
        let mut node = ROOT;
        for level in path {
            let Some(child) = self.tree.child(node, level) else { return false };
            node = child;
        }
        self.find(subscriber, node, below, filter.group()).is_some()
    }

    /// Unsubscribes; false if there was no such subscription.
    pub fn remove(&mut self, subscriber: S, filter: &Filter<'_>) -> bool {
        let (path, below) = path(filter);
        let mut node = ROOT;
        for level in path {
            let Some(child) = self.tree.child(node, level) else { return false };
            node = child;
        }
        let Some(at) = self.find(subscriber, node, below, filter.group()) else { return false };
        let &Entry { next_own, previous_own, bytes, .. } = self.entries.get(at);
        if next_own != NONE {
            self.entries.get_mut(next_own).previous_own = previous_own;
        }
        if previous_own != NONE {
            self.entries.get_mut(previous_own).next_own = next_own;
        }
        let hash = self.hasher.hash_one(subscriber);
        if previous_own == NONE && next_own == NONE {
            self.own.remove(hash, |own| own.subscriber == subscriber);
        } else if let Some(own) = self.own.find_mut(hash, |own| own.subscriber == subscriber) {
            own.bytes = own.bytes.saturating_sub(bytes);
            if previous_own == NONE {
                own.head = next_own;
            }
        }
        self.drop_entry(at);
        true
    }

    /// Removes every subscription of `subscriber`; returns how many there were.
    pub fn remove_all(&mut self, subscriber: S) -> usize {
        let hash = self.hasher.hash_one(subscriber);
        let Some(own) = self.own.remove(hash, |own| own.subscriber == subscriber) else { return 0 };
        let (mut at, mut count) = (own.head, 0);
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
        let Some(own) = self.own.remove(hash, |own| own.subscriber == from) else { return 0 };
        debug_assert!(self.own_head(to) == NONE);
        let hasher = &self.hasher;
        let (mut at, mut count) = (own.head, 0);
        self.own.insert(hasher.hash_one(to), Own { subscriber: to, ..own }, |own| hasher.hash_one(own.subscriber));
        while at != NONE {
            self.unknow(at);
            let entry = self.entries.get_mut(at);
            entry.subscriber = to;
            let next = entry.next_own;
            self.know(at);
            at = next;
            count += 1;
        }
        count
    }

    /// Says whether `subscriber` is there. One that is away is given what is for a shared subscription only if all its members
    /// are away, and its session keeps it then. A new subscription is one of a subscriber that is there.
    pub fn set_present(&mut self, subscriber: S, present: bool) {
        let mut at = self.own_head(subscriber);
        while at != NONE {
            let &Entry { group, previous: position, next_own, .. } = self.entries.get(at);
            if group != NONE && (position < self.groups.get(group).present) != present {
                let boundary = &mut self.groups.get_mut(group).present;
                let edge = if present { *boundary } else { *boundary - 1 };
                *boundary = if present { *boundary + 1 } else { edge };
                self.swap_members(group, position, edge);
            }
            at = next_own;
        }
    }

    fn swap_members(&mut self, group: u32, a: u32, b: u32) {
        let members = &mut self.groups.get_mut(group).members;
        members.swap(a as usize, b as usize);
        let (at_a, at_b) = (members[a as usize], members[b as usize]);
        self.entries.get_mut(at_a).previous = a;
        self.entries.get_mut(at_b).previous = b;
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
        self.own.find(hash, |own| own.subscriber == subscriber).map_or(NONE, |own| own.head)
    }

    fn own_push(&mut self, subscriber: S, at: u32) {
        let hash = self.hasher.hash_one(subscriber);
        let bytes = self.entries.get(at).bytes;
        if let Some(own) = self.own.find_mut(hash, |own| own.subscriber == subscriber) {
            own.bytes = own.bytes.saturating_add(bytes);
            let next = std::mem::replace(&mut own.head, at);
            self.entries.get_mut(at).next_own = next;
            self.entries.get_mut(next).previous_own = at;
            return;
        }
        let hasher = &self.hasher;
        self.own.insert(hash, Own { subscriber, head: at, bytes }, |own| hasher.hash_one(own.subscriber));
    }

    /// The entry of `subscriber` at `node`.
    fn find(&self, subscriber: S, node: u32, below: bool, group: Option<&str>) -> Option<u32> {
        let group = match group {
            None => NONE,
            Some(name) => self.group_named(node, below, name)?,
        };
        let hash = self.hasher.hash_one((subscriber, node, below, group));
        let is = |&at: &u32| {
            let entry = self.entries.get(at);
            (entry.subscriber, entry.node, entry.below, entry.group) == (subscriber, node, below, group)
        };
        self.known.find(hash, is).copied()
    }

    fn know(&mut self, at: u32) {
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash = |at: &u32| entry_hash(hasher, entries.get(*at));
        self.known.insert(hash(&at), at, hash);
    }

    fn unknow(&mut self, at: u32) {
        let hash = entry_hash(&self.hasher, self.entries.get(at));
        self.known.remove(hash, |&other| other == at);
    }

    fn group_named(&self, node: u32, below: bool, name: &str) -> Option<u32> {
        let hash = self.hasher.hash_one((node, below, name));
        let is = |&id: &u32| {
            let group = self.groups.get(id);
            group.node == node && group.below == below && *group.name == *name
        };
        self.named.find(hash, is).copied()
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
    fn join(&mut self, at: u32, name: &str, pattern: &str) {
        let &Entry { node, below, .. } = self.entries.get(at);
        let mut list = self.tree.get(node).value.shared;
        if list == NONE {
            list = self.shared.insert(Vec::new());
            self.tree.value_mut(node).shared = list;
        }
        let group = self.group_named(node, below, name).unwrap_or_else(|| {
            let key = group_key(name, pattern);
            let group = Group { name: name.into(), key, node, below, ..Group::default() };
            let id = self.groups.insert(group);
            self.shared.get_mut(list).push(id);
            let (groups, hasher) = (&self.groups, &self.hasher);
            let hash = |id: &u32| group_hash(hasher, groups.get(*id));
            self.named.insert(hash(&id), id, hash);
            id
        });
        let members = &mut self.groups.get_mut(group).members;
        members.push(at);
        let position = members.len() as u32 - 1;
        let entry = self.entries.get_mut(at);
        entry.group = group;
        entry.previous = position;
        // It is there, so its place is before those that are away.
        let group_state = self.groups.get_mut(group);
        let edge = group_state.present;
        group_state.present += 1;
        self.swap_members(group, position, edge);
    }

    /// Takes the entry out of its node's list or its group, and prunes what is not needed any more.
    fn drop_entry(&mut self, at: u32) {
        self.unknow(at);
        if self.entries.get(at).group != NONE {
            self.leave(at);
        }
        let entry = self.entries.remove(at);
        self.len -= 1;
        self.filter_bytes -= entry.bytes as usize;
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
        }
        self.tree.prune(entry.node, |parent, level| {
            if level == "+" {
                parent.plus = NONE;
            }
        });
    }

    /// Takes the entry out of its group.
    fn leave(&mut self, at: u32) {
        let &Entry { group, previous: mut position, node, .. } = self.entries.get(at);
        // First to the end of those that are present, if it is one, then to the end of all.
        let present = self.groups.get(group).present;
        if position < present {
            self.swap_members(group, position, present - 1);
            self.groups.get_mut(group).present = present - 1;
            position = present - 1;
        }
        let last = self.groups.get(group).members.len() as u32 - 1;
        self.swap_members(group, position, last);
        let members = &mut self.groups.get_mut(group).members;
        members.pop();
        if !members.is_empty() {
            return;
        }
        let hash = group_hash(&self.hasher, self.groups.get(group));
        self.named.remove(hash, |&id| id == group);
        self.groups.remove(group);
        let place = self.tree.value_mut(node);
        let list = self.shared.get_mut(place.shared);
        list.retain(|&g| g != group);
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

    /// The members of the groups that matched, one of each: the next in turn of those that are present
    /// ([`set_present`](Self::set_present)), else the next in turn, whose session will keep the message.
    pub fn pick(&self, matches: &Matches<S>, mut each: impl FnMut(Picked<S>)) {
        for &group in &matches.groups {
            let group = self.groups.get(group);
            let turn = group.turn.fetch_add(1, Ordering::Relaxed) as usize;
            let choice = if group.present > 0 { group.present as usize } else { group.members.len() };
            let chosen = self.entries.get(group.members[turn % choice]);
            let SubscribeOptions { qos, retain_as_published, .. } = chosen.options;
            each(Picked { group: group.key, subscriber: chosen.subscriber, qos, retain_as_published, id: chosen.id });
        }
    }
}

fn entry_hash<S: Subscriber>(hasher: &RandomState, entry: &Entry<S>) -> u64 {
    hasher.hash_one((entry.subscriber, entry.node, entry.below, entry.group))
}

fn group_hash(hasher: &RandomState, group: &Group) -> u64 {
    hasher.hash_one((group.node, group.below, &*group.name))
}

/// See [`Picked::group`]. The beginning of a digest of what follows `$share/`: drivers write it down, so that it must be the same in
/// every build, and nobody should find two groups that share one.
fn group_key(name: &str, pattern: &str) -> u64 {
    let digest = Sha256::new().chain_update(name).chain_update("/").chain_update(pattern).finalize();
    digest.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte)) | 1
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_group_is_the_same_in_every_build() {
        // `printf 'readers/meters/#' | sha256sum`
        assert_eq!(group_key("readers", "meters/#"), 0x89a5_a6ed_3dd5_8c2f);
        assert_ne!(group_key("readers", "meters/#"), group_key("readers", "meters/+"));
    }
}
