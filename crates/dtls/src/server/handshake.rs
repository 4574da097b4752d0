//! The handshake as the server sees it.
//!
//! ```text
//! ClientHello              →            nothing is kept until the cookie returns
//!                          ←            HelloVerifyRequest
//! ClientHello (cookie)     →            full:         resumed:
//!                          ←            ServerHello   ServerHello
//!                          ←            [hint]        ChangeCipherSpec
//!                          ←            Done          Finished
//! ClientKeyExchange        →
//! ChangeCipherSpec         →                          ChangeCipherSpec
//! Finished                 →                          Finished
//!                          ←            ChangeCipherSpec, Finished
//! ```
//!
//! `ChangeCipherSpec` is written and not waited for: it has no `message_seq`, so a lost one cannot be told from one that was never
//! sent; the epoch of a record says all of it, and there are no keys to change to before `ClientKeyExchange`.
//!
//! An unknown identity runs on with a random key, to the record of `Finished`, which then fails as with a wrong key: both get a fatal
//! `bad_record_mac`. Before that, the record is tried with the key before this one; where there is none, with a random one, so
//! that a failure takes as long whatever it is.
//!
//! Whoever knows a CID or spoofs an address can send such a record, too, and RFC 6347 §4.1.2.7 would have it dropped in silence. So one that
//! comes from another address changes nothing, and after one from the client's own the alert waits for [`FORGED_GRACE`], in which
//! a genuine `Finished` is still taken.

use std::collections::BTreeSet;
use std::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::partial::{MAX_HELLO_LEN, Taken};
use super::{Context, DropReason, Event, HandshakeFailure, Server, ServerConfig};
use crate::alert::{Alert, AlertLevel};
use crate::association::{Agreed, Association};
use crate::cid::{ConnectionId, RANDOM_LEN, ServerCid, Tag};
use crate::crypto::{self, EXPLICIT_NONCE_LEN, KeyBlock, MasterSecret, Sender, TAG_LEN, VERIFY_DATA_LEN};
use crate::environment::{Key, Owner, Random};
use crate::handshake::codec::{self, ClientHello, Extensions, HelloStart, SUITE, ServerHello};
use crate::handshake::cookie::COOKIE_LEN;
use crate::handshake::flight::{Flight, Wire};
use crate::handshake::reassembly::{Accepted, Inbound};
use crate::handshake::{Fragment, MESSAGE_HEADER_LEN, Transcript, message, message_header};
use crate::outbox::Outbox;
use crate::path::{CompactPath, Path};
use crate::protection::{OpenError, Protection};
use crate::record::{self, ContentType, HEADER_LEN, RecordHeader, VERSION};
use crate::session::{MASTER_SECRET_LEN, SESSION_ID_LEN, Session, SessionId};
use crate::time::Timestamp;

/// Longest message that a client sends after its hello: an identity and its length.
const MAX_CLIENT_MESSAGE: usize = crate::environment::MAX_IDENTITY_LEN + 2;

/// Repeated hellos of one handshake that are answered at once. More of them wait for the timer: whoever holds a cookie must not make
/// us send flights without end.
const MAX_ECHOES: u8 = 4;

/// Highest `message_seq` of a hello: each round of cookies takes one.
const MAX_HELLO_SEQUENCE: u16 = 255;

/// Highest record sequence number of a hello. Ours count on from it (RFC 6347 §4.2.1), and are kept in 32 bits.
const MAX_HELLO_RECORD: u64 = 1 << 31;

/// Records that might be a `Finished` and do not open: with so many from its own address a handshake ends at once, since each costs two
/// derivations of keys.
const MAX_FORGED: u8 = 3;

/// How long a handshake goes on after the first of them: shorter than the second that a client waits before it sends its flight again
/// (RFC 6347 §4.2.4.1), longer than most datagrams are late.
const FORGED_GRACE: Duration = Duration::from_millis(500);

/// What follows the header in the record of a `Finished`, at least.
const FINISHED_BODY_LEN: usize = EXPLICIT_NONCE_LEN + MESSAGE_HEADER_LEN + VERIFY_DATA_LEN + TAG_LEN;

/// Length of a `HelloVerifyRequest` record.
const VERIFY_REQUEST_LEN: usize = HEADER_LEN + MESSAGE_HEADER_LEN + 3 + COOKIE_LEN;

