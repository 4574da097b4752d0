//! Which topics are recorded.

use std::fmt;

/// A list of MQTT topic filters (MQTT 5.0 §4.7), some of which exclude.
///
/// A topic is recorded if a filter without `!` matches it and none with `!` does. Unlike in a subscription (§4.7.2), a
/// leading wildcard matches topics that begin with `$`: leaving out a reading takes an explicit `!`.
#[derive(Clone)]
pub struct RecordFilter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

/// A filter in the form that is cheapest to match.
#[derive(Clone, Debug, PartialEq)]
enum Pattern {
    /// `#`
    Everything,
    /// `a/b/#`, held as `a/b`: that topic and all below it.
    Under(String),
    /// `a/b`
    Exactly(String),
    /// Has `+`.
    Levels(Vec<Level>),
}

#[derive(Clone, Debug, PartialEq)]
enum Level {
    /// `+`
    Any,
    /// `#`, always the last.
    Rest,
    Named(String),
}

impl RecordFilter {
    /// The filter that `list` describes, or what is wrong with it.
    pub fn new<S: AsRef<str>>(list: &[S]) -> Result<RecordFilter, String> {
        let mut filter = RecordFilter { include: Vec::new(), exclude: Vec::new() };
        for text in list {
            let text = text.as_ref();
            match text.strip_prefix('!') {
                Some(text) => filter.exclude.push(Pattern::new(text)?),
                None => filter.include.push(Pattern::new(text)?),
            }
        }
        if filter.include.is_empty() {
            return Err("no filter without `!`, so that nothing would be recorded".into());
        }
        Ok(filter)
    }

    /// Whether a message on `topic` is recorded.
    #[must_use]
    pub fn records(&self, topic: &str) -> bool {
        self.include.iter().any(|p| p.matches(topic)) && !self.exclude.iter().any(|p| p.matches(topic))
    }
}

impl Pattern {
    fn new(filter: &str) -> Result<Pattern, String> {
        let wrong = |what: &str| Err(format!("`{}` {what}", filter.escape_debug()));
        if filter.is_empty() {
            return Err("an empty filter".into());
        }
        if filter.chars().any(char::is_control) {
            return wrong("has a control character");
        }
        let levels: Vec<&str> = filter.split('/').collect();
        let last = levels.len() - 1;
        for (at, level) in levels.iter().enumerate() {
            if level.contains('#') && (*level != "#" || at != last) {
                return wrong("has `#` elsewhere than alone in the last level");
            }
            if level.contains('+') && *level != "+" {
                return wrong("has `+` beside other characters in a level");
            }
        }
        if levels.contains(&"+") {
            return Ok(Pattern::Levels(
                levels
                    .into_iter()
                    .map(|level| match level {
                        "+" => Level::Any,
                        "#" => Level::Rest,
                        name => Level::Named(name.to_owned()),
                    })
                    .collect(),
            ));
        }
        Ok(match filter.strip_suffix('#') {
            Some("") => Pattern::Everything,
            Some(parent) => Pattern::Under(parent[..parent.len() - 1].to_owned()),
            None => Pattern::Exactly(filter.to_owned()),
        })
    }

    fn matches(&self, topic: &str) -> bool {
        match self {
            Pattern::Everything => true,
            Pattern::Exactly(name) => topic == name,
            Pattern::Under(parent) => {
                topic.strip_prefix(parent.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Pattern::Levels(levels) => {
                let mut parts = topic.split('/');
                for level in levels {
                    match (level, parts.next()) {
                        (Level::Rest, _) => return true,
                        (Level::Any, Some(_)) => {}
                        (Level::Named(name), Some(part)) if name == part => {}
                        _ => return false,
                    }
                }
                parts.next().is_none()
            }
        }
    }
}

impl fmt::Debug for RecordFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.include).entries(self.exclude.iter().map(|p| ("!", p))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_mqtt_says() {
        for (filter, matching, other) in [
            ("#", &["a", "a/b", "/", "$SYS/x"][..], &[][..]),
            ("a/#", &["a", "a/", "a/b", "a/b/c"], &["ab", "b/a", "/a"]),
            ("a/b", &["a/b"], &["a", "a/b/", "a/b/c", "A/b"]),
            ("+", &["a", ""], &["/a", "a/b"]),
            ("+/+", &["a/b", "/a", "a/"], &["a", "a/b/c"]),
            ("a/+/c", &["a/b/c", "a//c"], &["a/c", "a/b/d", "a/b/c/d"]),
            ("a/+/#", &["a/b", "a/b/c"], &["a", "b/b"]),
            ("/#", &["/", "/a", ""], &["a"]),
        ] {
            let pattern = Pattern::new(filter).unwrap();
            for topic in matching {
                assert!(pattern.matches(topic), "{filter} should match {topic:?}");
            }
            for topic in other {
                assert!(!pattern.matches(topic), "{filter} should not match {topic:?}");
            }
        }
    }

    #[test]
    fn an_exclusion_wins_wherever_it_stands() {
        let filter = RecordFilter::new(&["!cmd/#", "#", "!$SYS/#"]).unwrap();
        assert!(filter.records("meters/1"));
        assert!(filter.records("cmdline"));
        assert!(filter.records("$other/1"));
        for topic in ["cmd", "cmd/1", "$SYS/broker/uptime"] {
            assert!(!filter.records(topic), "{topic}");
        }
    }

    #[test]
    fn what_is_not_a_filter_is_named() {
        for (list, part) in [
            (&["a#"][..], "`#`"),
            (&["#/a"], "`#`"),
            (&["a+/b"], "`+`"),
            (&["#", "!"], "empty"),
            (&["#", "a\u{0}"], "control"),
            (&["!cmd/#"], "nothing"),
            (&[], "nothing"),
        ] {
            let error = RecordFilter::new(list).unwrap_err();
            assert!(error.contains(part), "{list:?}: {error}");
        }
    }
}
