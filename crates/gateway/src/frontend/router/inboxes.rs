//! What workers hand each other.
//!
//! # Congestion
//!
//! A worker that is slower than others fill its inbox makes them wait ([`Inboxes::is_congested`]): they read nothing more and let no
//! acknowledgement go, and with it no message, until it has caught up. A subscriber that is behind has acknowledgements wait as well
//! ([`Inboxes::is_held`]), but sockets are read on, its own among them. A worker never waits itself to empty its inbox, so that two workers
//! never wait for each other.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use socket2::Socket;
use tidegate_mqtt::Message;
use tidegate_record::DeviceId;
use tidegate_state::registry::Account;
use tidegate_transport::Transport;

use super::names::SessionId;
use super::published::{Note, Receipt, Targets};
use super::unpoisoned;
use crate::frontend::access::Principal;
use crate::frontend::mqtt::Kind;
use crate::frontend::wake::Wake;

/// Deliveries in a worker's inbox beyond which the others wait for it: some milliseconds of its work.
const INBOX_DELIVERIES: usize = 65_536;

/// What a worker gets from others.
pub(crate) enum Envelope {
    /// A message for some of its clients.
    Message { message: Message, targets: Targets, note: Option<Note>, receipt: Option<Arc<Receipt>> },
    /// Connections that were let in as one of these devices must end.
    Revoked(Arc<[DeviceId]>),
    /// A login whose password was verified: who it is, if it is right.
    Login { to: SessionId, account: Option<Box<Account>>, revision: u64 },
    /// A connection whose session is here, with the MQTT bytes that were read from it.
    Connection { arrival: Arrival, bytes: Vec<u8> },
}

/// A connection that comes to a worker.
pub(crate) struct Arrival {
    pub(crate) socket: Socket,
    /// What is between the socket and MQTT; `None` if nothing is.
    pub(crate) transport: Option<Box<Transport>>,
    pub(crate) kind: Kind,
    /// More connect than are admitted: it is to be told so.
    pub(crate) turned_away: bool,
    /// Who it is, if another worker has found out.
    pub(crate) principal: Option<Box<Principal>>,
}

struct Inbox {
    envelopes: Mutex<Vec<Envelope>>,
    /// Deliveries in `envelopes`.
    load: AtomicUsize,
    mqtt: Arc<Wake>,
    coap: Arc<Wake>,
}

/// See the [module documentation](self).
pub(crate) struct Inboxes {
    inboxes: Box<[Inbox]>,
    /// Inboxes that hold more than [`INBOX_DELIVERIES`].
    congested: AtomicUsize,
    /// Subscribers that are waited for.
    waits: AtomicUsize,
}

impl Inboxes {
    pub(super) fn new(workers: usize) -> Inboxes {
        let inbox = || Inbox {
            envelopes: Mutex::default(),
            load: AtomicUsize::new(0),
            mqtt: Arc::default(),
            coap: Arc::default(),
        };
        Inboxes {
            inboxes: (0..workers).map(|_| inbox()).collect(),
            congested: AtomicUsize::new(0),
            waits: AtomicUsize::new(0),
        }
    }

    /// How many workers there are.
    pub(super) fn len(&self) -> usize {
        self.inboxes.len()
    }

    pub(crate) fn coap_wake(&self, worker: usize) -> Arc<Wake> {
        self.inboxes[worker].coap.clone()
    }

    /// Wakes the CoAP task of a worker.
    pub(crate) fn wake_coap(&self, worker: usize) {
        if let Some(inbox) = self.inboxes.get(worker) {
            inbox.coap.now();
        }
    }

    pub(crate) fn mqtt_wake(&self, worker: usize) -> Arc<Wake> {
        self.inboxes[worker].mqtt.clone()
    }

    /// Wakes the tasks that wait for commits.
    pub(crate) fn durable_moved(&self) {
        for inbox in &self.inboxes {
            inbox.coap.durable_moved();
            inbox.mqtt.durable_moved();
        }
    }

    pub(crate) fn wake_all(&self) {
        for inbox in &self.inboxes {
            inbox.coap.now();
            inbox.mqtt.now();
        }
    }