/// Length of the shortest start of a `ClientHello` that is answered, as a record.
const SHORTEST_HELLO: usize = HEADER_LEN + MESSAGE_HEADER_LEN + 2 + 32 + 1 + 1;

// No more bytes are sent than were received until an address is verified; the alert is shorter still.
const _: () = assert!(VERIFY_REQUEST_LEN <= SHORTEST_HELLO);

/// Most memory that one unfinished handshake takes, its slot aside; a test holds it to that.
pub const MAX_PENDING_BYTES: usize = 2560;

/// A handshake between the verified hello and the client's `Finished`.
pub(crate) struct Pending {
    pub(crate) path: CompactPath,
    /// See [`crate::shares::Shares`].
    pub(crate) begun: u64,
    /// Of the CID that it will have.
    pub(crate) random: [u8; RANDOM_LEN],
    client_random: [u8; 32],
    server_random: [u8; 32],
    transcript: Transcript,
    inbound: Inbound,
    flight: Flight,
    plain_next: u32,
    /// `message_seq` of our next message.
    next_message: u16,
    /// Transmissions of the flight.
    sent: u8,
    /// Of these, those that a repeated hello asked for.
    echoes: u8,
    /// Records from its own address that might have been its `Finished` and did not open; once there was one, the timer is for the end.
    forged: u8,
    /// When something is due: the flight again, or the end.
    pub(crate) timer: Timestamp,
    expires: Timestamp,
    /// The peer's CID, if CIDs were agreed on.
    peer_cid: Option<ConnectionId>,
    extended: bool,
    fragment_code: u8,
    session_id: SessionId,
    /// Known once the keys are. They are made where they lie and overwritten there.
    keys: Option<Box<Keys>>,
}

struct Keys {
    master: MasterSecret,
    protection: Protection,
    /// What the client's `Finished` must say.
    expected: [u8; VERIFY_DATA_LEN],
    identity: Box<[u8]>,
    owner: Owner,
    /// See [`crate::Psk::number`].
    number: u64,
    /// The key to try where these open nothing.
    previous: Option<Box<Key>>,
    /// Whether another try is due then, be there a key for it or not.
    may_retry: bool,
    /// Whether the identity is known. If not, the keys are random.
    genuine: bool,
    resumed: bool,
}

impl Keys {
    /// Those of nobody yet.
    fn blank(identity: Box<[u8]>, owner: Owner, number: u64) -> Keys {
        Keys {
            master: Zeroizing::new([0; MASTER_SECRET_LEN]),
            protection: Protection::blank(),
            expected: [0; VERIFY_DATA_LEN],
            identity,
            owner,
            number,
            previous: None,
            may_retry: false,
            genuine: true,
            resumed: false,
        }
    }

    /// Makes all of it from a pre-shared key; the transcript ends with `ClientKeyExchange`.
    fn agree(&mut self, psk: &[u8], extended: bool, randoms: [&[u8; 32]; 2], transcript: &Transcript) {
        if extended {
            crypto::extended_master_secret(psk, &transcript.hash(), &mut self.master);
        } else {
            crypto::master_secret(psk, randoms[0], randoms[1], &mut self.master);
        }
        self.derive(randoms, transcript);
    }

    /// Makes the rest from the master secret; the transcript lacks the client's `Finished` alone. The randoms are the client's and ours.
    fn derive(&mut self, [client_random, server_random]: [&[u8; 32]; 2], transcript: &Transcript) {
        let (server, client) = self.protection.keys_mut();
        KeyBlock { client, server }.derive(&self.master, client_random, server_random);
        self.expected = crypto::verify_data(&self.master, Sender::Client, &transcript.hash());
    }
}

impl Pending {
    pub(crate) fn has_cid(&self) -> bool {
        self.peer_cid.is_some()
    }

    /// Memory that it takes.
    pub(crate) fn bytes(&self) -> usize {
        let keys = self.keys.as_ref().map_or(0, |keys| {
            size_of::<Keys>() + keys.identity.len() + keys.previous.as_ref().map_or(0, |key| size_of_val(&**key))
        });
        size_of::<Pending>() + self.flight.bytes() + self.inbound.bytes() + keys
    }

    fn send_flight(&mut self, mtu: usize, out: &mut Outbox) {
        let cid = self.peer_cid.unwrap_or_default();
        self.flight.send(Wire {
            out,
            to: Path::from(self.path),
            mtu,
            plain_next: &mut self.plain_next,
            protection: self.keys.as_mut().map(|keys| &mut keys.protection),
            cid: cid.as_bytes(),
        });
        self.sent = self.sent.saturating_add(1);
    }

