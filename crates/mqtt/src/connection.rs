//! The state machine of one connection.
//!
//! ```text
//! Fresh ──CONNECT──► Deciding ──accept──► Open ──DISCONNECT, violation, disconnect──► Closed
//!   └──violation──► Closed ◄──refuse──┘
//! ```
//!
//! # Flows
//!
//! Towards the server, a publish of QoS 1 or 2 is offered as [`Event::Publish`] and answered when the driver calls
//! [`Connection::stored`]; a QoS 2 publish that is retransmitted before its release is answered without an event. A
//! release is offered as [`Event::Release`] and answered by [`Connection::completed`].
//!
//! Towards the client, [`Connection::deliver`] sends or queues; acknowledgements free the window and pull the queue along.
//! A PUBREC is offered as [`Event::Received`] and answered by [`Connection::release`], so that a driver that keeps sessions
//! across restarts can note it first; others answer at once.

use crate::alias::Aliases;
use crate::codec;
use crate::encode;
use crate::limits::Limits;
use crate::message::Will;
use crate::packet::{self, Connect, Publish, QoS, Subscribe, TopicName, Unsubscribe, Version};
use crate::reason::Reason;
use crate::retained;
use crate::session::{Change, Inbound, Session};
use crate::violation::Violation;
use crate::wire;

mod outbound;

pub use outbound::{Delivered, Delivery, Dropped};

