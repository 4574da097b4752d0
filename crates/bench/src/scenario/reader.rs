//! Reading a scenario file so that every mistake is said, each in one line: file, line, key, what is wrong and what is allowed.
//!
//! A [`Section`] hands out its keys one by one and remembers which were asked for; those that were not are mistakes too.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The file as it was named.
    pub file: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What it is about; empty if it is about no key.
    pub key: String,
    /// What is wrong.
    pub wrong: String,
    /// What would have been right.
    pub allowed: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key.escape_debug())?;
        }
        write!(f, ": {}; {}", self.wrong, self.allowed)
    }
}

/// Every mistake in a scenario, one a line. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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

/// A file that is being read.
pub(super) struct File<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
    pub(super) mistakes: RefCell<Vec<Mistake>>,
}

impl File<'_> {
    /// Notes a mistake at a byte of the file.
    pub(super) fn mistake(&self, at: Option<usize>, key: &str, wrong: impl Into<String>, allowed: impl Into<String>) {
        let line = at.map_or(0, |at| 1 + self.text[..at.min(self.text.len())].matches('\n').count());
        self.mistakes.borrow_mut().push(Mistake {
            file: self.name.to_owned(),
            line,
            key: key.to_owned(),
            wrong: wrong.into(),
            allowed: format!("allowed: {}", allowed.into()),
        });
    }
}

