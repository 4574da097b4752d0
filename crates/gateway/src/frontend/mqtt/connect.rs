//! How a client comes and goes: CONNECT, takeover, moving to the session's worker, the end of a connection and of a session.

use std::hash::{BuildHasher, RandomState};

use nix::sys::epoll::Epoll;
use tidegate_mqtt::{Accept, Connect, Ended, Reason, Session};
use tidegate_record::DeviceId;

use super::Now;
use super::clients::{Parked, Slot};
use super::reactor::Reactor;
use crate::frontend::router::{Envelope, SessionId};

/// Seconds in a session expiry that never comes (MQTT 5.0 §3.1.2.11.2).
const NEVER: u32 = u32::MAX;

impl Reactor {
    /// Decides a CONNECT. `input` is what was read and not acted on, the CONNECT first.
    pub(super) fn connect(&mut self, epoll: &Epoll, slot: Slot, connect: &Connect<'_>, input: &[u8], now: Now) {
        self.read_secret |= connect.password.is_some();
        let assigned = connect.client_id.is_empty().then(assigned_id);
        let Ok(device) = DeviceId::new(assigned.as_deref().unwrap_or(connect.client_id)) else {
            return self.refuse(epoll, slot, Reason::ClientIdNotValid, now);
        };
        let Some(id) = self.clients.get(slot).map(|client| client.id) else { return };
        // Claims the name for this client, unless its session is elsewhere.
        let claimed = self.shared.table.with_id(device.clone(), now.seconds(), |_, entry| match entry.mqtt {
            Some(other) => Err(other),
            None => {
                entry.mqtt = Some(id);
                Ok(())
            }
        });
        match claimed {
            Err(_) => self.refuse(epoll, slot, Reason::ServerBusy, now),
            Ok(Ok(())) => self.accept_client(slot, device, connect, assigned.as_deref(), Resumed::default(), now),
            Ok(Err(other)) if other.worker() == self.index => {
                let resumed = self.take_over(epoll, other, &device, connect.clean_start, now);
                let Some(slot) = self.move_in(epoll, slot, other) else { return };
                self.accept_client(slot, device, connect, assigned.as_deref(), resumed, now);
            }
            Ok(Err(other)) => self.hand_over(epoll, slot, other.worker(), input),
        }
    }

    fn refuse(&mut self, epoll: &Epoll, slot: Slot, reason: Reason, now: Now) {
        self.shared.metrics.mqtt_connects.with_label_values(&["refused"]).inc();
        let mut out = std::mem::take(&mut self.out);
        if let Some(client) = self.clients.get_mut(slot) {
            client.connection.refuse(reason, &mut out);
        }
        self.give(slot, &mut out);
        self.out = out;
        self.close_after(epoll, slot, "refused", now);
    }

    fn accept_client(
        &mut self,
        slot: Slot,
        device: DeviceId,
        connect: &Connect<'_>,
        assigned: Option<&str>,
        resumed: Resumed,
        now: Now,
    ) {
        self.shared.metrics.mqtt_connects.with_label_values(&["accepted"]).inc();
        let mut out = std::mem::take(&mut self.out);
        if let Some(client) = self.clients.get_mut(slot) {
            client.device = Some(device);
            let accept = Accept {
                session_present: resumed.present && !connect.clean_start,
                session: resumed.session,
                assigned_client_id: assigned,
                response_information: None,
            };
            client.connection.accept(&self.limits, accept, now.steady_millis(), &mut out);
        }
        self.give(slot, &mut out);
        self.out = out;
        self.file(slot);
    }

    /// Ends what connection the session `id` has, and takes its state out; what a clean start drops is dropped.
    fn take_over(&mut self, epoll: &Epoll, id: SessionId, device: &DeviceId, clean_start: bool, now: Now) -> Resumed {
        let Some((slot, client)) = self.clients.by_id(id) else { return Resumed::default() };
        debug_assert_eq!(client.device.as_ref(), Some(device));
        let mut resumed = Resumed { present: true, session: None };
        if let Some(parked) = client.parked.take() {
            resumed.session = parked.session;
            // The client is back before its will was due ([MQTT-3.1.3-9]); a clean start ends the session, and the will is due with it.
            if let Some((will, _)) = parked.will
                && clean_start
            {
                self.publish_will(id, *will, now);
            }
        } else {
            let mut out = std::mem::take(&mut self.out);
            client.connection.disconnect(Reason::SessionTakenOver, &mut out);
            self.give(slot, &mut out);
            self.out = out;
            let Some((_, client)) = self.clients.by_id(id) else { return Resumed::default() };
            // What cannot be sent at once is lost with the connection.
            let _ = client.write();
            let ended = client.connection.end();
            client.out = Vec::new();
            client.sent = 0;
            client.tail = Vec::new();
            if let Some(socket) = client.socket.take() {
                let _ = epoll.delete(&socket);
                self.shared.metrics.mqtt_connections.dec();
                self.shared.metrics.mqtt_closed.with_label_values(&["taken_over"]).inc();
            }
            // A session that ends with its connection is not there to be resumed.
            resumed.present = ended.session_expiry > 0;
            resumed.session = ended.session.filter(|_| ended.session_expiry > 0);
            if let Some(will) = ended.will
                && (will.delay == 0 || clean_start || ended.session_expiry == 0)
            {
                self.publish_will(id, *will, now);
            }
        }
        if clean_start || !resumed.present {
            self.drop_subscriptions(id);
            resumed = Resumed::default();
        }
        resumed
    }