    /// Sets the timer after a transmission.
    fn rearm(&mut self, config: &ServerConfig, now: Timestamp) {
        let wait = config.retransmission.wait(self.sent - self.echoes);
        self.timer = now.plus(wait).min(self.expires);
    }

    /// Gives its keys away.
    pub(crate) fn hand_over(&mut self, protection: &mut Protection) {
        if let Some(keys) = self.keys.as_mut() {
            protection.take(&mut keys.protection);
        }
    }
}

impl Server {
    /// A `ClientHello` in the clear, or a fragment of one. Up to the cookie nothing is kept.
    pub(super) fn client_hello(&mut self, fragment: &Fragment<'_>, record: &RecordHeader, cx: &mut Context<'_, '_>) {
        if fragment.sequence > MAX_HELLO_SEQUENCE || record.sequence > MAX_HELLO_RECORD {
            return cx.drop(DropReason::OutOfBounds);
        }
        if fragment.offset > 0 {
            let taken = self.hellos.add(cx.path, fragment, cx.now);
            return self.hello_fragment(taken, fragment, record, cx);
        }
        let start = match HelloStart::parse(fragment.bytes) {
            Ok(start) => start,
            Err(_) if fragment.is_whole() => return cx.drop(DropReason::Malformed),
            // Without a cookie in its first fragment, no hello in fragments can be answered.
            Err(_) => return cx.drop(DropReason::UnverifiableHello),
        };
        if !self.cookies.check(cx.path, &start) {
            let cookie = self.cookies.make(cx.path, &start);
            send_verify_request(cx.out, cx.path, fragment.sequence, record.sequence, &cookie);
            return cx.drop(DropReason::CookieRequested);
        }
        if let Some(index) = self.table.pending_at(cx.path) {
            let mtu = self.config.mtu;
            match self.table.pending(index) {
                Some(pending) if pending.client_random == *start.random => {
                    if pending.echoes < MAX_ECHOES {
                        pending.echoes += 1;
                        pending.send_flight(mtu, cx.out);
                    }
                    return cx.drop(DropReason::Duplicate);
                }
                _ => self.fail(index, HandshakeFailure::Superseded, cx.events),
            }
        }
        if fragment.is_whole() {
            return self.verified_hello(fragment, record.sequence, cx);
        }
        if fragment.length > MAX_HELLO_LEN {
            return refuse_hello(Alert::HANDSHAKE_FAILURE, record.sequence, cx);
        }
        let lifetime = self.config.handshake_lifetime;
        let taken = self.hellos.begin(cx.path, start.random, fragment, cx.now, lifetime);
        self.hello_fragment(taken, fragment, record, cx);
    }

    /// What follows from a fragment of a hello, which may be the last that was missing.
    fn hello_fragment(
        &mut self,
        taken: Taken,
        fragment: &Fragment<'_>,
        record: &RecordHeader,
        cx: &mut Context<'_, '_>,
    ) {
        match taken {
            Taken::Kept => {}
            Taken::Unknown if self.table.pending_at(cx.path).is_some() => cx.drop(DropReason::Duplicate),
            Taken::Unknown => cx.drop(DropReason::UnverifiableHello),
            Taken::Whole(body) => {
                let whole = Fragment { offset: 0, bytes: &body, ..*fragment };
                self.verified_hello(&whole, record.sequence, cx);
            }
        }
    }

    /// A whole `ClientHello` whose cookie is good.
    fn verified_hello(&mut self, fragment: &Fragment<'_>, record_sequence: u64, cx: &mut Context<'_, '_>) {
        let Ok(hello) = ClientHello::parse(fragment.bytes) else {
            return refuse_hello(Alert::DECODE_ERROR, record_sequence, cx);
        };
        if let Err(alert) = self.answer_hello(&hello, fragment, record_sequence as u32, cx) {
            refuse_hello(alert, record_sequence, cx);
        }
    }

