//! `tidegate-bench ceiling`: what this machine can do.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::coap::{CoapArgs, SecurityArgs, run_coap};
use super::common::Common;
use super::reporting::write_json;
use crate::ceilings::Ceilings;
use crate::report::{Load, Report};
use crate::run::Signals;
use crate::server::EchoProcess;

#[derive(Debug, Subcommand)]
pub(super) enum Ceiling {
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

#[derive(Debug, Args)]
pub(super) struct CeilingCommand {
    /// Threads of the server; 0 means one a core.
    #[arg(long, default_value_t = 0)]
    server_threads: usize,
    #[command(flatten)]
    coap: CoapArgs,
    #[command(flatten)]
    common: Common,
}

impl Ceiling {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        match self {
            Ceiling::Coap(ceiling) => ceiling.run(None),
            Ceiling::Coaps { security, ceiling } => ceiling.run(Some(security)),
            Ceiling::All { disk, json } => {
                let ceilings = Ceilings::measure(&Signals::take()?, Some(disk))?;
                for line in ceilings.lines(&Report::new("ceilings", 0, 0, &"", Load::default())) {
                    println!("{line}");
                }
                if let Some(file) = json {
                    write_json(file, &ceilings)?;
                }
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
