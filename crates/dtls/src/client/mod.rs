//! The client role: what a device does, for the harness and the tests. Once established it takes [`CLIENT_LEN`] bytes at most, so a
//! million of them fit into one process.
//!
//! Its peer is whoever the caller takes datagrams from; nothing here knows an address, so a client may move at any time.

use std::sync::Arc;

use zeroize::Zeroizing;

use crate::alert::{Alert, AlertLevel};
use crate::cid::ConnectionId;
use crate::crypto::VERIFY_DATA_LEN;
use crate::environment::{Key, MAX_IDENTITY_LEN, Random};
use crate::handshake::codec::fragment_limit;
use crate::handshake::{Fragment, MESSAGE_HEADER_LEN, message, message_header};
use crate::outbox::Outbox;
use crate::protection::{OpenError, Protection};
use crate::record::{self, ContentType, FramingError, MAX_PLAINTEXT, RecordHeader, VERSION, VERSION_1_0};
use crate::server::{CloseReason, DropReason, HandshakeFailure, MAX_RECORDS, Retransmission, SealError};
use crate::session::Session;
use crate::time::Timestamp;

mod handshake;

use handshake::{Handshake, Step};

/// Most bytes of an established client.
pub const CLIENT_LEN: usize = 144;

const _: () = assert!(size_of::<Client>() <= CLIENT_LEN);

/// What many clients have in common.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The CID that the server is to put into its records to us; the empty one asks for CIDs in our records alone, none asks for no CIDs at all.
    pub cid: Option<ConnectionId>,
    /// Whether extended master secret is offered.
    pub extended_master_secret: bool,
    /// Whether a server without it is refused.
    pub require_extended_master_secret: bool,
    /// The code of RFC 6066 §4, 1 to 4 for 512 to 4096 bytes, if the server is to send small records.
    pub max_fragment_length: Option<u8>,
    /// Largest datagram of a handshake; the hello, of some 150 bytes, goes whole all the same.
    pub mtu: usize,
    /// When a flight is sent again.
    pub retransmission: Retransmission,
    /// Pads what is sent with a CID to a multiple of so many bytes; 0 for none.
    pub pad_to: u16,
}

impl Default for ClientConfig {
    fn default() -> Self {
        ClientConfig {
            cid: Some(ConnectionId::EMPTY),
            extended_master_secret: true,
            require_extended_master_secret: false,
            max_fragment_length: None,
            mtu: 1200,
            retransmission: Retransmission::default(),
            pad_to: 0,
        }
    }
}

/// Who a client is.
#[derive(Debug, Clone)]
pub struct Credentials {
    identity: Box<[u8]>,
    key: Key,
}

impl Credentials {
    /// An identity and its key; none if the identity is longer than [`MAX_IDENTITY_LEN`].
    #[must_use]
    pub fn new(identity: &[u8], key: Key) -> Option<Credentials> {
        (identity.len() <= MAX_IDENTITY_LEN).then(|| Credentials { identity: identity.into(), key })
    }
}

/// What a client reports.
#[derive(Debug)]
pub enum ClientEvent {
    /// The handshake is complete.
    Established {
        /// Whether it resumed a session.
        resumed: bool,
        /// Whether our records carry the server's CID.
        cid: bool,
        /// What a later [`Client::connect`] may resume, if the server offers that and the handshake was a full one.
        session: Option<Session>,
    },
    /// Data of the application, decrypted where it lay in the datagram.
    Application {
        /// Where the text lies in the datagram.
        range: std::ops::Range<usize>,
        /// The record's sequence number.
        sequence: u64,
    },
    /// The association is over.
    Closed(CloseReason),
    /// The handshake failed.
    Failed(HandshakeFailure),
    /// A record or the rest of a datagram was dropped.
    Drop(DropReason),
}

/// One client.
#[derive(Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    state: State,
}

enum State {
    Handshaking(Box<Handshake>),
    Established(Established),
    Closed,
}

