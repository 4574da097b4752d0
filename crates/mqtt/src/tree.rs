//! A tree of topic levels: what the subscriptions and the retained messages are kept in.
//!
//! # Constraints
//!
//! - Made for a node with a million children: a child is found by hashing (parent, level) in one table for the whole tree,
//!   so a node costs the same wherever it stands.
//! - It grows without stopping the world: nodes are held in chunks that never move, and the table is split in shards, so
//!   no insertion copies more than a shard.
//! - Levels come from peers, so the hash is seeded at random.

use std::hash::BuildHasher;

use ecow::EcoString;
use foldhash::quality::RandomState;
use hashbrown::HashTable;

/// Index of no node or entry.
pub(crate) const NONE: u32 = u32::MAX;

/// The node above the first level.
pub(crate) const ROOT: u32 = 0;

/// Most levels that a filter, or a topic with a retained message, may have. A level costs a node, and 64 kB of slashes would
/// be 65,536 of them; no fleet's topics come near.
pub const MAX_LEVELS: usize = 128;

/// Items in one chunk of a [`Slab`]: 128 to 256 KiB a chunk for what is kept here, one allocation in thousands of insertions.
const CHUNK: usize = 4096;

/// Items under stable indices, reused after removal.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// All but the last are full; none is ever reallocated.
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
}

impl<T: Default> Slab<T> {
    pub(crate) fn new() -> Self {
        Slab { chunks: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, item: T) -> u32 {
        if let Some(index) = self.free.pop() {
            *self.get_mut(index) = item;
            return index;
        }
        if self.chunks.last().is_none_or(|c| c.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(if self.chunks.is_empty() { 0 } else { CHUNK }));
        }
        let chunk = self.chunks.len() - 1;
        let last = &mut self.chunks[chunk];
        last.push(item);
        (chunk * CHUNK + last.len() - 1) as u32
    }

    pub(crate) fn remove(&mut self, index: u32) -> T {
        self.free.push(index);
        std::mem::take(self.get_mut(index))
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> &T {
        &self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> &mut T {
        &mut self.chunks[index as usize / CHUNK][index as usize % CHUNK]
    }

    /// Indices given so far, removed ones included.
    pub(crate) fn span(&self) -> u32 {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len()) as u32
    }

    pub(crate) fn bytes(&self) -> usize {
        let items: usize = self.chunks.iter().map(Vec::capacity).sum();
        items * size_of::<T>() + self.free.capacity() * 4
    }
}

/// Shards of an [`Index`]: growing one of a million entries moves some 4 k of them, about a millisecond of cache misses.
const SHARDS: usize = 256;

/// A hash table that grows in pieces.
#[derive(Debug)]
pub(crate) struct Index<T> {
    shards: Box<[HashTable<T>]>,
}

impl<T> Index<T> {
    pub(crate) fn new() -> Self {
        Index { shards: (0..SHARDS).map(|_| HashTable::new()).collect() }
    }

    /// The table itself takes the top seven bits and the lowest ones, so the shard is told from those between.
    fn shard(hash: u64) -> usize {
        (hash >> 40) as usize % SHARDS
    }

    #[inline]
    pub(crate) fn find(&self, hash: u64, is: impl FnMut(&T) -> bool) -> Option<&T> {
        self.shards[Self::shard(hash)].find(hash, is)
    }

    pub(crate) fn find_mut(&mut self, hash: u64, is: impl FnMut(&T) -> bool) -> Option<&mut T> {
        self.shards[Self::shard(hash)].find_mut(hash, is)
    }

    pub(crate) fn insert(&mut self, hash: u64, item: T, rehash: impl Fn(&T) -> u64) {
        self.shards[Self::shard(hash)].insert_unique(hash, item, rehash);
    }

    pub(crate) fn remove(&mut self, hash: u64, is: impl FnMut(&T) -> bool) -> Option<T> {
        self.shards[Self::shard(hash)].find_entry(hash, is).ok().map(|entry| entry.remove().0)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.shards.iter().map(HashTable::allocation_size).sum()
    }
}

/// A value that tells whether its node is still needed for it.
pub(crate) trait Vacant: Default {
    fn is_vacant(&self) -> bool;
}

#[derive(Debug)]
pub(crate) struct Node<V> {
    /// Its level of the topic; inline up to 15 bytes, which an IMEI fits.
    level: EcoString,
    pub(crate) parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
    pub(crate) value: V,
}

impl<V: Default> Default for Node<V> {
    fn default() -> Self {
        Node {
            level: EcoString::new(),
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            value: V::default(),
        }
    }
}

/// The tree. There is always a root.
#[derive(Debug)]
pub(crate) struct Tree<V> {
    nodes: Slab<Node<V>>,
    /// Every node but the root, by (parent, level).
    index: Index<u32>,
    hasher: RandomState,
}

impl<V: Vacant> Tree<V> {
    pub(crate) fn new() -> Self {
        let mut nodes = Slab::new();
        nodes.insert(Node::default());
        Tree { nodes, index: Index::new(), hasher: RandomState::default() }
    }

