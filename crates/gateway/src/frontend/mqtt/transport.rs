//! Where connections come from, and those that are more than TCP: from what the socket gives to MQTT's bytes.

use std::io;
use std::time::Duration;

use nix::sys::epoll::Epoll;
use tidegate_mqtt::Connection;
use tidegate_transport::{Layers, Transport};
use tracing::warn;

use super::Now;
use super::clients::{Client, Slot};
use super::handshakes::CROWDED_PAUSE;
use super::listeners::{Kind, deferral};
use super::reactor::Reactor;
use crate::frontend::router::{Arrival, SessionId};

/// Accepted in one pass; the rest waits in the kernel's queue while those that are connected are served.
const ACCEPTS: usize = 16;

/// How long a listener is left alone when the system does not let us accept.
const REFUSED_PAUSE: Duration = Duration::from_millis(500);

/// The largest buffer of unwrapped input that is kept: a read yields no more, but a WebSocket client's may follow another's.
const KEPT_BYTES: usize = 128 * 1024;

impl Reactor {
    /// What a connection that has just been accepted has between its socket and MQTT, if anything.
    fn transport(&self, kind: Kind) -> Result<Option<Box<Transport>>, ()> {
        let config = &self.shared.config;
        if kind == Kind::Tcp && !config.mqtt.proxy_protocol {
            return Ok(None);
        }
        let tls = match (kind.has_tls(), &self.shared.certificates) {
            (false, _) => None,
            (true, Some(certificates)) => Some(certificates.current()),
            (true, None) => return Err(()),
        };
        let layers = Layers {
            proxy: config.mqtt.proxy_protocol,
            tls,
            websocket: kind.has_websocket().then(|| self.websocket_path.clone()),
        };
        Transport::new(&layers).map(|transport| Some(Box::new(transport))).ok_or(())
    }

    /// Takes connections in from a listener, as many as may come now.
    pub(super) fn accept(&mut self, epoll: &Epoll, index: usize, now: Now) {
        for _ in 0..ACCEPTS {
            let Some(kind) = self.listeners.get(index).map(|listener| listener.kind) else { return };
            let shakes_hands = kind != Kind::Tcp || self.shared.config.mqtt.proxy_protocol;
            if shakes_hands && !self.may_shake_hands(epoll, now) {
                return self.listeners.hold(epoll, index, now.instant + CROWDED_PAUSE);
            }
            if let Err(due) = self.listeners.admission.take(now.instant) {
                self.turn_away(epoll, index, now);
                return self.listeners.hold(epoll, index, due);
            }
            if !self.accept_one(epoll, index, false, now) {
                return self.listeners.admission.put_back();
            }
        }
    }

    /// Takes in those who would wait too long, to tell them so.
    fn turn_away(&mut self, epoll: &Epoll, index: usize, now: Now) {
        let (waiting, too_long) = self.listeners.waiting(index);
        self.shared.metrics.transports.waiting.with_label_values(&[&self.index.to_string()]).set(waiting as i64);
        for _ in 0..too_long.min(ACCEPTS as u64) {
            if self.listeners.refusal.take(now.instant).is_err() || !self.accept_one(epoll, index, true, now) {
                return;
            }
        }
    }

