//! The handshake as the client sees it; the server's module has the picture.

use std::ops::Range;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{ClientConfig, ClientEvent, Credentials, Established, cid_fits, drop_reason};
use crate::alert::{Alert, AlertLevel};
use crate::cid::ConnectionId;
use crate::crypto::{self, KeyBlock, MasterSecret, Sender, VERIFY_DATA_LEN};
use crate::environment::Owner;
use crate::handshake::codec::{self, ClientHelloParts, SUITE, ServerHello};
use crate::handshake::flight::{Flight, Wire};
use crate::handshake::reassembly::{Accepted, Inbound};
use crate::handshake::{Fragment, MAX_MESSAGE_LEN, Transcript, message};
use crate::outbox::Outbox;
use crate::protection::Protection;
use crate::record::{self, ContentType, RecordHeader, VERSION};
use crate::server::DropReason;
use crate::session::{MASTER_SECRET_LEN, Session, SessionId};
use crate::time::Timestamp;

/// Cookies followed in one handshake: a server that asks for more is not going to be satisfied.
const MAX_COOKIES: u8 = 8;

/// Repeated flights of the server that are answered at once; more of them wait for the timer.
const MAX_ECHOES: u8 = 4;

/// What a record led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Wait,
    Done,
}

/// What is due next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `HelloVerifyRequest` or `ServerHello`.
    Hello,
    /// `ServerKeyExchange` or `ServerHelloDone`.
    Done,
    /// `Finished`.
    Finished,
    /// Nothing: it is complete.
    Complete,
}

pub(super) struct Handshake {
    credentials: Credentials,
    /// What we offered to resume; after the `ServerHello`, what is being resumed.
    session: Option<Session>,
    client_random: [u8; 32],
    server_random: [u8; 32],
    stage: Stage,
    transcript: Transcript,
    inbound: Inbound,
    flight: Flight,
    cookie: Vec<u8>,
    cookies: u8,
    plain_next: u32,
    /// `message_seq` of our next message.
    next_message: u16,
    sent: u8,
    echoes: u8,
    timer: Timestamp,
    extended: bool,
    /// The server's CID, if CIDs were agreed on.
    peer_cid: Option<ConnectionId>,
    fragment_code: u8,
    session_id: SessionId,
    keys: Option<Keys>,
}

struct Keys {
    master: MasterSecret,
    protection: Protection,
    /// What the server's `Finished` must say; known once all before it is.
    expected: [u8; VERIFY_DATA_LEN],
    /// What ours said.
    ours: [u8; VERIFY_DATA_LEN],
}

impl Handshake {
    pub(super) fn new(credentials: Credentials, session: Option<Session>, client_random: [u8; 32]) -> Handshake {
        Handshake {
            credentials,
            session,
            client_random,
            server_random: [0; 32],
            stage: Stage::Hello,
            transcript: Transcript::default(),
            inbound: Inbound::new(0, MAX_MESSAGE_LEN),
            flight: Flight::default(),
            cookie: Vec::new(),
            cookies: 0,
            plain_next: 0,
            next_message: 0,
            sent: 0,
            echoes: 0,
            timer: Timestamp::default(),
            extended: false,
            peer_cid: None,
            fragment_code: 0,
            session_id: SessionId::default(),
            keys: None,
        }
    }

    pub(super) fn timer(&self) -> Timestamp {
        self.timer
    }

    /// Sends a `ClientHello`, with a cookie or an empty one.
    pub(super) fn hello(&mut self, config: &ClientConfig, cookie: &[u8], now: Timestamp, out: &mut Outbox<()>) {
        self.cookie = cookie.to_vec();
        let session_id = self.session.as_ref().map(|session| session.id).unwrap_or_default();
        self.flight.clear();
        self.transcript = Transcript::default();
        let client_random = self.client_random;
        self.say(message::CLIENT_HELLO, |out| {
            ClientHelloParts {
                random: &client_random,
                session_id: &session_id,
                cookie,
                extended_master_secret: config.extended_master_secret,
                cid: config.cid,
                max_fragment_length: config.max_fragment_length,
            }
            .write(out);
        });
        self.send_new(config, now, out);
    }

    /// Sends the flight again; false if it was sent often enough.
    pub(super) fn send_again(&mut self, config: &ClientConfig, now: Timestamp, out: &mut Outbox<()>) -> bool {
        if self.sent - self.echoes >= config.retransmission.transmissions {
            return false;
        }
        self.send(config, out);
        self.timer = now.plus(config.retransmission.wait(self.sent - self.echoes));
        true
    }

