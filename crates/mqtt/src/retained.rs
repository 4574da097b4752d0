//! Retained messages (MQTT 5.0 §3.3.1.3), by topic.
//!
//! # Constraints
//!
//! There may be millions, and a new subscription to `#` is sent all of them: at the pace at which the client takes them, while others
//! change, and without a copy of the store for each such client.
//!
//! # Operation
//!
//! A [`Replay`] remembers where it is. Narrow filters are looked up in the tree when it begins, and what they match is listed; for
//! a filter that matches more than [`LISTED`] messages, or whose wildcards lead everywhere, it goes through all topics in the order of
//! their places, a stretch at a time. Each message has a stamp, which says whether it was there when the replay began: one that came
//! later was sent to the subscription as it came, and is not sent again.

use crate::message::Message;
use crate::topic::Filter;
use crate::tree::{MAX_LEVELS, NONE, ROOT, Tree, Vacant};

/// What became of a retained message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Its topic had none.
    New,
    /// It replaced another ([MQTT-3.3.1-5]).
    Replaced,
    /// It was empty, and there is none any more ([MQTT-3.3.1-6]).
    Removed,
    /// It was empty, and there was none.
    Absent,
    /// It was not published to be retained: what is kept stays ([MQTT-3.3.1-8], 3.1.1 [MQTT-3.3.1-12]).
    Untouched,
    /// The bounds of the store are reached, or the topic has too many levels; what there was is gone, for it is outdated.
    Refused,
}

/// Most messages, and most places to look for them, that a [`Replay`] lists: 4 KiB. Beyond that it goes through all topics, which
/// is then at most a few thousand times as many as it finds.
const LISTED: usize = 1024;

#[derive(Debug, Default)]
struct Place {
    message: Option<Message>,
    /// Which change of the store it came with.
    stamp: u64,
}

impl Vacant for Place {
    fn is_vacant(&self) -> bool {
        self.message.is_none()
    }
}

/// The retained messages that one new subscription is still to be sent.
#[derive(Debug)]
pub struct Replay {
    filter: Box<str>,
    /// The store's stamp when it began.
    as_of: u64,
    progress: Progress,
}

#[derive(Debug)]
enum Progress {
    /// Places still to be looked at.
    Listed(Vec<u32>),
    /// All places are looked at, from this one on, up to one that was the last when it began.
    Sweep { next: u32, end: u32 },
}

impl Replay {
    /// The filter that it is for, without a share name.
    #[must_use]
    pub fn filter(&self) -> &str {
        &self.filter
    }
}

/// What [`Retained::next`] found.
#[derive(Debug)]
pub enum Found {
    /// A message to be sent.
    Message(Message),
    /// None within the budget; there may be more.
    Nothing,
    /// There are no more.
    End,
}

/// The retained messages of all topics.
#[derive(Debug)]
pub struct Retained {
    tree: Tree<Place>,
    len: usize,
    /// Sum of `Message::size`.
    bytes: usize,
    max_len: usize,
    max_bytes: usize,
    /// Where the sweep for expired messages goes on.
    swept: u32,
    /// Changes so far.
    stamp: u64,
}

/// Whether a message for `topic` can be kept, if there is room: it has at most [`MAX_LEVELS`] levels.
pub(crate) fn has_place(topic: &str) -> bool {
    topic.split('/').count() <= MAX_LEVELS
}

impl Retained {
    /// An empty store of at most `max_len` messages that take at most `max_bytes`.
    #[must_use]
    pub fn new(max_len: usize, max_bytes: usize) -> Retained {
        Retained { tree: Tree::new(), len: 0, bytes: 0, max_len, max_bytes, swept: ROOT, stamp: 0 }
    }

