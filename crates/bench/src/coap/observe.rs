//! Devices that observe a resource (RFC 7641), so that a server can tell them something while they do nothing.
//!
//! Each device registers before the run, by a confirmable GET whose token names the device. What it is told from then on is acknowledged if
//! it is confirmable, and taken in by the mark in its payload. Observe promises the latest state and not each one on the way to it
//! (§1.3), so what is held against the server at the end is whether each device knows the latest message that was sent to it and acknowledged.
//! Devices that sleep, or that a NAT has moved, cannot all be told before the run ends; they ask once more then, by registering
//! again with the same token (§3.3.1).

use super::fleet::{Fleet, State};
use super::stage::Stage;
use super::wire::{Answer, TOKEN_LEN, Template, Type, code_name};
use crate::connect::{Part, SetUp};
use crate::mqtt::Received;
use crate::run::Control;

/// Registrations under way at a time, all threads together: as many as the handshakes of DTLS.
const UNDER_WAY: usize = 256;

/// What the devices of a thread need to observe.
pub(super) struct Observing {
    template: Template,
    /// What they were told.
    pub(super) received: Received,
    /// The stage of registrations, while it lasts.
    stage: Option<Part>,
}

impl Observing {
    pub(super) fn new(template: Template, devices_in_run: u32) -> Observing {
        Observing { template, received: Received::new(devices_in_run), stage: None }
    }
}

impl Fleet<'_> {
    /// Registers all devices before the run.
    pub(super) fn observe_first(&mut self, control: &Control) -> SetUp {
        self.clock = control.first_clock;
        // Under DTLS they count as connected already.
        let connects = self.workload.security.is_none();
        let stage = self.register_all(control, u64::MAX, connects)?;
        for device in &mut self.devices {
            (device.due_at, device.state) = (0, State::Idle);
        }
        self.meter.counts.observations = u64::from(stage.set_up);
        Ok(stage)
    }

    /// Registers again at the end of the run, until a time.
    pub(super) fn observe_again(&mut self, control: &Control, until: u64) -> anyhow::Result<()> {
        if self.observing.is_some() {
            self.register_all(control, until, false)?;
        }
        Ok(())
    }

    fn register_all(&mut self, control: &Control, until: u64, connects: bool) -> SetUp {
        let started = self.clock.now();
        if let Some(observing) = &mut self.observing {
            observing.stage = Some(Part::begin(started));
        }
        let stage = Stage {
            under_way: self.workload.under_way(UNDER_WAY),
            rate: 0.0,
            until,
            may_be_hopeless: true,
            connects,
            begin: Fleet::register,
            part: |fleet| fleet.observing.as_ref().and_then(|observing| observing.stage.as_ref()),
        };
        self.go_through(&stage, control)?;
        let stage = self.observing.as_mut().and_then(|observing| observing.stage.take());
        Ok(stage.unwrap_or_else(|| Part::begin(started)))
    }

    fn register(&mut self, i: usize, now: u64) {
        if self.devices[i].state != State::Idle {
            // It still waits for an answer to a message, and the run is over.
            return self.refuse_registration(i, "a message is outstanding");
        }
        let mid = self.next_mid(i);
        let device = &mut self.devices[i];
        (device.mid, device.attempts, device.state) = (mid, 0, State::Registering);
        if device.begun == 0 {
            device.due_at = now;
        }
        self.send_registration(i, now);
    }

    /// Sends the registration of a device, for the first time or again.
    fn send_registration(&mut self, i: usize, now: u64) {
        let index = self.first + i as u32;
        let (mid, name) = (self.devices[i].mid, self.workload.offset + index);
        let generation = self.generation(i);
        let Some(observing) = &self.observing else { return };
        let token = index << 8;
        match &mut self.secure {
            None => {
                let template = &observing.template;
                let write = |out: &mut Vec<u8>| template.write_head(mid, token, name, name, out);
                self.paths.push(i, generation, self.workload.target, write);
            }
            Some(secure) => {
                secure.plain.clear();
                observing.template.write_head(mid, token, name, name, &mut secure.plain);
                if self.seal(i).is_err() {
                    return self.refuse_registration(i, "it has no DTLS association");
                }
            }
        }
        let timeout = self.ack_timeout(i);
        self.wheel.set(i as u32, now / 1_000_000 + timeout);
    }

    fn refuse_registration(&mut self, i: usize, reason: &str) {
        if self.devices[i].state == State::Registering {
            self.devices[i].state = State::Idle;
            self.wheel.cancel(i as u32);
        }
        if let Some(stage) = self.observing.as_mut().and_then(|observing| observing.stage.as_mut()) {
            stage.refused += 1;
            stage.reason.get_or_insert_with(|| format!("observe: {reason}"));
        }
    }

    /// A registration went unanswered.
    pub(super) fn on_registration_timer(&mut self, i: usize, now: u64) {
        if self.devices[i].attempts >= self.workload.transmission.max_retransmit {
            return self.refuse_registration(i, "no answer");
        }
        self.devices[i].attempts += 1;
        self.meter.counts.retransmissions += 1;
        self.send_registration(i, now);
    }

    /// An empty acknowledgement: the answer to a registration follows.
    pub(super) fn on_registration_acknowledged(&mut self, i: usize, now: u64) {
        self.devices[i].attempts = u8::MAX;
        let timeout = self.workload.transmission.answer_timeout_millis;
        self.wheel.set(i as u32, now / 1_000_000 + timeout);
    }

    /// A reset.
    pub(super) fn on_registration_reset(&mut self, i: usize) {
        self.refuse_registration(i, "RST");
    }

    /// A registration is answered, or a device is told something.
    pub(super) fn on_observed(&mut self, i: usize, answer: &Answer<'_>, now: u64) {
        let Some((observe, payload)) = answer.content() else {
            self.meter.counts.malformed += 1;
            return;
        };
        let is_content = answer.code >> 5 == 2;
        let is_asked = self.devices[i].state == State::Registering;
        if is_asked {
            let is_piggybacked = answer.ty == Type::Acknowledgement;
            if is_piggybacked && answer.mid != self.devices[i].mid {
                self.meter.counts.wrong += 1;
                return;
            }
            if is_content && observe.is_some() {
                self.devices[i].state = State::Idle;
                self.wheel.cancel(i as u32);
                let since = self.devices[i].due_at;
                if let Some(stage) = self.observing.as_mut().and_then(|observing| observing.stage.as_mut()) {
                    stage.count(since, now);
                }
            } else if is_content {
                self.refuse_registration(i, "the resource is not observable");
            } else {
                self.refuse_registration(i, &code_name(answer.code));
            }
        } else if !is_content || observe.is_none() {
            // §4.2: a notification that is an error, or without the option, is the last one.
            self.meter.counts.observations_ended += 1;
        }
        let arrived = self.clock.wall_micros(now);
        if let (true, Some(observing)) = (is_content, &mut self.observing) {
            let run = self.workload.run;
            // The answer to a registration says nothing about how fast the server tells devices.
            match is_asked {
                false => observing.received.take(run, payload, arrived),
                true => observing.received.take_late(run, payload),
            }
        }
    }
}

/// Whether a token is that of a registration, and the device's part of it.
pub(super) fn registration(token: &[u8]) -> Option<&[u8; TOKEN_LEN]> {
    let (device, tail) = token.split_first_chunk::<TOKEN_LEN>()?;
    (tail == Template::OBSERVE_TAIL).then_some(device)
}
