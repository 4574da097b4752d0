//! From a published message to its subscribers on this worker.

use std::sync::Arc;

use smallvec::smallvec;
use tidegate_mqtt::trie::Inserted;
use tidegate_mqtt::{Delivered, Delivery, Message, QoS, Reason, Session, Subscribe, Unsubscribe};

use super::Now;
use super::access::may;
use super::clients::Slot;
use super::commit::Wait;
use super::kept::{self, Subscription};
use super::reactor::Reactor;
use crate::frontend::router::{Envelope, Left, NotSubscribed, Note, Published, Receipt, Target};

/// Bytes that wait to be sent to a client which count as slow when a worker has too many of them in all: more than a socket that is
/// read leaves behind.
const SLOW: usize = 16 * 1024;

impl Reactor {
    /// Hands a message to its subscribers: those of this worker now, the others through their workers' inboxes.
    pub(super) fn route(&mut self, published: Published, now: Now) -> Wait {
        let retained = published.is_retained().then(|| published.message().clone());
        let note = published.origin().map(Note::Served);
        let routed = self.shared.router.route(published, Some(self.index), Some(&self.wake));
        if routed.unretained {
            self.shared.metrics.mqtt_unretained.inc();
        }
        let mut wait = Wait { epoch: 0, receipt: routed.receipt };
        if let Some((message, targets)) = routed.own {
            self.deliver_all(&message, &targets, note, now);
            if targets.iter().any(|target| target.is_stored(&message)) {
                wait.epoch = self.commits.wait();
            }
        }
        if let Some(message) = retained {
            wait.epoch = self.commits.retained(message.topic());
        }
        wait
    }

    pub(super) fn deliver_all(&mut self, message: &Message, targets: &[Target], note: Option<Note>, now: Now) {
        for target in targets {
            self.deliver(message, target, now);
            // With the message itself: either both are there after a crash, or neither.
            match note {
                Some(Note::Served(origin)) if target.is_once(message) => {
                    if let Some((_, client)) = self.clients.by_id(target.to)
                        && let Some(kept) = &client.kept
                    {
                        kept::put_served(&mut self.commits.rows, origin, kept.incarnation, target.group);
                    }
                }
                Some(Note::Left(left)) if target.is_stored(message) => kept::put_left(&mut self.commits.rows, left),
                _ => {}
            }
            self.commits.close_if_large();
        }
    }

    fn deliver(&mut self, message: &Message, target: &Target, now: Now) {
        let metrics = &self.shared.metrics;
        let undelivered = |reason: &str| metrics.mqtt_undelivered.with_label_values(&[reason]).inc();
        let delivery = Delivery { qos: target.qos, retain: target.retain, ids: &target.ids, group: target.group };
        let Some((slot, client)) = self.clients.by_id(target.to) else { return undelivered("gone") };
        if client.parked.is_some() {
            return self.queue_away(slot, message, delivery, now);
        }
        // Of a client that does not read, what may wait is queued, where all subscribers share it; then it loses QoS 0, and at last,
        // when its queue is full as well, its connection.
        let unsent = client.unsent();
        let full = unsent >= self.behind.outgoing(client) || unsent >= SLOW && self.unsent_bytes >= self.most_unsent;
        let qos = target.qos.min(message.qos());
        if qos == QoS::AtMostOnce && full {
            return undelivered("slow");
        }
        if full && !client.flags.congested {
            client.flags.congested = true;
            client.connection.set_congested(&self.limits, true, now.steady_millis(), &mut Vec::new());
        }
        let mut out = std::mem::take(&mut self.out);
        let limits = if client.flags.awaited { self.behind.patient() } else { &self.limits };
        let delivered = client.connection.deliver(limits, message, delivery, now.steady_millis(), &mut out);
        match delivered {
            Delivered::Sent(_) => metrics.mqtt_delivered.inc(),
            Delivered::Queued => {}
            Delivered::Dropped(dropped) => {
                undelivered(dropped.name());
                if dropped == tidegate_mqtt::Dropped::QueueFull {
                    // It neither reads nor acknowledges, and what it must not lose is more than may be kept for it.
                    client.connection.disconnect(Reason::QuotaExceeded, &mut out);
                    self.stuck.push(target.to);
                    self.shared.metrics.mqtt_slow.inc();
                }
            }
        }
        self.give(slot, &mut out);
        self.out = out;
        self.await_if_behind(slot, now);
    }

    /// Keeps a message for the client in `slot`, which is away.
    fn queue_away(&mut self, slot: Slot, message: &Message, delivery: Delivery<'_>, now: Now) {
        self.expire_queue(slot, now);
        let metrics = &self.shared.metrics;
        let undelivered = |reason: &str| metrics.mqtt_undelivered.with_label_values(&[reason]).inc();
        if delivery.qos.min(message.qos()) == QoS::AtMostOnce {
            return undelivered("offline");
        }
        if self.queued_bytes + message.size() > self.most_queued {
            return undelivered("queues_full");
        }
        let Some(parked) = self.clients.get_mut(slot).and_then(|client| client.parked.as_mut()) else { return };
        let session = parked.session_mut();
        match session.queue(&self.limits, message, delivery) {
            Ok(0) => {}
            Ok(gone) => metrics.mqtt_undelivered.with_label_values(&["queue_full"]).inc_by(gone as u64),
            Err(dropped) => undelivered(dropped.name()),
        }
        let expires = session.next_expiry().is_some();
        self.account(slot);
        self.collect(slot);
        if expires {
            self.file(slot);
        }
    }

