//! What becomes of a run: the server's process is watched, what it stored is read back, and the report is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::audit::{Population, Source};
use crate::ledger::Ledger;
use crate::report::{Outcome, Report};
use crate::run::Signals;
use crate::{html, process};

use super::CANNOT;

/// Flags of every run that is reported.
#[derive(Debug, Args)]
pub(crate) struct Reporting {
    /// Process whose processor time and memory are measured.
    #[arg(long)]
    pub(crate) server_pid: Option<u32>,
    /// Read back what the server stored, and account for every acknowledged message: its data directory, a file of JSON lines with
    /// `payload` in base64 and `device` (- for standard input), or jetstream://HOST:PORT/STREAM.
    #[arg(long, value_name = "WHERE")]
    audit: Option<String>,
    /// The program `tidegate` for --audit; the default is the one beside this program.
    #[arg(long, requires = "audit", value_name = "PATH")]
    tidegate: Option<PathBuf>,
    /// Write the report here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the report here as one HTML file with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The run is void if the generator sent 1 % of its messages later than this, in milliseconds (open loop).
    #[arg(long, default_value_t = 10.0)]
    pub(crate) max_late_millis: f64,
    /// No progress.
    #[arg(long, short = 'q')]
    pub(crate) quiet: bool,
    /// Milliseconds to sleep in each loop of the generator, to see that a run says when it is too slow.
    #[arg(long, default_value_t = 0, hide = true)]
    handicap_millis: u64,
}

impl Reporting {
    /// Finds before a run what would spoil its end.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if let Some(pid) = self.server_pid
            && process::sample(pid).is_err()
        {
            bail!("--server-pid {pid}: there is no such process");
        }
        for (flag, file) in [("--json", &self.json), ("--html", &self.html)] {
            if let Some(file) = file {
                writable(flag, file)?;
            }
        }
        Ok(())
    }

    pub(crate) fn handicap(&self) -> Duration {
        Duration::from_millis(self.handicap_millis)
    }

    /// Where to read back what was stored, if that is asked for.
    pub(crate) fn source(&self) -> anyhow::Result<Option<Source>> {
        self.audit.as_ref().map(|place| Source::new(place, self.tidegate.clone())).transpose()
    }

    /// Reads it back and puts what was found into the report.
    pub(crate) fn audit(
        &self,
        source: Option<&Source>,
        run: u64,
        populations: &[Population],
        ledgers: &mut [Ledger],
        report: &mut Report,
        signals: &Signals,
    ) {
        match source.map(|source| source.audit_all(run, populations, ledgers, &|| signals.came())) {
            None => {}
            Some(Ok(audit)) => report.audit = Some(audit),
            // What was measured is reported all the same.
            Some(Err(error)) => report.verdict.fail(format!("the audit could not be done: {error:#}")),
        }
    }

    /// Prints the summary and writes the files.
    pub(crate) fn publish(&self, report: &Report) -> anyhow::Result<ExitCode> {
        print!("{}", report.summary());
        if let Some(file) = &self.json {
            write_json(file, report)?;
        }
        if let Some(file) = &self.html {
            write("--html", file, html::render(report))?;
        }
        Ok(match report.verdict.outcome {
            Outcome::Pass => ExitCode::SUCCESS,
            Outcome::Void | Outcome::Fail => ExitCode::FAILURE,
            Outcome::Undone => {
                // The line that says why, where others read it that throw the summary away.
                eprintln!("tidegate-bench: {}", report.verdict.reasons.join("; "));
                ExitCode::from(CANNOT)
            }
        })
    }
}

/// Sees whether a file can be written, and leaves it as it is.
fn writable(flag: &str, file: &Path) -> anyhow::Result<()> {
    let is_new = !file.exists();
    let open = fs::OpenOptions::new().append(true).create(true).open(file);
    open.with_context(|| format!("{flag}: cannot write {}", file.display()))?;
    if is_new {
        fs::remove_file(file).with_context(|| format!("{flag}: cannot remove {}", file.display()))?;
    }
    Ok(())
}

fn write(flag: &str, file: &Path, text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    fs::write(file, text).with_context(|| format!("{flag}: cannot write {}", file.display()))
}

pub(super) fn write_json(file: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    write("--json", file, serde_json::to_vec_pretty(value).context("cannot encode the report")?)
}

/// Reads a report that `--json` wrote.
pub(crate) fn read_report(file: &Path) -> anyhow::Result<Report> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no report of tidegate-bench", file.display()))
}
