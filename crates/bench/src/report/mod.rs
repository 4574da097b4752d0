//! What a run says at its end: to people in a few lines, to programs in JSON.
//!
//! The JSON is a [`Report`]; the field docs here are its schema. Times are in microseconds or seconds and sizes in bytes, as
//! the names say. A field is `null` where it does not apply.

mod merge;
mod text;

use base64::Engine as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer as _, V2Serializer};
use serde::{Deserialize, Serialize};

use crate::audit::Audit;
use crate::ceilings::Ceilings;
use crate::clock::SECOND;
use crate::meter::{Counts, Meter};
use crate::process::{KernelSockets, Machine, Sample};
use crate::run::{Drive, Moment, Observed, Plan, Second, Until, micros};
use crate::scenario::PopulationReport;
use crate::slo::Objective;

/// Version of the schema: it grows when a field changes its meaning or goes.
pub const SCHEMA: u32 = 1;

/// Share of time above which a generator thread may be what limits a closed loop.
const BUSY: f64 = 0.95;

/// A whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`]
    pub schema: u32,
    /// `tidegate-bench` and its version.
    pub tool: String,
    /// What was measured: `coap`, `coaps`, `mqtt`, or the name of a scenario.
    pub scenario: String,
    /// What the scenario is for.
    #[serde(default)]
    pub description: String,
    /// When the run started, microseconds since 1970.
    pub started_micros: u64,
    /// The run's identifier, which its payloads carry, in hexadecimal.
    pub run: String,
    /// Where it ran.
    pub machine: Machine,
    /// The server's address.
    pub target: String,
    /// What was asked for.
    pub load: Load,
    /// Setting connections up; MQTT only.
    pub connect: Option<Connect>,
    /// The measured part: from the end of the warm-up until nothing new was sent.
    pub measured: Measured,
    /// Counts of the whole run, warm-up and drain included.
    pub counts: Counts,
    /// Devices of which at least one message was acknowledged.
    pub reported_devices: u32,
    /// From when a message was due (open loop) or sent (closed loop) to its answer, for messages of the measured part. Messages
    /// without an answer count with the time that they waited.
    pub latency: Quantiles,
    /// How late the generator itself sent; open loop only.
    pub lateness: Option<Quantiles>,
    /// The server's process in the measured part, if `--server-pid` was given.
    pub server: Option<ServerUse>,
    /// The generator's own use in the measured part.
    pub generator: GeneratorUse,
    /// What the consumer received, if there was one.
    pub consumer: Option<Consumer>,
    /// The populations of a scenario.
    #[serde(default)]
    pub populations: Vec<PopulationReport>,
    /// What had to come of the scenario, and what did.
    #[serde(default)]
    pub slo: Vec<Objective>,
    /// The server's resident memory before anything was set up, in bytes.
    #[serde(default)]
    pub server_idle_rss: Option<u64>,
    /// The server's process was there at the start and not at the end.
    #[serde(default)]
    pub server_gone: bool,
    /// What the kernel kept for the sockets of this host at the end of the measured part, those of the generator included.
    #[serde(default)]
    pub kernel_sockets: Option<KernelSockets>,
    /// What this machine can do at most, measured in the same run.
    #[serde(default)]
    pub ceilings: Option<Ceilings>,
    /// The seconds of the run.
    pub timeline: Vec<Second>,
    /// What was found of the acknowledged messages, if `--audit` was given.
    pub audit: Option<Audit>,
    /// Whether the run counts.
    pub verdict: Verdict,
}

/// What was asked for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Load {
    /// Simulated devices or connections.
    pub devices: u32,
    /// Messages per second, in open loop.
    pub rate: Option<f64>,
    /// Messages in flight (CoAP: in all, MQTT: a connection), in closed loop.
    pub window: Option<usize>,
    /// `CON`, `NON`, `QoS 0` … .
    pub delivery: String,
    /// Bytes of a payload.
    pub payload: usize,
    /// Seconds of rise.
    pub ramp_seconds: f64,
    /// Seconds left out of the numbers.
    pub warm_up_seconds: f64,
    /// Seconds measured, unless messages were counted.
    pub duration_seconds: Option<f64>,
    /// Messages to send, if they were counted.
    pub messages: Option<u64>,
    /// Generator threads.
    pub threads: usize,
    /// Different source addresses.
    pub sources: u32,
}

