//! `tidegate-bench run`: a scenario in this process, or in several that join one run.
//!
//! The first process (`--processes N --listen ADDRESS`) has the scenario, generates its own part of the devices, and waits for N − 1
//! others (`--join ADDRESS`), on this host or elsewhere. Each is given a part of every population; all start together once everybody has
//! set up, and at the end the first adds their counts and histograms, and audits what was acknowledged to any of them.
//!
//! Messages are lines of JSON over TCP.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::audit::{Population as Audited, Source};
use crate::ceilings::Ceilings;
use crate::cli::Reporting;
use crate::ledger::{Dump, Ledger};
use crate::mqtt::{Received, ReceivedDump};
use crate::report::Report;
use crate::run::{Signals, new_id};
use crate::scenario::{self, Options, Outcome, Population, Scenario};
use crate::slo;

/// Version of the messages: processes of one run must have the same.
const VERSION: u32 = 2;

/// Longest wait for another process to set up, or to tell what it measured after the run.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often signals are looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(200);

/// The command `run`.
#[derive(Debug, Args)]
pub struct RunCommand {
    /// The scenario: a file in TOML, as those in benches/scenarios.
    #[arg(required_unless_present = "join")]
    scenario: Option<PathBuf>,
    /// Where servers listen, as PROTOCOL=HOST:PORT with coap, coaps, mqtt, mqtts, ws, wss; overrides the file.
    #[arg(long, short = 't', value_name = "PROTOCOL=ADDRESS")]
    target: Vec<String>,
    /// Multiply the numbers of devices.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Measure so long instead of what the file says, as 30s or 15m.
    #[arg(long)]
    duration: Option<String>,
    /// Do not see first whether a server is there.
    #[arg(long)]
    no_probe: bool,
    /// Only see whether the scenario is right.
    #[arg(long)]
    check: bool,
    /// Measure the machine's ceilings first, so that results print with their ratio.
    #[arg(long)]
    ceilings: bool,
    /// Directory on the disk that --ceilings measures.
    #[arg(long, requires = "ceilings", value_name = "DIR")]
    disk: Option<PathBuf>,
    /// Share the devices among so many processes; the others are started with --join.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    processes: u32,
    /// Where they join.
    #[arg(long, default_value = "127.0.0.1:7878")]
    listen: String,
    /// Take part in the run of the process that listens there.
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["scenario", "processes", "audit", "json", "html"])]
    join: Option<String>,
    #[command(flatten)]
    reporting: Reporting,
}

/// What the first process tells another.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    Task {
        version: u32,
        name: String,
        text: String,
        targets: Vec<String>,
        scale: f64,
        millis: u64,
        run: u64,
        part: u32,
        parts: u32,
        probe: bool,
    },
    Go,
}

/// What it is told.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    Ready,
    Failed(String),
    Done(Box<Part>),
}

/// What another process measured.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    report: Report,
    ledgers: Vec<(usize, Dump)>,
    received: Vec<Option<ReceivedDump>>,
}

/// Another process.
struct Peer {
    name: String,
    reader: BufReader<TcpStream>,
}

impl Peer {
    fn new(stream: TcpStream) -> anyhow::Result<Peer> {
        let name = stream.peer_addr().map_or_else(|_| "another process".to_owned(), |address| address.to_string());
        stream.set_nodelay(true)?;
        Ok(Peer { name, reader: BufReader::new(stream) })
    }

    fn say(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(value).context("cannot encode a message")?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).with_context(|| format!("lost {}", self.name))
    }

    fn hear<T: for<'de> Deserialize<'de>>(&mut self, patience: Duration, signals: &Signals) -> anyhow::Result<T> {
        self.reader.get_ref().set_read_timeout(Some(LOOK))?;
        let started = Instant::now();
        let mut line = Vec::new();
        loop {
            // What was read of a line before the time was over is in it.
            match self.reader.read_until(b'\n', &mut line) {
                Ok(_) if line.ends_with(b"\n") => break,
                Ok(_) => bail!("{} left", self.name),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).with_context(|| format!("lost {}", self.name)),
            }
            if signals.came() {
                bail!("a signal ended the wait for {}", self.name);
            }
            if started.elapsed() > patience {
                bail!("{} said nothing for {} s", self.name, patience.as_secs());
            }
        }
        serde_json::from_slice(&line).with_context(|| format!("{} does not speak as this program does", self.name))
    }
}

