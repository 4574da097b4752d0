//! The devices of one generator thread, and its loop.

use std::mem::size_of;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::Context;
use tidegate_net::{BATCH, Datagram, Receiver};

use super::observe::{Observing, registration};
use super::paths::{Paths, Rebind, Rebinding};
use super::secure::Secure;
use super::wire::{Answer, Common, Request, TOKEN_LEN, Template, Type, code_name, empty};
use super::{Delivery, EXCHANGE_LIFETIME, Share, Transmission, Workload};
use crate::clock::{Clock, SECOND};
use crate::connect::{Devices, Part as Stage, SetUp};
use crate::ledger::{Ledger, MessageId};
use crate::meter::Meter;
use crate::mqtt::Received;
use crate::payload::{Mark, mix};
use crate::process;
use crate::run::{Control, Phase, Plan};
use crate::scenario::Sleep;
use crate::schedule::Calendar;
use crate::timer::{TICK_MILLIS, Wheel};

/// Longest answer that is told from another: header, token, a few options and a diagnostic payload. What is longer is cut, which does no
/// harm.
const ANSWER_BYTES: usize = 256;

/// The same under DTLS, where the flights of a handshake are longer, and for devices that observe.
const LONG_ANSWER_BYTES: usize = 1_500;

/// Batches that are received before anything else gets its turn.
const RECEIVE_ROUNDS: usize = 16;

/// Messages that are begun before answers get their turn: enough to catch up, few enough that answers do not queue for long.
const BURST: usize = 256;

/// How long observers may still be told nothing new, after the last acknowledgement, before they count as knowing all that they will.
const QUIET: u64 = SECOND;

/// One simulated device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Device {
    /// When the current message was due.
    pub(super) due_at: u64,
    /// Messages begun; the current one is `begun - 1`.
    pub(super) begun: u32,
    /// Messages due so far, in open loop: `begun <= due`.
    due: u32,
    /// Message ID of the current message.
    pub(super) mid: u16,
    pub(super) attempts: u8,
    pub(super) state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// Nothing is outstanding.
    Idle,
    /// Awaits the answer to its registration as an observer.
    Registering,
    /// Awaits the end of a DTLS handshake, with which it sends the current message if there is one.
    Shaking,
    /// Awaits an acknowledgement or an answer.
    Sent,
    /// Has an empty acknowledgement, awaits the separate answer.
    Acknowledged,
}

/// How the current message ended.
pub(super) enum Ending {
    Acked,
    Refused(String),
    TimedOut,
}

/// What a thread leaves behind.
pub(crate) struct Part {
    pub(crate) meter: Meter,
    pub(crate) ledger: Ledger,
    pub(crate) dropped_answers: u64,
    pub(crate) reused_message_ids: bool,
    /// What devices were told that observe.
    pub(crate) delivered: Option<Received>,
}

/// The devices of one thread.
pub(crate) struct Fleet<'a> {
    pub(super) workload: &'a Workload,
    pub(super) shard: usize,
    share: Share,
    /// When devices report, in a scenario.
    calendar: Option<Calendar>,
    /// Index in the population of `devices[0]`.
    pub(super) first: u32,
    pub(super) devices: Vec<Device>,
    pub(super) wheel: Wheel,
    pub(super) paths: Paths,
    rebinding: Option<Rebinding>,
    /// Next message ID of each endpoint.
    mids: Vec<u16>,
    template: Template,
    /// Without it, messages go in the clear.
    pub(super) secure: Option<Secure>,
    /// Without it, devices observe nothing.
    pub(super) observing: Option<Observing>,
    pub(super) ledger: Ledger,
    pub(super) meter: Meter,
    in_flight: usize,
    /// Messages begun, or due in open loop.
    started: u64,
    /// Device whose turn is next, in closed loop.
    turn: usize,
    pub(super) clock: Clock,
}

