//! Commands and flags.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use crate::audit::Source;
use crate::clock::Clock;
use crate::coap::echo::Echo;
use crate::coap::{self, Delivery, MAX_DEVICES, Method, Transmission, Workload};
use crate::ledger::Ledger;
use crate::mqtt;
use crate::payload::MIN_LEN;
use crate::process::{self, Machine};
use crate::report::{Consumer, Outcome, Quantiles, Report};
use crate::run::{Drive, Plan, Signals, Until};
use crate::schedule::DEFAULT_TICK_MICROS;

/// Simulated devices, ceilings and audits for IoT gateways.
#[derive(Debug, Parser)]
#[command(name = "tidegate-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Simulate CoAP devices against a server.
    Coap(CoapCommand),
    /// Simulate MQTT clients against a server.
    Mqtt(MqttCommand),
    /// Measure what this machine can do, with a server that does nothing but echo.
    Ceiling {
        #[command(subcommand)]
        what: Ceiling,
    },
    /// Be the server of a ceiling, until killed.
    Echo {
        #[command(subcommand)]
        what: EchoCommand,
    },
}

#[derive(Debug, Subcommand)]
enum Ceiling {
    /// A bare recvmmsg/sendmmsg echo of CoAP requests.
    Coap(CeilingCommand),
}

#[derive(Debug, Subcommand)]
enum EchoCommand {
    /// Answers each CoAP request with 2.04.
    Coap {
        /// Address and port; port 0 takes a free one.
        #[arg(long, default_value = "127.0.0.1:0")]
        listen: String,
        /// Threads, each with a socket of its own; 0 means one a core.
        #[arg(long, default_value_t = 0)]
        threads: usize,
        /// End when the process that started this one does.
        #[arg(long, hide = true)]
        die_with_parent: bool,
    },
}

