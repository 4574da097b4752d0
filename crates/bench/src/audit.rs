//! Accounts for every acknowledged message in what the server stored.
//!
//! The server's records are read as lines of JSON from the output of `tidegate records --data-dir DIR --format jsonl`, which
//! knows both the log and the Parquet files. Each record whose payload carries the run's mark is one message: it is checked
//! against its checksum and its device, and entered into the [`Ledger`] of the device.

use std::borrow::Cow;
use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use base64::Engine as _;
use serde::{Deserialize, Serialize};

use crate::ledger::{Ledger, MessageId};
use crate::payload::Mark;

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
    #[serde(borrow)]
    device: Cow<'a, str>,
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
        self.audit.records += 1;
        self.payload.clear();
        let decoded = base64::engine::general_purpose::STANDARD.decode_vec(payload.as_bytes(), &mut self.payload);
        let mark = match decoded.map(|()| Mark::read(&self.payload)) {
            Ok(Ok(Some(mark))) if mark.run == self.run => mark,
            Ok(Ok(_)) => {
                self.audit.foreign += 1;
                return Ok(());
            }
            // Whose it was cannot be told, but the device's name can.
            Ok(Err(_)) | Err(_) => {
                let ours = self.populations.iter().any(|population| population.index(&device).is_some());
                *if ours { &mut self.audit.corrupted } else { &mut self.audit.foreign } += 1;
                return Ok(());
            }
        };
        let Mark { device: index, number, .. } = mark;
        if !self.populations.iter().any(|population| population.covers(index)) {
            // What some populations send is not to be looked for.
            self.audit.foreign += 1;
            return Ok(());
        }
        let named = self.populations.iter().any(|population| population.index(&device) == Some(index));
        let ledger = self.ledgers.iter_mut().find(|ledger| ledger.covers(index));
        let (Some(ledger), true) = (ledger, named) else {
            self.audit.corrupted += 1;
            return Ok(());
        };
        if !ledger.store(MessageId { device: index, number }) {
            return Ok(());
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
        Ok(())
    }
}

/// Reads records as lines of JSON and accounts for the messages of `ledgers`.
///
/// # Errors
///
/// The input cannot be read, or a line is not what `tidegate records` prints.
pub fn account(
    input: impl BufRead,
    run: u64,
    populations: &[Population],
    ledgers: &mut [Ledger],
) -> anyhow::Result<Audit> {
    let mut auditor =
        Auditor { run, populations, ledgers, audit: Audit::default(), next: Vec::new(), payload: Vec::new() };
    let mut input = input;
    let mut line = Vec::new();
    let mut number = 0u64;
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).context("cannot read the records")? == 0 {
            break;
        }
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        auditor.line(&line).with_context(|| format!("line {number} of the records is none of a record"))?;
    }
    let mut audit = auditor.audit;
    for ledger in ledgers.iter() {
        let balance = ledger.balance();
        audit.acked += balance.acked;
        audit.stored += balance.stored;
        audit.acked_and_missing += balance.missing;
        audit.stored_twice += balance.stored_twice;
        audit.stored_unacked += balance.unacked;
        audit.first_missing.extend(ledger.missing().take(NAMED - audit.first_missing.len().min(NAMED)));
    }
    Ok(audit)
}

/// Where the records are.
#[derive(Debug, Clone)]
pub struct Source {
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// The program that prints them.
    pub tidegate: PathBuf,
}

impl Source {
    /// The records in `data_dir`, printed by `tidegate`: by default, the one beside this program.
    ///
    /// # Errors
    ///
    /// There is no such directory or program.
    pub fn new(data_dir: PathBuf, tidegate: Option<PathBuf>) -> anyhow::Result<Source> {
        if !data_dir.is_dir() {
            bail!("--audit: {} is no directory; give the server's data_dir", data_dir.display());
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
        Ok(Source { data_dir, tidegate })
    }

    /// Reads everything back.
    ///
    /// # Errors
    ///
    /// The program cannot be started or fails, or prints something else.
    pub fn audit(&self, run: u64, prefix: &str, ledgers: &mut [Ledger]) -> anyhow::Result<Audit> {
        let devices = ledgers.iter().map(|ledger| ledger.devices().1).sum();
        self.audit_all(run, &[Population { prefix: prefix.to_owned(), base: 0, devices }], ledgers)
    }

    /// The same for several populations.
    ///
    /// # Errors
    ///
    /// The program cannot be started or fails, or prints something else.
    pub fn audit_all(&self, run: u64, populations: &[Population], ledgers: &mut [Ledger]) -> anyhow::Result<Audit> {
        let program: &Path = &self.tidegate;
        let mut child = Command::new(program)
            .args(["records", "--format", "jsonl", "--data-dir"])
            .arg(&self.data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let Some(output) = child.stdout.take() else { bail!("no output to read of {}", program.display()) };
        let audit = account(std::io::BufReader::with_capacity(READ_BYTES, output), run, populations, ledgers);
        if audit.is_err() {
            // It may still be printing into a pipe that nobody reads.
            let _ = child.kill();
        }
        let status = child.wait().with_context(|| format!("lost {}", program.display()))?;
        let audit = audit?;
        if !status.success() {
            bail!("{} records failed: {status}", program.display());
        }
        Ok(audit)
    }
}
