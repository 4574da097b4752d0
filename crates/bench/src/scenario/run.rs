//! Running a scenario: all populations at once, each in generator threads of its own, under one clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{Delivery, Population, Protocol, Scenario};
use crate::cli::resolve;
use crate::coap;
use crate::connect::{self, Lookout, NotBegun, Part};
use crate::ledger::{Ledger, MessageId};
use crate::meter::{Counts, Meter, histogram};
use crate::mqtt::{self, Break, Layers, Received, TlsClient, host_of};
use crate::report::{Connect, Consumer, Load, Quantiles, Report};
use crate::run::{Control, Drive, Plan, Signals, Until};
use crate::schedule::Timetable;

/// What a run needs to know besides its scenario.
#[derive(Debug, Clone)]
pub struct Options {
    /// The run's identifier.
    pub run: u64,
    /// Which part of the devices is this process's, of how many.
    pub part: (u32, u32),
    /// See first whether the servers are there.
    pub probe: bool,
    /// The server's process.
    pub server: Option<u32>,
    /// No progress.
    pub quiet: bool,
    /// A delay before each loop of the generator.
    pub handicap: Duration,
}

/// One population of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PopulationReport {
    /// What it is called.
    pub name: String,
    /// What it speaks: `coap`, `coaps`, `mqtt`, `mqtts`, `ws`, `wss`.
    pub protocol: String,
    /// How many devices it has.
    pub devices: u32,
    /// `CON`, `QoS 1` … .
    pub delivery: String,
    /// Seconds between two messages of a device; none for devices that send nothing.
    pub period_seconds: Option<f64>,
    /// Setting its connections or associations up.
    pub connect: Option<Connect>,
    /// Counts of the whole run.
    pub counts: Counts,
    /// Devices of which at least one message was acknowledged.
    pub reported_devices: u32,
    /// From when a message was due to its answer, in the measured part.
    pub latency: Quantiles,
    /// How late the generator itself sent.
    pub lateness: Quantiles,
    /// From when a connection was wanted again to its CONNACK: after storms, sleep and losses.
    pub reconnect: Option<Quantiles>,
    /// What its devices received that subscribed.
    pub delivered: Option<Consumer>,
    /// Answers that the kernel dropped because the generator did not read them in time.
    pub dropped_answers: u64,
    /// Bytes the generator keeps a device.
    pub bytes_per_device: f64,
}

/// What came of a run, before anything is judged.
#[derive(Debug)]
pub struct Outcome {
    /// The report; audit, SLO and verdict are not in it yet.
    pub report: Report,
    /// Acknowledged messages, with the index of their population.
    pub ledgers: Vec<(usize, Ledger)>,
    /// What populations received that subscribed.
    pub received: Vec<Option<Received>>,
}

/// What a population's threads do.
enum Work {
    Coap(Box<coap::Workload>),
    Mqtt(Box<mqtt::Workload>),
}

/// What a thread leaves behind.
struct Remains {
    meter: Meter,
    ledger: Ledger,
    received: Option<Received>,
    reconnects: Option<Histogram<u64>>,
    dropped_answers: u64,
}

impl From<coap::Part> for Remains {
    fn from(part: coap::Part) -> Remains {
        let coap::Part { meter, ledger, dropped_answers, delivered, .. } = part;
        Remains { meter, ledger, received: delivered, reconnects: None, dropped_answers }
    }
}

impl From<mqtt::Part> for Remains {
    fn from(part: mqtt::Part) -> Remains {
        let mqtt::Part { meter, ledger, delivered, reconnects, .. } = part;
        Remains { meter, ledger, received: delivered, reconnects: Some(reconnects), dropped_answers: 0 }
    }
}

