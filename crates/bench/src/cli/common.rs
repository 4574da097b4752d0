//! Flags of every generator: the load, and how long it lasts.

use anyhow::bail;
use clap::Args;

use super::reporting::Reporting;
use super::seconds;
use crate::audit::{Population as Audited, Source};
use crate::ledger::Ledger;
use crate::payload::MIN_LEN;
use crate::report::Report;
use crate::run::{Drive, Plan, Signals, Until};
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
    #[command(flatten)]
    pub(super) reporting: Reporting,
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

    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.threads == 0 {
            bail!("--threads 0 would run nothing; give at least 1");
        }
        self.reporting.check()
    }

    /// Accounts for what was acknowledged, in the report.
    pub(super) fn audit(
        &self,
        source: Option<&Source>,
        run: u64,
        ledgers: &mut [Ledger],
        report: &mut Report,
        signals: &Signals,
    ) {
        report.reported_devices = ledgers.iter().map(Ledger::devices_acked).sum();
        let devices = ledgers.iter().map(|ledger| ledger.devices().1).sum();
        let names = [Audited { prefix: self.device_prefix.clone(), base: 0, devices }];
        self.reporting.audit(source, run, &names, ledgers, report, signals);
    }
}