#[derive(Debug, Args)]
struct CoapCommand {
    /// Address and port of the server.
    #[arg(long, default_value = "127.0.0.1:5683")]
    target: String,
    /// Do not ping the server first.
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    coap: CoapArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct CeilingCommand {
    /// Threads of the server; 0 means one a core.
    #[arg(long, default_value_t = 0)]
    server_threads: usize,
    #[command(flatten)]
    coap: CoapArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct CoapArgs {
    /// Simulated devices.
    #[arg(long, short = 'n', default_value_t = 1_000)]
    devices: u32,
    /// Messages in flight, all devices together; the default without --rate is 256 or the number of devices.
    #[arg(long, short = 'w', conflicts_with = "rate")]
    window: Option<usize>,
    /// Confirmable requests (the default).
    #[arg(long, conflicts_with_all = ["non", "no_response"])]
    con: bool,
    /// Non-confirmable requests, whose answers are awaited.
    #[arg(long)]
    non: bool,
    /// Non-confirmable requests that ask for no answer; needs --rate.
    #[arg(long, requires = "rate", conflicts_with = "non")]
    no_response: bool,
    /// Different source addresses of the devices; the default is one each. Only for servers on loopback.
    #[arg(long)]
    sources: Option<u32>,
    /// Path of the resource; {device} stands for the device's name.
    #[arg(long, default_value = "telemetry")]
    path: String,
    /// Request method.
    #[arg(long, value_enum, default_value = "post")]
    method: Method,
    /// Do not name the device in the query (?ep=NAME).
    #[arg(long)]
    no_ep: bool,
    /// ACK_TIMEOUT of RFC 7252, in seconds.
    #[arg(long, default_value_t = 2.0)]
    ack_timeout: f64,
    /// ACK_RANDOM_FACTOR of RFC 7252.
    #[arg(long, default_value_t = 1.5)]
    ack_random_factor: f64,
    /// MAX_RETRANSMIT of RFC 7252.
    #[arg(long, default_value_t = 4)]
    max_retransmit: u8,
    /// Seconds to wait for an answer that no acknowledgement carries.
    #[arg(long, default_value_t = 93.0)]
    answer_timeout: f64,
}

#[derive(Debug, Args)]
struct MqttCommand {
    /// Address and port of the server.
    #[arg(long, default_value = "127.0.0.1:1883")]
    target: String,
    /// Clients.
    #[arg(long, short = 'n', default_value_t = 1_000)]
    connections: u32,
    /// Protocol version: 3 (3.1.1) or 5.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=5))]
    version: u8,
    /// QoS of publishes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Messages in flight on each connection; the default is 1, with --rate 16.
    #[arg(long, short = 'w')]
    window: Option<u16>,
    /// Publish nothing: connect, hold the connections, and report the server's memory.
    #[arg(long, conflicts_with_all = ["rate", "window", "messages", "qos"])]
    idle: bool,
    /// Topic; {device} stands for the client's name.
    #[arg(long, default_value = "telemetry/{device}")]
    topic: String,
    /// Keep-alive in seconds; 0 for none.
    #[arg(long, default_value_t = 300)]
    keep_alive: u16,
    /// User name; {device} stands for the client's name.
    #[arg(long)]
    username: Option<String>,
    /// Password, likewise.
    #[arg(long, requires = "username")]
    password: Option<String>,
    /// Connections per second at most; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    connect_rate: f64,
    /// Connections under way at a time.
    #[arg(long, default_value_t = 64)]
    connecting: usize,
    /// Have one more client subscribe to this filter, and account for what it receives.
    #[arg(long, value_name = "FILTER")]
    subscribe: Option<String>,
    /// QoS of that subscription.
    #[arg(long, default_value_t = 0, requires = "subscribe", value_parser = clap::value_parser!(u8).range(0..=1))]
    subscribe_qos: u8,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Messages per second (open loop).
    #[arg(long, short = 'r')]
    rate: Option<f64>,
    /// Seconds to measure, after the warm-up.
    #[arg(long, short = 'd', default_value_t = 10.0)]
    duration: f64,
    /// End after so many messages instead.
    #[arg(long, conflicts_with = "duration")]
    messages: Option<u64>,
    /// Seconds in which the rate or window rises; part of the warm-up.
    #[arg(long, default_value_t = 0.0)]
    ramp: f64,
    /// Seconds at the start that are left out of the numbers; the default is 1 with --duration, 0 with --messages.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Longest wait for outstanding answers at the end, in seconds.
    #[arg(long, default_value_t = 30.0)]
    drain: f64,
    /// Bytes of a payload.
    #[arg(long, short = 's')]
    payload: Option<usize>,
    /// Generator threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Devices are called this and their index in 8 digits.
    #[arg(long, default_value = "bench-")]
    device_prefix: String,
    /// Distance of bursts in open loop, in microseconds.
    #[arg(long, default_value_t = DEFAULT_TICK_MICROS)]
    tick_micros: u64,
    /// The run is void if the generator sent 1 % of its messages later than this, in milliseconds (open loop).
    #[arg(long, default_value_t = 10.0)]
    max_late_millis: f64,
    /// Process whose processor time and memory are measured.
    #[arg(long)]
    server_pid: Option<u32>,
    /// Read back what the server stored in this data directory, and account for every acknowledged message.
    #[arg(long, value_name = "DATA_DIR")]
    audit: Option<PathBuf>,
    /// The program `tidegate` for --audit; the default is the one beside this program.
    #[arg(long, requires = "audit", value_name = "PATH")]
    tidegate: Option<PathBuf>,
    /// Write the report here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// No progress lines.
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Milliseconds to sleep in each loop of the generator, to see that a run says when it is too slow.
    #[arg(long, default_value_t = 0, hide = true)]
    handicap_millis: u64,
}

impl Cli {
    /// Carries the command out.
    ///
    /// # Errors
    ///
    /// It cannot be: wrong flags, no server, a limit of the system.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Cmd::Coap(CoapCommand { target, no_probe, coap, common }) => {
                let workload = coap.workload(resolve(&target)?, &common)?;
                if !no_probe {
                    workload.probe()?;
                }
                run_coap(&workload, &coap, &common, common.server_pid, "coap")
            }
            Cmd::Mqtt(command) => command.run(),
            Cmd::Ceiling { what: Ceiling::Coap(CeilingCommand { server_threads, coap, common }) } => {
                let mut server = EchoProcess::start(server_threads)?;
                let workload = coap.workload(server.local, &common)?;
                let pid = server.child.id();
                let result = run_coap(&workload, &coap, &common, Some(pid), "ceiling coap");
                server.stop();
                result
            }
            Cmd::Echo { what: EchoCommand::Coap { listen, threads, die_with_parent } } => {
                if die_with_parent {
                    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
                        .context("cannot ask for the parent's end")?;
                }
                let echo = Echo::start(resolve(&listen)?, threads_or_cores(threads))?;
                println!("coap listening on {}", echo.local_addr());
                std::io::stdout().flush().context("standard output is closed")?;
                echo.join()?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn threads_or_cores(threads: usize) -> usize {
    if threads > 0 { threads } else { Machine::this().cores }
}

/// An address, by number or name.
fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    let mut found =
        target.to_socket_addrs().with_context(|| format!("{target} is no HOST:PORT that can be resolved"))?;
    found.next().with_context(|| format!("{target} has no address"))
}

fn seconds(value: f64, flag: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| anyhow::anyhow!("{flag} {value} is no number of seconds from 0 on"))
}

impl Common {
    fn plan(&self, drive: Drive) -> anyhow::Result<Plan> {
        if let Drive::Rate(rate) = drive
            && !(rate > 0.0 && rate <= 1e9)
        {
            bail!("--rate {rate} must be above 0 and at most 1e9");
        }
        if drive == Drive::Window(0) {
            bail!("--window 0 would send nothing; give at least 1");
        }
        let until = match self.messages {
            Some(messages) => Until::Messages(messages),
            None => Until::Elapsed(seconds(self.duration, "--duration")?),
        };
        let warm_up = self.warm_up.unwrap_or(if self.messages.is_some() { 0.0 } else { 1.0 });
        Ok(Plan {
            drive,
            ramp: seconds(self.ramp, "--ramp")?,
            warm_up: seconds(warm_up, "--warm-up")?,
            until,
            drain: seconds(self.drain, "--drain")?,
        })
    }

