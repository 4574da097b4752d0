//! The start: sessions, subscriptions, queues and retained messages as the database has them, and what the log has beyond that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::{Message, QoS, Session, Stored};
use tidegate_record::{DeviceId, Protocol, Record};
use tidegate_state::{Changes, ReadError, Reader, Refused, Table};
use tracing::warn;

use super::Now;
use super::clients::{Clients, Parked, Slot};
use super::kept::{self, Flow, Kept, Row};
use crate::frontend::Shared;
use crate::frontend::limits;

/// Seconds in a session expiry that never comes (MQTT 5.0 §3.1.2.11.2).
const NEVER: u32 = u32::MAX;

/// Whoever's sessions cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    /// The database's fault.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What the start changed was not taken.
    #[error("what was restored could not be stored: {0}")]
    Refused(#[from] Refused),
    /// The same, with the reason in the log.
    #[error("what was restored could not be stored")]
    NotStored,
    /// A row that nothing of ours has written.
    #[error("the table {table} has a row that cannot be read")]
    Row {
        /// Where it is.
        table: &'static str,
    },
}

fn broken(table: Table) -> RestoreError {
    RestoreError::Row { table: table.name() }
}

/// What is restored, by worker: handed to their reactors.
pub(crate) struct Restored {
    pub(super) clients: Vec<Clients>,
    /// Where each incarnation's session is, and the number of its last QoS 2 publish known to be stored.
    sessions: HashMap<u64, (usize, Slot, u64)>,
    /// What the start itself changes.
    rows: Changes,
    /// QoS 2 publishes that were not known to be stored.
    replayed: u64,
}

/// How much was restored.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) sessions: usize,
    pub(crate) subscriptions: usize,
    pub(crate) messages: usize,
    pub(crate) retained: usize,
}

/// Reads everything back, before anybody is served.
pub(crate) fn restore(shared: &Shared, reader: &Reader, now: Now) -> Result<(Restored, Counts), RestoreError> {
    let mut restored = Restored {
        clients: (0..shared.workers).map(Clients::new).collect(),
        sessions: HashMap::new(),
        rows: Changes::new(),
        replayed: 0,
    };
    let mut counts = Counts::default();
    restored.sessions(shared, reader, now, &mut counts)?;
    restored.subscriptions(shared, reader, &mut counts)?;
    restored.queues(reader, &mut counts)?;
    let mut failed = None;
    reader.scan(Table::Retained, &[], |_, form| match Message::read(form) {
        Some(message) => {
            counts.retained += 1;
            shared.router.restore_retained(&Arc::new(message));
            true
        }
        None => {
            failed = Some(broken(Table::Retained));
            false
        }
    })?;
    match failed {
        Some(failed) => Err(failed),
        None => Ok((restored, counts)),
    }
}

impl Restored {
    fn sessions(
        &mut self,
        shared: &Shared,
        reader: &Reader,
        now: Now,
        counts: &mut Counts,
    ) -> Result<(), RestoreError> {
        let mut rows = Vec::new();
        reader.scan(Table::Sessions, &[], |client, value| {
            rows.push((client.to_vec(), Row::read(value)));
            true
        })?;
        for (index, (client, row)) in rows.into_iter().enumerate() {
            let row = row.ok_or_else(|| broken(Table::Sessions))?;
            let name = std::str::from_utf8(&client).map_err(|_| broken(Table::Sessions))?;
            let device = DeviceId::new(name).map_err(|_| broken(Table::Sessions))?;
            let will = reader.get(Table::Wills, &client, kept::read_will)?;
            let will = will.map(|will| will.ok_or_else(|| broken(Table::Wills))).transpose()?;
            // A connection that was there when the gateway died ended with it, as far as anybody knows now.
            let ended = row.ended.unwrap_or(now.steady_millis());
            let after = |seconds: u32| ended + u64::from(seconds) * 1000;
            let parked = Parked {
                session: None,
                expires: (row.expiry != NEVER).then(|| after(row.expiry)),
                will: will.map(|(will, due)| {
                    let due = due.unwrap_or_else(|| after(will.delay));
                    (Box::new(will), due)
                }),
                accounted: 0,
            };
            let worker = index % self.clients.len();
            let kept = Kept { incarnation: row.incarnation, serial: 0 };
            let slot = self.clients[worker].insert_away(device.clone(), kept, parked, now.steady_millis());
            let id = self.clients[worker].get(slot).map(|client| client.id);
            let claimed = shared.table.with_id(device.clone(), now.seconds(), |_, entry| entry.mqtt = id);
            if claimed.is_err() {
                warn!("the session table is too small for all sessions: one is dropped");
                self.clients[worker].remove(slot);
                kept::remove_session(&mut self.rows, &device, row.incarnation);
                kept::put_will(&mut self.rows, &device, None);
                continue;
            }
            self.sessions.insert(row.incarnation, (worker, slot, 0));
            counts.sessions += 1;
            if row.ended.is_none() {
                // The end of its connection is known now.
                Row { ended: Some(ended), ..row }.put(&mut self.rows, &device);
                self.spill(shared)?;
            }
        }
        Ok(())
    }

