//! Entries of the registry and their bytes in the database.
//!
//! Every value begins with a version (1). Numbers are little-endian, texts have their length in front: one byte, or two where they
//! may be longer than 255.
//!
//! | table | key | value |
//! |---|---|---|
//! | `devices` | name | since when (8), revoked when (8, 0 if not), tenant, groups (count, each), client identifiers (2), username (2), identities (count, each) |
//! | `users` | username | device, how the password is hashed (1) and what comes of it |
//! | `identities` | identity | number (8), device, tenant, key, old key, until when that is valid (8, only with an old key) |
//! | `numbers` | number (8, big-endian) | identity |

use tidegate_record::DeviceId;

use super::secret::{Hash, Secret};

const VERSION: u8 = 1;

/// A device as the registry knows it. Nothing in it is secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// When it was registered, in seconds since the Unix epoch.
    pub since: u64,
    /// When its keys and its password were last revoked, and it was given none since; 0 if not.
    pub revoked: u64,
    /// Whose it is; empty if nobody's.
    pub tenant: String,
    /// What rules may call it besides its name.
    pub groups: Vec<String>,
    /// Client identifiers that it may use besides its name: one, or a beginning followed by `*`; empty for none.
    pub client_ids: String,
    /// The username that it gives over MQTT; empty if it has no password.
    pub username: String,
    /// The identities of its pre-shared keys.
    pub identities: Vec<Vec<u8>>,
}

/// An MQTT credential.
#[derive(Debug, Clone)]
pub struct User {
    /// Whose it is.
    pub device: DeviceId,
    /// What its password is compared with.
    pub hash: Hash,
}

/// A pre-shared key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Names this identity for as long as it is valid. A revoked identity that is given anew has another one, so that whoever keeps the
    /// number of an association knows whether it still holds ([`Registry::is_live`](super::Registry::is_live)).
    pub number: u64,
    /// Whose it is.
    pub device: DeviceId,
    /// Whose that is.
    pub tenant: String,
    /// The key.
    pub key: Secret,
    /// The key before it, and until when that is valid, in seconds since the Unix epoch.
    pub previous: Option<(Secret, u64)>,
}

/// The bytes of an entry are not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

struct Out(Vec<u8>);

impl Out {
    fn new(capacity: usize) -> Out {
        let mut out = Vec::with_capacity(capacity);
        out.push(VERSION);
        Out(out)
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn short(&mut self, bytes: &[u8]) {
        self.0.push(u8::try_from(bytes.len()).expect("checked before"));
        self.0.extend_from_slice(bytes);
    }

    fn long(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&u16::try_from(bytes.len()).expect("checked before").to_le_bytes());
        self.0.extend_from_slice(bytes);
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn new(bytes: &'a [u8]) -> Result<In<'a>, Malformed> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(In(rest)),
            _ => Err(Malformed),
        }
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn short(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.byte()?;
        self.bytes(usize::from(len))
    }

    fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let len = u16::from_le_bytes(self.array()?);
        self.bytes(usize::from(len))
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|_| Malformed)
}

fn device_id(bytes: &[u8]) -> Result<DeviceId, Malformed> {
    DeviceId::new(text(bytes)?).map_err(|_| Malformed)
}

