//! The slots of one shard: free, taken by a handshake, or by an association.
//!
//! Slots lie in chunks that never move, so growing leaves no copy of a key behind and no spike of memory. Three lists run
//! through them by index: free slots, handshakes in the order they began, associations in the order of their last use. A peer
//! without a CID is found by its path, through indexes that hold slot numbers alone (5 B a bucket); the path itself is
//! compared in the slot.

use std::hash::BuildHasher;

use hashbrown::HashTable;

use crate::association::Association;
use crate::cid::Tag;
use crate::path::CompactPath;
use crate::server::Pending;
use crate::shares::Shares;

/// Slots allocated at a time: some 12 KiB.
const CHUNK: usize = 64;

/// No slot.
const NONE: u32 = u32::MAX;

/// Seconds by which the order of use is coarse while there is room: an association is moved to the front at its first use in each such
/// span, so a busy one does not touch its neighbours for every record.
pub(crate) const USE_QUANTUM: u32 = 16;

/// The order of use is exact once an eighth of the places is left, or so many: who makes room is known when somebody has to.
const NEARLY_FULL: usize = 64;

/// What a slot holds.
pub(crate) enum State {
    Vacant,
    Pending(Box<Pending>),
    Live(Association),
}

struct Slot {
    state: State,
    next: u32,
    prev: u32,
    /// How often the slot was taken.
    generation: u8,
}

const _: () = assert!(size_of::<Slot>() <= 200);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Free,
    Pending,
    Live,
}

/// A doubly linked list through the slots.
#[derive(Clone, Copy)]
struct List {
    first: u32,
    last: u32,
    len: usize,
}

const EMPTY: List = List { first: NONE, last: NONE, len: 0 };

pub(crate) struct Table {
    chunks: Vec<Box<[Slot]>>,
    /// Slots at most.
    capacity: usize,
    lists: [List; 3],
    /// Associations from which on the order of use is exact.
    exact_from: usize,
    /// It is exact, until a few places more are free.
    exact: bool,
    hasher: foldhash::quality::FixedState,
    /// Associations without a CID.
    live_by_path: HashTable<u32>,
    pending_by_path: HashTable<u32>,
    shares: Shares,
}

impl Table {
    /// Slots for `capacity`, of which at most `max_live` are associations.
    pub(crate) fn new(capacity: usize, max_live: usize, hasher: foldhash::quality::FixedState) -> Table {
        let exact_from = max_live - (max_live / 8).max(NEARLY_FULL).min(max_live);
        Table {
            chunks: Vec::new(),
            capacity,
            lists: [EMPTY; 3],
            exact_from,
            exact: exact_from == 0,
            hasher,
            live_by_path: HashTable::new(),
            pending_by_path: HashTable::new(),
            shares: Shares::default(),
        }
    }

    pub(crate) fn live_len(&self) -> usize {
        self.lists[Kind::Live as usize].len
    }

    pub(crate) fn pending_len(&self) -> usize {
        self.lists[Kind::Pending as usize].len
    }

    /// The association used least recently.
    pub(crate) fn least_used(&self) -> Option<u32> {
        let last = self.lists[Kind::Live as usize].last;
        (last != NONE).then_some(last)
    }

    /// The handshake that makes room for one by `path`.
    pub(crate) fn first_to_go(&self, path: CompactPath) -> Option<u32> {
        self.shares.first_to_go(path.prefix())
    }

    pub(crate) fn generation(&self, index: u32) -> u8 {
        self.slot(index).map_or(0, |slot| slot.generation)
    }

    pub(crate) fn live(&mut self, index: u32) -> Option<&mut Association> {
        match &mut self.slot_mut(index)?.state {
            State::Live(association) => Some(association),
            _ => None,
        }
    }

    pub(crate) fn peek_live(&self, index: u32) -> Option<&Association> {
        match &self.slot(index)?.state {
            State::Live(association) => Some(association),
            _ => None,
        }
    }

    pub(crate) fn pending(&mut self, index: u32) -> Option<&mut Pending> {
        match &mut self.slot_mut(index)?.state {
            State::Pending(pending) => Some(pending),
            _ => None,
        }
    }

    /// The random bytes of the CID that names what the slot holds, if it is named by one.
    pub(crate) fn tag(&self, index: u32, slot_number: u32) -> Option<Tag> {
        let slot = self.slot(index)?;
        let random = match &slot.state {
            State::Live(association) if association.has_cid => association.random,
            State::Pending(pending) if pending.has_cid() => pending.random,
            _ => return None,
        };
        Some(Tag { slot: slot_number, generation: slot.generation, random })
    }

