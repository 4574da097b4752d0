//! Which messages of a run were acknowledged, and which of those the audit found: two bits a message.
//!
//! Devices take turns, so their message numbers stay close together and `number × devices + device` is a dense index. Ten million
//! messages take 2.5 MB.

use base64::Engine as _;

/// Bits of a chunk: 64 kB, so that growing never moves what is there and costs microseconds.
const CHUNK_BITS: u64 = 1 << 19;

/// Highest number of a chunk in a dump: 2⁴⁸ messages.
const MOST_CHUNKS: u64 = 1 << 29;

/// A set of message indices, growing as needed.
#[derive(Debug, Default)]
struct Bits {
    chunks: Vec<Option<Box<[u64]>>>,
}

impl Bits {
    /// Adds `k`; false if it was there.
    fn insert(&mut self, k: u64) -> bool {
        let chunk = (k / CHUNK_BITS) as usize;
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let words = self.chunks[chunk].get_or_insert_with(|| vec![0; (CHUNK_BITS / 64) as usize].into_boxed_slice());
        let (word, bit) = ((k % CHUNK_BITS / 64) as usize, 1 << (k % 64));
        let fresh = words[word] & bit == 0;
        words[word] |= bit;
        fresh
    }

    fn contains(&self, k: u64) -> bool {
        let chunk = self.chunks.get((k / CHUNK_BITS) as usize).and_then(Option::as_ref);
        chunk.is_some_and(|words| words[(k % CHUNK_BITS / 64) as usize] & (1 << (k % 64)) != 0)
    }

    fn iter(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().enumerate().filter_map(|(i, chunk)| Some((i as u64, chunk.as_ref()?))).flat_map(
            |(i, words)| {
                words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(move |(j, &word)| {
                    (0..64)
                        .filter(move |bit| word & (1 << bit) != 0)
                        .map(move |bit| i * CHUNK_BITS + j as u64 * 64 + bit)
                })
            },
        )
    }

    /// Chunks that hold anything: their number, and their bits in base64.
    fn dump(&self) -> Vec<(u64, String)> {
        let encode = |words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            base64::engine::general_purpose::STANDARD.encode(bytes)
        };
        let chunks = self.chunks.iter().enumerate();
        chunks.filter_map(|(i, words)| Some((i as u64, encode(words.as_ref()?)))).collect()
    }

    fn from_dump(chunks: &[(u64, String)]) -> Option<Bits> {
        let mut bits = Bits::default();
        for (chunk, text) in chunks {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
            if bytes.len() as u64 * 8 != CHUNK_BITS || *chunk > MOST_CHUNKS {
                return None;
            }
            let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
            let at = *chunk as usize;
            if bits.chunks.len() <= at {
                bits.chunks.resize_with(at + 1, || None);
            }
            bits.chunks[at] = Some(words.collect());
        }
        Some(bits)
    }

    fn len(&self) -> u64 {
        self.chunks.iter().flatten().flat_map(|words| words.iter()).map(|word| u64::from(word.count_ones())).sum()
    }
}

/// What a range of devices sent, and what became of it.
#[derive(Debug)]
pub struct Ledger {
    first: u32,
    devices: u32,
    acked: Bits,
    stored: Bits,
    stored_twice: u64,
}

/// Messages of a [`Ledger`], to be sent to another process.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Dump {
    first: u32,
    devices: u32,
    chunks: Vec<(u64, String)>,
}

/// A message, by device and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MessageId {
    /// Index of the device in the run.
    pub device: u32,
    /// Number of the message among those of the device.
    pub number: u32,
}

/// Sums over a [`Ledger`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Balance {
    /// Messages that were acknowledged.
    pub acked: u64,
    /// Different messages that were found.
    pub stored: u64,
    /// Acknowledged and not found.
    pub missing: u64,
    /// Found again, after the first time.
    pub stored_twice: u64,
    /// Found and never acknowledged (an ack got lost, or was never sent): no fault.
    pub unacked: u64,
}

impl Ledger {
    /// An empty ledger for devices `first..first + devices`.
    #[must_use]
    pub fn new(first: u32, devices: u32) -> Ledger {
        Ledger { first, devices, acked: Bits::default(), stored: Bits::default(), stored_twice: 0 }
    }

    fn index(&self, id: MessageId) -> u64 {
        u64::from(id.number) * u64::from(self.devices) + u64::from(id.device - self.first)
    }

    fn id(&self, index: u64) -> MessageId {
        let devices = u64::from(self.devices);
        MessageId { device: (index % devices) as u32 + self.first, number: (index / devices) as u32 }
    }

    /// Whether this ledger covers the device.
    #[must_use]
    pub fn covers(&self, device: u32) -> bool {
        device.checked_sub(self.first).is_some_and(|i| i < self.devices)
    }

    /// The server acknowledged a message; false if it had before.
    pub fn ack(&mut self, id: MessageId) -> bool {
        self.acked.insert(self.index(id))
    }

    /// Whether the server acknowledged a message.
    #[must_use]
    pub fn is_acked(&self, id: MessageId) -> bool {
        self.acked.contains(self.index(id))
    }

