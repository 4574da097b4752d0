//! One message of a device: sent, sent again, answered or given up (RFC 7252 §4).

use std::net::IpAddr;

use tidegate_net::Datagram;

use super::fleet::{Device, Ending, Fleet, State};
use super::observe::registration;
use super::paths::{Rebind, Rebinding};
use super::wire::{Answer, Request, TOKEN_LEN, Type, code_name, empty};
use super::{Delivery, Transmission};
use crate::ledger::MessageId;
use crate::payload::{Mark, mix};
use crate::scenario::Sleep;

impl Fleet<'_> {
    pub(super) fn next_mid(&mut self, i: usize) -> u16 {
        let next = &mut self.mids[self.paths.endpoint(i)];
        let mid = *next;
        *next = mid.wrapping_add(1);
        mid
    }

    pub(super) fn begin(&mut self, i: usize, due_at: u64, now: u64) {
        let mid = self.next_mid(i);
        let before = self.devices[i];
        let device = &mut self.devices[i];
        device.due_at = due_at;
        device.begun += 1;
        device.mid = mid;
        device.attempts = 0;
        let moved = self.rebinding.is_some() && self.generation(i) != self.generation_of(i, before);
        self.meter.counts.messages += 1;
        self.meter.counts.rebinds += u64::from(moved);
        self.in_flight += 1;
        if self.needs_handshake(i) {
            self.shake(i, now);
        } else {
            self.dispatch(i, now);
        }
    }

    /// Sends the current message of a device for the first time.
    pub(super) fn dispatch(&mut self, i: usize, now: u64) {
        self.devices[i].state = State::Sent;
        if !self.transmit(i, now) {
            return;
        }
        let timeout = match self.workload.delivery {
            Delivery::Confirmable => self.ack_timeout(i),
            Delivery::NonConfirmable => self.workload.transmission.answer_timeout_millis,
            Delivery::NoResponse => {
                self.meter.counts.unconfirmed += 1;
                self.devices[i].state = State::Idle;
                self.in_flight -= 1;
                return;
            }
        };
        self.wheel.set(i as u32, now / 1_000_000 + timeout);
    }

    /// The time to the next retransmission (RFC 7252 §4.2): the initial one is drawn from ACK_TIMEOUT to ACK_TIMEOUT ×
    /// ACK_RANDOM_FACTOR, and doubles each time. The draw is a hash of the message, which need not be remembered.
    pub(super) fn ack_timeout(&self, i: usize) -> u64 {
        let Transmission { ack_timeout_millis, ack_random_factor, .. } = self.workload.transmission;
        let device = &self.devices[i];
        let draw = mix(self.workload.run ^ (i as u64) << 32 ^ u64::from(device.begun)) as u32;
        let spread = (ack_random_factor - 1.0) * f64::from(draw) / f64::from(u32::MAX);
        ((ack_timeout_millis as f64 * (1.0 + spread)) as u64) << device.attempts
    }

    /// Queues the current message of a device: the same bytes each time. False if it could not be protected; it has ended then.
    fn transmit(&mut self, i: usize, now: u64) -> bool {
        let device = &self.devices[i];
        let index = self.first + i as u32;
        let number = device.begun - 1;
        let request = Request {
            mid: device.mid,
            token: index << 8 | number & 0xff,
            payload_len: self.workload.size(index, number),
            name: self.workload.name(index, number),
            own: self.workload.offset + index,
            mark: Mark {
                run: self.workload.run,
                device: self.workload.base + index,
                number,
                due_micros: self.clock.wall_micros(device.due_at),
            },
        };
        match &mut self.secure {
            None => {
                let (template, generation) = (&self.template, self.generation(i));
                self.paths.push(i, generation, self.workload.target, |out| template.write(&request, out));
                true
            }
            Some(secure) => {
                secure.plain.clear();
                self.template.write(&request, &mut secure.plain);
                self.seal(i).map_err(|error| self.cannot_seal(i, error, now)).is_ok()
            }
        }
    }

    /// How often a device was given another address and port so far.
    #[inline]
    pub(super) fn generation(&self, i: usize) -> u32 {
        self.generation_of(i, self.devices[i])
    }

    /// The same for a device as it was. It follows from the message, so that copies of one come from the same place.
    #[inline]
    fn generation_of(&self, i: usize, device: Device) -> u32 {
        let Some(Rebinding { every, share }) = self.rebinding else { return 0 };
        let draw = mix(u64::from(self.first) + i as u64) as u32;
        if f64::from(draw) >= share * f64::from(u32::MAX) {
            return 0;
        }
        match every {
            Rebind::Messages(n) => device.begun / n,
            // Devices are forgotten one after another and not all at once.
            Rebind::Nanoseconds(period) if device.begun > 0 => {
                ((device.due_at + mix(u64::from(draw)) % period) / period) as u32
            }
            Rebind::Nanoseconds(_) => 0,
        }
    }

    // --- answers

    pub(super) fn on_datagram(&mut self, datagram: &Datagram<'_>, now: u64) {
        if datagram.peer != self.workload.target {
            self.meter.counts.wrong += 1;
            return;
        }
        if !self.workload.impairment.is_none() && self.paths.loses() {
            self.meter.counts.lost_by_client += 1;
            return;
        }
        if self.rebinding.is_some()
            && let Some(i) = self.paths.endpoint_at(datagram.local).filter(|&i| i < self.devices.len())
            && !self.paths.is_at(i, self.generation(i), datagram.local)
        {
            self.meter.counts.forgotten += 1;
            return;
        }
        if let Some(sleep) = self.workload.sleep
            && self.sleeps(datagram.local, sleep, now)
        {
            self.meter.counts.slept += 1;
            return;
        }
        if self.secure.is_some() {
            self.on_records(datagram, now);
        } else {
            self.on_message(datagram.bytes, datagram.local, now);
        }
    }

    /// Whether the device at an address does not listen: it has nothing outstanding, reported a while ago, and is not paged now.
    fn sleeps(&self, local: Option<IpAddr>, sleep: Sleep, now: u64) -> bool {
        let Some(i) = self.paths.endpoint_at(local).filter(|&i| i < self.devices.len()) else { return false };
        let device = &self.devices[i];
        if device.state != State::Idle || now < device.due_at + sleep.awake.as_nanos() as u64 {
            return false;
        }
        let Some(edrx) = sleep.edrx else { return true };
        let edrx = (edrx.as_nanos() as u64).max(1);
        (now + mix(i as u64) % edrx) % edrx >= sleep.paging.as_nanos() as u64
    }

    /// A CoAP message that came to an address of ours.
    pub(super) fn on_message(&mut self, bytes: &[u8], local: Option<IpAddr>, now: u64) {
        let Some(answer) = Answer::parse(bytes) else {
            self.meter.counts.malformed += 1;
            return;
        };
        if answer.code == 0 {
            match self.paths.endpoint_at(local).filter(|&i| i < self.devices.len()) {
                // A ping, which asks whether it arrives (RFC 7252 §4.3).
                Some(i) if answer.ty == Type::Confirmable => self.send_empty(i, Type::Reset, answer.mid),
                _ => self.on_empty(&answer, local, now),
            }
            return;
        }
        let registration = registration(answer.token).filter(|_| self.observing.is_some());
        let Some(i) = self.device_of(registration.map_or(answer.token, |token| token), local) else {
            self.meter.counts.wrong += 1;
            return;
        };
        if answer.ty == Type::Confirmable {
            // A separate answer is acknowledged each time it comes, or the server would go on sending it (RFC 7252 §4.2).
            self.send_empty(i, Type::Acknowledgement, answer.mid);
        }
        if registration.is_some() {
            self.on_observed(i, &answer, now);
            return;
        }
        let low = answer.token[TOKEN_LEN - 1];
        let device = self.devices[i];
        let Some(current) = device.begun.checked_sub(1) else {
            self.meter.counts.wrong += 1;
            return;
        };
        if matches!(device.state, State::Sent | State::Acknowledged) && current as u8 == low {
            let piggybacked = answer.ty == Type::Acknowledgement;
            if piggybacked && answer.mid != device.mid {
                self.meter.counts.wrong += 1;
                return;
            }
            self.meter.counts.separate += u64::from(!piggybacked && self.workload.delivery == Delivery::Confirmable);
            let ending = if answer.code >> 5 == 2 { Ending::Acked } else { Ending::Refused(code_name(answer.code)) };
            self.end(i, ending, now);
            return;
        }
        // The latest message before with this low byte.
        let Some(number) = current.checked_sub((current.wrapping_sub(u32::from(low))) & 0xff) else {
            self.meter.counts.wrong += 1;
            return;
        };
        let id = self.id(i, number);
        if self.ledger.is_acked(id) {
            self.meter.counts.duplicate += 1;
        } else {
            self.meter.counts.late += 1;
            if answer.code >> 5 == 2 {
                // The promise stands, even if the device no longer waits for it.
                self.ledger.ack(id);
            }
        }
    }

    /// Sends an empty message of a device.
    fn send_empty(&mut self, i: usize, ty: Type, mid: u16) {
        let message = empty(ty, mid);
        match &mut self.secure {
            None => {
                let generation = self.generation(i);
                self.paths.push(i, generation, self.workload.target, |out| out.extend_from_slice(&message));
            }
            Some(secure) => {
                secure.plain.clear();
                secure.plain.extend_from_slice(&message);
                // Without an association any more, there is nobody to tell.
                let _ = self.seal(i);
            }
        }
    }

    /// An empty acknowledgement or a reset, which only the message ID matches (RFC 7252 §4.2).
    fn on_empty(&mut self, answer: &Answer<'_>, local: Option<IpAddr>, now: u64) {
        let Some(i) = self.device_with(answer.mid, local) else {
            // One that was overtaken by the answer it announces is late, and no fault (RFC 7252 §5.2.2).
            let was_sent = answer.ty == Type::Acknowledgement && self.was_sent(answer.mid, local);
            *if was_sent { &mut self.meter.counts.late } else { &mut self.meter.counts.wrong } += 1;
            return;
        };
        match (answer.ty, self.devices[i].state) {
            (Type::Acknowledgement, State::Sent) if self.workload.delivery == Delivery::Confirmable => {
                self.devices[i].state = State::Acknowledged;
                let timeout = self.workload.transmission.answer_timeout_millis;
                self.wheel.set(i as u32, now / 1_000_000 + timeout);
            }
            (Type::Acknowledgement, State::Acknowledged) => self.meter.counts.duplicate += 1,
            (Type::Acknowledgement, State::Registering) => self.on_registration_acknowledged(i, now),
            (Type::Reset, State::Registering) => self.on_registration_reset(i),
            (Type::Reset, State::Sent) => self.end(i, Ending::Refused("RST".to_owned()), now),
            _ => self.meter.counts.wrong += 1,
        }
    }

    fn id(&self, i: usize, number: u32) -> MessageId {
        MessageId { device: self.workload.base + self.first + i as u32, number }
    }

    /// The device that a token names, if the answer came to its address.
    fn device_of(&self, token: &[u8], local: Option<IpAddr>) -> Option<usize> {
        let token = u32::from_be_bytes(token.try_into().ok()?);
        let i = (token >> 8).checked_sub(self.first)? as usize;
        (i < self.devices.len() && self.paths.endpoint_at(local) == Some(self.paths.endpoint(i))).then_some(i)
    }

    /// The device that awaits an answer to message `mid` at an address.
    fn device_with(&self, mid: u16, local: Option<IpAddr>) -> Option<usize> {
        let waits = |i: &usize| {
            let device = &self.devices[*i];
            device.mid == mid && matches!(device.state, State::Sent | State::Acknowledged | State::Registering)
        };
        let endpoint = self.paths.endpoint_at(local)?;
        // Where devices share an endpoint, all of them are looked at: such messages are rare.
        (endpoint..self.devices.len()).step_by(self.mids.len()).find(waits)
    }

    /// Whether an endpoint has used a message ID in this run.
    fn was_sent(&self, mid: u16, local: Option<IpAddr>) -> bool {
        let Some(endpoint) = self.paths.endpoint_at(local).filter(|endpoint| *endpoint < self.mids.len()) else {
            return false;
        };
        let devices = || (endpoint..self.devices.len()).step_by(self.mids.len());
        // Registrations, before the run and at its end, have IDs too.
        let registrations = if self.observing.is_some() { 2 } else { 0 };
        let sent: u64 = devices().map(|i| u64::from(self.devices[i].begun) + registrations).sum();
        let back = self.mids[endpoint].wrapping_sub(mid);
        back > 0 && u64::from(back) <= sent
    }

    /// The current message of a device is over, and the next begins if it is due.
    pub(super) fn end(&mut self, i: usize, ending: Ending, now: u64) {
        let device = &mut self.devices[i];
        device.state = State::Idle;
        let due_at = device.due_at;
        let number = device.begun - 1;
        let id = MessageId { device: self.workload.base + self.first + i as u32, number };
        self.in_flight -= 1;
        self.wheel.cancel(i as u32);
        self.meter.answered(due_at, now);
        match ending {
            Ending::Acked => {
                self.meter.counts.acked += 1;
                self.ledger.ack(id);
            }
            Ending::Refused(reason) => self.meter.counts.refuse(reason),
            Ending::TimedOut => self.meter.counts.timed_out += 1,
        }
        self.begin_next(i, now);
    }

    /// Begins the next message of an idle device if it is due; without an answer to wait for, those behind it too.
    pub(super) fn begin_next(&mut self, i: usize, now: u64) {
        while self.devices[i].state == State::Idle && self.devices[i].begun < self.devices[i].due {
            let due_at = self.due_at(i, self.devices[i].begun);
            self.begin(i, due_at, now);
        }
    }

    pub(super) fn on_timer(&mut self, i: u32, now: u64) {
        if self.devices[i as usize].state == State::Shaking {
            self.on_handshake_timer(i as usize, now);
            return;
        }
        if self.devices[i as usize].state == State::Registering {
            self.on_registration_timer(i as usize, now);
            return;
        }
        let (transmission, delivery) = (self.workload.transmission, self.workload.delivery);
        let device = &mut self.devices[i as usize];
        let again = delivery == Delivery::Confirmable
            && device.state == State::Sent
            && device.attempts < transmission.max_retransmit;
        if !again {
            // The server may have lost the association, of which it cannot tell: the next message begins with a new one.
            self.dissociate(i as usize);
            self.end(i as usize, Ending::TimedOut, now);
            return;
        }
        device.attempts += 1;
        self.meter.counts.retransmissions += 1;
        if self.transmit(i as usize, now) {
            let timeout = self.ack_timeout(i as usize);
            self.wheel.set(i, now / 1_000_000 + timeout);
        }
    }
}
