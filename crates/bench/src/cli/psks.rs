//! `tidegate-bench psks`: the keys of simulated devices.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;

use crate::credentials::{DEFAULT_SEED, Keys, MAX_PREFIX_LEN, write_registry};

#[derive(Debug, Args)]
pub(super) struct PsksCommand {
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

impl PsksCommand {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
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

pub(super) fn keys(psk: Option<&str>, seed: &str) -> anyhow::Result<Keys> {
    match psk {
        Some(text) => Keys::shared(text).context("--psk"),
        None => Ok(Keys::Seed(seed.to_owned())),
    }
}
