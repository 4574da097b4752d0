//! The connections of one generator thread, and its loop.

use std::io::{ErrorKind, Read, Write};
use std::mem::size_of;
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::consumer::{Consumer, Received};
use super::wire::{
    CONNACK, Connect, DISCONNECT, FAILURE, Malformed, PINGREQ, PINGRESP, PUBACK, PUBCOMP, PUBLISH, PUBREC, PUBREL,
    Packet, SERVER_DISCONNECT, Template, put_acknowledgement,
};
use super::{ConnectResult, Share, Workload};
use crate::audit::device_name;
use crate::clock::{Clock, SECOND};
use crate::ledger::{Ledger, MessageId};
use crate::meter::{Meter, histogram};
use crate::payload::Mark;
use crate::run::{Control, Phase, Plan};

/// Bytes that are read at a time: acknowledgements are 4 bytes, so this is far more than a window of them.
const READ_BYTES: usize = 16 << 10;

/// Connections that are looked at before anything else gets its turn.
const EVENTS: usize = 512;

/// Messages that are begun before answers get their turn.
const BURST: usize = 512;

/// Wait for the server to close after DISCONNECT. It closes first, so that its side and not ours keeps the ports in TIME-WAIT.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long a consumer may still receive nothing new, after the last acknowledgement, before it counts as having everything it will
/// get.
const QUIET: u64 = SECOND;

/// The epoll datum of the consumer, which is no connection's index.
const CONSUMER: u64 = u64::MAX;

/// Packet identifiers are `1..=IDS`; zero is none (MQTT 5.0 §2.2.1).
const IDS: u32 = 65_535;

/// One client.
#[derive(Debug)]
struct Connection {
    stream: Option<TcpStream>,
    state: State,
    /// Messages in flight: `<= window`.
    in_flight: u16,
    /// Messages begun.
    begun: u32,
    /// Messages due, in open loop: `begun <= due`.
    due: u32,
    /// When connecting began.
    since: u64,
    /// The beginning of a packet whose end has not arrived.
    tail: Option<Box<[u8]>>,
    /// What the kernel did not take yet.
    unsent: Option<Box<[u8]>>,
}

const _: () = assert!(size_of::<Connection>() <= 56, "the module doc says so");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Not begun.
    Fresh,
    /// SYN is sent.
    Connecting,
    /// CONNECT is sent.
    Greeting,
    /// CONNACK is here.
    Live,
    /// Closed, by whichever side.
    Over,
}

/// A message in flight.
#[derive(Debug, Clone, Copy)]
struct Slot {
    due_at: u64,
    number: u32,
    state: Flight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flight {
    None,
    /// Awaits PUBACK or PUBREC.
    Published,
    /// Awaits PUBCOMP.
    Released,
}

/// The first stage of one thread.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) connections: u32,
    pub(crate) refused: u32,
    /// What the server said to one that it refused.
    pub(crate) reason: Option<String>,
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) latency: Histogram<u64>,
}

/// What a thread leaves behind.
pub(crate) struct Part {
    pub(crate) meter: Meter,
    pub(crate) ledger: Ledger,
    pub(crate) received: Option<Received>,
    pub(crate) receive_maximum: u16,
}

/// Why a connection ends.
enum Loss {
    /// The server closed it, or it broke.
    Closed,
    /// The server sent what it may not.
    Malformed,
    /// The server said no, with a code.
    Refused(String),
}

