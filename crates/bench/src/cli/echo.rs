//! `tidegate-bench echo`: the servers of ceilings.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::psks::keys;
use super::resolve;
use crate::ceilings::serve_tcp;
use crate::coap::echo::Echo;
use crate::coap::echo_secure;
use crate::credentials::DEFAULT_SEED;
use crate::process::Machine;

#[derive(Debug, Subcommand)]
pub(super) enum EchoCommand {
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
pub(super) struct EchoArgs {
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

impl EchoCommand {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
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
                let echo = echo_secure::start(listen, threads, keys(psk.as_deref(), psk_seed)?)?;
                announce("coaps", echo.local_addr())?;
                echo.join()?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn threads_or_cores(threads: usize) -> usize {
    if threads > 0 { threads } else { Machine::this().cores }
}
