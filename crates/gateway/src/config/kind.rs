//! What a key accepts: one type for each kind of value, with its bounds.
//!
//! A value comes as TOML from the file, or as a bare word from the environment, `--set` or the table's own defaults. Both
//! become a [`Given`], and a kind reads it (`read`, with an output type of its own) or says what is wrong. What would have
//! been right is said by [`Kind::allowed`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

mod coap;

pub use coap::{Aliases, BlockSize, Segment, Topic};

use super::filter::RecordFilter;

mod auth;

pub use auth::{Network, Networks};

/// 1,024 bytes.
pub const KIB: u64 = 1 << 10;
/// 1,024 KiB.
pub const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub const GIB: u64 = 1 << 30;
/// 1,024 GiB.
pub const TIB: u64 = 1 << 40;

/// Units of size, the largest that divides a number last.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", KIB),
    ("MiB", MIB),
    ("GiB", GIB),
    ("TiB", TIB),
];

/// Units of time in milliseconds, the largest that divides a number last.
const TIME_UNITS: &[(&str, u64)] =
    &[("ms", 1), ("s", 1_000), ("m", 60_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// `n` milliseconds.
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// `n` seconds.
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `n` minutes.
pub const fn minutes(n: u64) -> Duration {
    seconds(60 * n)
}

/// `n` hours.
pub const fn hours(n: u64) -> Duration {
    minutes(60 * n)
}

/// `n` days.
pub const fn days(n: u64) -> Duration {
    hours(24 * n)
}

/// A value as somebody gave it.
#[derive(Debug, Clone, PartialEq)]
pub enum Given {
    /// Text whose type only the key knows.
    Word(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i128),
    /// A TOML boolean.
    Bool(bool),
    /// A TOML array of strings.
    List(Vec<String>),
    /// Something that no key takes.
    Other(&'static str),
}

impl Given {
    /// How it reads in an error.
    fn shown(&self) -> String {
        match self {
            Given::Word(text) | Given::Text(text) => format!("{text:?}"),
            Given::Integer(number) => number.to_string(),
            Given::Bool(flag) => flag.to_string(),
            Given::List(_) => "a list".into(),
            Given::Other(what) => (*what).into(),
        }
    }

    fn not(&self, what: &str) -> String {
        format!("{} is not {what}", self.shown())
    }

    fn text(&self) -> Option<&str> {
        match self {
            Given::Word(text) | Given::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list of up to `max`; a word is split at commas.
    fn list(&self, max: usize, items: &str) -> Result<Vec<String>, String> {
        let list = match self {
            Given::List(list) => list.clone(),
            Given::Word(word) => split(word),
            _ => return Err(self.not("a list")),
        };
        if list.len() > max { Err(format!("{} {items}", list.len())) } else { Ok(list) }
    }

    fn integer(&self) -> Option<i128> {
        match self {
            Given::Integer(number) => Some(*number),
            Given::Word(word) => word.trim().replace('_', "").parse().ok(),
            _ => None,
        }
    }
}

/// What every kind can say of itself.
pub trait Kind: Sync {
    /// What is allowed, as it stands after the semicolon of an error.
    fn allowed(&self) -> String;

    /// The bounds alone, for a file whose head explains the notations; empty if there are none.
    fn bounds(&self) -> String {
        String::new()
    }

    /// The TOML for `word`, which this kind accepts.
    fn toml(&self, word: &str) -> String {
        format!("{word:?}")
    }

    /// Values at and just beyond the bounds.
    #[cfg(test)]
    fn edges(&self) -> Edges;
}

/// Words that a kind accepts and words that it does not.
#[cfg(test)]
#[derive(Debug)]
pub struct Edges {
    /// Accepted.
    pub good: Vec<String>,
    /// Not accepted.
    pub bad: Vec<String>,
}

#[cfg(test)]
fn edges(good: &[&str], bad: &[&str]) -> Edges {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    Edges { good: owned(good), bad: owned(bad) }
}

/// A name that is safe within a file name.
pub struct Name {
    /// Most characters.
    pub max: usize,
}

impl Name {
    /// Reads a name.
    pub fn read(&self, given: &Given) -> Result<String, String> {
        let text = given.text().ok_or_else(|| given.not("a name"))?;
        let safe = text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        // Readers of a directory of Parquet files pass over names that begin with `_`, commands take `-` for an option.
        if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || text.len() > self.max || !safe {
            return Err(given.not("such a name"));
        }
        Ok(text.to_owned())
    }
}

impl Kind for Name {
    fn allowed(&self) -> String {
        self.bounds()
    }

    fn bounds(&self) -> String {
        format!("1 to {} of A-Z, a-z, 0-9, `_` and `-`, a letter or digit first", self.max)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let longest = "n".repeat(self.max);
        edges(&["a", &longest, "A_z-9"], &["", &format!("{longest}n"), "a/b", "a b", "..", "_a", "-a", "ä"])
    }
}

/// A directory.
pub struct Directory {
    /// What an empty text stands for, if it is allowed.
    pub empty: Option<&'static str>,
}

/// Makes one output type of "there must be one" and "there may be one".
pub trait FromDirectory {
    /// From the path, `None` if the text was empty.
    fn from_directory(path: Option<PathBuf>) -> Option<Self>
    where
        Self: Sized;
}

impl FromDirectory for PathBuf {
    fn from_directory(path: Option<PathBuf>) -> Option<PathBuf> {
        path
    }
}

impl FromDirectory for Option<PathBuf> {
    fn from_directory(path: Option<PathBuf>) -> Option<Option<PathBuf>> {
        Some(path)
    }
}

impl Directory {
    /// Reads a path. It need not exist.
    pub fn read<T: FromDirectory>(&self, given: &Given) -> Result<T, String> {
        let text = given.text().ok_or_else(|| given.not("a path"))?;
        if text.contains('\0') {
            return Err("a NUL is in it".into());
        }
        let path = (!text.is_empty()).then(|| PathBuf::from(text));
        T::from_directory(path).ok_or_else(|| "it is empty".into())
    }
}

impl Kind for Directory {
    fn allowed(&self) -> String {
        match self.empty {
            None => "the path of a directory".into(),
            Some(empty) => format!("the path of a directory, or \"\" for {empty}"),
        }
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        match self.empty {
            None => edges(&["/", "a b"], &["", "a\0b"]),
            Some(_) => edges(&["", "/"], &["a\0b"]),
        }
    }
}

/// A file, or none.
pub struct File {
    /// What an empty text stands for.
    pub empty: &'static str,
}

impl File {
    /// Reads a path. Whether the file is there is for whoever opens it to say.
    pub fn read(&self, given: &Given) -> Result<Option<PathBuf>, String> {
        Directory { empty: Some(self.empty) }.read(given)
    }
}

impl Kind for File {
    fn allowed(&self) -> String {
        format!("the path of a file, or \"\" for {}", self.empty)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(&["", "/", "a b"], &["a\0b"])
    }
}

/// The path of a URL.
pub struct UrlPath;

impl UrlPath {
    /// Longest path: it is compared with what strangers send.
    const MAX: usize = 255;

    /// Reads a path, in the characters that stand for themselves in a URL (RFC 3986 §3.3).
    pub fn read(&self, given: &Given) -> Result<String, String> {
        let text = given.text().ok_or_else(|| given.not("a path"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte);
        if !text.starts_with('/') || text.len() > Self::MAX || !text.bytes().all(plain) {
            return Err(given.not("the path of a URL"));
        }
        Ok(text.to_owned())
    }
}

impl Kind for UrlPath {
    fn allowed(&self) -> String {
        format!("`/` and up to {} letters, digits and -._~!$&'()*+,;=:@/", Self::MAX - 1)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(&["/", "/mqtt", "/a/b-c.d~e"], &["", "mqtt", "/a b", "/a?b", "/a#b", "/\u{e4}"])
    }
}

/// The address of a listener, or none.
pub struct Listen;

impl Listen {
    /// Reads an address.
    pub fn read(&self, given: &Given) -> Result<Option<SocketAddr>, String> {
        let text = given.text().ok_or_else(|| given.not("an address"))?;
        if text.is_empty() || text == "off" {
            return Ok(None);
        }
        if let Some(port) = text.strip_prefix("localhost:")
            && let Ok(port) = port.parse()
        {
            return Ok(Some((IpAddr::V4(Ipv4Addr::LOCALHOST), port).into()));
        }
        text.parse().map(Some).map_err(|_| given.not("an address with a port"))
    }
}

impl Kind for Listen {
    fn allowed(&self) -> String {
        "an IP address or `localhost` and a port, such as \"127.0.0.1:5683\", \"[::]:5683\" or \"0.0.0.0:0\" for a free \
         port, or \"off\""
            .into()
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(
            &["", "off", "127.0.0.1:0", "127.0.0.1:65535", "[::1]:1", "localhost:80"],
            &["127.0.0.1", ":80", "80", "127.0.0.1:65536", "localhost", "::1:80", "a.example:80", "127.0.0.1:-1"],
        )
    }
}

/// A whole number.
pub struct Integer {
    /// Smallest.
    pub min: u64,
    /// Largest.
    pub max: u64,
}

impl Integer {
    /// Reads a number of the type of its field.
    pub fn read<T: TryFrom<u64>>(&self, given: &Given) -> Result<T, String> {
        let number = given.integer().ok_or_else(|| given.not("a whole number"))?;
        within(number, self.min, self.max, u64::to_string)
    }
}

impl Kind for Integer {
    fn allowed(&self) -> String {
        format!("a whole number {}", self.bounds())
    }

    fn bounds(&self) -> String {
        format!("from {} to {}", self.min, self.max)
    }

    fn toml(&self, word: &str) -> String {
        word.to_owned()
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let (low, high) = (i128::from(self.min), i128::from(self.max));
        edges(
            &[&low.to_string(), &high.to_string()],
            &[&(low - 1).to_string(), &(high + 1).to_string(), "", "1.5", "many", "0x10"],
        )
    }
}

/// A number of bytes.
pub struct Size {
    /// Smallest.
    pub min: u64,
    /// Largest.
    pub max: u64,
}

impl Size {
    /// Reads a size of the type of its field.
    pub fn read<T: TryFrom<u64>>(&self, given: &Given) -> Result<T, String> {
        let number = match given.integer() {
            Some(number) => number,
            None => given
                .text()
                .and_then(|text| with_unit(text, SIZE_UNITS))
                .map(i128::from)
                .ok_or_else(|| given.not("a size"))?,
        };
        within(number, self.min, self.max, |n| show_size(*n))
    }
}

impl Kind for Size {
    fn allowed(&self) -> String {
        format!("{}, in bytes or with a unit, such as \"2 MiB\"", self.bounds())
    }

    fn bounds(&self) -> String {
        format!("from {} to {}", show_size(self.min), show_size(self.max))
    }

    fn toml(&self, word: &str) -> String {
        if word.bytes().all(|b| b.is_ascii_digit()) { word.to_owned() } else { format!("{word:?}") }
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let (low, high) = (i128::from(self.min), i128::from(self.max));
        edges(
            &[&low.to_string(), &high.to_string(), &show_size(self.min), &show_size(self.max)],
            &[
                &(low - 1).to_string(),
                &(high + 1).to_string(),
                "",
                "KiB",
                "1 XiB",
                "1.5 MiB",
                "-1 B",
                "999999999999 TiB",
            ],
        )
    }
}

/// A size, or `auto`: whoever uses it knows better.
pub struct AutoSize(pub Size);

impl AutoSize {
    /// Reads a size of the type of its field; `None` is `auto`.
    pub fn read<T: TryFrom<u64>>(&self, given: &Given) -> Result<Option<T>, String> {
        if given.text() == Some("auto") { Ok(None) } else { self.0.read(given).map(Some) }
    }
}

impl Kind for AutoSize {
    fn allowed(&self) -> String {
        format!("\"auto\", or {}", self.0.allowed())
    }

    fn bounds(&self) -> String {
        format!("\"auto\", or {}", self.0.bounds())
    }

    fn toml(&self, word: &str) -> String {
        self.0.toml(word)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let Edges { mut good, mut bad } = self.0.edges();
        good.push("auto".into());
        bad.push("Auto".into());
        Edges { good, bad }
    }
}

/// A time span.
pub struct Span {
    /// Shortest.
    pub min: Duration,
    /// Longest.
    pub max: Duration,
}

impl Span {
    /// Reads a time span. A number without a unit is in seconds.
    pub fn read(&self, given: &Given) -> Result<Duration, String> {
        let span = match given.integer() {
            Some(number) => u64::try_from(number).ok().map(Duration::from_secs),
            None => given.text().and_then(parse_duration),
        };
        let span = span.ok_or_else(|| given.not("a time"))?;
        if span < self.min {
            return Err(format!("{} is too short", show_duration(span)));
        }
        if span > self.max {
            return Err(format!("{} is too long", show_duration(span)));
        }
        Ok(span)
    }
}

impl Kind for Span {
    fn allowed(&self) -> String {
        format!("{}, in seconds or with a unit, such as \"5 min\"", self.bounds())
    }

    fn bounds(&self) -> String {
        format!("from {} to {}", show_duration(self.min), show_duration(self.max))
    }

    fn toml(&self, word: &str) -> String {
        if word.bytes().all(|b| b.is_ascii_digit()) { word.to_owned() } else { format!("{word:?}") }
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let mut bad =
            vec![format!("{} ms", self.max.as_millis() + 1), "".into(), "s".into(), "1 y".into(), "-1 s".into()];
        if let Some(below) = self.min.checked_sub(millis(1)) {
            bad.push(format!("{} ms", below.as_millis()));
        }
        Edges {
            good: vec![show_duration(self.min), show_duration(self.max), format!("{} ms", self.max.as_millis())],
            bad,
        }
    }
}

/// One of a few words.
pub struct Choice<T: 'static>(pub &'static [(&'static str, T)]);

impl<T: Copy> Choice<T> {
    /// Reads a word.
    pub fn read(&self, given: &Given) -> Result<T, String> {
        let word = given.text().ok_or_else(|| given.not("a word"))?;
        let found = self.0.iter().find(|(name, _)| *name == word);
        found.map(|(_, value)| *value).ok_or_else(|| given.not("known here"))
    }
}

impl<T: Sync> Kind for Choice<T> {
    fn allowed(&self) -> String {
        let names: Vec<String> = self.0.iter().map(|(name, _)| format!("{name:?}")).collect();
        names.join(", ")
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let good: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
        edges(&good, &["", "other", &good[0].to_uppercase()])
    }
}

/// Yes or no.
pub struct Flag;

impl Flag {
    /// Reads a boolean.
    pub fn read(&self, given: &Given) -> Result<bool, String> {
        match given {
            Given::Bool(flag) => Ok(*flag),
            Given::Word(word) if word == "true" => Ok(true),
            Given::Word(word) if word == "false" => Ok(false),
            _ => Err(given.not("a boolean")),
        }
    }
}

impl Kind for Flag {
    fn allowed(&self) -> String {
        "true or false".into()
    }

    fn toml(&self, word: &str) -> String {
        word.to_owned()
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(&["true", "false"], &["", "yes", "1", "True"])
    }
}

/// A list of topic filters.
pub struct Filters {
    /// Most filters.
    pub max: usize,
}

impl Filters {
    /// Reads a list; a word is split at commas.
    pub fn read(&self, given: &Given) -> Result<RecordFilter, String> {
        RecordFilter::new(&given.list(self.max, "filters")?)
    }
}

impl Kind for Filters {
    fn allowed(&self) -> String {
        format!("a list of 1 to {} MQTT topic filters, such as [\"#\", \"!cmd/#\"], `!` for what is left out", self.max)
    }

    fn toml(&self, word: &str) -> String {
        toml_list(word)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let most = vec!["a"; self.max].join(",");
        edges(&["#", "a/+/b, !a/b/#", &most], &["", "!a", "a#", &format!("{most},a")])
    }
}

/// What stands between the commas of `word`; nothing at all is an empty list.
fn split(word: &str) -> Vec<String> {
    if word.trim().is_empty() { Vec::new() } else { word.split(',').map(|item| item.trim().to_owned()).collect() }
}

/// The TOML of a list that was given as a word.
fn toml_list(word: &str) -> String {
    let quoted: Vec<String> = split(word).iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", quoted.join(", "))
}

fn within<T: TryFrom<u64>>(number: i128, min: u64, max: u64, show: impl Fn(&u64) -> String) -> Result<T, String> {
    let shown = || u64::try_from(number).map_or_else(|_| number.to_string(), |n| show(&n));
    if number < i128::from(min) {
        return Err(format!("{} is too small", shown()));
    }
    if number > i128::from(max) {
        return Err(format!("{} is too large", shown()));
    }
    u64::try_from(number).ok().and_then(|n| T::try_from(n).ok()).ok_or_else(|| format!("{} is too large", shown()))
}

/// The number in `text` times its unit; the unit is required.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.replace('_', "").parse::<u64>().ok()?.checked_mul(*factor)
}

/// The time that `text` names, with its unit: "500 ms", "60 s", "10m", "10 min", "1 h", "7 d".
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    with_unit(text, TIME_UNITS).map(Duration::from_millis)
}

fn show_size(bytes: u64) -> String {
    let binary = SIZE_UNITS.iter().filter(|(name, _)| !name.ends_with("B") || name.contains('i') || *name == "B");
    show_with_unit(bytes, binary)
}

fn show_duration(span: Duration) -> String {
    let millis = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0 s".into();
    }
    show_with_unit(millis, TIME_UNITS.iter().filter(|(name, _)| *name != "m"))
}

fn show_with_unit<'a>(number: u64, units: impl Iterator<Item = &'a (&'a str, u64)>) -> String {
    let fitting = units.filter(|(_, factor)| number.is_multiple_of(*factor) && number >= *factor).last();
    fitting.map_or_else(|| format!("{number} B"), |(name, factor)| format!("{} {name}", number / factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_they_are_shown() {
        for (text, bytes) in [("0 B", 0), ("1000 B", 1000), ("2 KiB", 2048), ("3 MB", 3_000_000), ("256MiB", 256 * MIB)]
        {
            assert_eq!(with_unit(text, SIZE_UNITS), Some(bytes), "{text}");
        }
        for bytes in [0, 1, 1000, 1024, 1_000_000, MIB + 1, 4 * GIB - 1, TIB] {
            assert_eq!(with_unit(&show_size(bytes), SIZE_UNITS), Some(bytes), "{}", show_size(bytes));
        }
        assert_eq!(show_size(256 * MIB), "256 MiB");
        for (text, span) in [
            ("10m", minutes(10)),
            ("10 min", minutes(10)),
            ("1 h", hours(1)),
            ("1_500 ms", millis(1500)),
            ("7d", days(7)),
        ] {
            assert_eq!(parse_duration(text), Some(span), "{text}");
            assert_eq!(parse_duration(&show_duration(span)), Some(span), "{}", show_duration(span));
        }
        for text in ["", "10", "s", "1 month", "1.5 s", "-1 s", "18446744073709551615 d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_toml_string_is_not_taken_for_a_number_or_a_boolean() {
        assert!(Integer { min: 0, max: 9 }.read::<u8>(&Given::Text("5".into())).is_err());
        assert!(Flag.read(&Given::Text("true".into())).is_err());
        assert_eq!(Integer { min: 0, max: 9 }.read::<u8>(&Given::Word("5".into())), Ok(5));
        assert_eq!(Flag.read(&Given::Word("true".into())), Ok(true));
    }
}