/// Runs a scenario. `ready` is called when everything is set up, and may wait for other processes.
///
/// # Errors
///
/// A server is not there or refuses everybody, or a limit of the system is reached.
pub fn run(
    scenario: &Scenario,
    options: &Options,
    signals: &Signals,
    ready: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    let plan = Plan {
        drive: Drive::Window(1),
        ramp: scenario.ramp,
        warm_up: scenario.warm_up,
        until: Until::Elapsed(scenario.duration),
        drain: scenario.drain,
    };
    let works = scenario
        .populations
        .iter()
        .zip(scenario.bases())
        .map(|(population, base)| work(scenario, population, base, options).with_context(|| population.name.clone()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    check(&works, options.probe)?;
    let mut groups: Vec<(String, Range<usize>)> = Vec::new();
    for (population, work) in scenario.populations.iter().zip(&works) {
        let start = groups.last().map_or(0, |(_, shards)| shards.end);
        groups.push((population.name.clone(), start..start + work.threads()));
    }
    let threads = groups.last().map_or(0, |(_, shards)| shards.end);
    let control = Control::grouped(plan, threads, groups.clone())?;
    let started_micros = crate::clock::Clock::start().wall_micros(0);
    // Sockets first: what fails fails before anything is sent.
    let mut sockets = Vec::new();
    for work in &works {
        for _ in 0..work.threads() {
            sockets.push(match work {
                Work::Coap(workload) => Some(workload.sockets()?),
                Work::Mqtt(_) => None,
            });
        }
    }
    let wanted = works.iter().map(Work::set_ups).sum();
    let lookout = Lookout::new(&control, signals, options.server, options.quiet);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let (control, plan) = (&control, &plan);
        let mut handles = Vec::new();
        let mut sockets = sockets.into_iter();
        for (group, work) in works.iter().enumerate() {
            let threads = work.threads();
            for part in 0..threads {
                let (shard, tell) = (groups[group].1.start + part, tell.clone());
                let sockets = sockets.next().flatten().unwrap_or_default();
                let live = move || match work {
                    Work::Coap(workload) => {
                        let fleet = workload.fleet(plan, sockets, shard, part, threads);
                        connect::live(Ok(fleet), group, tell, control).map(|part| part.map(Remains::from))
                    }
                    Work::Mqtt(workload) => {
                        let crowd = workload.crowd(plan, shard, part, threads);
                        connect::live(crowd, group, tell, control).map(|part| part.map(Remains::from))
                    }
                };
                handles.push((group, scope.spawn(live)));
            }
        }
        drop(tell);
        let seen = lookout.watch(&told, (threads, works.len()), wanted, |stages| {
            for (stage, population) in stages.iter().zip(&scenario.populations) {
                if let (0, Some(reason)) = (stage.set_up, &stage.reason) {
                    bail!(
                        "{}: the server refused everybody: {reason}; see the population's username, password, psk or topics, and what the \
                         server allows",
                        population.name
                    );
                }
            }
            ready()
        });
        let load = Load {
            devices: scenario.populations.iter().map(|population| population.count).sum(),
            rate: Some(offered(scenario)),
            window: None,
            delivery: "scenario".to_owned(),
            payload: scenario.populations.first().map_or(0, |population| population.payload.0),
            threads,
            ..Load::of(plan)
        };
        let mut report = Report::new(&scenario.name, started_micros, options.run, &targets(scenario), load);
        scenario.description.clone_into(&mut report.description);
        let seen = match seen {
            Ok(seen) => seen,
            Err(NotBegun { why, stages, set_up }) => {
                let mut all = Part::begin(u64::MAX);
                stages.iter().for_each(|stage| all.add(stage));
                report.connect = (wanted > 0).then(|| Connect { connections: set_up, ..all.report(None, None, None) });
                report.verdict.undone(format!("{why:#}"));
                // Whoever waits is told to end; nobody has anything to add.
                handles.into_iter().for_each(|(_, handle)| drop(handle.join()));
                return Ok(Outcome { report, ledgers: Vec::new(), received: Vec::new() });
            }
        };
        let mut remains: Vec<Vec<Remains>> = works.iter().map(|_| Vec::new()).collect();
        for (group, handle) in handles {
            let Some(part) = handle.join().expect("a generator thread panicked") else { continue };
            match part {
                Ok(part) => remains[group].push(part),
                // What the others measured is reported all the same.
                Err(error) => report.verdict.undone(format!("{}: {error:#}", scenario.populations[group].name)),
            }
        }
        let mut total = Meter::new(plan.measured());
        let mut outcome = Outcome { report, ledgers: Vec::new(), received: Vec::new() };
        let mut all = Part::begin(u64::MAX);
        for ((population, (work, stage)), remains) in
            scenario.populations.iter().zip(works.iter().zip(&seen.stages)).zip(remains)
        {
            let connect = (work.set_ups() > 0).then(|| stage.report(None, None, None));
            all.add(stage);
            let group = outcome.received.len();
            let report = population_report(population, work, connect, remains, &mut total, group, &mut outcome);
            outcome.report.populations.push(report);
        }
        outcome.report.observe(&seen.observed, &total);
        if wanted > 0 {
            outcome.report.connect = Some(seen.report(&all));
        }
        outcome.report.server_idle_rss = seen.idle_rss();
        outcome.report.generator.dropped_answers =
            outcome.report.populations.iter().map(|population| population.dropped_answers).sum();
        outcome.report.generator.bytes_per_device = weighted_bytes(&outcome.report.populations);
        Ok(outcome)
    })
}

