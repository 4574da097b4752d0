//! Which devices there are, and what they prove it with.
//!
//! # Constraints
//!
//! - A lookup is one read of the database, a few microseconds however many devices there are; none is held in memory for it.
//! - A device that is revoked is out at once: whoever holds a connection or an association of it hears of it ([`Registry::on_revoke`])
//!   after the change is durable, and a lookup does not find it any more.
//! - Looking for what is not there takes as long as finding it.
//! - Secrets are never printed. Pre-shared keys must be stored as they are; of passwords only hashes are.
//!
//! # Operation
//!
//! Entries and their bytes are described in `entry.rs`, hashes in `secret.rs`. Changes are made one after the other: each reads what is
//! there, submits what differs, and returns when that is durable (`change.rs`). A large import is many changes of some thousand
//! lines each.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_durable::lock;
use tidegate_record::DeviceId;
use zeroize::Zeroizing;

mod change;
mod entry;
mod login;
mod secret;
mod text;

pub use change::{ChangeError, ImportLine, Imported, Login, NewDevice, Origin, Psk};
pub use entry::{Device, Identity, User};
pub use login::{Account, Busy, Checked, Slow, Verifier};
pub use secret::{Hash, KeyError, Scratch, Secret, generate_key, generate_token, parse_key};
pub use text::{
    MAX_GROUPS, MAX_IDENTITIES, MAX_IDENTITY_LEN, MAX_KEY_LEN, MAX_NAME_LEN, MAX_PASSWORD_LEN, MAX_USERNAME_LEN,
};

use crate::{Changes, Durable, ReadError, Reader, Store, Table, Writer};
use secret::InstallationKey;

/// The key of [`Table::Meta`] that holds the installation's key.
const INSTALLATION_KEY: &[u8] = b"installation_key";

/// How long the first start waits for the installation's key to be durable.
const FIRST_WRITE: Duration = Duration::from_secs(60);

/// What was taken from a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Whose it was.
    pub device: DeviceId,
    /// Its password is worth nothing any more: MQTT connections that were opened with it must end.
    pub login: bool,
    /// Numbers of identities ([`Identity::number`]) that are worth nothing any more: associations must end.
    pub identities: Vec<u64>,
}

type Hook = Arc<dyn Fn(&[Revoked]) + Send + Sync>;

/// The device registry. Clones are the same one.
#[derive(Clone)]
pub struct Registry {
    reader: Reader,
    writer: Writer,
    durable: Durable,
    inner: Arc<Inner>,
}

struct Inner {
    key: InstallationKey,
    /// An entry that is decoded where there is none.
    decoy: Vec<u8>,
    /// Held during a change.
    changing: Mutex<()>,
    /// For hashing the passwords of changes.
    scratch: Mutex<Scratch>,
    hooks: Mutex<Vec<Hook>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The database could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The installation's key could not be stored.
    #[error("the installation's key could not be stored: {0}")]
    Write(String),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(std::io::Error),
}

impl Registry {
    /// The registry in `store`. The first one in a database makes the installation's key, and waits for it to be durable.
    pub fn open(store: &Store) -> Result<Registry, RegistryError> {
        let (reader, writer, durable) = (store.reader(), store.writer(), store.durable());
        let found = reader.get(Table::Meta, INSTALLATION_KEY, InstallationKey::new)?;
        let key = match found {
            Some(key) => key,
            None => {
                let bytes = secret::random::<{ InstallationKey::LEN }>().map_err(RegistryError::Random)?;
                let bytes = Zeroizing::new(bytes);
                let mut changes = Changes::new();
                changes.put(Table::Meta, INSTALLATION_KEY, bytes.as_slice());
                let ticket =
                    writer.submit(&mut changes).map_err(|refused| RegistryError::Write(refused.to_string()))?;
                if !durable.wait(ticket, FIRST_WRITE) {
                    let why = durable.failure().map_or_else(|| "too slow".to_owned(), |failure| failure.to_string());
                    return Err(RegistryError::Write(why));
                }
                InstallationKey::new(bytes.as_slice())
            }
        };
        let decoy = Identity {
            number: 0,
            device: DeviceId::new("decoy").expect("a name"),
            tenant: String::new(),
            key: Secret::new(&[0; 16]),
            previous: None,
        };
        let inner = Inner {
            key,
            decoy: decoy.encode(),
            changing: Mutex::default(),
            scratch: Mutex::default(),
            hooks: Mutex::default(),
        };
        Ok(Registry { reader, writer, durable, inner: Arc::new(inner) })
    }