    fn send_new(&mut self, config: &ClientConfig, now: Timestamp, out: &mut Outbox<()>) {
        (self.sent, self.echoes) = (0, 0);
        self.send(config, out);
        self.timer = now.plus(config.retransmission.wait(1));
    }

    fn send(&mut self, config: &ClientConfig, out: &mut Outbox<()>) {
        let cid = self.peer_cid.unwrap_or_default();
        // A hello goes whole, whatever the limit: a stateless server cannot put pieces together.
        let mtu = if self.stage == Stage::Hello { usize::MAX } else { config.mtu };
        self.flight.send(Wire {
            out,
            to: (),
            mtu,
            plain_next: &mut self.plain_next,
            protection: self.keys.as_mut().map(|keys| &mut keys.protection),
            cid: cid.as_bytes(),
        });
        self.sent = self.sent.saturating_add(1);
    }

    /// Opens a protected record, once there are keys.
    pub(super) fn open(
        &mut self,
        config: &ClientConfig,
        datagram: &mut [u8],
        header: &RecordHeader,
    ) -> Result<(ContentType, Range<usize>), DropReason> {
        let own = self.peer_cid.and(config.cid).unwrap_or_default();
        let keys = self.keys.as_mut().ok_or(DropReason::Unexpected)?;
        if !cid_fits(own, datagram, header) {
            return Err(DropReason::Unexpected);
        }
        let opened = keys.protection.open(datagram, header).map_err(drop_reason)?;
        Ok((opened.content_type, opened.text))
    }

    /// Says why it ends: protected if there are keys.
    pub(super) fn alert(&mut self, alert: Alert, out: &mut Outbox<()>) {
        let body = [AlertLevel::Fatal as u8, alert.0];
        match self.keys.as_mut() {
            Some(keys) => {
                let cid = self.peer_cid.unwrap_or_default();
                let sealed = keys.protection.seal(out.buffer(), ContentType::Alert, &body, cid.as_bytes(), 0);
                debug_assert_eq!(sealed, Ok(()));
            }
            None => {
                let sequence = u64::from(self.plain_next);
                record::write_header(out.buffer(), ContentType::Alert, 0, sequence, &[], body.len());
                out.buffer().extend_from_slice(&body);
            }
        }
        out.finish(());
    }

    /// Takes the fragments of a record.
    pub(super) fn fragments(
        &mut self,
        config: &ClientConfig,
        mut body: &[u8],
        epoch: u16,
        now: Timestamp,
        out: &mut Outbox<()>,
        events: &mut Vec<ClientEvent>,
    ) -> Result<Step, Alert> {
        while !body.is_empty() {
            let Ok((fragment, rest)) = Fragment::parse(body) else {
                events.push(ClientEvent::Drop(DropReason::Malformed));
                return Ok(Step::Wait);
            };
            body = rest;
            if fragment.kind == message::HELLO_VERIFY_REQUEST && epoch == 0 && self.stage == Stage::Hello {
                self.verify_request(&fragment, config, now, out, events);
                continue;
            }
            let dropped = match self.inbound.accept(&fragment, epoch) {
                Accepted::Kept => None,
                Accepted::TooLong | Accepted::Refused => Some(DropReason::OutOfBounds),
                Accepted::Old => {
                    // The server sends its flight again, so ours was lost: its last message asks for ours.
                    let asks = fragment.kind == message::SERVER_HELLO_DONE && self.stage == Stage::Finished;
                    if asks && self.echoes < MAX_ECHOES {
                        self.echoes += 1;
                        self.send(config, out);
                    }
                    Some(DropReason::Duplicate)
                }
                Accepted::Whole => {
                    self.message(fragment.kind, fragment.sequence, epoch, fragment.bytes, config, now, out)?;
                    None
                }
            };
            if let Some(reason) = dropped {
                events.push(ClientEvent::Drop(reason));
            }
            while self.stage != Stage::Complete
                && let Some(next) = self.inbound.next()
            {
                self.message(next.kind, next.sequence, next.epoch, &next.body, config, now, out)?;
            }
            if self.stage == Stage::Complete {
                return Ok(Step::Done);
            }
        }
        Ok(Step::Wait)
    }

