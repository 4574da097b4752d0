//! How a client comes and goes: CONNECT, takeover, moving to the session's worker, the end of a connection and of a session.

use std::hash::{BuildHasher, RandomState};

use nix::sys::epoll::Epoll;
use tidegate_mqtt::{Accept, Connect, Ended, Reason, Session};
use tidegate_net::probe_idle;
use tidegate_record::DeviceId;
use tidegate_session::TableFull;
use tracing::debug;

use super::Now;
use super::access::Ownership;
use super::clients::{Parked, Slot};
use super::kept::{self, Kept, Row};
use super::reactor::Reactor;
use crate::frontend::access::Stranger;
use crate::frontend::router::{Arrival, Envelope, SessionId};

/// Seconds in a session expiry that never comes (MQTT 5.0 §3.1.2.11.2).
const NEVER: u32 = u32::MAX;

impl Reactor {
    /// Decides a CONNECT. `input` is what was read and not acted on, the CONNECT first. Returns where the client is now, if it
    /// is to be read on.
    pub(super) fn connect(
        &mut self,
        epoll: &Epoll,
        slot: Slot,
        connect: &Connect<'_>,
        input: &[u8],
        now: Now,
    ) -> Option<Slot> {
        self.read_secret |= connect.password.is_some();
        if self.clients.get(slot).is_some_and(|client| client.flags.turned_away) {
            self.shared.metrics.mqtt.refused("connect_rate");
            self.refuse(epoll, slot, Reason::ConnectionRateExceeded, now);
            return None;
        }
        if !self.identify(epoll, slot, connect, input, now) {
            return None;
        }
        let assigned = connect.client_id.is_empty().then(assigned_id);
        if !self.clients.get(slot)?.connection.can_be_accepted(&self.limits, assigned.as_deref()) {
            self.shared.metrics.mqtt.refused("maximum_packet");
            self.refuse(epoll, slot, Reason::PacketTooLarge, now);
            return None;
        }
        let Ok(device) = DeviceId::new(assigned.as_deref().unwrap_or(connect.client_id)) else {
            self.refuse(epoll, slot, Reason::ClientIdNotValid, now);
            return None;
        };
        let id = self.clients.get(slot)?.id;
        // Whoever has the name on this worker is cut off first; if its session ends with that, the name is free.
        let mut claimed = self.claim(&device, id, now);
        if let Ok(Err(other)) = claimed
            && other.worker() == self.index
        {
            let ownership = self.ownership(slot, other);
            if ownership == Ownership::Another {
                self.keep_out(epoll, slot, Stranger::ClientId, now);
                return None;
            }
            self.cut_off(epoll, other, now);
            if let Some((home, client)) = self.clients.by_id(other)
                && let Some(parked) = &mut client.parked
            {
                if ownership == Ownership::Unknown {
                    parked.expires = Some(0);
                }
                // A session whose time is over may not have been looked at yet.
                self.away(home, now);
            }
            claimed = self.claim(&device, id, now);
        }
        match claimed {
            Err(_) => {
                self.refuse(epoll, slot, Reason::ServerBusy, now);
                None
            }
            Ok(Ok(())) => {
                self.accept_client(slot, device, connect, assigned.as_deref(), None, now);
                Some(slot)
            }
            Ok(Err(home)) if home.worker() == self.index => {
                let parked = self.clients.by_id(home).and_then(|(_, client)| client.parked.as_ref());
                if parked.and_then(|parked| parked.session.as_ref()).is_some_and(|session| session.unstored() > 0) {
                    // Until its publishes are stored, a retransmission could not be told from a new message.
                    self.defer(slot, input);
                    return None;
                }
                let slot = self.move_in(epoll, slot, home)?;
                let resumed = self.unpark(slot, connect.clean_start, now);
                self.withdraw(slot);
                self.accept_client(slot, device, connect, assigned.as_deref(), resumed, now);
                Some(slot)
            }
            Ok(Err(home)) => {
                self.hand_over(epoll, slot, home.worker(), input);
                None
            }
        }
    }

    /// Takes the name for the session `id`, or tells which session has it.
    fn claim(&self, device: &DeviceId, id: SessionId, now: Now) -> Result<Result<(), SessionId>, TableFull> {
        self.shared.table.with_id(device.clone(), now.seconds(), |_, entry| match entry.mqtt {
            Some(other) => Err(other),
            None => {
                entry.mqtt = Some(id);
                Ok(())
            }
        })
    }

