//! Who may publish and subscribe to what: the rules of `auth.acl`.
//!
//! # Constraints
//!
//! - Without a file everything is allowed; with one, whatever no rule speaks of is denied.
//! - A check does not depend on how many rules there are for others: they are found by name. Only those whose names end in `*` are looked
//!   through.
//! - A file with a mistake is refused as a whole; a gateway that serves keeps the rules it has.
//!
//! # Format
//!
//! One rule a line, `#` begins a comment, words are separated by spaces, and one with spaces in it stands in double quotes:
//!
//! ```text
//! # allow or deny   who               what        topic filter
//! allow             all               publish     devices/%c/#
//! allow             all               subscribe   cmd/%c/#
//! deny              device meter-13*  all         #
//! allow             group backend     subscribe   #
//! ```
//!
//! *Who* is `all`, or one of `device`, `user`, `group` and `tenant` with a name; a `*` at the end of the name stands for any continuation. A
//! device that is not registered is the client identifier of MQTT or the endpoint name of CoAP. *What* is `publish` (CoAP: POST, PUT and
//! DELETE), `subscribe` (CoAP: GET, FETCH and observing) or `all`.
//!
//! The *topic filter* is one of MQTT (5.0 §4.7) in which `%c` stands for the client identifier, `%d` for the device, `%u` for the
//! username, `%t` for the tenant and `%%` for a percent sign. What is put in is matched as it is: a client that calls itself `+` gets no wildcard by that. A rule that needs a
//! username says nothing about who has none.
//!
//! # Operation
//!
//! The first rule that speaks of a request decides it. A published topic is spoken of if the filter matches it. A subscription is allowed
//! by a rule whose filter matches *everything* that the subscription does, and denied by one whose filter matches *anything* that it does:
//! so `deny all subscribe secret/#` before `allow all subscribe #` keeps `#` from bringing secrets. Of `$share/group/filter`, the filter counts.
//!
//! As everywhere in MQTT, a filter that begins with a wildcard says nothing about topics that begin with `$`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

mod filter;
mod parse;

use filter::{Level, Template};
pub use parse::AclError;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// The client identifier, or the endpoint name.
    pub client: &'a str,
    /// The registered device, or the same.
    pub device: &'a str,
    /// The username, if it was verified; empty if there is none.
    pub user: &'a str,
    /// Whose the device is; empty if nobody's.
    pub tenant: &'a str,
    /// The groups of the device.
    pub groups: &'a [String],
}

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Publish = 1,
    Subscribe = 2,
}

/// The rules.
#[derive(Debug, Default)]
pub struct Acl {
    /// No file: everything is allowed.
    open: bool,
    rules: Vec<Rule>,
    /// Numbers of rules, rising, by whom they are about.
    all: Vec<u32>,
    named: [HashMap<Box<str>, Vec<u32>>; SUBJECTS],
    /// Names that end in `*`, without it.
    prefixed: Vec<(Subject, Box<str>, u32)>,
}

#[derive(Debug)]
struct Rule {
    allow: bool,
    /// Bits of [`Action`].
    actions: u8,
    filter: Filter,
}

#[derive(Debug)]
enum Filter {
    Plain(Vec<Level<'static>>),
    Template(Template),
}

/// What a name in a rule is the name of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Device,
    User,
    Group,
    Tenant,
}

const SUBJECTS: usize = 4;

impl Acl {
    /// No rules, everything allowed.
    #[must_use]
    pub fn open() -> Acl {
        Acl { open: true, ..Acl::default() }
    }

    /// The rules in `file`, or none.
    pub fn load(file: Option<&Path>) -> Result<Acl, AclError> {
        file.map_or_else(|| Ok(Acl::open()), parse::load)
    }

    /// Whether everything is allowed, so that nobody needs to ask.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether `who` may publish to `topic`.
    #[must_use]
    pub fn may_publish(&self, who: &Who<'_>, topic: &str) -> bool {
        self.decide(who, Action::Publish, |_, levels| filter::matches(levels, topic))
    }

    /// Whether `who` may read `topic` (a CoAP resource).
    #[must_use]
    pub fn may_read(&self, who: &Who<'_>, topic: &str) -> bool {
        self.decide(who, Action::Subscribe, |_, levels| filter::matches(levels, topic))
    }

