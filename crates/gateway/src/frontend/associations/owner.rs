//! The sixteen bytes that tie an association to its device.
//!
//! A name of up to [`INLINE`] bytes stands in them as it is: its length, the text, zeros. Of a longer one they hold the mark
//! [`HASHED`] and the first 15 bytes of its SHA-256, and the name is in [`Names`] for as long as an association needs it.

use dashmap::DashMap;
use sha2::{Digest, Sha256};
use tidegate_dtls::Owner;
use tidegate_record::DeviceId;

/// Longest name that needs no entry in [`Names`]: an IMEI has 15 digits.
const INLINE: usize = 15;

/// Stands where the length of a short name would.
const HASHED: u8 = 0xFF;

/// The owner that stands for `device`.
pub(super) fn owner_of(device: &str) -> Owner {
    let mut owner = [0; 16];
    if device.len() <= INLINE {
        owner[0] = device.len() as u8;
        owner[1..=device.len()].copy_from_slice(device.as_bytes());
    } else {
        owner[0] = HASHED;
        owner[1..].copy_from_slice(&Sha256::digest(device)[..INLINE]);
    }
    owner
}

/// The name in an owner, unless it is too long for that.
fn inline(owner: &Owner) -> Option<&str> {
    let text = owner[1..].get(..usize::from(owner[0]))?;
    std::str::from_utf8(text).ok()
}

/// Long names, by their owners, with the number of associations that need each.
#[derive(Debug, Default)]
pub(super) struct Names(DashMap<Owner, (DeviceId, u32), foldhash::quality::RandomState>);

impl Names {
    /// Keeps the name of a new association's device.
    pub(super) fn hold(&self, owner: &Owner, device: &DeviceId) {
        if owner[0] == HASHED {
            let mut entry = self.0.entry(*owner).or_insert_with(|| (device.clone(), 0));
            entry.0.clone_from(device);
            entry.1 += 1;
        }
    }

    /// An association is gone that was [held](Self::hold).
    pub(super) fn release(&self, owner: &Owner) {
        if owner[0] != HASHED {
            return;
        }
        if let dashmap::Entry::Occupied(mut entry) = self.0.entry(*owner) {
            entry.get_mut().1 -= 1;
            if entry.get().1 == 0 {
                entry.remove();
            }
        }
    }

    /// Runs `f` on the name of the device; `None` if nothing of it is held.
    pub(super) fn with<R>(&self, owner: &Owner, f: impl FnOnce(&str) -> R) -> Option<R> {
        match inline(owner) {
            Some(name) => Some(f(name)),
            None => self.0.get(owner).map(|entry| f(entry.0.as_str())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_whatever_their_length() {
        let names = Names::default();
        for len in [1, 2, INLINE, INLINE + 1, 128] {
            let device = DeviceId::new(&"d".repeat(len)).unwrap();
            let owner = owner_of(device.as_str());
            names.hold(&owner, &device);
            assert_eq!(names.with(&owner, str::to_owned).as_deref(), Some(device.as_str()));
        }
        assert_eq!(names.0.len(), 2, "short names need no entry");
    }

    #[test]
    fn a_long_name_is_held_as_long_as_any_association_needs_it() {
        let names = Names::default();
        let device = DeviceId::new(&"long".repeat(10)).unwrap();
        let owner = owner_of(device.as_str());
        names.hold(&owner, &device);
        names.hold(&owner, &device);
        names.release(&owner);
        assert!(names.with(&owner, |_| ()).is_some());
        names.release(&owner);
        names.release(&owner);
        assert!(names.with(&owner, |_| ()).is_none() && names.0.is_empty());
    }
}
