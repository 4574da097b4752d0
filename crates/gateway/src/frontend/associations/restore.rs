//! From the database and the log to the associations that a crash interrupted, and back.
//!
//! # What a start needs
//!
//! Keys and reserved numbers are in the rows of the associations. What a replay window has seen is in the log, where the key of each
//! reading names its association and record; but segments of the log do not stay for ever. So every [`PERIOD`] the windows of
//! the associations used since are written to the database, and then a cursor of the log ([`CURSOR`]) moves to what was durable
//! before they were read: a window is what its row says and what the log has behind the cursor, and no segment
//! that is needed goes.
//!
//! A record that carried no reading (a GET, a ping) is not in the log, and after a crash one of the last [`PERIOD`] may be heard
//! again. Nothing is stored by it.
//!
//! # Format
//!
//! The row `m`: format (1 byte, 1), incarnation (4), seed of the router (8); big-endian. The incarnation counts starts, and is
//! durable before the first datagram is received: no nonce is used twice (see [`tidegate_dtls::ServerConfig::incarnation`]).

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tidegate_coap::echo::Challenger;
use tidegate_dtls::{About, AssociationId, CidFormat, Outbox, Random, Router, Server, SessionCache, Timestamp};
use tidegate_record::{MessageKey, Protocol, Seq};
use tidegate_session::Table as Devices;
use tidegate_state::{Changes, Table, Ticket};
use tidegate_writer::{Cursor, CursorError, Log, ReadError};

use super::{
    AssociationMetrics, Associations, Identities, Locals, Names, Shard, SystemRandom, Tenants, owner_of, row, settings,
};
use crate::config::keys::Coaps;
use crate::frontend::{Device, Now, State};

/// Name of the cursor.
pub(crate) const CURSOR: &str = "coaps";

/// How often windows are written: a start reads the log of no longer time, some 5 s at 100,000 readings a second.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// Windows in one submission to the database: 160 KiB. The next one waits until it is stored, since a million at a time would take as
/// much memory as a tenth of the associations.
const AT_ONCE: usize = 4096;

const META: &[u8] = b"m";
const META_FORMAT: u8 = 1;

/// How long a start may wait for the disk to take its incarnation.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the writing of windows has come.
#[derive(Default)]
pub(super) struct Windows {
    cursor: Option<Cursor>,
    /// All uses before are written.
    since: Timestamp,
}

impl Windows {
    /// Moves the cursor to `position`, before which no segment of the log is needed any more. `None` if the log could not be told.
    fn advance(&mut self, position: Seq) -> Option<()> {
        let cursor = self.cursor.as_mut()?;
        if position > cursor.position()
            && let Err(error) = cursor.advance(position)
        {
            tracing::warn!(%error, "the log cannot be told how far the replay windows are stored");
            return None;
        }
        Some(())
    }
}

