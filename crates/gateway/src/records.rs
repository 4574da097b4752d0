//! `tidegate records`.

use jiff::Timestamp;
use std::time::Duration;

/// From when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since(Timestamp);

impl Since {
    /// Reads RFC 3339 or a duration ago.
    pub fn parse(text: &str) -> Result<Since, String> {
        let ago: Option<Duration> = crate::config::kind::parse_duration(text);
        let time = match ago {
            Some(ago) => Timestamp::now().checked_sub(ago).map_err(|_| "longer ago than time goes back".to_owned())?,
            None => text
                .parse()
                .map_err(|_| "neither a time, such as 2026-01-31T12:00:00Z, nor a time span, such as 10m".to_owned())?,
        };
        Ok(Since(time))
    }
}
