//! The server role: one shard of it.

use crate::alert::{Alert, AlertLevel};
use crate::association::{Association, Export, ImportError};
use crate::cid::{AssociationId, CidFormat, Tag, hash_state};
use crate::crypto::wipe_stack;
use crate::environment::{Environment, Owner, Random};
use crate::handshake::cookie::Cookies;
use crate::handshake::{Fragment, message};
use crate::outbox::Outbox;
use crate::path::{CompactPath, Path};
use crate::protection::OpenError;
use crate::record::{ContentType, FramingError, RecordHeader, VERSION, VERSION_1_0};
use crate::session::SessionId;
use crate::table::Table;
use crate::time::Timestamp;

mod config;
mod event;
mod handshake;
mod partial;

pub use config::{AddressChanges, ConfigError, MAX_SLOTS, MIN_MTU, Retransmission, ServerConfig};
pub use event::{CloseReason, DropReason, Event, HandshakeFailure, Moved, SealError};
pub use handshake::MAX_PENDING_BYTES;
pub(crate) use handshake::Pending;
pub use partial::MAX_PARTIAL_BYTES;

/// Records read of one datagram. The longest flight has five, application data one or two; what lies behind is somebody's try
/// to make one datagram cost many.
pub const MAX_RECORDS: usize = 32;

/// Associations looked at for their age when a datagram comes.
const SWEEP: usize = 2;

/// Timers and ages served by one [`Server::handle_timeout`].
const TIMEOUTS: usize = 1024;

/// One shard of a server: handshakes, associations, cookies.
pub struct Server {
    config: ServerConfig,
    table: Table,
    cookies: Cookies,
    hellos: partial::PartialHellos,
    timers: handshake::Timers,
    /// The session of a resumption that just failed.
    failed_session: Option<SessionId>,
    /// Imports came in any order of use.
    unsorted: bool,
    /// Keys were made or ended, so the stack is to be wiped.
    stained: bool,
}

/// Where a peer is, and what is known about that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Where records to it go.
    pub path: Path,
    /// Whether it was shown to receive there: by the handshake, or by [`Server::validated`].
    pub validated: bool,
    /// Whether it was [asked](Server::asked) to show that.
    pub asked: bool,
}

/// How many bytes of text one record to a peer may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// As many as the peer takes (RFC 6066 §4).
    pub limit: usize,
    /// As many as may be sent at present: fewer than [`Room::limit`] only while the peer's address is not validated
    /// ([`ServerConfig::amplification`]).
    pub now: usize,
}

/// What is known of an association, keys aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// Its name.
    pub id: AssociationId,
    /// Whose it is.
    pub owner: Owner,
    /// When its handshake ended, to the second.
    pub created: Timestamp,
    /// When it was last used, to the second.
    pub last_used: Timestamp,
    /// One past the highest sequence number received.
    pub received: u64,
}

/// The order of use is kept in steps of this.
pub const LAST_USED_GRAIN: std::time::Duration = IDLE_GRAIN;

/// What goes with a datagram.
struct Context<'a, 'e> {
    path: CompactPath,
    now: Timestamp,
    env: &'a mut Environment<'e>,
    out: &'a mut Outbox,
    events: &'a mut Vec<Event>,
}

