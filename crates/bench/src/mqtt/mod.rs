//! Simulated MQTT clients (MQTT 3.1.1 and 5.0).
//!
//! # Constraints
//!
//! - Thousands of connections a thread, driven by one epoll instance, without a task or a buffer each: an idle connection costs the
//!   generator a descriptor and 64 bytes.
//! - As many system calls as the server must make and no more: one read and one write for all the acknowledgements that
//!   arrived on a connection together.
//!
//! # Operation
//!
//! A run has two stages. First the connections are set up, no more than a bounded number at a time, which is measured by itself:
//! rate, time to CONNACK, the server's processor time and memory a connection. Then the clients publish, or are idle.
//!
//! A packet identifier is the message's number modulo 65,535, plus one. So an acknowledgement is matched to its message by
//! arithmetic, and one that comes twice or for nothing is told from a right one. At QoS 2 a message counts as acknowledged with its
//! PUBREC, with which the server takes it over (MQTT 5.0 §4.3.3).

mod answers;
mod connecting;
mod consumer;
mod crowd;
mod fanout;
mod layer;
mod lifecycle;
pub(crate) mod wire;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

pub(crate) use layer::host_of;
pub use layer::{Layers, TlsClient};
pub use lifecycle::Break;
pub use wire::Version;

use crate::connect::{self, Lookout};
use crate::ledger::Ledger;
use crate::meter::Meter;
use crate::pattern::Pattern;
use crate::report::{Connect, Load};
use crate::run::{Control, Drive, Observed, Plan, Signals, Until};
use crate::scenario::Sleep;
use crate::schedule::{DEFAULT_TICK_MICROS, Schedule, Timetable};
pub use consumer::{Received, ReceivedDump};
use crowd::Crowd;
pub(crate) use crowd::Part;

/// Descriptors of the process besides connections: standard streams, epoll, event and signal descriptors, files in /proc.
const OTHER_FILES: u64 = 64;

/// Share of the range of ephemeral ports that connections from one source address use towards a server on loopback. The kernel gives out those of
/// one parity first, and from half the range on walks through all of them at each connect, which takes it milliseconds.
const SHARE_OF_PORTS: f64 = 0.42;

/// Ports that other programs may use meanwhile, where connections towards another host come from one source address.
const OTHER_PORTS: u32 = 200;

/// The range of ephemeral ports, if the kernel does not tell (`ip(7)`).
const DEFAULT_PORTS: u32 = 28_232;

/// First of the source addresses, where one does not suffice.
const FIRST_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 1);