/// The associations could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("reading the associations: {0}")]
    Read(#[from] tidegate_state::ReadError),
    #[error("the number of this start could not be stored, without which nonces could be used twice")]
    Incarnation,
    #[error("the row of starts is damaged")]
    Meta,
    #[error("coaps: {0}")]
    Config(#[from] tidegate_dtls::ConfigError),
    #[error(transparent)]
    Log(#[from] ReadError),
    #[error(transparent)]
    Cursor(#[from] CursorError),
}

/// What a start found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    /// Associations that go on.
    pub(crate) associations: usize,
    /// Rows that could not be taken up; each is counted by reason and removed.
    pub(crate) lost: usize,
    /// Associations whose windows the log raised.
    pub(crate) raised: usize,
}

struct Meta {
    incarnation: u32,
    seed: u64,
}

impl Meta {
    fn parse(value: &[u8]) -> Option<Meta> {
        let value: &[u8; 13] = value.try_into().ok()?;
        let (format, rest) = value.split_first()?;
        let (incarnation, seed) = rest.split_first_chunk::<4>()?;
        (*format == META_FORMAT).then_some(())?;
        Some(Meta { incarnation: u32::from_be_bytes(*incarnation), seed: u64::from_be_bytes(seed.try_into().ok()?) })
    }

    fn write(&self) -> [u8; 13] {
        let mut value = [META_FORMAT; 13];
        value[1..5].copy_from_slice(&self.incarnation.to_be_bytes());
        value[5..].copy_from_slice(&self.seed.to_be_bytes());
        value
    }
}

impl Associations {
    /// Counts this start, durably, and makes shards that hold nothing yet.
    pub(crate) fn open(config: &Coaps, state: State, metrics: AssociationMetrics) -> Result<Associations, OpenError> {
        let mut random = SystemRandom::new();
        let before = state.reader.get(Table::Associations, META, Meta::parse)?;
        let meta = match before {
            Some(Some(before)) => {
                Meta { incarnation: before.incarnation.checked_add(1).ok_or(OpenError::Meta)?, ..before }
            }
            Some(None) => return Err(OpenError::Meta),
            None => {
                let mut seed = [0; 8];
                random.fill(&mut seed);
                Meta { incarnation: 1, seed: u64::from_be_bytes(seed) }
            }
        };
        let mut changes = Changes::new();
        changes.put(Table::Associations, META, &meta.write());
        let ticket = state.writer.submit(&mut changes).map_err(|_| OpenError::Incarnation)?;
        if !state.durable.wait(ticket, PATIENCE) {
            return Err(OpenError::Incarnation);
        }

        let count = settings::shards(config);
        let shards = (0..count)
            .map(|shard| Server::new(settings::server(config, count, shard, meta.incarnation), &mut random))
            .map(|server| server.map(|server| Shard(Mutex::new(server))))
            .collect::<Result<_, _>>()?;
        let mut echo_key = [0; 32];
        random.fill(&mut echo_key);
        let format = CidFormat::new(config.cid_node, config.cid_bytes).unwrap_or_default();
        Ok(Associations {
            shards,
            router: Router::new(format, count, meta.seed),
            sessions: (config.max_sessions > 0)
                .then(|| SessionCache::new(config.max_sessions, config.session_lifetime)),
            identities: Identities(state.registry.clone()),
            reviews: AtomicU64::new(0),
            names: Names::default(),
            tenants: Tenants::default(),
            locals: Locals::open(&state.reader, state.writer.clone())?,
            state,
            metrics,
            challenger: Challenger::new(&echo_key),
            windows: Mutex::default(),
        })
    }

    /// Takes up what is stored. Nothing may be received before.
    pub(crate) fn restore(&self, log: &Log, now: Now, devices: &Devices<Device>) -> Result<Restored, OpenError> {
        let mut restored = Restored::default();
        let mut lost = Vec::new();
        self.state.reader.scan(Table::Associations, &[row::ASSOCIATION], |key, value| {
            let Some(slot) = row::slot(key) else { return true };
            match self.import(slot, value, devices) {
                Ok(None) => restored.associations += 1,
                Ok(Some(older)) => lost.push(older),
                Err(reason) => {
                    self.metrics.not_restored(reason);
                    lost.push(slot);
                }
            }
            true
        })?;
        restored.lost = lost.len();
        self.remove_rows(&lost);

        self.state.reader.scan(Table::Associations, &[row::WINDOW], |_, value| {
            if let Some(window) = row::parse_window(value) {
                tracing::trace!(?window, "a replay window");
                let at = Timestamp(u64::from(window.used) * 1000);
                let mut server = self.lock(window.id.shard(self.count()));
                server.seen(window.id, window.received.saturating_sub(1), at);
            }
            true
        })?;

        let cursor = log.cursor(CURSOR)?;
        let mut raised = HashSet::new();
        let mut reader = log.reader(Seq(cursor.position().0 + 1));
        loop {
            match reader.next() {
                Ok(Some(entry)) => {
                    let record = &entry.record;
                    if let (Protocol::Coaps, Some(key)) = (record.protocol, record.key) {
                        raised.extend(self.raise(record.device, key, Timestamp(record.received / 1000), devices));
                    }
                }
                Ok(None) => break,
                Err(error @ ReadError::Io { .. }) => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "reading the log for replayed records"),
            }
        }
        restored.raised = raised.len();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        *windows = Windows { cursor: Some(cursor), since: super::timestamp(now) };
        let mut raised: Vec<_> = raised.into_iter().collect();
        raised.sort_unstable_by_key(|id| (id.shard(self.count()), id.slot()));
        let stored = raised.chunks(AT_ONCE).try_for_each(|ids| {
            self.write(ids.iter().filter_map(|id| self.lock(id.shard(self.count())).about(*id)).collect())
        });
        // If this fails, the next start finds the same in the log.
        if stored.is_some() {
            let _ = windows.advance(log.durable().get());
        }
        self.metrics.associations.set(restored.associations as i64);
        Ok(restored)
    }

    /// Takes up one association, or says why not. Gives the slot of the one that it replaces: a crash may leave two of a device.
    fn import(&self, slot: u32, value: &[u8], devices: &Devices<Device>) -> Result<Option<u32>, &'static str> {
        let (names, export) = row::parse(value).ok_or("malformed")?;
        let found = self.identities.find(names.identity).ok_or("revoked")?;
        if found.device.as_str() != names.device {
            return Err("revoked");
        }
        let (id, about) = {
            let mut server = self.lock(slot % self.count());
            let id = server.import(export).map_err(AssociationMetrics::import_failure)?;
            (id, server.about(id))
        };
        let Some(about) = about.filter(|about| id.slot() == slot && about.owner == owner_of(names.device)) else {
            self.forget(id);
            return Err("malformed");
        };
        let other = devices.peek(names.device, |device| device.association.get()).flatten();
        let other = other.and_then(|other| self.lock(other.shard(self.count())).about(other));
        if other.is_some_and(|other| other.created > about.created) {
            self.forget(id);
            return Err("replaced");
        }
        let seen = u32::try_from(about.last_used.0 / 1000).unwrap_or(u32::MAX);
        let tenant = self.tenants.number(&found.tenant);
        let device = found.device.clone();
        let adopted = devices.with_id(found.device, seen, |_, device| device.adopt(id, tenant));
        if adopted.is_err() {
            self.forget(id);
            return Err("table_full");
        }
        self.names.hold(&about.owner, &device);
        Ok(other.map(|other| {
            self.metrics.not_restored("replaced");
            self.names.release(&other.owner);
            self.forget(other.id);
            other.id.slot()
        }))
    }

    /// Drops an association that was just taken up.
    fn forget(&self, id: AssociationId) {
        let (mut outbox, mut events) = (Outbox::new(), Vec::new());
        self.lock(id.shard(self.count())).close(id, &mut outbox, &mut events);
    }

    fn remove_rows(&self, slots: &[u32]) {
        let mut changes = Changes::new();
        for chunk in slots.chunks(AT_ONCE) {
            for slot in chunk {
                row::remove(&mut changes, AssociationId(u64::from(*slot) << 32));
            }
            // What is not removed is met again by the next start.
            if self.state.writer.submit(&mut changes).is_err() {
                return;
            }
        }
    }

    /// Raises the window of the association that a reading in the log came by, if its device still has it.
    fn raise(&self, device: &str, key: MessageKey, at: Timestamp, devices: &Devices<Device>) -> Option<AssociationId> {
        let id = devices.peek(device, |device| device.association.get()).flatten()?;
        (tag(id) == key.scope >> 32).then(|| {
            self.lock(id.shard(self.count())).seen(id, key.number >> 16, at);
            id
        })
    }

    /// Writes what windows have seen since the last time, and moves the cursor to `durable`, which was read before.
    pub(crate) fn write_windows(&self, durable: Seq, now: Now) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let stored = (0..self.count()).try_for_each(|shard| {
            let used = self.lock(shard).used_since(windows.since).collect();
            self.write(used)
        });
        // If not all of it was possible, all of it is done again.
        if stored.is_some() && windows.advance(durable).is_some() {
            windows.since = super::timestamp(now);
        }
    }

    /// Writes the windows of `used`, all of one shard if they are many. `None` if that was not possible.
    fn write(&self, mut used: Vec<About>) -> Option<()> {
        tracing::debug!(windows = used.len(), "storing replay windows");
        // In the order of their keys: neighbours share pages.
        used.sort_unstable_by_key(|about| about.id.slot());
        let mut changes = Changes::new();
        for chunk in used.chunks(AT_ONCE) {
            for about in chunk {
                row::put_window(&mut changes, about);
            }
            let last = self.submit_patiently(&mut changes)?;
            self.state.durable.wait(last, PATIENCE).then_some(())?;
        }
        Some(())
    }

    /// Submits, and waits while the database has too much to do.
    fn submit_patiently(&self, changes: &mut Changes) -> Option<Ticket> {
        const PAUSE: Duration = Duration::from_millis(20);
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            match self.state.writer.submit(changes) {
                Ok(ticket) => return Some(ticket),
                Err(tidegate_state::Refused::Full) => std::thread::sleep(PAUSE),
                Err(_) => return None,
            }
        }
        None
    }
}

