//! Simulated CoAP devices (RFC 7252).
//!
//! # Constraints
//!
//! - The generator shares a small machine with the server it measures, so it must be the cheaper of the two: one thread by default,
//!   one socket a thread, whole batches per system call, nothing allocated a message.
//! - A million devices: one costs 38 bytes, plus two bits a message for the audit; under DTLS 144 more.
//! - Devices behave as RFC 7252 §4 says: one exchange at a time (NSTART = 1), retransmission with the same message ID and bytes,
//!   exponential back-off, acknowledgement of separate answers.
//!
//! # Operation
//!
//! A socket bound to 0.0.0.0 sends each datagram from the address of its device, 127.1.0.0 + index, so that every device is an
//! endpoint of its own to a server on this host. The token holds the index of the device and the low byte of the message's number, the
//! message ID counts per endpoint; with them an answer is matched to its message by indexing, and a late, duplicate or wrong one is told
//! from a right one. Towards other hosts all devices of a thread share one endpoint, unless a network is named that is routed to this
//! one; DTLS and NAT rebinding need addresses.

pub mod echo;
pub mod echo_secure;
mod exchange;
mod fleet;
mod observe;
mod paths;
mod secure;
mod stage;
pub(crate) mod wire;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, bail};
use tidegate_net::UdpSocket;

pub use paths::{NotANet, Rebind, Rebinding, SourceNet};
pub use secure::Security;
pub use wire::Method;

use crate::audit::device_name;
use crate::clock::SECOND;
use crate::connect::{self, Lookout, Part as Stage};
use crate::credentials::MAX_PREFIX_LEN;
use crate::ledger::Ledger;
use crate::meter::Meter;
use crate::mqtt::To;
use crate::pattern::Pattern;
use crate::report::{Connect, Load};
use crate::run::{Control, Drive, Observed, Plan, Signals, Until};
use crate::scenario::{Impairment, Sleep};
use crate::schedule::{DEFAULT_TICK_MICROS, Schedule, Timetable};
use fleet::Fleet;
pub(crate) use fleet::Part;
use paths::{Addresses, Layout, Paths};

/// A token holds the device's index in 24 bits.
pub const MAX_DEVICES: u32 = 1 << 24;

/// How requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// CON.
    Confirmable,
    /// NON, and the answer is awaited.
    NonConfirmable,
    /// NON with No-Response (RFC 7967): sent and forgotten.
    NoResponse,
}

/// Transmission parameters (RFC 7252 §4.8).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transmission {
    /// ACK_TIMEOUT, in milliseconds.
    pub ack_timeout_millis: u64,
    /// ACK_RANDOM_FACTOR, ≥ 1.
    pub ack_random_factor: f64,
    /// MAX_RETRANSMIT.
    pub max_retransmit: u8,
    /// How long an answer is awaited that no acknowledgement carries: the separate one after an empty acknowledgement, and that to
    /// a NON.
    pub answer_timeout_millis: u64,
}

impl Default for Transmission {
    fn default() -> Transmission {
        // RFC 7252 §4.8; the last is MAX_TRANSMIT_WAIT (§4.8.2), after which a client may give up.
        Transmission {
            ack_timeout_millis: 2_000,
            ack_random_factor: 1.5,
            max_retransmit: 4,
            answer_timeout_millis: 93_000,
        }
    }
}

