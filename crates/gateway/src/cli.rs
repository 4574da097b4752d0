//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::Sources;
use crate::config::kind::parse_duration;

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
    /// Register devices and give them passwords and keys; a gateway may serve the same directory meanwhile
    Devices(Box<DevicesArgs>),
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

/// What to do with devices.
#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Where the registry is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// What to do.
    #[command(subcommand)]
    pub action: DevicesAction,
}

/// What to do with devices, and what stands behind it. Not a global argument of the command, of which clap keeps the values from
/// one place alone: each `--set` counts.
#[derive(Debug, Clone)]
pub struct DevicesAction {
    /// Where the registry is.
    config: ConfigArgs,
    /// What to do.
    pub command: DevicesCommand,
}

impl FromArgMatches for DevicesAction {
    fn from_arg_matches(matches: &ArgMatches) -> Result<DevicesAction, clap::Error> {
        let command = DevicesCommand::from_arg_matches(matches)?;
        let config = matches.subcommand().map(|(_, behind)| ConfigArgs::from_arg_matches(behind));
        Ok(DevicesAction { config: config.transpose()?.unwrap_or_default(), command })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for DevicesAction {
    fn augment_subcommands(command: clap::Command) -> clap::Command {
        DevicesCommand::augment_subcommands(command).mut_subcommands(|action| {
            // Arguments that are added bring the description of their struct along.
            let about = action.get_about().cloned().unwrap_or_default();
            ConfigArgs::augment_args(action).about(about)
        })
    }

    fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        DevicesCommand::has_subcommand(name)
    }
}

/// What to do with devices.
#[derive(Debug, Clone, Subcommand)]
pub enum DevicesCommand {
    /// Register a device; without a password or key, it gets a generated token, which is printed once
    Add {
        /// Its name
        id: String,
        /// Whose it is
        #[arg(long, value_name = "NAME")]
        tenant: Option<String>,
        /// A group that rules may name; more than once for several
        #[arg(long, value_name = "NAME")]
        group: Vec<String>,
        /// MQTT client identifiers that it may use besides its name: one, or a beginning followed by `*`
        #[arg(long, value_name = "PATTERN")]
        client_ids: Option<String>,
        #[command(flatten)]
        credentials: Credentials,
        #[command(flatten)]
        psk: PskArgs,
    },
    /// List all devices
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show a device, without its secrets
    Show {
        /// Its name
        id: String,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Forget a device; its connections end
    Remove {
        /// Its name
        id: String,
    },
    /// Give a device another password, by default a generated token; its connections end
    Passwd {
        /// Its name
        id: String,
        #[command(flatten)]
        credentials: Credentials,
    },
    /// Take devices from comma-separated values: identity,psk,device,tenant, or columns as the first line names them
    Import {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// Give a device another pre-shared key, by default a generated one
    Rotate {
        /// Its name
        id: String,
        #[command(flatten)]
        psk: PskArgs,
        /// How long the old key is valid as well; 0 ends what was made with it
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = Grace::parse)]
        grace: Grace,
    },
    /// Take the password and all keys of a device away, or one key; what was made with them ends at once
    Revoke {
        /// Its name
        id: String,
        /// The identity of the key; without it, everything
        #[arg(long, value_name = "TEXT")]
        identity: Option<String>,
    },
}

/// A password for MQTT.
#[derive(Debug, Clone, Default, Args)]
pub struct Credentials {
    /// The username (by default, the name of the device)
    #[arg(long, value_name = "NAME")]
    pub username: Option<String>,
    /// A token that was generated: this one, or one that is made now and printed once
    #[arg(long, value_name = "TOKEN", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub token: Option<String>,
    /// A password that somebody chose; others on this machine see it while the command runs
    #[arg(long, value_name = "PASSWORD", conflicts_with = "token")]
    pub password: Option<String>,
    /// Read a password that somebody chose from standard input
    #[arg(long, conflicts_with_all = ["token", "password"])]
    pub password_stdin: bool,
}

impl Credentials {
    /// Whether any of them was given.
    #[must_use]
    pub fn are_given(&self) -> bool {
        self.username.is_some() || self.token.is_some() || self.password.is_some() || self.password_stdin
    }
}

/// A pre-shared key for DTLS.
#[derive(Debug, Clone, Default, Args)]
pub struct PskArgs {
    /// The identity (by default, the name of the device)
    #[arg(long, value_name = "TEXT")]
    pub identity: Option<String>,
    /// The key in hex or base64, or one that is made now and printed once; others on this machine see it while the command runs
    #[arg(long, value_name = "KEY", num_args = 0..=1, default_missing_value = "")]
    pub psk: Option<String>,
    /// Read the key, in hex or base64, from standard input
    #[arg(long, conflicts_with = "psk")]
    pub psk_stdin: bool,
}

impl PskArgs {
    /// Whether any of them was given.
    #[must_use]
    pub fn are_given(&self) -> bool {
        self.identity.is_some() || self.psk.is_some() || self.psk_stdin
    }
}

/// How long an old key stays valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(pub Duration);

impl Grace {
    fn parse(text: &str) -> Result<Grace, String> {
        // None of it needs no unit.
        let span = if text == "0" { Some(Duration::ZERO) } else { parse_duration(text) };
        span.map(Grace).ok_or_else(|| "not a time span, such as 0, 10m, 24h or 7d".to_owned())
    }
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
        let mut places = vec![&self.config];
        match &self.command {
            Some(Command::Serve(args)) => places.push(args),
            Some(Command::Check(args)) => places.push(&args.config),
            Some(Command::Records(args)) => places.push(&args.config),
            Some(Command::Devices(args)) => places.extend([&args.config, &args.action.config]),
            None => {}
        }
        Sources {
            file: places.iter().rev().find_map(|place| place.config.clone()),
            env: std::env::vars_os().collect(),
            set: places.iter().flat_map(|place| &place.set).cloned().collect(),
            data_dir: places.iter().rev().find_map(|place| place.data_dir.clone()),
        }
    }
}

/// Prints, on standard output, that `name` listens on `address`: one line each, once all are ready.
pub fn announce(name: &str, address: std::net::SocketAddr) {
    use std::io::Write;
    // Nobody may be reading; that is no reason not to serve.
    let _ = writeln!(std::io::stdout().lock(), "{name} listening on {address}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn every_command_is_put_together_right() {
        <super::Cli as CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_grace_of_nothing_needs_no_unit() {
        let parse = |text| super::Grace::parse(text).ok().map(|grace| grace.0.as_secs());
        assert_eq!(["0", "0s", "10m", "24h"].map(parse), [0, 0, 600, 86_400].map(Some));
        assert_eq!(["", "1", "00", "-1s"].map(parse), [None; 4]);
    }

    #[test]
    fn every_action_on_devices_is_described_for_itself() {
        let mut command = <super::Cli as CommandFactory>::command();
        let devices = command.find_subcommand_mut("devices").unwrap();
        let about: Vec<String> = devices.get_subcommands().map(|it| it.get_about().unwrap().to_string()).collect();
        let mut different = about.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), about.len(), "{about:?}");
    }
}