    /// Accepts a connection; false if there is none.
    fn accept_one(&mut self, epoll: &Epoll, index: usize, turned_away: bool, now: Now) -> bool {
        let Some(listener) = self.listeners.get(index) else { return false };
        let kind = listener.kind;
        let (socket, _) = match listener.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                // Out of descriptors, or the peer is gone already. The rest waits in the kernel's queue; as the listener stays
                // ready, it is left alone for a while.
                self.shared.metrics.mqtt.refused("accept");
                warn!(%error, "a connection could not be accepted");
                self.listeners.hold(epoll, index, now.instant + REFUSED_PAUSE);
                return false;
            }
        };
        let metrics = &self.shared.metrics;
        metrics.mqtt_accepted.inc();
        metrics.transports.accepted(kind).inc();
        if metrics.mqtt_connections.get() >= self.shared.most_connections as i64 {
            metrics.mqtt.refused("max_connections");
            return true;
        }
        // A handshake would cost more than letting it in.
        if turned_away && kind.has_tls() {
            metrics.mqtt.refused("connect_rate");
            return true;
        }
        match self.transport(kind) {
            Ok(transport) => {
                let arrival = Arrival { socket: socket.into(), transport, kind, principal: None, turned_away };
                self.adopt(epoll, arrival, Vec::new(), now);
            }
            Err(()) => metrics.mqtt.refused("tls"),
        }
        true
    }

    /// Takes a connection in, with the MQTT bytes that were read from it before.
    pub(super) fn adopt(&mut self, epoll: &Epoll, arrival: Arrival, bytes: Vec<u8>, now: Now) {
        let kind = arrival.kind;
        let shakes_hands = arrival.transport.as_ref().is_some_and(|transport| !transport.is_open());
        let slot = self.clients.insert(arrival, now.steady_millis());
        let Some(client) = self.clients.get_mut(slot) else { return };
        let id = client.id;
        client.flags.shaking_hands = shakes_hands;
        let set = if shakes_hands { self.handshakes.epoll() } else { epoll };
        if let Some(Err(error)) = client.fd().map(|fd| set.add(fd, client.interest())) {
            warn!(%error, "a connection could not be registered");
            self.clients.remove(slot);
            return;
        }
        self.count_connections(kind, 1);
        self.file(slot);
        if shakes_hands {
            self.handshakes.begin(id, now.steady_millis());
            if !self.clients.get(slot).is_some_and(Client::has_input) {
                self.is_silent(id, now);
            }
        } else if bytes.is_empty() {
            // The CONNECT is commonly there, and if not, it costs one system call to learn.
            let before = self.read_bytes;
            self.read(epoll, slot, now);
            if self.read_bytes == before {
                self.is_silent(id, now);
            }
        } else if let Some(slot) = self.input(epoll, slot, bytes, now) {
            self.after_transport(epoll, slot, now);
        }
    }

    /// A new client says nothing: the kernel has kept it for as long as it does, and its time runs since.
    fn is_silent(&mut self, id: SessionId, now: Now) {
        let Some((slot, client)) = self.clients.by_id(id) else { return };
        let deferred = deferral(self.shared.config.mqtt.connect_timeout).as_millis() as u64;
        client.connection = Connection::new(now.steady_millis().saturating_sub(deferred));
        self.file(slot);
    }

    pub(super) fn count_connections(&self, kind: Kind, more: i64) {
        self.shared.metrics.mqtt_connections.add(more);
        self.shared.metrics.transports.connections(kind).add(more);
    }

    /// Acts on the first `read` bytes of the buffer, which came from the client's socket.
    pub(super) fn unwrap(&mut self, epoll: &Epoll, slot: Slot, read: usize, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(transport) = &mut client.transport else { return };
        let mut bytes = std::mem::take(&mut self.unwrapped);
        // A fault is remembered: what came before it is good, and comes first.
        let _ = transport.receive(&mut self.buffer[..read], &mut bytes);
        self.finish_handshake(epoll, slot);
        let slot = if bytes.is_empty() { Some(slot) } else { self.take_in(epoll, slot, &mut bytes, now) };
        bytes.clear();
        bytes.shrink_to(KEPT_BYTES);
        self.unwrapped = bytes;
        if let Some(slot) = slot {
            self.after_transport(epoll, slot, now);
        }
    }

    /// Acts on what a transport has to say besides MQTT's bytes.
    pub(super) fn after_transport(&mut self, epoll: &Epoll, slot: Slot, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(transport) = &client.transport else { return };
        let over = transport.is_over();
        if let Some(fault) = transport.fault() {
            self.shared.metrics.mqtt.malformed(fault.name());
            self.close(epoll, slot, "transport", now);
        } else if over {
            self.close(epoll, slot, "peer_in_order", now);
        } else if !transport.unsent().is_empty() {
            self.mark_dirty(slot);
        }
    }
}
