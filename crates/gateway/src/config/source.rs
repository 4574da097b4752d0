//! Where values come from, before it is known what they mean.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Key, SECTIONS};
use super::kind::Given;
use super::{Mistake, Origin};

/// What the names of environment variables that set keys begin with.
pub(super) const ENV_PREFIX: &str = "TIDEGATE__";

/// Least similarity (Jaro-Winkler) of a name that is offered instead of an unknown one; 0.8 covers a slip or two in a name of
/// usual length and offers nothing for a word that is merely of the same kind.
const SIMILAR: f64 = 0.8;

/// Where to read the configuration from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with `TIDEGATE__` are passed over.
    pub env: Vec<(OsString, OsString)>,
    /// `KEY=VALUE` from the command line.
    pub set: Vec<String>,
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

/// A value for a key.
pub(super) struct Setting {
    pub(super) key: &'static Key,
    pub(super) given: Given,
    pub(super) origin: Origin,
}

/// Orders origins as their sources are applied.
pub(super) fn rank(origin: &Origin) -> (u8, usize) {
    match origin {
        Origin::Default => (0, 0),
        Origin::File { line, .. } => (1, *line),
        Origin::Env(_) => (2, 0),
        Origin::Set => (3, 0),
        Origin::DataDir => (4, 0),
    }
}

impl Sources {
    /// Every value in the order of its source, and what could not be read.
    pub(super) fn read(&self) -> (Vec<Setting>, Vec<Mistake>) {
        let mut found = Found { settings: Vec::new(), mistakes: Vec::new() };
        if let Some(path) = &self.file {
            found.file(path);
        }
        let variables: BTreeMap<&OsString, &OsString> = self.env.iter().map(|(name, value)| (name, value)).collect();
        for (name, value) in variables {
            found.variable(name, value);
        }
        for set in &self.set {
            found.set(set);
        }
        (found.settings, found.mistakes)
    }
}

struct Found {
    settings: Vec<Setting>,
    mistakes: Vec<Mistake>,
}

impl Found {
    fn mistake(&mut self, origin: Origin, key: &str, wrong: impl Into<String>, allowed: impl Into<String>) {
        self.mistakes.push(Mistake { origin, key: key.into(), wrong: wrong.into(), allowed: allowed.into() });
    }

    fn word(&mut self, origin: Origin, path: &str, value: String) {
        match keys::all().find(|key| key.path() == path) {
            Some(key) => self.settings.push(Setting { key, given: Given::Word(value), origin }),
            None if is_section(path) => self.section(origin, path),
            None => self.mistake(origin, path, "unknown key", instead_of(path)),
        }
    }

    /// A value was given for what has none itself.
    fn section(&mut self, origin: Origin, path: &str) {
        self.mistake(origin, path, "it is a section, not a key", format!("allowed: its keys, {}", keys_of(path)));
    }

    fn set(&mut self, set: &str) {
        match set.split_once('=') {
            Some((path, value)) => self.word(Origin::Set, path.trim(), value.trim().to_owned()),
            None => self.mistake(Origin::Set, "", format!("{set:?} has no `=`"), "allowed: KEY=VALUE"),
        }
    }

    fn variable(&mut self, name: &OsString, value: &OsString) {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { return };
        let origin = Origin::Env(name.clone().into_owned());
        let path = rest.to_lowercase().replace("__", ".");
        match value.to_str() {
            Some(value) => self.word(origin, &path, value.to_owned()),
            None => self.mistake(origin, &path, "it is not UTF-8", "allowed: UTF-8"),
        }
    }

