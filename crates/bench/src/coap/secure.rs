//! Devices that speak DTLS: their associations, and the handshakes that begin them.
//!
//! A device makes its handshake when it has the first message to send, or in a stage of its own before the run. It keeps the association
//! from then on, whatever address it sends from, as RFC 9146 lets it; it makes another handshake only when the server ends the
//! association, when a message is given up although it was sent again and again (the server may have lost its state, and cannot say so), or
//! with each message if it is told to, as a device without Connection ID must.

use std::sync::Arc;
use std::time::Duration;

use tidegate_dtls::{
    Alert, CLIENT_LEN, Client, ClientConfig, ClientEvent, CloseReason, HandshakeFailure, Outbox, Retransmission,
    SealError, Session, Timestamp,
};
use tidegate_net::Datagram;

use super::Workload;
use super::fleet::{Ending, Fleet, State};
use super::stage::Stage;
use crate::audit::device_name;
use crate::connect::{Part, SetUp};
use crate::credentials::Keys;
use crate::payload::{fill, mix};
use crate::run::Control;

/// How devices speak DTLS.
#[derive(Debug, Clone)]
pub struct Security {
    /// Their keys; the identity is the device's name.
    pub keys: Keys,
    /// Ask for Connection IDs.
    pub cid: bool,
    /// Make all handshakes before the run.
    pub handshake_first: bool,
    /// Handshakes under way at a time before the run, all threads together, at least 1.
    pub handshaking: usize,
    /// Handshakes begun a second before the run, at most; 0 for no limit.
    pub handshake_rate: f64,
    /// Make a handshake for each message.
    pub handshake_each: bool,
    /// Offer to resume the session of the association before.
    pub resume: bool,
    /// First wait before a flight is sent again.
    pub first_wait: Duration,
}

impl Default for Security {
    fn default() -> Security {
        Security {
            keys: Keys::default(),
            cid: true,
            handshake_first: false,
            handshaking: 256,
            handshake_rate: 0.0,
            handshake_each: false,
            resume: false,
            first_wait: Retransmission::default().first,
        }
    }
}

/// What the devices of a thread need for DTLS.
pub(crate) struct Secure {
    security: Security,
    config: Arc<ClientConfig>,
    /// Of each device; none before its first handshake and after the end of its association.
    clients: Vec<Option<Client>>,
    /// What each device may resume; empty unless that is wanted.
    sessions: Vec<Option<Box<Session>>>,
    /// The text of the message to be protected.
    pub(super) plain: Vec<u8>,
    outbox: Outbox<()>,
    events: Vec<ClientEvent>,
    /// A datagram that is decrypted in place.
    buffer: Vec<u8>,
    /// State of the pseudo-random numbers in hellos. They need not be secret here, only different.
    random: u64,
    /// The stage before the run, while it lasts.
    stage: Option<Part>,
}

impl Secure {
    /// What a device costs more than one without.
    pub(crate) const BYTES_PER_DEVICE: usize = size_of::<Option<Client>>();

    pub(crate) fn new(security: &Security, workload: &Workload, devices: usize) -> Secure {
        let config = ClientConfig {
            cid: ClientConfig::default().cid.filter(|_| security.cid),
            retransmission: Retransmission { first: security.first_wait, ..Retransmission::default() },
            ..ClientConfig::default()
        };
        Secure {
            security: security.clone(),
            config: Arc::new(config),
            clients: std::iter::repeat_with(|| None).take(devices).collect(),
            sessions: if security.resume { vec![None; devices] } else { Vec::new() },
            plain: Vec::new(),
            outbox: Outbox::new(),
            events: Vec::new(),
            buffer: Vec::new(),
            random: mix(workload.run),
            stage: None,
        }
    }
}

// The harness promises at most 200 bytes a device besides DTLS, and this is the DTLS.
const _: () = assert!(size_of::<Option<Client>>() <= CLIENT_LEN + 8);

fn timestamp(now: u64) -> Timestamp {
    Timestamp(now / 1_000_000)
}

