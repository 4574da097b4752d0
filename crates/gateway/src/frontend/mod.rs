//! The front ends: what stands between the network and the log.
//!
//! # Threads
//!
//! A [worker] is one thread with a single-threaded tokio runtime; there is one a core. Each has a CoAP socket and an MQTT
//! listener of its own, which share their addresses (`SO_REUSEPORT`), and runs one task for each. Neither task starts another, and no
//! message costs a channel, an allocation or a wake of its own: a task takes a batch of input, decodes it in place, appends
//! all its records to the log in one call, and queues the answers behind the last sequence number ([`acks`]). The log's
//! thread wakes it when `durable` moves ([`wake`]), and it sends all answers that are due in one batch.
//!
//! What workers share is in [`Shared`]: the session table, the subscriptions, and a way to the log.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidegate_coap::dedup::{Policy, Remembered};
use tidegate_coap::{Code, Seconds, Type};
use tidegate_mqtt::Limits;
use tidegate_record::{DeviceId, Protocol, Seq};
use tidegate_session::Table;
use tidegate_state::Store;
use tidegate_state::registry::{Registry, Revoked};
use tidegate_writer::{Appender, Durable, Log, Pressure, ReadError};

use crate::certificates::Certificates;
use crate::config::Config;
use crate::http::Door;
use crate::metrics::Metrics;

mod access;
mod acks;
mod associations;
mod clock;
mod coap;
mod device;
mod limiter;
mod mqtt;
mod pause;
mod router;
mod topics;
mod wake;
mod wheel;
mod worker;

pub(crate) use access::Access;
pub(crate) use acks::MAX_WORKERS;
use acks::Ticket;
pub(crate) use associations::{AssociationMetrics, Associations, CURSOR, PERIOD, Restored};
pub(crate) use clock::Now;
pub(crate) use device::{Device, KIND_NAMES};
pub(crate) use mqtt::{ExpiredRetained, Kind, Listener, deferral, restore as restore_mqtt};
use router::Router;
pub(crate) use worker::{Exit, Sockets, spawn};

/// How far before the end of the log a record may be of a QoS 2 publish that the database does not tell of: the two commit within moments of
/// each other, unless a disk stalls.
const UNANSWERED_MICROS: u64 = 60_000_000;

/// The database, as the front ends use it.
#[derive(Debug, Clone)]
pub(crate) struct State {
    pub(crate) writer: tidegate_state::Writer,
    pub(crate) reader: tidegate_state::Reader,
    /// How far what was submitted is stored: an answer that rests on it waits for that.
    pub(crate) durable: tidegate_state::Durable,
    /// Which devices there are, and what they prove it with.
    pub(crate) registry: Registry,
}

impl State {
    pub(crate) fn of(store: &Store, registry: Registry) -> State {
        State { writer: store.writer(), reader: store.reader(), durable: store.durable(), registry }
    }
}

/// What all workers use.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) metrics: Metrics,
    /// Front-end threads.
    pub(crate) workers: usize,
    /// MQTT connections at a time: what is configured and what the limit of open files allows.
    pub(crate) most_connections: usize,
    pub(crate) table: Table<Device>,
    pub(crate) router: Router,
    pub(crate) coap: Arc<coap::Common>,
    pub(crate) appender: Appender,
    pub(crate) durable: Durable,
    pub(crate) state: State,
    /// MQTT sessions of an earlier run, until their workers have taken them.
    restored: Mutex<Option<mqtt::Restored>>,
    /// What TLS clients are shown; `None` if there are none.
    pub(crate) certificates: Option<Arc<Certificates>>,
    /// Who may speak, and about what.
    pub(crate) access: Access,
    /// DTLS; none if `coaps.listen` is off.
    pub(crate) associations: Option<Arc<Associations>>,
    /// How long CoAP messages are remembered.
    pub(crate) dedup: Policy,
    /// The last group of answers that left, by worker.
    released: Box<[AtomicU64]>,
    stopping: AtomicBool,
    /// Front-end tasks, and those that wait for nothing any more while the gateway stops.
    fronts: usize,
    drained: AtomicUsize,
    /// MQTT front ends that have ended their connections.
    mqtt_ended: AtomicUsize,
}

