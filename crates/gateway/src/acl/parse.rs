//! Reading the rules: one a line, with line and column of what is wrong.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::filter::{Level, Piece, Template};
use super::{Acl, Action, Filter, Rule, Subject, quoted};

/// Longest file: a rule each for some hundred thousand devices.
const MAX_BYTES: u64 = 64 << 20;

/// Most levels of a filter: topics with more are refused as well.
const MAX_LEVELS: usize = 128;

/// A file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// The character in it, from 1.
    pub column: usize,
    /// What is wrong.
    pub wrong: String,
    /// What is allowed; empty where that is plain.
    pub allowed: &'static str,
}

impl fmt::Display for AclError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.wrong)?;
        if self.allowed.is_empty() { Ok(()) } else { write!(f, "; allowed: {}", self.allowed) }
    }
}

impl std::error::Error for AclError {}

/// What is wrong at a character of the line, counted from 0.
struct Wrong {
    at: usize,
    wrong: String,
    allowed: &'static str,
}

fn wrong<T>(at: usize, wrong: String, allowed: &'static str) -> Result<T, Wrong> {
    Err(Wrong { at, wrong, allowed })
}

/// Reads the file at `path`.
pub(super) fn load(path: &Path) -> Result<Acl, AclError> {
    let whole = |wrong: String, allowed| AclError { path: path.into(), line: 0, column: 0, wrong, allowed };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| whole(format!("cannot be read: {error}"), ""))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(whole("is too long".into(), "at most 64 MiB"));
    }
    parse(&text).map_err(|(line, wrong)| AclError {
        path: path.into(),
        line,
        column: wrong.at + 1,
        wrong: wrong.wrong,
        allowed: wrong.allowed,
    })
}

fn parse(text: &str) -> Result<Acl, (usize, Wrong)> {
    let mut acl = Acl::default();
    for (index, line) in text.lines().enumerate() {
        let words = words(line).map_err(|wrong| (index + 1, wrong))?;
        if !words.is_empty() {
            rule(&words, line.chars().count(), &mut acl).map_err(|wrong| (index + 1, wrong))?;
        }
    }
    Ok(acl)
}

/// The rules in `text`, for tests.
#[cfg(test)]
pub(super) fn parse_text(text: &str) -> Result<Acl, String> {
    parse(text).map_err(|(line, wrong)| format!("{line}:{}: {}; allowed: {}", wrong.at + 1, wrong.wrong, wrong.allowed))
}

/// The words of a line and where they begin.
fn words(line: &str) -> Result<Vec<(usize, String)>, Wrong> {
    let mut words = Vec::new();
    let mut letters = line.chars().enumerate().peekable();
    while let Some(&(at, letter)) = letters.peek() {
        if letter.is_whitespace() {
            letters.next();
            continue;
        }
        // A filter may be `#`: a comment begins before a rule or behind a whole one.
        if letter == '#' && (words.is_empty() || complete(&words)) {
            break;
        }
        let mut word = String::new();
        if letter == '"' {
            letters.next();
            loop {
                match letters.next() {
                    Some((_, '"')) => break,
                    Some((_, letter)) => word.push(letter),
                    None => return wrong(at, "a quote that does not end".into(), "a quote at the end of the word"),
                }
            }
        } else {
            while let Some((_, letter)) = letters.next_if(|(_, letter)| !letter.is_whitespace()) {
                word.push(letter);
            }
        }
        words.push((at, word));
    }
    Ok(words)
}

/// Whether the words so far are a whole rule.
fn complete(words: &[(usize, String)]) -> bool {
    let named = words.get(1).is_some_and(|(_, who)| who != "all");
    words.len() >= if named { 5 } else { 4 }
}

