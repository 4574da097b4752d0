//! Changing the registry.
//!
//! An [`Edit`] reads through what it has changed itself to what is committed, so that the thousands of lines of an import are one submission.
//! Its changes are submitted in the order of their keys: the database takes them fastest so.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant, SystemTime};

use tidegate_durable::lock;
use tidegate_record::DeviceId;

use super::entry::{Device, Identity, Malformed, User};
use super::login::looks_generated;
use super::secret::{KeyError, Secret};
use super::text::{self, MAX_IDENTITIES, MAX_KEY_LEN, Shown};
use super::{Registry, Revoked};
use crate::{Changes, ReadError, Refused, Table};

/// The key of [`Table::Meta`] that holds the number of the next identity.
const NEXT_NUMBER: &[u8] = b"next_identity_number";

/// How long a change waits for its turn and the disk before it is given up: longer than any disk takes that still works.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long to wait for others' changes to be stored before this one is offered again.
const RETRY: Duration = Duration::from_millis(5);

/// A device to be registered.
#[derive(Debug, Clone, Default)]
pub struct NewDevice {
    /// Its name.
    pub id: String,
    /// Whose it is; empty if nobody's.
    pub tenant: String,
    /// What rules may call it besides its name.
    pub groups: Vec<String>,
    /// Client identifiers that it may use besides its name: one, or a beginning followed by `*`; empty for none.
    pub client_ids: String,
}

/// A password to be stored.
#[derive(Debug, Clone)]
pub struct Login {
    /// The username; empty for the one that the device has, or else its name.
    pub username: String,
    /// The password.
    pub password: Secret,
    /// Which hash it gets.
    pub origin: Origin,
}

/// Where a password comes from, which decides how it is hashed: see `secret.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A machine generated it.
    Generated,
    /// Somebody chose it.
    Chosen,
}

/// A pre-shared key to be stored.
#[derive(Debug, Clone)]
pub struct Psk {
    /// Its identity; empty for the name of the device.
    pub identity: Vec<u8>,
    /// The key.
    pub key: Secret,
}

/// A line of an import: a device that is new or known, and what it gets.
#[derive(Debug, Clone)]
pub struct ImportLine {
    /// Where it stands, for messages.
    pub line: u64,
    /// The device. What is empty is left as it is if the device is known.
    pub device: NewDevice,
    /// A password that it gets.
    pub login: Option<Login>,
    /// A key that it gets, or that replaces the one of the same identity.
    pub psk: Option<Psk>,
}

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// Devices that were new.
    pub added: u64,
    /// Lines about devices that were known.
    pub updated: u64,
    /// Lines that were refused, and why.
    pub refused: Vec<(u64, String)>,
}

/// Why the registry was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// What was asked for cannot be.
    #[error("{0}")]
    Invalid(String),
    /// There is such a device, username or identity.
    #[error("{0}")]
    Taken(String),
    /// There is no such device, username or identity.
    #[error("{0}")]
    Unknown(String),
    /// The database could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The database does not take it now.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The database failed, or was too slow.
    #[error("the change was not stored: {0}")]
    NotStored(String),
    /// The system gave no random bytes.
    #[error("the system gave no random bytes: {0}")]
    Random(#[from] io::Error),
}

impl From<Malformed> for ChangeError {
    fn from(_: Malformed) -> ChangeError {
        ChangeError::Read(ReadError { table: "devices", problem: "an entry is not what was written".into() })
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

type Pending = BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>;

struct Edit<'a> {
    registry: &'a Registry,
    /// What is to be submitted; `None` is a key to be removed.
    pending: Pending,
    /// What the change at hand adds to it, all or nothing.
    staged: Pending,
    revoked: Vec<Revoked>,
    /// Of `revoked`, those of changes before the one at hand.
    settled: usize,
    next_number: u64,
}

impl<'a> Edit<'a> {
    fn new(registry: &'a Registry) -> Result<Edit<'a>, ChangeError> {
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_be_bytes);
        let next_number = registry.reader.get(Table::Meta, NEXT_NUMBER, number)?.unwrap_or(1);
        Ok(Edit {
            registry,
            pending: Pending::new(),
            staged: Pending::new(),
            revoked: Vec::new(),
            settled: 0,
            next_number,
        })
    }

