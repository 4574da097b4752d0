//! Topic filters of rules: matching a topic, covering or overlapping another filter.

use std::borrow::Cow;

use super::Who;

/// One level of a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Level<'a> {
    /// `+`: any one level.
    Any,
    /// `#`: this one and all below, and the parent.
    Rest,
    /// This text. What was put in for a placeholder may have `+` or `#` in it; no topic does.
    Text(Cow<'a, str>),
}

/// A filter with placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(pub(super) Vec<Vec<Piece>>);

/// A part of a level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(Box<str>),
    Client,
    Device,
    User,
    Tenant,
    /// The level is a wildcard, alone in it.
    Any,
    Rest,
}

impl Template {
    /// The levels for `who`; `None` if a name is needed that `who` does not have.
    pub(super) fn fill<'a>(&'a self, who: &Who<'a>) -> Option<Vec<Level<'a>>> {
        let mut levels = Vec::with_capacity(self.0.len());
        for pieces in &self.0 {
            match pieces.as_slice() {
                [Piece::Any] => levels.push(Level::Any),
                [Piece::Rest] => levels.push(Level::Rest),
                [piece] => {
                    let text = piece.text(who)?;
                    // A name with slashes is several levels.
                    levels.extend(text.split('/').map(|level| Level::Text(level.into())));
                }
                pieces => {
                    let mut text = String::new();
                    for piece in pieces {
                        text.push_str(piece.text(who)?);
                    }
                    levels.extend(text.split('/').map(|level| Level::Text(level.to_owned().into())));
                }
            }
        }
        Some(levels)
    }
}

impl Piece {
    fn text<'a>(&'a self, who: &Who<'a>) -> Option<&'a str> {
        let name = match self {
            Piece::Text(text) => return Some(text),
            Piece::Client => who.client,
            Piece::Device => who.device,
            Piece::User => who.user,
            Piece::Tenant => who.tenant,
            Piece::Any | Piece::Rest => return None,
        };
        (!name.is_empty()).then_some(name)
    }
}

/// Whether the filter begins with a wildcard, and so says nothing about topics that begin with `$` (MQTT 5.0 §4.7.2).
fn begins_wild(levels: &[Level<'_>]) -> bool {
    matches!(levels.first(), Some(Level::Any | Level::Rest))
}

/// Whether the filter matches `topic`.
pub(super) fn matches(levels: &[Level<'_>], topic: &str) -> bool {
    if topic.starts_with('$') && begins_wild(levels) {
        return false;
    }
    let mut rest = topic.split('/');
    for level in levels {
        let matched = match level {
            Level::Rest => return true,
            Level::Any => rest.next().is_some(),
            Level::Text(text) => rest.next() == Some(text),
        };
        if !matched {
            return false;
        }
    }
    rest.next().is_none()
}

/// Whether the filter matches every topic that `filter` matches.
pub(super) fn covers(levels: &[Level<'_>], filter: &str) -> bool {
    if filter.starts_with('$') && begins_wild(levels) {
        return false;
    }
    let mut rest = filter.split('/');
    for level in levels {
        let covered = match level {
            Level::Rest => return true,
            Level::Any => rest.next().is_some_and(|level| level != "#"),
            // A wildcard matches more than a text, even one that looks like it.
            Level::Text(text) => rest.next().is_some_and(|level| level == text && level != "+" && level != "#"),
        };
        if !covered {
            return false;
        }
    }
    rest.next().is_none()
}

/// Whether there is a topic that both filters match.
pub(super) fn overlaps(levels: &[Level<'_>], filter: &str) -> bool {
    let wild = |level: &str| level == "+" || level == "#";
    let mut rest = filter.split('/').peekable();
    let first = rest.peek().copied().unwrap_or_default();
    if first.starts_with('$') && begins_wild(levels) {
        return false;
    }
    if let Some(Level::Text(text)) = levels.first()
        && text.starts_with('$')
        && wild(first)
    {
        return false;
    }
    let mut levels = levels.iter();
    loop {
        match (levels.next(), rest.next()) {
            // `a/#` matches `a` too, whichever side it is on.
            (Some(Level::Rest), _) | (_, Some("#")) | (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(Level::Any), Some(_)) | (Some(Level::Text(_)), Some("+")) => {}
            (Some(Level::Text(text)), Some(level)) => {
                if text != level {
                    return false;
                }
            }
        }
    }
}
