//! Accounts for every acknowledged message in what the server stored.
//!
//! | source | what is read |
//! |---|---|
//! | a directory | the output of `tidegate records --data-dir DIR --format jsonl`, which knows both the log and the Parquet files |
//! | a file, or `-` for standard input | lines of JSON with at least `payload` (base64) and, if it is known, `device` |
//! | `jetstream://HOST:PORT/STREAM` | the messages of a stream of NATS JetStream ([`JetStream`]) |
//!
//! Each record whose payload carries the run's mark is one message: it is checked against its checksum and, where that is told, its
//! device, and entered into the [`Ledger`] of the device.

mod jetstream;

use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::ledger::{Ledger, MessageId};
use crate::payload::Mark;
pub use jetstream::{JetStream, NotAStream};

/// Records after each so many of which signals are looked at.
const STOPS: u64 = 10_000;

/// Missing messages that the report names one by one.
const NAMED: usize = 10;

/// Bytes of the pipe buffer: a line is about 300 bytes, so a refill brings some thousand.
const READ_BYTES: usize = 1 << 20;

/// What was found of the acknowledged messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Records read.
    pub records: u64,
    /// Records that are not of this run.
    pub foreign: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Different messages found.
    pub stored: u64,
    /// Acknowledged and not found: a broken promise.
    pub acked_and_missing: u64,
    /// Found more than once.
    pub stored_twice: u64,
    /// Found and never acknowledged: no fault.
    pub stored_unacked: u64,
    /// Found with a damaged payload, or under another device's name.
    pub corrupted: u64,
    /// Found after a later message of the same device.
    pub out_of_order: u64,
    /// The first of those that are missing.
    pub first_missing: Vec<MessageId>,
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} acked: {} missing; {} stored: {} twice, {} corrupted, {} out of order, {} never acked ({} records, {} of others)",
            self.acked,
            self.acked_and_missing,
            self.stored,
            self.stored_twice,
            self.corrupted,
            self.out_of_order,
            self.stored_unacked,
            self.records,
            self.foreign
        )
    }
}

/// How simulated devices are called: a prefix and the index in [`DEVICE_DIGITS`] decimal digits.
pub const DEVICE_DIGITS: usize = 8;

/// The name of device `index`.
#[must_use]
pub fn device_name(prefix: &str, index: u32) -> String {
    format!("{prefix}{index:0DEVICE_DIGITS$}")
}

/// Devices that are called alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Population {
    /// Before the digits of their names.
    pub prefix: String,
    /// Index in the run of the one with number 0.
    pub base: u32,
    /// How many there are.
    pub devices: u32,
}

impl Population {
    fn covers(&self, index: u32) -> bool {
        index.checked_sub(self.base).is_some_and(|number| number < self.devices)
    }

    /// The index in the run of a device of this name.
    fn index(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(&*self.prefix)?;
        let number: u32 = if digits.len() == DEVICE_DIGITS { digits.parse().ok()? } else { return None };
        (number < self.devices).then(|| self.base + number)
    }
}

/// One line, as far as the audit needs it.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default)]
    device: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: Cow<'a, str>,
}

/// An audit under way.
struct Auditor<'a> {
    run: u64,
    populations: &'a [Population],
    ledgers: &'a mut [Ledger],
    audit: Audit,
    /// The number after the highest one seen of each device.
    next: Vec<u32>,
    payload: Vec<u8>,
}

