//! From Uri-Path options to a topic.
//!
//! The topic is the segments joined by `/`, so that a reading that came by CoAP and one that came by MQTT meet under one
//! name. A segment with `/`, `+`, `#` or NUL in it would name something else there (MQTT 5.0 §4.7) and is refused; so is an
//! empty one, also at the end: `a/b/` and `a/b` would be two topics that look like one. A path that consists of one empty
//! segment is the root (RFC 7252 §6.5: it composes to `/`).

use std::fmt;

/// Longest topic in bytes. Four full Uri-Path segments; MQTT would allow 65,535, and nobody's firmware spends a datagram on
/// a name.
pub const MAX_TOPIC_LEN: usize = 1024;

/// Why a path is no topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Which segment, from 1.
    segment: u16,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Empty,
    NotUtf8,
    Character(u8),
    /// `.` or `..`, which RFC 7252 §5.10.1 excludes.
    Dots,
    TooLong,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.segment;
        match self.what {
            What::Empty => write!(f, "path segment {n} is empty"),
            What::NotUtf8 => write!(f, "path segment {n} is not UTF-8"),
            What::Character(0) => write!(f, "path segment {n} has a NUL"),
            What::Character(c) => write!(f, "path segment {n} has a '{}', which no topic may", char::from(c)),
            What::Dots => write!(f, "path segment {n} is '.' or '..'"),
            What::TooLong => write!(f, "the path is longer than {MAX_TOPIC_LEN} bytes"),
        }
    }
}

/// Segments as they come. One alone is borrowed from the datagram, several are joined in the caller's buffer.
pub(crate) struct Path<'a> {
    scratch: &'a mut String,
    /// The first segment, empty if there is none.
    first: &'a str,
    /// How many there were.
    count: u16,
    /// The first empty one, from 1; 0 if there is none.
    empty: u16,
    /// The first other fault.
    fault: Option<Fault>,
}

impl<'a> Path<'a> {
    #[inline]
    pub(crate) fn new(scratch: &'a mut String) -> Path<'a> {
        Path { scratch, first: "", count: 0, empty: 0, fault: None }
    }

    #[inline]
    pub(crate) fn push(&mut self, value: &'a [u8]) {
        self.count = self.count.saturating_add(1);
        let segment = match check(value) {
            Ok(segment) => segment,
            Err(What::Empty) => {
                if self.empty == 0 {
                    self.empty = self.count;
                }
                return;
            }
            Err(what) => {
                self.fault.get_or_insert(Fault { segment: self.count, what });
                return;
            }
        };
        match self.count {
            1 => self.first = segment,
            2 => {
                self.scratch.clear();
                self.scratch.push_str(self.first);
                self.join(segment);
            }
            _ => self.join(segment),
        }
    }

    #[inline]
    fn join(&mut self, segment: &str) {
        if self.scratch.len() + 1 + segment.len() > MAX_TOPIC_LEN {
            self.fault.get_or_insert(Fault { segment: self.count, what: What::TooLong });
            return;
        }
        self.scratch.push('/');
        self.scratch.push_str(segment);
    }

    /// The first segment and the whole path; both empty for the root.
    #[inline]
    pub(crate) fn finish(self) -> Result<(&'a str, &'a str), Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.empty != 0 && self.count > 1 {
            return Err(Fault { segment: self.empty, what: What::Empty });
        }
        let whole = if self.count > 1 { self.scratch.as_str() } else { self.first };
        Ok((self.first, whole))
    }
}

#[inline]
fn check(value: &[u8]) -> Result<&str, What> {
    if let Some(&c) = value.iter().find(|&&c| matches!(c, b'/' | b'+' | b'#' | 0)) {
        return Err(What::Character(c));
    }
    match value {
        b"" => Err(What::Empty),
        b"." | b".." => Err(What::Dots),
        _ => std::str::from_utf8(value).map_err(|_| What::NotUtf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(segments: &[&[u8]]) -> Result<(String, String), String> {
        let mut scratch = String::from("left over");
        let mut path = Path::new(&mut scratch);
        segments.iter().for_each(|s| path.push(s));
        path.finish().map(|(first, whole)| (first.into(), whole.into())).map_err(|fault| fault.to_string())
    }

    #[test]
    fn segments_join_and_the_root_is_empty() {
        let ok = |first: &str, whole: &str| Ok((first.to_owned(), whole.to_owned()));
        assert_eq!(path(&[]), ok("", ""));
        assert_eq!(path(&[b""]), ok("", ""), "RFC 7252 §6.5 composes one empty segment to /");
        assert_eq!(path(&[b"a"]), ok("a", "a"));
        assert_eq!(path(&[b"a", "ü".as_bytes(), b"c"]), ok("a", "a/ü/c"));
    }

    #[test]
    fn what_is_no_topic_is_named() {
        for (segments, text) in [
            (&[&b"a"[..], b""][..], "path segment 2 is empty"),
            (&[b"", b"a"], "path segment 1 is empty"),
            (&[b"", b""], "path segment 1 is empty"),
            (&[b"a", b"b", b"", b"c"], "path segment 3 is empty"),
            (&[b"a/b"], "path segment 1 has a '/', which no topic may"),
            (&[b"a", b"+"], "path segment 2 has a '+', which no topic may"),
            (&[b"#"], "path segment 1 has a '#', which no topic may"),
            (&[b"a\0"], "path segment 1 has a NUL"),
            (&[b"\xFF"], "path segment 1 is not UTF-8"),
            (&[b"a", b".."], "path segment 2 is '.' or '..'"),
            (&[&[b'x'; 255][..]; 5], "the path is longer than 1024 bytes"),
        ] {
            assert_eq!(path(segments), Err(text.to_owned()));
        }
        assert_eq!(path(&[&[b'x'; 255][..]; 4]).unwrap().1.len(), 4 * 255 + 3);
    }
}