/// What the devices do.
#[derive(Debug, Clone)]
pub struct Workload {
    /// The server.
    pub target: SocketAddr,
    /// How many devices, `1..=MAX_DEVICES`.
    pub devices: u32,
    /// How many different source addresses they have, `1..=devices`. Ignored (1) unless the server is on a loopback IPv4 address or
    /// `source_net` is given.
    pub sources: u32,
    /// Where those addresses are, if not in 127.0.0.0/8: a network that is routed to this host, of which the kernel lets any program send
    /// once `ip route add local NET dev lo` says that it is ours.
    pub source_net: Option<SourceNet>,
    /// NATs that forget devices. Needs an address for each of them.
    pub rebinding: Option<Rebinding>,
    /// DTLS, if it is spoken. Needs an address for each device.
    pub security: Option<Security>,
    /// The run's identifier.
    pub run: u64,
    /// Devices are called this and their index.
    pub prefix: String,
    /// Path of the resource; `{device}` stands for the device's name.
    pub path: String,
    /// Whether requests carry `?ep=NAME`.
    pub ep: bool,
    /// POST or PUT.
    pub method: Method,
    /// CON or NON.
    pub delivery: Delivery,
    /// Bytes of a payload, at least [`crate::payload::MIN_LEN`].
    pub payload: usize,
    /// Most bytes of a payload: sizes are spread between the two.
    pub payload_most: usize,
    /// Index in the run of the first device, which its payloads carry.
    pub base: u32,
    /// Number in the name of the first device.
    pub offset: u32,
    /// What payloads are, if not a mark and filler.
    pub pattern: Option<Arc<Pattern>>,
    /// Content-Format of payloads (RFC 7252 §12.3).
    pub content_format: u16,
    /// Path that each device observes, in which `{device}` stands for its name.
    pub observe: Option<String>,
    /// Whether they report; those that do not only observe.
    pub reports: bool,
    /// Whose name `{device}` in the path stands for, if not the device's.
    pub to: Option<To>,
    /// Devices of the run, of which an observer may be told.
    pub devices_in_run: u32,
    /// When devices report, in a scenario: the drive of the plan does not matter then.
    pub timetable: Option<Timetable>,
    /// What the client does to its own datagrams.
    pub impairment: Impairment,
    /// When devices do not listen.
    pub sleep: Option<Sleep>,
    /// Timers.
    pub transmission: Transmission,
    /// Distance of bursts in open loop.
    pub tick_micros: u64,
    /// Generator threads.
    pub threads: usize,
    /// A delay before each loop of the generator: makes it too slow, to see that a run says so.
    pub handicap: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What ended a thread early, if anything did: what it measured is missing then.
    pub failure: Option<String>,
    /// Counts and histograms of all threads.
    pub meter: Meter,
    /// Acknowledged messages, one ledger a thread.
    pub ledgers: Vec<Ledger>,
    /// Handshakes before the run, if there were any.
    pub connect: Option<Connect>,
    /// What the watching thread saw.
    pub observed: Observed,
    /// Answers that the kernel dropped for want of room.
    pub dropped_answers: u64,
    /// Bytes of generator state a device.
    pub bytes_per_device: f64,
    /// An endpoint used a message ID again within EXCHANGE_LIFETIME (RFC 7252 §4.4), because it sent more than 65,536 messages in 247 s.
    pub reused_message_ids: bool,
}

impl Workload {
    /// Devices that report to `telemetry`, each from an address of its own.
    #[must_use]
    pub fn new(target: SocketAddr, devices: u32, run: u64) -> Workload {
        Workload {
            target,
            devices,
            sources: devices,
            source_net: None,
            rebinding: None,
            security: None,
            run,
            prefix: "bench-".to_owned(),
            path: "telemetry".to_owned(),
            ep: true,
            method: Method::Post,
            delivery: Delivery::Confirmable,
            payload: 64,
            payload_most: 64,
            base: 0,
            offset: 0,
            pattern: None,
            content_format: wire::OCTET_STREAM,
            observe: None,
            reports: true,
            to: None,
            devices_in_run: devices,
            timetable: None,
            impairment: Impairment::default(),
            sleep: None,
            transmission: Transmission::default(),
            tick_micros: DEFAULT_TICK_MICROS,
            threads: 1,
            handicap: Duration::ZERO,
        }
    }