    /// Ends the change at hand: it counts from here on, or leaves nothing.
    fn settle(&mut self, keep: bool) {
        if keep {
            // Not `append`, which builds the larger map anew.
            self.pending.extend(std::mem::take(&mut self.staged));
        } else {
            // Numbers that were taken are not given back: nothing has them.
            self.staged.clear();
            self.revoked.truncate(self.settled);
        }
        self.settled = self.revoked.len();
    }

    fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<Option<T>, ChangeError> {
        let name = (table as u8, key.to_vec());
        let decoded = match self.staged.get(&name).or_else(|| self.pending.get(&name)) {
            Some(value) => value.as_deref().map(decode),
            None => self.registry.reader.get(table, key, decode)?,
        };
        Ok(decoded.transpose()?)
    }

    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) {
        self.staged.insert((table as u8, key.to_vec()), Some(value));
    }

    fn remove(&mut self, table: Table, key: &[u8]) {
        self.staged.insert((table as u8, key.to_vec()), None);
    }

    fn device(&self, id: &str) -> Result<Option<Device>, ChangeError> {
        self.get(Table::Devices, id.as_bytes(), Device::decode)
    }

    fn known(&self, id: &str) -> Result<Device, ChangeError> {
        self.device(id)?.ok_or_else(|| ChangeError::Unknown(format!("there is no device {id}")))
    }

    fn put_device(&mut self, id: &str, device: &Device) {
        self.put(Table::Devices, id.as_bytes(), device.encode());
    }

