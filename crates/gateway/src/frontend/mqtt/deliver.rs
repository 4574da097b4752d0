//! From a published message to its subscribers on this worker.

use std::sync::Arc;

use tidegate_mqtt::trie::Inserted;
use tidegate_mqtt::{Delivered, Delivery, Message, QoS, Reason, Subscribe, Unsubscribe};

use super::Now;
use super::clients::Slot;
use super::reactor::Reactor;
use crate::frontend::router::{Published, Target};

impl Reactor {
    /// Hands a message to its subscribers: those of this worker now, the others through their workers' inboxes.
    pub(super) fn route(&mut self, published: Published, now: Now) {
        let local = self.shared.router.publish(published, Some(self.index));
        if let Some((message, targets)) = local {
            self.deliver_all(&message, &targets, now);
        }
    }

    pub(super) fn deliver_all(&mut self, message: &Arc<Message>, targets: &[Target], now: Now) {
        for target in targets {
            self.deliver(message, target, now);
        }
    }

    fn deliver(&mut self, message: &Arc<Message>, target: &Target, now: Now) {
        let metrics = &self.shared.metrics;
        let undelivered = |reason: &str| metrics.mqtt_undelivered.with_label_values(&[reason]).inc();
        let Some((slot, client)) = self.clients.by_id(target.to) else { return undelivered("gone") };
        if let Some(parked) = &mut client.parked {
            let session = parked.session.get_or_insert_default();
            match session.queue(&self.limits, message, target.qos, target.retain, &target.ids) {
                Ok(0) => {}
                Ok(_) => undelivered("queue_full"),
                Err(dropped) => undelivered(dropped.name()),
            }
            return;
        }
        // A client that does not read loses QoS 0 first.
        let qos = target.qos.min(message.qos());
        if qos == QoS::AtMostOnce && client.unsent() >= self.shared.config.mqtt.max_outgoing_bytes {
            return undelivered("slow");
        }
        let delivery = Delivery { qos: target.qos, retain: target.retain, ids: &target.ids };
        let mut out = std::mem::take(&mut self.out);
        let delivered = client.connection.deliver(&self.limits, message, delivery, now.steady_millis(), &mut out);
        match delivered {
            Delivered::Sent(_) => metrics.mqtt_delivered.inc(),
            Delivered::Queued => {}
            Delivered::Dropped(dropped) => {
                undelivered(dropped.name());
                if dropped == tidegate_mqtt::Dropped::QueueFull {
                    // It neither reads nor acknowledges, and what it must not lose is more than may be kept for it.
                    client.connection.disconnect(Reason::QuotaExceeded, &mut out);
                    self.stuck.push(target.to);
                }
            }
        }
        self.give(slot, &mut out);
        self.out = out;
    }

    pub(super) fn subscribe(&mut self, slot: Slot, subscribe: &Subscribe<'_>, millis: u64, out: &mut Vec<u8>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let router = &self.shared.router;
        let mut reasons = Vec::new();
        let mut retained = Vec::new();
        for (filter, options) in subscribe.filters() {
            let Ok(inserted) = router.subscribe(&filter, client.id, options, subscribe.id) else {
                reasons.push(Reason::QuotaExceeded);
                continue;
            };
            client.subscriptions += u32::from(inserted == Inserted::New);
            reasons.push(Reason::granted(options.qos));
            // Retain handling (MQTT 5.0 §3.8.3.1); shared subscriptions get none (§4.8.2).
            let wanted = match options.retain_handling {
                0 => true,
                1 => inserted == Inserted::New,
                _ => false,
            };
            if wanted && filter.group().is_none() {
                retained.extend(router.retained(&filter, millis).into_iter().map(|message| (message, options.qos)));
            }
        }
        client.connection.suback(subscribe.packet_id, reasons, out);
        // Behind the SUBACK, which most clients wait for before they take messages.
        let ids = if subscribe.id == 0 { &[][..] } else { std::slice::from_ref(&subscribe.id) };
        for (message, qos) in retained {
            let delivery = Delivery { qos, retain: true, ids };
            match client.connection.deliver(&self.limits, &message, delivery, millis, out) {
                Delivered::Sent(_) => self.shared.metrics.mqtt_delivered.inc(),
                Delivered::Queued => {}
                Delivered::Dropped(dropped) => {
                    self.shared.metrics.mqtt_undelivered.with_label_values(&[dropped.name()]).inc();
                }
            }
        }
        self.shared.metrics.mqtt_subscriptions.set(self.shared.router.subscriptions() as i64);
    }

    pub(super) fn unsubscribe(&mut self, slot: Slot, unsubscribe: &Unsubscribe<'_>, out: &mut Vec<u8>) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        let mut reasons = Vec::new();
        for filter in unsubscribe.filters() {
            let there = self.shared.router.unsubscribe(&filter, client.id);
            if there {
                client.subscriptions -= 1;
            }
            reasons.push(if there { Reason::Success } else { Reason::NoSubscriptionExisted });
        }
        client.connection.unsuback(unsubscribe.packet_id, reasons, out);
        self.shared.metrics.mqtt_subscriptions.set(self.shared.router.subscriptions() as i64);
    }
}
