//! The worker's state and its passes: what is ready is read, what it brought is appended, answers go out.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags, EpollTimeout};
use prometheus::local::LocalHistogram;
use tidegate_mqtt::trie::Matches;
use tidegate_mqtt::{Limits, Reason, Violation};
use tidegate_record::{DeviceId, Seq};
use tidegate_state::registry::Account;
use tidegate_writer::{Batch, Refused};
use tracing::warn;

use super::behind::Behind;
use super::buffers::Buffers;
use super::clients::{Clients, Slot};
use super::commit::Commits;
use super::farewell::Farewells;
use super::handshakes::{HANDSHAKES, Handshakes};
use super::listeners::{Listener, Listeners};
use super::publish::Ack;
use super::replay::Replays;
use super::restore::Share;
use super::review::Review;
use super::sys::Sys;
use super::wills::Waiting;
use super::{ENDS, GONE, Now, PAUSED_TICK};
use crate::acl::View;
use crate::frontend::acks::AckQueue;
use crate::frontend::limiter::Limiter;
use crate::frontend::pause::Pause;
use crate::frontend::router::{Envelope, SessionId};
use crate::frontend::wake::Wake;
use crate::frontend::wheel::Wheel;
use crate::frontend::{Shared, limits};

/// Read at once from one connection: more than a window of ordinary readings, and little enough that a fast client does not
/// hold up the others.
const READ_BYTES: usize = 64 * 1024;

/// Bytes of records after which a pass appends what it has and goes on.
pub(super) const APPEND_BYTES: usize = 512 * 1024;

/// An account whose password was right, and its generation when that was found.
pub(super) type Proven = (Box<Account>, u64);

pub(super) struct Reactor {
    pub(super) index: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) limits: Limits,
    pub(super) clients: Clients,
    pub(super) batch: Batch,
    pub(super) acks: AckQueue<Ack>,
    /// What waits for the database.
    pub(super) commits: Commits,
    /// How long answers took, and how many were sent, since that was last told.
    pub(super) latencies: LocalHistogram,
    pub(super) answered: u64,
    /// When `$SYS` topics are due.
    pub(super) sys: Sys,
    /// Bytes read and sent since they were last counted.
    pub(super) read_bytes: u64,
    sent_bytes: u64,
    /// Wakes this worker.
    pub(super) wake: Arc<Wake>,
    pause: Pause,
    /// Scratch for matching.
    pub(super) matches: Matches<u64>,
    /// Answers of the client at hand, before they are put into its own buffer.
    pub(super) out: Vec<u8>,
    /// Subscribers that are waited for.
    pub(super) behind: Behind,
    pub(super) listeners: Listeners,
    pub(super) handshakes: Handshakes,
    /// Handshakes used up a pass: other tasks of the thread are to get a turn.
    pub(super) owes_a_turn: bool,
    pub(super) websocket_path: Arc<str>,
    pub(super) buffer: Box<[u8]>,
    /// What was in a transport's input for MQTT.
    pub(super) unwrapped: Vec<u8>,
    wheel: Wheel<SessionId>,
    due: Vec<SessionId>,
    /// Clients with something to send.
    dirty: Vec<Slot>,
    /// Clients that were not read dry, of which epoll tells no more.
    pub(super) unread: VecDeque<SessionId>,
    /// Clients whose peers have gone, in the order in which epoll told.
    pub(super) gone: VecDeque<SessionId>,
    /// Clients that are not read until the log takes readings again, and those that may be read on.
    pub(super) paused: Vec<SessionId>,
    pub(super) resumable: Vec<SessionId>,
    /// Closed connections that are still being told why.
    pub(super) farewells: Farewells,
    /// Retained messages that new subscriptions are still to be sent.
    pub(super) replays: Replays,
    /// Wills that the log did not take.
    pub(super) waiting_wills: Waiting,
    /// Clients to be cut off because they take no messages.
    pub(super) stuck: Vec<SessionId>,
    /// Bytes kept of connections that are not accepted yet: sum of their tails.
    pub(super) unconnected_bytes: usize,
    /// Bytes queued for clients that are away, and how many may be.
    pub(super) queued_bytes: usize,
    pub(super) most_queued: usize,
    /// Bytes that wait to be sent, of all clients, and how many may before slow clients lose messages.
    pub(super) unsent_bytes: usize,
    pub(super) most_unsent: usize,
    buffers: Buffers,
    envelopes: Vec<Envelope>,
    /// The log did not take the batch: it is kept, and nothing is read, until it does.
    held: bool,
    retry_at: Option<Instant>,
    /// Rules about who may publish and subscribe.
    pub(super) rules: View,
    /// How far subscriptions have been held against them.
    pub(super) review: Review,
    /// Bounds what addresses that fail to log in are told.
    pub(super) limiter: Limiter,
    /// The login whose CONNECT is being read again: who it is, if its password was right.
    pub(super) login: Option<(SessionId, Option<Proven>)>,
    /// Clients that do not go by the name of their device.
    pub(super) aliases: HashMap<DeviceId, Vec<SessionId>>,
    /// A CONNECT with a password was read since this was last cleared: what it was read from is to be wiped.
    pub(super) read_secret: bool,
    stopping: Stopping,
}

