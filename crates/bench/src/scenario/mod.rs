//! Scenarios: what a mix of populations does, and what has to come of it, in one TOML file.
//!
//! ```toml
//! name = "example"                # default: the file's name
//! duration = "60s"                # the measured part
//! ramp = "10s"                    # devices are switched on one after another
//! warm_up = "10s"                 # left out of the numbers; at least the ramp
//!
//! [target]                        # the default is loopback and the usual ports
//! coaps = "127.0.0.1:5684"
//!
//! [[population]]
//! name = "meters"
//! protocol = "coaps"              # coap, coaps, mqtt, mqtts, ws, wss
//! count = 900_000
//! period = "60s"                  # each device reports once in that time
//! rebind = { every = "5m", share = 0.5 }
//!
//! [slo]
//! p99 = "100ms"
//! ```
//!
//! `benches/scenarios/README.md` has all keys; the files beside it are the shipped scenarios. Each mistake is one line with file, line,
//! key, and what is allowed.

mod parse;
mod reader;
mod run;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use reader::duration;
pub use reader::{Mistake, Mistakes};
pub use run::{Options, Outcome, PopulationReport, run};

use crate::coap::{Rebinding, Security};
use crate::mqtt::To;
use crate::pattern::Pattern;

/// A whole scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The measured part.
    pub duration: Duration,
    /// Devices are switched on one after another.
    pub ramp: Duration,
    /// Left out of the numbers, at least the ramp.
    pub warm_up: Duration,
    /// Longest wait for outstanding answers at the end.
    pub drain: Duration,
    /// How much of the load there is, one stage after another from the start; 1 after the last.
    pub stages: Vec<Stage>,
    /// The servers.
    pub targets: Targets,
    /// Who takes part.
    pub populations: Vec<Population>,
    /// When many connections break at once.
    pub storms: Vec<Storm>,
    /// What has to come of it.
    pub slo: Slo,
    /// The file, to be sent to other processes.
    pub text: String,
}

/// A part of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stage {
    /// How long.
    pub lasts: Duration,
    /// Factor of the rate.
    pub load: f64,
}

/// Where servers listen, by protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Targets {
    /// HOST:PORT of each of [`Protocol::ALL`], where it is not the default.
    pub servers: [Option<String>; Protocol::ALL.len()],
    /// The certificate authority that TLS servers are checked against, in PEM; without it they are not checked.
    pub ca: Option<String>,
    /// The path of WebSocket.
    pub ws_path: String,
}

/// What a population speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// CoAP over UDP.
    Coap,
    /// CoAP over DTLS.
    Coaps,
    /// MQTT over TCP.
    Mqtt,
    /// MQTT over TLS.
    Mqtts,
    /// MQTT over WebSocket.
    Ws,
    /// MQTT over WebSocket over TLS.
    Wss,
}

impl Protocol {
    /// As the file says it, and the port it has by default.
    pub const ALL: [(&'static str, Protocol, u16); 6] = [
        ("coap", Protocol::Coap, 5683),
        ("coaps", Protocol::Coaps, 5684),
        ("mqtt", Protocol::Mqtt, 1883),
        ("mqtts", Protocol::Mqtts, 8883),
        ("ws", Protocol::Ws, 8083),
        ("wss", Protocol::Wss, 8084),
    ];

    /// As the file says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Protocol::ALL[self as usize].0
    }

    /// Whether it is CoAP.
    #[must_use]
    pub fn is_coap(self) -> bool {
        matches!(self, Protocol::Coap | Protocol::Coaps)
    }
}

// What a protocol has is found in `ALL` by its number.
const _: () = {
    let mut at = 0;
    while at < Protocol::ALL.len() {
        assert!(Protocol::ALL[at].1 as usize == at);
        at += 1;
    }
};

impl Targets {
    /// Where the servers of a protocol listen.
    #[must_use]
    pub fn of(&self, protocol: Protocol) -> String {
        let given = &self.servers[protocol as usize];
        given.clone().unwrap_or_else(|| format!("127.0.0.1:{}", Protocol::ALL[protocol as usize].2))
    }

    /// Sets one from `protocol=host:port`, or gives what is allowed.
    ///
    /// # Errors
    ///
    /// It has another form, or names no protocol.
    pub fn set(&mut self, text: &str) -> Result<(), String> {
        let set = text.split_once('=').and_then(|(name, address)| {
            let at = Protocol::ALL.iter().position(|(known, ..)| *known == name)?;
            self.servers[at] = Some(address.to_owned());
            Some(())
        });
        set.ok_or_else(|| {
            let names = Protocol::ALL.map(|(name, ..)| name).join(", ");
            format!("{text:?} must be PROTOCOL=HOST:PORT with a protocol of {names}")
        })
    }
}

/// How messages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// CoAP, confirmable.
    Con,
    /// CoAP, non-confirmable, the answer is awaited.
    Non,
    /// CoAP, non-confirmable with No-Response.
    NoResponse,
    /// MQTT, QoS 0 to 2.
    Qos(u8),
}

