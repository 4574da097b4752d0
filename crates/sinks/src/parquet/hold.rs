//! The records of one roll: taken in the order of the log, handed out in the order of the files.
//!
//! They are held in one buffer, each as [`FIXED_LEN`] bytes and its variable parts, with four bytes a record to find them again. Text is
//! not checked again on its way out: it goes to columns of bytes. What is sorted is not the records but 24 bytes for each ([`Row`]): the 16 bytes of the device's name after what all names of
//! the roll begin with, then the time within the hour and the place in the buffer. Only names that agree in those 16 bytes are
//! compared in full.

use std::collections::BTreeMap;

use tidegate_record::{MessageKey, Protocol, Record, Seq};

use super::name::Hour;

/// Bytes of a name's remainder that a row holds; the sixteenth tells its length, so that equal keys mean equal names.
const KEY_BYTES: usize = 15;

/// The length that stands for every longer remainder.
const LONGER: u8 = KEY_BYTES as u8 + 1;

/// Bytes of a held record before its variable parts: `seq`, `received`, `key.scope`, `key.number` (8 each), length of the payload (4),
/// `content_format`, lengths of device, tenant, content type and topic (2 each), protocol, flags (1 each).
const FIXED_LEN: usize = 48;

const QOS_MASK: u8 = 0b11;
const RETAIN: u8 = 1 << 2;
const HAS_FORMAT: u8 = 1 << 3;
const HAS_KEY: u8 = 1 << 4;

/// What a roll may take beyond `roll_bytes` before it is asked whether it is due: a batch of the log (1 MiB) with its last record.
const OVERSHOOT: usize = 2 << 20;

/// Rows whose first bytes are loaded before the first of them is looked at. Rows lie anywhere in the buffer, and a processor waits for
/// one record at a time if each is taken apart as it arrives: this pass, which does nothing else, has many on their way at once.
const TOUCH_ROWS: usize = 32;

/// How much of each is loaded: 192 bytes have all of a device's reading.
const TOUCH_LINES: usize = 3;
const CACHE_LINE: usize = 64;

/// The records of one roll.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// The records, back to back.
    arena: Vec<u8>,
    /// Where each record begins in `arena`, ascending.
    at: Vec<u32>,
    /// From which record on an epoch holds; ascending in both.
    epochs: Vec<(usize, u32)>,
    /// What the names of all devices begin with.
    common: Vec<u8>,
    /// The longest name.
    longest: usize,
    /// The lowest and highest `received`.
    times: Option<(u64, u64)>,
}

/// One held record. What was text is bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    pub(super) seq: Seq,
    pub(super) received: u64,
    pub(super) protocol: Protocol,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) content_format: Option<u16>,
    pub(super) device: &'a [u8],
    pub(super) tenant: &'a [u8],
    pub(super) content_type: &'a [u8],
    pub(super) topic: &'a [u8],
    pub(super) key: Option<MessageKey>,
    pub(super) payload: &'a [u8],
}

impl<'a> Held<'a> {
    fn new(fixed: &[u8; FIXED_LEN], mut rest: &'a [u8]) -> Held<'a> {
        let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
        let payload_len = u32::from_le_bytes(std::array::from_fn(|i| fixed[32 + i]));
        let flags = fixed[47];
        let mut part = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        };
        Held {
            seq: Seq(u64_at(0)),
            received: u64_at(8),
            protocol: Protocol::from_number(fixed[46]).expect("only the number of a protocol was written"),
            qos: flags & QOS_MASK,
            retain: flags & RETAIN != 0,
            content_format: (flags & HAS_FORMAT != 0).then(|| u16_at(36)),
            device: part(usize::from(u16_at(38))),
            tenant: part(usize::from(u16_at(40))),
            content_type: part(usize::from(u16_at(42))),
            topic: part(usize::from(u16_at(44))),
            key: (flags & HAS_KEY != 0).then(|| MessageKey { scope: u64_at(16), number: u64_at(24) }),
            payload: part(payload_len as usize),
        }
    }
}

/// One record in the order of a file: by name, time within the hour, sequence number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    /// The first [`KEY_BYTES`] of the name after the common beginning, zero-padded, and the length of the remainder.
    name: (u64, u64),
    /// Microseconds since the hour began (an hour has fewer than 2^32), then the place in the buffer, which ascends as sequence
    /// numbers do.
    time_and_place: u64,
}

impl Row {
    fn place(self) -> usize {
        (self.time_and_place & u64::from(u32::MAX)) as usize
    }

    fn is_name_longer(self) -> bool {
        self.name.1.to_be_bytes()[7] == LONGER
    }
}