    /// Messages that the server acknowledged.
    pub fn acked(&self) -> impl Iterator<Item = MessageId> {
        self.acked.iter().map(|k| self.id(k))
    }

    /// Messages that were found.
    pub fn stored(&self) -> impl Iterator<Item = MessageId> {
        self.stored.iter().map(|k| self.id(k))
    }

    /// Devices of which at least one message was acknowledged.
    #[must_use]
    pub fn devices_acked(&self) -> u32 {
        let mut devices = Bits::default();
        self.acked.iter().filter(|k| devices.insert(k % u64::from(self.devices))).count() as u32
    }

    /// Whether a message was found.
    #[must_use]
    pub fn is_stored(&self, id: MessageId) -> bool {
        self.stored.contains(self.index(id))
    }

    /// A message was found in what the server stored; false if it had been found before.
    pub fn store(&mut self, id: MessageId) -> bool {
        let fresh = self.stored.insert(self.index(id));
        self.stored_twice += u64::from(!fresh);
        fresh
    }

    /// What was acknowledged, to be sent to another process.
    #[must_use]
    pub fn dump_acked(&self) -> Dump {
        Dump { first: self.first, devices: self.devices, chunks: self.acked.dump() }
    }

    /// What was found, likewise.
    #[must_use]
    pub fn dump_stored(&self) -> Dump {
        Dump { first: self.first, devices: self.devices, chunks: self.stored.dump() }
    }

    /// A ledger of acknowledged messages; `None` if the dump is damaged.
    #[must_use]
    pub fn from_dump(dump: &Dump) -> Option<Ledger> {
        let mut ledger = Ledger::new(dump.first, dump.devices);
        ledger.acked = Bits::from_dump(&dump.chunks)?;
        Some(ledger)
    }

    /// A ledger of messages that were found.
    #[must_use]
    pub fn from_stored_dump(dump: &Dump) -> Option<Ledger> {
        let mut ledger = Ledger::new(dump.first, dump.devices);
        ledger.stored = Bits::from_dump(&dump.chunks)?;
        Some(ledger)
    }

    /// Adds what another ledger of the same devices found.
    pub fn add_stored(&mut self, other: &Ledger) {
        for k in other.stored.iter() {
            self.store(other.id(k));
        }
        self.stored_twice += other.stored_twice;
    }

    /// Adds what another ledger knows to be acknowledged, of devices that are all among these.
    pub fn add_acked(&mut self, other: &Ledger) {
        for id in other.acked() {
            self.ack(id);
        }
    }

    /// Its devices: the first one, and how many.
    #[must_use]
    pub fn devices(&self) -> (u32, u32) {
        (self.first, self.devices)
    }

    /// The sums.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let missing = self.missing().count() as u64;
        let (acked, stored) = (self.acked.len(), self.stored.len());
        Balance { acked, stored, missing, stored_twice: self.stored_twice, unacked: stored - (acked - missing) }
    }

    /// Messages that were acknowledged and not found.
    pub fn missing(&self) -> impl Iterator<Item = MessageId> {
        self.acked.iter().filter(|&k| !self.stored.contains(k)).map(|k| self.id(k))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_holds_the_same_messages() {
        let mut ledger = Ledger::new(5, 3);
        let ids: Vec<_> = [0, 1, 77, 400_000].map(|number| MessageId { device: 6, number }).into();
        for &id in &ids {
            ledger.ack(id);
        }
        let again = Ledger::from_dump(&ledger.dump_acked()).unwrap();
        assert_eq!(again.acked().collect::<Vec<_>>(), ids);
        let mut damaged = ledger.dump_acked();
        damaged.chunks[0].1.truncate(8);
        assert!(Ledger::from_dump(&damaged).is_none());
    }

    #[test]
    fn it_tells_missing_twice_and_unacked_apart() {
        let mut ledger = Ledger::new(100, 7);
        assert!(ledger.covers(100) && ledger.covers(106) && !ledger.covers(99) && !ledger.covers(107));
        let id = |device, number| MessageId { device, number };
        for number in 0..200_000 {
            for device in 100..107 {
                assert!(ledger.ack(id(device, number)));
                if !(device == 103 && number % 50_000 == 1) {
                    assert!(ledger.store(id(device, number)));
                }
            }
        }
        assert!(!ledger.ack(id(100, 3)));
        assert!(!ledger.store(id(100, 3)), "twice");
        assert!(ledger.store(id(106, 200_000)), "its ack was lost");
        assert_eq!(ledger.devices_acked(), 7);
        assert!(ledger.is_acked(id(103, 1)) && !ledger.is_acked(id(106, 200_000)));
        let missing: Vec<_> = ledger.missing().collect();
        assert_eq!(missing, [id(103, 1), id(103, 50_001), id(103, 100_001), id(103, 150_001)]);
        assert_eq!(
            ledger.balance(),
            Balance { acked: 1_400_000, stored: 1_399_997, missing: 4, stored_twice: 1, unacked: 1 }
        );
    }
}