    fn revoke(&mut self, id: &str, login: bool, identities: Vec<u64>) -> Result<(), ChangeError> {
        self.revoked.push(Revoked { device: device_id(id)?, login, identities });
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// Gives the device a password; one that it had is worth nothing any more.
    fn login(&mut self, id: &str, device: &mut Device, login: &Login) -> Result<(), ChangeError> {
        let username = match (login.username.as_str(), device.username.as_str()) {
            ("", "") => id.to_owned(),
            ("", username) | (username, _) => username.to_owned(),
        };
        text::username(&username)?;
        text::password(login.password.bytes())?;
        if let Some(user) = self.get(Table::Users, username.as_bytes(), User::decode)?
            && user.device.as_str() != id
        {
            return Err(ChangeError::Taken(format!("the username {username} is that of device {}", user.device)));
        }
        if !device.username.is_empty() {
            self.remove(Table::Users, device.username.as_bytes());
            self.revoke(id, true, Vec::new())?;
        }
        if login.origin == Origin::Chosen && looks_generated(login.password.bytes()) {
            let wrong = "a password that looks generated; allowed: store it as a token, or choose another one";
            return Err(ChangeError::Invalid(wrong.into()));
        }
        let hash = match login.origin {
            Origin::Generated => self.registry.keyed_hash(&username, login.password.bytes()),
            Origin::Chosen => self.registry.slow_hash(login.password.bytes())?,
        };
        let user = User { device: device_id(id)?, hash };
        self.put(Table::Users, username.as_bytes(), user.encode());
        device.username = username;
        device.revoked = 0;
        Ok(())
    }

    /// Gives the device a key. One of the same identity is replaced: it stays valid until `old_until`, or, without that, ends at once,
    /// with all that was made with it.
    fn psk(&mut self, id: &str, device: &mut Device, psk: &Psk, old_until: Option<u64>) -> Result<(), ChangeError> {
        let identity = if psk.identity.is_empty() { id.as_bytes() } else { &psk.identity };
        text::identity(identity)?;
        let len = psk.key.bytes().len();
        if len == 0 || len > MAX_KEY_LEN {
            return Err(ChangeError::Invalid(KeyError::Length(len).to_string()));
        }
        let (number, previous) = match self.get(Table::Identities, identity, Identity::decode)? {
            Some(old) if old.device.as_str() != id => {
                let whose = format!("the identity {} is that of device {}", Shown(identity), old.device);
                return Err(ChangeError::Taken(whose));
            }
            // The same key again: nothing ends.
            Some(old) if old.key.bytes() == psk.key.bytes() => (old.number, old.previous),
            Some(old) => match old_until {
                Some(until) => (old.number, Some((old.key, until))),
                None => {
                    self.remove(Table::Numbers, &old.number.to_be_bytes());
                    self.revoke(id, false, vec![old.number])?;
                    (self.number(), None)
                }
            },
            None => {
                if device.identities.len() >= MAX_IDENTITIES {
                    let wrong = format!("device {id} has {MAX_IDENTITIES} identities already; revoke one first");
                    return Err(ChangeError::Invalid(wrong));
                }
                device.identities.push(identity.to_vec());
                (self.number(), None)
            }
        };
        let tenant = device.tenant.clone();
        let entry = Identity { number, device: device_id(id)?, tenant, key: psk.key.clone(), previous };
        self.put(Table::Identities, identity, entry.encode());
        self.put(Table::Numbers, &number.to_be_bytes(), identity.to_vec());
        device.revoked = 0;
        Ok(())
    }

    /// Takes an identity away; returns its number.
    fn drop_identity(&mut self, identity: &[u8]) -> Result<Option<u64>, ChangeError> {
        let Some(old) = self.get(Table::Identities, identity, Identity::decode)? else { return Ok(None) };
        self.remove(Table::Identities, identity);
        self.remove(Table::Numbers, &old.number.to_be_bytes());
        Ok(Some(old.number))
    }

    /// Takes the password and every key of the device away.
    fn drop_all(&mut self, id: &str, device: &mut Device) -> Result<(), ChangeError> {
        if !device.username.is_empty() {
            self.remove(Table::Users, device.username.as_bytes());
        }
        let mut numbers = Vec::new();
        for identity in &device.identities {
            numbers.extend(self.drop_identity(identity)?);
        }
        device.username.clear();
        device.identities.clear();
        self.revoke(id, true, numbers)
    }

    /// Has all that the device holds open end, because what it was let in with has changed.
    fn reopen(&mut self, id: &str, device: &Device) -> Result<(), ChangeError> {
        let mut numbers = Vec::new();
        for identity in &device.identities {
            let Some(mut entry) = self.get(Table::Identities, identity, Identity::decode)? else { continue };
            numbers.push(entry.number);
            self.remove(Table::Numbers, &entry.number.to_be_bytes());
            entry.number = self.number();
            entry.tenant.clone_from(&device.tenant);
            self.put(Table::Identities, identity, entry.encode());
            self.put(Table::Numbers, &entry.number.to_be_bytes(), identity.clone());
        }
        self.revoke(id, true, numbers)
    }

    /// Returns whether the device was new.
    fn import(&mut self, line: &ImportLine) -> Result<bool, ChangeError> {
        let new = &line.device;
        new.check()?;
        let known = self.device(&new.id)?;
        let is_new = known.is_none();
        let mut device = known.unwrap_or_else(|| Device { since: unix_seconds(), ..Device::default() });
        let before = device.clone();
        if !new.tenant.is_empty() {
            device.tenant.clone_from(&new.tenant);
        }
        if !new.groups.is_empty() {
            device.groups.clone_from(&new.groups);
        }
        if !new.client_ids.is_empty() {
            device.client_ids.clone_from(&new.client_ids);
        }
        if !is_new && device != before {
            self.reopen(&new.id, &device)?;
        }
        if let Some(login) = &line.login {
            self.login(&new.id, &mut device, login)?;
        }
        if let Some(psk) = &line.psk {
            self.psk(&new.id, &mut device, psk, None)?;
        }
        if is_new || device != before {
            self.put_device(&new.id, &device);
        }
        Ok(is_new)
    }
}

fn device_id(id: &str) -> Result<DeviceId, ChangeError> {
    DeviceId::new(id).map_err(|error| ChangeError::Invalid(error.to_string()))
}

impl NewDevice {
    /// Whether it can be registered, as far as its own texts are concerned.
    pub fn check(&self) -> Result<(), ChangeError> {
        device_id(&self.id)?;
        text::tenant(&self.tenant)?;
        text::groups(&self.groups)?;
        if self.client_ids.is_empty() { Ok(()) } else { text::client_ids(&self.client_ids) }
    }
}

impl Registry {
    /// Makes one change: durable, and told to those who must know, when it returns.
    fn change<T>(&self, change: impl FnOnce(&mut Edit<'_>) -> Result<T, ChangeError>) -> Result<T, ChangeError> {
        let _changing = lock(&self.inner.changing);
        let mut edit = Edit::new(self)?;
        let done = change(&mut edit)?;
        edit.settle(true);
        self.store(edit)?;
        Ok(done)
    }

    fn store(&self, mut edit: Edit<'_>) -> Result<(), ChangeError> {
        if edit.pending.is_empty() {
            return Ok(());
        }
        let mut changes = Changes::new();
        for ((table, key), value) in &edit.pending {
            let table = Table::from_number(*table).expect("it was a table's");
            match value {
                Some(value) => changes.put(table, key, value),
                None => changes.remove(table, key),
            };
        }
        changes.put(Table::Meta, NEXT_NUMBER, &edit.next_number.to_be_bytes());
        let deadline = Instant::now() + PATIENCE;
        let ticket = loop {
            match self.writer.submit(&mut changes) {
                Ok(ticket) => break ticket,
                Err(Refused::Full) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(refused) => return Err(refused.into()),
            }
        };
        if !self.durable.wait(ticket, PATIENCE) {
            let why = self.durable.failure().map(|failure| failure.to_string());
            return Err(ChangeError::NotStored(why.unwrap_or_else(|| "the disk is too slow".into())));
        }
        let revoked = std::mem::take(&mut edit.revoked);
        if !revoked.is_empty() {
            let hooks = lock(&self.inner.hooks).clone();
            for hook in hooks {
                hook(&revoked);
            }
        }
        Ok(())
    }

    /// Registers a device, with a password, a key, both or neither.
    pub fn add(&self, new: &NewDevice, login: Option<&Login>, psk: Option<&Psk>) -> Result<(), ChangeError> {
        new.check()?;
        self.change(|edit| {
            if edit.device(&new.id)?.is_some() {
                return Err(ChangeError::Taken(format!("there is a device {} already", new.id)));
            }
            let line = ImportLine { line: 0, device: new.clone(), login: login.cloned(), psk: psk.cloned() };
            edit.import(&line).map(drop)
        })
    }

    /// Forgets a device.
    pub fn remove(&self, id: &str) -> Result<(), ChangeError> {
        self.change(|edit| {
            let mut device = edit.known(id)?;
            edit.drop_all(id, &mut device)?;
            edit.remove(Table::Devices, id.as_bytes());
            Ok(())
        })
    }

    /// Gives a device a password, the first or another one; returns the username.
    pub fn set_login(&self, id: &str, login: &Login) -> Result<String, ChangeError> {
        self.change(|edit| {
            let mut device = edit.known(id)?;
            edit.login(id, &mut device, login)?;
            edit.put_device(id, &device);
            Ok(device.username)
        })
    }

    /// Gives a device a key. If there is one of the same identity, that stays valid for `grace`; with none of it, what was made with it
    /// ends at once.
    pub fn rotate(&self, id: &str, psk: &Psk, grace: Duration) -> Result<(), ChangeError> {
        let old_until = (!grace.is_zero()).then(|| unix_seconds().saturating_add(grace.as_secs().max(1)));
        self.change(|edit| {
            let mut device = edit.known(id)?;
            edit.psk(id, &mut device, psk, old_until)?;
            edit.put_device(id, &device);
            Ok(())
        })
    }

    /// Makes one identity of a device worth nothing, or its password and all identities; it stays registered.
    pub fn revoke(&self, id: &str, identity: Option<&[u8]>) -> Result<(), ChangeError> {
        self.change(|edit| {
            let mut device = edit.known(id)?;
            match identity {
                Some(identity) => {
                    let held = device.identities.len();
                    device.identities.retain(|held| held != identity);
                    if device.identities.len() == held {
                        let unknown = format!("device {id} has no identity {}", Shown(identity));
                        return Err(ChangeError::Unknown(unknown));
                    }
                    let number = edit.drop_identity(identity)?;
                    edit.revoke(id, false, number.into_iter().collect())?;
                }
                None => {
                    edit.drop_all(id, &mut device)?;
                }
            }
            if device.identities.is_empty() && device.username.is_empty() {
                device.revoked = unix_seconds();
            }
            edit.put_device(id, &device);
            Ok(())
        })
    }

    /// Takes the lines of an import, all in one submission; those that cannot be are refused one by one. Devices that are known get what
    /// their line has.
    pub fn import(&self, lines: &[ImportLine]) -> Result<Imported, ChangeError> {
        let mut imported = Imported::default();
        self.change(|edit| {
            for line in lines {
                match edit.import(line) {
                    Ok(true) => imported.added += 1,
                    Ok(false) => imported.updated += 1,
                    Err(error @ (ChangeError::Invalid(_) | ChangeError::Taken(_) | ChangeError::Unknown(_))) => {
                        edit.settle(false);
                        imported.refused.push((line.line, error.to_string()));
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                edit.settle(true);
            }
            Ok(())
        })?;
        Ok(imported)
    }
}
