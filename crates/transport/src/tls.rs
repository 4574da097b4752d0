//! TLS 1.2 and 1.3, the server's side (RFC 5246, RFC 8446), by rustls with ring.
//!
//! rustls' unbuffered interface works on bytes where the caller has them and keeps none; what an idle connection owns is its keys.
//!
//! # Resumption
//!
//! By tickets (RFC 5077, RFC 8446 §4.6.1), whose keys rotate every six hours and live in this process, and for TLS 1.2 clients without
//! tickets by session IDs, of which a bounded number is remembered. A [new configuration](ServerConfig::load) takes both over from the
//! one before it, unless other client certificates are accepted now: a resumed session is not asked for its certificate again.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ServerSessionMemoryCache, UnbufferedServerConnection, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};
use rustls::{Error, HandshakeKind, RootCertStore};

use crate::certificate;
use crate::client_auth::Verifier;

/// Longest beginning of a handshake message or record that is kept for a stranger. A ClientHello takes some 500 bytes, 1,800 with
/// post-quantum shares; a chain of client certificates a few kilobytes. rustls would take 64 KiB.
const MAX_HANDSHAKE: usize = 32 * 1024;

/// TLS 1.3 tickets a client gets with each handshake. A device uses one at its next connection, where it gets another.
const TICKETS: usize = 1;

/// Room that most of what a handshake sends fits in.
const FLIGHT: usize = 2048;

/// What TLS adds to a record at most (RFC 8446 §5.2), and plaintext in a record.
const RECORD_OVERHEAD: usize = 5 + 256;
const RECORD: usize = 16 * 1024;

/// Whether clients are asked for certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client may present one that is good.
    Optional,
    /// A client without one is refused.
    Required,
}

/// The texts that make a configuration.
#[derive(Debug, Clone, Copy)]
pub struct Pem<'a> {
    /// The server's certificate, then those that lead to its root.
    pub cert: &'a [u8],
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: &'a [u8],
    /// Roots of client certificates, if clients are to present some.
    pub client_ca: Option<(&'a [u8], ClientAuth)>,
}

/// Why a configuration cannot be used: the operator is at fault. What it says never holds a part of a key.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No PEM, or damaged.
    #[error("the {0} is not readable as PEM: {1}")]
    Pem(&'static str, pem::Error),
    /// No certificate in it.
    #[error("there is no certificate in the {0}")]
    Empty(&'static str),
    /// rustls or its verifier does not take it.
    #[error("the {0} cannot be used: {1}")]
    Unusable(&'static str, String),
}

/// What a server shows to clients, and what it remembers of them.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    config: Arc<rustls::ServerConfig>,
    client_ca: Option<(Arc<[u8]>, ClientAuth)>,
    /// When its certificate ends, in seconds since 1970.
    not_after: Option<i64>,
}

impl ServerConfig {
    /// Reads a configuration. `before` is the one that it replaces, if any; `sessions` bounds the session IDs that are
    /// remembered.
    ///
    /// # Errors
    ///
    /// Names what cannot be used, and why.
    pub fn load(pem: Pem<'_>, sessions: usize, before: Option<&ServerConfig>) -> Result<ServerConfig, LoadError> {
        const CERT: &str = "certificate";
        const KEY: &str = "key";
        const CA: &str = "client CA";

        let chain = certificates(pem.cert, CERT)?;
        let key = PrivateKeyDer::from_pem_slice(pem.key).map_err(|error| LoadError::Pem(KEY, error))?;
        let not_after = chain.first().and_then(|certificate| Some(certificate::validity(certificate)?.1));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key_provider = provider.key_provider;
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| LoadError::Unusable(CERT, error.to_string()))?;
        let builder = match pem.client_ca {
            None => builder.with_no_client_auth(),
            Some((ca, auth)) => {
                let ders = certificates(ca, CA)?;
                let mut roots = RootCertStore::empty();
                for root in &ders {
                    roots.add(root.clone()).map_err(|error| LoadError::Unusable(CA, error.to_string()))?;
                }
                let algorithms = provider.signature_verification_algorithms;
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = match auth {
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                    ClientAuth::Required => verifier,
                };
                let verifier = verifier.build().map_err(|error| LoadError::Unusable(CA, error.to_string()))?;
                builder.with_client_cert_verifier(Arc::new(Verifier::new(verifier, &ders, algorithms)))
            }
        };
        let key = key_provider.load_private_key(key).map_err(|error| LoadError::Unusable(KEY, error.to_string()))?;
        // Not rustls' own check, which refuses certificates of X.509 version 1, as `openssl x509 -req` makes them.
        let of_certificate = chain.first().and_then(|certificate| certificate::public_key(certificate));
        if of_certificate.is_none() {
            return Err(LoadError::Unusable(CERT, "it is no X.509 certificate".into()));
        }
        if key.public_key().is_some_and(|public_key| of_certificate != Some(public_key.as_ref())) {
            return Err(LoadError::Unusable(KEY, "it is not that of the certificate".into()));
        }
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))));
        let client_ca = pem.client_ca.map(|(ca, auth)| (Arc::from(ca), auth));
        match before.filter(|before| before.client_ca == client_ca) {
            Some(before) => {
                config.ticketer = before.config.ticketer.clone();
                config.session_storage = before.config.session_storage.clone();
            }
            None => {
                config.ticketer = rustls::crypto::ring::Ticketer::new()
                    .map_err(|error| LoadError::Unusable(KEY, error.to_string()))?;
                config.session_storage = ServerSessionMemoryCache::new(sessions);
            }
        }
        config.send_tls13_tickets = TICKETS;
        Ok(ServerConfig { config: config.into(), client_ca, not_after })
    }

    /// When the server's certificate ends, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        self.not_after
    }
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err(LoadError::Empty(what)),
        found => found.map_err(|error| LoadError::Pem(what, error)),
    }
}

