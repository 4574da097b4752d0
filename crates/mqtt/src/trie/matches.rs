//! The subscribers that a topic matched.

use super::Subscriber;
use crate::packet::{QoS, SubscribeOptions};

/// One subscriber that is to get the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match<S> {
    /// Who.
    pub subscriber: S,
    /// Highest QoS of its subscriptions that matched.
    pub qos: QoS,
    /// One of them asked for the retain flag as published.
    pub retain_as_published: bool,
    /// Identifiers of those that have one, as a range of `Matches::ids`.
    ids: (u32, u32),
}

/// The member of a shared subscription that is to get the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picked<S> {
    /// Names the shared subscription, the same in every run of the server; never zero.
    pub group: u64,
    /// Who.
    pub subscriber: S,
    /// The QoS of its subscription.
    pub qos: QoS,
    /// It asked for the retain flag as published.
    pub retain_as_published: bool,
    /// Its subscription's identifier, zero if that has none.
    pub id: u32,
}

/// What [`super::Trie::matches`] found. Kept and used again, it allocates nothing.
#[derive(Debug, Default)]
pub struct Matches<S> {
    found: Vec<Match<S>>,
    ids: Vec<u32>,
    pub(super) groups: Vec<u32>,
    /// Lists that `found` was gathered from: in one list a subscriber stands once.
    pub(super) lists: usize,
    /// Nodes still to be visited, each with where the rest of the topic begins.
    pub(super) todo: Vec<(u32, usize)>,
}

impl<S: Subscriber> Matches<S> {
    /// Nothing found yet.
    #[must_use]
    pub fn new() -> Self {
        Matches { found: Vec::new(), ids: Vec::new(), groups: Vec::new(), lists: 0, todo: Vec::new() }
    }

    /// The subscribers, each once; members of shared subscriptions are found by [`super::Trie::pick`].
    #[must_use]
    pub fn found(&self) -> &[Match<S>] {
        &self.found
    }

    /// The subscription identifiers to deliver with.
    #[must_use]
    pub fn ids(&self, of: &Match<S>) -> &[u32] {
        &self.ids[of.ids.0 as usize..of.ids.1 as usize]
    }

    /// Whether shared subscriptions matched.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Whether nobody is to get the message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty() && self.groups.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.found.clear();
        self.ids.clear();
        self.groups.clear();
        self.todo.clear();
        self.lists = 0;
    }

    #[inline]
    pub(super) fn push(&mut self, subscriber: S, options: SubscribeOptions, id: u32) {
        let from = self.ids.len() as u32;
        if id != 0 {
            self.ids.push(id);
        }
        let ids = (from, self.ids.len() as u32);
        let retain_as_published = options.retain_as_published;
        self.found.push(Match { subscriber, qos: options.qos, retain_as_published, ids });
    }

    /// Makes one of the matches of each subscriber.
    pub(super) fn merge(&mut self) {
        if self.lists < 2 {
            return;
        }
        self.found.sort_unstable_by_key(|m| m.subscriber);
        let mut kept = 0;
        let mut at = 0;
        while at < self.found.len() {
            let mut merged = self.found[at];
            let run = self.found[at..].iter().take_while(|m| m.subscriber == merged.subscriber).count();
            if run > 1 {
                let from = self.ids.len() as u32;
                for i in at..at + run {
                    let other = self.found[i];
                    merged.qos = merged.qos.max(other.qos);
                    merged.retain_as_published |= other.retain_as_published;
                    self.ids.extend_from_within(other.ids.0 as usize..other.ids.1 as usize);
                }
                merged.ids = (from, self.ids.len() as u32);
            }
            self.found[kept] = merged;
            kept += 1;
            at += run;
        }
        self.found.truncate(kept);
    }
}
