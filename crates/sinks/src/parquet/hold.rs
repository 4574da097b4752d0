//! The records of one roll: taken in the order of the log, handed out in the order of the files.
//!
//! They are held in their encoded form in one buffer, each behind its sequence number, with four bytes a record to find them again.
//! What is sorted is not the records but 24 bytes for each ([`Row`]): the 16 bytes of the device's name after what all names of
//! the roll begin with, then the time within the hour and the place in the buffer. Only names that agree in those 16 bytes are
//! compared in full.

use std::collections::BTreeMap;

use tidegate_record::{EncodeError, Record, Seq};

use super::name::Hour;

/// Bytes of a name's remainder that a row holds; the sixteenth tells its length, so that equal keys mean equal names.
const KEY_BYTES: usize = 15;

/// The length that stands for every longer remainder.
const LONGER: u8 = KEY_BYTES as u8 + 1;

const SEQ_LEN: usize = size_of::<u64>();

/// What a roll may take beyond `roll_bytes` before it is asked whether it is due: a batch of the log (1 MiB) with its last record.
const OVERSHOOT: usize = 2 << 20;

/// The records of one roll.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// For each record its sequence number (8 bytes, little-endian), then its encoded form.
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
    pub(super) fn take(
        &mut self,
        seq: Seq,
        epoch: u32,
        record: &Record<'_>,
        roll_bytes: usize,
    ) -> Result<(), EncodeError> {
        if self.arena.capacity() == 0 {
            self.arena.reserve_exact(roll_bytes + OVERSHOOT);
        }
        let at = self.arena.len();
        self.arena.extend_from_slice(&seq.0.to_le_bytes());
        if let Err(error) = record.encode(&mut self.arena) {
            self.arena.truncate(at);
            return Err(error);
        }
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
        Ok(())
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.arena.len() + self.at.len() * size_of::<u32>()
    }

    /// The lowest and highest `received`, unless nothing is held.
    pub(super) fn times(&self) -> Option<(u64, u64)> {
        self.times
    }

    /// The record at `row`.
    pub(super) fn record(&self, row: Row) -> (Seq, Record<'_>) {
        self.record_at(row.place())
    }

    fn record_at(&self, place: usize) -> (Seq, Record<'_>) {
        let (seq, record) =
            self.arena[place..].split_first_chunk::<SEQ_LEN>().expect("a place is the beginning of a record");
        let (record, _) = Record::decode(record).expect("what was encoded here decodes");
        (Seq(u64::from_le_bytes(*seq)), record)
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
                    let by_name = by_key.then_with(|| {
                        if a.is_name_longer() { self.record(*a).1.device.cmp(self.record(*b).1.device) } else { by_key }
                    });
                    by_name.then(a.time_and_place.cmp(&b.time_and_place))
                });
            }
        }
        groups
    }

    fn group(&self, epoch: u32, places: &[u32], groups: &mut BTreeMap<(u32, Hour), Group>) {
        let mut current: Option<Group> = None;
        for &place in places {
            let (seq, record) = self.record_at(place as usize);
            let hour = Hour::of(record.received).expect("only records of a nameable hour are taken");
            if current.as_ref().is_none_or(|group| group.hour != hour) {
                if let Some(group) = current.take() {
                    groups.insert((epoch, group.hour), group);
                }
                current = Some(groups.remove(&(epoch, hour)).unwrap_or_else(|| Group {
                    epoch,
                    hour,
                    first: seq,
                    last: seq,
                    rows: Vec::new(),
                }));
            }
            if let Some(group) = &mut current {
                if group.rows.is_empty() {
                    group.rows.reserve(places.len().min(self.at.len()));
                }
                group.last = seq;
                group.rows.push(self.row(place, record.received - hour.start(), record.device));
            }
        }
        if let Some(group) = current {
            groups.insert((epoch, group.hour), group);
        }
    }

    fn row(&self, place: u32, time: u64, device: &str) -> Row {
        let rest = &device.as_bytes()[self.common.len()..];
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
                hold.take(seq, epoch, &record(device, *received), 1 << 20).unwrap();
                model.entry((epoch, received / HOUR)).or_default().push((device.as_str(), *received, seq));
            }
            let groups = hold.groups();
            prop_assert_eq!(groups.len(), model.len());
            for (group, ((epoch, hour), mut expected)) in groups.iter().zip(model) {
                prop_assert_eq!((group.epoch, group.hour), (epoch, Hour::of(hour * HOUR).unwrap()));
                prop_assert_eq!(group.first, expected.iter().map(|r| r.2).min().unwrap());
                prop_assert_eq!(group.last, expected.iter().map(|r| r.2).max().unwrap());
                expected.sort_unstable();
                let rows: Vec<_> = group.rows.iter().map(|row| {
                    let (seq, record) = hold.record(*row);
                    (record.device, record.received, seq)
                }).collect();
                prop_assert_eq!(rows, expected);
            }
        }
    }
}