impl Auditor<'_> {
    fn line(&mut self, line: &[u8]) -> serde_json::Result<()> {
        let Line { device, payload } = serde_json::from_slice(line)?;
        let mut bytes = std::mem::take(&mut self.payload);
        bytes.clear();
        let decoded = base64::engine::general_purpose::STANDARD.decode_vec(payload.as_bytes(), &mut bytes);
        self.record(device.as_deref(), decoded.is_ok().then_some(&bytes[..]));
        self.payload = bytes;
        Ok(())
    }

    /// A record of a device, if that is told, with its payload, if it can be read.
    fn record(&mut self, device: Option<&str>, payload: Option<&[u8]>) {
        self.audit.records += 1;
        let is_called =
            |name: &str, index| self.populations.iter().any(|p| p.index(name).is_some_and(|i| index == Some(i)));
        let mark = match payload.map(Mark::read) {
            Some(Ok(Some(mark))) if mark.run == self.run => mark,
            Some(Ok(_)) => {
                self.audit.foreign += 1;
                return;
            }
            // Whose it was cannot be told, but the device's name can.
            Some(Err(_)) | None => {
                let ours = device.is_none_or(|name| self.populations.iter().any(|p| p.index(name).is_some()));
                *if ours { &mut self.audit.corrupted } else { &mut self.audit.foreign } += 1;
                return;
            }
        };
        let Mark { device: index, number, .. } = mark;
        if !self.populations.iter().any(|population| population.covers(index)) {
            // What some populations send is not to be looked for.
            self.audit.foreign += 1;
            return;
        }
        let named = device.is_none_or(|name| is_called(name, Some(index)));
        let ledger = self.ledgers.iter_mut().find(|ledger| ledger.covers(index));
        let (Some(ledger), true) = (ledger, named) else {
            self.audit.corrupted += 1;
            return;
        };
        if !ledger.store(MessageId { device: index, number }) {
            return;
        }
        let at = index as usize;
        if self.next.len() <= at {
            self.next.resize(at + 1, 0);
        }
        if number < self.next[at] {
            self.audit.out_of_order += 1;
        } else {
            self.next[at] = number + 1;
        }
    }
}

impl<'a> Auditor<'a> {
    fn new(run: u64, populations: &'a [Population], ledgers: &'a mut [Ledger]) -> Auditor<'a> {
        Auditor { run, populations, ledgers, audit: Audit::default(), next: Vec::new(), payload: Vec::new() }
    }

    fn is_missing_any(&self) -> bool {
        self.ledgers.iter().any(|ledger| ledger.missing().next().is_some())
    }

    /// Takes lines until their end.
    fn lines(&mut self, mut input: impl BufRead, stop: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let mut line = Vec::new();
        let mut number = 0u64;
        loop {
            line.clear();
            if input.read_until(b'\n', &mut line).context("cannot read the records")? == 0 {
                return Ok(());
            }
            number += 1;
            if number.is_multiple_of(STOPS) && stop() {
                bail!("a signal ended it");
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            self.line(&line).with_context(|| format!("line {number} of the records is none of a record"))?;
        }
    }

    fn balance(self) -> Audit {
        let mut audit = self.audit;
        for ledger in self.ledgers.iter() {
            let balance = ledger.balance();
            audit.acked += balance.acked;
            audit.stored += balance.stored;
            audit.acked_and_missing += balance.missing;
            audit.stored_twice += balance.stored_twice;
            audit.stored_unacked += balance.unacked;
            audit.first_missing.extend(ledger.missing().take(NAMED - audit.first_missing.len().min(NAMED)));
        }
        audit
    }
}

/// Reads records as lines of JSON and accounts for the messages of `ledgers`.
///
/// # Errors
///
/// The input cannot be read, or a line is none of a record.
pub fn account(
    input: impl BufRead,
    run: u64,
    populations: &[Population],
    ledgers: &mut [Ledger],
) -> anyhow::Result<Audit> {
    let mut auditor = Auditor::new(run, populations, ledgers);
    auditor.lines(input, &|| false)?;
    Ok(auditor.balance())
}

/// Where the records are.
#[derive(Debug, Clone)]
pub enum Source {
    /// A gateway's data directory.
    Tidegate {
        /// The directory.
        data_dir: PathBuf,
        /// The program that prints its records.
        tidegate: PathBuf,
    },
    /// Lines of JSON in a file.
    Lines(PathBuf),
    /// Lines of JSON on standard input.
    Input,
    /// A stream of NATS.
    JetStream(JetStream),
}

