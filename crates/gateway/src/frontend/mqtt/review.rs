//! Subscriptions are held against the rules again when those change, and when their client comes back, of whom there may be more to
//! know by now: those that are not allowed any more end. A start does it with what it restores ([`super::restore()`]).
//!
//! What a session was given before stays in its queue.

use tidegate_mqtt::topic::Filter;
use tidegate_record::DeviceId;
use tidegate_state::{Changes, ReadError};
use tracing::warn;

use super::access::unverified;
use super::clients::{Client, Slot};
use super::kept;
use super::reactor::Reactor;
use crate::acl::{Acl, Rules};
use crate::config::AuthMode;
use crate::frontend::Shared;

/// Clients and filters looked at before others have their turn: a millisecond.
const LOOKS: usize = 1024;

/// How far a worker is.
#[derive(Debug)]
pub(super) struct Review {
    /// Version of the rules that subscriptions are held against.
    version: u64,
    /// The next client to be looked at; `None` if all have been.
    next: Option<Slot>,
}

impl Review {
    /// A start has left what the rules allow that were read then.
    pub(super) fn new() -> Review {
        Review { version: Rules::LOADED, next: None }
    }

    /// Whether there is more to look at.
    pub(super) fn is_under_way(&self) -> bool {
        self.next.is_some()
    }
}

impl Reactor {
    /// Begins with the first client if the rules were replaced.
    pub(super) fn begin_review(&mut self) {
        let (_, version) = self.rules.get();
        if version != self.review.version {
            self.review = Review { version, next: Some(0) };
        }
    }

    /// Looks at some more clients, if a review is under way.
    pub(super) fn go_on_reviewing(&mut self) {
        let Some(first) = self.review.next else { return };
        let mut left = LOOKS;
        for slot in first..self.clients.span() {
            if left == 0 {
                self.review.next = Some(slot);
                return;
            }
            left = left.saturating_sub(1 + self.withdraw(slot));
        }
        self.review.next = None;
    }

    /// Ends the subscriptions of the client in `slot` that the rules do not allow; returns how many were looked at.
    pub(super) fn withdraw(&mut self, slot: Slot) -> usize {
        let Some(client) = self.clients.get_mut(slot) else { return 0 };
        let rows = &mut self.commits.rows;
        let (looks, ended) = withdraw(&self.shared, self.rules.get().0, client, rows);
        // As for UNSUBSCRIBE: a shared subscription is owed no retained messages.
        for filter in ended.iter().filter_map(|text| Filter::parse(text)).filter(|filter| filter.group().is_none()) {
            self.replays.forget(client.id, filter.pattern());
        }
        if !ended.is_empty() {
            self.shared.metrics.mqtt_subscriptions.set(self.shared.router.subscriptions() as i64);
            self.commits.close_if_large();
        }
        looks
    }
}

/// Ends the subscriptions of `client` that the rules do not allow; returns how many were looked at, and the filters of those that ended.
pub(super) fn withdraw(shared: &Shared, acl: &Acl, client: &mut Client, rows: &mut Changes) -> (usize, Vec<String>) {
    if client.subscriptions == 0 || acl.is_open() {
        return (0, Vec::new());
    }
    let subscriber = client.subscriber();
    let mut filters = shared.router.subscriptions_of(subscriber);
    let looks = filters.len();
    if let Err(error) = retain_denied(shared, acl, client, &mut filters) {
        warn!(%error, "subscriptions could not be held against the rules");
        return (looks, Vec::new());
    }
    for text in &filters {
        if !Filter::parse(text).is_some_and(|filter| shared.router.unsubscribe(&filter, subscriber)) {
            continue;
        }
        if let Some(kept) = &client.kept {
            kept::remove_subscription(rows, kept.incarnation, text);
        }
        client.subscriptions -= 1;
        shared.metrics.mqtt.refused("acl_withdrawn");
    }
    (looks, filters)
}

/// Leaves of the filters of `client` those that the rules deny it.
fn retain_denied(shared: &Shared, acl: &Acl, client: &Client, filters: &mut Vec<String>) -> Result<(), ReadError> {
    let name = client.device.as_ref().map_or("", DeviceId::as_str);
    let mut found = None;
    if client.principal.is_none() && shared.access.mode == AuthMode::Registry {
        // It was connected to an earlier run.
        let owner = client.kept.as_ref().and_then(|kept| kept.owner.as_ref());
        let Some(device) = owner.or(client.device.as_ref()) else { return Ok(()) };
        found = shared.access.registered(&shared.state.registry, device)?;
        if found.is_none() {
            // Nobody may have what nobody is registered for.
            return Ok(());
        }
    }
    let who = match client.principal.as_deref().or(found.as_ref()) {
        Some(principal) => principal.who(name),
        None => unverified(name),
    };
    filters.retain(|filter| !acl.may_subscribe(&who, filter));
    Ok(())
}
