//! What a file is called, and what its name says.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use tidegate_record::Seq;

/// Longest node name: what the log takes. With its numbers, of up to 20 digits, a file's name stays below the 255 bytes that file
/// systems allow.
pub const MAX_NODE_LEN: usize = tidegate_writer::format::MAX_NODE_LEN;

/// What a visible file ends with.
pub(super) const EXTENSION: &str = ".parquet";

/// What a file is called while it is written. With the leading dot no `*.parquet` glob matches it, nor a listing without `-a`.
const TEMPORARY_PREFIX: &str = ".";
const TEMPORARY_EXTENSION: &str = ".tmp";

const MICROS_PER_HOUR: u64 = 3_600_000_000;

/// One hour of UTC, counted from 1970-01-01T00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hour(u32);

impl Hour {
    /// The hour that holds `received`, in microseconds since the Unix epoch; `None` past the year 9999, for which no partition
    /// can be named.
    #[must_use]
    pub fn of(received: u64) -> Option<Hour> {
        if received > Timestamp::MAX.as_microsecond().cast_unsigned() {
            return None;
        }
        u32::try_from(received / MICROS_PER_HOUR).ok().map(Hour)
    }

    /// Its first microsecond since the Unix epoch.
    #[must_use]
    pub fn start(self) -> u64 {
        u64::from(self.0) * MICROS_PER_HOUR
    }

    /// Its last microsecond since the Unix epoch.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start() + MICROS_PER_HOUR - 1
    }

    /// The directory of its files, below the sink's: `dt=YYYY-MM-DD/hr=HH`.
    pub(super) fn partition(self) -> (String, String) {
        let date =
            Timestamp::from_second(i64::from(self.0) * 3600).map_or(Date::MAX, |at| at.to_zoned(TimeZone::UTC).date());
        (format!("dt={:04}-{:02}-{:02}", date.year(), date.month(), date.day()), format!("hr={:02}", self.0 % 24))
    }

    /// The hour whose files lie in `dt`/`hr`, if these name one.
    pub(super) fn from_partition(dt: &str, hr: &str) -> Option<Hour> {
        let date: Date = dt.strip_prefix("dt=")?.parse().ok()?;
        let hour: i8 = hr.strip_prefix("hr=")?.parse().ok()?;
        let at = date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
        let hour = Hour(u32::try_from(at / 3600).ok()? + u32::try_from(hour).ok()?);
        (hour.partition() == (dt.to_owned(), hr.to_owned())).then_some(hour)
    }
}

/// The name of one file: `<node>-<epoch>-<first>-<last>.parquet` in the directory of its hour.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName {
    /// The gateway that stored the records.
    pub node: String,
    /// The epoch of its log.
    pub epoch: u32,
    /// The lowest sequence number in the file.
    pub first: Seq,
    /// The highest sequence number in the file.
    pub last: Seq,
    /// The hour in which all its records were received.
    pub hour: Hour,
}

impl FileName {
    /// The directory below `root` that it lies in.
    pub(super) fn directory(&self, root: &Path) -> PathBuf {
        let (dt, hr) = self.hour.partition();
        root.join(dt).join(hr)
    }

    /// What it is called there.
    pub(super) fn visible(&self) -> String {
        format!("{self}{EXTENSION}")
    }

    /// What it is called there until it is whole.
    pub(super) fn temporary(&self) -> String {
        format!("{TEMPORARY_PREFIX}{self}{TEMPORARY_EXTENSION}")
    }

    /// The name of a visible file in the directory of `hour`, if it is one of ours.
    pub(super) fn parse(hour: Hour, file: &str) -> Option<FileName> {
        Self::parse_stem(hour, file.strip_suffix(EXTENSION)?)
    }

    /// Whether a file is a temporary one of `node`, in whichever directory.
    pub(super) fn is_temporary_of(node: &str, file: &str) -> bool {
        let stem = file.strip_prefix(TEMPORARY_PREFIX).and_then(|file| file.strip_suffix(TEMPORARY_EXTENSION));
        stem.and_then(|stem| Self::parse_stem(Hour(0), stem)).is_some_and(|name| name.node == node)
    }

