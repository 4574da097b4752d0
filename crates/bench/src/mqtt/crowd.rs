//! The connections of one generator thread, and its loop.

use std::io::{ErrorKind, Write};
use std::mem::size_of;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use socket2::SockRef;

use super::consumer::{Consumer, Received};
use super::fanout::FanOut;
use super::layer::Layer;
use super::lifecycle::{Lifecycle, end};
use super::wire::{DISCONNECT, PINGREQ, Template};
use super::{Share, Workload};
use crate::clock::{Clock, SECOND};
use crate::connect::{Devices, SetUp};
use crate::ledger::Ledger;
use crate::meter::Meter;
use crate::payload::{Mark, mix};
use crate::run::{Control, Phase, Plan};
use crate::schedule::Calendar;

/// Bytes that are read at a time: acknowledgements are 4 bytes, so this is far more than a window of them.
const READ_BYTES: usize = 16 << 10;

/// Connections that are looked at before anything else gets its turn.
pub(super) const EVENTS: usize = 512;

/// Messages that are begun before answers get their turn.
const BURST: usize = 512;

/// Wait for the server to close after DISCONNECT. It closes first, so that its side and not ours keeps the ports in TIME-WAIT.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a consumer may still receive nothing new, after the last acknowledgement, before it counts as having everything it will
/// get.
const QUIET: u64 = SECOND;

/// The epoll datum of the consumer, which is no connection's index.
pub(super) const CONSUMER: u64 = u64::MAX;

/// Packet identifiers are `1..=IDS`; zero is none (MQTT 5.0 §2.2.1).
pub(super) const IDS: u32 = 65_535;

/// One client.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: Option<TcpStream>,
    /// TLS and WebSocket, where they are spoken.
    pub(super) layer: Option<Box<Layer>>,
    pub(super) state: State,
    /// Messages in flight: `<= window`.
    pub(super) in_flight: u16,
    /// Messages begun.
    pub(super) begun: u32,
    /// Messages due, in open loop: `begun <= due`.
    pub(super) due: u32,
    /// When connecting began.
    pub(super) since: u64,
    /// The beginning of a packet whose end has not arrived.
    pub(super) tail: Option<Box<[u8]>>,
    /// What the kernel did not take yet.
    pub(super) unsent: Option<Box<[u8]>>,
}

const _: () = assert!(size_of::<Connection>() <= 64, "the module doc says so");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not begun.
    Fresh,
    /// SYN is sent.
    Connecting,
    /// CONNECT is sent.
    Greeting,
    /// SUBSCRIBE is sent.
    Subscribing,
    /// CONNACK is here, and SUBACK if there is a subscription.
    Live,
    /// Closed, by whichever side.
    Over,
    /// Closed until there is something to send.
    Asleep,
    /// Closed, and to be opened again.
    Waiting,
}

/// A message in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) due_at: u64,
    pub(super) number: u32,
    pub(super) state: Flight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flight {
    None,
    /// Awaits PUBACK or PUBREC.
    Published,
    /// Awaits PUBCOMP.
    Released,
}

/// What a thread leaves behind.
pub(crate) struct Part {
    pub(crate) meter: Meter,
    pub(crate) ledger: Ledger,
    pub(crate) received: Option<Received>,
    pub(crate) receive_maximum: u16,
    /// What devices received that subscribed for themselves.
    pub(crate) delivered: Option<Received>,
    /// From when a connection was wanted again to its CONNACK.
    pub(crate) reconnects: Histogram<u64>,
}

/// The connections of one thread.
pub(crate) struct Crowd<'a> {
    pub(super) workload: &'a Workload,
    pub(super) shard: usize,
    pub(super) share: Share,
    /// Index in the run of `connections[0]`.
    pub(super) first: u32,
    pub(super) connections: Vec<Connection>,
    /// `slots[i * window + number % window]` is message `number` of connection `i`, if in flight.
    pub(super) slots: Vec<Slot>,
    pub(super) epoll: Epoll,
    /// One for each size of payloads.
    templates: Vec<Template>,
    pub(super) consumer: Option<Consumer>,
    pub(super) delivered: Option<Received>,
    pub(super) fan_out: FanOut,
    calendar: Option<Calendar>,
    pub(super) lifecycle: Lifecycle,
    /// What came through a layer.
    pub(super) decoded: Vec<u8>,
    pub(super) ledger: Ledger,
    pub(super) meter: Meter,
    pub(super) clock: Clock,
    pub(super) in_flight: usize,
    pub(super) live: u32,
    pub(super) refused: u32,
    /// Messages begun, or due in open loop.
    pub(super) started: u64,
    /// Connection that pings next.
    pub(super) pinger: usize,
    pub(super) pings: u64,
    pub(super) receive_maximum: u16,
    /// Where packets are read to and built.
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
}