impl Reactor {
    pub(super) fn new(
        epoll: &Epoll,
        listeners: Vec<Listener>,
        index: usize,
        shared: Arc<Shared>,
    ) -> io::Result<Reactor> {
        let now = Now::read();
        let workers = shared.workers;
        let listeners = Listeners::new(listeners, &shared.config.mqtt, workers, now.instant);
        listeners.watch(epoll)?;
        let handshakes = Handshakes::new(shared.config.limits.handshakes, workers)?;
        handshakes.watch(epoll)?;
        let limits = limits(&shared.config);
        let mqtt = &shared.config.mqtt;
        let behind = Behind::new(mqtt.min_subscriber_rate, mqtt.max_outgoing_bytes, &limits);
        let Share { clients, wills, replays } = shared.restored(index).unwrap_or_else(|| Share::none(index));
        let mut reactor = Reactor {
            index,
            limits,
            behind,
            clients,
            batch: Batch::new(),
            acks: AckQueue::new(),
            commits: Commits::new(shared.state.writer.clone()),
            latencies: shared.metrics.mqtt.ack_seconds.local(),
            answered: 0,
            sys: Sys::default(),
            read_bytes: 0,
            sent_bytes: 0,
            wake: shared.router.inboxes.mqtt_wake(index),
            pause: Pause::default(),
            matches: Matches::new(),
            out: Vec::new(),
            listeners,
            handshakes,
            owes_a_turn: false,
            websocket_path: shared.config.mqtt_ws.path.as_str().into(),
            buffer: vec![0; READ_BYTES].into(),
            unwrapped: Vec::new(),
            wheel: Wheel::new(now.steady_millis() / 1000),
            due: Vec::new(),
            dirty: Vec::new(),
            unread: VecDeque::new(),
            gone: VecDeque::new(),
            paused: Vec::new(),
            resumable: Vec::new(),
            farewells: Farewells::default(),
            replays,
            waiting_wills: wills,
            stuck: Vec::new(),
            unconnected_bytes: 0,
            queued_bytes: 0,
            most_queued: shared.config.mqtt.max_queued_total_bytes / shared.workers,
            unsent_bytes: 0,
            most_unsent: shared.config.mqtt.max_outgoing_total_bytes / shared.workers,
            buffers: Buffers::default(),
            envelopes: Vec::new(),
            held: false,
            retry_at: None,
            rules: View::new(shared.access.rules.clone()),
            review: Review::new(),
            limiter: Limiter::new(shared.config.limits.unauthenticated_per_second, now.instant),
            login: None,
            aliases: HashMap::new(),
            read_secret: false,
            stopping: Stopping::No,
            shared,
        };
        // Those that were restored have wills and ends to come.
        for slot in reactor.clients.slots() {
            reactor.shared.metrics.mqtt_away.inc();
            reactor.account(slot);
            reactor.file(slot);
        }
        Ok(reactor)
    }

    /// Whether other tasks of the thread are to get a turn now.
    pub(super) fn take_turn_owed(&mut self) -> bool {
        std::mem::take(&mut self.owes_a_turn)
    }