    /// Begins a handshake, if we can agree with what the hello offers.
    fn answer_hello(
        &mut self,
        hello: &ClientHello<'_>,
        fragment: &Fragment<'_>,
        record_sequence: u32,
        cx: &mut Context<'_, '_>,
    ) -> Result<(), Alert> {
        let offer = &hello.extensions;
        if !hello.reaches_1_2() {
            return Err(Alert::PROTOCOL_VERSION);
        }
        // RFC 5746 §3.6: the first handshake has nothing to renegotiate.
        if !hello.offers_ours() || offer.renegotiation_info.is_some_and(|info| !info.is_empty()) {
            return Err(Alert::HANDSHAKE_FAILURE);
        }
        if self.config.require_extended_master_secret && !offer.extended_master_secret {
            return Err(Alert::INSUFFICIENT_SECURITY);
        }
        let fragment_code = match offer.max_fragment_length {
            Some(code) if codec::fragment_limit(code).is_none() => return Err(Alert::ILLEGAL_PARAMETER),
            code => code.unwrap_or(0),
        };
        let session = resumable(hello, cx)?;
        if self.table.pending_len() >= self.config.max_handshakes
            && let Some(first) = self.table.first_to_go(cx.path)
        {
            self.fail(first, HandshakeFailure::Evicted, cx.events);
        }
        let format = self.config.cid;
        let peer_cid = format.and(offer.connection_id).and_then(ConnectionId::new);
        self.stained |= session.is_some();
        let mut pending = Box::new(Pending {
            path: cx.path,
            begun: 0,
            random: [0; RANDOM_LEN],
            client_random: *hello.random,
            server_random: [0; 32],
            transcript: Transcript::default(),
            inbound: Inbound::new(fragment.sequence + 1, MAX_CLIENT_MESSAGE),
            flight: Flight::default(),
            plain_next: record_sequence,
            next_message: fragment.sequence,
            sent: 0,
            echoes: 0,
            forged: 0,
            timer: cx.now,
            expires: cx.now.plus(self.config.handshake_lifetime),
            peer_cid,
            extended: offer.extended_master_secret,
            fragment_code,
            session_id: SessionId::default(),
            keys: None,
        });
        cx.env.random.fill(&mut pending.random);
        cx.env.random.fill(&mut pending.server_random);
        pending.session_id = match &session {
            Some(session) => session.id,
            None if cx.env.sessions.is_some() => {
                let mut id = [0; SESSION_ID_LEN];
                cx.env.random.fill(&mut id);
                SessionId::new(&id).unwrap_or_default()
            }
            None => SessionId::default(),
        };
        pending.transcript.add(message::CLIENT_HELLO, fragment.sequence, fragment.bytes);
        let (config, shards, shard) = (&self.config, self.config.shards, self.config.shard);
        let begun = self.table.begin(|index, generation| {
            let tag = Tag { slot: index * shards + shard, generation, random: pending.random };
            let cid = peer_cid.and(format).map(|format| tag.write(format));
            let extensions = Extensions {
                extended_master_secret: pending.extended,
                connection_id: cid.as_ref().map(ServerCid::as_bytes),
                renegotiation_info: hello.signals_renegotiation().then_some(&[]),
                max_fragment_length: (fragment_code != 0).then_some(fragment_code),
                others: false,
            };
            pending.begin(session, extensions, config);
            pending.send_flight(config.mtu, cx.out);
            pending.rearm(config, cx.now);
            pending
        });
        // The capacity is the sum of both bounds, and both are kept: there is a slot.
        let index = begun.ok_or(Alert::INTERNAL_ERROR)?;
        if let Some(pending) = self.table.pending(index) {
            self.timers.insert((pending.timer, index));
        }
        Ok(())
    }

    /// A handshake message in the clear that is no hello.
    pub(super) fn plain_message(&mut self, fragment: &Fragment<'_>, cx: &mut Context<'_, '_>) {
        let Some(index) = self.table.pending_at(cx.path) else { return cx.drop(DropReason::UnknownAssociation) };
        self.accept(index, fragment, 0, cx);
    }