fn population_report(
    population: &Population,
    work: &Work,
    connect: Option<Connect>,
    remains: Vec<Remains>,
    total: &mut Meter,
    group: usize,
    outcome: &mut Outcome,
) -> PopulationReport {
    let mut meter = Meter::new(0..u64::MAX);
    let mut received: Option<Received> = None;
    let mut reconnects = histogram();
    let mut dropped_answers = 0;
    let mut reported_devices = 0;
    for part in remains {
        for meter in [&mut meter, &mut *total] {
            meter.add(&part.meter);
        }
        if let Some(other) = part.received {
            match &mut received {
                Some(received) => received.add(&other),
                None => received = Some(other),
            }
        }
        if let Some(other) = &part.reconnects {
            let _ = reconnects.add(other);
        }
        dropped_answers += part.dropped_answers;
        reported_devices += part.ledger.devices_acked();
        outcome.ledgers.push((group, part.ledger));
    }
    outcome.received.push(received);
    PopulationReport {
        name: population.name.clone(),
        protocol: population.protocol.name().to_owned(),
        devices: work.devices(),
        delivery: match population.delivery {
            Delivery::Con => "CON".to_owned(),
            Delivery::Non => "NON".to_owned(),
            Delivery::NoResponse => "NON with No-Response".to_owned(),
            Delivery::Qos(qos) => format!("QoS {qos}"),
        },
        period_seconds: population.period.map(|period| period.as_secs_f64()),
        connect,
        counts: meter.counts.clone(),
        reported_devices,
        latency: Quantiles::from(&meter.latency),
        lateness: Quantiles::from(&meter.lateness),
        reconnect: (!reconnects.is_empty()).then(|| Quantiles::from(&reconnects)),
        delivered: None,
        dropped_answers,
        bytes_per_device: work.bytes_per_device(),
    }
}

impl Outcome {
    /// Settles what subscribers and observers should have received. It needs the ledgers of all processes.
    pub fn settle_deliveries(&mut self, scenario: &Scenario) {
        for (at, population) in scenario.populations.iter().enumerate() {
            let Some(received) = &self.received[at] else { continue };
            let (filter, observes) = match (&population.subscribe, &population.observe) {
                (Some((filter, _)), _) => (filter, false),
                (None, Some(path)) => (path, true),
                (None, None) => continue,
            };
            let is_direct = filter.contains("{device}");
            let sends_here = |sender: &Population| match is_direct {
                true => sender.to.as_ref() == Some(&population.name),
                false => sender.to.is_none() && sender.topic == *filter,
            };
            let senders = self.ledgers.iter().filter(|(group, _)| sends_here(&scenario.populations[*group]));
            let acked = || senders.clone().map(|(_, ledger)| ledger.balance().acked).sum::<u64>();
            // What carries no mark can only be counted.
            let is_marked = senders
                .clone()
                .all(|(group, _)| scenario.populations[*group].pattern.as_ref().is_none_or(|p| p.is_marked()));
            let by_number = |expected: u64| (expected, expected.saturating_sub(received.messages));
            let (expected, missing) = match (is_marked, observes, is_direct) {
                (false, ..) => by_number(acked()),
                (true, true, _) => latest(scenario, senders.clone(), received),
                (true, false, true) => {
                    let missing = |ledger| received.missing(std::slice::from_ref(ledger));
                    (acked(), senders.clone().map(|(_, ledger)| missing(ledger)).sum())
                }
                // Each of the devices should have each of the messages.
                (true, false, false) => by_number(acked() * u64::from(population.count)),
            };
            self.report.populations[at].delivered = Some(Consumer {
                filter: filter.clone(),
                messages: received.messages,
                twice: if is_direct { received.twice } else { 0 },
                expected,
                latest: observes,
                acked_and_missing: missing,
                corrupted: received.corrupted,
                latency: Quantiles::from(&received.latency),
            });
        }
    }
}

