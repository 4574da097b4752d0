//! Kinds of values that only CoAP has: topics, their aliases, block sizes.

use std::collections::BTreeMap;

#[cfg(test)]
use super::{Edges, edges};
use super::{Given, Kind, toml_list};
use tidegate_coap::server::{MAX_ALIAS_LEN, MAX_ALIASES};
use tidegate_mqtt::topic;

/// Segments that begin a path which is never a topic.
const RESERVED: [&str; 3] = [".well-known", ".cmd", "rd"];

/// Whether `topic` can be published to by way of a path.
fn is_topic(text: &str) -> bool {
    let first = text.split('/').next().unwrap_or_default();
    topic::is_valid_name(text)
        && text.len() <= tidegate_coap::topic::MAX_TOPIC_LEN
        && !text.starts_with('$')
        && text.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !RESERVED.contains(&first)
}

/// Whether `text` can be one segment of a path that is not reserved.
fn is_segment(text: &str) -> bool {
    is_topic(text) && !text.contains('/')
}

/// A topic, or none.
pub struct Topic;

impl Topic {
    /// Reads a topic.
    pub fn read(&self, given: &Given) -> Result<Option<String>, String> {
        let text = given.text().ok_or_else(|| given.not("a topic"))?;
        if text.is_empty() {
            return Ok(None);
        }
        if is_topic(text) { Ok(Some(text.to_owned())) } else { Err(given.not("a topic that devices may publish to")) }
    }
}

impl Kind for Topic {
    fn allowed(&self) -> String {
        "a topic without wildcards, empty levels or a reserved first level, or \"\" for none".into()
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(&["", "a", "a/b c/ü"], &["/", "a/", "a//b", "a/#", "+", "$SYS/x", ".cmd/x", "rd", "a/../b", "a\0"])
    }
}

/// One segment of a path.
pub struct Segment;

impl Segment {
    /// Reads a segment.
    pub fn read(&self, given: &Given) -> Result<String, String> {
        let text = given.text().filter(|text| is_segment(text));
        text.map(str::to_owned).ok_or_else(|| given.not("a segment of a path that is not reserved"))
    }
}

impl Kind for Segment {
    fn allowed(&self) -> String {
        "one segment of a path, not .well-known, .cmd or rd".into()
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(&["f", "files"], &["", "a/b", "rd", ".cmd", "..", "$x", "#"])
    }
}

/// Short paths and the topics that they stand for.
pub struct Aliases;

impl Aliases {
    /// Reads a list of `alias=topic`; a word is split at commas.
    pub fn read(&self, given: &Given) -> Result<BTreeMap<String, String>, String> {
        let mut aliases = BTreeMap::new();
        for item in given.list(MAX_ALIASES, "aliases")? {
            let (alias, topic) = item.split_once('=').ok_or_else(|| format!("{item:?} has no ="))?;
            if !is_segment(alias) || alias.len() > MAX_ALIAS_LEN {
                return Err(format!("{alias:?} cannot be an alias"));
            }
            if !is_topic(topic) {
                return Err(format!("{topic:?} is not a topic that devices may publish to"));
            }
            if aliases.insert(alias.to_owned(), topic.to_owned()).is_some() {
                return Err(format!("{alias:?} is there twice"));
            }
        }
        Ok(aliases)
    }
}

impl Kind for Aliases {
    fn allowed(&self) -> String {
        format!(
            "a list of at most {MAX_ALIASES} of ALIAS=TOPIC, such as [\"t=site/temperature\"], an alias being a segment of \
             1 to {MAX_ALIAS_LEN} bytes"
        )
    }

    fn toml(&self, word: &str) -> String {
        toml_list(word)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let many = |count: usize| (0..count).map(|n| format!("{n}=t")).collect::<Vec<_>>().join(",");
        edges(
            &["", "t=a/b", "t=a, u=b", "12345678=a", &many(MAX_ALIASES)],
            &["t", "t=", "=a", "t=a,t=b", "a/b=c", "123456789=a", "t=#", "rd=a", "t=$SYS", &many(MAX_ALIASES + 1)],
        )
    }
}

/// A size of blocks (RFC 7959 §2.2), read as its size exponent.
pub struct BlockSize;

impl BlockSize {
    /// Reads the exponent of a size.
    pub fn read(&self, given: &Given) -> Result<u8, String> {
        let number = given.integer().ok_or_else(|| given.not("a number of bytes"))?;
        (0..=6u8).find(|szx| number == 16 << szx).ok_or_else(|| given.not("such a size"))
    }
}

impl Kind for BlockSize {
    fn allowed(&self) -> String {
        self.bounds()
    }

    fn bounds(&self) -> String {
        "16, 32, 64, 128, 256, 512 or 1024".into()
    }

    fn toml(&self, word: &str) -> String {
        word.to_owned()
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        edges(&["16", "64", "1024"], &["0", "8", "17", "2048", "", "big"])
    }
}
