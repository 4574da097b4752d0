//! The gateway's own messages: on standard error, as text or JSON. Standard output is for what was asked for.

use std::ffi::OsString;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogLevel, Logging, Mistake, Origin};

/// The variable that overrides `logging.level`.
pub const VARIABLE: &str = "TIDEGATE_LOG";

/// What is let through: `logging.level`, or what [`VARIABLE`] holds.
pub fn filter(logging: &Logging, variable: Option<OsString>) -> Result<EnvFilter, Mistake> {
    let level = match logging.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let Some(text) = variable.filter(|text| !text.is_empty()) else {
        return Ok(EnvFilter::new(level));
    };
    text.to_str().and_then(|text| EnvFilter::try_new(text).ok()).ok_or_else(|| Mistake {
        origin: Origin::Env(VARIABLE.into()),
        key: String::new(),
        wrong: format!("{text:?} is not a filter"),
        allowed: "allowed: a level, or levels by module, such as \"info,tidegate_writer=debug\"".into(),
    })
}

/// Sends messages of this process to standard error from here on.
pub fn start(format: LogFormat, filter: EnvFilter) {
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_variable_wins_over_the_level_and_must_be_a_filter() {
        let logging = Config::default().logging;
        assert_eq!(filter(&logging, None).unwrap().to_string(), "info");
        assert_eq!(filter(&logging, Some("".into())).unwrap().to_string(), "info");
        let filter_text = filter(&logging, Some("warn,tidegate_writer=debug".into())).unwrap().to_string();
        assert!(filter_text.contains("tidegate_writer=debug"), "{filter_text}");
        let mistake = filter(&logging, Some("info,a=loud".into())).unwrap_err().to_string();
        assert!(mistake.starts_with("environment TIDEGATE_LOG: "), "{mistake}");
    }
}