    /// Moves the connection in `slot` into the slot of its session `id`; returns that slot.
    fn move_in(&mut self, epoll: &Epoll, slot: Slot, id: SessionId) -> Option<Slot> {
        let arrived = self.clients.remove(slot)?;
        let socket = arrived.socket?;
        let Some((home, client)) = self.clients.by_id(id) else {
            debug_assert!(false, "the session table names a session that is not there");
            self.shared.metrics.mqtt_connections.dec();
            return None;
        };
        client.connection = arrived.connection;
        client.out = arrived.out;
        client.sent = arrived.sent;
        client.flags.closing = false;
        client.flags.deaf = false;
        client.flags.wants_write = false;
        if std::mem::take(&mut client.flags.paused) {
            self.shared.metrics.mqtt_paused.dec();
        }
        // Epoll is to know it by the session's name from now on.
        let mut event = nix::sys::epoll::EpollEvent::new(nix::sys::epoll::EpollFlags::EPOLLIN, id.bits());
        if epoll.modify(&socket, &mut event).is_err() {
            self.shared.metrics.mqtt_connections.dec();
            return None;
        }
        client.socket = Some(socket);
        Some(home)
    }

    /// Gives the connection in `slot` to the worker that has its session.
    fn hand_over(&mut self, epoll: &Epoll, slot: Slot, worker: usize, input: &[u8]) {
        let Some(client) = self.clients.remove(slot) else { return };
        let Some(socket) = client.socket else { return };
        self.shared.metrics.mqtt_connections.dec();
        // Deleted before it is added there: a ready socket in two sets would be read by two workers.
        if epoll.delete(&socket).is_ok() {
            self.shared.router.send(worker, Envelope::Connection { socket, bytes: input.to_vec() });
        }
    }

    /// Closes the connection once what it is to be told is sent.
    pub(super) fn close_after(&mut self, epoll: &Epoll, slot: Slot, reason: &'static str, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        if client.unsent() == 0 {
            return self.close(epoll, slot, reason, now);
        }
        if !client.flags.closing {
            client.flags.closing = true;
            self.shared.metrics.mqtt_closed.with_label_values(&[reason]).inc();
        }
        self.mark_dirty(slot);
        self.listen(epoll, slot);
    }

    /// Closes the connection. Its session stays or goes as its expiry says.
    pub(super) fn close(&mut self, epoll: &Epoll, slot: Slot, reason: &'static str, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(socket) = client.socket.take() else { return };
        // What is there to be sent goes out if the kernel takes it.
        client.socket = Some(socket);
        let _ = client.write();
        let Some(socket) = client.socket.take() else { return };
        let _ = epoll.delete(&socket);
        drop(socket);
        let metrics = &self.shared.metrics;
        metrics.mqtt_connections.dec();
        if !client.flags.closing {
            metrics.mqtt_closed.with_label_values(&[reason]).inc();
        }
        client.out = Vec::new();
        client.sent = 0;
        client.tail = Vec::new();
        client.flags.closing = false;
        if std::mem::take(&mut client.flags.paused) {
            metrics.mqtt_paused.dec();
        }
        let id = client.id;
        let ended = client.connection.end();
        if client.device.is_none() {
            self.clients.remove(slot);
            return;
        }
        self.park(slot, id, ended, now);
    }

    /// Keeps what outlives a connection, or ends the session.
    fn park(&mut self, slot: Slot, id: SessionId, ended: Ended, now: Now) {
        let millis = now.steady_millis();
        let expiry = ended.session_expiry;
        let mut will = ended.will;
        if let Some(due) = will.take_if(|will| will.delay == 0 || expiry == 0) {
            self.publish_will(id, *due, now);
        }
        if expiry == 0 {
            return self.end_session(slot);
        }
        let Some(client) = self.clients.get_mut(slot) else { return };
        let after = |seconds: u32| millis + u64::from(seconds) * 1000;
        client.parked = Some(Box::new(Parked {
            session: ended.session,
            expires: (expiry != NEVER).then(|| after(expiry)),
            will: will.map(|will| {
                let at = after(will.delay);
                (will, at)
            }),
        }));
        self.file(slot);
    }

    /// A deadline of a client that is away has passed.
    pub(super) fn away(&mut self, slot: Slot, now: Now) {
        let millis = now.steady_millis();
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(parked) = &mut client.parked else { return };
        let id = client.id;
        let over = parked.expires.is_some_and(|at| at <= millis);
        // The session's end is the will's, if it comes first (MQTT 5.0 §3.1.3.2.2).
        if let Some((will, _)) = parked.will.take_if(|(_, at)| over || *at <= millis) {
            self.publish_will(id, *will, now);
        }
        if over {
            self.end_session(slot);
        }
    }

    /// Forgets the client in `slot`.
    fn end_session(&mut self, slot: Slot) {
        let Some(id) = self.clients.get(slot).map(|client| client.id) else { return };
        self.drop_subscriptions(id);
        let Some(client) = self.clients.remove(slot) else { return };
        if let Some(device) = client.device {
            self.shared.table.peek(device.as_str(), |entry| {
                entry.mqtt.take_if(|mqtt| *mqtt == id);
            });
        }
    }

    fn drop_subscriptions(&mut self, id: SessionId) {
        let Some((_, client)) = self.clients.by_id(id) else { return };
        if std::mem::take(&mut client.subscriptions) > 0 {
            self.shared.router.unsubscribe_all(id);
        }
    }
}

/// What a new connection gets of an earlier session.
#[derive(Default)]
struct Resumed {
    present: bool,
    session: Option<Box<Session>>,
}

/// A name for a client that gave none (MQTT 5.0 §3.1.3.1): not to be guessed, so that nobody takes it over.
fn assigned_id() -> String {
    let random = RandomState::new();
    format!("auto-{:016x}{:016x}", random.hash_one(0), random.hash_one(1))
}