    /// A `HelloVerifyRequest`: outside the order of messages, since a stateless server cannot count.
    fn verify_request(
        &mut self,
        fragment: &Fragment<'_>,
        config: &ClientConfig,
        now: Timestamp,
        out: &mut Outbox<()>,
        events: &mut Vec<ClientEvent>,
    ) {
        let cookie = match codec::parse_hello_verify_request(fragment.bytes) {
            Ok(cookie) if fragment.is_whole() && !cookie.is_empty() => cookie,
            _ => return events.push(ClientEvent::Drop(DropReason::Malformed)),
        };
        if cookie == self.cookie {
            return events.push(ClientEvent::Drop(DropReason::Duplicate));
        }
        if self.cookies == MAX_COOKIES || fragment.sequence == u16::MAX {
            return events.push(ClientEvent::Drop(DropReason::OutOfBounds));
        }
        self.cookies += 1;
        self.inbound = Inbound::new(fragment.sequence + 1, MAX_MESSAGE_LEN);
        self.hello(config, cookie, now, out);
    }

    #[allow(clippy::too_many_arguments, reason = "a message is four things, and is answered")]
    fn message(
        &mut self,
        kind: u8,
        sequence: u16,
        epoch: u16,
        body: &[u8],
        config: &ClientConfig,
        now: Timestamp,
        out: &mut Outbox<()>,
    ) -> Result<(), Alert> {
        if kind == message::FINISHED {
            return match (self.stage, epoch) {
                (Stage::Finished, 1) => self.finished(sequence, body, config, now, out),
                _ => Err(Alert::UNEXPECTED_MESSAGE),
            };
        }
        if epoch != 0 {
            return Err(Alert::UNEXPECTED_MESSAGE);
        }
        self.transcript.add(kind, sequence, body);
        match (kind, self.stage) {
            (message::SERVER_HELLO, Stage::Hello) => self.server_hello(body, config),
            (message::SERVER_KEY_EXCHANGE, Stage::Done) => {
                // The hint is for clients with several identities.
                codec::parse_server_key_exchange(body).map(|_| ()).map_err(|_| Alert::DECODE_ERROR)
            }
            (message::SERVER_HELLO_DONE, Stage::Done) if body.is_empty() => {
                self.exchange_keys(config, now, out);
                Ok(())
            }
            (message::SERVER_HELLO_DONE, Stage::Done) => Err(Alert::DECODE_ERROR),
            _ => Err(Alert::UNEXPECTED_MESSAGE),
        }
    }

    fn server_hello(&mut self, body: &[u8], config: &ClientConfig) -> Result<(), Alert> {
        let hello = ServerHello::parse(body).map_err(|_| Alert::DECODE_ERROR)?;
        if hello.version != VERSION {
            return Err(Alert::PROTOCOL_VERSION);
        }
        if hello.suite != SUITE || hello.compression != 0 {
            return Err(Alert::ILLEGAL_PARAMETER);
        }
        let answer = hello.extensions;
        let unasked = answer.others
            || (answer.connection_id.is_some() && config.cid.is_none())
            || (answer.extended_master_secret && !config.extended_master_secret)
            || (answer.max_fragment_length.is_some() && config.max_fragment_length.is_none());
        if unasked {
            return Err(Alert::UNSUPPORTED_EXTENSION);
        }
        if answer.max_fragment_length.is_some_and(|code| config.max_fragment_length != Some(code)) {
            return Err(Alert::ILLEGAL_PARAMETER);
        }
        // RFC 5746 §3.4: in a first handshake it is empty.
        if answer.renegotiation_info.is_some_and(|info| !info.is_empty()) {
            return Err(Alert::HANDSHAKE_FAILURE);
        }
        if config.require_extended_master_secret && !answer.extended_master_secret {
            return Err(Alert::HANDSHAKE_FAILURE);
        }
        self.peer_cid = match answer.connection_id {
            Some(cid) => Some(ConnectionId::new(cid).ok_or(Alert::ILLEGAL_PARAMETER)?),
            None => None,
        };
        self.extended = answer.extended_master_secret;
        self.fragment_code = answer.max_fragment_length.unwrap_or(0);
        self.server_random = *hello.random;
        self.session_id = SessionId::new(hello.session_id).ok_or(Alert::DECODE_ERROR)?;
        let resumed = self.session.take_if(|session| !session.id.is_empty() && session.id == self.session_id);
        let Some(session) = resumed else {
            self.session = None;
            self.stage = Stage::Done;
            return Ok(());
        };
        // RFC 7627 §5.3: both or neither.
        if session.extended != self.extended {
            return Err(Alert::HANDSHAKE_FAILURE);
        }
        let master = Zeroizing::new(session.master_secret);
        self.session = Some(session);
        let expected = crypto::verify_data(&master, Sender::Server, &self.transcript.hash());
        self.keys = Some(Keys { protection: self.protect(&master), master, expected, ours: [0; VERIFY_DATA_LEN] });
        self.stage = Stage::Finished;
        Ok(())
    }