    /// A protected record for a handshake. The keys depend on what came before in the clear, so one that might be the client's `Finished`
    /// and does not open ends it, unless it is from elsewhere; see [`Server::forged`].
    pub(super) fn protected_message(
        &mut self,
        index: u32,
        datagram: &mut [u8],
        header: &RecordHeader,
        cx: &mut Context<'_, '_>,
    ) {
        let Some(pending) = self.table.pending(index) else { return cx.drop(DropReason::UnknownAssociation) };
        // With a CID agreed on, records without one are not for this handshake (RFC 9146 §3), nor before there are keys.
        let fits = pending.has_cid() == (header.content_type == ContentType::Cid);
        let counts = cx.path == pending.path
            && header.content_type != ContentType::Alert
            && header.body.len() >= FINISHED_BODY_LEN;
        let Some(keys) = pending.keys.as_mut().filter(|_| fits) else { return cx.drop(DropReason::Unexpected) };
        // What does not open is overwritten.
        let copy = (counts && keys.may_retry).then(|| datagram[..header.body.end].to_vec());
        let mut opened = keys.protection.open(datagram, header);
        if let (Err(OpenError::Forged), Some(copy)) = (&opened, copy)
            && let Some(mut before) = pending.keys_before(cx.env.random)
        {
            self.stained = true;
            datagram[..copy.len()].copy_from_slice(&copy);
            opened = before.protection.open(datagram, header);
            if opened.is_ok() {
                pending.keys = Some(before);
            }
        }
        let opened = match opened {
            Ok(opened) => opened,
            Err(OpenError::Replayed) => return cx.drop(DropReason::Replayed),
            Err(OpenError::Foreign | OpenError::BadType) => return cx.drop(DropReason::Unexpected),
            Err(OpenError::Forged) => {
                cx.drop(DropReason::BadRecordMac);
                if counts {
                    self.forged(index, cx);
                }
                return;
            }
        };
        match opened.content_type {
            ContentType::Handshake => {
                let mut body = &datagram[opened.text];
                while !body.is_empty() {
                    let Ok((fragment, rest)) = Fragment::parse(body) else { return cx.drop(DropReason::Malformed) };
                    body = rest;
                    self.accept(index, &fragment, header.epoch, cx);
                }
            }
            ContentType::Alert => match Alert::parse(&datagram[opened.text]) {
                Some((AlertLevel::Fatal, alert)) => self.fail(index, HandshakeFailure::Received(alert), cx.events),
                Some((AlertLevel::Warning, Alert::CLOSE_NOTIFY)) => {
                    self.fail(index, HandshakeFailure::Received(Alert::CLOSE_NOTIFY), cx.events);
                }
                _ => cx.drop(DropReason::Unexpected),
            },
            _ => cx.drop(DropReason::Unexpected),
        }
    }

    /// Notes a record that might have been the client's `Finished` and did not open: its key is wrong, or somebody spoofed its address.
    fn forged(&mut self, index: u32, cx: &mut Context<'_, '_>) {
        let Some(pending) = self.table.pending(index) else { return };
        pending.forged += 1;
        if pending.forged >= MAX_FORGED {
            return self.refuse_key(index, cx.out, cx.events);
        }
        let end = cx.now.plus(FORGED_GRACE);
        if pending.forged == 1 && end < pending.timer {
            let before = std::mem::replace(&mut pending.timer, end);
            self.timers.remove(&(before, index));
            self.timers.insert((end, index));
        }
    }

    /// Ends a handshake whose client has another key, or an identity that nobody knows.
    fn refuse_key(&mut self, index: u32, out: &mut Outbox, events: &mut Vec<Event>) {
        if let Some(pending) = self.table.pending(index) {
            send_plain_alert(out, pending.path, u64::from(pending.plain_next), Alert::BAD_RECORD_MAC);
        }
        self.fail(index, HandshakeFailure::Sent(Alert::BAD_RECORD_MAC), events);
    }

    /// Takes a fragment of a handshake under way, and whatever messages it completes.
    fn accept(&mut self, index: u32, fragment: &Fragment<'_>, epoch: u16, cx: &mut Context<'_, '_>) {
        let Some(pending) = self.table.pending(index) else { return cx.drop(DropReason::Unexpected) };
        match pending.inbound.accept(fragment, epoch) {
            Accepted::Old => return cx.drop(DropReason::Duplicate),
            // An identity that is longer than any is one that nobody knows.
            Accepted::TooLong if fragment.kind == message::CLIENT_KEY_EXCHANGE && pending.keys.is_none() => {
                return self.refuse_key(index, cx.out, cx.events);
            }
            Accepted::TooLong | Accepted::Refused => return cx.drop(DropReason::OutOfBounds),
            Accepted::Kept => {}
            Accepted::Whole => {
                if let Err(alert) = self.message(index, fragment.kind, fragment.sequence, epoch, fragment.bytes, cx) {
                    return self.abort(index, alert, cx);
                }
            }
        }
        while let Some(next) = self.table.pending(index).and_then(|pending| pending.inbound.next()) {
            if let Err(alert) = self.message(index, next.kind, next.sequence, next.epoch, &next.body, cx) {
                return self.abort(index, alert, cx);
            }
        }
    }