impl Devices for Fleet<'_> {
    type Remains = Part;

    fn set_up(&mut self, control: &Control) -> SetUp {
        let mut stage = Stage::begin(u64::MAX);
        if self.workload.shakes_first() {
            stage = self.associate(control)?;
        }
        if self.observing.is_some() && (self.secure.is_none() || stage.set_up > 0) {
            let observers = self.observe_first(control)?;
            match self.secure {
                None => stage = observers,
                // The stage is that of the handshakes; but without a single observer there is nothing to run.
                Some(_) if observers.set_up == 0 => (stage.set_up, stage.reason) = (0, observers.reason),
                Some(_) => {}
            }
        }
        Ok(stage)
    }

    fn run(mut self, control: &Control) -> anyhow::Result<Part> {
        self.clock = control.ready();
        let result = self.drive(control);
        let now = self.clock.now();
        control.publish(self.shard, &mut self.meter, self.in_flight, now);
        // A thread that failed is done as well, or the watching one would wait for it.
        control.enter(self.shard, Phase::Done);
        result?;
        let mids_used = self.started as f64 / self.mids.len() as f64;
        let lifetimes = (now as f64 / EXCHANGE_LIFETIME as f64).max(1.0);
        Ok(Part {
            meter: self.meter,
            ledger: self.ledger,
            delivered: self.observing.map(|observing| observing.received),
            dropped_answers: self.paths.sockets().map(|socket| process::udp_drops(socket.local_addr().port())).sum(),
            reused_message_ids: mids_used / lifetimes > f64::from(u16::MAX),
        })
    }
}

