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
//! again. Nothing is stored by it, and its device is not followed to where it came from (`proof.rs` of CoAP).
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
use tidegate_dtls::{About, AssociationId, CidFormat, Export, Outbox, Random, Router, Server, SessionCache, Timestamp};
use tidegate_record::{MessageKey, Protocol, Seq};
use tidegate_session::Table as Devices;
use tidegate_state::{Changes, Table, Ticket};
use tidegate_writer::{Cursor, CursorError, Log, ReadError};

use super::numbers::Number;
use super::{
    AssociationMetrics, Associations, Identities, Locals, Names, Numbers, Shard, SystemRandom, Tenants, owner_of, row,
    settings,
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

/// Rows that are not taken up.
#[derive(Default)]
struct Lost {
    /// Each with its association, if it can be read.
    rows: Vec<(Number, Option<AssociationId>)>,
    /// Keys that are no number.
    keys: Vec<Box<[u8]>>,
    /// Of the rows, those that had been taken up.
    replaced: usize,
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
            numbers: Numbers::new(count),
            tenants: Tenants::default(),
            locals: Locals::open(&state.reader, state.writer.clone())?,
            state,
            metrics,
            challenger: Challenger::new(&echo_key),
            goodbyes: Mutex::default(),
            windows: Mutex::default(),
        })
    }

    /// Takes up what is stored. Nothing may be received before.
    pub(crate) fn restore(&self, log: &Log, now: Now, devices: &Devices<Device>) -> Result<Restored, OpenError> {
        let mut restored = Restored::default();
        let mut lost = Lost::default();
        self.state.reader.scan(Table::Associations, &[row::ASSOCIATION], |key, value| {
            match row::number(key) {
                Some(number) => match self.import(number, value, devices, &mut lost) {
                    Ok(()) => restored.associations += 1,
                    Err(reason) => {
                        self.metrics.not_restored(reason);
                        lost.rows.push((number, row::id(value)));
                    }
                },
                None => {
                    self.metrics.not_restored("malformed");
                    lost.keys.push(key.into());
                }
            }
            true
        })?;
        restored.associations -= lost.replaced;
        restored.lost = lost.rows.len() + lost.keys.len();
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

    /// Takes up one association, or says why not. It takes the place of one in its slot, whose end was not stored, and of one of its
    /// device, of which a crash may leave two.
    fn import(
        &self,
        number: Number,
        value: &[u8],
        devices: &Devices<Device>,
        lost: &mut Lost,
    ) -> Result<(), &'static str> {
        let (names, export) = row::parse(value).ok_or("malformed")?;
        let found = self.identities.find(names.identity).ok_or("revoked")?;
        if found.device.as_str() != names.device || found.number != names.number {
            return Err("revoked");
        }
        let slot = Export::id_of(export).ok_or("malformed")?;
        if let Some(earlier) = self.numbers.get(slot).and_then(|number| row::stored_id(&self.state.reader, number)) {
            self.replace(earlier, devices, lost);
        }
        let (id, about) = {
            let mut server = self.lock(slot.shard(self.count()));
            let id = server.import(export).map_err(AssociationMetrics::import_failure)?;
            (id, server.about(id))
        };
        let Some(about) = about.filter(|about| about.owner == owner_of(names.device)) else {
            self.forget(id);
            return Err("malformed");
        };
        let other = devices.peek(names.device, |device| device.association.get()).flatten();
        if let Some(other) = other.and_then(|other| self.lock(other.shard(self.count())).about(other)) {
            if other.created > about.created {
                self.forget(id);
                return Err("replaced");
            }
            self.replace(other.id, devices, lost);
        }
        let seen = u32::try_from(about.last_used.0 / 1000).unwrap_or(u32::MAX);
        let tenant = self.tenants.number(&found.tenant);
        let device = found.device.clone();
        let adopted = devices.with_id(found.device, seen, |_, device| {
            device.adopt(id, tenant);
            device.doubt();
        });
        if adopted.is_err() {
            self.forget(id);
            return Err("table_full");
        }
        self.names.hold(&about.owner, &device);
        self.numbers.set(id, number);
        Ok(())
    }

    /// Drops an association that was taken up for one that was stored later.
    fn replace(&self, id: AssociationId, devices: &Devices<Device>, lost: &mut Lost) {
        let Some(about) = self.lock(id.shard(self.count())).about(id) else { return };
        self.metrics.not_restored("replaced");
        self.names.with(&about.owner, |name| devices.peek(name, |device| device.association.clear(id)));
        self.names.release(&about.owner);
        self.forget(id);
        lost.replaced += 1;
        lost.rows.extend(self.numbers.take(id).map(|number| (number, Some(id))));
    }

    /// Drops an association that was just taken up.
    fn forget(&self, id: AssociationId) {
        let (mut outbox, mut events) = (Outbox::new(), Vec::new());
        self.lock(id.shard(self.count())).close(id, &mut outbox, &mut events);
    }

    fn remove_rows(&self, lost: &Lost) {
        let mut changes = Changes::new();
        for chunk in lost.keys.chunks(AT_ONCE) {
            for key in chunk {
                row::remove_key(&mut changes, key);
            }
            if self.state.writer.submit(&mut changes).is_err() {
                return;
            }
        }
        for chunk in lost.rows.chunks(AT_ONCE) {
            for &(number, id) in chunk {
                row::remove(&mut changes, number);
                // The window of a slot is that of the association in it.
                if let Some(id) = id.filter(|id| self.numbers.get(*id).is_none()) {
                    row::remove_window(&mut changes, id);
                }
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
    use std::path::Path;
    use std::sync::Arc;

    use tidegate_dtls::{Client, ClientConfig, Credentials, Key};
    use tidegate_state::registry::{NewDevice, Psk, Registry, Secret};
    use tidegate_state::{Reader, Store};
    use tidegate_writer::LogConfig;

    use super::super::Desk;
    use super::*;

    const KEY: &[u8] = b"0123456789abcdef";

    /// A gateway's life: dropped, it has ended.
    struct Life {
        associations: Associations,
        devices: Devices<Device>,
        restored: Restored,
        store: Store,
        _log: Log,
    }

    fn live(dir: &Path) -> Life {
        let metrics = prometheus::Registry::new();
        let config =
            LogConfig { dir: dir.into(), segment_bytes: 1 << 20, sinks: vec![CURSOR.into()], ..LogConfig::default() };
        let (log, _) = Log::open(config, &metrics).unwrap();
        let config = tidegate_state::Config {
            path: dir.join("state.redb"),
            cache_bytes: Some(1 << 20),
            pending_bytes: 1 << 20,
            low_water_bytes: 0,
        };
        let store = Store::open(config, &metrics).unwrap();
        let state = State::of(&store, Registry::open(&store).unwrap());
        for id in ["meter-1", "meter-2"] {
            let new = NewDevice { id: id.into(), ..NewDevice::default() };
            // In the second life they are known.
            let _ = state.registry.add(&new, None, Some(&Psk { identity: Vec::new(), key: Secret::new(KEY) }));
        }
        let devices = Devices::new(tidegate_session::Config { max_devices: 10, idle: 1000 });
        // One shard, whose slots are given out in order.
        let config = Coaps { max_associations: 10, ..Coaps::default() };
        let associations = Associations::open(&config, state, AssociationMetrics::register(&metrics).unwrap()).unwrap();
        let restored = associations.restore(&log, Now::read(), &devices).unwrap();
        Life { associations, devices, restored, store, _log: log }
    }

    impl Life {
        /// Makes the handshake of a device, and gives its association once that is stored.
        fn connect(&self, device: &str) -> AssociationId {
            let (now, mut desk, mut up) = (Now::read(), Desk::new(), Outbox::new());
            let credentials = Credentials::new(device.as_bytes(), Key::new(KEY).unwrap()).unwrap();
            let config = Arc::new(ClientConfig::default());
            let mut random = SystemRandom::new();
            let mut client =
                Client::connect(&config, credentials, None, super::super::timestamp(now), &mut random, &mut up);
            let path = tidegate_dtls::Path::new(([192, 0, 2, 1], 4000).into(), 0);
            while !client.is_established() {
                for ((), datagram) in up.iter() {
                    self.associations.receive(&mut datagram.to_vec(), path, now, &self.devices, &mut desk);
                }
                up.clear();
                if let Some(storing) = desk.storing.back() {
                    assert!(self.store.durable().wait(storing.ticket, PATIENCE));
                    self.associations.stored(self.store.durable().get(), &mut desk);
                }
                for (_, datagram) in desk.outbox.iter() {
                    let time = super::super::timestamp(now);
                    client.handle(&mut datagram.to_vec(), time, &mut up, &mut Vec::new());
                }
                desk.outbox.clear();
            }
            self.devices.peek(device, |device| device.association.get()).flatten().unwrap()
        }
    }

    /// Keys and values of the associations' rows.
    fn rows(reader: &Reader) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut rows = Vec::new();
        let each = |key: &[u8], value: &[u8]| {
            rows.push((key.to_vec(), value.to_vec()));
            true
        };
        reader.scan(Table::Associations, &[row::ASSOCIATION], each).unwrap();
        rows
    }

    #[test]
    fn of_two_rows_for_a_slot_the_later_one_holds() {
        let dir = tempfile::TempDir::new().unwrap();
        let life = live(dir.path());
        let first = life.connect("meter-1");
        let [(key, value)] = &rows(&life.store.reader())[..] else { panic!("one association has one row") };
        life.associations.end(first, None, Now::read(), &life.devices, &mut Desk::new());
        let second = life.connect("meter-2");
        assert_eq!(first.slot(), second.slot(), "a slot is used again");
        // As if the database had refused the end of the first.
        let mut changes = Changes::new();
        changes.put(Table::Associations, key, value);
        let ticket = life.store.writer().submit(&mut changes).unwrap();
        assert!(life.store.durable().wait(ticket, PATIENCE));
        assert_eq!(rows(&life.store.reader()).len(), 2);
        drop(life);

        let life = live(dir.path());
        assert_eq!(life.restored, Restored { associations: 1, lost: 1, raised: 0 });
        let of = |device: &str| life.devices.peek(device, |device| device.association.get()).flatten();
        assert_eq!((of("meter-1"), of("meter-2")), (None, Some(second)));
        // Numbers go on where they were, and what was lost is gone.
        let third = life.connect("meter-1");
        assert_ne!(third.slot(), second.slot());
        let stored: Vec<_> = rows(&life.store.reader()).iter().map(|(_, value)| row::id(value)).collect();
        assert_eq!(stored, [Some(second), Some(third)]);
    }

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