/// Devices that do the same.
#[derive(Debug, Clone)]
pub struct Population {
    /// What it is called.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// How many.
    pub count: u32,
    /// Devices are called this and their index in 8 digits.
    pub prefix: String,
    /// Path or topic, in which `{device}` stands for the device's name.
    pub topic: String,
    /// The same topic for all of another population's devices in turn: `{device}` in the topic stands for one of them.
    pub to: Option<String>,
    /// Whether the server keeps what they send, so that an audit looks for it.
    pub stored: bool,
    /// Least and most bytes of a payload.
    pub payload: (usize, usize),
    /// What payloads are, if not a mark and filler.
    pub pattern: Option<Arc<Pattern>>,
    /// Content-Format of CoAP payloads.
    pub content_format: u16,
    /// A CoAP path that each device observes, with `{device}` for its name.
    pub observe: Option<String>,
    /// How messages are sent.
    pub delivery: Delivery,
    /// PUT instead of POST.
    pub put: bool,
    /// Time between two messages of a device; none for devices that send nothing.
    pub period: Option<Duration>,
    /// Each wait is longer or shorter by up to this share.
    pub jitter: f64,
    /// All report at the same time, spread over so long.
    pub align: Option<Duration>,
    /// NATs that forget devices.
    pub rebind: Option<Rebinding>,
    /// Power saving.
    pub sleep: Option<Sleep>,
    /// What the client does to its own datagrams.
    pub impairment: Impairment,
    /// DTLS.
    pub security: Security,
    /// Seconds of MQTT keep-alive; 0 for none.
    pub keep_alive: u16,
    /// MQTT 3.1.1 (3) or 5.0 (5).
    pub version: u8,
    /// A clean start, rather than a session that the server keeps.
    pub clean: bool,
    /// MQTT user name and password, in which `{device}` stands for the device's name.
    pub username: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// A filter that each device subscribes to, and the QoS.
    pub subscribe: Option<(String, u8)>,
    /// Messages in flight on a connection.
    pub window: u16,
    /// Connections per second at most; 0 for no limit.
    pub connect_rate: f64,
    /// Connections under way at a time.
    pub connecting: usize,
    /// Offer to resume TLS sessions.
    pub resume: bool,
    /// Generator threads.
    pub threads: usize,
}

/// Power saving of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// It listens for so long after each message, then sleeps until the next one. MQTT devices disconnect.
    pub awake: Duration,
    /// While it sleeps it listens once in this time (eDRX), …
    pub edrx: Option<Duration>,
    /// … for so long.
    pub paging: Duration,
}

/// What the client does to its own datagrams, so that a network without faults has some.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Impairment {
    /// Share of the datagrams that are lost, each way.
    pub loss: f64,
    /// Delay of what is sent, in nanoseconds.
    pub delay: u64,
}

impl Impairment {
    /// Whether nothing is impaired.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Impairment::default()
    }
}

/// Many connections break at once, and come back as fast as they may.
#[derive(Debug, Clone, PartialEq)]
pub struct Storm {
    /// When, from the start of the run.
    pub at: Duration,
    /// Whose.
    pub population: String,
    /// Share of them.
    pub share: f64,
    /// Without a DISCONNECT.
    pub abrupt: bool,
}

/// What has to come of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Slo {
    /// 99th percentile of latency, every population.
    pub p99: Option<Duration>,
    /// 99.9th.
    pub p99_9: Option<Duration>,
    /// Messages refused, lost or given up, of those sent, at most.
    pub error_ratio: Option<f64>,
    /// Messages that a subscriber should have had and did not get, of those acknowledged, at most.
    pub loss_ratio: Option<f64>,
    /// Bytes of the server's memory a device, at most.
    pub bytes_per_session: Option<f64>,
    /// The server's processor time a message, in multiples of a bare echo's in the same run, at most.
    pub ceiling_ratio: Option<f64>,
    /// Devices of which a message was acknowledged, of all, at least.
    pub reported_ratio: Option<f64>,
    /// Handshakes of devices that had an association, at most.
    pub handshakes_again: Option<u64>,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    ///
    /// Every mistake in it.
    pub fn parse(name: &str, text: &str) -> Result<Scenario, Mistakes> {
        parse::scenario(name, text)
    }

    /// Reads a scenario from a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or every mistake in it.
    pub fn read(path: &Path) -> Result<Scenario, Mistakes> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Scenario::parse(&name, &text),
            Err(error) => Err(Mistakes(vec![Mistake {
                file: name,
                line: 0,
                key: String::new(),
                wrong: format!("it cannot be read: {error}"),
                allowed: "allowed: a scenario in TOML, as those in benches/scenarios".to_owned(),
            }])),
        }
    }

    /// The same as [`Scenario::scale`], for a factor that somebody gave.
    ///
    /// # Errors
    ///
    /// It is no factor.
    pub fn scale_by(&mut self, factor: f64) -> anyhow::Result<()> {
        if !(factor > 0.0 && factor <= 1_000.0) {
            anyhow::bail!("--scale {factor} must be above 0 and at most 1000");
        }
        self.scale(factor);
        Ok(())
    }

    /// Makes everything smaller by a factor: counts of devices.
    pub fn scale(&mut self, factor: f64) {
        for population in &mut self.populations {
            population.count = ((f64::from(population.count) * factor).round() as u32).max(1);
        }
    }

    /// Whom the messages of a population are for, if not for the server.
    pub(crate) fn receivers_of(&self, senders: &Population) -> Option<To> {
        let to = senders.to.as_ref()?;
        let receivers = self.populations.iter().find(|population| population.name == *to)?;
        Some(To { prefix: receivers.prefix.clone(), first: 0, count: receivers.count, senders: senders.count })
    }

    /// Index in the run of the first device of each population.
    pub(crate) fn bases(&self) -> Vec<u32> {
        let mut next = 0;
        let base = |population: &Population| {
            let base = next;
            next += population.count;
            base
        };
        self.populations.iter().map(base).collect()
    }
}