/// Of how many devices a latest message was acknowledged to its sender, and how many of those know neither it nor a later one.
fn latest<'a>(
    scenario: &Scenario,
    senders: impl Iterator<Item = &'a (usize, Ledger)>,
    received: &Received,
) -> (u64, u64) {
    let bases = scenario.bases();
    // The message as its receiver and its turn among those of all senders.
    let turn = |id: MessageId| {
        let group = bases.iter().rposition(|base| *base <= id.device)?;
        let to = scenario.receivers_of(&scenario.populations[group])?;
        let sender = id.device - bases[group];
        Some((to.receiver(sender, id.number), to.turn(sender, id.number)))
    };
    let last = |ids: &mut dyn Iterator<Item = MessageId>| {
        let mut last: HashMap<u32, u64> = HashMap::new();
        for (receiver, turn) in ids.filter_map(turn) {
            let known = last.entry(receiver).or_default();
            *known = turn.max(*known);
        }
        last
    };
    let wanted = last(&mut senders.flat_map(|(_, ledger)| ledger.acked()));
    let known = last(&mut received.received());
    let missing = wanted.iter().filter(|(receiver, turn)| known.get(receiver).is_none_or(|known| known < turn)).count();
    (wanted.len() as u64, missing as u64)
}

fn weighted_bytes(populations: &[PopulationReport]) -> f64 {
    let devices: f64 = populations.iter().map(|population| f64::from(population.devices)).sum();
    populations.iter().map(|population| population.bytes_per_device * f64::from(population.devices)).sum::<f64>()
        / devices.max(1.0)
}

/// Messages a second that the devices mean to send.
fn offered(scenario: &Scenario) -> f64 {
    let rate = |population: &Population| {
        population.period.map_or(0.0, |period| f64::from(population.count) / period.as_secs_f64())
    };
    scenario.populations.iter().map(rate).sum()
}

/// The servers, for people.
fn targets(scenario: &Scenario) -> String {
    let mut seen: Vec<Protocol> = Vec::new();
    for population in &scenario.populations {
        if !seen.contains(&population.protocol) {
            seen.push(population.protocol);
        }
    }
    let shown = |protocol: &Protocol| format!("{}://{}", protocol.name(), scenario.targets.of(*protocol));
    seen.iter().map(shown).collect::<Vec<_>>().join(" ")
}

impl Work {
    fn devices(&self) -> u32 {
        match self {
            Work::Coap(workload) => workload.devices,
            Work::Mqtt(workload) => workload.connections,
        }
    }

    fn threads(&self) -> usize {
        let threads = match self {
            Work::Coap(workload) => workload.threads,
            Work::Mqtt(workload) => workload.threads,
        };
        threads.clamp(1, self.devices() as usize)
    }

    /// Connections or associations that are set up before the run.
    fn set_ups(&self) -> u32 {
        match self {
            Work::Coap(workload) => workload.set_ups(),
            Work::Mqtt(workload) => workload.connections,
        }
    }

    fn bytes_per_device(&self) -> f64 {
        match self {
            Work::Coap(workload) => workload.bytes_per_device(),
            Work::Mqtt(workload) => workload.bytes_per_connection(),
        }
    }
}

/// Sees whether everything is possible, before anything is done.
fn check(works: &[Work], probe: bool) -> anyhow::Result<()> {
    let mut connections = 0;
    for work in works {
        match work {
            Work::Coap(workload) => {
                workload.check()?;
                if probe {
                    workload.probe()?;
                }
            }
            Work::Mqtt(workload) => {
                connections += workload.connections;
                if probe {
                    workload.probe()?;
                }
            }
        }
    }
    let all = works.iter().find_map(|work| match work {
        Work::Mqtt(workload) => Some(mqtt::Workload { connections, ..(**workload).clone() }),
        Work::Coap(_) => None,
    });
    all.map_or(Ok(()), |all| all.check_files())
}

