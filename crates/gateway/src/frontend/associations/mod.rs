//! DTLS associations, which all workers share: a device that wakes behind a new port may reach any worker's socket.
//!
//! # Constraints
//!
//! - A device has one association. A new one takes the place of the one before once the device has proven its key.
//! - An association is stored before its handshake is finished, and its sequence numbers are reserved in stored blocks: after a crash
//!   it goes on without a handshake, and no nonce is used twice.
//! - A record that was stored is not stored again when it comes again, also after a crash: see [`restore`].
//! - Memory is bounded: associations, handshakes and sessions by the configuration, what waits for the database by the database.
//!
//! # Operation
//!
//! The associations lie in shards, each a [`Server`] behind a lock; the [`Router`] names the shard of a datagram. A worker holds the
//! lock for one record. What happens to an association (established, used up, closed) is submitted to the database under that lock, so
//! that the database sees it in the same order; the session table, which knows the association of each device, is locked
//! within a shard's lock and never the other way round.
//!
//! What a worker keeps to itself is its [`Desk`]: buffers, and the associations whose storing it waits for.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidegate_coap::echo::Challenger;
use tidegate_dtls::{
    AssociationId, DropReason, Environment, Event, Moved, Outbox, Owner, Path, Peer, Room, Router, SealError, Server,
    SessionCache, Sessions, Timestamp,
};
use tidegate_record::DeviceId;
use tidegate_session::Table as Devices;
use tidegate_state::{Changes, Ticket};

use super::{Device, Now, State};

mod identities;
mod locals;
mod metrics;
mod numbers;
mod owner;
mod random;
mod restore;
mod row;
mod settings;
mod tenants;

use identities::{Found, Identified, Identities, Lookups};
use locals::Locals;
pub(crate) use metrics::AssociationMetrics;
use numbers::Numbers;
use owner::{Names, owner_of};
use random::SystemRandom;
pub(crate) use restore::{CURSOR, PERIOD, Restored, key, scope};
pub(crate) use tenants::Tenant;
use tenants::Tenants;

/// A shard and its lock, apart from its neighbours' cache lines.
#[repr(align(128))]
struct Shard(Mutex<Server>);

/// See the [module documentation](self).
pub(crate) struct Associations {
    shards: Box<[Shard]>,
    router: Router,
    /// Sessions that can be resumed; none if that is turned off.
    sessions: Option<SessionCache>,
    identities: Identities,
    /// Reviews made so far: what was looked up before one may not hold any more.
    reviews: AtomicU64,
    names: Names,
    numbers: Numbers,
    tenants: Tenants,
    locals: Locals,
    state: State,
    metrics: AssociationMetrics,
    challenger: Challenger,
    /// Goodbyes to devices whose associations ended on a thread without a socket.
    goodbyes: Mutex<Outbox>,
    /// When windows were last written, and how far the log was then.
    windows: Mutex<restore::Windows>,
}

/// Texts that may wait for sequence numbers on one worker: the answers to all devices that resume their sessions in the time of a commit, at
/// 20,000 a second; a megabyte or two, if they are as long as answers may be.
const MAX_UNNUMBERED: usize = 1024;

/// What bounds a message that no association is to carry.
pub(crate) const UNBOUNDED: Room = Room { limit: usize::MAX, now: usize::MAX };

/// Times that a datagram is given to another shard, if its records are of several: a gateway before us may join what comes of some
/// devices, and nobody joins more.
const MAX_PARTS: usize = 8;

/// A worker's own: what it reuses from datagram to datagram, and what it waits for.
pub(crate) struct Desk {
    /// Datagrams to be sent.
    pub(crate) outbox: Outbox,
    /// Texts that the last datagram brought.
    pub(crate) received: Vec<Received>,
    events: Vec<Event>,
    changes: Changes,
    random: SystemRandom,
    /// Exports on their way to the disk, in the order of their tickets.
    storing: VecDeque<Storing>,
    /// Texts for associations whose sequence numbers are not stored yet.
    unnumbered: Vec<(AssociationId, Box<[u8]>)>,
    /// Associations that the database did not take, and the names of those that it has never had.
    refused: Vec<(AssociationId, Option<row::Owned>)>,
    /// Associations to be closed once no lock is held.
    doomed: Vec<AssociationId>,
}