impl Load {
    /// The part that a [`Plan`] tells.
    #[must_use]
    pub fn of(plan: &Plan) -> Load {
        let (rate, window) = match plan.drive {
            Drive::Rate(rate) => (Some(rate), None),
            Drive::Window(window) => (None, Some(window)),
        };
        let (duration_seconds, messages) = match plan.until {
            Until::Elapsed(duration) => (Some(duration.as_secs_f64()), None),
            Until::Messages(messages) => (None, Some(messages)),
        };
        Load {
            rate,
            window,
            ramp_seconds: plan.ramp.as_secs_f64(),
            warm_up_seconds: plan.warm_up.max(plan.ramp).as_secs_f64(),
            duration_seconds,
            messages,
            ..Load::default()
        }
    }
}

/// Setting connections up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connect {
    /// Connections that were accepted.
    pub connections: u32,
    /// Connections that were closed or refused instead.
    pub refused: u32,
    /// From the first SYN to the last CONNACK.
    pub seconds: f64,
    /// Connections per second.
    pub per_second: f64,
    /// From SYN to CONNACK.
    pub latency: Quantiles,
    /// The server's processor time a connection, in microseconds.
    pub server_cpu_micros_each: Option<f64>,
    /// The server's resident memory before the first connection, in bytes.
    pub server_rss_before: Option<u64>,
    /// The server's resident memory once all were connected and quiet, in bytes.
    pub server_rss_after: Option<u64>,
    /// The difference, a connection.
    pub server_rss_each: Option<f64>,
}

/// Rates of the measured part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Its length.
    pub seconds: f64,
    /// Messages sent in it.
    pub messages: u64,
    /// Messages acknowledged in it (without an acknowledgement to wait for: sent).
    pub acked: u64,
    /// Acknowledgements per second.
    pub acks_per_second: f64,
    /// A signal ended the run early.
    pub interrupted: bool,
}

/// Quantiles of a histogram, in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Values recorded.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p99_9: u64,
    /// 99.99 %.
    pub p99_99: u64,
    /// Largest.
    pub max: u64,
    /// The whole histogram, HdrHistogram V2 in base64, to be merged with others.
    pub histogram: String,
}

impl Quantiles {
    /// The whole histogram; `None` if the text is damaged.
    #[must_use]
    pub fn decode(&self) -> Option<Histogram<u64>> {
        let bytes = base64::engine::general_purpose::STANDARD.decode(&self.histogram).ok()?;
        Deserializer::new().deserialize(&mut &bytes[..]).ok()
    }
}

impl From<&Histogram<u64>> for Quantiles {
    fn from(histogram: &Histogram<u64>) -> Quantiles {
        let mut bytes = Vec::new();
        // Writing to memory does not fail, and our bounds are within what the format holds.
        let _ = V2Serializer::new().serialize(histogram, &mut bytes);
        let at = |quantile| histogram.value_at_quantile(quantile);
        Quantiles {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram.max(),
            histogram: base64::engine::general_purpose::STANDARD.encode(bytes),
        }
    }
}

/// What the server's process used in the measured part.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ServerUse {
    /// Processor seconds, user and system, all threads.
    pub cpu_seconds: f64,
    /// Processors kept busy.
    pub cores: f64,
    /// Resident memory at the start, in bytes.
    pub rss_begin: u64,
    /// Resident memory at the end, in bytes.
    pub rss_end: u64,
    /// Largest resident memory seen in a second of the run, in bytes.
    pub rss_peak: u64,
    /// Its own part of the memory at the end (no file pages), in bytes.
    pub anonymous_end: u64,
    /// What a message cost, if any was acknowledged.
    pub per_message: Option<PerMessage>,
}

/// What an acknowledged message cost the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PerMessage {
    /// Processor seconds a million of them.
    pub cpu_seconds_per_million: f64,
    /// Context switches a message: processor given up.
    pub voluntary_switches: f64,
    /// Context switches a message: processor taken away.
    pub involuntary_switches: f64,
}

/// What the generator used in the measured part.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct GeneratorUse {
    /// Processor seconds.
    pub cpu_seconds: f64,
    /// Share of the time that its threads were busy.
    pub busy: f64,
    /// Answers that the kernel dropped because the generator did not read them in time.
    pub dropped_answers: u64,
    /// Bytes it keeps a device.
    pub bytes_per_device: f64,
}

/// What a subscriber received.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Consumer {
    /// Its topic filter.
    pub filter: String,
    /// Messages received.
    pub messages: u64,
    /// Messages of the run that it received more than once.
    pub twice: u64,
    /// Messages of the run that it should have received, where that is known.
    #[serde(default)]
    pub expected: u64,
    /// Only the latest message of each device counts, as CoAP Observe promises no more: `expected` are devices, and
    /// `acked_and_missing` those that do not know it.
    #[serde(default)]
    pub latest: bool,
    /// Messages of the run that were acknowledged to their sender and that it did not receive.
    pub acked_and_missing: u64,
    /// Messages of the run whose payload was damaged.
    pub corrupted: u64,
    /// From when a message was due to its arrival at the subscriber.
    pub latency: Quantiles,
}