    pub(crate) fn live_at(&self, path: CompactPath) -> Option<u32> {
        self.live_by_path.find(self.hash(path), |&index| self.path(index) == Some(path)).copied()
    }

    pub(crate) fn pending_at(&self, path: CompactPath) -> Option<u32> {
        self.pending_by_path.find(self.hash(path), |&index| self.path(index) == Some(path)).copied()
    }

    /// All associations, in no order.
    pub(crate) fn iter_live(&self) -> impl Iterator<Item = (u32, &Association, u8)> {
        (0..).zip(self.chunks.iter().flatten()).filter_map(|(index, slot)| match &slot.state {
            State::Live(association) => Some((index, association, slot.generation)),
            _ => None,
        })
    }

    /// Every association with its index and generation, the one used last first.
    pub(crate) fn iter_by_use(&self) -> impl Iterator<Item = (u32, &Association, u8)> {
        let mut at = self.lists[Kind::Live as usize].first;
        std::iter::from_fn(move || {
            let index = at;
            let slot = self.slot(index)?;
            at = slot.next;
            match &slot.state {
                State::Live(association) => Some((index, association, slot.generation)),
                _ => None,
            }
        })
    }

    /// All handshakes, in no order.
    pub(crate) fn iter_pending(&self) -> impl Iterator<Item = &Pending> {
        self.chunks.iter().flatten().filter_map(|slot| match &slot.state {
            State::Pending(pending) => Some(&**pending),
            _ => None,
        })
    }

    /// Takes a free slot for a handshake that `begin` makes of the slot's index and generation. The caller keeps the number
    /// of handshakes and associations below the capacity.
    pub(crate) fn begin(&mut self, begin: impl FnOnce(u32, u8) -> Box<Pending>) -> Option<u32> {
        if self.lists[Kind::Free as usize].first == NONE {
            self.grow();
        }
        let index = self.lists[Kind::Free as usize].first;
        let generation = {
            let slot = self.slot_mut(index)?;
            slot.generation = slot.generation.wrapping_add(1);
            slot.generation
        };
        let mut pending = begin(index, generation);
        let path = pending.path;
        pending.begun = self.shares.begin(path.prefix(), index);
        self.unlink(Kind::Free, index);
        self.slot_mut(index)?.state = State::Pending(pending);
        self.link_first(Kind::Pending, index);
        index_path(Kind::Pending, self, index, path);
        Some(index)
    }

    /// Makes the handshake in a slot an association, of which `make` makes all but the keys: they are copied from where they lie, and
    /// overwritten there.
    pub(crate) fn establish(&mut self, index: u32, make: impl FnOnce(&mut Pending) -> Association) {
        if self.unhook(index).is_none() {
            return;
        }
        let Some(slot) = self.slot_mut(index) else { return };
        let State::Pending(mut pending) = std::mem::replace(&mut slot.state, State::Vacant) else { return };
        let association = make(&mut pending);
        self.put_live(index, association);
        if let Some(association) = self.live(index) {
            pending.hand_over(&mut association.protection);
        }
    }

    /// Puts an association into a free slot of its own choice. False if the slot is taken or outside the table.
    pub(crate) fn insert(&mut self, index: u32, generation: u8, association: Association) -> bool {
        if index as usize >= self.capacity {
            return false;
        }
        while self.slot(index).is_none() {
            self.grow();
        }
        let vacant = matches!(self.slot(index), Some(Slot { state: State::Vacant, .. }));
        if vacant {
            self.unlink(Kind::Free, index);
            if let Some(slot) = self.slot_mut(index) {
                slot.generation = generation;
            }
            self.put_live(index, association);
        }
        vacant
    }

    /// Empties a slot. What it holds is dropped where it lies, which overwrites its keys.
    pub(crate) fn remove(&mut self, index: u32) {
        if self.unhook(index).is_none() {
            return;
        }
        if let Some(slot) = self.slot_mut(index) {
            slot.state = State::Vacant;
        }
        self.link_first(Kind::Free, index);
    }

    /// Notes the use of an association.
    pub(crate) fn used(&mut self, index: u32, seconds: u32) {
        let exact = self.exact;
        let Some(association) = self.live(index) else { return };
        let seconds = seconds.max(association.last_used);
        let stays = !exact && seconds / USE_QUANTUM == association.last_used / USE_QUANTUM;
        association.last_used = seconds;
        if stays || self.lists[Kind::Live as usize].first == index {
            return;
        }
        self.unlink(Kind::Live, index);
        self.link_first(Kind::Live, index);
    }