    /// Drops what has expired of the queue of a client that is away.
    pub(super) fn expire_queue(&mut self, slot: Slot, now: Now) {
        let Some(parked) = self.clients.get_mut(slot).and_then(|client| client.parked.as_mut()) else { return };
        let expired = parked.session.as_mut().map_or(0, |session| session.expire(now.steady_millis()));
        if expired > 0 {
            self.shared.metrics.mqtt_undelivered.with_label_values(&["expired"]).inc_by(expired as u64);
            self.account(slot);
            self.collect(slot);
            self.commits.close_if_large();
        }
    }

    /// Hands what a session is left with to others that share its subscriptions: it is over, and they are not its any more. The rows of
    /// a session that is kept, which has this `incarnation`, must stay until the receipt is given: those of a member on another worker come in a
    /// commit of that worker's.
    pub(super) fn pass_on(
        &mut self,
        session: Option<Box<Session>>,
        incarnation: Option<u64>,
        now: Now,
    ) -> Option<Arc<Receipt>> {
        let shared = session?.into_shared();
        let left: Vec<_> = shared
            .filter_map(|shared| {
                let target = self.shared.router.member(&shared.message, shared.group)?;
                let note = incarnation.map(|incarnation| Note::Left(Left { incarnation, order: shared.order }));
                Some((shared.message, target, note))
            })
            .collect();
        let is_awaited = |message: &Message, target: &Target, note: Option<Note>| {
            note.is_some() && target.to.worker() != self.index && target.is_stored(message)
        };
        let awaited = left.iter().filter(|(message, target, note)| is_awaited(message, target, *note)).count();
        let receipt = (awaited > 0).then(|| Receipt::new(awaited, &self.wake));
        for (message, target, note) in left {
            let worker = target.to.worker();
            if worker == self.index {
                self.deliver_all(&message, &[target], note, now);
                continue;
            }
            let receipt = receipt.clone().filter(|_| target.is_stored(&message) && note.is_some());
            self.shared
                .router
                .inboxes
                .send(worker, Envelope::Message { message, targets: smallvec![target], note, receipt });
        }
        receipt
    }

    /// Counts the queue of a client that is away against the bound of the worker.
    pub(super) fn account(&mut self, slot: Slot) {
        let Some(parked) = self.clients.get_mut(slot).and_then(|client| client.parked.as_mut()) else { return };
        let bytes = parked.session.as_ref().map_or(0, |session| session.queued_bytes());
        self.queued_bytes = self.queued_bytes + bytes - parked.accounted;
        parked.accounted = bytes;
    }

    pub(super) fn subscribe(&mut self, slot: Slot, subscribe: &Subscribe<'_>, out: &mut Vec<u8>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let shared = &self.shared;
        let most = u32::try_from(shared.config.mqtt.max_subscriptions).unwrap_or(u32::MAX);
        let subscriber = client.subscriber();
        let mut reasons = Vec::with_capacity(subscribe.count);
        for (filter, options) in subscribe.filters() {
            if !may(self.rules.get().0, client, |acl, who| acl.may_subscribe(who, filter.text())) {
                shared.metrics.mqtt.refused("acl_subscribe");
                reasons.push(Reason::NotAuthorized);
                continue;
            }
            let room = (client.subscriptions < most).then_some(shared.config.mqtt.max_subscription_bytes);
            let lists = self.replays.may_list(client.id);
            let budget = if lists { &mut self.replays.listable } else { &mut 0 };
            match shared.router.subscribe(&filter, subscriber, options, subscribe.id, room, budget) {
                Ok((inserted, replay)) => {
                    client.subscriptions += u32::from(inserted == Inserted::New);
                    client.flags.shares |= filter.group().is_some();
                    let owed = replay.is_some() && options.qos > QoS::AtMostOnce;
                    let subscription = Subscription { options, id: subscribe.id, owed };
                    if let Some(kept) = &client.kept {
                        let rows = &mut self.commits.rows;
                        kept::put_subscription(rows, kept.incarnation, filter.text(), subscription);
                        client.flags.changed = true;
                    }
                    reasons.push(Reason::granted(options.qos));
                    if let Some(replay) = replay {
                        // Sent behind the SUBACK, which most clients wait for before they take messages.
                        self.replays.add(client.id, replay, subscription);
                    }
                }
                Err(why) => {
                    shared.metrics.mqtt.refused(match why {
                        NotSubscribed::TooDeep => "filter_levels",
                        NotSubscribed::TooMany => "subscriptions",
                        NotSubscribed::NoRoom => "subscription_bytes",
                    });
                    reasons.push(Reason::QuotaExceeded);
                }
            }
        }
        client.connection.suback(subscribe.packet_id, reasons, out);
        shared.metrics.mqtt_subscriptions.set(shared.router.subscriptions() as i64);
    }

    pub(super) fn unsubscribe(&mut self, slot: Slot, unsubscribe: &Unsubscribe<'_>, out: &mut Vec<u8>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let mut reasons = Vec::with_capacity(unsubscribe.count);
        for filter in unsubscribe.filters() {
            let there = self.shared.router.unsubscribe(&filter, client.subscriber());
            if there {
                if filter.group().is_none() {
                    // A shared subscription is sent no retained messages: what is owed is another's.
                    self.replays.forget(client.id, filter.pattern());
                }
                if let Some(kept) = &client.kept {
                    kept::remove_subscription(&mut self.commits.rows, kept.incarnation, filter.text());
                    client.flags.changed = true;
                }
                client.subscriptions -= 1;
            }
            reasons.push(if there { Reason::Success } else { Reason::NoSubscriptionExisted });
        }
        client.connection.unsuback(unsubscribe.packet_id, reasons, out);
        self.shared.metrics.mqtt_subscriptions.set(self.shared.router.subscriptions() as i64);
    }
}