    /// Whether sockets are to be read at all.
    pub(super) fn reads(&self) -> bool {
        !self.held
            && self.stopping == Stopping::No
            && !self.commits.is_refused()
            && !self.shared.router.inboxes.is_congested()
    }

    /// Whether something waits for the log to take readings again.
    fn is_held_up(&self) -> bool {
        self.held || !self.paused.is_empty() || !self.waiting_wills.is_empty() || self.commits.is_refused()
    }

    /// Whether there is more to do without anything coming in.
    pub(super) fn has_more(&self) -> bool {
        let unread = !self.unread.is_empty() || !self.gone.is_empty();
        self.replays.are_ready() || self.review.is_under_way() || unread && self.reads() && self.pause().is_none()
    }

    /// Asks to be woken when `durable` moves, if anything waits for it.
    pub(super) fn wait_for_commits(&self, wake: &Wake) {
        let answers = !self.acks.is_empty();
        let commits = self.commits.is_waiting();
        wake.set_waiting(answers || commits);
        if answers && !self.shared.router.inboxes.is_held() && self.acks.due(self.shared.durable.get())
            || commits && self.commits.is_due(self.shared.state.durable.get())
        {
            wake.now();
        }
    }

    /// Until when to leave the connections alone, if at all: see [`Pause`].
    pub(super) fn pause(&self) -> Option<Instant> {
        if self.acks.is_empty() { None } else { self.pause.until() }
    }

    pub(super) fn end_pause(&mut self) {
        self.pause.end();
    }

    /// Serves what is ready, `events.len()` connections at most; returns how many there were.
    pub(super) fn pass(&mut self, epoll: &Epoll, events: &mut [EpollEvent]) -> io::Result<usize> {
        let ready = match epoll.wait(events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            ready => ready?,
        };
        let now = Now::read();
        // Those that have waited are older than any that epoll tells of now.
        let mut ends = ENDS - self.read_gone(epoll, now);
        for event in &events[..ready] {
            if self.listeners.index(event.data()).is_some() {
                continue;
            }
            if event.data() == HANDSHAKES {
                self.shake_hands(epoll, now);
                continue;
            }
            let id = SessionId::from_bits(event.data());
            let Some((slot, _)) = id.and_then(|id| self.clients.by_id(id)) else { continue };
            let flags = event.events();
            if flags.intersects(EpollFlags::EPOLLOUT) {
                self.mark_dirty(slot);
            }
            if flags.intersects(GONE) {
                match ends.checked_sub(1) {
                    Some(left) => {
                        ends = left;
                        self.read_to_end(epoll, slot, now);
                    }
                    None => self.gone.extend(id),
                }
            } else if flags.intersects(EpollFlags::EPOLLIN) {
                self.read(epoll, slot, now);
            }
            if self.batch.bytes() >= APPEND_BYTES {
                self.append(epoll, now);
            }
        }
        // Last: a device that has said goodbye may be there again by now, and what it said before comes first.
        for event in &events[..ready] {
            if let Some(listener) = self.listeners.index(event.data()) {
                self.accept(epoll, listener, now);
            }
        }
        self.read_on(epoll, events.len() - ready, now);
        self.append(epoll, now);
        self.pause.set(ready < events.len());
        Ok(ready)
    }

    /// Puts `out` into the client's own buffer and empties it.
    pub(super) fn give(&mut self, slot: Slot, out: &mut Vec<u8>) {
        let Some(client) = self.clients.get_mut(slot) else { return out.clear() };
        if client.kept.is_some() {
            let changed = self.commits.collect(client);
            if !out.is_empty() && client.socket.is_some() {
                let gated = std::mem::take(&mut client.flags.changed) | changed;
                if gated || client.flags.gated {
                    client.flags.gated = true;
                    self.commits.hold_back(client.id, gated, out);
                    out.clear();
                }
            }
        }
        if !out.is_empty() {
            self.give_free(slot, out);
            out.clear();
        }
    }