    fn payload(&self, default: usize, most: usize) -> anyhow::Result<usize> {
        let payload = self.payload.unwrap_or(default);
        if !(MIN_LEN..=most).contains(&payload) {
            bail!("--payload {payload} must be {MIN_LEN} to {most} bytes");
        }
        Ok(payload)
    }

    fn source(&self) -> anyhow::Result<Option<Source>> {
        self.audit.clone().map(|dir| Source::new(dir, self.tidegate.clone())).transpose()
    }

    fn check(&self) -> anyhow::Result<()> {
        if let Some(pid) = self.server_pid
            && process::sample(pid).is_err()
        {
            bail!("--server-pid {pid}: there is no such process");
        }
        if self.threads == 0 {
            bail!("--threads 0 would run nothing; give at least 1");
        }
        if let Some(file) = &self.json {
            fs::write(file, "").with_context(|| format!("--json: cannot write {}", file.display()))?;
        }
        Ok(())
    }

    /// Reads back what the server stored, if that is asked for, and puts what was found into the report.
    fn audit(&self, source: Option<&Source>, run: u64, ledgers: &mut [Ledger], report: &mut Report) {
        report.reported_devices = ledgers.iter().map(Ledger::devices_acked).sum();
        match source.map(|source| source.audit(run, &self.device_prefix, ledgers)) {
            None => {}
            Some(Ok(audit)) => report.audit = Some(audit),
            // What was measured is reported all the same.
            Some(Err(error)) => report.verdict.fail(format!("the audit could not be done: {error:#}")),
        }
    }