    /// Bytes of a message's payload.
    #[inline]
    pub(crate) fn size(&self, index: u32, number: u32) -> usize {
        if self.payload_most <= self.payload {
            return self.payload;
        }
        let draw = crate::payload::mix(u64::from(index) << 32 | u64::from(number)) as usize;
        self.payload + draw % (self.payload_most - self.payload + 1)
    }

    /// The number in the name that a message's path has.
    #[inline]
    pub(crate) fn name(&self, index: u32, number: u32) -> u32 {
        let index = self.offset + index;
        self.to.as_ref().map_or(index, |to| to.receiver(index, number))
    }

    /// Whether devices have source addresses of their own.
    #[must_use]
    pub fn has_sources(&self) -> bool {
        self.net().is_some()
    }

    /// Where the devices' addresses are, if they have any of their own.
    fn net(&self) -> Option<SourceNet> {
        match self.target {
            SocketAddr::V4(_) if self.source_net.is_some() => self.source_net,
            SocketAddr::V4(target) if target.ip().is_loopback() => Some(SourceNet::LOOPBACK),
            _ => None,
        }
    }

    /// Sees whether what is asked for is possible.
    ///
    /// # Errors
    ///
    /// What is not.
    pub fn check(&self) -> anyhow::Result<()> {
        let net = self.net();
        if let Some(net) = net
            && self.sources > net.len()
        {
            bail!("{} source addresses are wanted and the network holds {}", self.sources, net.len());
        }
        let why = match (&self.security, &self.rebinding) {
            (Some(_), _) => "DTLS tells devices apart by their addresses",
            (_, Some(_)) => "a NAT that forgets a device gives it another address",
            _ => return Ok(()),
        };
        if net.is_none() {
            bail!(
                "{why}, so the target must be on 127.0.0.0/8, or --source-net must name a network that is routed here"
            );
        }
        if self.sources < self.devices {
            bail!("{why}, so --sources {} is too few for {} devices; leave it out", self.sources, self.devices);
        }
        if let Some(Rebinding { share, .. }) = self.rebinding
            && !(0.0..=1.0).contains(&share)
        {
            bail!("the share of devices behind a NAT that forgets is {share}; it must be 0 to 1");
        }
        if self.security.is_some() && self.prefix.len() > MAX_PREFIX_LEN {
            bail!("the prefix of device names may have {MAX_PREFIX_LEN} bytes: a DTLS identity has to hold it");
        }
        Ok(())
    }

    /// What the report says of it.
    #[must_use]
    pub fn load(&self, plan: &Plan) -> Load {
        Load {
            devices: self.devices,
            delivery: match self.delivery {
                Delivery::Confirmable => "CON",
                Delivery::NonConfirmable => "NON",
                Delivery::NoResponse => "NON with No-Response",
            }
            .to_owned()
                + if self.security.is_some() { " over DTLS" } else { "" },
            payload: self.payload,
            threads: self.threads,
            sources: if self.has_sources() { self.sources } else { 1 },
            ..Load::of(plan)
        }
    }