    /// A whole message, in order.
    fn message(
        &mut self,
        index: u32,
        kind: u8,
        sequence: u16,
        epoch: u16,
        body: &[u8],
        cx: &mut Context<'_, '_>,
    ) -> Result<(), Alert> {
        let Some(pending) = self.table.pending(index) else { return Ok(()) };
        match (kind, epoch, pending.keys.is_some()) {
            (message::CLIENT_KEY_EXCHANGE, 0, false) => {
                let identity = codec::parse_client_key_exchange(body).map_err(|_| Alert::DECODE_ERROR)?;
                pending.transcript.add(kind, sequence, body);
                pending.exchange_keys(identity, cx);
                self.stained = true;
                Ok(())
            }
            (message::FINISHED, 1, true) => self.finish(index, sequence, body, cx),
            _ => Err(Alert::UNEXPECTED_MESSAGE),
        }
    }

    /// The client's `Finished`.
    fn finish(&mut self, index: u32, sequence: u16, body: &[u8], cx: &mut Context<'_, '_>) -> Result<(), Alert> {
        let verify_data = codec::parse_finished(body).map_err(|_| Alert::DECODE_ERROR)?;
        let Some(pending) = self.table.pending(index) else { return Ok(()) };
        let Some(keys) = pending.keys.as_ref() else { return Err(Alert::UNEXPECTED_MESSAGE) };
        if !bool::from(keys.expected.ct_eq(verify_data)) || !keys.genuine {
            return Err(Alert::DECRYPT_ERROR);
        }
        pending.transcript.add(message::FINISHED, sequence, body);
        if self.table.live_len() >= self.config.max_associations
            && let Some(least) = self.table.least_used()
        {
            self.end(least, super::CloseReason::Evicted, cx.events);
        }
        let (has_cid, timer) = self.table.pending(index).map_or((true, cx.now), |p| (p.has_cid(), p.timer));
        self.timers.remove(&(timer, index));
        if !has_cid && let Some(old) = self.table.live_at(cx.path) {
            self.end(old, super::CloseReason::Superseded, cx.events);
        }
        let (config, sessions) = (&self.config, cx.env.sessions);
        let mut established = None;
        self.stained = true;
        self.table.establish(index, |pending| {
            let (association, keys, session) = pending.associate(config, cx.now);
            if let (Some(sessions), Some(session)) = (sessions, session) {
                sessions.insert(session, cx.now);
            }
            established = Some(keys);
            association
        });
        let id = self.id(index);
        if let Some((owner, identity, number, resumed)) = established {
            cx.events.push(Event::Established { id, owner, identity, number, resumed });
        }
        if !self.config.persist {
            self.send_finished(index, cx.out);
        }
        Ok(())
    }

    /// Ends a handshake by an alert of ours: protected if there are keys, since the peer's are then the same.
    fn abort(&mut self, index: u32, alert: Alert, cx: &mut Context<'_, '_>) {
        if let Some(pending) = self.table.pending(index) {
            let body = [AlertLevel::Fatal as u8, alert.0];
            match pending.keys.as_mut() {
                Some(keys) if keys.genuine => {
                    let cid = pending.peer_cid.unwrap_or_default();
                    let sealed = keys.protection.seal(cx.out.buffer(), ContentType::Alert, &body, cid.as_bytes(), 0);
                    debug_assert_eq!(sealed, Ok(()));
                    cx.out.finish(pending.path.into());
                }
                _ => send_plain_alert(cx.out, pending.path, u64::from(pending.plain_next), alert),
            }
        }
        self.fail(index, HandshakeFailure::Sent(alert), cx.events);
    }

    /// An alert in the clear for a handshake. It may be forged, as every message before `Finished` may.
    pub(super) fn plain_alert(&mut self, body: &[u8], cx: &mut Context<'_, '_>) {
        match (self.table.pending_at(cx.path), Alert::parse(body)) {
            (Some(index), Some((AlertLevel::Fatal, alert))) => {
                self.fail(index, HandshakeFailure::Received(alert), cx.events);
            }
            (Some(_), _) => cx.drop(DropReason::Unexpected),
            (None, _) => cx.drop(DropReason::UnknownAssociation),
        }
    }