impl Device {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Out::new(64);
        out.number(self.since);
        out.number(self.revoked);
        out.short(self.tenant.as_bytes());
        out.0.push(u8::try_from(self.groups.len()).expect("checked before"));
        for group in &self.groups {
            out.short(group.as_bytes());
        }
        out.long(self.client_ids.as_bytes());
        out.long(self.username.as_bytes());
        out.0.push(u8::try_from(self.identities.len()).expect("checked before"));
        for identity in &self.identities {
            out.short(identity);
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Device, Malformed> {
        let mut from = In::new(bytes)?;
        let (since, revoked) = (from.number()?, from.number()?);
        let tenant = text(from.short()?)?.to_owned();
        let groups = (0..from.byte()?).map(|_| Ok(text(from.short()?)?.to_owned())).collect::<Result<_, _>>()?;
        let (client_ids, username) = (text(from.long()?)?.to_owned(), text(from.long()?)?.to_owned());
        let identities = (0..from.byte()?).map(|_| Ok(from.short()?.to_vec())).collect::<Result<_, _>>()?;
        from.end()?;
        Ok(Device { since, revoked, tenant, groups, client_ids, username, identities })
    }
}

const KEYED: u8 = 0;
const ARGON2ID: u8 = 1;

impl User {
    /// The same for as long as the password is, and another one if it is given anew. Not secret: it says nothing about the password.
    #[must_use]
    pub fn proof(&self) -> u64 {
        let (Hash::Keyed { digest } | Hash::Argon2id { digest, .. }) = &self.hash;
        digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Out::new(96);
        out.short(self.device.as_str().as_bytes());
        match &self.hash {
            Hash::Keyed { digest } => {
                out.0.push(KEYED);
                out.0.extend_from_slice(digest);
            }
            Hash::Argon2id { memory_kib, passes, salt, digest } => {
                out.0.push(ARGON2ID);
                out.0.extend_from_slice(&memory_kib.to_le_bytes());
                out.0.extend_from_slice(&passes.to_le_bytes());
                out.0.extend_from_slice(salt);
                out.0.extend_from_slice(digest);
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<User, Malformed> {
        let mut from = In::new(bytes)?;
        let device = device_id(from.short()?)?;
        let hash = match from.byte()? {
            KEYED => Hash::Keyed { digest: from.array()? },
            ARGON2ID => Hash::Argon2id {
                memory_kib: u32::from_le_bytes(from.array()?),
                passes: u32::from_le_bytes(from.array()?),
                salt: from.array()?,
                digest: from.array()?,
            },
            _ => return Err(Malformed),
        };
        from.end()?;
        Ok(User { device, hash })
    }
}

impl Identity {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Out::new(96);
        out.number(self.number);
        out.short(self.device.as_str().as_bytes());
        out.short(self.tenant.as_bytes());
        out.short(self.key.bytes());
        match &self.previous {
            None => out.short(&[]),
            Some((key, until)) => {
                out.short(key.bytes());
                out.number(*until);
            }
        }
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Identity, Malformed> {
        let mut from = In::new(bytes)?;
        let number = from.number()?;
        let device = device_id(from.short()?)?;
        let tenant = text(from.short()?)?.to_owned();
        let key = Secret::new(from.short()?);
        let previous = match from.short()? {
            [] => None,
            key => Some((Secret::new(key), from.number()?)),
        };
        from.end()?;
        Ok(Identity { number, device, tenant, key, previous })
    }

    /// The keys that are valid at `now`, in seconds since the Unix epoch: the current one first.
    pub fn keys(&self, now: u64) -> impl Iterator<Item = &Secret> {
        let previous = self.previous.as_ref().filter(move |(_, until)| now < *until);
        std::iter::once(&self.key).chain(previous.map(|(key, _)| key))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_are_read_as_they_were_written(
            since: u64, revoked: u64, tenant in ".{0,10}", groups in prop::collection::vec("[a-z]{1,64}", 0..16),
            client_ids in "[a-z]{0,250}\\*?", username in "[a-z]{0,256}",
            identities in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..128), 0..8),
            key in prop::collection::vec(any::<u8>(), 1..64), old: Option<([u8; 16], u64)>, digest: [u8; 32], cost: (u32, u32),
        ) {
            let device = Device { since, revoked, tenant: tenant.clone(), groups, client_ids, username, identities };
            let bytes = device.encode();
            prop_assert_eq!(Device::decode(&bytes), Ok(device));
            let id = DeviceId::new("meter-1").unwrap();
            let previous = old.map(|(key, until)| (Secret::new(&key), until));
            let identity = Identity { number: since, device: id.clone(), tenant, key: Secret::new(&key), previous };
            let bytes = identity.encode();
            let found = Identity::decode(&bytes).unwrap();
            prop_assert_eq!(found.encode(), bytes);
            prop_assert_eq!(found.key.bytes(), &key[..]);
            let (memory_kib, passes) = cost;
            let hashes = [
                Hash::Keyed { digest },
                Hash::Argon2id { memory_kib, passes, salt: [7; 16], digest },
            ];
            for hash in hashes {
                let bytes = User { device: id.clone(), hash }.encode();
                prop_assert_eq!(User::decode(&bytes).unwrap().encode(), bytes);
            }
        }

        #[test]
        fn other_bytes_are_refused_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Device::decode(&bytes);
            let _ = Identity::decode(&bytes);
            let _ = User::decode(&bytes);
            let mut versioned = vec![VERSION];
            versioned.extend(bytes);
            let _ = Device::decode(&versioned);
            let _ = Identity::decode(&versioned);
            let _ = User::decode(&versioned);
        }
    }

    #[test]
    fn the_old_key_is_valid_for_its_time() {
        let previous = Some((Secret::new(b"old"), 100));
        let id = DeviceId::new("d").unwrap();
        let identity = Identity { number: 1, device: id, tenant: String::new(), key: Secret::new(b"new"), previous };
        let keys = |now| identity.keys(now).map(|key| key.bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(keys(99), [b"new", b"old"]);
        assert_eq!(keys(100), [b"new"]);
    }
}