    /// Tells every worker that connections of these devices must end.
    pub(crate) fn revoke(&self, devices: &Arc<[DeviceId]>) {
        for worker in 0..self.inboxes.len() {
            self.send(worker, Envelope::Revoked(devices.clone()));
        }
    }

    /// Puts an envelope in a worker's inbox.
    pub(crate) fn send(&self, worker: usize, envelope: Envelope) {
        let Some(inbox) = self.inboxes.get(worker) else { return };
        let deliveries = match &envelope {
            Envelope::Message { targets, .. } => targets.len(),
            Envelope::Revoked(_) | Envelope::Login { .. } | Envelope::Connection { .. } => 0,
        };
        let mut envelopes = unpoisoned(inbox.envelopes.lock());
        let first = envelopes.is_empty();
        envelopes.push(envelope);
        // With the lock held, so that an inbox counts as congested once.
        let before = inbox.load.fetch_add(deliveries, Ordering::Relaxed);
        if before <= INBOX_DELIVERIES && before + deliveries > INBOX_DELIVERIES {
            self.congested.fetch_add(1, Ordering::Relaxed);
        }
        drop(envelopes);
        if first {
            inbox.mqtt.now();
        }
    }

    /// Moves what is in a worker's inbox into `envelopes`, which is empty.
    pub(crate) fn take(&self, worker: usize, envelopes: &mut Vec<Envelope>) {
        let inbox = &self.inboxes[worker];
        let mut waiting = unpoisoned(inbox.envelopes.lock());
        std::mem::swap(&mut *waiting, envelopes);
        let load = inbox.load.swap(0, Ordering::Relaxed);
        drop(waiting);
        if load > INBOX_DELIVERIES && self.congested.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.wake_all();
        }
    }

    /// Whether some worker's inbox is so full that nothing more is to be routed for now. Workers are woken when that is over.
    pub(crate) fn is_congested(&self) -> bool {
        self.congested.load(Ordering::Relaxed) > 0
    }

    /// Whether no acknowledgement is to leave for now, and with it no message: of congestion, or because a subscriber is waited for. Workers
    /// are woken when that is over.
    pub(crate) fn is_held(&self) -> bool {
        self.is_congested() || self.waits.load(Ordering::Relaxed) > 0
    }

    /// A subscriber is behind: nothing more is to be given to anybody before it has caught up.
    pub(crate) fn begin_wait(&self) {
        self.waits.fetch_add(1, Ordering::Relaxed);
    }

    /// One that was waited for has caught up, or is not waited for any longer.
    pub(crate) fn end_wait(&self) {
        if self.waits.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.wake_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_mqtt::QoS;

    use super::super::published::Target;
    use super::*;

    #[test]
    fn acknowledgements_are_held_while_any_subscriber_is_waited_for() {
        let inboxes = Inboxes::new(2);
        inboxes.begin_wait();
        inboxes.begin_wait();
        inboxes.end_wait();
        assert!(inboxes.is_held() && !inboxes.is_congested(), "sockets are read on");
        inboxes.end_wait();
        assert!(!inboxes.is_held());
    }

    #[test]
    fn a_full_inbox_is_congestion_until_it_is_emptied() {
        let inboxes = Inboxes::new(2);
        let target = Target {
            to: SessionId::new(1, 1, 0),
            group: 0,
            kept: false,
            qos: QoS::AtMostOnce,
            retain: false,
            ids: [].into(),
        };
        let message = Message::new("t", b"x", QoS::AtMostOnce, false);
        let send = |count| {
            let targets = std::iter::repeat_n(target.clone(), count).collect();
            inboxes.send(1, Envelope::Message { message: message.clone(), targets, note: None, receipt: None });
        };
        send(INBOX_DELIVERIES);
        assert!(!inboxes.is_congested());
        send(1);
        assert!(inboxes.is_congested());
        send(INBOX_DELIVERIES);
        let mut envelopes = Vec::new();
        inboxes.take(1, &mut envelopes);
        assert_eq!((envelopes.len(), inboxes.is_congested()), (3, false));
    }
}