    /// Ends a handshake without a word.
    pub(super) fn fail(&mut self, index: u32, failure: HandshakeFailure, events: &mut Vec<Event>) {
        if let Some(pending) = self.table.pending(index) {
            // RFC 5246 §7.2.2: a session whose connection met a fatal alert cannot be resumed again.
            let fatal = matches!(failure, HandshakeFailure::Sent(_) | HandshakeFailure::Received(_));
            if fatal && pending.keys.as_ref().is_some_and(|keys| keys.resumed) {
                self.failed_session = Some(pending.session_id);
            }
            let timer = pending.timer;
            self.stained |= pending.keys.is_some();
            self.timers.remove(&(timer, index));
            self.table.remove(index);
            events.push(Event::Failed(failure));
        }
    }

    /// Sends a flight again, or gives up.
    pub(super) fn handshake_timeout(&mut self, index: u32, now: Timestamp, out: &mut Outbox, events: &mut Vec<Event>) {
        let config = &self.config;
        let Some(pending) = self.table.pending(index) else { return };
        if pending.forged > 0 {
            return self.refuse_key(index, out, events);
        }
        if now >= pending.expires || pending.sent - pending.echoes >= config.retransmission.transmissions {
            return self.fail(index, HandshakeFailure::TimedOut, events);
        }
        pending.send_flight(config.mtu, out);
        pending.rearm(config, now);
        let timer = pending.timer;
        self.timers.insert((timer, index));
    }
}

impl Pending {
    /// Writes the first flight: the whole of a full handshake's, or up to `Finished` when a session is resumed.
    fn begin(&mut self, session: Option<Session>, extensions: Extensions<'_>, config: &ServerConfig) {
        let (server_random, session_id) = (self.server_random, self.session_id);
        self.say(message::SERVER_HELLO, |out| {
            ServerHello {
                version: VERSION,
                random: &server_random,
                session_id: session_id.as_bytes(),
                suite: SUITE,
                compression: 0,
                extensions,
            }
            .write(out);
        });
        let Some(session) = session else {
            if !config.identity_hint.is_empty() {
                self.say(message::SERVER_KEY_EXCHANGE, |out| codec::write_psk_vector(out, &config.identity_hint));
            }
            self.say(message::SERVER_HELLO_DONE, |_| ());
            return;
        };
        let keys = self.keys.insert(Box::new(Keys::blank(session.identity.clone(), session.owner, session.number)));
        keys.resumed = true;
        keys.master.copy_from_slice(&session.master_secret);
        let verify_data = crypto::verify_data(&keys.master, Sender::Server, &self.transcript.hash());
        self.flight.push_change_cipher_spec();
        let sequence = self.next_message;
        self.flight.push(message::FINISHED, sequence, true, |out| out.extend_from_slice(&verify_data));
        self.next_message += 1;
        self.transcript.add(message::FINISHED, sequence, &verify_data);
        keys.derive([&self.client_random, &self.server_random], &self.transcript);
    }

    /// Appends an unprotected message to the flight and the transcript.
    fn say(&mut self, kind: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let body = self.flight.push(kind, self.next_message, false, write);
        self.transcript.add(kind, self.next_message, body);
        self.next_message += 1;
    }

    /// `ClientKeyExchange`: looks the key up and derives the rest, in the same steps whether it is known or not.
    fn exchange_keys(&mut self, identity: &[u8], cx: &mut Context<'_, '_>) {
        let mut decoy = [0; 16];
        cx.env.random.fill(&mut decoy);
        let found = cx.env.psks.psk(identity);
        let (owner, number) = found.as_ref().map(|psk| (psk.owner, psk.number)).unwrap_or_default();
        let keys = self.keys.insert(Box::new(Keys::blank(identity.into(), owner, number)));
        keys.genuine = found.is_some();
        keys.may_retry = true;
        keys.previous = found.as_ref().and_then(|psk| psk.previous.clone()).map(Box::new);
        let key = found.as_ref().map_or(&decoy[..], |psk| psk.key.as_bytes());
        keys.agree(key, self.extended, [&self.client_random, &self.server_random], &self.transcript);
        decoy.zeroize();
    }