/// The connections of one thread.
pub(crate) struct Crowd<'a> {
    workload: &'a Workload,
    shard: usize,
    share: Share,
    /// Index in the run of `connections[0]`.
    first: u32,
    connections: Vec<Connection>,
    /// `slots[i * window + number % window]` is message `number` of connection `i`, if in flight.
    slots: Vec<Slot>,
    epoll: Epoll,
    template: Template,
    consumer: Option<Consumer>,
    ledger: Ledger,
    meter: Meter,
    clock: Clock,
    in_flight: usize,
    live: u32,
    refused: u32,
    /// Messages begun, or due in open loop.
    started: u64,
    /// Connection that pings next.
    pinger: usize,
    pings: u64,
    receive_maximum: u16,
    /// Where packets are read to and built.
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<'a> Crowd<'a> {
    pub(crate) fn new(
        workload: &'a Workload,
        plan: &Plan,
        shard: usize,
        indices: Range<u32>,
        share: Share,
    ) -> anyhow::Result<Crowd<'a>> {
        let Workload { version, topic, prefix, qos, payload, .. } = workload;
        let slots = if workload.publishes && *qos > 0 { indices.len() * usize::from(workload.window) } else { 0 };
        let fresh = || Connection {
            stream: None,
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
            template: Template::new(*version, topic, prefix, *qos, *payload),
            consumer: None,
            ledger: Ledger::new(indices.start, indices.len() as u32),
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

    // --- first stage

    /// Sets the connections up.
    pub(crate) fn connect(&mut self, control: &Control) -> ConnectResult {
        self.clock = control.first_clock;
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut connected = Connected {
            connections: 0,
            refused: 0,
            reason: None,
            first: self.clock.now(),
            last: 0,
            latency: histogram(),
        };
        let share = self.connections.len() as f64 / f64::from(self.workload.connections);
        let rate = self.workload.connect_rate * share;
        let mut next = 0;
        loop {
            if control.is_abandoned() {
                bail!("called off");
            }
            let now = self.clock.now();
            let allowed = if rate > 0.0 {
                ((now - connected.first) as f64 / SECOND as f64 * rate) as usize + 1
            } else {
                usize::MAX
            };
            let settled = (self.live + self.refused) as usize;
            while next < self.connections.len() && next - settled < self.workload.connecting && next < allowed {
                self.open(next)?;
                next += 1;
            }
            if settled == self.connections.len() {
                break;
            }
            // With a rate, the next connection is due soon; else only an event moves anything.
            let timeout = if rate > 0.0 { 1u16 } else { 100 };
            let n = match self.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for connections"),
            };
            let now = self.clock.now();
            for event in &events[..n] {
                let i = event.data() as usize;
                let was_live = self.connections[i].state == State::Live;
                self.on_event(i, event.events(), now);
                self.send(i);
                if !was_live && self.connections[i].state == State::Live {
                    connected.latency.saturating_record((now - self.connections[i].since) / 1_000);
                    connected.last = now;
                    control.count_connected();
                }
            }
        }
        connected.connections = self.live;
        connected.refused = self.refused;
        connected.reason = self.meter.counts.refused.keys().next().cloned();
        if let (Some((filter, qos)), 0) = (&self.workload.consumer, self.shard) {
            let consumer = Consumer::subscribe(self.workload, filter, *qos)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET, CONSUMER);
            self.epoll.add(&consumer.stream, event).context("cannot watch the consumer's connection")?;
            self.consumer = Some(consumer);
        }
        Ok(connected)
    }

    /// Begins a connection.
    fn open(&mut self, i: usize) -> anyhow::Result<()> {
        let target = self.workload.target;
        let socket =
            Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP)).map_err(|error| match error
                .raw_os_error()
            {
                Some(code) if code == Errno::EMFILE as i32 || code == Errno::ENFILE as i32 => anyhow::anyhow!(
                    "too many open files after {i} connections; use fewer --connections or raise the limit (ulimit -n)"
                ),
                _ => anyhow::Error::new(error).context("cannot open a TCP socket"),
            })?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = self.workload.source(self.first + i as u32) {
            // The port is chosen when the destination is known, so that sources may use the same ones.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::from((source, 0)).into()).with_context(|| format!("cannot send from {source}"))?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => bail!(
                "out of local ports after {i} connections; use fewer --connections, or widen net.ipv4.ip_local_port_range"
            ),
            Err(error) => return Err(error).with_context(|| format!("{target} cannot be reached")),
        }
        let stream = TcpStream::from(socket);
        // Edge-triggered for both directions: nothing has to be changed ever after.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(&stream, EpollEvent::new(flags, i as u64)).context("cannot watch a connection")?;
        let connection = &mut self.connections[i];
        connection.since = self.clock.now();
        connection.stream = Some(stream);
        connection.state = State::Connecting;
        Ok(())
    }

    fn greet(&mut self, i: usize) {
        let name = device_name(&self.workload.prefix, self.first + i as u32);
        let named = |text: &Option<String>| text.as_ref().map(|text| text.replace("{device}", &name));
        let (username, password) = (named(&self.workload.username), named(&self.workload.password));
        let connect = Connect {
            version: self.workload.version,
            client_id: &name,
            keep_alive: self.workload.keep_alive,
            username: username.as_deref(),
            password: password.as_deref(),
        };
        connect.write(&mut self.output);
        self.connections[i].state = State::Greeting;
    }

    // --- second stage

    /// Runs the clients to the end.
    pub(crate) fn run(mut self, control: &Control) -> anyhow::Result<Part> {
        self.clock = control.ready();
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
            receive_maximum: self.receive_maximum,
        })
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
                    self.on_consumer();
                    continue;
                }
                let i = event.data() as usize;
                self.on_event(i, event.events(), now);
                if phase == Phase::Sending {
                    self.refill(i);
                }
                self.send(i);
            }
            self.ping(now);
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
                }
                let received = self.consumer.as_ref().map_or(0, |consumer| consumer.received.messages);
                if received != news || self.in_flight > 0 {
                    (news, news_at) = (received, now);
                }
                let is_quiet = self.consumer.is_none() || now >= news_at + QUIET;
                if self.in_flight == 0 && is_quiet || now >= give_up_at || control.is_abandoned() {
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
                self.meter.answered(self.due_at(i, number, now), now);
            }
        }
    }

    /// Sleeps until something arrives or is due. The epoll instance is itself polled, because its own wait takes milliseconds only.
    fn wait(&self, now: u64, phase: Phase, measured: &Range<u64>, give_up_at: u64) -> anyhow::Result<()> {
        let mut until = now + SECOND / 4;
        if phase == Phase::Sending {
            if let Share::Scheduled { schedule, .. } = self.share {
                until = until.min(schedule.due(self.started));
            }
            until = until.min(measured.end);
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

    /// Says DISCONNECT on all connections and waits for the server to close them.
    fn part(&mut self) {
        for connection in &mut self.connections {
            let Some(stream) = &connection.stream else { continue };
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
            Share::Idle => false,
            Share::Scheduled { messages, .. } | Share::Windowed { messages } => self.started >= messages,
        }
    }

    /// Begins what is due, up to a burst.
    fn start(&mut self, now: u64) -> usize {
        let Share::Scheduled { schedule, messages } = self.share else { return 0 };
        let mut n = 0;
        while n < BURST && self.started < messages {
            let due_at = schedule.due(self.started);
            if due_at > now {
                break;
            }
            let i = (self.started % self.connections.len() as u64) as usize;
            self.started += 1;
            n += 1;
            let number = self.connections[i].due;
            self.connections[i].due += 1;
            if self.connections[i].begun == number && self.may_begin(i) {
                self.meter.departed(due_at, now);
                self.begin(i, due_at);
                self.send(i);
            }
        }
        n
    }

    /// Fills the windows of all connections, at the start of a closed loop.
    fn fill_windows(&mut self) {
        for i in 0..self.connections.len() {
            self.refill(i);
            self.send(i);
        }
    }

    /// Builds what may be begun on a connection.
    fn refill(&mut self, i: usize) {
        match self.share {
            Share::Idle => {}
            Share::Windowed { messages } => {
                while self.started < messages && self.may_begin(i) {
                    self.started += 1;
                    self.connections[i].due += 1;
                    self.begin(i, self.clock.now());
                }
            }
            Share::Scheduled { .. } => {
                while self.connections[i].begun < self.connections[i].due && self.may_begin(i) {
                    let due_at = self.due_at(i, self.connections[i].begun, 0);
                    self.begin(i, due_at);
                }
            }
        }
    }

    /// Whether a connection may send another message: its window and the server's are open, and the kernel takes what it sends.
    fn may_begin(&self, i: usize) -> bool {
        let connection = &self.connections[i];
        if connection.state != State::Live || connection.unsent.is_some() {
            return false;
        }
        self.workload.qos == 0
            || connection.in_flight < self.workload.window.min(self.receive_maximum)
                && self.slots[self.slot(i, connection.begun)].state == Flight::None
    }

    fn slot(&self, i: usize, number: u32) -> usize {
        let window = usize::from(self.workload.window);
        i * window + number as usize % window
    }

    /// When message `number` of connection `i` is due, in open loop.
    fn due_at(&self, i: usize, number: u32, otherwise: u64) -> u64 {
        match self.share {
            Share::Scheduled { schedule, .. } => {
                schedule.due(u64::from(number) * self.connections.len() as u64 + i as u64)
            }
            _ => otherwise,
        }
    }

    /// Builds the next message of a connection.
    fn begin(&mut self, i: usize, due_at: u64) {
        let number = self.connections[i].begun;
        self.connections[i].begun += 1;
        self.meter.counts.messages += 1;
        let mark = Mark {
            run: self.workload.run,
            device: self.first + i as u32,
            number,
            due_micros: self.clock.wall_micros(due_at),
        };
        let id = (number % IDS + 1) as u16;
        self.template.write(id, &mark, &mut self.output);
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
    fn send(&mut self, i: usize) {
        if self.output.is_empty() {
            return;
        }
        let connection = &mut self.connections[i];
        let Some(stream) = &connection.stream else {
            self.output.clear();
            return;
        };
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
    fn send_rest(&mut self, i: usize) {
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

    // --- answers

    fn on_consumer(&mut self) {
        let Some(consumer) = &mut self.consumer else { return };
        match consumer.on_ready(&self.clock) {
            Ok(true) => {}
            Ok(false) => self.meter.counts.disconnects += 1,
            Err(Malformed) => self.meter.counts.malformed += 1,
        }
    }

    /// Takes in what happened to a connection; what there is to say is left in `output`.
    fn on_event(&mut self, i: usize, flags: EpollFlags, now: u64) {
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
        if flags.contains(EpollFlags::EPOLLOUT) && self.connections[i].unsent.is_some() {
            self.send_rest(i);
        }
        if let Err(loss) = self.read(i, now) {
            self.output.clear();
            self.lose(i, &loss, now);
        }
    }

    fn read(&mut self, i: usize, now: u64) -> Result<(), Loss> {
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
            if n < input.len() {
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
                self.connections[i].state = State::Live;
                self.live += 1;
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
            let id = number.map(|number| MessageId { device: self.first + i as u32, number });
            if id.is_some_and(|id| self.ledger.is_acked(id)) {
                self.meter.counts.duplicate += 1;
            } else {
                self.meter.counts.wrong += 1;
            }
            return;
        };
        let Slot { due_at, number, .. } = self.slots[slot];
        self.meter.answered(due_at, now);
        if reason >= FAILURE {
            self.meter.counts.refuse(format!("{kind} {reason:#04x}"));
            self.free(i, slot);
            return;
        }
        self.meter.counts.acked += 1;
        self.ledger.ack(MessageId { device: self.first + i as u32, number });
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
        let connection = &mut self.connections[i];
        connection.stream = None;
        connection.tail = None;
        connection.unsent = None;
        connection.state = State::Over;
        if was_live {
            self.live -= 1;
        } else {
            self.refused += 1;
        }
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
