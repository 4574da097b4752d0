//! How associations stand in the database.
//!
//! # Format
//!
//! All keys of [`Table::Associations`] begin with a byte that says what the rest is; integers are big-endian.
//!
//! | key | value |
//! |---|---|
//! | `a`, number (6 bytes) | format (1 byte, 2), number of the identity ([`registry::Identity::number`], 8), length of the device's name (1), the name, length of the PSK identity (1; 0 if it is the name), the identity, the export ([`EXPORT_LEN`]) |
//! | `w`, place (4 bytes) | association (8 bytes), one past the highest sequence number received (8), seconds of the last use (4) |
//! | `l`, number (1 byte) | an address of ours (4 or 16 bytes) |
//! | `m` | see [`super::restore`] |
//!
//! The number of an association counts those that were stored ([`super::numbers`]): rows that are written together are neighbours, and a
//! commit fills pages at the end of the table instead of changing one a shard. Of two rows for one slot, the one with the higher number
//! holds: the other is left from an end that could not be stored.
//!
//! A place is the slot with its lower six bits in front ([`PLACE_BITS`]): the shards fill side by side, each from its first slot on, and
//! windows are written shard by shard.
//!
//! The export holds keys. The database's file is its owner's alone.

use tidegate_dtls::{About, AssociationId, EXPORT_LEN, Export};
use tidegate_record::DeviceId;
#[cfg(doc)]
use tidegate_state::registry;
use tidegate_state::{Changes, Reader, Table};

use super::numbers::Number;

const FORMAT: u8 = 2;

pub(super) const ASSOCIATION: u8 = b'a';
pub(super) const WINDOW: u8 = b'w';
pub(super) const LOCAL: u8 = b'l';

/// Bytes of a window's row.
const WINDOW_LEN: usize = 20;

/// Who opened an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names<'a> {
    pub(super) device: &'a str,
    pub(super) identity: &'a [u8],
    /// The number that the identity had: the association ends with it.
    pub(super) number: u64,
}

/// The same, kept.
#[derive(Debug, Clone)]
pub(super) struct Owned {
    device: Box<str>,
    identity: Box<[u8]>,
    number: u64,
}

impl Names<'_> {
    pub(super) fn to_owned(self) -> Owned {
        Owned { device: self.device.into(), identity: self.identity.into(), number: self.number }
    }
}

impl Owned {
    pub(super) fn as_names(&self) -> Names<'_> {
        Names { device: &self.device, identity: &self.identity, number: self.number }
    }
}

/// Bits of a slot that name its shard if there are as many shards as there may be; if there are fewer, some of them count on.
const PLACE_BITS: u32 = super::settings::MAX_SHARDS.ilog2();

fn window_key(id: AssociationId) -> [u8; 5] {
    let [a, b, c, d] = id.slot().rotate_right(PLACE_BITS).to_be_bytes();
    [WINDOW, a, b, c, d]
}

fn key(number: Number) -> [u8; 7] {
    let [a, b, c, d, e, f] = number.to_bytes();
    [ASSOCIATION, a, b, c, d, e, f]
}

/// The number in the key of an association.
pub(super) fn number(key: &[u8]) -> Option<Number> {
    let (_, number) = key.split_first()?;
    number.try_into().ok().and_then(Number::from_bytes)
}

/// Adds a new association to the changes.
pub(super) fn put(changes: &mut Changes, number: Number, export: &Export, names: &Names<'_>) {
    let identity = if names.identity == names.device.as_bytes() { &[][..] } else { names.identity };
    let mut value = zeroize::Zeroizing::new(Vec::with_capacity(11 + names.device.len() + identity.len() + EXPORT_LEN));
    value.push(FORMAT);
    value.extend_from_slice(&names.number.to_be_bytes());
    for text in [names.device.as_bytes(), identity] {
        // Both are of at most 128 bytes.
        value.push(text.len() as u8);
        value.extend_from_slice(text);
    }
    value.extend_from_slice(export.as_bytes());
    changes.put(Table::Associations, &key(number), &value);
}

/// Adds an association as it is now, with the names that its row has. False if it has no row yet.
pub(super) fn put_again(reader: &Reader, changes: &mut Changes, number: Number, export: &Export) -> bool {
    let put = reader.get(Table::Associations, &key(number), |value| {
        parse(value).map(|(names, _)| put(changes, number, export, &names)).is_some()
    });
    // A database that cannot be read has failed, or will when it is written.
    matches!(put, Ok(Some(true)))
}