    /// Sends a ping (RFC 7252 §4.3) and waits for any answer, so that a server that is not there is an error and not a run full
    /// of timeouts.
    ///
    /// # Errors
    ///
    /// Nothing answers.
    pub fn probe(&self) -> anyhow::Result<()> {
        if self.security.is_some() {
            return self.probe_dtls();
        }
        let any: SocketAddr = if self.target.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = std::net::UdpSocket::bind(any).context("cannot open a UDP socket")?;
        socket.connect(self.target).with_context(|| format!("{} cannot be reached", self.target))?;
        socket.set_read_timeout(Some(PROBE_WAIT))?;
        let mut buffer = [0; 64];
        for mid in 0..PROBES {
            let answer = socket.send(&wire::empty(wire::Type::Confirmable, mid)).and_then(|_| socket.recv(&mut buffer));
            match answer {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    bail!("nothing listens on udp {}; start the server, or say with --target where it is", self.target);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).with_context(|| format!("{} cannot be reached", self.target)),
            }
        }
        bail!(
            "udp {} did not answer {PROBES} CoAP pings; is it a CoAP server? (--no-probe starts anyway)",
            self.target
        );
    }

    /// Makes one handshake, as the first device.
    fn probe_dtls(&self) -> anyhow::Result<()> {
        let mut probe = Workload { timetable: None, impairment: Impairment::default(), sleep: None, ..self.clone() };
        probe.observe = None;
        (probe.devices, probe.sources, probe.threads) = (1, 1, 1);
        (probe.rebinding, probe.handicap) = (None, Duration::ZERO);
        if let Some(security) = &mut probe.security {
            security.first_wait = security.first_wait.min(PROBE_WAIT);
        }
        let control = Control::new(Plan::idle(), 1)?;
        let target = self.target;
        let sockets = Paths::open(target, false)?;
        match probe.fleet(&Plan::idle(), sockets, 0, 0, 1).associate(&control)? {
            Stage { set_up: 1, .. } => Ok(()),
            Stage { reason: Some(reason), .. } if reason.contains("timed out") => bail!(
                "udp {target} did not answer a DTLS handshake; is it a CoAPS server with {CIPHER}? (--no-probe starts anyway)"
            ),
            Stage { reason, .. } => bail!(
                "udp {target} refused the DTLS handshake of {}: {}; does it know the keys that `tidegate-bench psks` writes, with the same \
                 --psk-seed and --device-prefix?",
                device_name(&self.prefix, self.offset),
                reason.unwrap_or_default()
            ),
        }
    }

    /// Whether handshakes are made before the run.
    pub(crate) fn shakes_first(&self) -> bool {
        self.security.as_ref().is_some_and(|security| security.handshake_first)
    }

    /// Handshakes or registrations of observers that are made before the run.
    pub(crate) fn set_ups(&self) -> u32 {
        if self.shakes_first() || self.observe.is_some() { self.devices } else { 0 }
    }

    /// Exchanges before the run that one thread may have under way, where `most` are wanted of all threads towards a server that is near. Each
    /// takes the longer the more the client delays it, and must not take its place from others meanwhile.
    pub(crate) fn under_way(&self, most: usize) -> usize {
        let places = 1 + (self.impairment.delay / NEAR) as usize;
        (most * places.min(MOST_PLACES) / self.threads).max(1)
    }

    /// Bytes of generator state a device.
    pub(crate) fn bytes_per_device(&self) -> f64 {
        Fleet::bytes_per_device(self.security.is_some(), self.timetable.is_some())
    }

    /// The sockets of one thread.
    pub(crate) fn sockets(&self) -> anyhow::Result<Vec<UdpSocket>> {
        Paths::open(self.target, self.rebinding.is_some())
    }

    /// The devices of one thread of several.
    pub(crate) fn fleet(
        &self,
        plan: &Plan,
        sockets: Vec<UdpSocket>,
        shard: usize,
        part: usize,
        threads: usize,
    ) -> Fleet<'_> {
        let at = |part: usize| (self.devices as usize * part / threads) as u32;
        let indices = at(part)..at(part + 1);
        let devices = indices.end - indices.start;
        let layout = match self.net() {
            None => Layout::One,
            Some(net) if self.sources >= self.devices => {
                Layout::Own { addresses: Addresses { net, devices: self.devices }, first: indices.start }
            }
            Some(net) => Layout::Shared { net, sources: self.sources.min(devices) },
        };
        let share = share(plan, self, part, threads, devices);
        Fleet::new(self, plan, Paths::new(sockets, layout, self.impairment), shard, indices, share)
    }

    /// Runs the devices.
    ///
    /// # Errors
    ///
    /// What is asked for is not possible, or sockets cannot be opened or fail.
    pub fn run(&self, plan: Plan, signals: &Signals, server: Option<u32>, quiet: bool) -> anyhow::Result<Outcome> {
        self.check()?;
        let threads = self.threads.clamp(1, self.devices as usize);
        let control = Control::new(plan, threads)?;
        // Sockets first: what fails fails before anything is sent.
        let sockets = (0..threads).map(|_| self.sockets()).collect::<anyhow::Result<Vec<_>>>()?;
        let lookout = Lookout::new(&control, signals, server, quiet);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let control = &control;
            let spawn = |(shard, sockets)| {
                let tell = tell.clone();
                scope.spawn(move || {
                    connect::live(Ok(self.fleet(&plan, sockets, shard, shard, threads)), 0, tell, control)
                })
            };
            let handles: Vec<_> = sockets.into_iter().enumerate().map(spawn).collect();
            drop(tell);
            let seen = lookout.watch(&told, (threads, 1), self.set_ups(), |stages| match &stages[0] {
                Stage { set_up: 0, reason: Some(reason), .. } => {
                    bail!("{}: no handshake succeeded: {reason}", self.target)
                }
                _ => Ok(()),
            })?;
            let mut outcome = Outcome {
                failure: None,
                meter: Meter::new(plan.measured()),
                ledgers: Vec::new(),
                connect: (self.set_ups() > 0).then(|| seen.report(&seen.stages[0])),
                observed: seen.observed,
                dropped_answers: 0,
                bytes_per_device: self.bytes_per_device(),
                reused_message_ids: false,
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
                outcome.dropped_answers += part.dropped_answers;
                outcome.reused_message_ids |= part.reused_message_ids;
            }
            Ok(outcome)
        })
    }
}