impl<'a> Fleet<'a> {
    /// Devices with the given indices in the run.
    pub(crate) fn new(
        workload: &'a Workload,
        plan: &Plan,
        paths: Paths,
        shard: usize,
        indices: Range<u32>,
        share: Share,
    ) -> Fleet<'a> {
        let devices = indices.len();
        let (ty, no_response) = match workload.delivery {
            Delivery::Confirmable => (Type::Confirmable, false),
            Delivery::NonConfirmable => (Type::NonConfirmable, false),
            Delivery::NoResponse => (Type::NonConfirmable, true),
        };
        let Workload { method, path, prefix, ep, .. } = workload;
        let common = Common {
            ty,
            method: *method,
            path,
            prefix: workload.to.as_ref().map_or(prefix, |to| &to.prefix),
            ep: ep.then_some(prefix),
            no_response,
            content_format: workload.content_format,
            pattern: workload.pattern.clone(),
        };
        Fleet {
            workload,
            shard,
            share,
            calendar: workload
                .timetable
                .clone()
                .map(|table| Calendar::new(table, workload.offset + indices.start, devices)),
            first: indices.start,
            devices: vec![Device { due_at: 0, begun: 0, due: 0, mid: 0, attempts: 0, state: State::Idle }; devices],
            wheel: Wheel::new(devices),
            rebinding: workload.rebinding,
            // Each endpoint starts somewhere else, so that a device that another run had at its address does not repeat its IDs.
            mids: (0..paths.endpoints(devices)).map(|endpoint| mix(workload.run ^ endpoint as u64) as u16).collect(),
            template: Template::new(&common),
            observing: workload
                .observe
                .as_ref()
                .map(|path| Observing::new(Template::observe(path, prefix, *ep), workload.devices_in_run)),
            paths,
            secure: workload.security.as_ref().map(|security| Secure::new(security, workload, devices)),
            ledger: Ledger::new(workload.base + indices.start, devices as u32),
            meter: Meter::new(plan.measured()),
            in_flight: 0,
            started: 0,
            turn: 0,
            clock: Clock::start(),
        }
    }

    /// Bytes of state a device: itself, its timer, its message ID.
    pub(crate) fn bytes_per_device(secure: bool, timed: bool) -> f64 {
        let timed = if timed { Calendar::BYTES_PER_DEVICE } else { 0 };
        let plain = size_of::<Device>() + Wheel::BYTES_PER_DEVICE + size_of::<u16>();
        (plain + timed + if secure { Secure::BYTES_PER_DEVICE } else { 0 }) as f64
    }

    fn drive(&mut self, control: &Control) -> anyhow::Result<()> {
        let mut receivers = self.receivers();
        let measured = control.plan.measured();
        let ramp = control.plan.ramp.as_nanos() as u64;
        let mut expired = Vec::new();
        let mut phase = Phase::Sending;
        let mut give_up_at = u64::MAX;
        let mut said = false;
        // What observers were told so far, and since when nothing more.
        let (mut news, mut news_at) = (0, 0);
        loop {
            if !self.workload.handicap.is_zero() {
                std::thread::sleep(self.workload.handicap);
            }
            let received = self.receive(&mut receivers, phase == Phase::Sending, ramp)?;
            let now = self.clock.now();
            self.wheel.advance(now / 1_000_000, &mut expired);
            for i in expired.drain(..) {
                self.on_timer(i, now);
            }
            let mut started = 0;
            if phase == Phase::Sending {
                started = self.start(now, ramp);
                if self.is_all_started() || now >= measured.end || control.is_stopping() {
                    phase = Phase::Draining;
                    give_up_at = now.saturating_add(control.plan.drain.as_nanos() as u64);
                    news_at = now;
                }
            }
            self.flush()?;
            control.publish(self.shard, &mut self.meter, self.in_flight, now);
            if phase == Phase::Draining {
                if !std::mem::replace(&mut said, true) {
                    // Not before the sums are out: the measured part ends when all threads are here.
                    control.enter(self.shard, Phase::Draining);
                }
                let told = self.observing.as_ref().map_or(0, |observing| observing.received.messages);
                if told != news || self.in_flight > 0 {
                    (news, news_at) = (told, now);
                }
                let is_quiet = self.observing.is_none() || now >= news_at + QUIET;
                if self.in_flight == 0 && is_quiet || now >= give_up_at || control.is_abandoned() {
                    break;
                }
            }
            if received == 0 && started < BURST {
                self.wait(now, phase, &measured, give_up_at)?;
            }
        }
        self.write_off();
        // Of those that listen all the time, what they were told is what counts.
        if self.workload.sleep.is_some() || self.rebinding.is_some() {
            self.observe_again(control, give_up_at)?;
        }
        Ok(())
    }

    /// Messages that never got an answer count with the time that they waited.
    fn write_off(&mut self) {
        let now = self.clock.now();
        for i in 0..self.devices.len() {
            let device = self.devices[i];
            if !matches!(device.state, State::Idle | State::Registering) {
                self.meter.counts.unanswered += 1;
                self.meter.answered(device.due_at, now);
            }
            for number in device.begun..device.due {
                self.meter.counts.unsent += 1;
                let due_at = self.due_at(i, number);
                self.meter.answered(due_at, now);
            }
        }
    }

    /// Sleeps until an answer arrives or something is due.
    fn wait(&mut self, now: u64, phase: Phase, measured: &Range<u64>, give_up_at: u64) -> anyhow::Result<()> {
        let mut until = now + SECOND / 4;
        match (self.share, &self.calendar, phase) {
            (Share::Scheduled { schedule, .. }, _, Phase::Sending) => until = until.min(schedule.due(self.started)),
            (Share::Timed, Some(calendar), Phase::Sending) => until = calendar.next(until),
            _ => {}
        }
        if let Some(at) = self.paths.next_departure() {
            until = until.min(at);
        }
        if self.wheel.running() > 0 {
            until = until.min(now + TICK_MILLIS * 1_000_000);
        }
        if phase == Phase::Sending {
            until = until.min(measured.end);
            if now < measured.start {
                // The window may be growing.
                until = until.min(now + SECOND / 200);
            }
        }
        until = until.min(give_up_at);
        let wait = Duration::from_nanos(until.saturating_sub(now));
        self.paths.wait(wait)
    }

    /// A receiver for each socket. They stay on the thread that made them.
    pub(super) fn receivers(&self) -> Vec<Receiver> {
        let is_long = self.secure.is_some() || self.observing.is_some();
        let bytes = if is_long { LONG_ANSWER_BYTES } else { ANSWER_BYTES };
        self.paths.sockets().map(|socket| Receiver::new(socket, BATCH, bytes)).collect()
    }

    /// Reads what has arrived, and in closed loop replaces what was answered at once.
    pub(super) fn receive(&mut self, receivers: &mut [Receiver], sends: bool, ramp: u64) -> anyhow::Result<usize> {
        let mut received = 0;
        for (port, receiver) in receivers.iter_mut().enumerate() {
            for _ in 0..RECEIVE_ROUNDS {
                let n = match receiver.recv(self.paths.socket(port)) {
                    Ok(n) => n,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("cannot receive answers"),
                };
                received += n;
                let now = self.clock.now();
                for datagram in receiver.datagrams() {
                    self.on_datagram(&datagram, now);
                }
                if sends && matches!(self.share, Share::Windowed { .. }) {
                    self.start(now, ramp);
                }
                self.flush()?;
                if n < BATCH {
                    break;
                }
            }
        }
        Ok(received)
    }

    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let now = if self.paths.is_delayed() { self.clock.now() } else { 0 };
        self.meter.counts.send_errors += self.paths.flush(now)?;
        self.meter.counts.lost_by_client += self.paths.take_lost();
        Ok(())
    }

    // --- sending

    fn is_all_started(&self) -> bool {
        match self.share {
            Share::Scheduled { messages, .. } | Share::Windowed { messages, .. } => self.started >= messages,
            Share::Timed | Share::Silent => false,
        }
    }

    /// Begins what is due, up to a burst.
    fn start(&mut self, now: u64, ramp: u64) -> usize {
        match self.share {
            Share::Scheduled { schedule, messages } => {
                let mut n = 0;
                while n < BURST && self.started < messages {
                    let due_at = schedule.due(self.started);
                    if due_at > now {
                        break;
                    }
                    n += 1;
                    self.fall_due((self.started % self.devices.len() as u64) as usize, due_at, now);
                }
                n
            }
            Share::Timed => {
                let mut n = 0;
                while n < BURST {
                    let Some((i, due_at)) = self.calendar.as_mut().and_then(|calendar| calendar.poll(now)) else {
                        break;
                    };
                    n += 1;
                    if !self.fall_due(i, due_at, now)
                        && let Some(calendar) = &mut self.calendar
                    {
                        calendar.defer(i, due_at);
                    }
                }
                n
            }
            Share::Silent => 0,
            Share::Windowed { window, messages } => {
                let window = if now < ramp { (window as u64 * now / ramp).max(1) as usize } else { window };
                let mut n = 0;
                while n < BURST && self.in_flight < window && self.started < messages {
                    let Some(i) = self.next_idle() else { break };
                    self.started += 1;
                    n += 1;
                    self.devices[i].due += 1;
                    self.begin(i, now, now);
                }
                n
            }
        }
    }

    /// A message of a device is due in open loop: it begins, unless an earlier one is not over.
    fn fall_due(&mut self, i: usize, due_at: u64, now: u64) -> bool {
        self.started += 1;
        self.devices[i].due += 1;
        let begins = self.devices[i].state == State::Idle;
        if begins {
            self.meter.departed(due_at, now);
            self.begin(i, due_at, now);
        }
        begins
    }

    /// The idle device whose turn is next, if there is one.
    fn next_idle(&mut self) -> Option<usize> {
        if self.in_flight == self.devices.len() {
            return None;
        }
        loop {
            let i = self.turn;
            self.turn = if i + 1 == self.devices.len() { 0 } else { i + 1 };
            if self.devices[i].state == State::Idle {
                return Some(i);
            }
        }
    }

    /// When message `number` of device `i` is due, in open loop.
    fn due_at(&mut self, i: usize, number: u32) -> u64 {
        match self.share {
            Share::Timed => {
                let deferred = self.calendar.as_mut().and_then(|calendar| calendar.deferred(i));
                deferred.unwrap_or(self.devices[i].due_at)
            }
            Share::Scheduled { schedule, .. } => schedule.due(u64::from(number) * self.devices.len() as u64 + i as u64),
            Share::Windowed { .. } | Share::Silent => self.devices[i].due_at,
        }
    }

    pub(super) fn next_mid(&mut self, i: usize) -> u16 {
        let next = &mut self.mids[self.paths.endpoint(i)];
        let mid = *next;
        *next = mid.wrapping_add(1);
        mid
    }

    fn begin(&mut self, i: usize, due_at: u64, now: u64) {
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

    fn on_datagram(&mut self, datagram: &Datagram<'_>, now: u64) {
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