/// Whether a run counts.
///
/// The worst of what applies counts; the order is from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing that was asked for is violated.
    Pass,
    /// The generator could not do what it was told, so the numbers say nothing about the server.
    Void,
    /// The run could not be done as asked: nobody was let in, the server breaks the protocol, a limit of the system was reached. What was
    /// measured until then is all there is.
    Undone,
    /// The server broke a promise.
    Fail,
}

/// The outcome, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether the run counts.
    pub outcome: Outcome,
    /// A sentence for each reason.
    pub reasons: Vec<String>,
    /// What else a reader of the numbers should know.
    pub notes: Vec<String>,
}

impl Verdict {
    /// Nothing to complain of yet.
    #[must_use]
    pub fn pass() -> Verdict {
        Verdict { outcome: Outcome::Pass, reasons: Vec::new(), notes: Vec::new() }
    }

    /// The server broke a promise.
    pub fn fail(&mut self, reason: String) {
        self.add(Outcome::Fail, reason);
    }

    /// The run could not be done.
    pub fn undone(&mut self, reason: String) {
        self.add(Outcome::Undone, reason);
    }

    /// The numbers say nothing about the server.
    pub fn void(&mut self, reason: String) {
        self.add(Outcome::Void, reason);
    }

    fn add(&mut self, outcome: Outcome, reason: String) {
        self.outcome = self.outcome.max(outcome);
        self.reasons.push(reason);
    }
}

impl Measured {
    /// Between two moments.
    #[must_use]
    pub fn of(observed: &Observed) -> Measured {
        let Observed { begin, end, .. } = observed;
        let seconds = end.at.saturating_sub(begin.at) as f64 / SECOND as f64;
        let acked = end.acked.saturating_sub(begin.acked);
        Measured {
            seconds,
            messages: end.messages.saturating_sub(begin.messages),
            acked,
            acks_per_second: if seconds > 0.0 { acked as f64 / seconds } else { 0.0 },
            interrupted: observed.interrupted,
        }
    }
}

impl ServerUse {
    /// Between two moments of a run, if the server was seen at both.
    #[must_use]
    pub fn of(observed: &Observed) -> Option<ServerUse> {
        let Moment { server: Some(begin), .. } = observed.begin else { return None };
        let Moment { server: Some(end), .. } = observed.end else { return None };
        let acked = observed.end.acked.saturating_sub(observed.begin.acked) as f64;
        let seconds = observed.end.at.saturating_sub(observed.begin.at).max(1) as f64 / SECOND as f64;
        let used = |value: fn(&Sample) -> u64| value(&end).saturating_sub(value(&begin)) as f64;
        let cpu_seconds = used(|s| s.cpu_millis) / 1_000.0;
        let peak = observed.timeline.iter().filter_map(|second| second.server_rss).max().unwrap_or(0);
        Some(ServerUse {
            cpu_seconds,
            cores: cpu_seconds / seconds,
            rss_begin: begin.rss,
            rss_end: end.rss,
            rss_peak: peak.max(begin.rss).max(end.rss),
            anonymous_end: end.anonymous,
            per_message: (acked > 0.0).then(|| PerMessage {
                cpu_seconds_per_million: cpu_seconds / acked * 1e6,
                voluntary_switches: used(|s| s.voluntary_switches) / acked,
                involuntary_switches: used(|s| s.involuntary_switches) / acked,
            }),
        })
    }
}

impl Report {
    /// A report of a run that has not been observed.
    #[must_use]
    pub fn new(scenario: &str, started_micros: u64, run: u64, target: &dyn std::fmt::Display, load: Load) -> Report {
        Report {
            schema: SCHEMA,
            tool: concat!("tidegate-bench ", env!("CARGO_PKG_VERSION")).to_owned(),
            scenario: scenario.to_owned(),
            description: String::new(),
            started_micros,
            run: format!("{run:016x}"),
            machine: Machine::this(),
            target: target.to_string(),
            load,
            connect: None,
            measured: Measured::default(),
            counts: Counts::default(),
            reported_devices: 0,
            latency: Quantiles::default(),
            lateness: None,
            server: None,
            generator: GeneratorUse::default(),
            consumer: None,
            populations: Vec::new(),
            slo: Vec::new(),
            server_idle_rss: None,
            server_gone: false,
            kernel_sockets: None,
            ceilings: None,
            timeline: Vec::new(),
            audit: None,
            verdict: Verdict::pass(),
        }
    }

