//! Configuration: from defaults, file, environment and command line to one checked [`Config`].
//!
//! Constraints: every mistake is reported, not just the first, each in one line that names its place, its key, what is
//! wrong and what is allowed; nothing starts on a configuration with a mistake; a key that is not in the table is a mistake.
//!
//! What a key is stands once, in [`keys`]. Sources are applied in this order, a later one winning:
//!
//! 1. the defaults of the table,
//! 2. the file of `--config`, TOML, one table a section,
//! 3. the environment: `TIDEGATE__COAP__LISTEN` sets `coap.listen`,
//! 4. `--set coap.listen=127.0.0.1:0`, from left to right,
//! 5. `--data-dir`.
//!
//! A value that a later source overrides must be right all the same. Relations between keys ([`relations`]) are checked
//! last, on the outcome.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use tidegate_coap::Timing;

pub mod filter;
pub mod keys;
pub mod kind;
mod relations;
mod render;
mod source;

pub use keys::{AuthMode, ClientCert, Config, EchoMode, LogFormat, LogLevel, Logging, Mqtt};
pub use render::render;
pub use source::Sources;

impl Config {
    /// Whether MQTT is spoken, over whichever transport.
    #[must_use]
    pub fn listens_for_mqtt(&self) -> bool {
        self.mqtt.listen.is_some() || self.mqtt_ws.listen.is_some() || self.uses_tls()
    }

    /// Whether a certificate is needed.
    #[must_use]
    pub fn uses_tls(&self) -> bool {
        self.mqtts.listen.is_some() || self.mqtt_wss.listen.is_some()
    }

    /// Where the Parquet files are.
    #[must_use]
    pub fn parquet_dir(&self) -> PathBuf {
        self.sinks.parquet.dir.clone().unwrap_or_else(|| self.data_dir.join("parquet"))
    }
}

impl keys::Coap {
    /// The transmission parameters.
    #[must_use]
    pub fn timing(&self) -> Timing {
        Timing {
            ack_timeout: self.ack_timeout,
            ack_random_percent: self.ack_random_percent,
            max_retransmit: self.max_retransmit,
            nstart: self.nstart,
            ..Timing::RFC7252
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table.
    Default,
    /// A line of the file.
    File {
        /// The file as it was named on the command line.
        path: PathBuf,
        /// The line, from 1; 0 for the file as a whole.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// `--set`.
    Set,
    /// `--data-dir`.
    DataDir,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line: 0 } => write!(f, "{}", path.display()),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) => write!(f, "environment {name}"),
            Origin::Set => f.write_str("--set"),
            Origin::DataDir => f.write_str("--data-dir"),
        }
    }
}

/// One mistake in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it stands.
    pub origin: Origin,
    /// The key that it is about; empty if it is about none.
    pub key: String,
    /// What is wrong.
    pub wrong: String,
    /// What would have been right.
    pub allowed: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key.escape_debug())?;
        }
        write!(f, "{}; {}", self.wrong, self.allowed)
    }
}

/// Every mistake in the configuration, one a line. Never empty.
#[derive(Debug, thiserror::Error)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, mistake) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

/// Reads and checks all of `sources`.
pub fn load(sources: &Sources) -> Result<Config, Mistakes> {
    let (settings, mut mistakes) = sources.read();
    let readable = mistakes.iter().all(|mistake| !mistake.key.is_empty());
    let mut config = Config::default();
    let mut origins = BTreeMap::new();
    for setting in settings {
        let path = setting.key.path();
        if let Err(wrong) = (setting.key.assign)(&mut config, &setting.given) {
            let allowed = format!("allowed: {}", setting.key.kind.allowed());
            mistakes.push(Mistake { origin: setting.origin.clone(), key: path.clone(), wrong, allowed });
            origins.insert(path, None);
        } else {
            origins
                .entry(path)
                .and_modify(|o| *o = o.take().map(|_| setting.origin.clone()))
                .or_insert(Some(setting.origin));
        }
    }
    if let Some(dir) = &sources.data_dir {
        config.data_dir.clone_from(dir);
        if dir.as_os_str().is_empty() {
            mistakes.push(Mistake {
                origin: Origin::DataDir,
                key: String::new(),
                wrong: "it is empty".into(),
                allowed: "allowed: the path of a directory".into(),
            });
        }
    }
    // What could not be read at all may have had the other half of a relation.
    if readable {
        mistakes.extend(relations::check(&config, &origins));
    }
    mistakes.sort_by_key(|mistake| source::rank(&mistake.origin));
    if mistakes.is_empty() { Ok(config) } else { Err(Mistakes(mistakes)) }
}

#[cfg(test)]
mod tests;
