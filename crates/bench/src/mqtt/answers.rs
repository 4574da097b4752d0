//! What the connections of a thread are sent.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use nix::sys::epoll::EpollFlags;

use super::crowd::{Crowd, Flight, IDS, Slot, State};
use super::layer::Shaken;
use super::wire::{
    CONNACK, FAILURE, Malformed, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL, Packet, SERVER_DISCONNECT, SUBACK,
    put_acknowledgement, put_subscribe,
};
use crate::audit::device_name;
use crate::ledger::MessageId;

/// Events that tell of a connection's end.
const ENDS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

/// Why a connection ends.
enum Loss {
    /// The server closed it, or it broke.
    Closed,
    /// The server sent what it may not.
    Malformed,
    /// The server said no, with a code.
    Refused(String),
}

impl Crowd<'_> {
    pub(super) fn on_consumer(&mut self, flags: EpollFlags) {
        let Some(consumer) = &mut self.consumer else { return };
        match consumer.on_ready(flags.intersects(ENDS), &self.clock) {
            Ok(true) => {}
            Ok(false) => self.meter.counts.disconnects += 1,
            Err(Malformed) => self.meter.counts.malformed += 1,
        }
    }

    /// Takes in what happened to a connection; what there is to say is left in `output`.
    pub(super) fn on_event(&mut self, i: usize, flags: EpollFlags, now: u64) {
        if self.connections[i].stream.is_none() {
            return;
        }
        if self.connections[i].state == State::Connecting {
            if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                self.lose(i, &Loss::Closed, now);
                return;
            }
            if flags.contains(EpollFlags::EPOLLOUT) {
                self.greet(i);
            }
            return;
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            let connection = &mut self.connections[i];
            match (&mut connection.layer, &connection.stream) {
                (Some(layer), Some(stream)) => {
                    // The reading side will see the end.
                    let _ = layer.flush(stream);
                }
                _ if connection.unsent.is_some() => self.send_rest(i),
                _ => {}
            }
        }
        // A short read leaves nothing behind but the end, of which no further event would tell.
        if let Err(loss) = self.read(i, flags.intersects(ENDS), now) {
            self.output.clear();
            self.lose(i, &loss, now);
        }
    }

    /// Reads what came through TLS or WebSocket.
    fn read_layer(&mut self, i: usize, now: u64) -> Result<(), Loss> {
        let connection = &mut self.connections[i];
        let (Some(layer), Some(stream)) = (&mut connection.layer, &connection.stream) else { return Ok(()) };
        let mut decoded = std::mem::take(&mut self.decoded);
        decoded.clear();
        let open = layer.receive(stream, &mut decoded);
        let shaken = layer.shaken();
        self.meter.counts.tls_handshakes += u64::from(shaken.is_some());
        self.meter.counts.tls_resumed += u64::from(shaken == Some(Shaken::Resumed));
        let taken = self.on_input(i, &decoded, now);
        self.decoded = decoded;
        taken?;
        match open {
            Ok(true) => Ok(()),
            Ok(false) => Err(Loss::Closed),
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(Loss::Refused(error.to_string())),
            Err(_) => Err(Loss::Closed),
        }
    }

    fn read(&mut self, i: usize, ends: bool, now: u64) -> Result<(), Loss> {
        if self.connections[i].layer.is_some() {
            return self.read_layer(i, now);
        }
        let mut input = std::mem::take(&mut self.input);
        let result = loop {
            let connection = &mut self.connections[i];
            let Some(stream) = &connection.stream else { break Ok(()) };
            let mut stream: &TcpStream = stream;
            let n = match stream.read(&mut input) {
                Ok(0) => break Err(Loss::Closed),
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(_) => break Err(Loss::Closed),
            };
            if let Err(loss) = self.on_input(i, &input[..n], now) {
                break Err(loss);
            }
            if n < input.len() && !ends {
                break Ok(());
            }
        };
        self.input = input;
        result
    }

    fn on_input(&mut self, i: usize, bytes: &[u8], now: u64) -> Result<(), Loss> {
        let joined = self.connections[i].tail.take().map(|tail| [&tail, bytes].concat());
        let mut rest = joined.as_deref().unwrap_or(bytes);
        while let Some(packet) = Packet::take(&mut rest).map_err(|Malformed| Loss::Malformed)? {
            self.on_packet(i, &packet, now)?;
        }
        if !rest.is_empty() {
            self.connections[i].tail = Some(rest.into());
        }
        Ok(())
    }

    fn on_packet(&mut self, i: usize, packet: &Packet<'_>, now: u64) -> Result<(), Loss> {
        let malformed = |Malformed| Loss::Malformed;
        match (packet.first, self.connections[i].state) {
            (CONNACK, State::Greeting) => {
                let (code, receive_maximum) = packet.connack(self.workload.version).map_err(malformed)?;
                if code != 0 {
                    return Err(Loss::Refused(format!("CONNACK {code:#04x}")));
                }
                self.receive_maximum = self.receive_maximum.min(receive_maximum.max(1));
                match &self.workload.subscribe {
                    Some((filter, qos)) if self.subscribes(i) => {
                        let name = device_name(&self.workload.prefix, self.workload.offset + self.first + i as u32);
                        let filter = filter.replace("{device}", &name);
                        put_subscribe(self.workload.version, 1, &filter, *qos, &mut self.output);
                        self.connections[i].state = State::Subscribing;
                    }
                    _ => self.is_live(i, now),
                }
            }
            (SUBACK, State::Subscribing) => match packet.body.last() {
                Some(&code) if code >= FAILURE => return Err(Loss::Refused(format!("SUBACK {code:#04x}"))),
                Some(_) => self.is_live(i, now),
                None => return Err(Loss::Malformed),
            },
            // What a session kept may come before the answer to the subscription.
            (first, State::Live | State::Subscribing) if first & 0xf0 == PUBLISH && self.delivered.is_some() => {
                let (id, payload) = packet.publish(self.workload.version).map_err(malformed)?;
                if id != 0 {
                    put_acknowledgement(PUBACK, id, &mut self.output);
                }
                let arrived = self.clock.wall_micros(now);
                if let Some(delivered) = &mut self.delivered {
                    delivered.take(self.workload.run, payload, arrived);
                }
            }
            (PUBACK, State::Live) if self.workload.qos == 1 => {
                let (id, reason) = packet.acknowledgement().map_err(malformed)?;
                self.on_acknowledgement(i, id, reason, "PUBACK", now);
            }
            (PUBREC, State::Live) if self.workload.qos == 2 => {
                let (id, reason) = packet.acknowledgement().map_err(malformed)?;
                self.on_acknowledgement(i, id, reason, "PUBREC", now);
            }
            (PUBCOMP, State::Live) if self.workload.qos == 2 => {
                let (id, _) = packet.acknowledgement().map_err(malformed)?;
                match self.in_flight_slot(i, id) {
                    Some(slot) if self.slots[slot].state == Flight::Released => self.free(i, slot),
                    _ => self.meter.counts.wrong += 1,
                }
            }
            (PINGRESP, State::Live) => {}
            (SERVER_DISCONNECT, _) => {
                let reason = packet.body.first().copied().unwrap_or(0);
                return Err(Loss::Refused(format!("DISCONNECT {reason:#04x}")));
            }
            // A client that did not subscribe is sent no publish, nor anything else.
            (first, _) if first & 0xf0 == PUBLISH => self.meter.counts.wrong += 1,
            _ => return Err(Loss::Malformed),
        }
        Ok(())
    }

    /// A connection is ready to publish.
    fn is_live(&mut self, i: usize, now: u64) {
        self.connections[i].state = State::Live;
        self.live += 1;
        self.lifecycle.opening = self.lifecycle.opening.saturating_sub(1);
        self.is_back(i, now);
    }

    /// The slot of the message in flight with a packet identifier.
    fn in_flight_slot(&self, i: usize, id: u16) -> Option<usize> {
        let number = self.number_of(i, id)?;
        let slot = self.slot(i, number);
        (self.slots[slot].state != Flight::None && self.slots[slot].number == number).then_some(slot)
    }

    /// The latest message that had a packet identifier.
    fn number_of(&self, i: usize, id: u16) -> Option<u32> {
        let last = self.connections[i].begun.checked_sub(1)?;
        let residue = u32::from(id).checked_sub(1)?;
        last.checked_sub((last % IDS + IDS - residue) % IDS)
    }

    fn on_acknowledgement(&mut self, i: usize, id: u16, reason: u8, kind: &str, now: u64) {
        let Some(slot) = self.in_flight_slot(i, id).filter(|&slot| self.slots[slot].state == Flight::Published) else {
            let number = self.number_of(i, id);
            let id = number.map(|number| self.id(i, number));
            if id.is_some_and(|id| self.ledger.is_acked(id)) {
                self.meter.counts.duplicate += 1;
            } else {
                self.meter.counts.wrong += 1;
            }
            return;
        };
        let Slot { due_at, number, .. } = self.slots[slot];
        self.meter.answered(due_at, now);
        let connection = &self.connections[i];
        if connection.begun == connection.due && connection.in_flight == 1 {
            self.drowse(i, now);
        }
        if reason >= FAILURE {
            self.meter.counts.refuse(format!("{kind} {reason:#04x}"));
            self.free(i, slot);
            return;
        }
        self.meter.counts.acked += 1;
        self.ledger.ack(self.id(i, number));
        if self.workload.qos == 2 {
            self.slots[slot].state = Flight::Released;
            put_acknowledgement(PUBREL, id, &mut self.output);
        } else {
            self.free(i, slot);
        }
    }

    fn free(&mut self, i: usize, slot: usize) {
        self.slots[slot].state = Flight::None;
        self.connections[i].in_flight -= 1;
        self.in_flight -= 1;
    }

    /// A connection is over, and what was in flight on it is lost.
    fn lose(&mut self, i: usize, loss: &Loss, now: u64) {
        let was_live = self.connections[i].state == State::Live;
        match loss {
            Loss::Closed => {}
            Loss::Malformed => self.meter.counts.malformed += 1,
            Loss::Refused(reason) => self.meter.counts.refuse(reason.clone()),
        }
        self.meter.counts.disconnects += 1;
        if was_live {
            self.live -= 1;
        } else {
            self.refused += 1;
            self.lifecycle.opening = self.lifecycle.opening.saturating_sub(1);
        }
        self.forget(i, now);
        self.come_back(i, now);
    }

    fn id(&self, i: usize, number: u32) -> MessageId {
        MessageId { device: self.workload.base + self.first + i as u32, number }
    }

    /// Nothing is left of a connection, nor of what was in flight on it.
    pub(super) fn forget(&mut self, i: usize, now: u64) {
        let connection = &mut self.connections[i];
        connection.stream = None;
        connection.layer = None;
        connection.tail = None;
        connection.unsent = None;
        connection.state = State::Over;
        if self.slots.is_empty() {
            return;
        }
        let window = usize::from(self.workload.window);
        for slot in i * window..(i + 1) * window {
            if self.slots[slot].state == Flight::None {
                continue;
            }
            if self.slots[slot].state == Flight::Published {
                self.meter.counts.lost += 1;
                self.meter.answered(self.slots[slot].due_at, now);
            }
            self.free(i, slot);
        }
    }
}
