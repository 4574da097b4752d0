//! The numbers under which associations are stored.
//!
//! Each association that is stored takes the next number, so that what is stored together lies together, whichever shards it is in. A row is
//! found again by its slot's number, six bytes an association. A slot's numbers rise, since they are drawn under its shard's lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidegate_dtls::AssociationId;

/// Bytes of a number: enough for 300 years of 30,000 handshakes a second.
const LEN: usize = 6;

/// Slots of a shard that get room at a time: 6 KiB.
const CHUNK: usize = 1024;

/// Names a row. There is no number 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(u64);

impl Number {
    fn new(number: u64) -> Option<Number> {
        (number > 0 && number >> (8 * LEN) == 0).then_some(Number(number))
    }

    /// As it is in keys.
    pub(super) fn to_bytes(self) -> [u8; LEN] {
        let [_, _, bytes @ ..] = self.0.to_be_bytes();
        bytes
    }

    pub(super) fn from_bytes([a, b, c, d, e, f]: [u8; LEN]) -> Option<Number> {
        Number::new(u64::from_be_bytes([0, 0, a, b, c, d, e, f]))
    }
}

/// The numbers of one shard's slots; zero for none.
type Slots = Vec<Box<[[u8; LEN]; CHUNK]>>;

/// See the [module documentation](self).
pub(super) struct Numbers {
    /// The last one drawn.
    last: AtomicU64,
    shards: Box<[Mutex<Slots>]>,
}

impl Numbers {
    /// No numbers, for so many shards.
    pub(super) fn new(shards: u32) -> Numbers {
        Numbers { last: AtomicU64::new(0), shards: (0..shards).map(|_| Mutex::default()).collect() }
    }

    fn slots(&self, id: AssociationId) -> (MutexGuard<'_, Slots>, usize, usize) {
        let count = self.shards.len() as u32;
        let index = (id.slot() / count) as usize;
        let slots = self.shards[id.shard(count) as usize].lock().unwrap_or_else(PoisonError::into_inner);
        (slots, index / CHUNK, index % CHUNK)
    }

    /// Gives the slot of `id` the next number. `None` when there are no more.
    pub(super) fn draw(&self, id: AssociationId) -> Option<Number> {
        let number = Number::new(self.last.fetch_add(1, Ordering::Relaxed) + 1)?;
        self.set(id, number);
        Some(number)
    }

    /// The slot of `id` has `number`, as a database says; whatever is drawn is higher.
    pub(super) fn set(&self, id: AssociationId, number: Number) {
        self.last.fetch_max(number.0, Ordering::Relaxed);
        let (mut slots, chunk, at) = self.slots(id);
        while slots.len() <= chunk {
            slots.push(Box::new([[0; LEN]; CHUNK]));
        }
        slots[chunk][at] = number.to_bytes();
    }

    /// The number of the slot of `id`.
    pub(super) fn get(&self, id: AssociationId) -> Option<Number> {
        let (slots, chunk, at) = self.slots(id);
        Number::from_bytes(slots.get(chunk)?[at])
    }

    /// Takes the number of the slot of `id` away.
    pub(super) fn take(&self, id: AssociationId) -> Option<Number> {
        let (mut slots, chunk, at) = self.slots(id);
        Number::from_bytes(std::mem::take(&mut slots.get_mut(chunk)?[at]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(slot: u32) -> AssociationId {
        AssociationId(u64::from(slot) << 32 | 7)
    }

    #[test]
    fn each_slot_has_its_own_number_and_numbers_rise_over_restarts() {
        let numbers = Numbers::new(4);
        let slots = [0, 1, 5, 4 * (CHUNK as u32 - 1), 4 * CHUNK as u32, 4 * CHUNK as u32 + 3];
        for slot in slots {
            assert_eq!(numbers.get(id(slot)), None);
            numbers.draw(id(slot));
        }
        let drawn: Vec<_> = slots.iter().map(|slot| numbers.get(id(*slot)).unwrap()).collect();
        assert!(drawn.is_sorted() && drawn[0] == Number(1));
        assert_eq!((numbers.take(id(5)), numbers.take(id(5)), numbers.get(id(5))), (Some(Number(3)), None, None));
        assert_eq!(numbers.get(id(1)), Some(Number(2)));
        let again = Numbers::new(4);
        again.set(id(9), Number(77));
        again.set(id(8), Number(5));
        assert_eq!(again.draw(id(1)), Some(Number(78)));
    }

    #[test]
    fn numbers_are_sorted_as_their_bytes_are_and_end_at_the_last() {
        let last = Number::from_bytes([0xFF; LEN]).unwrap();
        assert!(Number(255).to_bytes() < Number(256).to_bytes());
        assert_eq!((Number::from_bytes([0; LEN]), Number::from_bytes(last.to_bytes())), (None, Some(last)));
        let numbers = Numbers::new(1);
        numbers.set(id(0), last);
        assert_eq!(numbers.draw(id(1)), None);
    }
}
