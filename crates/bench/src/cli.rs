//! Commands and flags.

use std::fs;
use std::io::{BufWriter, Write};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};

use crate::audit::{Population as Audited, Source};
use crate::ceilings::{Ceilings, serve_tcp};
use crate::clock::Clock;
use crate::coap::echo::Echo;
use crate::coap::echo_secure::SecureEcho;
use crate::coap::{Delivery, MAX_DEVICES, Method, Rebind, Rebinding, Security, SourceNet, Transmission, Workload};
use crate::credentials::{DEFAULT_SEED, Keys, MAX_PREFIX_LEN, write_registry};
use crate::join::RunCommand;
use crate::ledger::Ledger;
use crate::mqtt;
use crate::payload::MIN_LEN;
use crate::process::{self, Machine};
use crate::report::{Consumer, Load, Outcome, Quantiles, Report};
use crate::run::{Drive, Plan, Signals, Until};
use crate::schedule::DEFAULT_TICK_MICROS;
use crate::server::EchoProcess;
use crate::{compare, html};

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
    /// Simulate devices that speak CoAP over DTLS 1.2 with pre-shared keys and Connection ID.
    Coaps {
        #[command(flatten)]
        security: SecurityArgs,
        #[command(flatten)]
        command: CoapCommand,
    },
    /// Simulate MQTT clients against a server.
    Mqtt(MqttCommand),
    /// Run a scenario: populations over several protocols, and what has to come of it.
    Run(Box<RunCommand>),
    /// Show two reports side by side, and which differences are more than noise.
    Compare {
        /// The report of the run before.
        before: PathBuf,
        /// The report of the run after.
        after: PathBuf,
        /// Write the comparison here, as HTML.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Turn a report into one HTML file with plots.
    Html {
        /// A report, as --json writes it.
        report: PathBuf,
        /// The file to write.
        out: PathBuf,
    },
    /// Print the keys of simulated devices, as a registry imports them: identity,key,device,tenant.
    Psks(PsksCommand),
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
    /// All of them shortly: UDP and TCP echo, disk, CRC32C, AES-CCM.
    All {
        /// Directory on the disk to be measured.
        #[arg(long, default_value = ".")]
        disk: PathBuf,
        /// Write them here, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// The same over DTLS: records are opened, answered and sealed, and nothing is kept.
    Coaps {
        #[command(flatten)]
        security: SecurityArgs,
        #[command(flatten)]
        ceiling: CeilingCommand,
    },
}

#[derive(Debug, Subcommand)]
enum EchoCommand {
    /// Answers each CoAP request with 2.04.
    Coap(EchoArgs),
    /// The same over DTLS.
    Coaps {
        #[command(flatten)]
        echo: EchoArgs,
        /// What the keys of devices are computed from.
        #[arg(long, default_value = DEFAULT_SEED)]
        psk_seed: String,
        /// One key for all devices instead: text, or hex: and digits.
        #[arg(long, conflicts_with = "psk_seed")]
        psk: Option<String>,
    },
    /// Sends back what comes over TCP.
    Tcp(EchoArgs),
}

#[derive(Debug, Args)]
struct EchoArgs {
    /// Address and port; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
    /// Threads, each with a socket of its own; 0 means one a core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// End when the process that started this one does.
    #[arg(long, hide = true)]
    die_with_parent: bool,
}

#[derive(Debug, Args)]
struct PsksCommand {
    /// How many devices.
    #[arg(long, short = 'n')]
    count: u32,
    /// Index of the first one.
    #[arg(long, default_value_t = 0)]
    first: u32,
    /// Devices are called this and their index in 8 digits.
    #[arg(long, default_value = "bench-")]
    device_prefix: String,
    /// What the keys are computed from.
    #[arg(long, default_value = DEFAULT_SEED)]
    psk_seed: String,
    /// Whose the devices are.
    #[arg(long, default_value = "")]
    tenant: String,
    /// Write them here instead of to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// DTLS of simulated devices.
#[derive(Debug, Args)]
struct SecurityArgs {
    /// What the keys are computed from, as `tidegate-bench psks` does.
    #[arg(long, default_value = DEFAULT_SEED)]
    psk_seed: String,
    /// One key for all devices instead: text, or hex: and digits.
    #[arg(long, conflicts_with = "psk_seed")]
    psk: Option<String>,
    /// Do not ask for Connection IDs.
    #[arg(long)]
    no_cid: bool,
    /// Make all handshakes before the run, and measure them by themselves.
    #[arg(long)]
    handshake_first: bool,
    /// Handshakes under way at a time before the run.
    #[arg(long, default_value_t = 256)]
    handshaking: usize,
    /// Handshakes per second before the run, at most; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    handshake_rate: f64,
    /// Make a handshake for each message, as devices without Connection ID must that sleep behind a NAT.
    #[arg(long, conflicts_with = "handshake_first")]
    handshake_each: bool,
    /// Offer to resume the session before.
    #[arg(long)]
    resume: bool,
    /// Seconds before a flight of a handshake is sent again for the first time (RFC 7925 §11).
    #[arg(long, default_value_t = 9.0)]
    handshake_wait: f64,
}

#[derive(Debug, Args)]
struct CoapCommand {
    /// Address and port of the server; the default is 127.0.0.1 and the protocol's port (5683, over DTLS 5684).
    #[arg(long)]
    target: Option<String>,
    /// Give each device a new source address and port before every so many of its messages, as a NAT does that forgets.
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..))]
    rebind_every: Option<u32>,
    /// The same, after so many seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "rebind_every")]
    rebind_period: Option<f64>,
    /// Share of the devices to which that happens.
    #[arg(long, default_value_t = 1.0)]
    rebind_share: f64,
    /// Network that devices send from instead of 127.0.0.0/8, where it is routed to this host (`ip route add local NET dev lo`).
    #[arg(long, value_name = "NET")]
    source_net: Option<SourceNet>,
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
    /// Speak TLS.
    #[arg(long)]
    tls: bool,
    /// Check the server's certificate against these authorities (PEM); without it, any certificate is taken.
    #[arg(long, requires = "tls", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The server's name in TLS and HTTP, if it is not that of --target.
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// Do not offer to resume TLS sessions.
    #[arg(long, requires = "tls")]
    no_resume: bool,
    /// Speak MQTT over WebSocket at this path.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "/mqtt")]
    websocket: Option<String>,
    /// Have the server keep sessions, rather than starting clean.
    #[arg(long)]
    persistent: bool,
    /// Connections per second at most; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    connect_rate: f64,
    /// Connections under way at a time.
    #[arg(long, default_value_t = 64)]
    connecting: usize,
    /// Have each client subscribe to this filter before it counts as connected; {device} stands for its name.
    #[arg(long, value_name = "FILTER")]
    subscribe_own: Option<String>,
    /// Have one more client subscribe to this filter, and account for what it receives.
    #[arg(long, value_name = "FILTER")]
    subscribe: Option<String>,
    /// QoS of that subscription.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
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
    /// Write the report here as one HTML file with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
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
            Cmd::Coap(command) => command.run(None),
            Cmd::Coaps { security, command } => command.run(Some(&security)),
            Cmd::Psks(command) => command.run(),
            Cmd::Mqtt(command) => command.run(),
            Cmd::Ceiling { what: Ceiling::Coap(ceiling) } => ceiling.run(None),
            Cmd::Ceiling { what: Ceiling::Coaps { security, ceiling } } => ceiling.run(Some(&security)),
            Cmd::Ceiling { what: Ceiling::All { disk, json } } => {
                let ceilings = Ceilings::measure(&Signals::take()?, Some(&disk))?;
                let load = Load::default();
                for line in ceilings.lines(&Report::new("ceilings", 0, 0, &"", load)) {
                    println!("{line}");
                }
                if let Some(file) = json {
                    write_json(&file, &ceilings)?;
                }
                Ok(ExitCode::SUCCESS)
            }
            Cmd::Echo { what } => what.run(),
            Cmd::Run(command) => command.run(),
            Cmd::Compare { before, after, html } => compare::run(&before, &after, html.as_deref()),
            Cmd::Html { report, out } => {
                let html = html::render(&read_report(&report)?);
                fs::write(&out, html).with_context(|| format!("cannot write {}", out.display()))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl CeilingCommand {
    fn run(&self, security: Option<&SecurityArgs>) -> anyhow::Result<ExitCode> {
        let (what, scenario) = if security.is_some() { ("coaps", "ceiling coaps") } else { ("coap", "ceiling coap") };
        let mut args = vec![what.to_owned(), "--threads".to_owned(), self.server_threads.to_string()];
        match security {
            Some(SecurityArgs { psk: Some(psk), .. }) => args.extend(["--psk".to_owned(), psk.clone()]),
            Some(SecurityArgs { psk_seed, .. }) => args.extend(["--psk-seed".to_owned(), psk_seed.clone()]),
            None => {}
        }
        let mut server = EchoProcess::start(&args)?;
        let mut workload = self.coap.workload(server.local, &self.common)?;
        if let Some(security) = security {
            workload.security = Some(security.security()?);
            workload.ep = false;
        }
        let pid = server.pid();
        let result = run_coap(&workload, &self.coap, &self.common, Some(pid), scenario);
        server.stop();
        result
    }
}

impl EchoCommand {
    fn run(self) -> anyhow::Result<ExitCode> {
        let (EchoCommand::Coap(args) | EchoCommand::Tcp(args) | EchoCommand::Coaps { echo: args, .. }) = &self;
        if args.die_with_parent {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
                .context("cannot ask for the parent's end")?;
        }
        let (listen, threads) = (resolve(&args.listen)?, threads_or_cores(args.threads));
        let announce = |what: &str, address: SocketAddr| {
            println!("{what} listening on {address}");
            std::io::stdout().flush().context("standard output is closed")
        };
        match &self {
            EchoCommand::Coap(_) => {
                let echo = Echo::start(listen, threads)?;
                announce("coap", echo.local_addr())?;
                echo.join()?;
            }
            EchoCommand::Tcp(_) => serve_tcp(listen, threads, |address| announce("tcp", address))?,
            EchoCommand::Coaps { psk_seed, psk, .. } => {
                let echo = SecureEcho::start(listen, threads, keys(psk.as_deref(), psk_seed)?)?;
                announce("coaps", echo.local_addr())?;
                echo.join()?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn keys(psk: Option<&str>, seed: &str) -> anyhow::Result<Keys> {
    match psk {
        Some(text) => Keys::shared(text).context("--psk"),
        None => Ok(Keys::Seed(seed.to_owned())),
    }
}

fn threads_or_cores(threads: usize) -> usize {
    if threads > 0 { threads } else { Machine::this().cores }
}

/// An address, by number or name.
pub(crate) fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
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
        let devices = ledgers.iter().map(|ledger| ledger.devices().1).sum();
        let names = [Audited { prefix: self.device_prefix.clone(), base: 0, devices }];
        match source.map(|source| source.audit_all(run, &names, ledgers)) {
            None => {}
            Some(Ok(audit)) => report.audit = Some(audit),
            // What was measured is reported all the same.
            Some(Err(error)) => report.verdict.fail(format!("the audit could not be done: {error:#}")),
        }
    }

    /// Prints the summary and writes the JSON.
    fn publish(&self, report: &Report) -> anyhow::Result<ExitCode> {
        publish(report, self.json.as_deref(), self.html.as_deref())
    }
}

/// Prints the summary and writes the files.
pub(crate) fn publish(report: &Report, json: Option<&Path>, page: Option<&Path>) -> anyhow::Result<ExitCode> {
    print!("{}", report.summary());
    if let Some(file) = json {
        write_json(file, report)?;
    }
    if let Some(file) = page {
        fs::write(file, html::render(report)).with_context(|| format!("--html: cannot write {}", file.display()))?;
    }
    Ok(if report.verdict.outcome == Outcome::Pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn write_json(file: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(value).context("cannot encode the report")?;
    fs::write(file, json).with_context(|| format!("--json: cannot write {}", file.display()))
}

/// Reads a report that `--json` wrote.
pub(crate) fn read_report(file: &Path) -> anyhow::Result<Report> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no report of tidegate-bench", file.display()))
}

/// A number that no other run has, near enough.
pub(crate) fn run_id() -> u64 {
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
        if sources == 0 {
            bail!("--sources 0 must be at least 1");
        }
        if !(self.ack_random_factor >= 1.0 && self.ack_random_factor <= 10.0) {
            bail!("--ack-random-factor {} must be 1 to 10", self.ack_random_factor);
        }
        if self.max_retransmit > 20 {
            bail!("--max-retransmit {} must be at most 20", self.max_retransmit);
        }
        let millis = |value, flag| Ok::<u64, anyhow::Error>(seconds(value, flag)?.as_millis() as u64);
        let payload = common.payload(64, Self::MAX_PAYLOAD)?;
        Ok(Workload {
            sources,
            prefix: common.device_prefix.clone(),
            path: self.path.clone(),
            ep: !self.no_ep,
            method: self.method,
            delivery: self.delivery(),
            payload,
            payload_most: payload,
            transmission: Transmission {
                ack_timeout_millis: millis(self.ack_timeout, "--ack-timeout")?,
                ack_random_factor: self.ack_random_factor,
                max_retransmit: self.max_retransmit,
                answer_timeout_millis: millis(self.answer_timeout, "--answer-timeout")?,
            },
            tick_micros: common.tick_micros,
            threads: common.threads,
            handicap: Duration::from_millis(common.handicap_millis),
            ..Workload::new(target, self.devices, run_id())
        })
    }
}

impl CoapCommand {
    fn run(&self, security: Option<&SecurityArgs>) -> anyhow::Result<ExitCode> {
        let (scenario, port) = if security.is_some() { ("coaps", 5684) } else { ("coap", 5683) };
        let target = match &self.target {
            Some(target) => resolve(target)?,
            None => (Ipv4Addr::LOCALHOST, port).into(),
        };
        let mut workload = self.coap.workload(target, &self.common)?;
        workload.source_net = self.source_net;
        workload.rebinding = self.rebinding()?;
        if let Some(security) = security {
            workload.security = Some(security.security()?);
            // The identity names the device.
            workload.ep = false;
        }
        workload.check()?;
        if !self.no_probe {
            workload.probe()?;
        }
        run_coap(&workload, &self.coap, &self.common, self.common.server_pid, scenario)
    }

    fn rebinding(&self) -> anyhow::Result<Option<Rebinding>> {
        let every = match (self.rebind_every, self.rebind_period) {
            (Some(messages), _) => Rebind::Messages(messages),
            (None, Some(period)) => match seconds(period, "--rebind-period")?.as_nanos() as u64 {
                0 => bail!("--rebind-period 0 must be above 0"),
                period => Rebind::Nanoseconds(period),
            },
            (None, None) => return Ok(None),
        };
        Ok(Some(Rebinding { every, share: self.rebind_share }))
    }
}

impl SecurityArgs {
    fn security(&self) -> anyhow::Result<Security> {
        if self.handshaking == 0 {
            bail!("--handshaking 0 would begin nothing; give at least 1");
        }
        if self.handshake_rate.is_nan() || self.handshake_rate < 0.0 {
            bail!("--handshake-rate {} must be 0 or above", self.handshake_rate);
        }
        Ok(Security {
            keys: keys(self.psk.as_deref(), &self.psk_seed)?,
            cid: !self.no_cid,
            handshake_first: self.handshake_first,
            handshaking: self.handshaking,
            handshake_rate: self.handshake_rate,
            handshake_each: self.handshake_each,
            resume: self.resume,
            first_wait: seconds(self.handshake_wait, "--handshake-wait")?,
        })
    }
}

impl PsksCommand {
    fn run(&self) -> anyhow::Result<ExitCode> {
        if self.device_prefix.len() > MAX_PREFIX_LEN {
            bail!("--device-prefix has {} bytes, at most {MAX_PREFIX_LEN} are possible", self.device_prefix.len());
        }
        let keys = Keys::Seed(self.psk_seed.clone());
        let write = |out: &mut dyn Write| {
            let mut out = BufWriter::new(out);
            write_registry(&mut out, &keys, &self.device_prefix, self.first, self.count, &self.tenant)?;
            out.flush()
        };
        match &self.out {
            Some(file) => fs::File::create(file)
                .and_then(|mut out| write(&mut out))
                .with_context(|| format!("--out: cannot write {}", file.display()))?,
            None => write(&mut std::io::stdout().lock()).context("cannot write to standard output")?,
        }
        Ok(ExitCode::SUCCESS)
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
    let mut report = Report::new(scenario, started_micros, workload.run, &workload.target, workload.load(&plan));
    report.observe(&outcome.observed, &outcome.meter);
    report.connect = outcome.connect.take();
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
        let payload = common.payload(256, Self::MAX_PAYLOAD)?;
        let target = resolve(&self.target)?;
        Ok(mqtt::Workload {
            version: if self.version == 5 { mqtt::Version::V5 } else { mqtt::Version::V3 },
            qos: self.qos,
            window,
            publishes: !self.idle,
            prefix: common.device_prefix.clone(),
            topic: self.topic.clone(),
            payload,
            payload_most: payload,
            layers: self.layers(target)?,
            clean: !self.persistent,
            subscribe: self.subscribe_own.clone().map(|filter| (filter, self.qos.min(1))),
            keep_alive: self.keep_alive,
            username: self.username.clone(),
            password: self.password.clone(),
            connect_rate: self.connect_rate,
            connecting: self.connecting,
            consumer: self.subscribe.clone().map(|filter| (filter, self.subscribe_qos)),
            tick_micros: common.tick_micros,
            threads: common.threads,
            handicap: Duration::from_millis(common.handicap_millis),
            ..mqtt::Workload::new(target, self.connections, run_id())
        })
    }

    fn layers(&self, target: SocketAddr) -> anyhow::Result<mqtt::Layers> {
        let host = self.tls_name.clone().unwrap_or_else(|| mqtt::host_of(&self.target, target));
        let tls = self.tls.then(|| mqtt::TlsClient::new(self.ca.as_deref(), &host, !self.no_resume)).transpose()?;
        Ok(mqtt::Layers { tls, websocket: self.websocket.clone().map(|path| (host, path)) })
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
        let mut report = Report::new("mqtt", started_micros, workload.run, &workload.target, workload.load(&plan));
        report.observe(&outcome.observed, &outcome.meter);
        report.connect = Some(outcome.connect.clone());
        report.generator.bytes_per_device = outcome.bytes_per_device;
        if let (Some(received), Some((filter, _))) = (&outcome.received, &workload.consumer) {
            report.consumer = Some(Consumer {
                filter: filter.clone(),
                messages: received.messages,
                twice: received.twice,
                expected: outcome.meter.counts.acked,
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