    /// Devices that send anything.
    #[must_use]
    pub fn senders(&self) -> u32 {
        let senders = self.populations.iter().filter(|population| population.period_seconds.is_some());
        if self.populations.is_empty() { self.load.devices } else { senders.map(|population| population.devices).sum() }
    }

    /// Takes in what was seen and counted.
    pub fn observe(&mut self, observed: &Observed, meter: &Meter) {
        self.measured = Measured::of(observed);
        self.counts = meter.counts.clone();
        self.latency = Quantiles::from(&meter.latency);
        self.lateness = self.load.rate.is_some().then(|| Quantiles::from(&meter.lateness));
        self.server = ServerUse::of(observed);
        self.kernel_sockets = observed.end.sockets;
        self.server_gone = observed.begin.server.is_some() && observed.end.server.is_none();
        let cpu_seconds = observed.end.own_cpu_millis.saturating_sub(observed.begin.own_cpu_millis) as f64 / 1_000.0;
        self.generator.cpu_seconds = cpu_seconds;
        self.generator.busy = cpu_seconds / self.measured.seconds.max(f64::MIN_POSITIVE) / self.load.threads as f64;
        self.timeline.clone_from(&observed.timeline);
    }

    /// Judges the run by what it holds. `late_millis` is how late the generator may send 1 % of its messages.
    pub fn judge(&mut self, late_millis: f64) {
        let verdict = &mut self.verdict;
        if let Some(audit) = &self.audit {
            if audit.acked_and_missing > 0 {
                verdict.fail(format!("{} acknowledged messages were not stored", audit.acked_and_missing));
            }
            if audit.stored_twice > 0 {
                verdict.fail(format!("{} messages were stored twice", audit.stored_twice));
            }
            if audit.corrupted > 0 {
                verdict.fail(format!("{} messages were stored damaged", audit.corrupted));
            }
        }
        if let Some(consumer) = &self.consumer
            && consumer.corrupted > 0
        {
            verdict.fail(format!("{} messages reached the consumer damaged", consumer.corrupted));
        }
        let c = &self.counts;
        for Objective { name, wanted, found, .. } in self.slo.iter().filter(|objective| !objective.met) {
            verdict.fail(format!("{name} is {found}, and {wanted} was wanted"));
        }
        let delivered = self.populations.iter().filter_map(|population| population.delivered.as_ref());
        let corrupted: u64 = delivered.map(|delivered| delivered.corrupted).sum();
        if corrupted > 0 {
            verdict.fail(format!("{corrupted} messages reached subscribers damaged"));
        }
        if c.wrong + c.malformed > 0 {
            verdict.undone(format!(
                "the server breaks the protocol, or is none of it: {} answers match nothing that was sent, {} cannot be read; see what \
                 listens at the target, and whether another run used these devices just before",
                c.wrong, c.malformed
            ));
        }
        if let Some(lateness) = &self.lateness {
            if lateness.p99 as f64 > late_millis * 1e3 {
                verdict.void(format!(
                    "the generator was late: 1 % of its messages left more than {} after they were due, {late_millis} ms are allowed \
                     (--max-late-millis); lower the rate, or give it a quieter machine or more --threads",
                    micros(lateness.p99)
                ));
            }
        } else if self.generator.busy > BUSY {
            verdict.notes.push(format!(
                "the generator was {:.0} % busy, so the rate may be its own; the server's CPU a message holds",
                self.generator.busy * 100.0
            ));
        }
        if self.generator.dropped_answers > 0 {
            verdict.void(format!("the generator lost {} answers in its receive queue", self.generator.dropped_answers));
        }
        let unserved = c.unserved();
        if unserved > 0 {
            verdict
                .notes
                .push(format!("{unserved} messages were not served; the latencies count the time that they waited"));
        }
        if self.server_gone {
            verdict.fail("the server's process ended during the run".to_owned());
        }
        if self.measured.interrupted {
            verdict.notes.push("a signal ended the run early".to_owned());
        }
        if verdict.outcome == Outcome::Undone {
            // That says why nothing was acknowledged, if nothing was.
        } else if c.messages > 0 && c.acked + c.unconfirmed == 0 {
            verdict.fail("nothing was acknowledged".to_owned());
        } else if self.measured.messages > 0 && self.measured.acked == 0 {
            verdict.fail("nothing was acknowledged in the measured part".to_owned());
        }
    }
}
