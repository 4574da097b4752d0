//! From the bytes of a connection to its packets, and from each of them to its handler.
//!
//! Bytes are read into a buffer that all connections share; what is kept of one between two reads is the tail of a packet that is not
//! complete, or of what must wait.

use nix::sys::epoll::Epoll;
use tidegate_mqtt::{Event, frame_len};

use super::access::Verdict;
use super::buffers::SMALL_BYTES;
use super::clients::Slot;
use super::reactor::{APPEND_BYTES, Reactor};
use super::{ENDS, Now};

/// Bytes that a worker keeps of connections whose CONNECT is not complete: tens of thousands of ordinary ones at a time. A peer that is not
/// known yet and goes on sending when there are as many is cut off.
const MAX_UNCONNECTED: usize = 16 << 20;

impl Reactor {
    /// Reads a client once, and remembers if that did not take all.
    pub(super) fn read(&mut self, epoll: &Epoll, slot: Slot, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let read = client.read(&mut self.buffer);
        if matches!(read, Ok(Some(read)) if read == self.buffer.len()) {
            self.unread.push_back(client.id);
        }
        match read {
            Ok(Some(0)) => self.close(epoll, slot, "peer", now),
            Ok(Some(read)) if client.transport.is_some() => {
                self.read_bytes += read as u64;
                self.unwrap(epoll, slot, read, now);
            }
            Ok(Some(read)) => {
                self.read_bytes += read as u64;
                let mut buffer = std::mem::take(&mut self.buffer);
                self.take_in(epoll, slot, &mut buffer[..read], now);
                self.buffer = buffer;
            }
            Ok(None) => {}
            Err(_) => self.close(epoll, slot, "reset", now),
        }
    }

    /// Reads on where a read did not take all: of as many as the pass has `room` for, and of a few in any case.
    pub(super) fn read_on(&mut self, epoll: &Epoll, room: usize, now: Now) {
        for _ in 0..room.max(ENDS).min(self.unread.len()) {
            if !self.reads() {
                return;
            }
            let Some(id) = self.unread.pop_front() else { return };
            // Of one that is deaf, or shakes hands, epoll tells by itself.
            if let Some((slot, client)) = self.clients.by_id(id)
                && !client.flags.deaf
                && !client.flags.shaking_hands
            {
                self.read(epoll, slot, now);
            }
            if self.batch.bytes() >= APPEND_BYTES {
                self.append(epoll, now);
            }
        }
    }

    /// Reads some of those who have waited for it since their peers went; returns how many.
    pub(super) fn read_gone(&mut self, epoll: &Epoll, now: Now) -> usize {
        let count = ENDS.min(self.gone.len());
        for _ in 0..count {
            let gone = self.gone.pop_front();
            if let Some((slot, _)) = gone.and_then(|id| self.clients.by_id(id)) {
                self.read_to_end(epoll, slot, now);
            }
        }
        count
    }

    /// Reads a client whose peer has gone: what it sent before comes first, now and in the passes to come.
    pub(super) fn read_to_end(&mut self, epoll: &Epoll, slot: Slot, now: Now) {
        let Some(id) = self.clients.get(slot).map(|client| client.id) else { return };
        let before = self.read_bytes;
        self.read(epoll, slot, now);
        if self.read_bytes > before && self.clients.by_id(id).is_some_and(|(_, client)| !client.flags.deaf) {
            self.gone.push_back(id);
        }
    }

    /// Acts on MQTT bytes that came in, behind those that are kept; returns where the client is now, if it is to be read on.
    pub(super) fn take_in(&mut self, epoll: &Epoll, slot: Slot, bytes: &mut [u8], now: Now) -> Option<Slot> {
        let client = self.clients.get_mut(slot)?;
        if client.device.is_none() && self.unconnected_bytes + bytes.len() > MAX_UNCONNECTED {
            self.shared.metrics.mqtt.refused("unconnected_bytes");
            self.close(epoll, slot, "refused", now);
            return None;
        }
        if !client.tail.is_empty() {
            client.tail.extend_from_slice(bytes);
            if client.device.is_none() {
                self.unconnected_bytes += bytes.len();
            }
            return self.resume(epoll, slot, now);
        }
        let (slot, used) = self.packets(epoll, slot, bytes, now);
        if let Some(slot) = slot {
            if used < bytes.len() {
                self.keep(slot, bytes[used..].to_vec());
            }
            self.listen(epoll, slot);
        }
        if std::mem::take(&mut self.read_secret) {
            bytes.fill(0);
        }
        slot
    }