/// The rows of one file.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) epoch: u32,
    pub(super) hour: Hour,
    pub(super) first: Seq,
    pub(super) last: Seq,
    /// Sorted.
    pub(super) rows: Vec<Row>,
}

impl Hold {
    /// Takes a record; sequence numbers ascend. The buffer for a whole roll is allocated with the first: pages that it does not
    /// touch take no memory, and nothing is copied as it fills.
    pub(super) fn take(&mut self, seq: Seq, epoch: u32, record: &Record<'_>, roll_bytes: usize) {
        if self.arena.capacity() == 0 {
            self.arena.reserve_exact(roll_bytes + OVERSHOOT);
        }
        let at = self.arena.len();
        self.write(seq, record);
        let at = u32::try_from(at).expect("a roll is delivered long before it has 4 GiB: roll_bytes is bounded");
        let device = record.device.as_bytes();
        if self.at.is_empty() {
            self.common.extend_from_slice(device);
        } else if !device.starts_with(&self.common) {
            let common = self.common.iter().zip(device).take_while(|(a, b)| a == b).count();
            self.common.truncate(common);
        }
        self.longest = self.longest.max(device.len());
        if self.epochs.last().is_none_or(|&(_, last)| last != epoch) {
            self.epochs.push((self.at.len(), epoch));
        }
        let (oldest, newest) = self.times.unwrap_or((record.received, record.received));
        self.times = Some((oldest.min(record.received), newest.max(record.received)));
        self.at.push(at);
    }

    fn write(&mut self, seq: Seq, record: &Record<'_>) {
        let len = |text: &str| (text.len() as u16).to_le_bytes();
        let mut flags = record.qos;
        flags |= if record.retain { RETAIN } else { 0 };
        flags |= if record.content_format.is_some() { HAS_FORMAT } else { 0 };
        flags |= if record.key.is_some() { HAS_KEY } else { 0 };
        let key = record.key.unwrap_or(MessageKey { scope: 0, number: 0 });
        let mut fixed = [0u8; FIXED_LEN];
        fixed[0..8].copy_from_slice(&seq.0.to_le_bytes());
        fixed[8..16].copy_from_slice(&record.received.to_le_bytes());
        fixed[16..24].copy_from_slice(&key.scope.to_le_bytes());
        fixed[24..32].copy_from_slice(&key.number.to_le_bytes());
        fixed[32..36].copy_from_slice(&(record.payload.len() as u32).to_le_bytes());
        fixed[36..38].copy_from_slice(&record.content_format.unwrap_or(0).to_le_bytes());
        fixed[38..40].copy_from_slice(&len(record.device));
        fixed[40..42].copy_from_slice(&len(record.tenant));
        fixed[42..44].copy_from_slice(&len(record.content_type));
        fixed[44..46].copy_from_slice(&len(record.topic));
        fixed[46] = record.protocol as u8;
        fixed[47] = flags;
        self.arena.extend_from_slice(&fixed);
        for text in [record.device, record.tenant, record.content_type, record.topic] {
            self.arena.extend_from_slice(text.as_bytes());
        }
        self.arena.extend_from_slice(record.payload);
    }

    /// Forgets the records, but not the memory they took.
    pub(super) fn clear(&mut self) {
        self.arena.clear();
        self.at.clear();
        self.epochs.clear();
        self.common.clear();
        self.longest = 0;
        self.times = None;
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.at.len() * size_of::<u32>()
    }

    /// The lowest and highest `received`, unless nothing is held.
    pub(super) fn times(&self) -> Option<(u64, u64)> {
        self.times
    }

    /// Calls `each` with the records at `rows`, in their order.
    pub(super) fn for_each<'a>(&'a self, rows: &[Row], mut each: impl FnMut(Held<'a>)) {
        for rows in rows.chunks(TOUCH_ROWS) {
            let mut touched = 0;
            for row in rows {
                let place = row.place();
                for line in 0..TOUCH_LINES {
                    touched ^= self.arena.get(place + line * CACHE_LINE).copied().unwrap_or(0);
                }
            }
            std::hint::black_box(touched);
            for row in rows {
                each(self.record_at(row.place()));
            }
        }
    }

    fn device(&self, row: Row) -> &[u8] {
        self.record_at(row.place()).device
    }