/// Wait for the server to accept a connection at all.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// What the clients do.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The server.
    pub target: SocketAddr,
    /// How many clients, at least 1.
    pub connections: u32,
    /// 3.1.1 or 5.0.
    pub version: Version,
    /// QoS of publishes, `0..=2`.
    pub qos: u8,
    /// Messages in flight on a connection, `1..=MAX_WINDOW`.
    pub window: u16,
    /// Publish at all.
    pub publishes: bool,
    /// Only the first so many clients publish, and only the others subscribe; see [`Workload::fan_out`].
    pub publishers: Option<u32>,
    /// Connections end with a reset at last, not with DISCONNECT.
    pub abrupt: bool,
    /// Connections that are open at a time, at least one a thread: while more are set up, each new one resets the oldest.
    pub open: u32,
    /// The run's identifier.
    pub run: u64,
    /// Clients are called this and their index.
    pub prefix: String,
    /// Topic; `{device}` stands for the client's name.
    pub topic: String,
    /// Bytes of a payload, at least [`crate::payload::MIN_LEN`].
    pub payload: usize,
    /// Most bytes of a payload: sizes are spread between the two.
    pub payload_most: usize,
    /// What payloads are, if not a mark and filler.
    pub pattern: Option<Arc<Pattern>>,
    /// TLS and WebSocket.
    pub layers: Layers,
    /// A clean start, rather than a session that the server keeps.
    pub clean: bool,
    /// A filter that each client subscribes to before it counts as connected, in which `{device}` stands for its name, and the QoS (0 or 1).
    pub subscribe: Option<(String, u8)>,
    /// Index in the run of the first client, which its payloads carry.
    pub base: u32,
    /// Number in the name of the first client.
    pub offset: u32,
    /// Devices of the run, of which a subscriber may receive.
    pub devices_in_run: u32,
    /// Whose name `{device}` in the topic stands for, if not the client's.
    pub to: Option<To>,
    /// When clients publish, in a scenario: the drive of the plan does not matter then.
    pub timetable: Option<Timetable>,
    /// Clients disconnect when they have nothing to send.
    pub sleep: Option<Sleep>,
    /// When connections break, in the order of time.
    pub breaks: Vec<Break>,
    /// Clients that were disconnected come back.
    pub reconnects: bool,
    /// Keep-alive in seconds; 0 for none. Clients ping at three quarters of it.
    pub keep_alive: u16,
    /// User name; `{device}` stands for the client's name.
    pub username: Option<String>,
    /// Password, likewise.
    pub password: Option<String>,
    /// Connections per second at most; 0 for no limit.
    pub connect_rate: f64,
    /// Connections that may be under way at a time, all threads together. More than the server's listen queue holds (mosquitto's: 100)
    /// would measure the kernel's repeated SYNs.
    pub connecting: usize,
    /// A consumer that subscribes to this filter, with this QoS (0 or 1).
    pub consumer: Option<(String, u8)>,
    /// Distance of bursts in open loop.
    pub tick_micros: u64,
    /// Connections from one source address, towards a server on loopback.
    pub per_source: u32,
    /// Generator threads.
    pub threads: usize,
    /// A delay before each loop of the generator: makes it too slow, to see that a run says so.
    pub handicap: Duration,
}

/// The devices that messages are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct To {
    /// How they are called.
    pub prefix: String,
    /// Number in the name of the first.
    pub first: u32,
    /// How many there are.
    pub count: u32,
    /// How many clients send to them, each to another one with each message.
    pub senders: u32,
}

impl To {
    /// Which message it is among those that all senders send, and from 0.
    pub(crate) fn turn(&self, sender: u32, number: u32) -> u64 {
        u64::from(number) * u64::from(self.senders) + u64::from(sender)
    }

    /// Number of the device that a message is for: they take turns.
    pub(crate) fn receiver(&self, sender: u32, number: u32) -> u32 {
        self.turn(sender, number).checked_rem(self.count.into()).unwrap_or(0) as u32
    }
}

/// Sizes of payloads between the least and the most, as many as are worth a template each.
const SIZES: usize = 16;

/// Largest window: packet identifiers in flight must be far fewer than there are, or an acknowledgement could stand for either of two
/// messages.
pub const MAX_WINDOW: u16 = 4_096;

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What ended a thread early, if anything did: what it measured is missing then.
    pub failure: Option<String>,
    /// Setting the connections up.
    pub connect: Connect,
    /// Counts and histograms of all threads.
    pub meter: Meter,
    /// Acknowledged messages, one ledger a thread.
    pub ledgers: Vec<Ledger>,
    /// What the consumer received.
    pub received: Option<Received>,
    /// What clients received that subscribed for themselves, all together.
    pub delivered: Option<Received>,
    /// What the watching thread saw.
    pub observed: Observed,
    /// Bytes of generator state a connection.
    pub bytes_per_device: f64,
    /// The server allows fewer messages in flight than the window (MQTT 5.0 §3.2.2.3.3).
    pub receive_maximum: Option<u16>,
}

/// What one thread of several does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Share {
    /// Keeps the connections.
    Idle,
    /// Publishes by a schedule, up to so many messages.
    Scheduled { schedule: Schedule, messages: u64 },
    /// Keeps the window of each connection full, up to so many messages.
    Windowed { messages: u64 },
    /// Publishes by the calendar.
    Timed,
}