/// What is left of a handshake.
struct Established {
    protection: Protection,
    plain_next: u32,
    finished_sequence: u16,
    finished: [u8; VERIFY_DATA_LEN],
    /// The server's CID, for what we send.
    peer_cid: ConnectionId,
    /// Whether CIDs were agreed on.
    with_cid: bool,
    fragment_code: u8,
    /// The last flight was ours: a repeated `Finished` asks for it again.
    resumed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Handshaking(_) => "Handshaking",
            State::Established(_) => "Established",
            State::Closed => "Closed",
        })
    }
}

impl Client {
    /// Begins a handshake: the first flight goes to `out`.
    pub fn connect(
        config: &Arc<ClientConfig>,
        credentials: Credentials,
        session: Option<Session>,
        now: Timestamp,
        random: &mut dyn Random,
        out: &mut Outbox<()>,
    ) -> Client {
        let mut client_random = Zeroizing::new([0; 32]);
        random.fill(client_random.as_mut());
        let mut handshake = Handshake::new(credentials, session, *client_random);
        handshake.hello(config, &[], now, out);
        Client { config: Arc::clone(config), state: State::Handshaking(Box::new(handshake)) }
    }

    /// Whether data can be sent.
    #[must_use]
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Established(_))
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Takes a datagram from the server. Records are decrypted where they lie.
    pub fn handle(&mut self, datagram: &mut [u8], now: Timestamp, out: &mut Outbox<()>, events: &mut Vec<ClientEvent>) {
        let cid_len = self.config.cid.map_or(0, |cid| cid.as_bytes().len());
        let mut at = 0;
        for _ in 0..MAX_RECORDS {
            if at == datagram.len() {
                return;
            }
            let header = match RecordHeader::parse(datagram, at, cid_len) {
                Ok(header) => header,
                Err(FramingError::Truncated) => return events.push(ClientEvent::Drop(DropReason::Truncated)),
                Err(FramingError::Malformed) => return events.push(ClientEvent::Drop(DropReason::Malformed)),
                Err(FramingError::UnknownType { end }) => {
                    events.push(ClientEvent::Drop(DropReason::Malformed));
                    at = end;
                    continue;
                }
            };
            at = header.body.end;
            match &mut self.state {
                State::Closed => events.push(ClientEvent::Drop(DropReason::UnknownAssociation)),
                State::Handshaking(_) => self.handshake_record(datagram, &header, now, out, events),
                State::Established(_) => self.established_record(datagram, &header, out, events),
            }
        }
        if at < datagram.len() {
            events.push(ClientEvent::Drop(DropReason::OutOfBounds));
        }
    }

    /// When [`Client::handle_timeout`] wants to be called, if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        match &self.state {
            State::Handshaking(handshake) => Some(handshake.timer()),
            State::Established(_) | State::Closed => None,
        }
    }

    /// Sends a flight again, or gives up.
    pub fn handle_timeout(&mut self, now: Timestamp, out: &mut Outbox<()>, events: &mut Vec<ClientEvent>) {
        if let State::Handshaking(handshake) = &mut self.state
            && now >= handshake.timer()
            && !handshake.send_again(&self.config, now, out)
        {
            self.state = State::Closed;
            events.push(ClientEvent::Failed(HandshakeFailure::TimedOut));
        }
    }

    /// Appends a datagram with `plaintext` to `out`.
    ///
    /// # Errors
    ///
    /// Nothing was appended; see [`SealError`].
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Outbox<()>) -> Result<(), SealError> {
        let pad_to = self.config.pad_to;
        let State::Established(established) = &mut self.state else { return Err(SealError::Unknown) };
        let max = fragment_limit(established.fragment_code).unwrap_or(MAX_PLAINTEXT);
        if plaintext.len() > max {
            return Err(SealError::TooLong { len: plaintext.len(), max });
        }
        established.seal(ContentType::Application, plaintext, pad_to, out)
    }

    /// Ends the association, with a word to the server.
    pub fn close(&mut self, out: &mut Outbox<()>) {
        if let State::Established(established) = &mut self.state {
            // Without numbers left the server has to find out by itself.
            let _ = established.alert(AlertLevel::Warning, Alert::CLOSE_NOTIFY, out);
        }
        self.state = State::Closed;
    }

    /// Sends what a client of ours never says, for tests of what a server does about it.
    #[cfg(test)]
    pub(crate) fn say(&mut self, content_type: ContentType, text: &[u8], out: &mut Outbox<()>) {
        if let State::Established(established) = &mut self.state {
            established.seal(content_type, text, 0, out).unwrap();
        }
    }

    /// Sends a fatal alert in the middle of a handshake, for the same tests.
    #[cfg(test)]
    pub(crate) fn give_up(&mut self, out: &mut Outbox<()>) {
        if let State::Handshaking(handshake) = &mut self.state {
            handshake.alert(Alert::INTERNAL_ERROR, out);
        }
    }

    fn handshake_record(
        &mut self,
        datagram: &mut [u8],
        header: &RecordHeader,
        now: Timestamp,
        out: &mut Outbox<()>,
        events: &mut Vec<ClientEvent>,
    ) {
        let State::Handshaking(handshake) = &mut self.state else { return };
        let version_fits = header.version == VERSION || (header.epoch == 0 && header.version == VERSION_1_0);
        let opened = if !version_fits {
            Err(DropReason::Malformed)
        } else if header.epoch == 0 {
            Ok((header.content_type, header.body.clone()))
        } else {
            handshake.open(&self.config, datagram, header)
        };
        let (content_type, text) = match opened {
            Ok(opened) => opened,
            Err(reason) => return events.push(ClientEvent::Drop(reason)),
        };
        let step = match content_type {
            ContentType::Handshake => {
                handshake.fragments(&self.config, &datagram[text], header.epoch, now, out, events)
            }
            ContentType::ChangeCipherSpec => Ok(Step::Wait),
            ContentType::Alert => match Alert::parse(&datagram[text]) {
                Some((level, alert)) if level == AlertLevel::Fatal || alert == Alert::CLOSE_NOTIFY => {
                    self.state = State::Closed;
                    return events.push(ClientEvent::Failed(HandshakeFailure::Received(alert)));
                }
                _ => return events.push(ClientEvent::Drop(DropReason::Unexpected)),
            },
            ContentType::Application | ContentType::Cid => {
                return events.push(ClientEvent::Drop(DropReason::Unexpected));
            }
        };
        match step {
            Ok(Step::Wait) => {}
            Ok(Step::Done) => {
                let State::Handshaking(handshake) = std::mem::replace(&mut self.state, State::Closed) else { return };
                if let Some((established, session)) = handshake.into_established() {
                    let (resumed, cid) = (established.resumed, !established.peer_cid.is_empty());
                    self.state = State::Established(established);
                    events.push(ClientEvent::Established { resumed, cid, session });
                }
            }
            Err(alert) => {
                handshake.alert(alert, out);
                self.state = State::Closed;
                events.push(ClientEvent::Failed(HandshakeFailure::Sent(alert)));
            }
        }
    }

    fn established_record(
        &mut self,
        datagram: &mut [u8],
        header: &RecordHeader,
        out: &mut Outbox<()>,
        events: &mut Vec<ClientEvent>,
    ) {
        let State::Established(established) = &mut self.state else { return };
        let own = self.config.cid.filter(|_| established.with_cid).unwrap_or_default();
        if header.epoch == 0 || !cid_fits(own, datagram, header) {
            // What is left of the handshake, repeated or late.
            return events.push(ClientEvent::Drop(DropReason::Unexpected));
        }
        let opened = match established.protection.open(datagram, header) {
            Ok(opened) => opened,
            Err(error) => return events.push(ClientEvent::Drop(drop_reason(error))),
        };
        let text = opened.text;
        match opened.content_type {
            ContentType::Application => {
                events.push(ClientEvent::Application { range: text, sequence: header.sequence });
            }
            ContentType::Alert => match Alert::parse(&datagram[text]) {
                Some((_, Alert::CLOSE_NOTIFY)) => {
                    let _ = established.alert(AlertLevel::Warning, Alert::CLOSE_NOTIFY, out);
                    self.state = State::Closed;
                    events.push(ClientEvent::Closed(CloseReason::CloseNotify));
                }
                Some((AlertLevel::Fatal, alert)) => {
                    self.state = State::Closed;
                    events.push(ClientEvent::Closed(CloseReason::Alert(alert)));
                }
                _ => events.push(ClientEvent::Drop(DropReason::Unexpected)),
            },
            ContentType::Handshake => match Fragment::parse(&datagram[text]) {
                Ok((fragment, _)) if fragment.kind == message::FINISHED => {
                    if established.resumed {
                        established.send_finished(out);
                    }
                    events.push(ClientEvent::Drop(DropReason::Duplicate));
                }
                Ok((fragment, _)) if fragment.kind == message::HELLO_REQUEST => {
                    let _ = established.alert(AlertLevel::Warning, Alert::NO_RENEGOTIATION, out);
                    events.push(ClientEvent::Drop(DropReason::Unexpected));
                }
                _ => events.push(ClientEvent::Drop(DropReason::Unexpected)),
            },
            ContentType::ChangeCipherSpec | ContentType::Cid => {
                events.push(ClientEvent::Drop(DropReason::Unexpected));
            }
        }
    }
}