    /// Keeps a CONNECT for later: it is read again when acknowledgements have been released.
    fn defer(&mut self, slot: Slot, input: &[u8]) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        client.connection = client.connection.before_connect();
        self.resumable.push(client.id);
        self.keep(slot, input.to_vec());
        self.file(slot);
    }

    pub(super) fn refuse(&mut self, epoll: &Epoll, slot: Slot, reason: Reason, now: Now) {
        self.shared.metrics.mqtt_connects.with_label_values(&["refused"]).inc();
        let mut out = std::mem::take(&mut self.out);
        if let Some(client) = self.clients.get_mut(slot) {
            client.connection.refuse(reason, &mut out);
        }
        self.give(slot, &mut out);
        self.out = out;
        self.close(epoll, slot, "refused", now);
    }

    fn accept_client(
        &mut self,
        slot: Slot,
        device: DeviceId,
        connect: &Connect<'_>,
        assigned: Option<&str>,
        resumed: Option<Resumed>,
        now: Now,
    ) {
        self.shared.metrics.mqtt_connects.with_label_values(&["accepted"]).inc();
        let mut out = std::mem::take(&mut self.out);
        if let Some(client) = self.clients.get_mut(slot) {
            let expiry = client.connection.session_expiry();
            if client.kept.is_some() || expiry > 0 {
                // The CONNACK of a session that is new says that there is one now: after a crash what is sent next would be taken for
                // another's.
                client.flags.changed |= client.kept.is_none();
                let kept = client.kept.get_or_insert_with(|| Box::new(Kept::new()));
                kept.owner = client.principal.as_ref().map(|principal| principal.device.clone());
                client.connection.keep_journal();
                let rows = &mut self.commits.rows;
                Row { incarnation: kept.incarnation, expiry, ended: None, owner: kept.owner.clone() }
                    .put(rows, &device);
                kept::put_will(rows, &device, client.connection.will().map(|will| (will, None)));
            }
            client.device = Some(device);
            debug_assert!(resumed.is_none() || !connect.clean_start);
            let accept = Accept {
                session_present: resumed.is_some(),
                session: resumed.and_then(|Resumed(session)| session),
                assigned_client_id: assigned,
                response_information: None,
            };
            client.connection.accept(&self.limits, accept, now.steady_millis(), &mut out);
            if client.connection.keep_alive() == 0
                && let Some(socket) = &client.socket
                && let Err(error) = probe_idle(socket, client.id.bits())
            {
                debug!(%error, "the kernel does not watch over an idle connection");
            }
        }
        self.give(slot, &mut out);
        self.out = out;
        self.note_alias(slot);
        self.file(slot);
    }

    /// Ends the connection that the session `id` has, if it has one: another connection took its name ([MQTT-3.1.4-3]).
    fn cut_off(&mut self, epoll: &Epoll, id: SessionId, now: Now) {
        let Some((slot, client)) = self.clients.by_id(id) else { return };
        if client.socket.is_none() {
            return;
        }
        let mut out = std::mem::take(&mut self.out);
        client.connection.disconnect(Reason::SessionTakenOver, &mut out);
        self.give(slot, &mut out);
        self.out = out;
        // What cannot be sent at once is lost with the connection.
        self.close(epoll, slot, "taken_over", now);
    }

    /// Takes what waited for the client in `slot`, which is back: `None` if a clean start drops it.
    fn unpark(&mut self, slot: Slot, clean_start: bool, now: Now) -> Option<Resumed> {
        let client = self.clients.get_mut(slot)?;
        let (id, from) = (client.id, client.subscriber());
        let parked = *client.parked.take()?;
        self.queued_bytes -= parked.accounted;
        self.shared.metrics.mqtt_away.dec();
        if !clean_start {
            if client.flags.shares {
                self.shared.router.set_present(from, true);
            }
            self.replays.wake(id);
            // It is back before its will was due ([MQTT-3.1.3-9]).
            return Some(Resumed(parked.session));
        }
        let (author, kept) = (client.author(), client.incarnation());
        self.drop_subscriptions(id);
        self.leave(slot, parked.session, now);
        // The session ends here, and the will is due with it.
        if let Some((will, _)) = parked.will {
            self.publish_will(author, from, *will, kept, now);
        }
        None
    }

    /// Moves the connection in `slot` into the slot of its session `id`; returns that slot.
    fn move_in(&mut self, epoll: &Epoll, slot: Slot, id: SessionId) -> Option<Slot> {
        let arrived = self.clients.remove(slot)?;
        let socket = arrived.socket?;
        let Some((home, client)) = self.clients.by_id(id) else {
            debug_assert!(false, "the session table names a session that is not there");
            self.count_connections(arrived.kind, -1);
            return None;
        };
        client.transport = arrived.transport;
        client.kind = arrived.kind;
        client.principal = arrived.principal;
        client.connection = arrived.connection;
        client.connection_number = arrived.connection_number;
        client.out = arrived.out;
        client.sent = arrived.sent;
        client.accounted = arrived.accounted;
        client.filed = 0;
        client.flags.deaf = false;
        client.flags.wants_write = false;
        client.flags.congested = false;
        if std::mem::take(&mut client.flags.paused) {
            self.shared.metrics.mqtt_paused.dec();
        }
        // Epoll is to know it by the session's name from now on.
        if epoll.modify(&socket, &mut client.interest()).is_err() {
            self.count_connections(arrived.kind, -1);
            return None;
        }
        client.socket = Some(socket);
        Some(home)
    }

    /// Gives the connection in `slot` to the worker that has its session.
    fn hand_over(&mut self, epoll: &Epoll, slot: Slot, worker: usize, input: &[u8]) {
        let Some(client) = self.clients.remove(slot) else { return };
        self.unsent_bytes -= client.accounted;
        let Some(socket) = client.socket else { return };
        self.count_connections(client.kind, -1);
        // Deleted before it is added there: a ready socket in two sets would be read by two workers.
        if epoll.delete(&socket).is_ok() {
            let arrival = Arrival {
                socket,
                transport: client.transport,
                kind: client.kind,
                principal: client.principal,
                turned_away: client.flags.turned_away,
            };
            self.shared.router.inboxes.send(worker, Envelope::Connection { arrival, bytes: input.to_vec() });
        }
    }

    /// Closes the connection. Its session stays or goes as its expiry says, and its socket lingers until the peer has been told what
    /// there is to tell.
    pub(super) fn close(&mut self, epoll: &Epoll, slot: Slot, reason: &'static str, now: Now) {
        self.abandon_handshake(slot, reason);
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(socket) = client.socket.take() else { return };
        let (out, sent) = client.take_unsent();
        // One that lingers is in no epoll set; closing takes it out as well. Who has gone, or has said that it goes and has all that it
        // was sent, is told nothing.
        let lingers = match reason {
            "peer" | "reset" => false,
            "disconnect" => sent < out.len(),
            _ => true,
        };
        if lingers {
            let _ = epoll.delete(&socket);
        }
        self.unsent_bytes -= std::mem::take(&mut client.accounted);
        let unconnected = std::mem::take(&mut client.tail).len();
        let metrics = &self.shared.metrics;
        metrics.mqtt_connections.dec();
        metrics.transports.connections(client.kind).dec();
        metrics.mqtt_closed.with_label_values(&[reason]).inc();
        client.flags.congested = false;
        client.flags.awaited = false;
        if std::mem::take(&mut client.flags.gated) {
            self.commits.drop_gate(client.id);
        }
        if std::mem::take(&mut client.flags.paused) {
            metrics.mqtt_paused.dec();
        }
        if lingers {
            self.farewells.add(socket, out, sent, now.steady_millis());
        }
        let mut ended = client.connection.end();
        if reason == "slow" && ended.session_expiry == 0 {
            // What it did not take would push the next member of its shared subscriptions over as well.
            ended.session = None;
        }
        if client.device.is_none() {
            self.unconnected_bytes -= unconnected;
            self.clients.remove(slot);
            return;
        }
        self.park(slot, ended, now);
    }

    /// Keeps what outlives a connection, or ends the session.
    fn park(&mut self, slot: Slot, ended: Ended, now: Now) {
        let millis = now.steady_millis();
        let expiry = ended.session_expiry;
        let mut will = ended.will;
        let mut session = ended.session;
        let Some(client) = self.clients.get(slot) else { return };
        let from = client.subscriber();
        if let Some(due) = will.take_if(|will| will.delay == 0 || expiry == 0) {
            self.publish_will(client.author(), from, *due, client.incarnation(), now);
        }
        if expiry == 0 {
            return self.end_session(slot, session, now);
        }
        let Some(client) = self.clients.get_mut(slot) else { return };
        if client.flags.shares {
            self.shared.router.set_present(from, false);
        }
        let after = |seconds: u32| millis + u64::from(seconds) * 1000;
        let will = will.map(|will| {
            let at = after(will.delay);
            (will, at)
        });
        if let (Some(kept), Some(device)) = (&client.kept, &client.device) {
            if let Some(session) = &mut session {
                self.commits.collect_from(kept.incarnation, session);
            }
            let rows = &mut self.commits.rows;
            let owner = kept.owner.clone();
            Row { incarnation: kept.incarnation, expiry, ended: Some(millis), owner }.put(rows, device);
            kept::put_will(rows, device, will.as_ref().map(|(will, at)| (&**will, Some(*at))));
        }
        client.parked = Some(Box::new(Parked {
            session: session.filter(|session| !session.is_empty()),
            expires: (expiry != NEVER).then(|| after(expiry)),
            will,
            accounted: 0,
        }));
        self.shared.metrics.mqtt_away.inc();
        self.account(slot);
        self.file(slot);
    }

    /// A deadline of a client that is away has passed.
    pub(super) fn away(&mut self, slot: Slot, now: Now) {
        let millis = now.steady_millis();
        let Some(client) = self.clients.get_mut(slot) else { return };
        let (author, from, kept) = (client.author(), client.subscriber(), client.incarnation());
        let Some(parked) = &mut client.parked else { return };
        let over = parked.expires.is_some_and(|at| at <= millis);
        let left = parked.session.take_if(|_| over);
        // The session's end is the will's, if it comes first (MQTT 5.0 §3.1.3.2.2).
        if let Some((will, _)) = parked.will.take_if(|(_, at)| over || *at <= millis) {
            if let Some(device) = &author.name {
                kept::put_will(&mut self.commits.rows, device, None);
            }
            self.publish_will(author, from, *will, kept, now);
        }
        if over {
            return self.end_session(slot, left, now);
        }
        self.expire_queue(slot, now);
    }

    /// Forgets the client in `slot`, whose session is left with what is in `session`.
    fn end_session(&mut self, slot: Slot, session: Option<Box<Session>>, now: Now) {
        let Some(id) = self.clients.get(slot).map(|client| client.id) else { return };
        self.drop_subscriptions(id);
        self.leave(slot, session, now);
        let Some(client) = self.clients.remove(slot) else { return };
        if let Some(parked) = &client.parked {
            self.shared.metrics.mqtt_away.dec();
            self.shared.metrics.mqtt_expired.inc();
            self.queued_bytes -= parked.accounted;
        }
        if let Some(device) = client.device {
            self.shared.table.peek(device.as_str(), |entry| {
                entry.mqtt.take_if(|mqtt| *mqtt == id);
            });
        }
    }

    /// Gives what the session of the client in `slot` is left with to others, and takes the session out of the database, if it is there: first
    /// its name, then, when the others have it, what it left.
    fn leave(&mut self, slot: Slot, session: Option<Box<Session>>, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let kept = client.kept.take();
        let device = client.device.clone();
        let receipt = self.pass_on(session, kept.as_ref().map(|kept| kept.incarnation), now);
        if let (Some(kept), Some(device)) = (kept, device) {
            let rows = &mut self.commits.rows;
            kept::remove_session(rows, &device, kept.incarnation);
            kept::put_will(rows, &device, None);
            match receipt {
                None => kept::remove_state(rows, kept.incarnation),
                Some(receipt) => self.commits.remove_later(receipt, kept.incarnation),
            }
        }
    }

    fn drop_subscriptions(&mut self, id: SessionId) {
        self.replays.forget_all(id);
        let Some((_, client)) = self.clients.by_id(id) else { return };
        client.flags.shares = false;
        let subscriber = client.subscriber();
        if std::mem::take(&mut client.subscriptions) > 0 {
            self.shared.router.unsubscribe_all(subscriber);
            self.shared.metrics.mqtt_subscriptions.set(self.shared.router.subscriptions() as i64);
        }
    }
}

/// A session that goes on, with its flows and queued messages if there are any.
struct Resumed(Option<Box<Session>>);

/// A name for a client that gave none (MQTT 5.0 §3.1.3.1): not to be guessed, so that nobody takes it over.
fn assigned_id() -> String {
    let random = RandomState::new();
    format!("auto-{:016x}{:016x}", random.hash_one(0), random.hash_one(1))
}