/// What `holds` says of the names of a stored association; false if it is not stored.
pub(super) fn holds(reader: &Reader, number: Number, holds: impl FnOnce(&Names<'_>) -> bool) -> bool {
    let said =
        reader.get(Table::Associations, &key(number), |value| parse(value).is_some_and(|(names, _)| holds(&names)));
    matches!(said, Ok(Some(true)))
}

/// The association that a row says it is.
pub(super) fn id(value: &[u8]) -> Option<AssociationId> {
    parse(value).and_then(|(_, export)| Export::id_of(export))
}

/// The same of a row that is stored.
pub(super) fn stored_id(reader: &Reader, number: Number) -> Option<AssociationId> {
    reader.get(Table::Associations, &key(number), id).ok().flatten().flatten()
}

/// Adds the end of an association.
pub(super) fn remove(changes: &mut Changes, number: Number) {
    changes.remove(Table::Associations, &key(number));
}

/// Adds the end of what is known of its window.
pub(super) fn remove_window(changes: &mut Changes, id: AssociationId) {
    changes.remove(Table::Associations, &window_key(id));
}

/// Adds the end of a row whose key is none of ours.
pub(super) fn remove_key(changes: &mut Changes, key: &[u8]) {
    changes.remove(Table::Associations, key);
}

/// Names and export of an association's row.
pub(super) fn parse(value: &[u8]) -> Option<(Names<'_>, &[u8])> {
    fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (&len, rest) = bytes.split_first()?;
        rest.split_at_checked(usize::from(len))
    }
    let (&format, rest) = value.split_first()?;
    let (number, rest) = rest.split_first_chunk()?;
    let (device, rest) = text(rest)?;
    let (identity, export) = text(rest)?;
    let device = std::str::from_utf8(device).ok().filter(|device| DeviceId::check(device).is_ok())?;
    let identity = if identity.is_empty() { device.as_bytes() } else { identity };
    let names = Names { device, identity, number: u64::from_be_bytes(*number) };
    (format == FORMAT && export.len() == EXPORT_LEN).then_some((names, export))
}

/// What a replay window has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) id: AssociationId,
    /// One past the highest sequence number received.
    pub(super) received: u64,
    /// Seconds of the last use.
    pub(super) used: u32,
}

/// Adds what a replay window has seen.
pub(super) fn put_window(changes: &mut Changes, about: &About) {
    let used = u32::try_from(about.last_used.0 / 1000).unwrap_or(u32::MAX);
    let value = Window { id: about.id, received: about.received, used }.write();
    changes.put(Table::Associations, &window_key(about.id), &value);
}

impl Window {
    fn write(self) -> [u8; WINDOW_LEN] {
        let mut value = [0; WINDOW_LEN];
        value[..8].copy_from_slice(&self.id.0.to_be_bytes());
        value[8..16].copy_from_slice(&self.received.to_be_bytes());
        value[16..].copy_from_slice(&self.used.to_be_bytes());
        value
    }
}

/// What a window's row says.
pub(super) fn parse_window(value: &[u8]) -> Option<Window> {
    let value: &[u8; WINDOW_LEN] = value.try_into().ok()?;
    let (id, rest) = value.split_first_chunk::<8>()?;
    let (received, used) = rest.split_first_chunk::<8>()?;
    Some(Window {
        id: AssociationId(u64::from_be_bytes(*id)),
        received: u64::from_be_bytes(*received),
        used: u32::from_be_bytes(used.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_row_is_no_row() {
        let mut value = vec![FORMAT, 0, 0, 0, 0, 0, 0, 1, 0, 3, b'd', b'e', b'v', 2, b'i', b'd'];
        value.extend_from_slice(&[7; EXPORT_LEN]);
        let names = Names { device: "dev", identity: b"id", number: 256 };
        assert_eq!(parse(&value), Some((names, &[7; EXPORT_LEN][..])));
        for cut in 0..value.len() {
            assert_eq!(parse(&value[..cut]), None, "cut at {cut}");
        }
        for (at, byte) in [(0, 1), (9, 0), (10, 0x07), (11, 0xFF)] {
            let mut bad = value.clone();
            bad[at] = byte;
            assert_eq!(parse(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn an_identity_that_is_the_name_takes_no_room() {
        let mut value = vec![FORMAT, 0, 0, 0, 0, 0, 0, 0, 7, 3, b'd', b'e', b'v', 0];
        value.extend_from_slice(&[7; EXPORT_LEN]);
        let names = Names { device: "dev", identity: b"dev", number: 7 };
        assert_eq!(parse(&value).map(|(names, _)| names), Some(names));
    }

    #[test]
    fn a_window_comes_back() {
        let window = Window { id: AssociationId(0x0102_0304_0506_0708), received: 77, used: u32::MAX };
        let value = window.write();
        assert_eq!(parse_window(&value), Some(window));
        assert_eq!(parse_window(&value[1..]), None);
        let keys = [0, 64, 1].map(|slot| window_key(AssociationId(slot << 32)));
        assert!(keys.is_sorted(), "neighbours of a shard are neighbours in the database: {keys:?}");
    }
}