impl Shared {
    #[expect(clippy::too_many_arguments, reason = "each is what one other part of the gateway gives to the front ends")]
    pub(crate) fn new(
        config: Config,
        metrics: Metrics,
        workers: usize,
        most_connections: usize,
        appender: Appender,
        durable: Durable,
        state: State,
        certificates: Option<Arc<Certificates>>,
        access: Access,
        associations: Option<Arc<Associations>>,
    ) -> Arc<Shared> {
        let table = Table::new(tidegate_session::Config {
            max_devices: config.limits.sessions,
            idle: u32::try_from(config.limits.session_idle_seconds.as_secs()).unwrap_or(u32::MAX),
        });
        let capacity = u16::try_from(config.coap.dedup_entries).unwrap_or(u16::MAX);
        let dedup = Policy::new(&config.coap.timing(), capacity);
        let router = Router::new(workers, config.limits.subscriptions, config.limits.subscription_bytes);
        let common = coap::Common::new(&config, &dedup, (0..workers).map(|worker| router.inboxes.coap_wake(worker)));
        Arc::new(Shared {
            metrics,
            workers,
            most_connections,
            table,
            router,
            coap: Arc::new(common),
            appender,
            durable,
            state,
            restored: Mutex::new(None),
            certificates,
            access,
            associations,
            dedup,
            released: (0..workers).map(|_| AtomicU64::new(0)).collect(),
            stopping: AtomicBool::new(false),
            fronts: workers
                * (usize::from(config.coap.listen.or(config.coaps.listen).is_some())
                    + usize::from(config.listens_for_mqtt())),
            drained: AtomicUsize::new(0),
            mqtt_ended: AtomicUsize::new(0),
            config,
        })
    }

    /// Makes the workers hear of every commit.
    pub(crate) fn hear_of_commits(self: &Arc<Self>) {
        let shared = Arc::downgrade(self);
        let moved = move || {
            if let Some(shared) = shared.upgrade() {
                shared.router.inboxes.durable_moved();
            }
        };
        self.state.durable.on_move(moved.clone());
        self.durable.on_move(moved);
    }

    /// What worker `index` has of the MQTT sessions of an earlier run.
    fn restored(&self, index: usize) -> Option<mqtt::Share> {
        self.restored.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.take(index)
    }

    /// Hands the MQTT sessions of an earlier run to their workers, which are not started yet.
    pub(crate) fn set_restored(&self, restored: mqtt::Restored) {
        *self.restored.lock().unwrap_or_else(PoisonError::into_inner) = Some(restored);
    }

    /// Remembers the messages in the log that may still be retransmitted; returns how many of CoAP there are.
    pub(crate) fn restore(&self, log: &Log, sessions: &mut mqtt::Restored, now: Now) -> Result<u64, ReadError> {
        let lifetime = u64::from(self.dedup.exchange_lifetime);
        let since = now.micros.saturating_sub(lifetime * 1_000_000);
        // However long ago the log ended: what was on its way then may be sent again today.
        let mut reader = log.reader(log.durable().get());
        let last = reader.next().ok().flatten();
        let end = last.map_or(now.micros, |last| last.record.received);
        let mut restored = 0;
        log.replay_since(since.min(end.saturating_sub(UNANSWERED_MICROS)), |_, record| {
            sessions.replay(record);
            if record.received < since {
                return;
            }
            let (Protocol::Coap | Protocol::Coaps, Some(key)) = (record.protocol, record.key) else { return };
            let message = Remembered {
                scope: key.scope,
                mid: key.number as u16,
                kind: if record.qos == 0 { Type::Non } else { Type::Con },
                received: Seconds::from_micros(record.received),
                // It is durable: older than every group of answers.
                seq: Seq::NONE,
                // What a DELETE leaves in the log.
                code: if record.retain && record.payload.is_empty() { Code::DELETED } else { Code::CHANGED },
            };
            let remembered = self.table.with(record.device, message.received.0, |_, device| {
                device.spoke_coap = true;
                // What the device has sent since then is worth more than what falls out.
                let _ = device.coap.insert(&message, &self.dedup);
            });
            restored += u64::from(matches!(remembered, Ok(Some(()))));
        })?;
        Ok(restored)
    }

