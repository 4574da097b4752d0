//! The document of `/.well-known/core` (RFC 6690): what a server has, as links.
//!
//! # Format
//!
//! `</path>;rt="a b";if="c";ct=60;obs,</other>…` (RFC 6690 §2). What cannot stand in a URI reference is percent-encoded, what
//! cannot stand in a quoted string is escaped.
//!
//! # Filters (RFC 6690 §4.1)
//!
//! A query `name=value` keeps the links whose attribute `name` is `value`, or begins with it if the value ends with `*`. `href`
//! is the path; `rt`, `if` and `rel` hold several values, of which one must match. Several queries keep what matches all. A
//! query without `=` is no filter.

use std::fmt::Write;

/// One resource of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resource {
    /// Its path, which begins with `/`, not percent-encoded.
    pub path: String,
    /// Resource types (`rt`).
    pub resource_types: Vec<String>,
    /// Interface descriptions (`if`).
    pub interfaces: Vec<String>,
    /// Content-Formats that it can be had in (`ct`, RFC 7252 §7.2.1).
    pub content_formats: Vec<u16>,
    /// Its title.
    pub title: Option<String>,
    /// About how many bytes it has (`sz`).
    pub size: Option<u32>,
    /// Whether it can be observed (`obs`, RFC 7641 §6).
    pub observable: bool,
}

impl Resource {
    /// A resource that nothing but its path is known of.
    #[must_use]
    pub fn new(path: &str) -> Resource {
        Resource { path: path.to_owned(), ..Resource::default() }
    }

    fn matches(&self, filter: &str) -> bool {
        let Some((name, pattern)) = filter.split_once('=') else {
            return true;
        };
        let fits = |value: &str| match pattern.strip_suffix('*') {
            Some(prefix) => value.starts_with(prefix),
            None => value == pattern,
        };
        match name {
            "href" => fits(&self.path),
            "rt" => self.resource_types.iter().any(|v| fits(v)),
            "if" => self.interfaces.iter().any(|v| fits(v)),
            "ct" => self.content_formats.iter().any(|v| fits(&v.to_string())),
            "title" => self.title.as_deref().is_some_and(fits),
            "sz" => self.size.is_some_and(|v| fits(&v.to_string())),
            "obs" => self.observable && fits(""),
            _ => false,
        }
    }

    fn write(&self, out: &mut String) {
        out.push('<');
        for &byte in self.path.as_bytes() {
            // RFC 3986 §3.3: pchar and the slash; and a comma or semicolon in a target would be legal, but trips readers.
            let plain = byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+=:@".contains(&byte);
            if plain {
                out.push(char::from(byte));
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out.push('>');
        let mut quoted = |name: &str, value: &str| {
            if !value.is_empty() {
                let _ = write!(out, ";{name}=\"");
                value.chars().for_each(|c| match c {
                    '"' | '\\' => out.extend(['\\', c]),
                    c => out.push(c),
                });
                out.push('"');
            }
        };
        quoted("rt", &self.resource_types.join(" "));
        quoted("if", &self.interfaces.join(" "));
        quoted("title", self.title.as_deref().unwrap_or_default());
        match self.content_formats.as_slice() {
            [] => {}
            [one] => drop(write!(out, ";ct={one}")),
            several => {
                let list: Vec<_> = several.iter().map(ToString::to_string).collect();
                let _ = write!(out, ";ct=\"{}\"", list.join(" "));
            }
        }
        if let Some(size) = self.size {
            let _ = write!(out, ";sz={size}");
        }
        if self.observable {
            out.push_str(";obs");
        }
    }
}

/// The links to those of `resources` that pass all `queries`, in their order. Content-Format
/// [`LINK_FORMAT`](crate::server::LINK_FORMAT).
pub fn document<'q>(resources: &[Resource], queries: impl Iterator<Item = &'q str> + Clone) -> String {
    let mut out = String::new();
    for resource in resources.iter().filter(|r| queries.clone().all(|q| r.matches(q))) {
        if !out.is_empty() {
            out.push(',');
        }
        resource.write(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use coap_lite::link_format::LinkFormatParser;

    /// The resources of the examples in RFC 6690 §5.
    fn resources() -> Vec<Resource> {
        let sensor = |path: &str, rt: &str| Resource {
            resource_types: vec![rt.to_owned()],
            interfaces: vec!["sensor".to_owned()],
            ..Resource::new(path)
        };
        vec![
            Resource { content_formats: vec![40], title: Some("Sensor Index".to_owned()), ..Resource::new("/sensors") },
            sensor("/sensors/temp", "temperature-c"),
            sensor("/sensors/light", "light-lux"),
            Resource { resource_types: vec!["light-lux".into(), "core.sen-light".into()], ..Resource::new("/light") },
        ]
    }

    fn get(queries: &[&str]) -> String {
        document(&resources(), queries.iter().copied())
    }

    #[test]
    fn the_whole_document() {
        assert_eq!(
            get(&[]),
            "</sensors>;title=\"Sensor Index\";ct=40,</sensors/temp>;rt=\"temperature-c\";if=\"sensor\",\
             </sensors/light>;rt=\"light-lux\";if=\"sensor\",</light>;rt=\"light-lux core.sen-light\""
        );
    }

    #[test]
    fn filters_keep_what_matches() {
        let paths = |queries: &[&str]| -> Vec<String> {
            let document = get(queries);
            LinkFormatParser::new(&document).map(|link| link.unwrap().0.to_owned()).collect()
        };
        assert_eq!(paths(&["rt=light-lux"]), ["/sensors/light", "/light"]);
        assert_eq!(paths(&["rt=core.sen*"]), ["/light"], "one of several values");
        assert_eq!(paths(&["rt=light-lux core.sen-light"]), [""; 0], "not the list of them");
        assert_eq!(paths(&["if=sensor", "rt=temp*"]), ["/sensors/temp"]);
        assert_eq!(paths(&["href=/sensors/*"]), ["/sensors/temp", "/sensors/light"]);
        assert_eq!(paths(&["href=/sensors"]), ["/sensors"]);
        assert_eq!(paths(&["ct=40"]), ["/sensors"]);
        assert_eq!(paths(&["title=Sensor*"]), ["/sensors"]);
        assert_eq!(paths(&["unknown=*"]), [""; 0]);
        assert_eq!(paths(&["ep=not-a-filter-of-ours"]), [""; 0]);
        assert_eq!(paths(&["word"]).len(), 4);
    }

    #[test]
    fn what_would_break_the_format_is_encoded() {
        let odd = Resource {
            title: Some("a \"b\" \\ c".to_owned()),
            content_formats: vec![50, 60],
            size: Some(7),
            observable: true,
            ..Resource::new("/a b,c>/ü")
        };
        let text = document(&[odd], std::iter::empty());
        assert_eq!(text, "</a%20b%2Cc%3E/%C3%BC>;title=\"a \\\"b\\\" \\\\ c\";ct=\"50 60\";sz=7;obs");
        let links: Vec<_> = LinkFormatParser::new(&text).collect();
        assert_eq!(links.len(), 1);
        let (path, attributes) = links.into_iter().next().unwrap().unwrap();
        assert_eq!(path, "/a%20b%2Cc%3E/%C3%BC");
        let title = attributes.map(|(name, value)| (name, value.to_string())).find(|(name, _)| *name == "title");
        assert_eq!(title.unwrap().1, "a \"b\" \\ c");
    }
}