    fn record_at(&self, place: usize) -> Held<'_> {
        let (fixed, rest) =
            self.arena[place..].split_first_chunk::<FIXED_LEN>().expect("a place is the beginning of a record");
        Held::new(fixed, rest)
    }

    /// One group for each epoch and hour, in their order, each sorted. Records received at a time that no partition can be named
    /// for ([`Hour::of`]) must not have been taken.
    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups = BTreeMap::<(u32, Hour), Group>::new();
        for (from, &(start, epoch)) in self.epochs.iter().enumerate() {
            let end = self.epochs.get(from + 1).map_or(self.at.len(), |&(next, _)| next);
            self.group(epoch, &self.at[start..end], &mut groups);
        }
        let is_exact = self.longest - self.common.len() <= KEY_BYTES;
        let mut groups: Vec<_> = groups.into_values().collect();
        for group in &mut groups {
            if is_exact {
                group.rows.sort_unstable();
            } else {
                group.rows.sort_unstable_by(|a, b| {
                    let by_key = a.name.cmp(&b.name);
                    let by_name = by_key
                        .then_with(|| if a.is_name_longer() { self.device(*a).cmp(self.device(*b)) } else { by_key });
                    by_name.then(a.time_and_place.cmp(&b.time_and_place))
                });
            }
        }
        groups
    }

    fn group(&self, epoch: u32, places: &[u32], groups: &mut BTreeMap<(u32, Hour), Group>) {
        let mut current: Option<Group> = None;
        let mut is_first = true;
        for &place in places {
            let record = self.record_at(place as usize);
            let hour = Hour::of(record.received).expect("only records of a nameable hour are taken");
            if current.as_ref().is_none_or(|group| group.hour != hour) {
                if let Some(group) = current.take() {
                    groups.insert((epoch, group.hour), group);
                }
                current = Some(groups.remove(&(epoch, hour)).unwrap_or_else(|| Group {
                    epoch,
                    hour,
                    first: record.seq,
                    last: record.seq,
                    rows: Vec::new(),
                }));
            }
            if let Some(group) = &mut current {
                if is_first {
                    // Nearly always all of them are of one hour.
                    group.rows.reserve(places.len());
                    is_first = false;
                }
                group.last = record.seq;
                group.rows.push(self.row(place, record.received - hour.start(), record.device));
            }
        }
        if let Some(group) = current {
            groups.insert((epoch, group.hour), group);
        }
    }

    fn row(&self, place: u32, time: u64, device: &[u8]) -> Row {
        let rest = &device[self.common.len()..];
        let mut key = [0u8; KEY_BYTES + 1];
        let len = rest.len().min(KEY_BYTES);
        key[..len].copy_from_slice(&rest[..len]);
        key[KEY_BYTES] = rest.len().min(usize::from(LONGER)) as u8;
        let key = u128::from_be_bytes(key);
        Row { name: ((key >> 64) as u64, key as u64), time_and_place: time << 32 | u64::from(place) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_record::Protocol;

    use super::*;

    fn record(device: &str, received: u64) -> Record<'_> {
        Record {
            received,
            protocol: Protocol::Coap,
            qos: 0,
            retain: false,
            content_format: None,
            device,
            tenant: "",
            content_type: "",
            topic: "t",
            key: None,
            payload: b"",
        }
    }

    const HOUR: u64 = 3_600_000_000;

    proptest! {
        /// Names that agree for long, hold zero bytes or are prefixes of each other; times across two hours; two epochs.
        #[test]
        fn rows_come_in_the_order_of_device_time_and_sequence(
            taken in prop::collection::vec(("(urn:dev:imei:|x)?[\0ab]{0,20}", 0..2 * HOUR, 1u32..3), 1..200)
        ) {
            let mut epochs: Vec<u32> = taken.iter().map(|(_, _, epoch)| *epoch).collect();
            epochs.sort_unstable();
            let mut hold = Hold::default();
            let mut model = BTreeMap::<_, Vec<_>>::new();
            for (n, ((device, received, _), epoch)) in taken.iter().zip(epochs).enumerate() {
                let seq = Seq(10 + n as u64);
                hold.take(seq, epoch, &record(device, *received), 1 << 20);
                model.entry((epoch, received / HOUR)).or_default().push((device.as_str(), *received, seq));
            }
            let groups = hold.groups();
            prop_assert_eq!(groups.len(), model.len());
            for (group, ((epoch, hour), mut expected)) in groups.iter().zip(model) {
                prop_assert_eq!((group.epoch, group.hour), (epoch, Hour::of(hour * HOUR).unwrap()));
                prop_assert_eq!(group.first, expected.iter().map(|r| r.2).min().unwrap());
                prop_assert_eq!(group.last, expected.iter().map(|r| r.2).max().unwrap());
                expected.sort_unstable();
                let mut rows = Vec::new();
                hold.for_each(&group.rows, |held| {
                    rows.push((std::str::from_utf8(held.device).unwrap(), held.received, held.seq));
                });
                prop_assert_eq!(rows, expected);
            }
        }
    }
}