    /// Puts `out` into the client's own buffer, whatever waits for the database.
    pub(super) fn give_free(&mut self, slot: Slot, out: &[u8]) {
        if let Some(client) = self.clients.get_mut(slot)
            && client.socket.is_some()
            && !out.is_empty()
        {
            self.buffers.append(&mut client.out, out);
            client.accounted += out.len();
            self.unsent_bytes += out.len();
            self.mark_dirty(slot);
        }
    }

    pub(super) fn mark_dirty(&mut self, slot: Slot) {
        if let Some(client) = self.clients.get_mut(slot)
            && !client.flags.dirty
        {
            client.flags.dirty = true;
            self.dirty.push(slot);
        }
    }

    /// Hands the batch to the log.
    pub(super) fn append(&mut self, epoll: &Epoll, now: Now) {
        if self.batch.is_empty() {
            self.acks.close(Seq::NONE, now.instant);
            return;
        }
        let records = self.batch.len() as u64;
        match self.shared.appender.append(&mut self.batch) {
            Ok(last) => {
                self.held = false;
                self.acks.close(last, now.instant);
                self.shared.metrics.mqtt.ingested.inc_by(records);
            }
            // It is written in a moment: nothing is read until then.
            Err(Refused::Full) => self.held = true,
            Err(refused) => {
                self.held = false;
                self.batch.clear();
                self.turn_back(epoll, refused, now);
            }
        }
    }

    /// When to try again what the log did not take, if there is anything, however much else goes on.
    pub(super) fn retry_at(&mut self) -> Option<Instant> {
        self.retry_at =
            if self.is_held_up() { self.retry_at.or_else(|| Some(Instant::now() + PAUSED_TICK)) } else { None };
        self.retry_at
    }

    /// Tries again what the log did not take, and reads on from those that were paused for it.
    pub(super) fn retry(&mut self, epoll: &Epoll, now: Now) {
        self.retry_at = None;
        if self.held {
            self.append(epoll, now);
        }
        if !self.held && !matches!(self.shared.appender.pressure(), tidegate_writer::Pressure::Refuse(_)) {
            for id in std::mem::take(&mut self.paused) {
                let Some((slot, client)) = self.clients.by_id(id) else { continue };
                if std::mem::take(&mut client.flags.paused) {
                    self.shared.metrics.mqtt_paused.dec();
                }
                self.resume(epoll, slot, now);
            }
            self.publish_waiting(now);
            self.append(epoll, now);
        }
    }

    /// Sends every acknowledgement that is due.
    pub(super) fn release(&mut self, epoll: &Epoll, now: Now) {
        if self.acks.is_empty() || self.shared.router.inboxes.is_held() || self.shared.has_failed() {
            return;
        }
        let durable = self.shared.durable.get();
        if !self.acks.due(durable) {
            return;
        }
        // What is released may fill a subscriber's queue so far that the rest is to wait for it.
        while !self.shared.router.inboxes.is_held()
            && let Some((ack, received)) = self.acks.release_one(durable)
        {
            self.acknowledge(ack, received, now);
        }
        self.resume_all(epoll, now);
    }

    /// Tells what was answered, and reads on from those that waited for it.
    pub(super) fn resume_all(&mut self, epoll: &Epoll, now: Now) {
        self.latencies.flush();
        self.shared.metrics.mqtt.acks.inc_by(std::mem::take(&mut self.answered));
        for id in std::mem::take(&mut self.resumable) {
            if let Some((slot, _)) = self.clients.by_id(id) {
                self.resume(epoll, slot, now);
            }
        }
        self.append(epoll, now);
    }

    /// Takes what other workers sent.
    pub(super) fn inbox(&mut self, epoll: &Epoll, now: Now) {
        let mut envelopes = std::mem::take(&mut self.envelopes);
        self.shared.router.inboxes.take(self.index, &mut envelopes);
        for envelope in envelopes.drain(..) {
            match envelope {
                Envelope::Message { message, targets, note, receipt } => {
                    self.deliver_all(&message, &targets, note, now);
                    if let Some(receipt) = receipt {
                        self.commits.give_receipt(receipt);
                    }
                }
                Envelope::Revoked(devices) => self.revoked(epoll, &devices, now),
                Envelope::Login { to, account, revision } => self.verified(epoll, to, account, revision, now),
                Envelope::Connection { arrival, bytes } => self.adopt(epoll, arrival, bytes, now),
            }
        }
        self.envelopes = envelopes;
        self.append(epoll, now);
    }