    fn subscriptions(&mut self, shared: &Shared, reader: &Reader, counts: &mut Counts) -> Result<(), RestoreError> {
        let mut failed = false;
        let mut orphans = Vec::new();
        reader.scan(Table::Subscriptions, &[], |key, value| {
            let parsed = kept::split_key(key).and_then(|(incarnation, filter)| {
                let filter = std::str::from_utf8(filter).ok()?;
                Some((incarnation, Filter::parse(filter)?, kept::read_subscription(value)?))
            });
            let Some((incarnation, filter, (options, id))) = parsed else {
                failed = true;
                return false;
            };
            let Some(&(worker, slot, _)) = self.sessions.get(&incarnation) else {
                orphans.push(key.to_vec());
                return true;
            };
            let Some(client) = self.clients[worker].get_mut(slot) else { return true };
            if shared.router.subscribe(&filter, client.subscriber(), options, id, true, false).is_ok() {
                client.subscriptions += 1;
                client.flags.shares |= filter.group().is_some();
                counts.subscriptions += 1;
            }
            true
        })?;
        if failed {
            return Err(broken(Table::Subscriptions));
        }
        for key in orphans {
            self.rows.remove(Table::Subscriptions, &key);
        }
        for clients in &mut self.clients {
            for slot in clients.slots() {
                if let Some(client) = clients.get(slot).filter(|client| client.flags.shares) {
                    shared.router.set_present(client.subscriber(), false);
                }
            }
        }
        Ok(())
    }

    fn queues(&mut self, reader: &Reader, counts: &mut Counts) -> Result<(), RestoreError> {
        /// What is known of one session's flows.
        #[derive(Default)]
        struct Flows {
            sent: HashMap<u64, (u16, bool)>,
            held: Vec<u16>,
        }
        let mut flows: HashMap<u64, Flows> = HashMap::new();
        let mut failed = false;
        reader.scan(Table::Inflight, &[], |key, value| {
            let flow = kept::split_key(key).and_then(|(inc, rest)| Some((inc, kept::read_flow(rest, value)?)));
            let Some((incarnation, flow)) = flow else {
                failed = true;
                return false;
            };
            let known = flows.entry(incarnation).or_default();
            match flow {
                Flow::Sent { order, packet_id, received } => {
                    known.sent.insert(order, (packet_id, received));
                }
                Flow::Held(packet_id) => known.held.push(packet_id),
                Flow::Mark(serial) => {
                    if let Some(session) = self.sessions.get_mut(&incarnation) {
                        session.2 = serial;
                    }
                }
            }
            true
        })?;
        if failed {
            return Err(broken(Table::Inflight));
        }
        let mut messages: HashMap<u64, Vec<(u64, Vec<u8>)>> = HashMap::new();
        reader.scan(Table::Queues, &[], |key, form| {
            let parsed =
                kept::split_key(key).and_then(|(inc, order)| Some((inc, u64::from_be_bytes(order.try_into().ok()?))));
            let Some((incarnation, order)) = parsed else {
                failed = true;
                return false;
            };
            messages.entry(incarnation).or_default().push((order, form.to_vec()));
            true
        })?;
        if failed {
            return Err(broken(Table::Queues));
        }
        let with_state: std::collections::HashSet<u64> = flows.keys().chain(messages.keys()).copied().collect();
        for incarnation in with_state {
            let flows = flows.remove(&incarnation).unwrap_or_default();
            let messages = messages.remove(&incarnation).unwrap_or_default();
            let Some(&(worker, slot, serial)) = self.sessions.get(&incarnation) else {
                let prefix = incarnation.to_be_bytes();
                self.rows.remove_prefix(Table::Queues, &prefix).remove_prefix(Table::Inflight, &prefix);
                continue;
            };
            let stored = messages.iter().map(|(order, form)| Stored {
                order: *order,
                form,
                flight: flows.sent.get(order).copied(),
            });
            let session = Session::restore(stored, flows.held).map_err(|error| {
                warn!(%error, "a session cannot be restored");
                broken(Table::Queues)
            })?;
            counts.messages += messages.len();
            if let Some(client) = self.clients[worker].get_mut(slot) {
                if let Some(kept) = &mut client.kept {
                    kept.serial = serial;
                }
                if let Some(parked) = &mut client.parked
                    && !session.is_empty()
                {
                    parked.session = Some(Box::new(session));
                }
            }
        }
        Ok(())
    }

