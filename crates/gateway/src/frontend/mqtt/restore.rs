//! The start: sessions, subscriptions, queues and retained messages as the database has them, and what the log has beyond that.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::{Delivery, Message, QoS, Session, Stored};
use tidegate_record::{DeviceId, Protocol, Record};
use tidegate_state::{Changes, ReadError, Reader, Refused, Table};
use tracing::warn;

use super::Now;
use super::clients::{Clients, Parked, Slot};
use super::kept::{self, Flow, Kept, Row, Subscription};
use super::replay::Replays;
use super::review;
use super::wills::{Due, Waiting};
use crate::acl::View;
use crate::frontend::router::{Left, Origin, Served, SessionId};
use crate::frontend::{Shared, limits};

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
    /// Where each incarnation's session is.
    sessions: HashMap<u64, (usize, Slot)>,
    /// Wills that were due, the first worker's.
    wills: Waiting,
    /// Retained messages that sessions are still to be sent, by worker.
    replays: Vec<Replays>,
    /// Subscriptions that they are for.
    owed: Vec<(usize, Slot, Box<str>, Subscription)>,
    /// What the start itself changes.
    rows: Changes,
}

/// What is one worker's of it.
pub(crate) struct Share {
    pub(super) clients: Clients,
    pub(super) wills: Waiting,
    pub(super) replays: Replays,
}