    /// Sends what waits to be sent.
    pub(super) fn flush(&mut self, epoll: &Epoll, now: Now) {
        self.replay(now);
        // Closing may publish wills to clients of this worker, which are dirty then. One that is stuck has nothing new to be sent in 3.1.1.
        while !self.dirty.is_empty() || !self.stuck.is_empty() {
            let mut dirty = std::mem::take(&mut self.dirty);
            for slot in dirty.drain(..) {
                self.flush_client(epoll, slot, now);
            }
            for id in std::mem::take(&mut self.stuck) {
                if let Some((slot, _)) = self.clients.by_id(id) {
                    self.close(epoll, slot, "slow", now);
                }
            }
            if self.dirty.is_empty() {
                // Its memory is used again.
                self.dirty = dirty;
                break;
            }
        }
        self.append(epoll, now);
    }

    pub(super) fn flush_client(&mut self, epoll: &Epoll, slot: Slot, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.flags.dirty = false;
        let written = client.write();
        let unsent = client.unsent();
        let before = std::mem::replace(&mut client.accounted, unsent);
        self.sent_bytes += before.saturating_sub(unsent) as u64;
        self.unsent_bytes = self.unsent_bytes + unsent - before;
        if client.flags.awaited {
            let id = client.id;
            self.taken(id, before.saturating_sub(unsent));
        }
        let Some(client) = self.clients.get_mut(slot) else { return };
        match written {
            Ok(true) => {
                let buffer = std::mem::take(&mut client.out);
                let (id, was_deaf) = (client.id, client.flags.deaf);
                self.buffers.keep(buffer);
                self.replays.wake(id);
                if std::mem::take(&mut client.flags.congested) {
                    // It has caught up: what was queued for it follows.
                    let mut out = std::mem::take(&mut self.out);
                    client.connection.set_congested(&self.limits, false, now.steady_millis(), &mut out);
                    self.give(slot, &mut out);
                    self.out = out;
                }
                if was_deaf {
                    self.resume(epoll, slot, now);
                } else {
                    self.listen(epoll, slot);
                }
            }
            Ok(false) => {
                let was_deaf = client.flags.deaf;
                self.buffers.reclaim(&mut client.out, &mut client.sent);
                self.listen(epoll, slot);
                if was_deaf && self.clients.get(slot).is_some_and(|client| !client.flags.deaf) {
                    // It was not heard because too much was unsent.
                    self.resume(epoll, slot, now);
                }
            }
            Err(_) => self.close(epoll, slot, "reset", now),
        }
    }