    /// Messages held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of the messages held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps `message` for its topic, or removes what is kept there if its payload is empty.
    pub fn set(&mut self, message: &Message) -> Retention {
        if !message.retain() {
            return Retention::Untouched;
        }
        let topic = message.topic();
        let had = self.remove(topic);
        if message.payload().is_empty() {
            return if had { Retention::Removed } else { Retention::Absent };
        }
        if !self.has_room(topic, message.size()) {
            return Retention::Refused;
        }
        let node = topic.split('/').fold(ROOT, |node, level| self.tree.child_or_insert(node, level));
        self.stamp += 1;
        *self.tree.value_mut(node) = Place { message: Some(message.clone()), stamp: self.stamp };
        self.len += 1;
        self.bytes += message.size();
        if had { Retention::Replaced } else { Retention::New }
    }

    /// Whether [`set`](Self::set) would keep a message of `size` bytes for `topic`.
    #[must_use]
    pub fn has_room(&self, topic: &str, size: usize) -> bool {
        let fits = |len: usize, bytes: usize| len < self.max_len && bytes + size <= self.max_bytes;
        let replaces = || self.get(topic, 0).is_some_and(|old| fits(self.len - 1, self.bytes - old.size()));
        has_place(topic) && (fits(self.len, self.bytes) || replaces())
    }

    /// Removes what is kept for `topic`; false if there was nothing.
    pub fn remove(&mut self, topic: &str) -> bool {
        let mut node = ROOT;
        for level in topic.split('/') {
            let Some(child) = self.tree.child(node, level) else { return false };
            node = child;
        }
        self.clear(node)
    }

    /// The message kept for `topic`, unless it expired by `now`.
    #[must_use]
    pub fn get(&self, topic: &str, now: u64) -> Option<&Message> {
        let mut node = ROOT;
        for level in topic.split('/') {
            node = self.tree.child(node, level)?;
        }
        self.tree.get(node).value.message.as_ref().filter(|m| !m.is_expired(now))
    }

    /// Calls `each` with every message whose topic matches `filter` and that has not expired by `now`, until it says false.
    pub fn matches(&self, filter: &Filter<'_>, now: u64, mut each: impl FnMut(&Message) -> bool) {
        let pattern = filter.pattern();
        let mut todo = vec![(ROOT, 0)];
        while let Some((node, at)) = todo.pop() {
            let Some(rest) = pattern.get(at..) else {
                if !self.offer(node, now, &mut each) {
                    return;
                }
                continue;
            };
            let level = rest.split('/').next().unwrap_or_default();
            let next = at + level.len() + 1;
            // Wildcards at the first level do not match topics that begin with `$` ([MQTT-4.7.2-1]).
            let hidden = |child: u32| node == ROOT && self.tree.level(child).starts_with('$');
            match level {
                "#" => {
                    // The parent matches as well, and `#` goes on for all below.
                    if node != ROOT && !self.offer(node, now, &mut each) {
                        return;
                    }
                    todo.extend(self.tree.children(node).filter(|&c| !hidden(c)).map(|c| (c, at)));
                }
                "+" => todo.extend(self.tree.children(node).filter(|&c| !hidden(c)).map(|c| (c, next))),
                _ => todo.extend(self.tree.child(node, level).map(|c| (c, next))),
            }
        }
    }

    /// Begins to send a new subscription what matches `filter`; `None` if nothing does. Places looked at for a filter with wildcards are
    /// taken off `budget`; once that is used up it takes next to no time and memory here, and goes through all topics.
    #[must_use]
    pub fn replay(&self, filter: &Filter<'_>, budget: &mut u32) -> Option<Replay> {
        if self.is_empty() {
            return None;
        }
        let mut unbounded = u32::MAX;
        // One place, whatever there is.
        let listed = self.list(filter, if filter.has_wildcard() { budget } else { &mut unbounded });
        let progress = match listed {
            Some(listed) if listed.is_empty() => return None,
            Some(listed) => Progress::Listed(listed),
            None => Progress::Sweep { next: ROOT, end: self.tree.span() },
        };
        Some(Replay { filter: filter.pattern().into(), as_of: self.stamp, progress })
    }