impl Share {
    /// Of worker `index`, which there was not in the earlier run.
    pub(super) fn none(index: usize) -> Share {
        Share { clients: Clients::new(index), wills: Waiting::default(), replays: Replays::default() }
    }
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
        wills: Waiting::default(),
        replays: (0..shared.workers).map(|_| Replays::default()).collect(),
        owed: Vec::new(),
        rows: Changes::new(),
    };
    let mut counts = Counts::default();
    restored.sessions(shared, reader, now, &mut counts)?;
    restored.subscriptions(shared, reader, &mut counts)?;
    restored.withdraw(shared, &mut counts)?;
    let left = restored.queues(reader, &mut counts)?;
    restored.pass_on(shared, left, now);
    restored.retained(shared, reader, now, &mut counts)?;
    restored.replays(shared);
    restored.wills(reader)?;
    Ok((restored, counts))
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
            let kept = Kept::restored(row.incarnation, row.owner.clone());
            let slot = self.clients[worker].insert_away(device.clone(), kept, parked, now.steady_millis());
            let id = self.clients[worker].get(slot).map(|client| client.id);
            let claimed = shared.table.with_id(device.clone(), now.seconds(), |_, entry| entry.mqtt = id);
            if claimed.is_err() {
                warn!("the session table is too small for all sessions: one is dropped");
                self.clients[worker].remove(slot);
                kept::remove_session(&mut self.rows, &device, row.incarnation);
                kept::remove_state(&mut self.rows, row.incarnation);
                kept::put_will(&mut self.rows, &device, None);
                continue;
            }
            self.sessions.insert(row.incarnation, (worker, slot));
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
            let Some((incarnation, filter, subscription)) = parsed else {
                failed = true;
                return false;
            };
            let Some(&(worker, slot)) = self.sessions.get(&incarnation) else {
                orphans.push(key.to_vec());
                return true;
            };
            let Some(client) = self.clients[worker].get_mut(slot) else { return true };
            let Subscription { options, id, owed } = subscription;
            if owed {
                self.owed.push((worker, slot, filter.text().into(), subscription));
            }
            if shared.router.subscribe(&filter, client.subscriber(), options, id, Some(usize::MAX), &mut 0).is_ok() {
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

    /// Ends the subscriptions that the rules do not allow any more.
    fn withdraw(&mut self, shared: &Shared, counts: &mut Counts) -> Result<(), RestoreError> {
        let mut rules = View::new(shared.access.rules.clone());
        for worker in 0..self.clients.len() {
            for slot in self.clients[worker].slots() {
                let Some(client) = self.clients[worker].get_mut(slot) else { continue };
                let (_, ended) = review::withdraw(shared, rules.get().0, client, &mut self.rows);
                counts.subscriptions -= ended.len();
                self.spill(shared)?;
            }
        }
        Ok(())
    }

    /// Reads messages and flows; returns those of sessions that are over.
    fn queues(&mut self, reader: &Reader, counts: &mut Counts) -> Result<Vec<(u64, Session)>, RestoreError> {
        /// What is known of one session's flows.
        #[derive(Default)]
        struct Flows {
            sent: HashMap<u64, (u16, bool)>,
            held: Vec<u16>,
            left: HashSet<u64>,
        }
        let mut flows: HashMap<u64, Flows> = HashMap::new();
        let mut unanswered = Vec::new();
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
                Flow::Left(order) => {
                    known.left.insert(order);
                }
                Flow::Mark(serial) => {
                    if let Some((kept, _)) = self.kept(incarnation) {
                        kept.restore_mark(serial);
                    }
                }
                Flow::Unanswered { serial, packet_id, served } => {
                    unanswered.push((Origin { incarnation, serial, packet_id }, served));
                }
            }
            true
        })?;
        if failed {
            return Err(broken(Table::Inflight));
        }
        for (origin, served) in unanswered {
            // A subscriber whose session is over has lost what it had.
            let to = served.map(|(incarnation, group)| (self.id(incarnation), group));
            let Some((kept, rows)) = self.kept(origin.incarnation) else { continue };
            let known = kept.begun(rows, origin);
            match to {
                None => known.logged = true,
                Some((Some(to), group)) => known.served.push(Served { to, group }),
                Some((None, _)) => {}
            }
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
        let with_state: HashSet<u64> = flows.keys().chain(messages.keys()).copied().collect();
        let mut over = Vec::new();
        for incarnation in with_state {
            let flows = flows.remove(&incarnation).unwrap_or_default();
            let mut messages = messages.remove(&incarnation).unwrap_or_default();
            // Another session has them: this one was about to end.
            messages.retain(|(order, _)| !flows.left.contains(order));
            for order in flows.left {
                kept::remove_message(&mut self.rows, Left { incarnation, order });
            }
            let stored = messages.iter().map(|(order, form)| Stored {
                order: *order,
                form,
                flight: flows.sent.get(order).copied(),
            });
            let session = Session::restore(stored, flows.held).map_err(|error| {
                warn!(%error, "a session cannot be restored");
                broken(Table::Queues)
            })?;
            let Some(&(worker, slot)) = self.sessions.get(&incarnation) else {
                over.push((incarnation, session));
                continue;
            };
            counts.messages += messages.len();
            let parked = self.clients[worker].get_mut(slot).and_then(|client| client.parked.as_mut());
            if let Some(parked) = parked.filter(|_| !session.is_empty()) {
                parked.session = Some(Box::new(session));
            }
        }
        Ok(over)
    }

    /// Gives what sessions left that are over to other members of their shared subscriptions, and forgets the rest of them.
    fn pass_on(&mut self, shared: &Shared, over: Vec<(u64, Session)>, now: Now) {
        let limits = limits(&shared.config);
        let (mut changes, mut scratch) = (Vec::new(), Vec::new());
        for (incarnation, session) in over {
            for tidegate_mqtt::Shared { message, group, order } in session.into_shared() {
                let member = shared.router.member(&message, group);
                let Some(target) = member.filter(|_| !message.is_expired(now.steady_millis())) else { continue };
                if target.qos.min(message.qos()) == QoS::AtMostOnce {
                    continue;
                }
                let Some((_, client)) = self.clients[target.to.worker()].by_id(target.to) else { continue };
                let (Some(kept), Some(parked)) = (&client.kept, &mut client.parked) else { continue };
                let session = parked.session_mut();
                let delivery =
                    Delivery { qos: target.qos, retain: target.retain, ids: &target.ids, group: target.group };
                // One that its queue is too small for is dropped, as while the gateway runs.
                let _ = session.queue(&limits, &message, delivery);
                session.take_changes(&mut changes);
                kept::write(&mut self.rows, kept.incarnation, Some(session), &mut changes, &mut scratch);
                kept::put_left(&mut self.rows, Left { incarnation, order });
            }
            kept::remove_state(&mut self.rows, incarnation);
        }
    }

    /// Reads retained messages, and removes those that have expired.
    fn retained(
        &mut self,
        shared: &Shared,
        reader: &Reader,
        now: Now,
        counts: &mut Counts,
    ) -> Result<(), RestoreError> {
        let millis = now.steady_millis();
        let mut done = Ok(());
        reader.scan(Table::Retained, &[], |topic, form| {
            let Some(message) = Message::read(form) else {
                done = Err(broken(Table::Retained));
                return false;
            };
            let expired = message.is_expired(millis);
            if !expired && shared.router.restore_retained(&message) {
                counts.retained += 1;
                return true;
            }
            shared.metrics.mqtt_unretained.inc_by(u64::from(!expired));
            self.rows.remove(Table::Retained, topic);
            done = self.spill(shared);
            done.is_ok()
        })?;
        done
    }

    /// Begins anew with the retained messages that sessions were not sent yet.
    fn replays(&mut self, shared: &Shared) {
        for (worker, slot, filter, subscription) in std::mem::take(&mut self.owed) {
            let (Some(client), Some(filter)) = (self.clients[worker].get(slot), Filter::parse(&filter)) else {
                continue;
            };
            if let Some(replay) = shared.router.replay(&filter, client.subscriber()) {
                self.replays[worker].add(client.id, replay, subscription);
            }
        }
    }

    /// Reads the wills that were due.
    fn wills(&mut self, reader: &Reader) -> Result<(), RestoreError> {
        let mut failed = false;
        kept::scan_due(reader, |row| {
            match row {
                Some((key, device, tenant, message)) => self.wills.push(Due::restored(key, device, tenant, message)),
                None => failed = true,
            }
            !failed
        })?;
        if failed { Err(broken(Table::Wills)) } else { Ok(()) }
    }

    fn id(&self, incarnation: u64) -> Option<SessionId> {
        let (worker, slot) = *self.sessions.get(&incarnation)?;
        self.clients[worker].get(slot).map(|client| client.id)
    }

    /// A session, and where to note what the start changes of it.
    fn kept(&mut self, incarnation: u64) -> Option<(&mut Kept, &mut Changes)> {
        let (worker, slot) = *self.sessions.get(&incarnation)?;
        Some((self.clients[worker].get_mut(slot)?.kept.as_mut()?, &mut self.rows))
    }

    /// Looks at a record of the log: is it a QoS 2 publish that the database does not tell of, its client was not answered.
    pub(crate) fn replay(&mut self, record: &Record<'_>) {
        let mqtt = matches!(record.protocol, Protocol::Mqtt | Protocol::Mqtts | Protocol::MqttWs | Protocol::MqttWss);
        let Some(key) = record.key.filter(|_| mqtt && record.qos == 2) else { return };
        let (serial, packet_id) = kept::of_key(key);
        let origin = Origin { incarnation: key.scope, serial, packet_id };
        if let Some((kept, rows)) = self.kept(key.scope) {
            kept.logged(rows, origin);
        }
    }

    /// QoS 2 publishes that their clients have to send again.
    pub(crate) fn unanswered(&self) -> usize {
        let sessions = self.sessions.values().filter_map(|(worker, slot)| self.clients[*worker].get(*slot));
        sessions.filter_map(|client| client.kept.as_ref()).map(|kept| kept.all_unanswered()).sum()
    }

    /// Stores what the start changed, before anybody is served.
    pub(crate) fn store(&mut self, shared: &Shared) -> Result<(), RestoreError> {
        /// Longer than any disk takes that still works.
        const STORING: Duration = Duration::from_secs(60);

        let state = &shared.state;
        let ticket = state.writer.submit(&mut self.rows)?;
        if !state.durable.wait(ticket, STORING) {
            return Err(RestoreError::NotStored);
        }
        Ok(())
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

    /// What is worker `index`'s.
    pub(in crate::frontend) fn take(&mut self, index: usize) -> Option<Share> {
        let clients = std::mem::replace(self.clients.get_mut(index)?, Clients::new(index));
        let wills = if index == 0 { std::mem::take(&mut self.wills) } else { Waiting::default() };
        Some(Share { clients, wills, replays: std::mem::take(&mut self.replays[index]) })
    }
}