    #[inline]
    pub(crate) fn get(&self, node: u32) -> &Node<V> {
        self.nodes.get(node)
    }

    #[inline]
    pub(crate) fn value_mut(&mut self, node: u32) -> &mut V {
        &mut self.nodes.get_mut(node).value
    }

    /// The child of `parent` for `level`, if there is one.
    #[inline]
    pub(crate) fn child(&self, parent: u32, level: &str) -> Option<u32> {
        let hash = self.hasher.hash_one((parent, level));
        let is = |&id: &u32| {
            let node = self.nodes.get(id);
            node.parent == parent && node.level == level
        };
        self.index.find(hash, is).copied()
    }

    /// The child of `parent` for `level`, made if need be.
    pub(crate) fn child_or_insert(&mut self, parent: u32, level: &str) -> u32 {
        if let Some(child) = self.child(parent, level) {
            return child;
        }
        let next = self.nodes.get(parent).first_child;
        let node = Node { level: EcoString::from(level), parent, next, ..Node::default() };
        let id = self.nodes.insert(node);
        if next != NONE {
            self.nodes.get_mut(next).previous = id;
        }
        self.nodes.get_mut(parent).first_child = id;
        let hash = self.hasher.hash_one((parent, level));
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.index.insert(hash, id, |&id| {
            let node = nodes.get(id);
            hasher.hash_one((node.parent, node.level.as_str()))
        });
        id
    }

    /// Whether `node` has a child other than `known`, which is `NONE` or a child of it: looking for one in the table misses
    /// the cache, and this does not.
    #[inline]
    pub(crate) fn has_child_but(&self, node: u32, known: u32) -> bool {
        let first = self.nodes.get(node).first_child;
        first != known || first != NONE && self.nodes.get(first).next != NONE
    }

    /// The children of `parent`, in no order.
    pub(crate) fn children(&self, parent: u32) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.nodes.get(parent).first_child;
        std::iter::from_fn(move || {
            if at == NONE {
                return None;
            }
            let id = at;
            at = self.nodes.get(id).next;
            Some(id)
        })
    }

    pub(crate) fn level(&self, node: u32) -> &str {
        &self.nodes.get(node).level
    }

    /// Removes `node` and those above it, as long as they are vacant and have no children. `removed` is told each parent
    /// that stays or goes next and the level it lost.
    pub(crate) fn prune(&mut self, mut node: u32, mut removed: impl FnMut(&mut V, &str)) {
        while node != ROOT {
            let n = self.nodes.get(node);
            if n.first_child != NONE || !n.value.is_vacant() {
                return;
            }
            let (parent, next, previous) = (n.parent, n.next, n.previous);
            let hash = self.hasher.hash_one((parent, n.level.as_str()));
            self.index.remove(hash, |&id| id == node);
            if next != NONE {
                self.nodes.get_mut(next).previous = previous;
            }
            if previous == NONE {
                self.nodes.get_mut(parent).first_child = next;
            } else {
                self.nodes.get_mut(previous).next = next;
            }
            let gone = self.nodes.remove(node);
            removed(&mut self.nodes.get_mut(parent).value, &gone.level);
            node = parent;
        }
    }

    /// The levels from the root to `node`, joined.
    pub(crate) fn path(&self, node: u32) -> String {
        let mut levels = Vec::new();
        let mut at = node;
        while at != ROOT {
            levels.push(self.level(at));
            at = self.nodes.get(at).parent;
        }
        levels.reverse();
        levels.join("/")
    }

    /// Indices of nodes given so far: a sweep goes over them and skips the vacant ones.
    pub(crate) fn span(&self) -> u32 {
        self.nodes.span()
    }

    /// Bytes held, but for levels longer than 15 bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.bytes() + self.index.bytes()
    }
}
