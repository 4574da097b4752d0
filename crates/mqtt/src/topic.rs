//! Topic names and topic filters (MQTT 5.0 §4.7, §4.8.2; the same in 3.1.1 but for shared subscriptions).

use crate::violation::Violation;

/// Prefix of a shared subscription (§4.8.2).
const SHARE: &str = "$share/";

/// Whether `topic` can be published to: not empty, no wildcards, no U+0000, at most 65,535 bytes (§4.7.1, §4.7.3).
#[must_use]
pub fn is_valid_name(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= usize::from(u16::MAX) && check_name(topic).is_ok()
}

/// Checks the bytes of a topic name, which may be empty where an alias stands for it.
#[inline]
pub(crate) fn check_name(topic: &str) -> Result<(), Violation> {
    let mut nul = false;
    let mut wildcard = false;
    // Without branches in the loop, so that it is vectorised.
    for &b in topic.as_bytes() {
        nul |= b == 0;
        wildcard |= b == b'+' || b == b'#';
    }
    match (nul, wildcard) {
        (false, false) => Ok(()),
        (true, _) => Err(Violation::Utf8),
        (_, true) => Err(Violation::TopicName),
    }
}

/// A topic filter that obeys §4.7.1 and §4.8.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Filter<'a> {
    text: &'a str,
    /// Bytes before the filter proper; 0 if it is not shared.
    skip: usize,
}

impl<'a> Filter<'a> {
    /// The filter written as `text`, if that is one.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Filter<'a>> {
        let skip = match text.strip_prefix(SHARE) {
            Some(rest) => {
                let (group, _) = rest.split_once('/')?;
                if group.is_empty() || group.contains(['+', '#']) {
                    return None;
                }
                SHARE.len() + group.len() + 1
            }
            None => 0,
        };
        let filter = &text[skip..];
        if filter.is_empty() || text.len() > usize::from(u16::MAX) || text.as_bytes().contains(&0) {
            return None;
        }
        let mut levels = filter.split('/');
        while let Some(level) = levels.next() {
            let ok = match level {
                "+" => true,
                "#" => levels.next().is_none(),
                _ => !level.contains(['+', '#']),
            };
            if !ok {
                return None;
            }
        }
        Some(Filter { text, skip })
    }

    /// All of it, as the client wrote it.
    #[must_use]
    pub fn text(&self) -> &'a str {
        self.text
    }

    /// The share name, if it is shared.
    #[must_use]
    pub fn group(&self) -> Option<&'a str> {
        (self.skip > 0).then(|| &self.text[SHARE.len()..self.skip - 1])
    }

    /// What is matched: without `$share/{group}/`.
    #[must_use]
    pub fn pattern(&self) -> &'a str {
        &self.text[self.skip..]
    }

    /// Whether it has a wildcard.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        self.pattern().contains(['+', '#'])
    }

    /// Whether `topic` matches it (§4.7). For one filter against one topic: rules of access control, tests.
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let pattern = self.pattern();
        if topic.starts_with('$') && pattern.starts_with(['+', '#']) {
            return false;
        }
        let mut levels = topic.split('/');
        for want in pattern.split('/') {
            if want == "#" {
                return true;
            }
            match levels.next() {
                Some(have) if want == "+" || want == have => {}
                _ => return false,
            }
        }
        levels.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filter: &str, topic: &str) -> bool {
        Filter::parse(filter).unwrap().matches(topic)
    }

    #[test]
    fn the_multi_level_wildcard_matches_the_parent_and_all_below() {
        for topic in ["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"] {
            assert!(matches("sport/tennis/player1/#", topic), "{topic}");
        }
        assert!(matches("sport/#", "sport"));
        assert!(matches("#", "a"));
        assert!(matches("#", "/"));
        assert!(!matches("sport/#", "sports"));
    }

    #[test]
    fn the_single_level_wildcard_matches_one_level_even_if_empty() {
        assert!(matches("sport/tennis/+", "sport/tennis/player1"));
        assert!(!matches("sport/tennis/+", "sport/tennis/player1/ranking"));
        assert!(!matches("sport/+", "sport"));
        assert!(matches("sport/+", "sport/"));
        assert!(matches("+/+", "/finance"));
        assert!(matches("/+", "/finance"));
        assert!(!matches("+", "/finance"));
    }

    #[test]
    fn a_leading_wildcard_does_not_match_a_dollar_topic() {
        assert!(!matches("#", "$SYS/uptime"));
        assert!(!matches("+/monitor/Clients", "$SYS/monitor/Clients"));
        assert!(matches("$SYS/#", "$SYS/uptime"));
        assert!(matches("$SYS/monitor/+", "$SYS/monitor/Clients"));
    }

    #[test]
    fn wildcards_fill_a_whole_level_and_the_multi_level_one_is_last() {
        for bad in ["", "sport/tennis#", "sport/tennis/#/ranking", "sport+", "+a", "a/b+/c", "##", "#/", "a\0b"] {
            assert_eq!(Filter::parse(bad), None, "{bad:?}");
        }
        for good in ["#", "+", "+/tennis/#", "sport/+/player1", "/", "//", "a//b", " ", "$SYS/#"] {
            assert!(Filter::parse(good).is_some(), "{good:?}");
        }
        assert_eq!(Filter::parse(&"a".repeat(65_536)), None);
    }

    #[test]
    fn topic_names_are_matched_byte_by_byte_and_by_case() {
        assert!(!matches("ACCOUNTS", "Accounts"));
        assert!(!matches("/finance", "finance"));
        assert!(matches("Accounts payable", "Accounts payable"));
    }

    #[test]
    fn a_share_name_is_one_level_without_wildcards_and_a_filter_follows() {
        let f = Filter::parse("$share/g/a/+").unwrap();
        assert_eq!((f.group(), f.pattern(), f.text()), (Some("g"), "a/+", "$share/g/a/+"));
        for bad in ["$share/", "$share/g", "$share/g/", "$share//a", "$share/+/a", "$share/g#/a"] {
            assert_eq!(Filter::parse(bad), None, "{bad:?}");
        }
        assert_eq!(Filter::parse("$share").unwrap().group(), None);
        assert!(matches("$share/g/#", "a/b"));
        assert!(!matches("$share/g/#", "$SYS/b"));
    }

    #[test]
    fn a_topic_name_is_not_empty_and_has_no_wildcards_or_nul() {
        for bad in ["", "a/+", "#", "a\0"] {
            assert!(!is_valid_name(bad), "{bad:?}");
        }
        assert!(!is_valid_name(&"a".repeat(65_536)));
        assert!(is_valid_name(&"a".repeat(65_535)));
        assert!(is_valid_name("/"));
        assert_eq!(check_name("a\0+"), Err(Violation::Utf8));
    }
}