    /// Why nothing can be stored any more, so that nothing may be acknowledged; `None` while it can.
    pub(crate) fn failure(&self) -> Option<String> {
        let log = self.durable.failure().map(|failure| failure.to_string());
        log.or_else(|| self.state.durable.failure().map(|failure| failure.to_string()))
    }

    /// Whether [`failure`](Self::failure) says anything.
    pub(crate) fn has_failed(&self) -> bool {
        self.durable.failure().is_some() || self.state.durable.failure().is_some()
    }

    /// Whether the log refuses readings because it is at its bound.
    pub(crate) fn refuses_for_backlog(&self) -> bool {
        matches!(self.appender.pressure(), Pressure::Refuse(tidegate_writer::Refused::Backlog))
    }

    /// Stores what the replay windows of DTLS have seen.
    pub(crate) fn write_windows(&self) {
        if let Some(associations) = &self.associations {
            // In this order: what is durable by now has been seen by its window.
            let durable = self.durable.get();
            associations.write_windows(durable, Now::read());
        }
    }

    /// How many workers there are.
    pub(crate) fn workers(&self) -> usize {
        self.released.len()
    }

    /// Whether the answers of `ticket` have left, so that what they answered is durable.
    fn released(&self, ticket: Ticket) -> bool {
        let released = self.released.get(ticket.worker()).map_or(0, |released| released.load(Ordering::Acquire));
        ticket.count() <= released
    }

    fn mark_released(&self, ticket: Ticket) {
        if let Some(released) = self.released.get(ticket.worker()) {
            released.store(ticket.count(), Ordering::Release);
        }
    }

    /// Has what was opened with what is revoked end.
    pub(crate) fn revoked(&self, revoked: &[Revoked]) {
        self.access.revoked();
        let logins: Arc<[DeviceId]> = revoked.iter().filter(|r| r.login).map(|r| r.device.clone()).collect();
        if !logins.is_empty() {
            self.router.inboxes.revoke(&logins);
        }
        if let Some(associations) = &self.associations {
            let devices = revoked.iter().filter(|r| !r.identities.is_empty()).map(|r| r.device.as_str());
            associations.review(devices, Now::read(), &self.table);
        }
    }

    /// Tells the workers to take nothing more in, answer what they have taken in, and end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.router.inboxes.wake_all();
    }

    /// A front end has sent its last answer.
    fn front_drained(&self) {
        self.drained.fetch_add(1, Ordering::SeqCst);
        self.router.inboxes.wake_all();
    }

    /// Whether every front end has.
    fn all_drained(&self) -> bool {
        self.drained.load(Ordering::SeqCst) >= self.fronts
    }

    /// An MQTT front end has ended its connections and published what came of it.
    fn mqtt_ended(&self) {
        self.mqtt_ended.fetch_add(1, Ordering::SeqCst);
        self.router.inboxes.wake_all();
    }

    /// Whether every MQTT front end has.
    fn all_mqtt_ended(&self) -> bool {
        self.mqtt_ended.load(Ordering::SeqCst) >= self.workers
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

impl Door for Shared {
    fn refusing(&self) -> Option<&'static str> {
        match self.appender.pressure() {
            Pressure::Refuse(refused) => Some(refused.name()),
            Pressure::Normal | Pressure::Shed => None,
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure()
    }
}

/// What MQTT clients are granted, as the configuration says.
fn limits(config: &Config) -> Limits {
    let mqtt = &config.mqtt;
    let capped = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Limits {
        connect_timeout_ms: u64::try_from(mqtt.connect_timeout.as_millis()).unwrap_or(u64::MAX),
        max_packet: capped(mqtt.max_packet_bytes as u64),
        receive_maximum: mqtt.max_inflight,
        topic_alias_maximum: mqtt.topic_alias_max,
        max_alias_bytes: capped(mqtt.topic_alias_bytes as u64),
        max_inflight_out: mqtt.max_outgoing_inflight,
        max_queued_messages: capped(mqtt.max_queued_messages as u64),
        max_queued_bytes: capped(mqtt.max_queued_bytes as u64),
        session_expiry_max: capped(mqtt.session_expiry_max.as_secs()),
        server_keep_alive: u16::try_from(mqtt.server_keep_alive.as_secs()).unwrap_or(u16::MAX),
        ..Limits::default()
    }
}