    /// Prints the summary and writes the JSON.
    fn publish(&self, report: &Report) -> anyhow::Result<ExitCode> {
        print!("{}", report.summary());
        if let Some(file) = &self.json {
            let json = serde_json::to_vec_pretty(report).context("cannot encode the report")?;
            fs::write(file, json).with_context(|| format!("--json: cannot write {}", file.display()))?;
        }
        Ok(if report.verdict.outcome == Outcome::Pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// A number that no other run has, near enough.
fn run_id() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hash keys are the random numbers it offers.
    RandomState::new().hash_one(std::process::id())
}

impl CoapArgs {
    /// Bytes of a payload that fits a datagram of 1,280 bytes, the least that every IPv6 link carries (RFC 8200 §5).
    const MAX_PAYLOAD: usize = 1_024;

    fn delivery(&self) -> Delivery {
        match (self.non, self.no_response) {
            (_, true) => Delivery::NoResponse,
            (true, _) => Delivery::NonConfirmable,
            _ => Delivery::Confirmable,
        }
    }

    fn drive(&self, common: &Common) -> Drive {
        match (common.rate, self.window) {
            (Some(rate), _) => Drive::Rate(rate),
            (None, window) => Drive::Window(window.unwrap_or(256.min(self.devices as usize))),
        }
    }

    fn workload(&self, target: SocketAddr, common: &Common) -> anyhow::Result<Workload> {
        common.check()?;
        if !(1..=MAX_DEVICES).contains(&self.devices) {
            bail!("--devices {} must be 1 to {MAX_DEVICES}", self.devices);
        }
        let sources = self.sources.unwrap_or(self.devices).min(self.devices);
        if !(1..=coap::MAX_SOURCES).contains(&sources) {
            bail!("--sources {sources} must be 1 to {}", coap::MAX_SOURCES);
        }
        if !(self.ack_random_factor >= 1.0 && self.ack_random_factor <= 10.0) {
            bail!("--ack-random-factor {} must be 1 to 10", self.ack_random_factor);
        }
        if self.max_retransmit > 20 {
            bail!("--max-retransmit {} must be at most 20", self.max_retransmit);
        }
        let millis = |value, flag| Ok::<u64, anyhow::Error>(seconds(value, flag)?.as_millis() as u64);
        Ok(Workload {
            target,
            devices: self.devices,
            sources,
            run: run_id(),
            prefix: common.device_prefix.clone(),
            path: self.path.clone(),
            ep: !self.no_ep,
            method: self.method,
            delivery: self.delivery(),
            payload: common.payload(64, Self::MAX_PAYLOAD)?,
            transmission: Transmission {
                ack_timeout_millis: millis(self.ack_timeout, "--ack-timeout")?,
                ack_random_factor: self.ack_random_factor,
                max_retransmit: self.max_retransmit,
                answer_timeout_millis: millis(self.answer_timeout, "--answer-timeout")?,
            },
            tick_micros: common.tick_micros,
            threads: common.threads,
            handicap: Duration::from_millis(common.handicap_millis),
        })
    }
}

fn run_coap(
    workload: &Workload,
    args: &CoapArgs,
    common: &Common,
    server: Option<u32>,
    scenario: &str,
) -> anyhow::Result<ExitCode> {
    let plan = common.plan(args.drive(common))?;
    let source = common.source()?;
    let signals = Signals::take()?;
    let started_micros = Clock::start().wall_micros(0);
    let mut outcome = workload.run(plan, &signals, server, common.quiet)?;
    let mut report = Report::new(scenario, started_micros, workload.run, workload.target, workload.load(&plan));
    report.observe(&outcome.observed, &outcome.meter);
    report.generator.dropped_answers = outcome.dropped_answers;
    report.generator.bytes_per_device = outcome.bytes_per_device;
    common.audit(source.as_ref(), workload.run, &mut outcome.ledgers, &mut report);
    report.judge(common.max_late_millis);
    if outcome.reused_message_ids {
        report.verdict.notes.push(
            "devices used message IDs again within EXCHANGE_LIFETIME (RFC 7252 §4.4); more devices or sources avoid it"
                .to_owned(),
        );
    }
    common.publish(&report)
}

impl MqttCommand {
    /// Largest payload: as much as brokers take without being told to.
    const MAX_PAYLOAD: usize = 1 << 20;

    fn workload(&self) -> anyhow::Result<mqtt::Workload> {
        let common = &self.common;
        common.check()?;
        if self.connections == 0 {
            bail!("--connections 0 would do nothing; give at least 1");
        }
        if self.version == 4 {
            bail!("--version 4 is the protocol level of 3.1.1; give 3 or 5");
        }
        let window = self.window.unwrap_or(if common.rate.is_some() { 16 } else { 1 });
        if !(1..=mqtt::MAX_WINDOW).contains(&window) {
            bail!("--window {window} must be 1 to {}", mqtt::MAX_WINDOW);
        }
        if self.qos == 0 && common.rate.is_none() && !self.idle {
            bail!("--qos 0 has no acknowledgement to wait for; give a --rate");
        }
        if self.connecting == 0 {
            bail!("--connecting 0 would connect nothing; give at least 1");
        }
        if self.connect_rate.is_nan() || self.connect_rate < 0.0 {
            bail!("--connect-rate {} must be 0 or above", self.connect_rate);
        }
        Ok(mqtt::Workload {
            target: resolve(&self.target)?,
            connections: self.connections,
            version: if self.version == 5 { mqtt::Version::V5 } else { mqtt::Version::V3 },
            qos: self.qos,
            window,
            publishes: !self.idle,
            run: run_id(),
            prefix: common.device_prefix.clone(),
            topic: self.topic.clone(),
            payload: common.payload(256, Self::MAX_PAYLOAD)?,
            keep_alive: self.keep_alive,
            username: self.username.clone(),
            password: self.password.clone(),
            connect_rate: self.connect_rate,
            connecting: self.connecting,
            consumer: self.subscribe.clone().map(|filter| (filter, self.subscribe_qos)),
            tick_micros: common.tick_micros,
            threads: common.threads,
            handicap: Duration::from_millis(common.handicap_millis),
        })
    }

    fn run(&self) -> anyhow::Result<ExitCode> {
        let common = &self.common;
        let workload = self.workload()?;
        let drive = common.rate.map_or(Drive::Window(usize::from(workload.window)), Drive::Rate);
        let plan = common.plan(drive)?;
        let source = common.source()?;
        let signals = Signals::take()?;
        let started_micros = Clock::start().wall_micros(0);
        let mut outcome = workload.run(plan, &signals, common.server_pid, common.quiet)?;
        let mut report = Report::new("mqtt", started_micros, workload.run, workload.target, workload.load(&plan));
        report.observe(&outcome.observed, &outcome.meter);
        report.connect = Some(outcome.connect.clone());
        report.generator.bytes_per_device = outcome.bytes_per_device;
        if let (Some(received), Some((filter, _))) = (&outcome.received, &workload.consumer) {
            report.consumer = Some(Consumer {
                filter: filter.clone(),
                messages: received.messages,
                twice: received.twice,
                acked_and_missing: received.missing(&outcome.ledgers),
                corrupted: received.corrupted,
                latency: Quantiles::from(&received.latency),
            });
        }
        common.audit(source.as_ref(), workload.run, &mut outcome.ledgers, &mut report);
        report.judge(common.max_late_millis);
        if let Some(receive_maximum) = outcome.receive_maximum {
            report.verdict.notes.push(format!(
                "the server's Receive Maximum allows {receive_maximum} messages in flight, not {}",
                workload.window
            ));
        }
        common.publish(&report)
    }
}

/// An echo server in a process of its own, so that its processor time is told from the generator's.
struct EchoProcess {
    child: Child,
    local: SocketAddr,
}

impl EchoProcess {
    fn start(threads: usize) -> anyhow::Result<EchoProcess> {
        let own = std::env::current_exe().context("cannot find this program's own path")?;
        let mut child = Command::new(own)
            .args(["echo", "coap", "--die-with-parent", "--threads", &threads.to_string()])
            // An interrupt from the terminal is for the generator, which still awaits answers.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the echo server")?;
        let mut line = String::new();
        let output = child.stdout.take().context("the echo server has no output")?;
        BufReader::new(output).read_line(&mut line).context("cannot read from the echo server")?;
        let local = line.trim().rsplit(' ').next().and_then(|addr| addr.parse().ok());
        match local {
            Some(local) => Ok(EchoProcess { child, local }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the echo server did not start");
            }
        }
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        self.stop();
    }
}