/// What a process does of a population.
fn work(scenario: &Scenario, population: &Population, base: u32, options: &Options) -> anyhow::Result<Work> {
    let (part, parts) = options.part;
    let at = |part: u32| (u64::from(population.count) * u64::from(part) / u64::from(parts)) as u32;
    let (offset, devices) = (at(part), at(part + 1) - at(part));
    if devices == 0 {
        bail!("there are fewer devices than processes; use fewer processes or a larger count");
    }
    let target_text = scenario.targets.of(population.protocol);
    let target = resolve(&target_text)?;
    let mut end = 0;
    let stages = scenario.stages.iter().map(|stage| {
        end += stage.lasts.as_nanos() as u64;
        (end, stage.load)
    });
    let timetable = population.period.map(|period| Timetable {
        period: period.as_nanos() as u64,
        jitter: population.jitter,
        aligned: population.align.map(|align| align.as_nanos() as u64),
        ramp: scenario.ramp.as_nanos() as u64,
        stages: stages.collect(),
        devices: population.count,
        seed: crate::payload::mix(options.run ^ u64::from(base)),
    });
    let devices_in_run = scenario.populations.iter().map(|population| population.count).sum();
    if population.protocol.is_coap() {
        let secure = population.protocol == Protocol::Coaps;
        return Ok(Work::Coap(Box::new(coap::Workload {
            rebinding: population.rebind,
            security: secure.then(|| population.security.clone()),
            ep: !secure,
            prefix: population.prefix.clone(),
            path: population.topic.clone(),
            method: if population.put { coap::Method::Put } else { coap::Method::Post },
            delivery: match population.delivery {
                Delivery::Non => coap::Delivery::NonConfirmable,
                Delivery::NoResponse => coap::Delivery::NoResponse,
                _ => coap::Delivery::Confirmable,
            },
            payload: population.payload.0,
            payload_most: population.payload.1,
            pattern: population.pattern.clone(),
            content_format: population.content_format,
            observe: population.observe.clone(),
            reports: population.period.is_some(),
            to: scenario.receivers_of(population),
            devices_in_run,
            base: base + offset,
            offset,
            timetable,
            impairment: population.impairment,
            sleep: population.sleep,
            threads: population.threads,
            handicap: options.handicap,
            ..coap::Workload::new(target, devices, options.run)
        })));
    }
    let breaks = scenario.storms.iter().filter(|storm| storm.population == population.name).map(|storm| Break {
        at: storm.at.as_nanos() as u64,
        share: storm.share,
        abrupt: storm.abrupt,
    });
    let mut breaks: Vec<_> = breaks.collect();
    breaks.sort_by_key(|storm| storm.at);
    Ok(Work::Mqtt(Box::new(mqtt::Workload {
        version: if population.version == 3 { mqtt::Version::V3 } else { mqtt::Version::V5 },
        qos: if let Delivery::Qos(qos) = population.delivery { qos } else { 1 },
        window: population.window,
        publishes: population.period.is_some(),
        prefix: population.prefix.clone(),
        topic: population.topic.clone(),
        payload: population.payload.0,
        payload_most: population.payload.1,
        pattern: population.pattern.clone(),
        layers: layers(scenario, population, &target_text, target)?,
        clean: population.clean,
        subscribe: population.subscribe.clone(),
        base: base + offset,
        offset,
        devices_in_run,
        to: scenario.receivers_of(population),
        timetable,
        sleep: population.sleep,
        breaks,
        reconnects: true,
        keep_alive: population.keep_alive,
        username: population.username.clone(),
        password: population.password.clone(),
        connect_rate: population.connect_rate / f64::from(parts),
        connecting: population.connecting,
        threads: population.threads,
        handicap: options.handicap,
        ..mqtt::Workload::new(target, devices, options.run)
    })))
}

fn layers(scenario: &Scenario, population: &Population, text: &str, target: SocketAddr) -> anyhow::Result<Layers> {
    let host = host_of(text, target);
    let tls = matches!(population.protocol, Protocol::Mqtts | Protocol::Wss);
    let websocket = matches!(population.protocol, Protocol::Ws | Protocol::Wss);
    let ca = scenario.targets.ca.as_deref().map(Path::new);
    Ok(Layers {
        tls: tls.then(|| TlsClient::new(ca, &host, population.resume)).transpose()?,
        websocket: websocket.then(|| (host, scenario.targets.ws_path.clone())),
    })
}