impl Context<'_, '_> {
    fn drop(&mut self, reason: DropReason) {
        self.events.push(Event::Drop(reason));
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("associations", &self.associations())
            .field("handshakes", &self.handshakes())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// A shard without associations.
    ///
    /// # Errors
    ///
    /// If the configuration contradicts itself.
    pub fn new(config: ServerConfig, random: &mut dyn Random) -> Result<Server, ConfigError> {
        config.check()?;
        let capacity = config.max_associations + config.max_handshakes;
        Ok(Server {
            table: Table::new(capacity, config.max_associations, hash_state(random)),
            cookies: Cookies::new(config.cookie_rotation, random),
            hellos: partial::PartialHellos::default(),
            timers: handshake::Timers::new(),
            failed_session: None,
            unsorted: false,
            stained: false,
            config,
        })
    }

    /// How many associations there are.
    #[must_use]
    pub fn associations(&self) -> usize {
        self.table.live_len()
    }

    /// How many handshakes are under way.
    #[must_use]
    pub fn handshakes(&self) -> usize {
        self.table.pending_len()
    }

    /// Bytes that the handshakes under way take: at most [`MAX_PENDING_BYTES`] each, and [`MAX_PARTIAL_BYTES`] for hellos of which a part has come. It
    /// looks at all of them.
    #[must_use]
    pub fn handshake_bytes(&self) -> usize {
        self.table.iter_pending().map(Pending::bytes).sum::<usize>() + self.hellos.bytes()
    }

    /// Takes a datagram. Records are decrypted where they lie; each gives an event, what is to be sent goes to `out`. Returns how many bytes
    /// it took: all, or those before a record whose CID names another shard, which is to be given the rest.
    pub fn handle(
        &mut self,
        datagram: &mut [u8],
        path: Path,
        now: Timestamp,
        env: &mut Environment<'_>,
        out: &mut Outbox,
        events: &mut Vec<Event>,
    ) -> usize {
        self.cookies.rotate(now, env.random);
        self.sort();
        self.expire(SWEEP, now, events);
        let taken = self.records(datagram, &mut Context { path: path.into(), now, env, out, events });
        if let Some(id) = self.failed_session.take()
            && let Some(sessions) = env.sessions
        {
            sessions.remove(&id);
        }
        self.wipe();
        taken
    }

    /// Overwrites what keys have left on the stack, if any were made or ended.
    fn wipe(&mut self) {
        if std::mem::take(&mut self.stained) {
            wipe_stack();
        }
    }

    /// Takes the records up to one that another shard is to be given; returns where that begins, or the end.
    // A frame of its own, which lies in what is wiped.
    #[inline(never)]
    fn records(&mut self, datagram: &mut [u8], cx: &mut Context<'_, '_>) -> usize {
        let cid_len = self.config.cid.map_or(0, CidFormat::len);
        let mut at = 0;
        for _ in 0..MAX_RECORDS {
            if at == datagram.len() {
                return at;
            }
            let header = match RecordHeader::parse(datagram, at, cid_len) {
                Ok(header) => header,
                Err(error @ (FramingError::Truncated | FramingError::Malformed)) => {
                    let truncated = error == FramingError::Truncated;
                    cx.drop(if truncated { DropReason::Truncated } else { DropReason::Malformed });
                    return datagram.len();
                }
                Err(FramingError::UnknownType { end }) => {
                    cx.drop(DropReason::Malformed);
                    at = end;
                    continue;
                }
            };
            // The first one is ours, whatever it says: whoever gave it to us will not find anybody else for it.
            if at > 0 && header.content_type == ContentType::Cid && self.is_of_another(&datagram[header.cid.clone()]) {
                return at;
            }
            let record_len = header.body.end - at;
            at = header.body.end;
            if header.epoch == 0 {
                self.plain_record(&datagram[header.body.clone()], &header, cx);
            } else {
                self.protected_record(datagram, &header, record_len, cx);
            }
        }
        if at < datagram.len() {
            cx.drop(DropReason::OutOfBounds);
        }
        datagram.len()
    }

    /// Whether a CID names another shard.
    fn is_of_another(&self, cid: &[u8]) -> bool {
        let slot = self.config.cid.and_then(|format| format.slot(cid));
        slot.is_some_and(|slot| slot % self.config.shards != self.config.shard)
    }

    /// When [`Server::handle_timeout`] wants to be called, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let idle = self.table.least_used().and_then(|index| self.table.peek_live(index)).map(|association| {
            Timestamp(u64::from(association.last_used) * 1000).plus(self.config.idle_lifetime).plus(IDLE_GRAIN)
        });
        let timer = self.timers.first().map(|(at, _)| *at);
        idle.into_iter().chain(timer).min()
    }

    /// Sends flights again, gives up handshakes, ends associations that are out of use. It does a bounded amount of work; if
    /// more is due, [`Server::poll_timeout`] lies in the past.
    pub fn handle_timeout(&mut self, now: Timestamp, out: &mut Outbox, events: &mut Vec<Event>) {
        self.sort();
        for _ in 0..TIMEOUTS {
            let Some(&(at, index)) = self.timers.first() else { break };
            if at > now {
                break;
            }
            self.timers.pop_first();
            self.handshake_timeout(index, now, out, events);
        }
        self.expire(TIMEOUTS, now, events);
        self.wipe();
    }

    /// Appends a datagram with `plaintext` for a peer to `out`.
    ///
    /// # Errors
    ///
    /// Nothing was appended; see [`SealError`].
    pub fn seal(&mut self, id: AssociationId, plaintext: &[u8], out: &mut Outbox) -> Result<(), SealError> {
        let index = self.index(id).ok_or(SealError::Unknown)?;
        let pad_to = self.config.pad_to;
        let association = self.table.live(index).ok_or(SealError::Unknown)?;
        association.seal(out.buffer(), ContentType::Application, plaintext, pad_to)?;
        out.finish(association.path.into());
        Ok(())
    }

    /// The association in a form to be stored, in which half a block or more of sequence numbers is unused. It changes
    /// nothing; [`Server::persisted`] does, once the bytes are durable. None without [`ServerConfig::persist`], for then any
    /// number may have been used.
    #[must_use]
    pub fn export(&self, id: AssociationId) -> Option<Export> {
        if !self.config.persist {
            return None;
        }
        let index = self.index(id)?;
        let association = self.table.peek_live(index)?;
        let tag = association.tag(id.slot(), self.table.generation(index));
        Some(association.export(tag, self.config.incarnation))
    }

    /// Says that an export of this association, with this [`Export::sequence_end`], is durable. A `Finished` that waited for that
    /// is sent.
    pub fn persisted(&mut self, id: AssociationId, sequence_end: u64, out: &mut Outbox) {
        let Some(index) = self.index(id) else { return };
        let Some(association) = self.table.live(index) else { return };
        association.reserve(sequence_end);
        if std::mem::take(&mut association.held) {
            self.send_finished(index, out);
        }
    }

    /// Takes an association that an earlier incarnation exported.
    ///
    /// # Errors
    ///
    /// It was not taken; see [`ImportError`].
    pub fn import(&mut self, bytes: &[u8]) -> Result<AssociationId, ImportError> {
        let config = &self.config;
        let (tag, association) =
            Association::import(bytes, config.incarnation, config.persist, config.address_changes)?;
        if tag.slot % config.shards != config.shard {
            return Err(ImportError::Shard);
        }
        let index = tag.slot / config.shards;
        if self.table.live_len() >= config.max_associations
            || index as usize >= config.max_associations + config.max_handshakes
        {
            return Err(ImportError::Full);
        }
        if !association.has_cid && self.table.live_at(association.path).is_some() {
            return Err(ImportError::Occupied);
        }
        if !self.table.insert(index, tag.generation, association) {
            return Err(ImportError::Occupied);
        }
        self.unsorted = true;
        Ok(AssociationId::new(tag))
    }

    /// Says that the log holds the record `sequence` of an association, received at `at`: it and all before it are taken as seen, and the
    /// association as used then.
    pub fn seen(&mut self, id: AssociationId, sequence: u64, at: Timestamp) {
        if let Some(association) = self.index(id).and_then(|index| self.table.live(index)) {
            association.protection.window.raise(sequence.min(crate::record::MAX_SEQUENCE));
            if association.last_used < at.seconds() {
                association.last_used = at.seconds();
                self.unsorted = true;
            }
        }
    }

    /// Ends an association, with a word to the peer.
    pub fn close(&mut self, id: AssociationId, out: &mut Outbox, events: &mut Vec<Event>) {
        let Some(index) = self.index(id) else { return };
        self.send_alert(index, AlertLevel::Warning, Alert::CLOSE_NOTIFY, out);
        self.end(index, CloseReason::Local, events);
        self.wipe();
    }

    /// Where a peer is.
    #[must_use]
    pub fn peer(&self, id: AssociationId) -> Option<Peer> {
        let association = self.table.peek_live(self.index(id)?)?;
        let (validated, asked) = (association.is_validated(), association.asked);
        Some(Peer { path: association.path.into(), validated, asked })
    }

    /// How long a text to a peer may be.
    #[must_use]
    pub fn room(&self, id: AssociationId) -> Option<Room> {
        Some(self.table.peek_live(self.index(id)?)?.room(self.config.pad_to))
    }

    /// Says that a peer was asked to show that it receives at `path`; [`Peer::asked`] remembers it until the peer moves.
    pub fn asked(&mut self, id: AssociationId, path: Path) {
        if let Some(association) = self.index(id).and_then(|index| self.table.live(index)) {
            association.asked |= association.path == path.into();
        }
    }

    /// Says that a peer was shown to receive at `path`, for instance because it returned an Echo option (RFC 9175) that was sent there.
    /// False if it has moved on.
    pub fn validated(&mut self, id: AssociationId, path: Path) -> bool {
        let association = self.index(id).and_then(|index| self.table.live(index));
        association.is_some_and(|association| association.validate(path.into()))
    }

    /// Says that a record is new for certain, for instance because it brought what no log knows: an association that was imported follows
    /// its peer from then on. One that was [doubted](Moved::Doubted) is given with its path and bytes: it is followed now.
    pub fn trust(&mut self, id: AssociationId, doubted: Option<(Path, usize)>) {
        let amplification = self.config.amplification;
        if let Some(association) = self.index(id).and_then(|index| self.table.live(index)) {
            association.trust(doubted.map(|(path, len)| (path.into(), len)), amplification);
        }
    }

    /// Appends a datagram for a peer whose record was [doubted](Moved::Doubted), to where that came from: something short that it has to
    /// return, which [`Server::validated`] then hears of.
    ///
    /// # Errors
    ///
    /// Nothing was appended; see [`SealError`].
    pub fn seal_elsewhere(
        &mut self,
        id: AssociationId,
        path: Path,
        plaintext: &[u8],
        out: &mut Outbox,
    ) -> Result<(), SealError> {
        let pad_to = self.config.pad_to;
        let association = self.index(id).and_then(|index| self.table.live(index)).ok_or(SealError::Unknown)?;
        association.seal_elsewhere(out.buffer(), plaintext, pad_to)?;
        out.finish(path);
        Ok(())
    }

    /// What is known of an association.
    #[must_use]
    pub fn about(&self, id: AssociationId) -> Option<About> {
        let association = self.table.peek_live(self.index(id)?)?;
        Some(about(id, association))
    }

    /// The associations used at or after `since`, the last used first: [`About::received`] of the others is what it was then. It costs what
    /// it finds; for the time after imports, it looks at all there are.
    pub fn used_since(&mut self, since: Timestamp) -> impl Iterator<Item = About> {
        self.sort();
        let (shards, shard) = (self.config.shards, self.config.shard);
        // The order is that coarse.
        let used = move |about: &About| about.last_used.plus(LAST_USED_GRAIN) >= since;
        self.table
            .iter_by_use()
            .map(move |(index, association, generation)| {
                let tag = association.tag(index * shards + shard, generation);
                about(AssociationId::new(tag), association)
            })
            .take_while(used)
    }

    /// The associations of one owner. It looks at all there are: meant for revocations, not for each record.
    pub fn owned_by(&self, owner: Owner) -> impl Iterator<Item = AssociationId> {
        let (shards, shard) = (self.config.shards, self.config.shard);
        self.table.iter_live().filter_map(move |(index, association, generation)| {
            let tag = association.tag(index * shards + shard, generation);
            (association.owner == owner).then(|| AssociationId::new(tag))
        })
    }

    /// A record in epoch 0, which nothing protects.
    fn plain_record(&mut self, body: &[u8], header: &RecordHeader, cx: &mut Context<'_, '_>) {
        if header.version != VERSION && header.version != VERSION_1_0 {
            return cx.drop(DropReason::Malformed);
        }
        match header.content_type {
            ContentType::Handshake => {
                let mut rest = body;
                while !rest.is_empty() {
                    let Ok((fragment, after)) = Fragment::parse(rest) else { return cx.drop(DropReason::Malformed) };
                    rest = after;
                    if fragment.kind == message::CLIENT_HELLO {
                        // Alone in its record: so what is answered is never longer than what came.
                        if fragment.bytes.len() + crate::handshake::MESSAGE_HEADER_LEN != body.len() {
                            return cx.drop(DropReason::UnverifiableHello);
                        }
                        return self.client_hello(&fragment, header, cx);
                    }
                    self.plain_message(&fragment, cx);
                }
            }
            ContentType::ChangeCipherSpec if body == [1] => {}
            ContentType::ChangeCipherSpec => cx.drop(DropReason::Malformed),
            ContentType::Alert => self.plain_alert(body, cx),
            ContentType::Application | ContentType::Cid => cx.drop(DropReason::Unexpected),
        }
    }

    /// A record in a later epoch: by its CID, or by its path.
    fn protected_record(
        &mut self,
        datagram: &mut [u8],
        header: &RecordHeader,
        record_len: usize,
        cx: &mut Context<'_, '_>,
    ) {
        let found = match header.content_type {
            ContentType::Cid => self.slot_of_cid(&datagram[header.cid.clone()]),
            ContentType::Handshake | ContentType::Alert => self.handshake_at(datagram, header, cx.path),
            _ => self.table.live_at(cx.path),
        };
        let Some(index) = found else { return cx.drop(DropReason::UnknownAssociation) };
        if self.table.pending(index).is_some() {
            return self.protected_message(index, datagram, header, cx);
        }
        let config = &self.config;
        let Some(association) = self.table.live(index) else { return cx.drop(DropReason::UnknownAssociation) };
        let created = Timestamp(u64::from(association.created) * 1000);
        if cx.now.since(created) > config.lifetime {
            self.end(index, CloseReason::Lifetime, cx.events);
            return cx.drop(DropReason::UnknownAssociation);
        }
        let opened = match association.protection.open(datagram, header) {
            Ok(opened) => opened,
            Err(OpenError::Replayed) => return cx.drop(DropReason::Replayed),
            Err(OpenError::Forged) => return cx.drop(DropReason::BadRecordMac),
            Err(OpenError::Foreign | OpenError::BadType) => return cx.drop(DropReason::Unexpected),
        };
        let moved = association.arrived(
            cx.path,
            record_len,
            opened.newest,
            cx.now,
            config.address_changes,
            config.amplification,
        );
        let owner = association.owner;
        let reserve = association.wants_reserve();
        self.table.used(index, cx.now.seconds());
        let id = self.id(index);
        if reserve {
            cx.events.push(Event::Reserve { id });
        }
        match opened.content_type {
            ContentType::Application => cx.events.push(Event::Application {
                id,
                owner,
                range: opened.text,
                sequence: header.sequence,
                newest: opened.newest,
                moved,
            }),
            ContentType::Alert => self.alert(index, &datagram[opened.text], cx),
            ContentType::Handshake => self.late_message(index, &datagram[opened.text], cx),
            ContentType::ChangeCipherSpec | ContentType::Cid => cx.drop(DropReason::Unexpected),
        }
    }

    /// Whose a protected handshake message or alert without a CID is: an association's if that can open it, for a hello that was held up in the
    /// network may have begun a handshake that the client knows nothing of; else that of the handshake under way.
    fn handshake_at(&mut self, datagram: &[u8], header: &RecordHeader, path: CompactPath) -> Option<u32> {
        let (pending, live) = (self.table.pending_at(path), self.table.live_at(path));
        let Some(handshake) = pending else { return live };
        let association = live.filter(|&index| {
            let association = self.table.peek_live(index);
            association.is_some_and(|association| association.protection.would_open(datagram, header))
        });
        association.or(Some(handshake))
    }

    /// A protected alert for an association.
    fn alert(&mut self, index: u32, body: &[u8], cx: &mut Context<'_, '_>) {
        match Alert::parse(body) {
            Some((_, Alert::CLOSE_NOTIFY)) => {
                // RFC 5246 §7.2.1: answered in kind.
                self.send_alert(index, AlertLevel::Warning, Alert::CLOSE_NOTIFY, cx.out);
                self.end(index, CloseReason::CloseNotify, cx.events);
            }
            Some((AlertLevel::Fatal, alert)) => self.end(index, CloseReason::Alert(alert), cx.events),
            Some((AlertLevel::Warning, _)) | None => cx.drop(DropReason::Unexpected),
        }
    }

    /// A handshake message after the handshake: our last flight was lost, or the peer wants to renegotiate.
    fn late_message(&mut self, index: u32, body: &[u8], cx: &mut Context<'_, '_>) {
        match Fragment::parse(body) {
            Ok((fragment, _)) if fragment.kind == message::FINISHED => {
                if self.table.live(index).is_some_and(|association| !association.held) {
                    self.send_finished(index, cx.out);
                }
                cx.drop(DropReason::Duplicate);
            }
            Ok((fragment, _)) if fragment.kind == message::CLIENT_HELLO => {
                self.send_alert(index, AlertLevel::Warning, Alert::NO_RENEGOTIATION, cx.out);
                cx.drop(DropReason::Unexpected);
            }
            Ok(_) => cx.drop(DropReason::Unexpected),
            Err(_) => cx.drop(DropReason::Malformed),
        }
    }

    /// What a CID of ours names: the slot it says, if what lies there has that CID.
    fn slot_of_cid(&self, cid: &[u8]) -> Option<u32> {
        let format = self.config.cid?;
        let slot = format.slot(cid)?;
        if slot % self.config.shards != self.config.shard {
            return None;
        }
        let index = slot / self.config.shards;
        let tag = self.table.tag(index, slot)?;
        (tag.write(format).as_bytes() == cid).then_some(index)
    }

    /// The slot of an association that still is the one named.
    fn index(&self, id: AssociationId) -> Option<u32> {
        if id.shard(self.config.shards) != self.config.shard {
            return None;
        }
        let index = id.slot() / self.config.shards;
        let association = self.table.peek_live(index)?;
        let tag = association.tag(id.slot(), self.table.generation(index));
        (AssociationId::new(tag) == id).then_some(index)
    }

    fn id(&self, index: u32) -> AssociationId {
        let slot = index * self.config.shards + self.config.shard;
        let random = self.table.peek_live(index).map_or_else(Default::default, |association| association.random);
        AssociationId::new(Tag { slot, generation: self.table.generation(index), random })
    }

    /// Sends our last flight. Without numbers to send it by, or to an address that had its share, it stays unsent: the peer
    /// will ask again.
    fn send_finished(&mut self, index: u32, out: &mut Outbox) {
        if let Some(association) = self.table.live(index)
            && association.send_finished(out.buffer()).is_ok()
        {
            out.finish(association.path.into());
        }
    }

    fn send_alert(&mut self, index: u32, level: AlertLevel, alert: Alert, out: &mut Outbox) {
        if let Some(association) = self.table.live(index)
            && association.seal(out.buffer(), ContentType::Alert, &[level as u8, alert.0], 0).is_ok()
        {
            out.finish(association.path.into());
        }
    }

    /// Removes an association; its keys are overwritten.
    fn end(&mut self, index: u32, reason: CloseReason, events: &mut Vec<Event>) {
        let id = self.id(index);
        if let Some(owner) = self.table.peek_live(index).map(|association| association.owner) {
            self.table.remove(index);
            self.stained = true;
            events.push(Event::Closed { id, owner, reason });
        }
    }

    /// Ends associations that are out of use, at most `most`.
    fn expire(&mut self, most: usize, now: Timestamp, events: &mut Vec<Event>) {
        for _ in 0..most {
            let Some(index) = self.table.least_used() else { return };
            let last_used = self.table.peek_live(index).map_or(0, |association| association.last_used);
            let end = Timestamp(u64::from(last_used) * 1000).plus(self.config.idle_lifetime).plus(IDLE_GRAIN);
            if now < end {
                return;
            }
            self.end(index, CloseReason::Idle, events);
        }
    }

    fn sort(&mut self) {
        if std::mem::take(&mut self.unsorted) {
            self.table.sort_by_use();
        }
    }
}

fn about(id: AssociationId, association: &Association) -> About {
    let at = |seconds: u32| Timestamp(u64::from(seconds) * 1000);
    About {
        id,
        owner: association.owner,
        created: at(association.created),
        last_used: at(association.last_used),
        received: association.protection.window.next(),
    }
}

/// The order of use is kept in steps of this time, so an association lives up to twice that much longer than idle, never
/// shorter.
const IDLE_GRAIN: std::time::Duration = std::time::Duration::from_secs(crate::table::USE_QUANTUM as u64);

#[cfg(test)]
mod tests;