/// A text that a device sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) id: AssociationId,
    pub(crate) owner: Owner,
    /// Where it lies in the datagram.
    pub(crate) range: Range<usize>,
    /// The number of its record.
    pub(crate) sequence: u64,
    /// Present if it came from elsewhere and may be of before the start.
    pub(crate) doubted: Option<Elsewhere>,
}

/// Where a record came from that did not change its association's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) path: Path,
    /// Bytes of its datagram.
    pub(crate) len: usize,
}

struct Storing {
    ticket: Ticket,
    id: AssociationId,
    sequence_end: u64,
}

impl Desk {
    pub(crate) fn new() -> Desk {
        Desk {
            outbox: Outbox::new(),
            received: Vec::new(),
            events: Vec::new(),
            changes: Changes::new(),
            random: SystemRandom::new(),
            storing: VecDeque::new(),
            unnumbered: Vec::new(),
            refused: Vec::new(),
            doomed: Vec::new(),
        }
    }

    /// Whether it waits for the database.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.storing.is_empty()
    }

    /// Whether [`Associations::stored`] would do anything.
    pub(crate) fn is_due(&self, durable: Ticket) -> bool {
        self.storing.front().is_some_and(|storing| storing.ticket <= durable)
    }
}

/// The clock of the associations: it goes on over restarts.
pub(crate) fn timestamp(now: Now) -> Timestamp {
    Timestamp(now.steady_millis())
}

