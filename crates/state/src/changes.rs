//! Changes that are stored together or not at all.
//!
//! They are kept as bytes, one after the other: the kind (1 byte), the table (1), the lengths of key and value (4 each, little-endian), key,
//! value.

use crate::Table;

/// Kind, table and two lengths.
const HEADER_LEN: usize = 10;

const PUT: u8 = 0;
const REMOVE: u8 = 1;
const REMOVE_PREFIX: u8 = 2;

/// What one submission changes, in order. A front end keeps one and fills it again and again: an accepted submission clears it and
/// leaves its memory in place.
#[derive(Default)]
pub struct Changes {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u32,
}

/// One change, as the state thread reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    Put(&'a [u8], &'a [u8]),
    Remove(&'a [u8]),
    RemovePrefix(&'a [u8]),
}

impl Changes {
    /// No changes.
    #[must_use]
    pub fn new() -> Changes {
        Changes::default()
    }

    /// Sets the value of `key`.
    pub fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> &mut Changes {
        self.push(PUT, table, key, value)
    }

    /// Removes `key`, if it is there.
    pub fn remove(&mut self, table: Table, key: &[u8]) -> &mut Changes {
        self.push(REMOVE, table, key, &[])
    }

    /// Removes every key that begins with `prefix`; with an empty one, all.
    pub fn remove_prefix(&mut self, table: Table, prefix: &[u8]) -> &mut Changes {
        self.push(REMOVE_PREFIX, table, prefix, &[])
    }

    fn push(&mut self, kind: u8, table: Table, key: &[u8], value: &[u8]) -> &mut Changes {
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB").to_le_bytes();
        self.bytes.reserve(HEADER_LEN + key.len() + value.len());
        self.bytes.extend_from_slice(&[kind, table as u8]);
        self.bytes.extend_from_slice(&len(key));
        self.bytes.extend_from_slice(&len(value));
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.count += 1;
        self
    }

    /// Number of changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Bytes that they take while they wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds the changes of `other` behind those of this one.
    pub fn append(&mut self, other: &Changes) {
        self.bytes.extend_from_slice(&other.bytes);
        self.count += other.count;
    }

    /// Forgets the changes and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }
}

impl std::fmt::Debug for Changes {
    /// Without their contents, among which are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes").field("count", &self.count).field("bytes", &self.bytes.len()).finish()
    }
}

/// The changes in `bytes`, which [`Changes`] wrote.
pub(crate) fn read(mut bytes: &[u8]) -> impl Iterator<Item = (Table, Change<'_>)> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_at_checked(HEADER_LEN)?;
        let len = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        let (key, rest) = rest.split_at_checked(len(2))?;
        let (value, rest) = rest.split_at_checked(len(6))?;
        bytes = rest;
        let table = Table::from_number(header[1])?;
        let change = match header[0] {
            PUT => Change::Put(key, value),
            REMOVE => Change::Remove(key),
            _ => Change::RemovePrefix(key),
        };
        Some((table, change))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut changes = Changes::new();
        changes.put(Table::Retained, b"topic", b"").remove(Table::Wills, b"").remove_prefix(Table::Queues, b"c1/");
        assert_eq!(changes.len(), 3);
        let expected = [
            (Table::Retained, Change::Put(b"topic", b"")),
            (Table::Wills, Change::Remove(b"")),
            (Table::Queues, Change::RemovePrefix(b"c1/")),
        ];
        assert_eq!(read(&changes.bytes).collect::<Vec<_>>(), expected);
        changes.clear();
        assert!(changes.is_empty() && read(&changes.bytes).next().is_none());
    }

    #[test]
    fn tables_are_found_by_their_number() {
        for table in Table::ALL {
            assert_eq!(Table::from_number(table as u8), Some(table));
        }
        assert_eq!(Table::from_number(Table::ALL.len() as u8), None);
    }
}