    /// The next message of `replay` that has not expired by `now`; at most `budget` places are looked at, which are taken off it.
    pub fn next(&self, replay: &mut Replay, now: u64, budget: &mut u32) -> Found {
        let as_of = replay.as_of;
        let take = |node: u32| {
            let place = &self.tree.get(node).value;
            place.message.as_ref().filter(|m| place.stamp <= as_of && !m.is_expired(now))
        };
        match &mut replay.progress {
            Progress::Listed(listed) => {
                while let Some(node) = listed.pop() {
                    if let Some(message) = take(node) {
                        return Found::Message(message.clone());
                    }
                }
                Found::End
            }
            Progress::Sweep { next, end } => {
                let Some(filter) = Filter::parse(&replay.filter) else { return Found::End };
                while *next < *end {
                    if *budget == 0 {
                        return Found::Nothing;
                    }
                    *budget -= 1;
                    let node = *next;
                    *next += 1;
                    if let Some(message) = take(node)
                        && filter.matches(message.topic())
                    {
                        return Found::Message(message.clone());
                    }
                }
                Found::End
            }
        }
    }

    /// Places whose messages match `filter`, unless they are many, or more places must be looked at than `budget` has.
    fn list(&self, filter: &Filter<'_>, budget: &mut u32) -> Option<Vec<u32>> {
        let pattern = filter.pattern();
        let mut listed = Vec::new();
        let mut todo = vec![(ROOT, 0)];
        let mut found = |node: u32| {
            if self.tree.get(node).value.message.is_some() {
                listed.push(node);
            }
            listed.len() <= LISTED
        };
        while let Some((node, at)) = todo.pop() {
            *budget = budget.checked_sub(1)?;
            let Some(rest) = pattern.get(at..) else {
                if !found(node) {
                    return None;
                }
                continue;
            };
            let level = rest.split('/').next().unwrap_or_default();
            let next = at + level.len() + 1;
            let next = match level {
                "#" => at,
                "+" => next,
                _ => {
                    todo.extend(self.tree.child(node, level).map(|c| (c, next)));
                    continue;
                }
            };
            if level == "#" && node != ROOT && !found(node) {
                return None;
            }
            // Wildcards at the first level do not match topics that begin with `$` ([MQTT-4.7.2-1]).
            let shown = |child: u32| node != ROOT || !self.tree.level(child).starts_with('$');
            for (looked_at, child) in self.tree.children(node).enumerate() {
                *budget = budget.checked_sub(1)?;
                if looked_at >= LISTED || todo.len() >= LISTED {
                    return None;
                }
                if shown(child) {
                    todo.push((child, next));
                }
            }
        }
        Some(listed)
    }

    fn offer(&self, node: u32, now: u64, each: &mut impl FnMut(&Message) -> bool) -> bool {
        match &self.tree.get(node).value.message {
            Some(message) if !message.is_expired(now) => each(message),
            _ => true,
        }
    }

    /// Looks at up to `budget` topics, going on where it last stopped, and removes what expired by `now`; tells `each` their topics, and
    /// returns how many messages went.
    pub fn expire(&mut self, now: u64, budget: u32, mut each: impl FnMut(&str)) -> usize {
        let mut gone = 0;
        for _ in 0..budget.min(self.tree.span()) {
            self.swept = if self.swept + 1 < self.tree.span() { self.swept + 1 } else { ROOT };
            let node = self.tree.get(self.swept);
            let message = node.value.message.as_ref().filter(|m| node.parent != NONE && m.is_expired(now));
            if let Some(message) = message {
                each(message.topic());
                self.clear(self.swept);
                gone += 1;
            }
        }
        gone
    }

    fn clear(&mut self, node: u32) -> bool {
        let Some(message) = self.tree.value_mut(node).message.take() else { return false };
        self.len -= 1;
        self.bytes -= message.size();
        self.tree.prune(node, |_, _| {});
        true
    }
}