    /// The pre-shared key of `identity`.
    pub fn identity(&self, identity: &[u8]) -> Result<Option<Identity>, ReadError> {
        let found = self.reader.get(Table::Identities, identity, Identity::decode)?;
        // What is not there is decoded all the same, and thrown away.
        let decoded = found.unwrap_or_else(|| {
            std::hint::black_box(Identity::decode(std::hint::black_box(&self.inner.decoy))).and(Err(entry::Malformed))
        });
        Ok(decoded.ok())
    }

    /// The MQTT credential of `username`.
    pub fn user(&self, username: &str) -> Result<Option<User>, ReadError> {
        Ok(self.reader.get(Table::Users, username.as_bytes(), User::decode)?.and_then(Result::ok))
    }

    /// The device named `id`.
    pub fn device(&self, id: &str) -> Result<Option<Device>, ReadError> {
        Ok(self.reader.get(Table::Devices, id.as_bytes(), Device::decode)?.and_then(Result::ok))
    }

    /// The identity that has this number, if it is still valid.
    pub fn identity_of(&self, number: u64) -> Result<Option<Vec<u8>>, ReadError> {
        self.reader.get(Table::Numbers, &number.to_be_bytes(), <[u8]>::to_vec)
    }

    /// Whether an association that was made with the identity of this number still holds.
    pub fn is_live(&self, number: u64) -> Result<bool, ReadError> {
        Ok(self.reader.get(Table::Numbers, &number.to_be_bytes(), |_| ())?.is_some())
    }

    /// The hash of a password that was generated.
    #[must_use]
    pub(crate) fn keyed_hash(&self, username: &str, password: &[u8]) -> Hash {
        Hash::Keyed { digest: self.inner.key.digest(username, password) }
    }

    /// The hash of a password that somebody chose.
    pub(crate) fn slow_hash(&self, password: &[u8]) -> std::io::Result<Hash> {
        secret::slow_hash(password, &mut lock(&self.inner.scratch))
    }

    /// Whether `pattern`, the [`client_ids`](Device::client_ids) of a device, allows `client_id`.
    #[must_use]
    pub fn allows_client_id(pattern: &str, client_id: &str) -> bool {
        !pattern.is_empty() && text::allows(pattern, client_id)
    }

    /// Calls `hook` with what was revoked, after that is durable, on the thread that changed it.
    pub fn on_revoke(&self, hook: impl Fn(&[Revoked]) + Send + Sync + 'static) {
        lock(&self.inner.hooks).push(Arc::new(hook));
    }

    /// Number of devices.
    pub fn len(&self) -> Result<u64, ReadError> {
        self.reader.len(Table::Devices)
    }

    /// Whether there is no device.
    pub fn is_empty(&self) -> Result<bool, ReadError> {
        Ok(self.len()? == 0)
    }

    /// Up to `most` devices in the order of their names, from the first one behind `after` on.
    pub fn list(&self, after: Option<&str>, most: usize) -> Result<Vec<(String, Device)>, ReadError> {
        // The next key in the order of bytes is the same one with a zero byte behind it.
        let from = after.map_or_else(Vec::new, |after| [after.as_bytes(), &[0]].concat());
        let mut found = Vec::new();
        if most == 0 {
            return Ok(found);
        }
        self.reader.range(Table::Devices, &from, None, |key, value| {
            if let (Ok(id), Ok(device)) = (std::str::from_utf8(key), Device::decode(value)) {
                found.push((id.to_owned(), device));
            }
            found.len() < most
        })?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