    /// Answers `ServerHelloDone`.
    fn exchange_keys(&mut self, config: &ClientConfig, now: Timestamp, out: &mut Outbox<()>) {
        self.flight.clear();
        let identity = self.credentials.identity.clone();
        self.say(message::CLIENT_KEY_EXCHANGE, |out| codec::write_psk_vector(out, &identity));
        let key = self.credentials.key.as_bytes();
        let mut master = Zeroizing::new([0; MASTER_SECRET_LEN]);
        if self.extended {
            crypto::extended_master_secret(key, &self.transcript.hash(), &mut master);
        } else {
            crypto::master_secret(key, &self.client_random, &self.server_random, &mut master);
        }
        let ours = self.say_finished(&master);
        let expected = crypto::verify_data(&master, Sender::Server, &self.transcript.hash());
        self.keys = Some(Keys { protection: self.protect(&master), master, expected, ours });
        self.stage = Stage::Finished;
        self.send_new(config, now, out);
    }

    fn finished(
        &mut self,
        sequence: u16,
        body: &[u8],
        config: &ClientConfig,
        now: Timestamp,
        out: &mut Outbox<()>,
    ) -> Result<(), Alert> {
        let verify_data = codec::parse_finished(body).map_err(|_| Alert::DECODE_ERROR)?;
        let Some(keys) = self.keys.as_ref() else { return Err(Alert::UNEXPECTED_MESSAGE) };
        if !bool::from(keys.expected.ct_eq(verify_data)) {
            return Err(Alert::DECRYPT_ERROR);
        }
        if self.session.is_some() {
            let master = keys.master.clone();
            self.transcript.add(message::FINISHED, sequence, body);
            self.flight.clear();
            let ours = self.say_finished(&master);
            if let Some(keys) = self.keys.as_mut() {
                keys.ours = ours;
            }
            self.send_new(config, now, out);
        }
        self.stage = Stage::Complete;
        Ok(())
    }

    /// What stays of it; nothing unless it is complete.
    pub(super) fn into_established(self: Box<Self>) -> Option<(Established, Option<Session>)> {
        let handshake = *self;
        let keys = handshake.keys?;
        let resumed = handshake.session.is_some();
        let session = (!resumed && !handshake.session_id.is_empty()).then(|| Session {
            master_secret: *keys.master,
            extended: handshake.extended,
            id: handshake.session_id,
            owner: Owner::default(),
            identity: handshake.credentials.identity.clone(),
            number: 0,
        });
        let established = Established {
            protection: keys.protection,
            plain_next: handshake.plain_next,
            finished_sequence: handshake.next_message.wrapping_sub(1),
            finished: keys.ours,
            peer_cid: handshake.peer_cid.unwrap_or_default(),
            with_cid: handshake.peer_cid.is_some(),
            fragment_code: handshake.fragment_code,
            resumed,
        };
        Some((established, session))
    }

    /// Appends an unprotected message to the flight and the transcript.
    fn say(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let body = self.flight.push(kind, self.next_message, false, write);
        self.transcript.add(kind, self.next_message, body);
        self.next_message += 1;
    }

    /// Appends `ChangeCipherSpec` and `Finished`.
    fn say_finished(&mut self, master: &MasterSecret) -> [u8; VERIFY_DATA_LEN] {
        let verify_data = crypto::verify_data(master, Sender::Client, &self.transcript.hash());
        self.flight.push_change_cipher_spec();
        self.flight.push(message::FINISHED, self.next_message, true, |out| out.extend_from_slice(&verify_data));
        self.transcript.add(message::FINISHED, self.next_message, &verify_data);
        self.next_message += 1;
        verify_data
    }

    fn protect(&self, master: &MasterSecret) -> Protection {
        let mut protection = Protection::blank();
        let (client, server) = protection.keys_mut();
        KeyBlock { client, server }.derive(master, &self.client_random, &self.server_random);
        protection
    }
}