    fn parse_stem(hour: Hour, stem: &str) -> Option<FileName> {
        let mut parts = stem.rsplitn(4, '-');
        let last = Seq(parts.next()?.parse().ok()?);
        let first = Seq(parts.next()?.parse().ok()?);
        let epoch = parts.next()?.parse().ok()?;
        let node = parts.next()?;
        let name = FileName { node: node.to_owned(), epoch, first, last, hour };
        // Only what would be written so: `+1` and `01` parse as numbers too.
        (is_node(node) && first <= last && name.to_string() == stem).then_some(name)
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}-{}", self.node, self.epoch, self.first, self.last)
    }
}

/// Whether `node` can begin a file's name: letters, digits, `.`, `_` and `-`, beginning with a letter or digit, because readers
/// pass over files whose names begin with a dot or an underscore.
pub(super) fn is_node(node: &str) -> bool {
    node.len() <= MAX_NODE_LEN
        && node.starts_with(|c: char| c.is_ascii_alphanumeric())
        && node.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(text: &str) -> Hour {
        Hour::of(text.parse::<Timestamp>().unwrap().as_microsecond().cast_unsigned()).unwrap()
    }

    #[test]
    fn an_hour_names_its_partition_and_back() {
        for (at, dt, hr) in [
            ("1970-01-01T00:00:00Z", "dt=1970-01-01", "hr=00"),
            ("2024-02-29T23:59:59.999999Z", "dt=2024-02-29", "hr=23"),
            ("2026-11-24T08:00:00Z", "dt=2026-11-24", "hr=08"),
            ("9999-12-30T21:00:00Z", "dt=9999-12-30", "hr=21"),
        ] {
            assert_eq!(hour(at).partition(), (dt.to_owned(), hr.to_owned()));
            assert_eq!(Hour::from_partition(dt, hr), Some(hour(at)));
        }
        assert_eq!(Hour::of(u64::MAX), None);
        for (dt, hr) in
            [("dt=2026-11-24", "hr=24"), ("dt=2026-13-01", "hr=00"), ("dt=2026-11-24", "hr=8"), ("x", "hr=08")]
        {
            assert_eq!(Hour::from_partition(dt, hr), None, "{dt}/{hr}");
        }
    }

    #[test]
    fn a_name_is_read_back_and_nothing_else_is_taken_for_one() {
        let name = FileName {
            node: "gw-1.eu".into(),
            epoch: 3,
            first: Seq(1),
            last: Seq(90),
            hour: hour("2026-11-24T08:00:00Z"),
        };
        assert_eq!(name.visible(), "gw-1.eu-3-1-90.parquet");
        assert_eq!(FileName::parse(name.hour, &name.visible()), Some(name.clone()));
        assert!(FileName::is_temporary_of("gw-1.eu", &name.temporary()));
        assert!(!FileName::is_temporary_of("gw-1", &name.temporary()));
        assert!(!FileName::is_temporary_of("gw-1.eu", &name.visible()));
        assert!(!name.temporary().ends_with(EXTENSION));
        for bad in [
            "gw-3-1-90",
            "gw-3-90-1.parquet",
            "gw-3-01-90.parquet",
            "3-1-90.parquet",
            "-3-1-90.parquet",
            "part-0.parquet",
        ] {
            assert_eq!(FileName::parse(name.hour, bad), None, "{bad}");
        }
    }

    #[test]
    fn a_node_that_would_leave_the_directory_or_hide_is_refused() {
        assert!(is_node("gw-1.example_net"));
        for bad in ["", ".hidden", "_spark", "-x", "a/b", "a b", "é", &"n".repeat(MAX_NODE_LEN + 1)] {
            assert!(!is_node(bad), "{bad}");
        }
    }
}