    /// Acts on what is kept of a client's input, if it is a whole packet by now; returns where the client is now, if it is to
    /// be read on.
    pub(super) fn resume(&mut self, epoll: &Epoll, slot: Slot, now: Now) -> Option<Slot> {
        let client = self.clients.get_mut(slot)?;
        if client.flags.verifying {
            return Some(slot);
        }
        // What is too long or malformed is for the state machine to answer.
        let longest = client.connection.longest(&self.limits);
        let waiting = frame_len(&client.tail).is_some_and(|len| len <= longest && client.tail.len() < len);
        if waiting || client.connection.is_paused() {
            self.file(slot);
            self.listen(epoll, slot);
            return Some(slot);
        }
        let tail = std::mem::take(&mut client.tail);
        if client.device.is_none() {
            self.unconnected_bytes -= tail.len();
        }
        self.input(epoll, slot, tail, now)
    }

    /// Keeps `tail` of a client's input, of which nothing is kept yet.
    pub(super) fn keep(&mut self, slot: Slot, tail: Vec<u8>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        debug_assert!(client.tail.is_empty());
        if client.device.is_none() {
            self.unconnected_bytes += tail.len();
        }
        client.tail = tail;
    }

    /// Acts on `bytes`, which are all that is known of the client's input; returns where the client is now, if it is to be read
    /// on.
    pub(super) fn input(&mut self, epoll: &Epoll, slot: Slot, mut bytes: Vec<u8>, now: Now) -> Option<Slot> {
        let (slot, used) = self.packets(epoll, slot, &bytes, now);
        if std::mem::take(&mut self.read_secret) {
            bytes[..used].fill(0);
        }
        let slot = slot?;
        if used < bytes.len() {
            bytes.drain(..used);
            bytes.shrink_to_fit();
            self.keep(slot, bytes);
        }
        self.file(slot);
        self.listen(epoll, slot);
        Some(slot)
    }

    /// Acts on the packets in `input`; returns where the client is now, if it is to be read on, and how many bytes need not be
    /// kept for it.
    fn packets(&mut self, epoll: &Epoll, mut slot: Slot, input: &[u8], now: Now) -> (Option<Slot>, usize) {
        let millis = now.steady_millis();
        let mut rest = input;
        let mut out = std::mem::take(&mut self.out);
        loop {
            if self.must_wait(slot, rest) {
                break;
            }
            if out.len() >= SMALL_BYTES {
                self.give(slot, &mut out);
            }
            let Some(client) = self.clients.get_mut(slot) else { break };
            if client.unsent() >= self.shared.config.mqtt.max_outgoing_bytes {
                // It asks and does not read the answers: it is read again when it has.
                break;
            }
            let before = rest;
            match client.connection.next(&self.limits, &mut rest, millis, &mut out) {
                Ok(None) => break,
                Err(violation) => {
                    self.shared.metrics.mqtt.malformed(violation.name());
                    self.give(slot, &mut out);
                    self.close(epoll, slot, "protocol", now);
                    break;
                }
                Ok(Some(Event::Connect(connect))) => {
                    self.give(slot, &mut out);
                    self.out = out;
                    let home = self.connect(epoll, slot, &connect, before, now);
                    out = std::mem::take(&mut self.out);
                    match home {
                        Some(home) => slot = home,
                        None => {
                            self.out = out;
                            return (None, input.len());
                        }
                    }
                }
                Ok(Some(Event::Publish(publish))) => {
                    // What it may bring this client itself comes behind the answers so far.
                    self.give(slot, &mut out);
                    match self.judge(slot, &publish) {
                        Verdict::Taken => self.publish(slot, &publish, now),
                        Verdict::Dropped => {}
                        Verdict::Fatal => {
                            self.close(epoll, slot, "not_authorized", now);
                            break;
                        }
                    }
                }
                Ok(Some(Event::Subscribe(subscribe))) => self.subscribe(slot, &subscribe, &mut out),
                Ok(Some(Event::Unsubscribe(unsubscribe))) => self.unsubscribe(slot, &unsubscribe, &mut out),
                Ok(Some(Event::Release { packet_id })) => client.connection.completed(packet_id, &mut out),
                Ok(Some(Event::Received { packet_id })) => client.connection.release(packet_id, &mut out),
                Ok(Some(Event::Disconnect { .. })) => {
                    self.give(slot, &mut out);
                    self.close(epoll, slot, "disconnect", now);
                    break;
                }
                Ok(Some(Event::Acknowledged { .. })) => {
                    let id = client.id;
                    self.replays.wake(id);
                }
                Ok(Some(_)) => {}
            }
        }
        self.give(slot, &mut out);
        self.out = out;
        if self.clients.get(slot).is_none_or(|client| client.socket.is_none()) {
            return (None, input.len());
        }
        (Some(slot), input.len() - rest.len())
    }
}