impl Fleet<'_> {
    /// Makes the handshakes of all devices.
    pub(crate) fn associate(&mut self, control: &Control) -> SetUp {
        self.clock = control.first_clock;
        let Some(secure) = &mut self.secure else { return Ok(Part::begin(self.clock.now())) };
        let started = self.clock.now();
        secure.stage = Some(Part::begin(started));
        let share = self.devices.len() as f64 / f64::from(self.workload.devices);
        let rate = secure.security.handshake_rate * share;
        let stage = Stage {
            under_way: self.workload.under_way(secure.security.handshaking),
            rate,
            until: u64::MAX,
            may_be_hopeless: false,
            connects: true,
            begin: |fleet, i, now| {
                fleet.devices[i].due_at = now;
                fleet.shake(i, now);
            },
            part: |fleet| fleet.secure.as_ref().and_then(|secure| secure.stage.as_ref()),
        };
        self.go_through(&stage, control)?;
        let stage = self.secure.as_mut().and_then(|secure| secure.stage.take());
        Ok(stage.unwrap_or_else(|| Part::begin(started)))
    }

    /// Whether a device must make a handshake before it can send.
    #[inline]
    pub(super) fn needs_handshake(&mut self, i: usize) -> bool {
        let Some(secure) = &mut self.secure else { return false };
        if secure.security.handshake_each {
            secure.clients[i] = None;
        }
        !secure.clients[i].as_ref().is_some_and(Client::is_established)
    }

    /// Begins a handshake.
    pub(super) fn shake(&mut self, i: usize, now: u64) {
        let name = device_name(&self.workload.prefix, self.workload.offset + self.first + i as u32);
        let Some(secure) = &mut self.secure else { return };
        // Names are checked when the run is set up.
        let Some(credentials) = secure.security.keys.credentials(&name) else { return };
        let again = secure.clients[i].as_ref().is_some_and(Client::is_closed);
        self.meter.counts.handshakes_again += u64::from(again);
        let session = secure.sessions.get(i).and_then(|session| session.as_deref().cloned());
        let state = &mut secure.random;
        let mut random = |out: &mut [u8]| fill(state, out);
        let at = timestamp(now);
        let client = Client::connect(&secure.config, credentials, session, at, &mut random, &mut secure.outbox);
        secure.clients[i] = Some(client);
        self.devices[i].state = State::Shaking;
        self.send_records(i);
        self.set_handshake_timer(i);
    }

    /// Queues what a device's DTLS has to say.
    fn send_records(&mut self, i: usize) {
        let generation = self.generation(i);
        let Some(secure) = &mut self.secure else { return };
        for ((), datagram) in secure.outbox.iter() {
            self.paths.push(i, generation, self.workload.target, |out| out.extend_from_slice(datagram));
        }
        secure.outbox.clear();
    }

    fn set_handshake_timer(&mut self, i: usize) {
        let client = self.secure.as_ref().and_then(|secure| secure.clients[i].as_ref());
        if let Some(at) = client.and_then(Client::poll_timeout) {
            self.wheel.set(i as u32, at.0);
        }
    }

    /// Protects [`Secure::plain`] and queues it.
    pub(super) fn seal(&mut self, i: usize) -> Result<(), SealError> {
        let Some(secure) = &mut self.secure else { return Ok(()) };
        let client = secure.clients[i].as_mut().ok_or(SealError::Unknown)?;
        client.seal(&secure.plain, &mut secure.outbox)?;
        self.send_records(i);
        Ok(())
    }

    /// The current message could not be protected, and ends.
    pub(super) fn cannot_seal(&mut self, i: usize, error: SealError, now: u64) {
        self.dissociate(i);
        self.end(i, Ending::Refused(format!("DTLS: {error}")), now);
    }

    /// A device forgets its association.
    pub(super) fn dissociate(&mut self, i: usize) {
        if let Some(secure) = &mut self.secure {
            // Closed and not `None`: the next handshake is one that it should not have needed.
            if let Some(client) = &mut secure.clients[i] {
                client.close(&mut secure.outbox);
            }
            secure.outbox.clear();
        }
    }

    /// A datagram of the server, for the device at whose address it arrived.
    pub(super) fn on_records(&mut self, datagram: &Datagram<'_>, now: u64) {
        let device = self.paths.endpoint_at(datagram.local).filter(|&i| i < self.devices.len());
        let Some(secure) = &mut self.secure else { return };
        let Some((i, client)) = device.and_then(|i| Some((i, secure.clients[i].as_mut()?))) else {
            self.meter.counts.wrong += 1;
            return;
        };
        secure.buffer.clear();
        secure.buffer.extend_from_slice(datagram.bytes);
        client.handle(&mut secure.buffer, timestamp(now), &mut secure.outbox, &mut secure.events);
        if !secure.outbox.is_empty() {
            self.send_records(i);
        }
        if self.devices[i].state == State::Shaking {
            // It may have sent the next flight.
            self.set_handshake_timer(i);
        }
        self.on_dtls_events(i, Some(datagram), now);
    }

    /// Takes what a device's DTLS reports.
    fn on_dtls_events(&mut self, i: usize, datagram: Option<&Datagram<'_>>, now: u64) {
        let Some(secure) = &mut self.secure else { return };
        if secure.events.is_empty() {
            return;
        }
        let mut events = std::mem::take(&mut secure.events);
        for event in events.drain(..) {
            match event {
                ClientEvent::Application { range, .. } => {
                    let Some(secure) = &mut self.secure else { return };
                    let buffer = std::mem::take(&mut secure.buffer);
                    self.on_message(&buffer[range], datagram.and_then(|datagram| datagram.local), now);
                    if let Some(secure) = &mut self.secure {
                        secure.buffer = buffer;
                    }
                }
                ClientEvent::Established { resumed, session, .. } => self.on_established(i, resumed, session, now),
                ClientEvent::Failed(failure) => self.on_failed(i, failure, now),
                ClientEvent::Closed(reason) => {
                    if matches!(self.devices[i].state, State::Sent | State::Acknowledged) {
                        self.end(i, Ending::Refused(closed(reason)), now);
                    }
                }
                ClientEvent::Drop(_) => self.meter.counts.records_dropped += 1,
            }
        }
        if let Some(secure) = &mut self.secure {
            secure.events = events;
        }
    }

    fn on_established(&mut self, i: usize, resumed: bool, session: Option<Session>, now: u64) {
        self.meter.counts.handshakes += 1;
        self.meter.counts.resumed += u64::from(resumed);
        self.wheel.cancel(i as u32);
        let since = self.devices[i].due_at;
        let Some(secure) = &mut self.secure else { return };
        if let (Some(place), Some(session)) = (secure.sessions.get_mut(i), session) {
            *place = Some(Box::new(session));
        }
        if let Some(stage) = &mut secure.stage {
            stage.count(since, now);
            self.devices[i].state = State::Idle;
            return;
        }
        self.dispatch(i, now);
        self.begin_next(i, now);
    }

    fn on_failed(&mut self, i: usize, failure: HandshakeFailure, now: u64) {
        self.meter.counts.handshakes_failed += 1;
        self.wheel.cancel(i as u32);
        let reason = match failure {
            HandshakeFailure::TimedOut => "DTLS handshake timed out".to_owned(),
            HandshakeFailure::Received(alert) => format!("DTLS alert {}", alert_name(alert)),
            HandshakeFailure::Sent(alert) => format!("DTLS handshake failed with alert {}", alert_name(alert)),
            other => format!("DTLS handshake {other:?}"),
        };
        let Some(secure) = &mut self.secure else { return };
        // A device whose handshake failed has no association to lose.
        secure.clients[i] = None;
        if let Some(session) = secure.sessions.get_mut(i) {
            *session = None;
        }
        if let Some(stage) = &mut secure.stage {
            stage.refused += 1;
            stage.reason.get_or_insert(reason);
            self.devices[i].state = State::Idle;
            return;
        }
        let ending = if failure == HandshakeFailure::TimedOut { Ending::TimedOut } else { Ending::Refused(reason) };
        self.end(i, ending, now);
    }

    /// A flight of a handshake went unanswered.
    pub(super) fn on_handshake_timer(&mut self, i: usize, now: u64) {
        let Some(secure) = &mut self.secure else { return };
        let Some(client) = &mut secure.clients[i] else { return };
        client.handle_timeout(timestamp(now), &mut secure.outbox, &mut secure.events);
        self.send_records(i);
        self.set_handshake_timer(i);
        self.on_dtls_events(i, None, now);
    }
}

fn closed(reason: CloseReason) -> String {
    match reason {
        CloseReason::CloseNotify => "DTLS close_notify".to_owned(),
        CloseReason::Alert(alert) => format!("DTLS alert {}", alert_name(alert)),
        other => format!("DTLS {other:?}"),
    }
}

/// The alerts that a server has reason to send, as RFC 5246 §7.2 and RFC 4279 §2 call them.
fn alert_name(alert: Alert) -> String {
    let name = match alert.0 {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        40 => "handshake_failure",
        47 => "illegal_parameter",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        115 => "unknown_psk_identity",
        other => return other.to_string(),
    };
    name.to_owned()
}