impl Associations {
    fn lock(&self, shard: u32) -> MutexGuard<'_, Server> {
        // A worker that panics ends the gateway; until then the others go on with what is there.
        self.shards[shard as usize].0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) -> u32 {
        self.shards.len() as u32
    }

    /// Numbers of our own addresses, which stand in paths.
    pub(crate) fn locals(&self) -> &Locals {
        &self.locals
    }

    pub(crate) fn metrics(&self) -> &AssociationMetrics {
        &self.metrics
    }

    /// Takes a datagram. The texts in it lie where `desk.received` says; what is to be sent is in `desk.outbox`.
    pub(crate) fn receive(
        &self,
        datagram: &mut [u8],
        path: Path,
        now: Now,
        devices: &Devices<Device>,
        desk: &mut Desk,
    ) {
        desk.received.clear();
        let datagram_len = datagram.len();
        let mut at = 0;
        for _ in 0..MAX_PARTS {
            let before = desk.received.len();
            let rest = &mut datagram[at..];
            let mut server = self.lock(self.router.shard(rest, path));
            let Desk { random, outbox, events, .. } = desk;
            let lookups = Lookups::new(&self.identities, self.reviews.load(Ordering::SeqCst));
            let mut environment = Environment {
                psks: &lookups,
                random,
                sessions: self.sessions.as_ref().map(|sessions| sessions as &dyn Sessions),
            };
            let taken = server.handle(rest, path, timestamp(now), &mut environment, outbox, events);
            let from = Elsewhere { path, len: datagram_len };
            self.settle(&mut server, Some(from), lookups.found(), now, devices, desk);
            for Received { range, .. } in &mut desk.received[before..] {
                *range = range.start + at..range.end + at;
            }
            at += taken;
            if at == datagram_len {
                break;
            }
        }
        if at < datagram_len {
            self.metrics.dropped(DropReason::OutOfBounds);
        }
        self.close_doomed(Some(path), now, devices, desk);
    }

    /// Appends to the desk's outbox the datagram that carries `text`. One that has to wait for its sequence number, because the device has
    /// resumed a session and speaks before that is stored, is kept until then. What cannot be protected is counted and dropped,
    /// as the network would. Returns whether it was protected now.
    pub(crate) fn send(&self, id: AssociationId, text: &[u8], desk: &mut Desk) -> bool {
        match self.lock(id.shard(self.count())).seal(id, text, &mut desk.outbox) {
            Ok(()) => return true,
            Err(SealError::Unreserved) if desk.unnumbered.len() < MAX_UNNUMBERED => {
                desk.unnumbered.push((id, text.into()));
            }
            Err(error) => self.metrics.unsent(error),
        }
        false
    }

    /// How long a message may be. One that has nobody to go to may be as long as it likes.
    pub(crate) fn room(&self, id: AssociationId) -> Room {
        self.lock(id.shard(self.count())).room(id).unwrap_or(UNBOUNDED)
    }

    /// Another try of what waits for sequence numbers.
    fn send_unnumbered(&self, desk: &mut Desk) {
        for (id, text) in std::mem::take(&mut desk.unnumbered) {
            self.send(id, &text, desk);
        }
    }

    /// The device of an association.
    pub(crate) fn name_of(&self, owner: &Owner) -> Option<DeviceId> {
        self.names.with(owner, DeviceId::new)?.ok()
    }

    /// Runs `f` on the name of a tenant.
    pub(crate) fn with_tenant<R>(&self, tenant: Tenant, f: impl FnOnce(&str) -> R) -> R {
        self.tenants.with(tenant, f)
    }

    /// Where the peer is, if it was not shown that it receives there.
    pub(crate) fn unproven(&self, id: AssociationId) -> Option<Peer> {
        self.lock(id.shard(self.count())).peer(id).filter(|peer| !peer.validated)
    }

    /// The peer is asked for proof that it receives at `path`.
    pub(crate) fn asked(&self, id: AssociationId, path: Path) {
        self.lock(id.shard(self.count())).asked(id, path);
    }

    /// The peer returned what was sent to it at `path`.
    pub(crate) fn proven(&self, id: AssociationId, path: Path) {
        // If it has moved on, its next request is asked for proof.
        self.lock(id.shard(self.count())).validated(id, path);
    }

    /// What came last is new for certain: if it came from `elsewhere`, what follows goes there.
    pub(crate) fn trust(&self, id: AssociationId, elsewhere: Option<Elsewhere>) {
        self.lock(id.shard(self.count())).trust(id, elsewhere.map(|Elsewhere { path, len }| (path, len)));
    }

    /// As [`send`](Self::send), to where a record came from that may be of before the start.
    pub(crate) fn send_elsewhere(&self, id: AssociationId, path: Path, text: &[u8], desk: &mut Desk) -> bool {
        let sealed = self.lock(id.shard(self.count())).seal_elsewhere(id, path, text, &mut desk.outbox);
        sealed.inspect_err(|error| self.metrics.unsent(*error)).is_ok()
    }

    /// Makes and checks what a peer has to return.
    pub(crate) fn challenger(&self) -> &Challenger {
        &self.challenger
    }

    /// Finishes the handshakes, and uses the reserved numbers, that are stored up to `durable`.
    pub(crate) fn stored(&self, durable: Ticket, desk: &mut Desk) {
        if !desk.is_due(durable) {
            return;
        }
        while let Some(Storing { id, sequence_end, .. }) =
            desk.storing.pop_front_if(|storing| storing.ticket <= durable)
        {
            self.lock(id.shard(self.count())).persisted(id, sequence_end, &mut desk.outbox);
        }
        self.send_unnumbered(desk);
    }

    /// What is due by time in every `step`-th shard from `first` on, and another try of what the database refused.
    pub(crate) fn tick(&self, first: usize, step: usize, now: Now, devices: &Devices<Device>, desk: &mut Desk) {
        desk.received.clear();
        let time = timestamp(now);
        for shard in (first..self.shards.len()).step_by(step) {
            let mut server = self.lock(shard as u32);
            if server.poll_timeout().is_some_and(|at| at <= time) {
                server.handle_timeout(time, &mut desk.outbox, &mut desk.events);
                self.settle(&mut server, None, None, now, devices, desk);
            }
        }
        for (id, names) in std::mem::take(&mut desk.refused) {
            let server = self.lock(id.shard(self.count()));
            self.store(&server, id, names.as_ref().map(row::Owned::as_names), desk);
        }
        // Another worker may have stored what they wait for.
        self.send_unnumbered(desk);
        self.close_doomed(None, now, devices, desk);
        desk.outbox.append(&mut self.goodbyes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends an association whose peer has another one, or is no longer welcome, with a word to it (RFC 5246 §7.2.1). A peer that just made
    /// another one at `path` is told nothing there: it has forgotten the keys.
    pub(crate) fn end(
        &self,
        id: AssociationId,
        path: Option<Path>,
        now: Now,
        devices: &Devices<Device>,
        desk: &mut Desk,
    ) {
        let mut server = self.lock(id.shard(self.count()));
        let mut unsent = Outbox::new();
        let is_there = path.is_some() && server.peer(id).map(|peer| peer.path) == path;
        server.close(id, if is_there { &mut unsent } else { &mut desk.outbox }, &mut desk.events);
        self.settle(&mut server, None, None, now, devices, desk);
    }

    /// Ends those associations and sessions of the devices `names` that were made with an identity, or a key of it, that holds no more.
    pub(crate) fn review<'a>(&self, names: impl Iterator<Item = &'a str>, now: Now, devices: &Devices<Device>) {
        self.reviews.fetch_add(1, Ordering::SeqCst);
        let mut desk = Desk::new();
        let mut owners = HashSet::new();
        for name in names {
            owners.insert(owner_of(name));
            let Some(id) = devices.peek(name, |device| device.association.get()).flatten() else { continue };
            // One that is not stored yet is in the middle of its handshake, and begins anew.
            let stored = self.numbers.get(id);
            if !stored.is_some_and(|number| row::holds(&self.state.reader, number, |names| self.holds(names))) {
                self.end(id, None, now, devices, &mut desk);
            }
        }
        self.goodbyes.lock().unwrap_or_else(PoisonError::into_inner).append(&mut desk.outbox);
        // An identity that is given to its device again, with another key, must not be proven by what the one before agreed on.
        if let Some(sessions) = &self.sessions {
            sessions.retain(|session| !owners.contains(session.owner()) || self.identities.is_live(session.number()));
        }
    }

    /// Whether the identity that an association was opened with is what it was.
    fn holds(&self, names: &row::Names<'_>) -> bool {
        self.identities.is_live(names.number)
    }

    fn close_doomed(&self, path: Option<Path>, now: Now, devices: &Devices<Device>, desk: &mut Desk) {
        while let Some(id) = desk.doomed.pop() {
            self.end(id, path, now, devices, desk);
        }
    }

    /// Counts what happened, and does what follows from it, while the shard is locked.
    fn settle(
        &self,
        server: &mut Server,
        from: Option<Elsewhere>,
        mut found: Option<Found>,
        now: Now,
        devices: &Devices<Device>,
        desk: &mut Desk,
    ) {
        let mut events = std::mem::take(&mut desk.events);
        for event in events.drain(..) {
            match event {
                Event::Application { id, owner, range, sequence, moved, .. } => {
                    self.metrics.moved(moved);
                    let doubted = from.filter(|_| moved == Moved::Doubted);
                    desk.received.push(Received { id, owner, range, sequence, doubted });
                }
                Event::Established { id, owner, identity, number, resumed } => {
                    self.metrics.established(resumed);
                    self.metrics.associations.inc();
                    let found = found.take().filter(|found| found.identity == identity);
                    self.adopt(server, (id, &owner), (&identity, number, found), now, devices, desk);
                }
                Event::Reserve { id } => self.store(server, id, None, desk),
                Event::Closed { id, owner, reason } => {
                    self.metrics.closed(reason);
                    self.metrics.associations.dec();
                    self.names.with(&owner, |name| devices.peek(name, |device| device.association.clear(id)));
                    self.names.release(&owner);
                    if let Some(number) = self.numbers.take(id) {
                        row::remove(&mut desk.changes, number);
                        row::remove_window(&mut desk.changes, id);
                        self.submit_removal(desk);
                    }
                }
                Event::Drop(reason) => self.metrics.dropped(reason),
                Event::Failed(failure) => self.metrics.failed(failure),
            }
        }
        desk.events = events;
    }

    /// Makes a new association the one of its device.
    fn adopt(
        &self,
        server: &Server,
        (id, owner): (AssociationId, &Owner),
        (identity, number, found): (&[u8], u64, Option<Found>),
        now: Now,
        devices: &Devices<Device>,
        desk: &mut Desk,
    ) {
        // Since it was looked up the identity may have been revoked: what was found a datagram ago is found anew.
        let found = found.map(|Found { whose, reviews, .. }| (whose, reviews)).or_else(|| {
            let reviews = self.reviews.load(Ordering::SeqCst);
            self.identities.find(identity).map(|whose| (whose, reviews))
        });
        // With another number it is another one, whose key was not proven.
        let is_same = |found: &Identified| found.number == number && owner_of(found.device.as_str()) == *owner;
        let Some((found, reviews)) = found.filter(|(found, _)| is_same(found)) else {
            if let Ok(nobody) = DeviceId::new("-") {
                self.names.hold(owner, &nobody);
            }
            desk.doomed.push(id);
            return;
        };
        self.names.hold(owner, &found.device);
        let row = row::Names { device: found.device.as_str(), identity, number };
        let tenant = self.tenants.number(&found.tenant);
        let adopted = devices.with_id(found.device.clone(), now.seconds(), |_, device| device.adopt(id, tenant));
        match adopted {
            Ok(before) => {
                desk.doomed.extend(before.filter(|before| *before != id));
                // A review that began after the lookup may have missed it.
                if self.reviews.load(Ordering::SeqCst) != reviews && !self.holds(&row) {
                    desk.doomed.push(id);
                }
                self.store(server, id, Some(row), desk);
            }
            // The table of devices is full: nothing that this one sends could be taken.
            Err(_) => desk.doomed.push(id),
        }
    }

    /// Submits an association as it is now. Its names are known when it is new; later the database knows them.
    fn store(&self, server: &Server, id: AssociationId, names: Option<row::Names<'_>>, desk: &mut Desk) {
        let Some(export) = server.export(id) else { return };
        let put = match &names {
            Some(names) => self.numbers.draw(id).map(|number| row::put(&mut desk.changes, number, &export, names)),
            None => self.numbers.get(id).and_then(|number| {
                row::put_again(&self.state.reader, &mut desk.changes, number, &export).then_some(())
            }),
        };
        match put.is_some().then(|| self.state.writer.submit(&mut desk.changes)) {
            Some(Ok(ticket)) => {
                desk.storing.push_back(Storing { ticket, id, sequence_end: export.sequence_end() });
            }
            _ => {
                desk.changes.clear();
                self.metrics.store_refused.inc();
                desk.refused.push((id, names.map(row::Names::to_owned)));
            }
        }
    }

    /// Submits the removal in `desk.changes`. One that the database refuses is done by the next start, which meets a row whose
    /// device has another association or is unknown.
    fn submit_removal(&self, desk: &mut Desk) {
        if self.state.writer.submit(&mut desk.changes).is_err() {
            desk.changes.clear();
        }
    }

    /// Sets the gauges; looks at every handshake.
    pub(crate) fn measure(&self) {
        let (mut pending, mut bytes) = (0, 0);
        for shard in 0..self.count() {
            let server = self.lock(shard);
            pending += server.handshakes();
            bytes += server.handshake_bytes();
        }
        self.metrics.pending.set(pending as i64);
        self.metrics.pending_bytes.set(bytes as i64);
    }
}