/// What a client wants done, borrowing from the input.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// To be decided: [`Connection::accept`] or [`Connection::refuse`]. Nothing more is read before.
    ///
    /// Boxed, for it is several times as large as the others, which come by the million.
    Connect(Box<Connect<'a>>),
    /// To be routed; QoS 1 and 2 to be answered by [`Connection::stored`], in the order of the events ([MQTT-4.6.0-2]).
    Publish(Publish<'a>),
    /// To be answered by [`Connection::suback`] with one reason a filter.
    Subscribe(Subscribe<'a>),
    /// To be answered by [`Connection::unsuback`] with one reason a filter.
    Unsubscribe(Unsubscribe<'a>),
    /// The client released a QoS 2 publish: to be answered by [`Connection::completed`].
    Release {
        /// Which one.
        packet_id: u16,
    },
    /// The client received a QoS 2 message: to be answered by [`Connection::release`].
    Received {
        /// Which one.
        packet_id: u16,
    },
    /// A delivery is over: the client acknowledged or refused it.
    Acknowledged {
        /// Which one.
        packet_id: u16,
        /// What the client said of it; a failure is not tried again ([MQTT-4.4.0-1]).
        reason: Reason,
    },
    /// The client ends the connection; close it. Whether its will is published, [`Connection::end`] tells.
    Disconnect {
        /// Why.
        reason: Reason,
    },
}

/// Where a connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Fresh,
    Deciding,
    Open,
    Closed,
}

/// The protocol state of one connection. The client's identity and its transport are the driver's.
#[derive(Debug)]
pub struct Connection {
    /// When a packet came last; when the connection began, before its CONNECT was accepted.
    heard: u64,
    session: Option<Box<Session>>,
    aliases: Option<Box<Aliases>>,
    will: Option<Box<Will>>,
    /// Seconds that the session outlives the connection.
    session_expiry: u32,
    /// Largest packet that the client takes.
    maximum_packet: u32,
    /// Seconds; 0 is off.
    keep_alive: u16,
    /// Publishes in flight that the client takes at once.
    receive_maximum: u16,
    /// Topic aliases that the client lets the server set.
    alias_maximum: u16,
    /// Publishes of the client that count against the receive maximum it was told.
    outstanding: u16,
    /// Publishes of the client that wait for [`Connection::stored`].
    unstored: u16,
    phase: Phase,
    version: Version,
    /// A 3.1.1 client has as many publishes unstored as a 5.0 client may have outstanding; nothing more is read.
    throttled: bool,
    /// Reason strings may stand on any packet.
    problem_info: bool,
    /// The client asked for response information.
    response_info: bool,
    /// The CONNECT asked for a new session.
    clean_start: bool,
    /// It asked for one that outlives the connection, which its DISCONNECT may then change (5.0 §3.14.2.2.2).
    asked_to_outlive: bool,
    /// It asked for longer than is granted.
    expiry_capped: bool,
    /// The session keeps a journal.
    journal: bool,
    /// The driver has not sent what there is: messages that may wait do.
    congested: bool,
}

/// What a driver grants to a CONNECT.
#[derive(Debug, Default)]
pub struct Accept<'a> {
    /// A session of this client is resumed, be it only with its subscriptions. Without effect on a clean start.
    pub session_present: bool,
    /// The state of that session, if it has any; only with `session_present`.
    pub session: Option<Box<Session>>,
    /// The identifier made for a client that named none.
    pub assigned_client_id: Option<&'a str>,
    /// Basis for response topics, to a client that asked for it (5.0 §3.2.2.3.15).
    pub response_information: Option<&'a str>,
}

/// What is left of a connection.
#[derive(Debug)]
pub struct Ended {
    /// State to keep for [`session_expiry`](Self::session_expiry) seconds. `None` is a session without such state; its
    /// subscriptions are kept as long.
    pub session: Option<Box<Session>>,
    /// Seconds from now that the session lives on: 0 ends it, `u32::MAX` keeps it without end.
    pub session_expiry: u32,
    /// Publishes that the connection offered and that wait for [`Connection::stored`] still. What becomes of them must not be
    /// told to the client's next connection as if it had offered them: there the same identifiers may name other messages.
    pub unstored: u16,
    /// The will to publish, unless the client took it back with a normal disconnection.
    pub will: Option<Box<Will>>,
}

impl Connection {
    /// A connection that begins at `now`.
    #[must_use]
    pub fn new(now: u64) -> Connection {
        Connection {
            heard: now,
            session: None,
            aliases: None,
            will: None,
            session_expiry: 0,
            maximum_packet: u32::MAX,
            keep_alive: 0,
            receive_maximum: u16::MAX,
            alias_maximum: 0,
            outstanding: 0,
            unstored: 0,
            phase: Phase::Fresh,
            version: Version::V4,
            throttled: false,
            problem_info: true,
            response_info: false,
            clean_start: false,
            asked_to_outlive: false,
            expiry_capped: false,
            journal: false,
            congested: false,
        }
    }

    /// The connection as it was before its CONNECT, which the driver has kept and gives again later. The time that the CONNECT may take runs on.
    #[must_use]
    pub fn before_connect(&self) -> Connection {
        debug_assert_eq!(self.phase, Phase::Deciding);
        Connection::new(self.heard)
    }

    /// Takes packets off the front of `input` until one is for the driver. See the crate's drain contract.
    ///
    /// On an error the farewell is in `out` and the connection is to be closed after it; [`end`](Self::end) gives the will.
    #[inline]
    pub fn next<'a>(
        &mut self,
        limits: &Limits,
        input: &mut &'a [u8],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Violation> {
        loop {
            match self.phase {
                Phase::Open => {}
                Phase::Fresh => return self.first(limits, input, out),
                Phase::Deciding | Phase::Closed => return Ok(None),
            }
            match self.step(limits, input, now, out) {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Again) => {}
                Ok(Step::Wait) => return Ok(None),
                Err(violation) => {
                    self.farewell(violation.reason(), &violation, out);
                    return Err(violation);
                }
            }
        }
    }

    /// Waits for the CONNECT ([MQTT-3.1.0-1]).
    fn first<'a>(
        &mut self,
        limits: &Limits,
        input: &mut &'a [u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Event<'a>>, Violation> {
        let (violation, answer) = match self.read_connect(limits, input) {
            Ok(None) => return Ok(None),
            Ok(Some(connect)) if connect.auth_method.is_none() => {
                self.phase = Phase::Deciding;
                return Ok(Some(Event::Connect(Box::new(connect))));
            }
            Ok(Some(_)) => (Violation::AuthMethod, Some(Version::V5)),
            Err(packet::BadConnect { violation, answer }) => (violation, answer),
        };
        self.phase = Phase::Closed;
        self.will = None;
        if let Some(version) = answer {
            codec::refuse(version, violation.reason(), self.maximum_packet, out);
        }
        Err(violation)
    }

    fn read_connect<'a>(
        &mut self,
        limits: &Limits,
        input: &mut &'a [u8],
    ) -> Result<Option<Connect<'a>>, packet::BadConnect> {
        let silent = |violation| packet::BadConnect { violation, answer: None };
        let Some(&first) = input.first() else { return Ok(None) };
        if first >> 4 != kind::CONNECT {
            return Err(silent(Violation::NotConnect));
        }
        if first & 0x0f != 0 {
            return Err(silent(Violation::FixedHeaderFlags));
        }
        let frame = match wire::frame(input, limits.max_connect) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(Violation::PacketTooLarge) => {
                // Read as far as the version: 5.0 can be told.
                let Some(answer) = packet::announced(wire::body(input)) else { return Ok(None) };
                return Err(packet::BadConnect { violation: Violation::PacketTooLarge, answer });
            }
            Err(violation) => return Err(silent(violation)),
        };
        *input = &input[frame.total..];
        let connect = packet::connect(frame.body, frame.minimal)?;
        self.version = connect.version;
        self.keep_alive = connect.keep_alive;
        self.session_expiry = connect.session_expiry.min(limits.session_expiry_max);
        self.asked_to_outlive = connect.session_expiry != 0;
        self.expiry_capped = self.session_expiry != connect.session_expiry;
        self.receive_maximum = connect.receive_maximum;
        self.maximum_packet = connect.maximum_packet;
        self.alias_maximum = connect.topic_alias_maximum.min(limits.topic_aliases_out);
        self.problem_info = connect.request_problem_info;
        self.response_info = connect.request_response_info;
        self.clean_start = connect.clean_start;
        if let Some(will) = &connect.will {
            if will.retain && !limits.retain_available {
                let violation = Violation::Retain;
                return Err(packet::BadConnect { violation, answer: Some(connect.version) });
            }
            self.will = Some(Box::new(Will::new(will)));
        }
        Ok(Some(connect))
    }

    /// Handles one packet of an open connection.
    #[inline]
    fn step<'a>(
        &mut self,
        limits: &Limits,
        input: &mut &'a [u8],
        now: u64,
        out: &mut Vec<u8>,
    ) -> Result<Step<'a>, Violation> {
        let Some(&first) = input.first() else { return Ok(Step::Wait) };
        screen(first, self.version)?;
        let Some(frame) = wire::frame(input, limits.max_packet)? else { return Ok(Step::Wait) };
        if self.version == Version::V5 && !frame.minimal {
            return Err(Violation::RemainingLength);
        }
        if first >> 4 == kind::PUBLISH {
            if first & 0b0110 != 0 && self.version == Version::V4 && self.unstored >= limits.receive_maximum {
                self.throttled = true;
                return Ok(Step::Wait);
            }
            *input = &input[frame.total..];
            self.heard = now;
            let publish = packet::publish(first, frame.body, self.version)?;
            return self.published(limits, publish, out);
        }
        *input = &input[frame.total..];
        self.heard = now;
        let body = frame.body;
        match first >> 4 {
            kind::PUBACK => {
                let ack = packet::ack(body, self.version, packet::publish_codes)?;
                Ok(self.delivered(limits, ack.packet_id, QoS::AtLeastOnce, ack.reason, now, out))
            }
            kind::PUBREC => {
                let ack = packet::ack(body, self.version, packet::publish_codes)?;
                Ok(self.received(limits, ack, now, out))
            }
            kind::PUBREL => {
                let ack = packet::ack(body, self.version, packet::release_codes)?;
                self.released(ack.packet_id, out)
            }
            kind::PUBCOMP => {
                let ack = packet::ack(body, self.version, packet::release_codes)?;
                Ok(self.delivered(limits, ack.packet_id, QoS::ExactlyOnce, ack.reason, now, out))
            }
            kind::SUBSCRIBE => {
                let subscribe = packet::subscribe(body, self.version)?;
                if !limits.shared_subscriptions && subscribe.filters().any(|(f, _)| f.group().is_some()) {
                    return Err(Violation::SharedSubscription);
                }
                self.answerable(subscribe.count)?;
                Ok(Step::Event(Event::Subscribe(subscribe)))
            }
            kind::UNSUBSCRIBE => {
                let unsubscribe = packet::unsubscribe(body, self.version)?;
                self.answerable(unsubscribe.count)?;
                Ok(Step::Event(Event::Unsubscribe(unsubscribe)))
            }
            kind::PINGREQ => {
                if !body.is_empty() {
                    return Err(Violation::TrailingBytes);
                }
                out.extend_from_slice(&encode::PINGRESP);
                // A connection that pings is idle: what it does not need now goes.
                if self.session.as_ref().is_some_and(|s| s.is_spent()) {
                    self.session = None;
                }
                Ok(Step::Again)
            }
            kind::DISCONNECT => self.disconnected(limits, body).map(|reason| Step::Event(Event::Disconnect { reason })),
            // `screen` lets only AUTH come here, and no method was agreed on.
            _ => Err(Violation::Auth),
        }
    }

    /// A SUBACK or UNSUBACK with so many reasons is to fit the packets that the client takes ([MQTT-3.1.2-24]): what cannot be answered is not
    /// done.
    fn answerable(&self, reasons: usize) -> Result<(), Violation> {
        if self.version == Version::V5 && codec::suback_len(reasons) > self.maximum_packet as usize {
            return Err(Violation::AnswerTooLarge);
        }
        Ok(())
    }

    #[inline]
    fn published<'a>(
        &mut self,
        limits: &Limits,
        mut publish: Publish<'a>,
        out: &mut Vec<u8>,
    ) -> Result<Step<'a>, Violation> {
        if publish.retain && !limits.retain_available {
            return Err(Violation::Retain);
        }
        if let Some(alias) = publish.alias {
            if alias > limits.topic_alias_maximum {
                return Err(Violation::TopicAlias);
            }
            if publish.topic.is_empty() {
                let topic = self.aliases.as_ref().and_then(|a| a.get(alias)).ok_or(Violation::NoTopic)?;
                publish.topic = TopicName::Aliased(topic);
            } else if !self.aliases.get_or_insert_default().set(alias, &publish.topic, limits.max_alias_bytes) {
                return Err(Violation::AliasBytes);
            }
        } else if publish.topic.is_empty() {
            return Err(Violation::NoTopic);
        }
        // The acknowledgement of 5.0 says that it is not retained; no other tells.
        let untold = self.version == Version::V4 || publish.qos == QoS::AtMostOnce;
        if publish.retain && untold && !publish.payload.is_empty() && !retained::has_place(&publish.topic) {
            return Err(Violation::RetainedLevels);
        }
        if publish.qos == QoS::AtMostOnce {
            return Ok(Step::Event(Event::Publish(publish)));
        }
        if publish.qos == QoS::ExactlyOnce {
            let session = self.session_mut();
            if let Ok(at) = session.find_inbound(publish.packet_id) {
                // Received before: no new message ([MQTT-4.3.3-10]). If it is not stored yet, the PUBREC follows when it is.
                let inbound = &mut session.inbound[at];
                let newly_counted = !std::mem::replace(&mut inbound.counted, true);
                if inbound.stored {
                    encode::ack(encode::PUBREC, publish.packet_id, Reason::Success, self.version, out);
                }
                if newly_counted {
                    self.count(limits)?;
                }
                return Ok(Step::Again);
            }
            if session.inbound.len() >= usize::from(limits.max_unreleased) {
                return Err(Violation::Unreleased);
            }
        }
        // A publish that is one too many leaves no trace: it is never offered, so nobody would say that it is stored.
        self.count(limits)?;
        if publish.qos == QoS::ExactlyOnce {
            let inbound = Inbound { packet_id: publish.packet_id, stored: false, counted: true };
            let session = self.session_mut();
            if let Err(at) = session.find_inbound(publish.packet_id) {
                session.inbound.insert(at, inbound);
            }
        }
        self.unstored += 1;
        Ok(Step::Event(Event::Publish(publish)))
    }

    fn session_mut(&mut self) -> &mut Session {
        let journal = self.journal;
        self.session.get_or_insert_with(|| {
            let mut session = Box::new(Session::new());
            if journal {
                session.keep_journal();
            }
            session
        })
    }

    /// One more publish counts against the receive maximum (5.0 §4.9), which a 3.1.1 client was not told.
    #[inline]
    fn count(&mut self, limits: &Limits) -> Result<(), Violation> {
        if self.version == Version::V5 && self.outstanding >= limits.receive_maximum {
            return Err(Violation::ReceiveMaximum);
        }
        self.outstanding = self.outstanding.saturating_add(1);
        Ok(())
    }

    /// The client's PUBREL.
    fn released<'a>(&mut self, packet_id: u16, out: &mut Vec<u8>) -> Result<Step<'a>, Violation> {
        let found = self.session.as_mut().and_then(|s| Some((s.find_inbound(packet_id).ok()?, s)));
        let Some((at, session)) = found else {
            // Released before, and the PUBCOMP was lost with the connection.
            encode::ack(encode::PUBCOMP, packet_id, Reason::PacketIdNotFound, self.version, out);
            return Ok(Step::Again);
        };
        if !session.inbound[at].stored {
            return Err(Violation::EarlyRelease);
        }
        if session.forget_inbound(packet_id).is_some_and(|i| i.counted) {
            self.outstanding = self.outstanding.saturating_sub(1);
        }
        Ok(Step::Event(Event::Release { packet_id }))
    }

    /// The client's DISCONNECT (§3.14).
    fn disconnected(&mut self, limits: &Limits, body: &[u8]) -> Result<Reason, Violation> {
        let disconnect = packet::disconnect(body, self.version)?;
        if let Some(expiry) = disconnect.session_expiry {
            if expiry != 0 && !self.asked_to_outlive {
                return Err(Violation::SessionExpiry);
            }
            self.session_expiry = expiry.min(limits.session_expiry_max);
        }
        if disconnect.reason == Reason::Success {
            self.will = None;
        }
        self.phase = Phase::Closed;
        Ok(disconnect.reason)
    }

    /// Whether the CONNACK that accepts would fit the packets that the client takes. If not it is to be refused with
    /// [`Reason::PacketTooLarge`]: it would be held to what it was not told (MQTT 5 §3.2.2.3).
    #[must_use]
    pub fn can_be_accepted(&self, limits: &Limits, assigned_client_id: Option<&str>) -> bool {
        self.maximum_packet == u32::MAX
            || codec::accept(
                self.version,
                limits,
                &self.terms(limits, false, assigned_client_id, None),
                &mut Vec::new(),
            )
    }

    /// What the CONNACK tells the client beside `limits`.
    fn terms<'a>(
        &self,
        limits: &Limits,
        session_present: bool,
        assigned_client_id: Option<&'a str>,
        response_information: Option<&'a str>,
    ) -> codec::Terms<'a> {
        let imposed = limits.server_keep_alive;
        codec::Terms {
            session_present,
            session_expiry: self.expiry_capped.then_some(self.session_expiry),
            keep_alive: (self.version == Version::V5
                && imposed != 0
                && (self.keep_alive == 0 || self.keep_alive > imposed))
                .then_some(imposed),
            assigned_client_id,
            response_information: response_information.filter(|_| self.response_info),
            maximum_packet: self.maximum_packet,
        }
    }

    /// Accepts the CONNECT: appends the CONNACK, and what a resumed session has in flight (MQTT 5 §4.4). It is refused instead, and the
    /// connection to be closed, if it [cannot be accepted](Self::can_be_accepted).
    ///
    /// # Panics
    ///
    /// In debug builds, if there is no CONNECT to accept.
    pub fn accept(&mut self, limits: &Limits, accept: Accept<'_>, now: u64, out: &mut Vec<u8>) {
        debug_assert_eq!(self.phase, Phase::Deciding);
        // A clean start has no session to resume ([MQTT-3.2.2-2], 3.1.1 [MQTT-3.2.2-1]).
        let session_present = accept.session_present && !self.clean_start;
        let terms = self.terms(limits, session_present, accept.assigned_client_id, accept.response_information);
        let fits = codec::accept(self.version, limits, &terms, out);
        self.session = accept.session.filter(|_| session_present);
        if !fits {
            self.phase = Phase::Closed;
            self.will = None;
            return codec::refuse(self.version, Reason::PacketTooLarge, self.maximum_packet, out);
        }
        self.phase = Phase::Open;
        self.heard = now;
        self.keep_alive = terms.keep_alive.unwrap_or(self.keep_alive);
        if let Some(session) = &mut self.session {
            if self.journal {
                session.keep_journal();
            }
            session.sent = 0;
            for inbound in &mut session.inbound {
                inbound.counted = false;
            }
            self.pump(limits, now, out);
        }
    }

    /// Notes from now on what changes in the session, for [`take_changes`](Self::take_changes): before
    /// [`accept`](Self::accept), for a session that is to survive a restart.
    pub fn keep_journal(&mut self) {
        self.journal = true;
        if let Some(session) = &mut self.session {
            session.keep_journal();
        }
    }

    /// Refuses the CONNECT: appends the CONNACK. The connection is to be closed after it.
    pub fn refuse(&mut self, reason: Reason, out: &mut Vec<u8>) {
        debug_assert_eq!(self.phase, Phase::Deciding);
        self.phase = Phase::Closed;
        self.will = None;
        self.session_expiry = 0;
        codec::refuse(self.version, reason, self.maximum_packet, out);
    }

    /// A publish is stored, or refused with a failing `reason`: appends its PUBACK or PUBREC.
    ///
    /// A 3.1.1 client cannot be told of a failure: it is acknowledged all the same, unless the driver closes its connection
    /// instead ([MQTT-3.3.5-2]). `Reason::NoMatchingSubscribers` is a success.
    #[inline]
    pub fn stored(&mut self, packet_id: u16, qos: QoS, reason: Reason, out: &mut Vec<u8>) {
        if qos == QoS::AtMostOnce {
            return;
        }
        if self.phase != Phase::Open {
            if let Some(session) = self.session.as_mut().filter(|_| qos == QoS::ExactlyOnce) {
                if reason.is_failure() { session.refused(packet_id) } else { session.stored(packet_id) }
            }
            return;
        }
        // One that an earlier connection of the client offered, and this one did not: its identifier is not this client's.
        let Some(unstored) = self.unstored.checked_sub(1) else { return };
        self.unstored = unstored;
        self.throttled = false;
        let reason = if packet::publish_codes(reason) { reason } else { Reason::Unspecified };
        match qos {
            QoS::AtMostOnce => {}
            QoS::AtLeastOnce => {
                self.outstanding = self.outstanding.saturating_sub(1);
                encode::ack(encode::PUBACK, packet_id, reason, self.version, out);
            }
            QoS::ExactlyOnce => {
                encode::ack(encode::PUBREC, packet_id, reason, self.version, out);
                let Some(session) = &mut self.session else { return };
                if reason.is_failure() && self.version == Version::V5 {
                    // The flow ends here, and the identifier is free ([MQTT-4.3.3-9]).
                    session.refused(packet_id);
                    self.outstanding = self.outstanding.saturating_sub(1);
                } else {
                    session.stored(packet_id);
                }
            }
        }
    }

    /// A release is noted: appends the PUBCOMP.
    pub fn completed(&mut self, packet_id: u16, out: &mut Vec<u8>) {
        if self.phase == Phase::Open {
            encode::ack(encode::PUBCOMP, packet_id, Reason::Success, self.version, out);
        }
    }

    /// Appends the SUBACK of a SUBSCRIBE: one reason a filter, in order ([MQTT-3.8.4-6]).
    pub fn suback(&mut self, packet_id: u16, reasons: impl IntoIterator<Item = Reason>, out: &mut Vec<u8>) {
        if self.phase == Phase::Open {
            codec::suback(self.version, packet_id, reasons, out);
        }
    }

    /// Appends the UNSUBACK of an UNSUBSCRIBE: one reason a filter, in order; 3.1.1 has none.
    pub fn unsuback(&mut self, packet_id: u16, reasons: impl IntoIterator<Item = Reason>, out: &mut Vec<u8>) {
        if self.phase == Phase::Open {
            codec::unsuback(self.version, packet_id, reasons, out);
        }
    }

    /// Ends the connection from this side: appends the DISCONNECT that an MQTT 5 client is told `reason` with; one that
    /// a DISCONNECT cannot have is told as [`Reason::Unspecified`].
    pub fn disconnect(&mut self, reason: Reason, out: &mut Vec<u8>) {
        if self.phase == Phase::Open {
            self.farewell(reason, &"", out);
        }
    }

    fn farewell(&mut self, reason: Reason, text: &dyn std::fmt::Display, out: &mut Vec<u8>) {
        self.phase = Phase::Closed;
        if self.version == Version::V5 {
            let reason = if packet::farewell_codes(reason) { reason } else { Reason::Unspecified };
            encode::disconnect(reason, &text.to_string(), self.maximum_packet, out);
        }
    }

    /// When it has to be closed if nothing comes: the CONNECT is late, or one and a half keep-alive intervals have passed
    /// ([MQTT-3.1.2-22]). `None` while the peer is waiting for the driver, or has no keep-alive.
    #[must_use]
    pub fn deadline(&self, limits: &Limits) -> Option<u64> {
        match self.phase {
            Phase::Fresh => Some(self.heard + limits.connect_timeout_ms),
            Phase::Open if self.keep_alive > 0 && !self.throttled => {
                Some(self.heard + u64::from(self.keep_alive) * 1500)
            }
            _ => None,
        }
    }

    /// Closes the connection if its [`deadline`](Self::deadline) has passed at `now`; the farewell is in `out`.
    pub fn expire(&mut self, limits: &Limits, now: u64, out: &mut Vec<u8>) -> Option<Violation> {
        if self.deadline(limits).is_none_or(|at| now < at) {
            return None;
        }
        let violation = if self.phase == Phase::Fresh { Violation::ConnectTimeout } else { Violation::KeepAlive };
        if self.phase == Phase::Open {
            self.farewell(violation.reason(), &violation, out);
        }
        self.phase = Phase::Closed;
        Some(violation)
    }

    /// Takes what outlives the connection. For each connection once it is over, however it ended.
    pub fn end(&mut self) -> Ended {
        self.phase = Phase::Closed;
        Ended {
            session: self.session.take().filter(|s| !s.is_spent()),
            session_expiry: self.session_expiry,
            unstored: std::mem::take(&mut self.unstored),
            will: self.will.take(),
        }
    }

    /// The version that the client speaks; 3.1.1 until its CONNECT is read.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Whether the CONNECT was accepted and the connection is not over.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether the rest of the input waits for the driver: it should not read more from the peer.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.phase == Phase::Deciding || self.throttled
    }

    /// Longest packet that the peer may send now: before its CONNECT is accepted it is not known, and gets less.
    #[must_use]
    pub fn longest(&self, limits: &Limits) -> usize {
        (if self.phase == Phase::Fresh { limits.max_connect } else { limits.max_packet }) as usize
    }

    /// Publishes of QoS 1 and 2 that wait for [`stored`](Self::stored).
    #[must_use]
    pub fn unstored(&self) -> u16 {
        self.unstored
    }

    /// The client's keep-alive in seconds, as agreed; 0 is off.
    #[must_use]
    pub fn keep_alive(&self) -> u16 {
        self.keep_alive
    }

    /// Seconds that the session outlives the connection, as granted.
    #[must_use]
    pub fn session_expiry(&self) -> u32 {
        self.session_expiry
    }

    /// The will that it leaves behind unless it is taken back.
    #[must_use]
    pub fn will(&self) -> Option<&Will> {
        self.will.as_deref()
    }

    /// Moves the changes of the session since it was last asked to `changes`, in order; see [`keep_journal`](Self::keep_journal).
    pub fn take_changes(&mut self, changes: &mut Vec<Change>) {
        if let Some(session) = &mut self.session {
            session.take_changes(changes);
        }
    }

    /// The session's state, if it has any.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.session.as_deref()
    }

    /// Whether reason strings and user properties may stand on acknowledgements.
    #[must_use]
    pub fn wants_problem_information(&self) -> bool {
        self.problem_info
    }
}