    fn file(&mut self, path: &Path) {
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                let origin = Origin::File { path: path.into(), line: 0 };
                return self.mistake(origin, "", format!("cannot be read: {error}"), "allowed: a TOML file");
            }
        };
        let text = match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let line = line_at(error.as_bytes(), error.utf8_error().valid_up_to());
                let origin = Origin::File { path: path.into(), line };
                return self.mistake(origin, "", "it is not UTF-8", "allowed: UTF-8");
            }
        };
        let file = File { path, text: &text };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            let origin = file.origin(error.span().unwrap_or(0..0));
            self.mistake(origin, "", error.message(), "allowed: TOML 1.0");
        }
        // What the parser guessed in order to go on is not what the operator wrote.
        if errors.is_empty() {
            self.table(&file, "", table.get_ref());
        }
    }

    fn table(&mut self, file: &File<'_>, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path =
                if section.is_empty() { name.get_ref().to_string() } else { format!("{section}.{}", name.get_ref()) };
            let origin = file.origin(name.span());
            let key = keys::all().find(|key| key.path() == path);
            let inner = value.get_ref().as_table();
            match (key, inner) {
                (Some(_), Some(_)) => self.mistake(origin, &path, "it is a key, not a section", "allowed: one value"),
                (Some(key), None) => {
                    let origin = file.origin(value.span());
                    self.settings.push(Setting { key, given: given(value), origin });
                }
                (None, Some(inner)) if is_section(&path) => self.table(file, &path, inner),
                (None, Some(_)) => self.mistake(origin, &path, "unknown section", instead_of(&path)),
                (None, None) if is_section(&path) => self.section(origin, &path),
                (None, None) => self.mistake(origin, &path, "unknown key", instead_of(&path)),
            }
        }
    }
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn origin(&self, span: Range<usize>) -> Origin {
        Origin::File { path: self.path.into(), line: line_at(self.text.as_bytes(), span.start) }
    }
}

/// The line of the byte at `offset`, from 1.
fn line_at(text: &[u8], offset: usize) -> usize {
    text[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count() + 1
}

fn is_section(path: &str) -> bool {
    SECTIONS.iter().any(|s| s.path == path || s.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

fn keys_of(section: &str) -> String {
    let inside = |key: &Key| key.path().strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
    let names: Vec<String> = keys::all().filter(|key| inside(key)).map(Key::path).collect();
    names.join(", ")
}

fn given(value: &Spanned<DeValue<'_>>) -> Given {
    match value.get_ref() {
        DeValue::String(text) => Given::Text(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or(Given::Other("a number beyond 128 bits"), Given::Integer),
        DeValue::Boolean(flag) => Given::Bool(*flag),
        DeValue::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(|i| i.get_ref().as_str().map(str::to_owned)).collect();
            items.map_or(Given::Other("a list of other things than strings"), Given::List)
        }
        DeValue::Float(_) => Given::Other("a number with a fraction"),
        DeValue::Datetime(_) => Given::Other("a date"),
        DeValue::Table(_) => Given::Other("a section"),
    }
}

/// What to offer instead of a name that is not in the table.
fn instead_of(path: &str) -> String {
    let known: Vec<String> = keys::all()
        .map(Key::path)
        .chain(SECTIONS.iter().map(|s| s.path.to_owned()).filter(|p| !p.is_empty()))
        .collect();
    // A name that is right but stands in the wrong section, before one that is misspelt.
    let last = path.rsplit('.').next().unwrap_or(path);
    let misplaced = known.iter().filter(|name| name.rsplit('.').next() == Some(last)).count() == 1;
    let similar = known
        .iter()
        .map(|name| (name, strsim::jaro_winkler(name, path)))
        .filter(|(_, similarity)| *similarity >= SIMILAR)
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map(|(name, _)| name);
    let offer = similar.or_else(|| known.iter().find(|name| misplaced && name.rsplit('.').next() == Some(last)));
    match offer {
        Some(name) => format!("did you mean `{name}`?"),
        None => {
            let top: Vec<&str> = SECTIONS.iter().map(|s| s.path).filter(|path| !path.is_empty()).collect();
            format!("the sections are {}", top.join(", "))
        }
    }
}