    /// Tells epoll what the client is waiting for, if that has changed.
    pub(super) fn listen(&mut self, epoll: &Epoll, slot: Slot) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let full = client.unsent() >= self.shared.config.mqtt.max_outgoing_bytes;
        let deaf = client.connection.is_paused() || client.flags.paused || client.flags.verifying || full;
        // Of one that is dirty it is not known whether the kernel takes it all at once, as it mostly does.
        let wants_write = client.unsent() > 0 && (client.flags.wants_write || !client.flags.dirty);
        if (deaf, wants_write) == (client.flags.deaf, client.flags.wants_write) {
            return;
        }
        (client.flags.deaf, client.flags.wants_write) = (deaf, wants_write);
        let set = if client.flags.shaking_hands { self.handshakes.epoll() } else { epoll };
        if let Some(Err(error)) = client.fd().map(|fd| set.modify(fd, &mut client.interest())) {
            warn!(%error, "a connection's interest could not be changed");
        }
    }

    /// Files the client in the wheel if it has a deadline that it is not filed for, or for a later one.
    pub(super) fn file(&mut self, slot: Slot) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(deadline) = client.deadline(&self.limits) else { return };
        let second = deadline.div_ceil(1000);
        if client.filed != 0 && u64::from(client.filed) <= second {
            return;
        }
        client.filed = u32::try_from(self.wheel.file(second, client.id)).unwrap_or(u32::MAX);
    }

    /// Looks at the deadlines that have passed.
    pub(super) fn tick(&mut self, epoll: &Epoll, now: Now) {
        let millis = now.steady_millis();
        self.count_handshakes();
        self.begin_review();
        let mut due = std::mem::take(&mut self.due);
        self.wheel.advance(millis / 1000, &mut due);
        for id in due.drain(..) {
            let Some((slot, client)) = self.clients.by_id(id) else { continue };
            if client.filed == 0 || u64::from(client.filed) > millis / 1000 {
                // Filed again for another second since.
                continue;
            }
            client.filed = 0;
            if client.parked.is_some() {
                self.away(slot, now);
            } else {
                let mut out = std::mem::take(&mut self.out);
                let expired = client.connection.expire(&self.limits, millis, &mut out);
                self.give(slot, &mut out);
                self.out = out;
                if let Some(violation) = expired {
                    let reason = if violation == Violation::KeepAlive { "keep_alive" } else { "connect_timeout" };
                    self.close(epoll, slot, reason, now);
                }
            }
            self.file(slot);
        }
        self.due = due;
        self.shared.metrics.mqtt_bytes_received.inc_by(std::mem::take(&mut self.read_bytes));
        self.shared.metrics.mqtt_bytes_sent.inc_by(std::mem::take(&mut self.sent_bytes));
        self.publish_sys(now);
        if !self.farewells.is_empty() {
            self.farewells.tick(&mut self.buffer, millis);
        }
        self.append(epoll, now);
    }

    /// Takes nothing more in, answers what was taken in, ends all connections, and publishes the wills that come of it; true when that is
    /// done.
    pub(super) fn stop(&mut self, epoll: &Epoll, now: Now) -> bool {
        if self.stopping == Stopping::No {
            self.stopping = Stopping::Answering;
            self.listeners.close();
            self.append(epoll, now);
        }
        if self.stopping == Stopping::Answering && self.acks.is_empty() && !self.commits.has_staged() {
            self.stopping = Stopping::Answered;
            self.shared.front_drained();
        }
        // What the other fronts have acknowledged may be for subscribers here: they go last, together.
        if self.stopping == Stopping::Answered && self.shared.all_drained() {
            self.stopping = Stopping::Ending;
            self.inbox(epoll, now);
            self.flush(epoll, now);
            for slot in self.clients.slots() {
                let Some(client) = self.clients.get_mut(slot).filter(|client| client.socket.is_some()) else {
                    continue;
                };
                let mut out = std::mem::take(&mut self.out);
                client.connection.disconnect(Reason::ServerShuttingDown, &mut out);
                self.give(slot, &mut out);
                self.out = out;
                // What the kernel does not take now is lost with the connection: no acknowledgement is among it that was not
                // offered to the kernel before.
                self.close(epoll, slot, "shutdown", now);
                if self.batch.bytes() >= APPEND_BYTES {
                    self.append(epoll, now);
                }
            }
            self.append(epoll, now);
            self.unpublished_wills();
        }
        // Their wills may be for sessions elsewhere, as theirs may be for sessions here.
        if self.stopping == Stopping::Ending && self.acks.is_empty() && !self.held {
            self.stopping = Stopping::Ended;
            self.shared.mqtt_ended();
        }
        if self.stopping == Stopping::Ended && self.shared.all_mqtt_ended() {
            self.inbox(epoll, now);
            self.submit();
            return !self.commits.is_waiting();
        }
        false
    }

    /// Says what becomes of wills that the log has not taken by now. Those that have a row are the next start's.
    fn unpublished_wills(&mut self) {
        let left = self.waiting_wills.without_row();
        if left > 0 {
            self.shared.metrics.mqtt_wills.with_label_values(&["dropped"]).inc_by(left as u64);
            warn!(left, "wills are not published: the log does not take them");
        }
    }
}

/// How far a worker is with its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    No,
    /// What was taken in is being answered.
    Answering,
    /// It is answered here, and maybe not elsewhere.
    Answered,
    /// Connections are closed, and wills are on their way.
    Ending,
    /// They are published here, and maybe not elsewhere.
    Ended,
}