/// Why a TLS connection ended otherwise than in order.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// What rustls says.
    #[error("TLS: {0}")]
    Tls(Error),
    /// A handshake message or record beyond the bound.
    #[error("TLS: a handshake message that is too long")]
    TooLong,
}

impl Fault {
    /// For counters.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let error = match self {
            Fault::TooLong => return "tls_too_long",
            Fault::Tls(error) => error,
        };
        match error {
            Error::InvalidMessage(_) => "tls_malformed",
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => "tls_unexpected",
            Error::AlertReceived(_) => "tls_alert",
            Error::NoCertificatesPresented => "tls_no_certificate",
            Error::InvalidCertificate(_) | Error::UnsupportedNameType => "tls_bad_certificate",
            Error::PeerIncompatible(_) => "tls_incompatible",
            Error::PeerMisbehaved(_) => "tls_misbehaved",
            Error::DecryptError => "tls_decrypt",
            Error::PeerSentOversizedRecord => "tls_oversized",
            _ => "tls_other",
        }
    }
}

/// How a handshake went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// With a signature.
    Full,
    /// From a session that the client had before.
    Resumed,
}

/// One connection.
pub(crate) struct Tls {
    connection: UnbufferedServerConnection,
    /// The beginning of a record or handshake message.
    held: Vec<u8>,
    /// The client said that nothing more comes.
    over: bool,
    closed: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("open", &self.is_open()).field("over", &self.over).finish_non_exhaustive()
    }
}

impl Tls {
    pub(crate) fn new(config: &ServerConfig) -> Option<Tls> {
        // It fails for a configuration that `load` does not make.
        let connection = UnbufferedServerConnection::new(config.config.clone()).ok()?;
        Some(Tls { connection, held: Vec::new(), over: false, closed: false })
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.connection.is_handshaking()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    pub(crate) fn handshake(&self) -> Handshake {
        match self.connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => Handshake::Resumed,
            _ => Handshake::Full,
        }
    }

    /// The name in the client's certificate, if it presented one, which has been verified then.
    pub(crate) fn client_name(&self) -> Option<String> {
        certificate::name(self.connection.peer_certificates()?.first()?)
    }