/// Tells the associations of one device apart in the key of a reading.
pub(crate) fn tag(id: AssociationId) -> u64 {
    tidegate_coap::dedup::scope_in(id.0, &[]) >> 32
}

/// What tells a message within an association apart in its device's ring: the upper half names the association, the lower one hashes
/// it and the message.
pub(crate) fn scope(id: AssociationId, message: &[u8]) -> u64 {
    tag(id) << 32 | tidegate_coap::dedup::scope_in(id.0, message) & 0xFFFF_FFFF
}

/// The key of a reading: its scope, the number of the record that brought it, and its message ID.
pub(crate) fn key(scope: u64, sequence: u64, mid: u16) -> MessageKey {
    MessageKey { scope, number: sequence << 16 | u64::from(mid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_comes_back() {
        let meta = Meta { incarnation: 7, seed: u64::MAX - 1 };
        let back = Meta::parse(&meta.write()).unwrap();
        assert_eq!((back.incarnation, back.seed), (7, u64::MAX - 1));
        assert!(Meta::parse(&meta.write()[1..]).is_none());
    }

    #[test]
    fn a_key_tells_association_record_and_message() {
        let (one, other) = (AssociationId(1 << 32), AssociationId(2 << 32));
        let scope_one = scope(one, b"message");
        assert_eq!(scope_one >> 32, tag(one));
        assert_ne!(tag(one), tag(other));
        assert_ne!(scope_one as u32, scope(other, b"message") as u32, "rings look at the lower half");
        assert_ne!(scope_one as u32, scope(one, b"another") as u32);
        let key = key(scope_one, (1 << 48) - 1, 0xABCD);
        assert_eq!((key.number >> 16, key.number as u16), ((1 << 48) - 1, 0xABCD));
    }
}