/// A table of the file, or nothing where there is none.
pub(super) struct Section<'a> {
    file: &'a File<'a>,
    table: Option<&'a DeTable<'a>>,
    /// `population.` or empty.
    path: String,
    /// Where it begins.
    at: Option<usize>,
    known: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a> {
    pub(super) fn new(
        file: &'a File<'a>,
        path: &str,
        at: Option<usize>,
        table: Option<&'a DeTable<'a>>,
    ) -> Section<'a> {
        Section { file, table, path: path.to_owned(), at, known: RefCell::default() }
    }

    fn find(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.borrow_mut().push(key);
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    pub(super) fn has(&self, key: &'static str) -> bool {
        self.find(key).is_some()
    }

    /// Notes a mistake at a key, or at the beginning of the section if it is not there.
    pub(super) fn mistake(&self, key: &'static str, wrong: impl Into<String>, allowed: impl Into<String>) {
        let at = self.find(key).map(|value| value.span().start).or(self.at);
        self.file.mistake(at, &format!("{}{key}", self.path), wrong, allowed);
    }

    /// Reads a key with `read`, which says nothing for a value of the wrong kind or out of bounds.
    fn read<T>(&self, key: &'static str, allowed: &str, read: impl FnOnce(&DeValue<'a>) -> Option<T>) -> Option<T> {
        let value = self.find(key)?;
        let read = read(value.get_ref());
        if read.is_none() {
            self.mistake(key, format!("{} is not possible", shown(value.get_ref())), allowed);
        }
        read
    }

    pub(super) fn text(&self, key: &'static str, default: &str) -> String {
        self.optional_text(key).unwrap_or_else(|| default.to_owned())
    }

    pub(super) fn optional_text(&self, key: &'static str) -> Option<String> {
        self.read(key, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    /// A text, where another kind of value may be meant.
    pub(super) fn text_if(&self, key: &'static str) -> Option<String> {
        self.find(key)?.get_ref().as_str().map(str::to_owned)
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> bool {
        self.read(key, "true or false", DeValue::as_bool).unwrap_or(default)
    }

    pub(super) fn whole(&self, key: &'static str, bounds: RangeInclusive<u64>, default: u64) -> u64 {
        self.optional_whole(key, bounds).unwrap_or(default)
    }

    pub(super) fn optional_whole(&self, key: &'static str, bounds: RangeInclusive<u64>) -> Option<u64> {
        let allowed = format!("a whole number from {} to {}", bounds.start(), bounds.end());
        self.read(key, &allowed, |value| whole(value).filter(|number| bounds.contains(number)))
    }

    pub(super) fn optional_number(&self, key: &'static str, bounds: RangeInclusive<f64>) -> Option<f64> {
        let allowed = format!("a number from {} to {}", bounds.start(), bounds.end());
        self.read(key, &allowed, |value| number(value).filter(|number| bounds.contains(number)))
    }

    pub(super) fn number(&self, key: &'static str, bounds: RangeInclusive<f64>, default: f64) -> f64 {
        self.optional_number(key, bounds).unwrap_or(default)
    }

    pub(super) fn optional_duration(&self, key: &'static str) -> Option<Duration> {
        self.read(key, DURATION, |value| value.as_str().and_then(duration))
    }

    pub(super) fn duration(&self, key: &'static str, default: Duration) -> Duration {
        self.optional_duration(key).unwrap_or(default)
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, choices: &[(&'static str, T)]) -> Option<T> {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        let allowed = format!("one of {}", names.join(", "));
        self.read(key, &allowed, |value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| *name == text).map(|(_, choice)| *choice)
        })
    }

    /// One whole number, or two of which the second is not smaller.
    pub(super) fn range(&self, key: &'static str, bounds: RangeInclusive<u64>, default: u64) -> (u64, u64) {
        let allowed = format!(
            "a whole number from {0} to {1}, two in brackets, as [{0}, {1}], or a text",
            bounds.start(),
            bounds.end()
        );
        let read = self.read(key, &allowed, |value| {
            let pair = match value {
                DeValue::Array(items) => match items.iter().collect::<Vec<_>>()[..] {
                    [least, most] => (whole(least.get_ref())?, whole(most.get_ref())?),
                    _ => return None,
                },
                one => (whole(one)?, whole(one)?),
            };
            (bounds.contains(&pair.0) && bounds.contains(&pair.1) && pair.0 <= pair.1).then_some(pair)
        });
        read.unwrap_or((default, default))
    }

    /// A table within this one; an empty one if it is not there.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        let path = format!("{}{key}.", self.path);
        let value = self.find(key);
        let table = value.and_then(|value| match value.get_ref() {
            DeValue::Table(table) => Some(table),
            other => {
                self.mistake(
                    key,
                    format!("{} is not possible", shown(other)),
                    format!("a section [{}{key}]", self.path),
                );
                None
            }
        });
        Section::new(self.file, &path, value.map(|value| value.span().start), table)
    }

    /// The tables of an array of them.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'a>> {
        let allowed = format!("sections [[{}{key}]]", self.path);
        let Some(value) = self.find(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.mistake(key, format!("{} is not possible", shown(value.get_ref())), allowed);
            return Vec::new();
        };
        let path = format!("{}{key}.", self.path);
        let section = |item: &'a Spanned<DeValue<'a>>| {
            let DeValue::Table(table) = item.get_ref() else {
                self.file.mistake(Some(item.span().start), key, "an element is no section", allowed.clone());
                return None;
            };
            Some(Section::new(self.file, &path, Some(item.span().start), Some(table)))
        };
        items.iter().filter_map(section).collect()
    }

    /// Says which keys nobody asked for.
    pub(super) fn finish(&self) {
        let known = self.known.borrow();
        for (name, _) in self.table.into_iter().flat_map(|table| table.iter()) {
            let text = name.get_ref().as_ref();
            if known.contains(&text) {
                continue;
            }
            let mut all: Vec<&str> = known.clone();
            all.sort_unstable();
            all.dedup();
            let near =
                all.iter().max_by(|a, b| strsim::jaro_winkler(a, text).total_cmp(&strsim::jaro_winkler(b, text)));
            let hint = match near {
                Some(near) if strsim::jaro_winkler(near, text) > 0.8 => {
                    format!("there is no such key, did you mean {near}")
                }
                _ => "there is no such key".to_owned(),
            };
            self.file.mistake(Some(name.span().start), &format!("{}{text}", self.path), hint, all.join(", "));
        }
    }
}

const DURATION: &str = "a time with its unit in quotes, as \"500ms\", \"30s\", \"15m\", \"1h\" or \"1d\"";

/// A number and its unit.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        "d" => number * 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok().filter(|duration| *duration <= Duration::from_secs(366 * 86_400))
}

fn whole(value: &DeValue<'_>) -> Option<u64> {
    let DeValue::Integer(number) = value else { return None };
    u64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(number) => number.as_str().parse().ok(),
        DeValue::Integer(_) => whole(value).map(|number| number as f64),
        _ => None,
    }
}

fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", text.as_ref()),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}
