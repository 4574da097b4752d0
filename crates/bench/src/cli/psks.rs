//! `tidegate-bench psks`: the keys of simulated devices.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::credentials::{DEFAULT_SEED, Keys, MAX_PREFIX_LEN, write_registry};
use crate::scenario::{Protocol, Scenario};

#[derive(Debug, Args)]
pub(super) struct PsksCommand {
    /// How many devices.
    #[arg(long, short = 'n', required_unless_present = "scenario")]
    count: Option<u32>,
    /// Those of all devices of a scenario that speak DTLS instead.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["count", "first", "device_prefix", "psk_seed"])]
    scenario: Option<PathBuf>,
    /// Multiply the scenario's numbers of devices.
    #[arg(long, default_value_t = 1.0, requires = "scenario")]
    scale: f64,
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

impl PsksCommand {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        if self.device_prefix.len() > MAX_PREFIX_LEN {
            bail!("--device-prefix has {} bytes, at most {MAX_PREFIX_LEN} are possible", self.device_prefix.len());
        }
        let devices = self.devices()?;
        let write = |out: &mut dyn Write| {
            let mut out = BufWriter::new(out);
            for (keys, prefix, first, count) in &devices {
                write_registry(&mut out, keys, prefix, *first, *count, &self.tenant)?;
            }
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

impl PsksCommand {
    /// Keys, what names begin with, the first number and how many.
    fn devices(&self) -> anyhow::Result<Vec<(Keys, String, u32, u32)>> {
        let Some(path) = &self.scenario else {
            let keys = Keys::Seed(self.psk_seed.clone());
            return Ok(vec![(keys, self.device_prefix.clone(), self.first, self.count.unwrap_or(0))]);
        };
        let mut scenario = Scenario::read(path).map_err(|mistakes| anyhow::anyhow!("{mistakes}"))?;
        scenario.scale_by(self.scale)?;
        let secure = scenario.populations.into_iter().filter(|population| population.protocol == Protocol::Coaps);
        Ok(secure.map(|population| (population.security.keys, population.prefix, 0, population.count)).collect())
    }
}

pub(super) fn keys(psk: Option<&str>, seed: &str) -> anyhow::Result<Keys> {
    match psk {
        Some(text) => Keys::shared(text).context("--psk"),
        None => Ok(Keys::Seed(seed.to_owned())),
    }
}