impl Workload {
    /// Clients that publish to `telemetry/{device}` at QoS 1.
    #[must_use]
    pub fn new(target: SocketAddr, connections: u32, run: u64) -> Workload {
        Workload {
            target,
            connections,
            version: Version::V5,
            qos: 1,
            window: 1,
            publishes: true,
            publishers: None,
            abrupt: false,
            open: connections,
            run,
            prefix: "bench-".to_owned(),
            topic: "telemetry/{device}".to_owned(),
            payload: 256,
            payload_most: 256,
            pattern: None,
            layers: Layers::default(),
            clean: true,
            subscribe: None,
            base: 0,
            offset: 0,
            devices_in_run: connections,
            to: None,
            timetable: None,
            sleep: None,
            breaks: Vec::new(),
            reconnects: false,
            keep_alive: 300,
            username: None,
            password: None,
            connect_rate: 0.0,
            connecting: 64,
            consumer: None,
            tick_micros: DEFAULT_TICK_MICROS,
            per_source: ((f64::from(ephemeral_ports()) * SHARE_OF_PORTS) as u32).max(1),
            threads: 1,
            handicap: Duration::ZERO,
        }
    }

    /// The sizes of payloads.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = usize> {
        let (least, most) = (self.payload, self.payload_most.max(self.payload));
        let steps = (most - least + 1).min(SIZES);
        (0..steps).map(move |step| least + (most - least) * step / (steps - 1).max(1))
    }

    /// What the report says of it.
    #[must_use]
    pub fn load(&self, plan: &Plan) -> Load {
        let mut load = Load {
            devices: self.connections,
            delivery: if self.publishes { format!("QoS {}", self.qos) } else { "idle".to_owned() },
            payload: self.payload,
            threads: self.threads,
            sources: self.sources(),
            ..Load::of(plan)
        };
        if !self.publishes {
            (load.rate, load.window) = (None, None);
        }
        load
    }

    fn sources(&self) -> u32 {
        if self.target.ip().is_loopback() && self.target.is_ipv4() {
            self.connections.div_ceil(self.per_source)
        } else {
            1
        }
    }

    /// The source address of a connection, if it is not left to the system.
    pub(crate) fn source(&self, index: u32) -> Option<Ipv4Addr> {
        (self.sources() > 1).then(|| Ipv4Addr::from(u32::from(FIRST_SOURCE) + index / self.per_source))
    }

    /// Raises the limit of open files as far as it goes, and sees whether it and the ports suffice.
    pub(crate) fn check_files(&self) -> anyhow::Result<()> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
        let open = self.connections.min(self.open);
        let wanted = u64::from(open) + OTHER_FILES;
        if wanted > hard {
            bail!(
                "{open} connections need {wanted} open files, the limit is {hard}; use at most {} (--connections, of a scenario --scale or \
                 --processes), or raise it (ulimit -Hn)",
                hard.saturating_sub(OTHER_FILES)
            );
        }
        if wanted > soft {
            setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")?;
        }
        let ports = ephemeral_ports().saturating_sub(OTHER_PORTS);
        if self.sources() == 1 && open > ports {
            bail!(
                "{open} connections to {} need more ports than the {ports} of one source address; use at most so many (--connections, of a \
                 scenario --scale), or widen net.ipv4.ip_local_port_range",
                self.target
            );
        }
        Ok(())
    }

    /// Sees whether there is a server.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn probe(&self) -> anyhow::Result<()> {
        match TcpStream::connect_timeout(&self.target, PROBE_WAIT) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                bail!("nothing listens on tcp {}; start the server, or say with --target where it is", self.target)
            }
            Err(error) => Err(error).with_context(|| format!("{} cannot be reached", self.target)),
        }
    }

    /// Connections that one thread may have under way at a time.
    fn under_way(&self) -> usize {
        (self.connecting / self.threads).max(1)
    }

    /// Connections that one thread may have open at a time.
    fn open_at_once(&self) -> usize {
        (self.open as usize / self.threads).max(1)
    }

    /// Bytes of generator state a connection.
    pub(crate) fn bytes_per_connection(&self) -> f64 {
        Crowd::bytes_per_connection(if self.publishes { self.window } else { 0 })
    }

    /// The clients of one thread of several.
    pub(crate) fn crowd(&self, plan: &Plan, shard: usize, part: usize, threads: usize) -> anyhow::Result<Crowd<'_>> {
        let at = |part: usize| (self.connections as usize * part / threads) as u32;
        let indices = at(part)..at(part + 1);
        let share = share(plan, self, part, threads, indices.end - indices.start);
        Crowd::new(self, plan, shard, indices, share)
    }

    /// Connects the clients and runs them.
    ///
    /// # Errors
    ///
    /// The server is not there, does not accept so many, or a limit of the system is reached.
    pub fn run(&self, plan: Plan, signals: &Signals, server: Option<u32>, quiet: bool) -> anyhow::Result<Outcome> {
        self.check_files()?;
        self.probe()?;
        let threads = self.threads.clamp(1, self.connections as usize);
        let control = Control::new(plan, threads)?;
        let lookout = Lookout::new(&control, signals, server, quiet);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let control = &control;
            let spawn = |shard| {
                let tell = tell.clone();
                scope.spawn(move || connect::live(self.crowd(&plan, shard, shard, threads), 0, tell, control))
            };
            let handles: Vec<_> = (0..threads).map(spawn).collect();
            drop(tell);
            let seen = lookout.watch(&told, (threads, 1), self.connections, |stages| {
                match (stages[0].set_up, &stages[0].reason) {
                    (0, Some(reason)) => {
                        bail!("{} refused every connection: {reason}; see --username and --password", self.target)
                    }
                    (0, None) => {
                        bail!("{} closed every connection; is it an MQTT server of this version?", self.target)
                    }
                    _ => Ok(()),
                }
            })?;
            let mut outcome = Outcome {
                failure: None,
                connect: seen.report(&seen.stages[0]),
                meter: Meter::new(plan.measured()),
                ledgers: Vec::new(),
                received: None,
                delivered: None,
                observed: seen.observed,
                bytes_per_device: self.bytes_per_connection(),
                receive_maximum: None,
            };
            for handle in handles {
                let Some(part) = handle.join().expect("a generator thread panicked") else { continue };
                let part = match part {
                    Ok(part) => part,
                    // What the others measured is reported all the same.
                    Err(error) => {
                        outcome.failure.get_or_insert(format!("{error:#}"));
                        continue;
                    }
                };
                outcome.meter.add(&part.meter);
                outcome.ledgers.push(part.ledger);
                outcome.received = outcome.received.or(part.received);
                match (&mut outcome.delivered, part.delivered) {
                    (Some(all), Some(part)) => all.add(&part),
                    (all, part) => *all = all.take().or(part),
                }
                if part.receive_maximum < self.window && self.publishes {
                    outcome.receive_maximum = Some(part.receive_maximum);
                }
            }
            Ok(outcome)
        })
    }
}

/// How many ports the system gives out by itself.
fn ephemeral_ports() -> u32 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = range.split_ascii_whitespace().filter_map(|port| port.parse::<u32>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) if last >= first => last - first + 1,
        _ => DEFAULT_PORTS,
    }
}

fn share(plan: &Plan, workload: &Workload, shard: usize, threads: usize, connections: u32) -> Share {
    if workload.timetable.is_some() {
        return Share::Timed;
    }
    if !workload.publishes {
        return Share::Idle;
    }
    let messages = match plan.until {
        Until::Messages(messages) => {
            messages * (shard as u64 + 1) / threads as u64 - messages * shard as u64 / threads as u64
        }
        Until::Elapsed(_) => u64::MAX,
    };
    match plan.drive {
        Drive::Rate(rate) => {
            let rate = rate * f64::from(connections) / f64::from(workload.connections);
            Share::Scheduled { schedule: Schedule::new(rate, plan.ramp.as_secs_f64(), workload.tick_micros), messages }
        }
        Drive::Window(_) => Share::Windowed { messages },
    }
}