    /// Whether `who` may subscribe to `filter`.
    #[must_use]
    pub fn may_subscribe(&self, who: &Who<'_>, filter: &str) -> bool {
        let filter = match filter.strip_prefix("$share/") {
            // The group has no slash (MQTT 5.0 §4.8.2).
            Some(shared) => shared.split_once('/').map_or("", |(_, filter)| filter),
            None => filter,
        };
        self.decide(who, Action::Subscribe, |allow, levels| {
            if allow { filter::covers(levels, filter) } else { filter::overlaps(levels, filter) }
        })
    }

    /// What the first rule says that is about `who` and `action`, and of whose filter `speaks` is true.
    fn decide(&self, who: &Who<'_>, action: Action, speaks: impl Fn(bool, &[Level<'_>]) -> bool) -> bool {
        if self.open {
            return true;
        }
        let speaks = |number: u32| {
            let rule = &self.rules[number as usize];
            let matched = rule.actions & action as u8 != 0
                && match &rule.filter {
                    Filter::Plain(levels) => speaks(rule.allow, levels),
                    Filter::Template(template) => template.fill(who).is_some_and(|levels| speaks(rule.allow, &levels)),
                };
            matched.then_some(rule.allow)
        };
        let mut first: Option<(u32, bool)> = None;
        let mut look = |numbers: &mut dyn Iterator<Item = u32>| {
            for number in numbers {
                if first.is_some_and(|(found, _)| found < number) {
                    return;
                }
                if let Some(allow) = speaks(number) {
                    first = Some((number, allow));
                    return;
                }
            }
        };
        look(&mut self.all.iter().copied());
        let mut named = |subject: Subject, name: &str| {
            let names = &self.named[subject as usize];
            if !name.is_empty()
                && !names.is_empty()
                && let Some(numbers) = names.get(name)
            {
                look(&mut numbers.iter().copied());
            }
        };
        named(Subject::Device, who.device);
        named(Subject::User, who.user);
        named(Subject::Tenant, who.tenant);
        for group in who.groups {
            named(Subject::Group, group);
        }
        look(&mut self.prefixed.iter().filter(|(subject, prefix, _)| subject.is(who, prefix)).map(|(_, _, n)| *n));
        first.is_some_and(|(_, allow)| allow)
    }
}

impl Subject {
    /// Whether a name of `who` begins with `prefix`.
    fn is(self, who: &Who<'_>, prefix: &str) -> bool {
        let name = match self {
            Subject::Device => who.device,
            Subject::User => who.user,
            Subject::Tenant => who.tenant,
            Subject::Group => return who.groups.iter().any(|group| group.starts_with(prefix)),
        };
        !name.is_empty() && name.starts_with(prefix)
    }
}

/// The rules that are in force, which a signal can replace.
#[derive(Debug, Default)]
pub struct Rules {
    file: Option<PathBuf>,
    current: Mutex<Arc<Acl>>,
    /// Counts replacements.
    version: AtomicU64,
}

impl Rules {
    /// The version of rules that were not replaced.
    pub const LOADED: u64 = 1;

    /// The rules in `file`, or none.
    pub fn load(file: Option<PathBuf>) -> Result<Rules, AclError> {
        let acl = Acl::load(file.as_deref())?;
        Ok(Rules { file, current: Mutex::new(Arc::new(acl)), version: AtomicU64::new(Rules::LOADED) })
    }

    /// Reads the file again, and puts its rules in force if there is no mistake in them; returns their number.
    pub fn reload(&self) -> Result<usize, AclError> {
        let acl = Acl::load(self.file.as_deref())?;
        let rules = acl.len();
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(acl);
        self.version.fetch_add(1, Ordering::Release);
        Ok(rules)
    }

    /// Number of rules in force.
    #[must_use]
    pub fn len(&self) -> usize {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The file they are from.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

/// A worker's view of the rules: a look costs one atomic load unless they were replaced.
#[derive(Debug)]
pub struct View {
    rules: Arc<Rules>,
    acl: Arc<Acl>,
    version: u64,
}

impl View {
    /// A view of `rules`.
    #[must_use]
    pub fn new(rules: Arc<Rules>) -> View {
        let mut view = View { rules, acl: Arc::new(Acl::default()), version: 0 };
        view.get();
        view
    }

    /// The rules in force, and their version.
    pub fn get(&mut self) -> (&Acl, u64) {
        let version = self.rules.version.load(Ordering::Acquire);
        if version != self.version {
            self.acl = self.rules.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
            self.version = version;
        }
        (&self.acl, self.version)
    }
}

/// The text of a level, for errors.
fn quoted(text: &str) -> Cow<'_, str> {
    if text.is_empty() { "nothing".into() } else { format!("{text:?}").into() }
}

#[cfg(test)]
mod tests;