    /// Looks at a record of the log: a QoS 2 publish that was not known to be stored is routed, and its identifier held.
    pub(crate) fn replay(&mut self, shared: &Shared, record: &Record<'_>) {
        let mqtt = matches!(record.protocol, Protocol::Mqtt | Protocol::Mqtts | Protocol::MqttWs | Protocol::MqttWss);
        let Some(key) = record.key.filter(|_| mqtt && record.qos == 2) else { return };
        let (serial, packet_id) = kept::of_key(key);
        let Some(&(worker, slot, known)) = self.sessions.get(&key.scope) else { return };
        if serial <= known {
            return;
        }
        self.sessions.insert(key.scope, (worker, slot, serial));
        self.replayed += 1;
        let limits = limits(&shared.config);
        if let Some(client) = self.clients[worker].get_mut(slot) {
            if let Some(kept) = &mut client.kept {
                kept.serial = serial;
            }
            if let Some(parked) = &mut client.parked {
                let session = parked.session_mut();
                session.hold(packet_id);
                session.take_changes(&mut Vec::new());
            }
        }
        kept::put_held(&mut self.rows, key.scope, packet_id, serial);
        let message = Message::with_content_type(
            record.topic,
            record.content_type,
            record.payload,
            QoS::ExactlyOnce,
            record.retain,
        );
        let message = Arc::new(message);
        if record.retain {
            shared.router.restore_retained(&message);
            if message.payload().is_empty() {
                self.rows.remove(Table::Retained, record.topic.as_bytes());
            } else {
                let mut form = Vec::new();
                message.write(&mut form);
                self.rows.put(Table::Retained, record.topic.as_bytes(), &form);
            }
        }
        let mut scratch = Vec::new();
        for target in shared.router.targets_of(&message) {
            let Some((_, client)) = self.clients[target.to.worker()].by_id(target.to) else { continue };
            let Some(incarnation) = client.kept.as_ref().map(|kept| kept.incarnation) else { continue };
            let Some(parked) = &mut client.parked else { continue };
            let session = parked.session_mut();
            if session.queue(&limits, &message, target.qos, target.retain, &target.ids).is_ok() {
                let mut changes = Vec::new();
                session.take_changes(&mut changes);
                kept::write(&mut self.rows, incarnation, Some(session), 0, &mut changes, &mut scratch);
            }
        }
    }

    /// Stores what the start changed, before anybody is served. Returns how many publishes were replayed.
    pub(crate) fn store(&mut self, shared: &Shared) -> Result<u64, RestoreError> {
        /// Longer than any disk takes that still works.
        const STORING: Duration = Duration::from_secs(60);

        let state = &shared.state;
        let ticket = state.writer.submit(&mut self.rows)?;
        if !state.durable.wait(ticket, STORING) {
            return Err(RestoreError::NotStored);
        }
        Ok(self.replayed)
    }

    /// Stores what there is if it is much.
    fn spill(&mut self, shared: &Shared) -> Result<(), RestoreError> {
        /// Far below what the database takes at once.
        const MUCH: usize = 1 << 20;

        if self.rows.bytes() >= MUCH {
            self.store(shared)?;
        }
        Ok(())
    }

    /// The clients of worker `index`.
    pub(in crate::frontend) fn take(&mut self, index: usize) -> Option<Clients> {
        self.clients.get_mut(index).map(|clients| std::mem::replace(clients, Clients::new(index)))
    }
}