    /// Puts the list of associations in the order of their last use, after many were inserted in any. Those used in the same second stay
    /// as they are.
    pub(crate) fn sort_by_use(&mut self) {
        let mut order: Vec<(u32, u32)> =
            self.iter_by_use().map(|(index, association, _)| (association.last_used, index)).collect();
        order.reverse();
        order.sort_by_key(|(last_used, _)| *last_used);
        self.lists[Kind::Live as usize] = EMPTY;
        for (_, index) in order {
            self.link_first(Kind::Live, index);
        }
    }

    /// Takes a slot that is not vacant out of its list and index; it is in no list then.
    fn unhook(&mut self, index: u32) -> Option<()> {
        let (kind, path, indexed) = match &self.slot(index)?.state {
            State::Vacant => return None,
            State::Pending(pending) => (Kind::Pending, pending.path, true),
            State::Live(association) => (Kind::Live, association.path, !association.has_cid),
        };
        if indexed {
            let hash = self.hash(path);
            let index_of = if kind == Kind::Pending { &mut self.pending_by_path } else { &mut self.live_by_path };
            if let Ok(entry) = index_of.find_entry(hash, |&other| other == index) {
                entry.remove();
            }
        }
        if let State::Pending(pending) = &self.slot(index)?.state {
            let begun = pending.begun;
            self.shares.end(path.prefix(), begun, index);
        }
        self.unlink(kind, index);
        // Some way below, so that it is not sorted again for each that comes and goes.
        if self.live_len() < self.exact_from - self.exact_from / 8 {
            self.exact = false;
        }
        Some(())
    }

    fn put_live(&mut self, index: u32, association: Association) {
        let path = (!association.has_cid).then_some(association.path);
        if let Some(slot) = self.slot_mut(index) {
            slot.state = State::Live(association);
        }
        self.link_first(Kind::Live, index);
        if let Some(path) = path {
            index_path(Kind::Live, self, index, path);
        }
        if !self.exact && self.live_len() >= self.exact_from {
            self.exact = true;
            self.sort_by_use();
        }
    }

    fn grow(&mut self) {
        let start = self.chunks.len() * CHUNK;
        let len = CHUNK.min(self.capacity.saturating_sub(start));
        if len == 0 {
            return;
        }
        self.chunks
            .push((0..len).map(|_| Slot { state: State::Vacant, next: NONE, prev: NONE, generation: 0 }).collect());
        // The lowest is taken first.
        for index in (start..start + len).rev() {
            self.link_first(Kind::Free, index as u32);
        }
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    fn path(&self, index: u32) -> Option<CompactPath> {
        path_in(&self.chunks, index)
    }

    fn hash(&self, path: CompactPath) -> u64 {
        hash_with(&self.hasher, path)
    }

    fn link_first(&mut self, kind: Kind, index: u32) {
        let old = self.lists[kind as usize].first;
        if let Some(slot) = self.slot_mut(index) {
            (slot.prev, slot.next) = (NONE, old);
        }
        if let Some(slot) = self.slot_mut(old) {
            slot.prev = index;
        }
        let list = &mut self.lists[kind as usize];
        list.first = index;
        list.len += 1;
        if list.last == NONE {
            list.last = index;
        }
    }

    fn unlink(&mut self, kind: Kind, index: u32) {
        let Some(slot) = self.slot(index) else { return };
        let (prev, next) = (slot.prev, slot.next);
        match self.slot_mut(prev) {
            Some(slot) => slot.next = next,
            None => self.lists[kind as usize].first = next,
        }
        match self.slot_mut(next) {
            Some(slot) => slot.prev = prev,
            None => self.lists[kind as usize].last = prev,
        }
        self.lists[kind as usize].len -= 1;
    }
}

/// The path of what a slot holds.
fn path_in(chunks: &[Box<[Slot]>], index: u32) -> Option<CompactPath> {
    match &chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)?.state {
        State::Vacant => None,
        State::Pending(pending) => Some(pending.path),
        State::Live(association) => Some(association.path),
    }
}

fn hash_with(hasher: &foldhash::quality::FixedState, path: CompactPath) -> u64 {
    hasher.hash_one(path)
}

fn index_path(kind: Kind, table: &mut Table, index: u32, path: CompactPath) {
    let Table { chunks, hasher, live_by_path, pending_by_path, .. } = table;
    let by_path = if kind == Kind::Pending { pending_by_path } else { live_by_path };
    by_path.insert_unique(hash_with(hasher, path), index, |&index| {
        path_in(chunks, index).map_or(0, |path| hash_with(hasher, path))
    });
}

#[cfg(test)]
mod tests;
