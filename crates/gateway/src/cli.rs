//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Sources;

/// Tidegate, an IoT ingestion gateway for CoAP and MQTT: a reading is durable before it is acknowledged.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, about)]
pub struct Cli {
    /// What is given before the subcommand.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// What to do.
    #[command(subcommand)]
    command: Option<Command>,
}

/// Where the configuration comes from; the same for every subcommand.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// Read the configuration from this TOML file (without it: the built-in defaults)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Keep log, cursors and Parquet files here
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Set a key of the configuration, such as coap.listen=127.0.0.1:0
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Receive from devices, until SIGTERM or SIGINT (the default)
    Serve(ConfigArgs),
    /// Say what is wrong with the configuration, or what would listen where
    Check(CheckArgs),
    /// Print what is stored, oldest first; a gateway may serve the same directory meanwhile
    Records(RecordsArgs),
}

/// What to check.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// What to check.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print a configuration file with every key at its default, explained
    #[arg(long)]
    pub defaults: bool,
}

/// What to print, and how.
#[derive(Debug, Clone, Args)]
pub struct RecordsArgs {
    /// Where the records are.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Only the records of this device
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// Only what was received at or after this time (RFC 3339), or so long ago (10m, 2h, 1d)
    #[arg(long, value_name = "T", value_parser = crate::records::Since::parse)]
    pub since: Option<crate::records::Since>,
    /// Go on with what comes, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// How to print a record
    #[arg(long, value_enum, default_value_t = RecordFormat::Jsonl)]
    pub format: RecordFormat,
}

/// How `tidegate records` prints a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RecordFormat {
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values (RFC 4180) with a header
    Csv,
}

impl Cli {
    /// The subcommand, `serve` if none was named.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command.clone().unwrap_or_else(|| Command::Serve(ConfigArgs::default()))
    }

    /// The sources of the configuration: what stands before the subcommand, then what stands behind it, then the environment.
    #[must_use]
    pub fn sources(&self) -> Sources {
        let inner = match &self.command {
            Some(Command::Serve(args)) => args.clone(),
            Some(Command::Check(args)) => args.config.clone(),
            Some(Command::Records(args)) => args.config.clone(),
            None => ConfigArgs::default(),
        };
        Sources {
            file: inner.config.or_else(|| self.config.config.clone()),
            env: std::env::vars_os().collect(),
            set: self.config.set.iter().cloned().chain(inner.set).collect(),
            data_dir: inner.data_dir.or_else(|| self.config.data_dir.clone()),
        }
    }
}

/// Prints, on standard output, that `name` listens on `address`: one line each, once all are ready.
pub fn announce(name: &str, address: std::net::SocketAddr) {
    use std::io::Write;
    // Nobody may be reading; that is no reason not to serve.
    let _ = writeln!(std::io::stdout().lock(), "{name} listening on {address}");
}