fn rule(words: &[(usize, String)], end: usize, acl: &mut Acl) -> Result<(), Wrong> {
    let mut words = words.iter().map(|(at, word)| (*at, word.as_str()));
    let mut next = |allowed| words.next().map_or_else(|| wrong(end, "the rule ends here".into(), allowed), Ok);

    const EFFECTS: &str = "allow or deny";
    let allow = match next(EFFECTS)? {
        (_, "allow") => true,
        (_, "deny") => false,
        (at, other) => return wrong(at, format!("{other:?} is no effect"), EFFECTS),
    };
    const SUBJECTS: &str = "all, or device, user, group or tenant and a name";
    let subject = match next(SUBJECTS)? {
        (_, "all") => None,
        (_, "device") => Some(Subject::Device),
        (_, "user") => Some(Subject::User),
        (_, "group") => Some(Subject::Group),
        (_, "tenant") => Some(Subject::Tenant),
        (at, other) => return wrong(at, format!("{other:?} says nobody"), SUBJECTS),
    };
    const NAMES: &str = "a name, with `*` at most once and at its end";
    let name = match subject {
        Some(_) => {
            let (at, name) = next(NAMES)?;
            if name.is_empty() || name.strip_suffix('*').unwrap_or(name).contains('*') {
                return wrong(at, format!("the name {}", quoted(name)), NAMES);
            }
            name
        }
        None => "",
    };
    const ACTIONS: &str = "publish, subscribe or all";
    let actions = match next(ACTIONS)? {
        (_, "publish") => Action::Publish as u8,
        (_, "subscribe") => Action::Subscribe as u8,
        (_, "all") => Action::Publish as u8 | Action::Subscribe as u8,
        (at, other) => return wrong(at, format!("{other:?} is nothing to do"), ACTIONS),
    };
    let (at, text) = next("a topic filter, in double quotes if it has spaces in it")?;
    let filter = filter(at, text)?;
    if let Some((at, more)) = words.next() {
        return wrong(at, format!("{more:?} behind the rule"), "one rule a line");
    }

    let number = u32::try_from(acl.rules.len()).expect("a file has fewer lines");
    acl.rules.push(Rule { allow, actions, filter });
    match (subject, name.strip_suffix('*')) {
        (None, _) => acl.all.push(number),
        (Some(subject), Some(prefix)) => acl.prefixed.push((subject, prefix.into(), number)),
        (Some(subject), None) => {
            let named: &mut HashMap<Box<str>, Vec<u32>> = &mut acl.named[subject as usize];
            named.entry(name.into()).or_default().push(number);
        }
    }
    Ok(())
}

fn filter(at: usize, text: &str) -> Result<Filter, Wrong> {
    const FILTERS: &str = "levels between slashes; + alone in a level, # alone in the last one";
    const PLACEHOLDERS: &str = "%c (client identifier), %d (device), %u (username), %t (tenant) and %%";
    if text.is_empty() {
        return wrong(at, "an empty topic filter".into(), FILTERS);
    }
    let count = text.split('/').count();
    if count > MAX_LEVELS {
        return wrong(at, format!("a filter of {count} levels"), "at most 128");
    }
    let mut levels = Vec::new();
    let mut offset = at;
    for (index, level) in text.split('/').enumerate() {
        let mut pieces = Vec::new();
        match level {
            "+" => pieces.push(Piece::Any),
            "#" if index + 1 == count => pieces.push(Piece::Rest),
            _ => {
                let mut plain = String::new();
                let mut letters = level.chars().enumerate();
                while let Some((within, letter)) = letters.next() {
                    let placeholder = match letter {
                        '+' | '#' => return wrong(offset + within, format!("{letter:?} in {level:?}"), FILTERS),
                        '\0' => return wrong(offset + within, "a zero byte".into(), FILTERS),
                        '%' => match letters.next() {
                            Some((_, 'c')) => Piece::Client,
                            Some((_, 'd')) => Piece::Device,
                            Some((_, 'u')) => Piece::User,
                            Some((_, 't')) => Piece::Tenant,
                            Some((_, '%')) => {
                                plain.push('%');
                                continue;
                            }
                            other => {
                                let shown = other.map_or_else(String::new, |(_, letter)| letter.into());
                                return wrong(offset + within, format!("the placeholder \"%{shown}\""), PLACEHOLDERS);
                            }
                        },
                        _ => {
                            plain.push(letter);
                            continue;
                        }
                    };
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
                    }
                    pieces.push(placeholder);
                }
                if !plain.is_empty() || pieces.is_empty() {
                    pieces.push(Piece::Text(plain.into()));
                }
            }
        }
        levels.push(pieces);
        offset += level.chars().count() + 1;
    }
    // Every topic has a first level, so this is the same, and more plainly so.
    if let [first, rest] = levels.as_slice()
        && (first.as_slice(), rest.as_slice()) == (&[Piece::Any], &[Piece::Rest])
    {
        levels.remove(0);
    }
    let plain: Option<Vec<Level<'static>>> = levels
        .iter()
        .map(|pieces| match pieces.as_slice() {
            [Piece::Any] => Some(Level::Any),
            [Piece::Rest] => Some(Level::Rest),
            [Piece::Text(text)] => Some(Level::Text(text.to_string().into())),
            _ => None,
        })
        .collect();
    Ok(plain.map_or_else(|| Filter::Template(Template(levels)), Filter::Plain))
}