/// What one thread of several does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Share {
    /// Sends by a schedule, up to so many messages.
    Scheduled { schedule: Schedule, messages: u64 },
    /// Keeps so many in flight, up to so many messages.
    Windowed { window: usize, messages: u64 },
    /// Sends by the calendar.
    Timed,
    /// Sends nothing.
    Silent,
}

fn share(plan: &Plan, workload: &Workload, shard: usize, threads: usize, devices: u32) -> Share {
    let part = |whole: u64| whole * (shard as u64 + 1) / threads as u64 - whole * shard as u64 / threads as u64;
    if !workload.reports {
        return Share::Silent;
    }
    if workload.timetable.is_some() {
        return Share::Timed;
    }
    let messages = match plan.until {
        Until::Messages(messages) => part(messages),
        Until::Elapsed(_) => u64::MAX,
    };
    match plan.drive {
        Drive::Rate(rate) => {
            let rate = rate * f64::from(devices) / f64::from(workload.devices);
            Share::Scheduled { schedule: Schedule::new(rate, plan.ramp.as_secs_f64(), workload.tick_micros), messages }
        }
        Drive::Window(window) => Share::Windowed { window: (part(window as u64) as usize).max(1), messages },
    }
}

/// EXCHANGE_LIFETIME with the default parameters (RFC 7252 §4.8.2).
pub(crate) const EXCHANGE_LIFETIME: u64 = 247 * SECOND;

/// How long an exchange takes with a server that is near, in nanoseconds: some milliseconds, most of which are a commit.
const NEAR: u64 = 10_000_000;
/// How many times as many exchanges are under way with one that is far: beyond a second's delay there is time enough.
const MOST_PLACES: usize = 100;

/// Pings before the server is taken for absent: UDP loses datagrams.
const PROBES: u16 = 3;
/// Wait for each of their answers.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// The cipher suite of DTLS here, for messages.
const CIPHER: &str = "TLS_PSK_WITH_AES_128_CCM_8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_exchanges_take_the_more_are_under_way() {
        let mut workload = Workload::new((Ipv4Addr::LOCALHOST, 1).into(), 10, 0);
        assert_eq!(workload.under_way(256), 256);
        workload.impairment.delay = 150_000_000;
        workload.threads = 2;
        assert_eq!(workload.under_way(256), 2_048);
        workload.impairment.delay = u64::MAX;
        assert_eq!(workload.under_way(256), 12_800);
    }
}
