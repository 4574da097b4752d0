//! Connections that are more than TCP: from what the socket gives to MQTT's bytes.

use nix::sys::epoll::Epoll;
use tidegate_transport::{Layers, Transport};

use super::Now;
use super::clients::Slot;
use super::reactor::Reactor;

/// The largest buffer of unwrapped input that is kept: a read yields no more, but a WebSocket client's may follow another's.
const KEPT_BYTES: usize = 128 * 1024;

impl Reactor {
    /// What a connection that has just been accepted has between its socket and MQTT.
    pub(super) fn transport(&self) -> Option<Box<Transport>> {
        let layers = Layers { proxy: self.shared.config.mqtt.proxy_protocol };
        layers.proxy.then(|| Box::new(Transport::new(&layers)))
    }

    /// Acts on the first `read` bytes of the buffer, which came from the client's socket.
    pub(super) fn unwrap(&mut self, epoll: &Epoll, slot: Slot, read: usize, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let Some(transport) = &mut client.transport else { return };
        let mut bytes = std::mem::take(&mut self.unwrapped);
        // A fault is remembered: what came before it is good, and comes first.
        let _ = transport.receive(&mut self.buffer[..read], &mut bytes);
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
            self.close(epoll, slot, "peer", now);
        } else if !transport.unsent().is_empty() {
            self.mark_dirty(slot);
        }
    }
}
