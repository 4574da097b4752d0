//! The devices of one generator thread, and its loop.

use std::mem::size_of;
use std::ops::Range;
use std::time::Duration;

use anyhow::Context;
use tidegate_net::{BATCH, Receiver};

use super::observe::Observing;
use super::paths::{Paths, Rebinding};
use super::secure::Secure;
use super::wire::{Common, Template, Type};
use super::{Delivery, EXCHANGE_LIFETIME, Share, Workload};
use crate::clock::{Clock, SECOND};
use crate::connect::{Devices, Part as Stage, SetUp};
use crate::ledger::Ledger;
use crate::meter::Meter;
use crate::mqtt::Received;
use crate::payload::mix;
use crate::process;
use crate::run::{Control, Phase, Plan};
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
    pub(super) due: u32,
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
    pub(super) rebinding: Option<Rebinding>,
    /// Next message ID of each endpoint.
    pub(super) mids: Vec<u16>,
    pub(super) template: Template,
    /// Without it, messages go in the clear.
    pub(super) secure: Option<Secure>,
    /// Without it, devices observe nothing.
    pub(super) observing: Option<Observing>,
    pub(super) ledger: Ledger,
    pub(super) meter: Meter,
    pub(super) in_flight: usize,
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
    pub(super) fn due_at(&mut self, i: usize, number: u32) -> u64 {
        match self.share {
            Share::Timed => {
                let deferred = self.calendar.as_mut().and_then(|calendar| calendar.deferred(i));
                deferred.unwrap_or(self.devices[i].due_at)
            }
            Share::Scheduled { schedule, .. } => schedule.due(u64::from(number) * self.devices.len() as u64 + i as u64),
            Share::Windowed { .. } | Share::Silent => self.devices[i].due_at,
        }
    }
}