impl Devices for Crowd<'_> {
    type Remains = Part;

    fn set_up(&mut self, control: &Control) -> SetUp {
        self.connect(control)
    }

    fn run(mut self, control: &Control) -> anyhow::Result<Part> {
        self.clock = control.ready();
        self.lifecycle.running = true;
        let result = self.drive(control);
        let now = self.clock.now();
        control.publish(self.shard, &mut self.meter, self.in_flight, now);
        // A thread that failed is done as well, or the watching one would wait for it.
        control.enter(self.shard, Phase::Done);
        result?;
        self.part();
        Ok(Part {
            meter: self.meter,
            ledger: self.ledger,
            received: self.consumer.map(|consumer| consumer.received),
            delivered: self.delivered,
            reconnects: self.lifecycle.latency,
            receive_maximum: self.receive_maximum,
        })
    }
}

impl<'a> Crowd<'a> {
    pub(crate) fn new(
        workload: &'a Workload,
        plan: &Plan,
        shard: usize,
        indices: Range<u32>,
        share: Share,
    ) -> anyhow::Result<Crowd<'a>> {
        let Workload { version, topic, prefix, qos, .. } = workload;
        let named = workload.to.as_ref().map_or(prefix, |to| &to.prefix);
        let template = |size: usize| Template::new(*version, topic, named, *qos, size, workload.pattern.clone());
        let slots = if workload.publishes && *qos > 0 { indices.len() * usize::from(workload.window) } else { 0 };
        let fresh = || Connection {
            stream: None,
            layer: None,
            state: State::Fresh,
            in_flight: 0,
            begun: 0,
            due: 0,
            since: 0,
            tail: None,
            unsent: None,
        };
        Ok(Crowd {
            workload,
            shard,
            share,
            first: indices.start,
            connections: std::iter::repeat_with(fresh).take(indices.len()).collect(),
            slots: vec![Slot { due_at: 0, number: 0, state: Flight::None }; slots],
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?,
            templates: workload.sizes().map(template).collect(),
            consumer: None,
            delivered: workload.subscribe.as_ref().map(|_| Received::new(workload.devices_in_run)),
            fan_out: FanOut::new(workload),
            calendar: workload
                .timetable
                .clone()
                .map(|table| Calendar::new(table, workload.offset + indices.start, indices.len())),
            lifecycle: Lifecycle::new(if workload.sleep.is_some() { indices.len() } else { 0 }),
            decoded: Vec::new(),
            ledger: Ledger::new(workload.base + indices.start, indices.len() as u32),
            meter: Meter::new(plan.measured()),
            clock: Clock::start(),
            in_flight: 0,
            live: 0,
            refused: 0,
            started: 0,
            pinger: 0,
            pings: 0,
            receive_maximum: u16::MAX,
            input: vec![0; READ_BYTES],
            output: Vec::new(),
        })
    }

    /// Bytes of state a connection.
    pub(crate) fn bytes_per_connection(window: u16) -> f64 {
        (size_of::<Connection>() + usize::from(window) * size_of::<Slot>()) as f64
    }

    fn drive(&mut self, control: &Control) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let measured = control.plan.measured();
        let mut phase = Phase::Sending;
        let mut give_up_at = u64::MAX;
        let mut said = false;
        let mut news = 0;
        let mut news_at = 0;
        if matches!(self.share, Share::Windowed { .. }) {
            self.fill_windows();
        }
        loop {
            if !self.workload.handicap.is_zero() {
                std::thread::sleep(self.workload.handicap);
            }
            let n = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for answers"),
            };
            let mut now = self.clock.now();
            for event in &events[..n] {
                if event.data() == CONSUMER {
                    self.on_consumer(event.events());
                    continue;
                }
                let i = event.data() as usize;
                self.on_event(i, event.events(), now);
                // What is due is sent, even if the run has ended since.
                if phase == Phase::Sending || matches!(self.share, Share::Scheduled { .. } | Share::Timed) {
                    self.refill(i);
                }
                self.send(i);
            }
            self.feed();
            self.ping(now);
            self.live_on(now)?;
            let mut started = 0;
            if phase == Phase::Sending {
                now = self.clock.now();
                started = self.start(now);
                if self.is_all_started() || now >= measured.end || control.is_stopping() {
                    phase = Phase::Draining;
                    give_up_at = now.saturating_add(control.plan.drain.as_nanos() as u64);
                    news_at = now;
                }
            }
            control.publish(self.shard, &mut self.meter, self.in_flight, now);
            if phase == Phase::Draining {
                if !std::mem::replace(&mut said, true) {
                    // Not before the sums are out: the measured part ends when all threads are here.
                    control.enter(self.shard, Phase::Draining);
                    if self.delivered.is_some() {
                        // Those that sleep fetch what the server has kept for them.
                        (0..self.connections.len()).for_each(|i| self.wake(i, now));
                    }
                }
                let received = self.consumer.as_ref().map(|consumer| &consumer.received).or(self.delivered.as_ref());
                let received = received.map_or(0, |received| received.messages);
                if received != news || self.in_flight > 0 {
                    (news, news_at) = (received, now);
                }
                let is_quiet = self.consumer.is_none() && self.delivered.is_none()
                    || now >= news_at + QUIET && !self.lifecycle.is_busy();
                if self.is_settled() && is_quiet || now >= give_up_at || control.is_abandoned() {
                    break;
                }
            }
            if n == 0 && started < BURST {
                self.wait(now, phase, &measured, give_up_at)?;
            }
        }
        self.write_off();
        Ok(())
    }

    /// Messages that never got an answer count with the time that they waited.
    fn write_off(&mut self) {
        let now = self.clock.now();
        for slot in self.slots.iter().filter(|slot| slot.state == Flight::Published) {
            self.meter.counts.unanswered += 1;
            self.meter.answered(slot.due_at, now);
        }
        for i in 0..self.connections.len() {
            for number in self.connections[i].begun..self.connections[i].due {
                self.meter.counts.unsent += 1;
                let due_at = self.due_at(i, number, now);
                self.meter.answered(due_at, now);
            }
        }
    }

    /// Sleeps until something arrives or is due. The epoll instance is itself polled, because its own wait takes milliseconds only.
    fn wait(&self, now: u64, phase: Phase, measured: &Range<u64>, give_up_at: u64) -> anyhow::Result<()> {
        let mut until = now + SECOND / 4;
        if phase == Phase::Sending {
            match (self.share, &self.calendar) {
                (Share::Scheduled { schedule, .. }, _) => until = until.min(schedule.due(self.started)),
                (Share::Timed, Some(calendar)) => until = calendar.next(until),
                _ => {}
            }
            until = until.min(measured.end);
        }
        until = until.min(self.lifecycle.next(self.workload.under_way()).unwrap_or(until));
        if let Some(storm) = self.workload.breaks.iter().find(|storm| storm.at > now) {
            until = until.min(storm.at);
        }
        if self.workload.keep_alive > 0 {
            until = until.min(self.ping_at());
        }
        until = until.min(give_up_at);
        let wait = Duration::from_nanos(until.saturating_sub(now));
        match ppoll(&mut [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)], Some(TimeSpec::from(wait)), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for answers"),
        }
    }

    /// Says DISCONNECT on all connections and waits for the server to close them, or breaks them.
    fn part(&mut self) {
        if self.workload.abrupt {
            return self.connections.iter().filter_map(|c| c.stream.as_ref()).for_each(|stream| end(stream, true));
        }
        for connection in &mut self.connections {
            let Some(stream) = &connection.stream else { continue };
            if let Some(layer) = &mut connection.layer {
                if layer.send(stream, &DISCONNECT).is_err() {
                    connection.stream = None;
                }
                continue;
            }
            // Unsent bytes are in the way: the connection just ends.
            if connection.unsent.is_some() || (&mut &*stream).write(&DISCONNECT).is_err() {
                connection.stream = None;
            }
        }
        if let Some(consumer) = &mut self.consumer {
            let _ = consumer.stream.write(&DISCONNECT);
        }
        let until = self.clock.now() + FAREWELL.as_nanos() as u64;
        let mut events = [EpollEvent::empty(); EVENTS];
        while self.connections.iter().any(|connection| connection.stream.is_some()) && self.clock.now() < until {
            let Ok(n) = self.epoll.wait(&mut events, 100u16) else { continue };
            for event in events[..n].iter().filter(|event| event.data() != CONSUMER) {
                if event.events().intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                    self.connections[event.data() as usize].stream = None;
                }
            }
        }
        for stream in self.connections.iter().filter_map(|connection| connection.stream.as_ref()) {
            // Without TIME-WAIT: a server that does not close leaves it to us, and the ports are needed for the next run.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }

    // --- sending

    fn is_all_started(&self) -> bool {
        match self.share {
            Share::Idle | Share::Timed => false,
            Share::Scheduled { messages, .. } | Share::Windowed { messages } => self.started >= messages,
        }
    }

    /// Whether nothing is left to wait for: no answer, no message that is due, nothing that the kernel did not take.
    fn is_settled(&self) -> bool {
        let settled = |connection: &Connection| match connection.state {
            State::Live => {
                let sent = connection.layer.as_ref().is_none_or(|layer| layer.is_sent());
                sent && connection.unsent.is_none() && connection.begun == connection.due
            }
            State::Over | State::Asleep => true,
            _ => connection.begun == connection.due || !self.workload.reconnects,
        };
        self.in_flight == 0 && self.connections.iter().all(settled)
    }

    /// Begins what is due, up to a burst.
    fn start(&mut self, now: u64) -> usize {
        if let Share::Timed = self.share {
            return self.start_timed(now);
        }
        let Share::Scheduled { schedule, messages } = self.share else { return 0 };
        let mut n = 0;
        while n < BURST && self.started < messages {
            let due_at = schedule.due(self.started);
            if due_at > now {
                break;
            }
            n += 1;
            self.fall_due((self.started % self.publishing() as u64) as usize, due_at, now);
        }
        n
    }

    /// The same by the calendar.
    fn start_timed(&mut self, now: u64) -> usize {
        let mut n = 0;
        while n < BURST {
            let Some((i, due_at)) = self.calendar.as_mut().and_then(|calendar| calendar.poll(now)) else { break };
            n += 1;
            if self.fall_due(i, due_at, now) {
                if self.workload.qos == 0 {
                    self.drowse(i, now);
                }
                continue;
            }
            if let Some(calendar) = &mut self.calendar {
                calendar.defer(i, due_at);
            }
            self.wake(i, now);
        }
        n
    }

    /// A message of a connection is due in open loop: it leaves, unless an earlier one waits or there is no room for it.
    fn fall_due(&mut self, i: usize, due_at: u64, now: u64) -> bool {
        self.started += 1;
        let number = self.connections[i].due;
        self.connections[i].due += 1;
        let begins = self.connections[i].begun == number && self.may_begin(i);
        if begins {
            self.meter.departed(due_at, now);
            self.begin(i, due_at);
            self.send(i);
        }
        begins
    }

    /// Fills the windows of all connections, at the start of a closed loop.
    fn fill_windows(&mut self) {
        for i in 0..self.publishing() {
            self.refill(i);
            self.send(i);
        }
    }

    /// Builds what may be begun on a connection.
    pub(super) fn refill(&mut self, i: usize) {
        match self.share {
            Share::Idle => {}
            Share::Windowed { messages } => {
                while self.started < messages && self.may_begin(i) && self.is_fed(i) {
                    self.started += 1;
                    self.connections[i].due += 1;
                    self.begin(i, self.clock.now());
                }
            }
            Share::Scheduled { .. } | Share::Timed => {
                while self.connections[i].begun < self.connections[i].due && self.may_begin(i) {
                    let due_at = self.due_at(i, self.connections[i].begun, 0);
                    self.begin(i, due_at);
                }
            }
        }
    }

    /// Whether a connection may send another message: its window and the server's are open, and the kernel takes what it sends.
    pub(super) fn may_begin(&self, i: usize) -> bool {
        let connection = &self.connections[i];
        if connection.state != State::Live || connection.unsent.is_some() || i >= self.publishing() {
            return false;
        }
        self.workload.qos == 0
            || connection.in_flight < self.workload.window.min(self.receive_maximum)
                && self.slots[self.slot(i, connection.begun)].state == Flight::None
    }

    pub(super) fn slot(&self, i: usize, number: u32) -> usize {
        let window = usize::from(self.workload.window);
        i * window + number as usize % window
    }

    /// When message `number` of connection `i` is due, in open loop.
    fn due_at(&mut self, i: usize, number: u32, otherwise: u64) -> u64 {
        match self.share {
            Share::Timed => self.calendar.as_mut().and_then(|calendar| calendar.deferred(i)).unwrap_or(otherwise),
            Share::Scheduled { schedule, .. } => schedule.due(u64::from(number) * self.publishing() as u64 + i as u64),
            _ => otherwise,
        }
    }

    /// Builds the next message of a connection.
    pub(super) fn begin(&mut self, i: usize, due_at: u64) {
        let number = self.connections[i].begun;
        self.connections[i].begun += 1;
        self.meter.counts.messages += 1;
        let mark = Mark {
            run: self.workload.run,
            device: self.workload.base + self.first + i as u32,
            number,
            due_micros: self.clock.wall_micros(due_at),
        };
        let id = (number % IDS + 1) as u16;
        let index = self.workload.offset + self.first + i as u32;
        let name = self.workload.to.as_ref().map_or(index, |to| to.first + to.receiver(index, number));
        let size = match self.templates.len() {
            1 => 0,
            sizes => mix(u64::from(mark.device) << 32 | u64::from(number)) as usize % sizes,
        };
        self.templates[size].write(id, name, &mark, &mut self.output);
        if self.workload.qos == 0 {
            self.meter.counts.unconfirmed += 1;
            return;
        }
        let slot = self.slot(i, number);
        self.slots[slot] = Slot { due_at, number, state: Flight::Published };
        self.connections[i].in_flight += 1;
        self.in_flight += 1;
    }

    /// Sends what was built for a connection.
    pub(super) fn send(&mut self, i: usize) {
        if self.output.is_empty() {
            return;
        }
        let connection = &mut self.connections[i];
        let Some(stream) = &connection.stream else {
            self.output.clear();
            return;
        };
        if let Some(layer) = &mut connection.layer {
            // The reading side will see the end.
            let _ = layer.send(stream, &self.output);
            self.output.clear();
            return;
        }
        let mut sent = 0;
        if let Some(unsent) = connection.unsent.take() {
            connection.unsent = Some([&unsent, &self.output[..]].concat().into());
            self.output.clear();
            return;
        }
        let mut stream: &TcpStream = stream;
        while sent < self.output.len() {
            match stream.write(&self.output[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.unsent = Some(self.output[sent..].into());
                    break;
                }
                // The reading side will see the end.
                Err(_) => break,
            }
        }
        self.output.clear();
    }

    /// Sends what the kernel did not take before.
    pub(super) fn send_rest(&mut self, i: usize) {
        let connection = &mut self.connections[i];
        let (Some(unsent), Some(stream)) = (connection.unsent.take(), &connection.stream) else { return };
        let mut stream: &TcpStream = stream;
        let mut sent = 0;
        while sent < unsent.len() {
            match stream.write(&unsent[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    connection.unsent = Some(unsent[sent..].into());
                    return;
                }
                Err(_) => return,
            }
        }
    }

    /// When the next connection pings: each does once in three quarters of the keep-alive, one after another.
    fn ping_at(&self) -> u64 {
        let interval = f64::from(self.workload.keep_alive) * 0.75 * SECOND as f64;
        (interval * (self.pings + 1) as f64 / self.connections.len() as f64) as u64
    }

    fn ping(&mut self, now: u64) {
        if self.workload.keep_alive == 0 {
            return;
        }
        while self.ping_at() <= now {
            let i = self.pinger;
            self.pinger = (i + 1) % self.connections.len();
            self.pings += 1;
            if self.connections[i].state == State::Live {
                self.output.extend_from_slice(&PINGREQ);
                self.send(i);
            }
        }
    }
}