    /// Decrypts `input` and appends it to `out`; what is to be sent goes to `wire`.
    pub(crate) fn receive(&mut self, input: &mut [u8], out: &mut Vec<u8>, wire: &mut Vec<u8>) -> Result<(), Fault> {
        if self.held.is_empty() {
            let (used, result) = self.process(input, out, wire);
            result?;
            self.held = input[used..].to_vec();
        } else {
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(input);
            let (used, result) = self.process(&mut held, out, wire);
            result?;
            if used < held.len() {
                held.drain(..used);
                self.held = held;
            }
        }
        if !self.is_open() && self.held.len() > MAX_HANDSHAKE {
            return Err(Fault::TooLong);
        }
        Ok(())
    }

    /// Returns how much of `input` is done with.
    fn process(&mut self, input: &mut [u8], out: &mut Vec<u8>, wire: &mut Vec<u8>) -> (usize, Result<(), Fault>) {
        let mut used = 0;
        let mut fault = None;
        loop {
            // After a fault only the alert is wanted that tells the client: rustls must not be shown again what broke it.
            if fault.is_some() && !self.connection.wants_write() {
                return (used, fault.map_or(Ok(()), |error| Err(Fault::Tls(error))));
            }
            let status = self.connection.process_tls_records(&mut input[used..]);
            let mut discard = status.discard;
            let more = match status.state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                out.extend_from_slice(record.payload);
                            }
                            Err(error) => fault = Some(error),
                        }
                    }
                    true
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, wire);
                    true
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    true
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.over = true;
                    true
                }
                Err(error) => {
                    fault.get_or_insert(error);
                    true
                }
                // Nothing to do until more comes. Early data is not accepted, so there is none.
                Ok(_) => false,
            };
            used += discard;
            if !more {
                return (used, fault.map_or(Ok(()), |error| Err(Fault::Tls(error))));
            }
        }
    }

    /// Encrypts `plain` and appends it to `wire`, unless the handshake is not done or the end has been said.
    pub(crate) fn seal(&mut self, plain: &[u8], wire: &mut Vec<u8>) {
        if self.closed || !self.is_open() {
            return;
        }
        let room = plain.len() + (plain.len() / RECORD + 1) * RECORD_OVERHEAD;
        self.write(wire, room, |traffic, room| traffic.encrypt(plain, room));
    }

    /// Appends a closure alert (RFC 8446 §6.1).
    pub(crate) fn finish(&mut self, wire: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.closed, true) && self.is_open() {
            #[expect(
                clippy::redundant_closure_for_method_calls,
                reason = "the method is not general enough in its lifetime"
            )]
            self.write(wire, RECORD_OVERHEAD, |traffic, room| traffic.queue_close_notify(room));
        }
    }

    fn write(
        &mut self,
        wire: &mut Vec<u8>,
        room: usize,
        mut write: impl FnMut(&mut Writing<'_>, &mut [u8]) -> Result<usize, EncryptError>,
    ) {
        // It holds positions in what is held, and must see it each time.
        let mut held = std::mem::take(&mut self.held);
        loop {
            let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(&mut held);
            let done = match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    append(wire, room, |room| match write(&mut traffic, room) {
                        Ok(written) => Ok(written),
                        Err(EncryptError::InsufficientSize(needed)) => Err(Some(needed.required_size)),
                        Err(EncryptError::EncryptExhausted) => Err(None),
                    });
                    true
                }
                // A key update goes first.
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut data, wire);
                    false
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    false
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.over = true;
                    false
                }
                _ => true,
            };
            held.drain(..discard);
            if done {
                self.held = held;
                return;
            }
        }
    }
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, wire: &mut Vec<u8>) {
    append(wire, FLIGHT, |room| match data.encode(room) {
        Ok(written) => Ok(written),
        Err(EncodeError::InsufficientSize(needed)) => Err(Some(needed.required_size)),
        Err(EncodeError::AlreadyEncoded) => Err(None),
    });
}

type Writing<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::server::ServerConnectionData>;

/// Appends what `write` writes into the room it is given, which is made larger if it says by how much: `Err(None)` gives up.
fn append(wire: &mut Vec<u8>, room: usize, mut write: impl FnMut(&mut [u8]) -> Result<usize, Option<usize>>) {
    let start = wire.len();
    let mut room = room;
    loop {
        wire.resize(start + room, 0);
        match write(&mut wire[start..]) {
            Ok(written) => return wire.truncate(start + written),
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => return wire.truncate(start),
        }
    }
}