impl Source {
    /// What `--audit` names. Of a directory the records are printed by `tidegate`: by default, the program beside this one.
    ///
    /// # Errors
    ///
    /// There is no such directory, file, program or stream.
    pub fn new(place: &str, tidegate: Option<PathBuf>) -> anyhow::Result<Source> {
        if let Some(stream) = place.strip_prefix("jetstream://") {
            let stream = JetStream::parse(stream).with_context(|| format!("--audit {place}"))?;
            stream.check().context("--audit")?;
            return Ok(Source::JetStream(stream));
        }
        if place == "-" {
            return Ok(Source::Input);
        }
        if let Some((scheme, _)) = place.split_once("://") {
            bail!(
                "--audit: {scheme} is not known; give the server's data_dir, a file with lines of JSON, or jetstream://HOST:PORT/STREAM"
            );
        }
        let path = PathBuf::from(place);
        if path.is_file() {
            return Ok(Source::Lines(path));
        }
        if !path.is_dir() {
            bail!("--audit: {place} is no directory or file; give the server's data_dir, or what tells its records");
        }
        let tidegate = match tidegate {
            Some(path) => path,
            None => {
                let own = std::env::current_exe().context("cannot find this program's own path")?;
                own.with_file_name("tidegate")
            }
        };
        if !tidegate.is_file() {
            bail!("--audit: {} is not there; build it, or give its path with --tidegate", tidegate.display());
        }
        Ok(Source::Tidegate { data_dir: path, tidegate })
    }

    /// Reads everything back.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is something else.
    pub fn audit(&self, run: u64, prefix: &str, ledgers: &mut [Ledger]) -> anyhow::Result<Audit> {
        let devices = ledgers.iter().map(|ledger| ledger.devices().1).sum();
        self.audit_all(run, &[Population { prefix: prefix.to_owned(), base: 0, devices }], ledgers, &|| false)
    }

    /// The same for several populations, until `stop`.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is something else, or was stopped.
    pub fn audit_all(
        &self,
        run: u64,
        populations: &[Population],
        ledgers: &mut [Ledger],
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<Audit> {
        let mut auditor = Auditor::new(run, populations, ledgers);
        match self {
            Source::Tidegate { data_dir, tidegate } => auditor.of_gateway(data_dir, tidegate, stop)?,
            Source::Lines(path) => {
                let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
                auditor.lines(BufReader::with_capacity(READ_BYTES, file), stop)?;
            }
            Source::Input => auditor.lines(std::io::stdin().lock(), stop)?,
            Source::JetStream(stream) => {
                let auditor = RefCell::new(&mut auditor);
                let take = |device: Option<&str>, payload: &[u8]| auditor.borrow_mut().record(device, Some(payload));
                stream.read(take, &|| auditor.borrow().is_missing_any(), stop)?;
            }
        }
        Ok(auditor.balance())
    }
}

impl Auditor<'_> {
    /// Takes what a gateway stored.
    fn of_gateway(&mut self, data_dir: &Path, tidegate: &Path, stop: &dyn Fn() -> bool) -> anyhow::Result<()> {
        let mut child = Command::new(tidegate)
            .args(["records", "--format", "jsonl", "--data-dir"])
            .arg(data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", tidegate.display()))?;
        let Some(output) = child.stdout.take() else { bail!("no output to read of {}", tidegate.display()) };
        let read = self.lines(BufReader::with_capacity(READ_BYTES, output), stop);
        if read.is_err() {
            // It may still be printing into a pipe that nobody reads.
            let _ = child.kill();
        }
        let status = child.wait().with_context(|| format!("lost {}", tidegate.display()))?;
        read?;
        if !status.success() {
            bail!("{} records failed: {status}", tidegate.display());
        }
        Ok(())
    }
}