impl RunCommand {
    /// Runs the scenario, or the part of it that another process gives.
    ///
    /// # Errors
    ///
    /// The scenario is wrong, a server is not there, or a limit of the system is reached.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        if let Some(address) = &self.join {
            return self.take_part(address);
        }
        let path = self.scenario.as_deref().context("a scenario is missing")?;
        let mut scenario = Scenario::read(path).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        let name = path.display().to_string();
        self.adjust(&mut scenario)?;
        if self.check {
            println!("{name}: right");
            return Ok(ExitCode::SUCCESS);
        }
        self.reporting.check()?;
        let source = self.reporting.source()?;
        let signals = Signals::take()?;
        let run = new_id();
        let ceilings = (self.ceilings || scenario.slo.ceiling_ratio.is_some())
            .then(|| Ceilings::measure(&signals, self.disk.as_deref()))
            .transpose()?;
        let mut peers = self.gather(&scenario, &name, run, &signals)?;
        let options = Options {
            run,
            part: (0, self.processes),
            probe: !self.no_probe,
            server: self.reporting.server_pid,
            quiet: self.reporting.quiet,
            handicap: self.reporting.handicap(),
        };
        let mut outcome = scenario::run(&scenario, &options, &signals, || {
            for peer in &mut peers {
                match peer.hear(PATIENCE, &signals)? {
                    Word::Ready => {}
                    Word::Failed(why) => bail!("{}: {why}", peer.name),
                    Word::Done(_) => bail!("{} is done before it began", peer.name),
                }
            }
            peers.iter_mut().try_for_each(|peer| peer.say(&Order::Go))
        })?;
        // Nobody waits for those who share a run that did not begin: they see that this process is gone.
        let begun = !outcome.received.is_empty();
        for peer in peers.iter_mut().filter(|_| begun) {
            match peer.hear(PATIENCE, &signals) {
                Ok(Word::Done(part)) => add(&mut outcome, *part)?,
                Ok(Word::Failed(why)) => outcome.report.verdict.void(format!("{}: {why}", peer.name)),
                Ok(Word::Ready) => outcome.report.verdict.void(format!("{} did not run", peer.name)),
                // What the others measured is reported all the same.
                Err(error) => outcome.report.verdict.void(format!("{error:#}")),
            }
        }
        self.judge(&scenario, outcome, ceilings, source.as_ref(), &signals, run)
    }

    /// Applies the flags that change a scenario.
    fn adjust(&self, scenario: &mut Scenario) -> anyhow::Result<()> {
        for target in &self.target {
            scenario.targets.set(target).map_err(|error| anyhow::anyhow!("--target {error}"))?;
        }
        scenario.scale_by(self.scale)?;
        if let Some(duration) = &self.duration {
            scenario.duration = scenario::duration(duration)
                .filter(|duration| !duration.is_zero())
                .with_context(|| format!("--duration {duration:?} must be a time as 30s or 15m"))?;
        }
        Ok(())
    }

    /// Waits for the other processes and gives each its part.
    fn gather(&self, scenario: &Scenario, name: &str, run: u64, signals: &Signals) -> anyhow::Result<Vec<Peer>> {
        if self.processes == 1 {
            return Ok(Vec::new());
        }
        let listener = TcpListener::bind(&self.listen).with_context(|| format!("--listen {}", self.listen))?;
        if !self.reporting.quiet {
            eprintln!("waiting for {} more: tidegate-bench run --join {}", self.processes - 1, listener.local_addr()?);
        }
        let mut peers = Vec::new();
        for part in 1..self.processes {
            if !signals.wait_for(&listener) {
                bail!("a signal ended the run before all {} processes were there", self.processes);
            }
            let mut peer = Peer::new(listener.accept().context("cannot accept another process")?.0)?;
            peer.say(&Order::Task {
                version: VERSION,
                name: name.to_owned(),
                text: scenario.text.clone(),
                targets: self.target.clone(),
                scale: self.scale,
                millis: scenario.duration.as_millis() as u64,
                run,
                part,
                parts: self.processes,
                probe: !self.no_probe,
            })?;
            peers.push(peer);
        }
        Ok(peers)
    }

    /// The other side.
    fn take_part(&self, address: &str) -> anyhow::Result<ExitCode> {
        let stream = TcpStream::connect(address).with_context(|| format!("--join {address}: nobody listens there"))?;
        let mut first = Peer::new(stream)?;
        let signals = Signals::take()?;
        let Order::Task { version, name, text, targets, scale, millis, run, part, parts, probe } =
            first.hear(PATIENCE, &signals)?
        else {
            bail!("{address} gave no task");
        };
        if version != VERSION {
            bail!("{address} is another version of this program");
        }
        let mut scenario = Scenario::parse(&name, &text).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        for target in &targets {
            scenario.targets.set(target).map_err(|error| anyhow::anyhow!("{error}"))?;
        }
        scenario.scale(scale);
        scenario.duration = Duration::from_millis(millis);
        let options = Options {
            run,
            part: (part, parts),
            probe,
            server: None,
            quiet: self.reporting.quiet,
            handicap: self.reporting.handicap(),
        };
        let result = scenario::run(&scenario, &options, &signals, || {
            first.say(&Word::Ready)?;
            match first.hear(PATIENCE, &signals)? {
                Order::Go => Ok(()),
                Order::Task { .. } => bail!("{address} gave another task"),
            }
        });
        match result {
            Ok(Outcome { report, received, .. }) if received.is_empty() => {
                let why = report.verdict.reasons.join("; ");
                // It may be the first process that is gone.
                let _ = first.say(&Word::Failed(why.clone()));
                bail!("{why}")
            }
            Ok(outcome) => {
                let part = Part {
                    report: outcome.report,
                    ledgers: outcome.ledgers.iter().map(|(group, ledger)| (*group, ledger.dump_acked())).collect(),
                    received: outcome.received.iter().map(|received| received.as_ref().map(Received::dump)).collect(),
                };
                first.say(&Word::Done(Box::new(part)))?;
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                // It may be the first process that is gone.
                let _ = first.say(&Word::Failed(format!("{error:#}")));
                Err(error)
            }
        }
    }

    fn judge(
        &self,
        scenario: &Scenario,
        mut outcome: Outcome,
        ceilings: Option<Ceilings>,
        source: Option<&Source>,
        signals: &Signals,
        run: u64,
    ) -> anyhow::Result<ExitCode> {
        if outcome.received.is_empty() {
            // It did not begin, and its verdict says why.
            return self.reporting.publish(&outcome.report);
        }
        outcome.settle_deliveries(scenario);
        let Outcome { mut report, ledgers, .. } = outcome;
        let stored = |group: usize| scenario.populations[group].stored;
        let mut ledgers: Vec<Ledger> =
            ledgers.into_iter().filter(|(group, _)| stored(*group)).map(|(_, ledger)| ledger).collect();
        report.reported_devices = report.populations.iter().map(|population| population.reported_devices).sum();
        report.ceilings = ceilings;
        let names: Vec<_> = scenario
            .populations
            .iter()
            .zip(scenario.bases())
            .filter(|(population, _)| population.stored)
            .map(|(population, base)| Audited { prefix: population.prefix.clone(), base, devices: population.count })
            .collect();
        let unmarked =
            |population: &&Population| population.pattern.as_ref().is_some_and(|pattern| !pattern.is_marked());
        for population in scenario.populations.iter().filter(unmarked).filter(|_| source.is_some()) {
            let note =
                format!("the audit does not look for messages of {}: their payload has no {{mark}}", population.name);
            report.verdict.notes.push(note);
        }
        self.reporting.audit(source, run, &names, &mut ledgers, &mut report, signals);
        report.slo = slo::judge(&scenario.slo, &report);
        report.judge(self.reporting.max_late_millis);
        self.reporting.publish(&report)
    }
}

/// Adds what another process measured.
fn add(outcome: &mut Outcome, part: Part) -> anyhow::Result<()> {
    let Part { report: other, ledgers, received } = part;
    outcome.report.add(&other);
    for (group, dump) in ledgers {
        outcome.ledgers.push((group, Ledger::from_dump(&dump).context("a ledger of another process is damaged")?));
    }
    for (one, two) in outcome.received.iter_mut().zip(received) {
        let Some(two) = two else { continue };
        let two = Received::from_dump(&two).context("what another process received is damaged")?;
        match one {
            Some(one) => one.add(&two),
            None => *one = Some(two),
        }
    }
    Ok(())
}
