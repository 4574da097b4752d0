//! Commands and flags.

mod ceiling;
mod coap;
mod common;
mod echo;
mod mqtt;
mod psks;
mod reporting;

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::join::RunCommand;
use crate::{compare, html};
use ceiling::Ceiling;
use coap::{CoapCommand, SecurityArgs};
use echo::EchoCommand;
use mqtt::MqttCommand;
use psks::PsksCommand;
pub(crate) use reporting::{Reporting, read_report};

/// Exit code if a command could not be carried out: wrong flags, no server, a limit of the system.
pub const CANNOT: u8 = 2;

/// What people try first, and what comes of it.
const EXAMPLES: &str = "\
Examples:
  tidegate-bench mqtt --target 127.0.0.1:1883 -n 1000 --qos 1 --window 8      as fast as a broker acknowledges
  tidegate-bench coap --target 127.0.0.1:5683 -n 100000 --rate 5000 -d 60     100,000 devices, 5,000 messages a second
  tidegate-bench run benches/scenarios/smoke.toml -t mqtt=HOST:1883 --html report.html

Any CoAP server or MQTT broker will do. Paths and credentials of a server are flags of coap, coaps and mqtt, and keys of a scenario.

Exit codes:
  0  every objective is met, and nothing acknowledged is missing
  1  not so, or the generator itself was too slow and the run is void
  2  the run could not be done: wrong flags or file, no server, nobody let in, a server that breaks the protocol, a limit of this system";

/// Simulated devices, ceilings and audits for IoT gateways.
#[derive(Debug, Parser)]
#[command(name = "tidegate-bench", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Debug, Subcommand)]
enum Cmd {
    /// Simulate CoAP devices against a server.
    Coap(CoapCommand),
    /// Simulate devices that speak CoAP over DTLS 1.2 with pre-shared keys and Connection ID.
    Coaps {
        #[command(flatten)]
        security: SecurityArgs,
        #[command(flatten)]
        command: CoapCommand,
    },
    /// Simulate MQTT clients against a server.
    Mqtt(MqttCommand),
    /// Run a scenario: populations over several protocols, and what has to come of it.
    Run(Box<RunCommand>),
    /// Show two reports side by side, and which differences are more than noise.
    Compare {
        /// The report of the run before.
        before: PathBuf,
        /// The report of the run after.
        after: PathBuf,
        /// Write the comparison here, as HTML.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Turn a report into one HTML file with plots.
    Html {
        /// A report, as --json writes it.
        report: PathBuf,
        /// The file to write.
        out: PathBuf,
    },
    /// Print the keys of simulated devices, as a registry imports them: identity,key,device,tenant.
    Psks(PsksCommand),
    /// Measure what this machine can do, with a server that does nothing but echo.
    Ceiling {
        #[command(subcommand)]
        what: Ceiling,
    },
    /// Be the server of a ceiling, until killed.
    Echo {
        #[command(subcommand)]
        what: EchoCommand,
    },
}

impl Cli {
    /// Carries the command out.
    ///
    /// # Errors
    ///
    /// It cannot be: wrong flags, no server, a limit of the system.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Cmd::Coap(command) => command.run(None),
            Cmd::Coaps { security, command } => command.run(Some(&security)),
            Cmd::Psks(command) => command.run(),
            Cmd::Mqtt(command) => command.run(),
            Cmd::Ceiling { what } => what.run(),
            Cmd::Echo { what } => what.run(),
            Cmd::Run(command) => command.run(),
            Cmd::Compare { before, after, html } => compare::run(&before, &after, html.as_deref()),
            Cmd::Html { report, out } => {
                let html = html::render(&read_report(&report)?);
                fs::write(&out, html).with_context(|| format!("cannot write {}", out.display()))?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

/// An address, by number or name.
pub(crate) fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    let mut found =
        target.to_socket_addrs().with_context(|| format!("{target} is no HOST:PORT that can be resolved"))?;
    found.next().with_context(|| format!("{target} has no address"))
}

fn seconds(value: f64, flag: &str) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(value).map_err(|_| anyhow::anyhow!("{flag} {value} is no number of seconds from 0 on"))
}
