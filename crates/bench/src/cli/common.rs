//! Flags of every generator: the load, what is measured, and where the report goes.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use super::files::publish;
use super::seconds;
use crate::audit::{Population as Audited, Source};
use crate::ledger::Ledger;
use crate::payload::MIN_LEN;
use crate::process;
use crate::report::Report;
use crate::run::{Drive, Plan, Until};
use crate::schedule::DEFAULT_TICK_MICROS;

#[derive(Debug, Args)]
pub(super) struct Common {
    /// Messages per second (open loop).
    #[arg(long, short = 'r')]
    pub(super) rate: Option<f64>,
    /// Seconds to measure, after the warm-up.
    #[arg(long, short = 'd', default_value_t = 10.0)]
    pub(super) duration: f64,
    /// End after so many messages instead.
    #[arg(long, conflicts_with = "duration")]
    pub(super) messages: Option<u64>,
    /// Seconds in which the rate or window rises; part of the warm-up.
    #[arg(long, default_value_t = 0.0)]
    pub(super) ramp: f64,
    /// Seconds at the start that are left out of the numbers; the default is 1 with --duration, 0 with --messages.
    #[arg(long)]
    pub(super) warm_up: Option<f64>,
    /// Longest wait for outstanding answers at the end, in seconds.
    #[arg(long, default_value_t = 30.0)]
    pub(super) drain: f64,
    /// Bytes of a payload.
    #[arg(long, short = 's')]
    pub(super) payload: Option<usize>,
    /// Generator threads.
    #[arg(long, default_value_t = 1)]
    pub(super) threads: usize,
    /// Devices are called this and their index in 8 digits.
    #[arg(long, default_value = "bench-")]
    pub(super) device_prefix: String,
    /// Distance of bursts in open loop, in microseconds.
    #[arg(long, default_value_t = DEFAULT_TICK_MICROS)]
    pub(super) tick_micros: u64,
    /// The run is void if the generator sent 1 % of its messages later than this, in milliseconds (open loop).
    #[arg(long, default_value_t = 10.0)]
    pub(super) max_late_millis: f64,
    /// Process whose processor time and memory are measured.
    #[arg(long)]
    pub(super) server_pid: Option<u32>,
    /// Read back what the server stored in this data directory, and account for every acknowledged message.
    #[arg(long, value_name = "DATA_DIR")]
    pub(super) audit: Option<PathBuf>,
    /// The program `tidegate` for --audit; the default is the one beside this program.
    #[arg(long, requires = "audit", value_name = "PATH")]
    pub(super) tidegate: Option<PathBuf>,
    /// Write the report here.
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write the report here as one HTML file with plots.
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// No progress lines.
    #[arg(long, short = 'q')]
    pub(super) quiet: bool,
    /// Milliseconds to sleep in each loop of the generator, to see that a run says when it is too slow.
    #[arg(long, default_value_t = 0, hide = true)]
    pub(super) handicap_millis: u64,
}

impl Common {
    pub(super) fn plan(&self, drive: Drive) -> anyhow::Result<Plan> {
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

    pub(super) fn payload(&self, default: usize, most: usize) -> anyhow::Result<usize> {
        let payload = self.payload.unwrap_or(default);
        if !(MIN_LEN..=most).contains(&payload) {
            bail!("--payload {payload} must be {MIN_LEN} to {most} bytes");
        }
        Ok(payload)
    }

    pub(super) fn source(&self) -> anyhow::Result<Option<Source>> {
        self.audit.clone().map(|dir| Source::new(dir, self.tidegate.clone())).transpose()
    }

    pub(super) fn check(&self) -> anyhow::Result<()> {
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
    pub(super) fn audit(&self, source: Option<&Source>, run: u64, ledgers: &mut [Ledger], report: &mut Report) {
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
    pub(super) fn publish(&self, report: &Report) -> anyhow::Result<ExitCode> {
        publish(report, self.json.as_deref(), self.html.as_deref())
    }
}