    /// The keys that the key before makes, or those of a random one, which open nothing.
    fn keys_before(&self, random: &mut dyn Random) -> Option<Box<Keys>> {
        let keys = self.keys.as_ref()?;
        let mut decoy = [0; 16];
        random.fill(&mut decoy);
        let mut before = Box::new(Keys::blank(keys.identity.clone(), keys.owner, keys.number));
        before.genuine = keys.genuine && keys.previous.is_some();
        let key = keys.previous.as_ref().map_or(&decoy[..], |key| key.as_bytes());
        before.agree(key, self.extended, [&self.client_random, &self.server_random], &self.transcript);
        decoy.zeroize();
        Some(before)
    }

    /// What stays of it, after the client's `Finished` is in the transcript: the association but for its keys, whose it is, and, after a
    /// full handshake, the session.
    #[allow(clippy::type_complexity, reason = "three parts that part ways at once")]
    fn associate(
        &mut self,
        config: &ServerConfig,
        now: Timestamp,
    ) -> (Association, (Owner, Box<[u8]>, u64, bool), Option<Session>) {
        let transcript = self.transcript.hash();
        let Some(keys) = self.keys.as_mut() else { unreachable!("a Finished is only accepted once there are keys") };
        let finished = (!keys.resumed)
            .then(|| (self.next_message, crypto::verify_data(&keys.master, Sender::Server, &transcript)));
        let session = (!keys.resumed && !self.session_id.is_empty()).then(|| Session {
            master_secret: *keys.master,
            extended: self.extended,
            id: self.session_id,
            owner: keys.owner,
            identity: keys.identity.clone(),
            number: keys.number,
        });
        let agreed = Agreed {
            protection: Protection::blank(),
            path: self.path,
            owner: keys.owner,
            random: self.random,
            peer_cid: self.peer_cid,
            fragment_code: self.fragment_code,
            plain_next: self.plain_next,
            finished,
        };
        let association = Association::new(agreed, config.persist, config.address_changes, now);
        (association, (keys.owner, std::mem::take(&mut keys.identity), keys.number, keys.resumed), session)
    }
}

/// The session that a hello resumes, if there is one and all agree.
fn resumable(hello: &ClientHello<'_>, cx: &mut Context<'_, '_>) -> Result<Option<Session>, Alert> {
    let Some(id) = SessionId::new(hello.session_id).filter(|id| !id.is_empty()) else { return Ok(None) };
    let Some(session) = cx.env.sessions.and_then(|sessions| sessions.get(&id, cx.now)) else { return Ok(None) };
    match (session.extended, hello.extensions.extended_master_secret) {
        // RFC 7627 §5.3: a client that forgot the extension must be refused, one that learnt it gets a new session.
        (true, false) => return Err(Alert::HANDSHAKE_FAILURE),
        (false, true) => return Ok(None),
        _ => {}
    }
    let known = cx
        .env
        .psks
        .psk(&session.identity)
        .is_some_and(|psk| psk.owner == session.owner && psk.number == session.number);
    Ok(known.then_some(session))
}

/// Answers a hello whose cookie is good by an alert.
fn refuse_hello(alert: Alert, record_sequence: u64, cx: &mut Context<'_, '_>) {
    send_plain_alert(cx.out, cx.path, record_sequence, alert);
    cx.events.push(Event::Failed(HandshakeFailure::Sent(alert)));
}

fn send_verify_request(
    out: &mut Outbox,
    path: CompactPath,
    sequence: u16,
    record_sequence: u64,
    cookie: &[u8; COOKIE_LEN],
) {
    let buffer = out.buffer();
    let len = 3 + COOKIE_LEN;
    record::write_header(buffer, ContentType::Handshake, 0, record_sequence, &[], MESSAGE_HEADER_LEN + len);
    buffer.extend_from_slice(&message_header(message::HELLO_VERIFY_REQUEST, len, sequence, 0, len));
    // RFC 6347 §4.2.1: the version here is not the negotiated one; 1.0 is what it recommends.
    buffer.extend_from_slice(&record::VERSION_1_0);
    buffer.push(COOKIE_LEN as u8);
    buffer.extend_from_slice(cookie);
    out.finish(path.into());
}

fn send_plain_alert(out: &mut Outbox, path: CompactPath, record_sequence: u64, alert: Alert) {
    let buffer = out.buffer();
    record::write_header(buffer, ContentType::Alert, 0, record_sequence, &[], 2);
    buffer.extend_from_slice(&[AlertLevel::Fatal as u8, alert.0]);
    out.finish(path.into());
}

/// The handshakes' timers: when, and which slot.
pub(super) type Timers = BTreeSet<(Timestamp, u32)>;