impl Established {
    fn seal(
        &mut self,
        content_type: ContentType,
        text: &[u8],
        pad_to: u16,
        out: &mut Outbox<()>,
    ) -> Result<(), SealError> {
        self.protection
            .seal(out.buffer(), content_type, text, self.peer_cid.as_bytes(), pad_to)
            .map_err(|_| SealError::Exhausted)?;
        out.finish(());
        Ok(())
    }

    fn alert(&mut self, level: AlertLevel, alert: Alert, out: &mut Outbox<()>) -> Result<(), SealError> {
        self.seal(ContentType::Alert, &[level as u8, alert.0], 0, out)
    }

    /// Our last flight of an abbreviated handshake: `ChangeCipherSpec`, `Finished`.
    fn send_finished(&mut self, out: &mut Outbox<()>) {
        let buffer = out.buffer();
        record::write_header(buffer, ContentType::ChangeCipherSpec, 0, u64::from(self.plain_next), &[], 1);
        buffer.push(1);
        self.plain_next = self.plain_next.saturating_add(1);
        let header = message_header(message::FINISHED, VERIFY_DATA_LEN, self.finished_sequence, 0, VERIFY_DATA_LEN);
        let mut text = [0; MESSAGE_HEADER_LEN + VERIFY_DATA_LEN];
        text[..MESSAGE_HEADER_LEN].copy_from_slice(&header);
        text[MESSAGE_HEADER_LEN..].copy_from_slice(&self.finished);
        if self.seal(ContentType::Handshake, &text, 0, out).is_err() {
            // Without it the ChangeCipherSpec goes alone, which says nothing.
            out.finish(());
        }
    }
}

/// Whether a protected record carries our CID, if it must carry one (RFC 9146 §3), and none if not.
fn cid_fits(own: ConnectionId, datagram: &[u8], header: &RecordHeader) -> bool {
    (header.content_type == ContentType::Cid) != own.is_empty() && &datagram[header.cid.clone()] == own.as_bytes()
}

fn drop_reason(error: OpenError) -> DropReason {
    match error {
        OpenError::Replayed => DropReason::Replayed,
        OpenError::Forged => DropReason::BadRecordMac,
        OpenError::Foreign | OpenError::BadType => DropReason::Unexpected,
    }
}