/// What came of one packet.
enum Step<'a> {
    Event(Event<'a>),
    /// It is dealt with; go on.
    Again,
    /// It is incomplete, or has to wait.
    Wait,
}

/// Packet types (§2.1.2).
mod kind {
    pub(super) const CONNECT: u8 = 1;
    pub(super) const PUBLISH: u8 = 3;
    pub(super) const PUBACK: u8 = 4;
    pub(super) const PUBREC: u8 = 5;
    pub(super) const PUBREL: u8 = 6;
    pub(super) const PUBCOMP: u8 = 7;
    pub(super) const SUBSCRIBE: u8 = 8;
    pub(super) const UNSUBSCRIBE: u8 = 10;
    pub(super) const PINGREQ: u8 = 12;
    pub(super) const DISCONNECT: u8 = 14;
    pub(super) const AUTH: u8 = 15;
}

/// Checks the first byte of a packet, before the rest of it need be there (§2.1.2, §2.1.3).
#[inline]
fn screen(first: u8, version: Version) -> Result<(), Violation> {
    let flags = first & 0x0f;
    let required = match first >> 4 {
        kind::PUBLISH => return Ok(()),
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => 0b0010,
        kind::PUBACK | kind::PUBREC | kind::PUBCOMP | kind::PINGREQ | kind::DISCONNECT => 0,
        kind::AUTH if version == Version::V5 => 0,
        0 | kind::AUTH => return Err(Violation::PacketType),
        kind::CONNECT => return Err(Violation::SecondConnect),
        _ => return Err(Violation::ServerPacket),
    };
    if flags == required { Ok(()) } else { Err(Violation::FixedHeaderFlags) }
}
