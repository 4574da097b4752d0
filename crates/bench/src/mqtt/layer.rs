//! TLS and WebSocket between a client and its TCP stream.
//!
//! A layer takes what is to be sent whole and keeps what the kernel does not take; what is received comes out decoded. Server
//! certificates are checked if a certificate authority is given. Sessions that may be resumed are shared by the clients of a thread, as
//! many as the server gave out: to the server, it is as if each device kept its own.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, bail};
use base64::Engine as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, NamedGroup, RootCertStore, SignatureScheme,
};

use crate::payload::mix;

/// Bytes that are read at a time: a TLS record and its header.
const READ_BYTES: usize = 17 << 10;

/// Longest answer to a WebSocket handshake.
const MAX_UPGRADE: usize = 8 << 10;

/// Largest frame that a server may send: more than an MQTT packet here.
const MAX_FRAME: u64 = 4 << 20;

/// What is between MQTT and TCP.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// TLS.
    pub tls: Option<TlsClient>,
    /// WebSocket, at this path of this host.
    pub websocket: Option<(String, String)>,
}

/// How clients speak TLS.
#[derive(Debug, Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl TlsClient {
    /// Clients of the server `name`, that trust `ca` (PEM), or any certificate without it.
    ///
    /// # Errors
    ///
    /// The file cannot be read or holds no certificate, or the name is none.
    pub fn new(ca: Option<&Path>, name: &str, resume: bool) -> anyhow::Result<TlsClient> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("no TLS version")?;
        let mut config = match ca {
            Some(file) => {
                let mut roots = RootCertStore::empty();
                let certificates = CertificateDer::pem_file_iter(file)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .with_context(|| format!("cannot read certificates from {}", file.display()))?;
                if roots.add_parsable_certificates(certificates).0 == 0 {
                    bail!("{} holds no certificate", file.display());
                }
                builder.with_root_certificates(roots).with_no_client_auth()
            }
            None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Unchecked(provider)))
                .with_no_client_auth(),
        };
        config.resumption =
            if resume { Resumption::store(Arc::new(Tickets::default())) } else { Resumption::disabled() };
        let name = ServerName::try_from(name.to_owned()).with_context(|| format!("{name} names no TLS server"))?;
        Ok(TlsClient { config: Arc::new(config), name })
    }
}

/// Takes any certificate: a load test is no place to learn about a wrong one.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Tickets kept: one for each connection that the process may have.
const MAX_TICKETS: usize = 1 << 20;

/// Sessions that the server offered to resume. The one of rustls keeps eight a server, which a fleet uses up at once.
#[derive(Debug, Default)]
struct Tickets(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl Tickets {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.kept().group = Some(group);
    }

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept().group
    }

    fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.kept().tls12 = Some(value);
    }

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().tls12.clone()
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.kept().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.tls13.len() < MAX_TICKETS {
            kept.tls13.push_back(value);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().tls13.pop_front()
    }
}

/// The layers of one connection.
#[derive(Debug)]
pub(super) struct Layer {
    tls: Option<Box<ClientConnection>>,
    websocket: Option<WebSocket>,
    /// What is to be sent and has not been given to TLS or to the kernel.
    out: Vec<u8>,
    /// Whether the end of the TLS handshake was told of.
    told: bool,
}

/// The WebSocket of a client (RFC 6455).
#[derive(Debug)]
struct WebSocket {
    upgraded: bool,
    /// What waits for the upgrade.
    held: Vec<u8>,
    /// The beginning of an answer or frame whose end has not arrived.
    tail: Vec<u8>,
    mask: u64,
    accept: String,
}

/// What a handshake turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shaken {
    Full,
    Resumed,
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what.to_owned())
}

impl Layer {
    /// The layers of a connection, unless it has none.
    pub(super) fn new(layers: &Layers, seed: u64) -> io::Result<Option<Box<Layer>>> {
        if layers.tls.is_none() && layers.websocket.is_none() {
            return Ok(None);
        }
        let tls = match &layers.tls {
            None => None,
            Some(TlsClient { config, name }) => {
                let mut connection =
                    ClientConnection::new(Arc::clone(config), name.clone()).map_err(io::Error::other)?;
                connection.set_buffer_limit(None);
                Some(Box::new(connection))
            }
        };
        let mut layer = Layer { tls, websocket: None, out: Vec::new(), told: false };
        if let Some((host, path)) = &layers.websocket {
            let key = [mix(seed).to_le_bytes(), mix(seed ^ 1).to_le_bytes()].concat();
            let key = base64::engine::general_purpose::STANDARD.encode(key);
            layer.out.extend_from_slice(
                format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
                )
                .as_bytes(),
            );
            let accept = accept_of(&key);
            layer.websocket =
                Some(WebSocket { upgraded: false, held: Vec::new(), tail: Vec::new(), mask: mix(seed ^ 2), accept });
        }
        Ok(Some(Box::new(layer)))
    }

    /// Sends bytes, now or later.
    pub(super) fn send(&mut self, stream: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        match &mut self.websocket {
            None => self.out.extend_from_slice(bytes),
            Some(websocket) if !websocket.upgraded => websocket.held.extend_from_slice(bytes),
            Some(websocket) => websocket.frame(BINARY, bytes, &mut self.out),
        }
        self.flush(stream).map(|_| ())
    }

    /// Sends what waits; false if the kernel did not take all of it.
    pub(super) fn flush(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let blocked = |error: &io::Error| error.kind() == ErrorKind::WouldBlock;
        if let Some(tls) = &mut self.tls {
            tls.writer().write_all(&self.out)?;
            self.out.clear();
            while tls.wants_write() {
                match tls.write_tls(&mut stream) {
                    Ok(_) => {}
                    Err(error) if blocked(&error) => return Ok(false),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(true);
        }
        while !self.out.is_empty() {
            match stream.write(&self.out) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(error) if blocked(&error) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether everything was taken by the kernel.
    pub(super) fn is_sent(&self) -> bool {
        self.out.is_empty()
            && self.tls.as_ref().is_none_or(|tls| !tls.wants_write())
            && self.websocket.as_ref().is_none_or(|websocket| websocket.held.is_empty())
    }

    /// The kind of TLS handshake, once, when it is over.
    pub(super) fn shaken(&mut self) -> Option<Shaken> {
        let tls = self.tls.as_ref()?;
        if self.told || tls.is_handshaking() {
            return None;
        }
        self.told = true;
        Some(if tls.handshake_kind() == Some(HandshakeKind::Resumed) { Shaken::Resumed } else { Shaken::Full })
    }

    /// Appends what has arrived to `into`, until there is nothing more; false if the stream has ended.
    pub(super) fn receive(&mut self, mut stream: &TcpStream, into: &mut Vec<u8>) -> io::Result<bool> {
        let mut plain = Vec::new();
        let mut chunk = [0; READ_BYTES];
        let open = loop {
            let read = match &mut self.tls {
                Some(tls) => tls.read_tls(&mut stream),
                None => stream.read(&mut chunk),
            };
            match read {
                Ok(0) => break false,
                Ok(n) => match &mut self.tls {
                    None => plain.extend_from_slice(&chunk[..n]),
                    Some(tls) => {
                        let state = tls.process_new_packets().map_err(|error| wrong(&error.to_string()))?;
                        let start = plain.len();
                        plain.resize(start + state.plaintext_bytes_to_read(), 0);
                        tls.reader().read_exact(&mut plain[start..])?;
                        if state.peer_has_closed() {
                            break false;
                        }
                    }
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        match &mut self.websocket {
            None => into.extend_from_slice(&plain),
            Some(websocket) => websocket.take(&plain, into, &mut self.out)?,
        }
        // Handshakes, tickets and pongs.
        self.flush(stream)?;
        Ok(open)
    }
}

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

impl WebSocket {
    /// Appends a masked frame (RFC 6455 §5.2).
    fn frame(&mut self, opcode: u8, bytes: &[u8], out: &mut Vec<u8>) {
        self.mask = mix(self.mask);
        let mask = (self.mask as u32).to_le_bytes();
        out.push(0x80 | opcode);
        match bytes.len() {
            len @ 0..126 => out.push(0x80 | len as u8),
            len @ 126..65_536 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&mask);
        out.extend(bytes.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }

    /// Decodes what arrived.
    fn take(&mut self, plain: &[u8], into: &mut Vec<u8>, out: &mut Vec<u8>) -> io::Result<()> {
        self.tail.extend_from_slice(plain);
        if !self.upgraded {
            let Some(end) = self.tail.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
                return if self.tail.len() > MAX_UPGRADE {
                    Err(wrong("an endless WebSocket handshake"))
                } else {
                    Ok(())
                };
            };
            let answer = String::from_utf8_lossy(&self.tail[..end]).into_owned();
            let header = |name: &str| {
                answer
                    .lines()
                    .skip(1)
                    .filter_map(|line| line.split_once(':'))
                    .find_map(|(key, value)| key.trim().eq_ignore_ascii_case(name).then(|| value.trim().to_owned()))
            };
            if answer.split(' ').nth(1) != Some("101") {
                return Err(wrong(&format!("WebSocket: {}", answer.lines().next().unwrap_or_default())));
            }
            if header("sec-websocket-accept").as_deref() != Some(&*self.accept) {
                return Err(wrong("WebSocket: a wrong Sec-WebSocket-Accept"));
            }
            self.tail.drain(..end + 4);
            self.upgraded = true;
            let held = std::mem::take(&mut self.held);
            if !held.is_empty() {
                self.frame(BINARY, &held, out);
            }
        }
        let mut at = 0;
        while let Some((opcode, from, to)) = next_frame(&self.tail[at..])? {
            let (from, to) = (at + from, at + to);
            match opcode {
                PING => {
                    let payload = self.tail[from..to].to_vec();
                    self.frame(PONG, &payload, out);
                }
                PONG => {}
                CLOSE => return Err(io::ErrorKind::ConnectionAborted.into()),
                // Data, and what continues it: MQTT knows no frames.
                _ => into.extend_from_slice(&self.tail[from..to]),
            }
            at = to;
        }
        self.tail.drain(..at);
        Ok(())
    }
}

/// Opcode and payload of the first frame, if it is there in full.
fn next_frame(bytes: &[u8]) -> io::Result<Option<(u8, usize, usize)>> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if second & 0x80 != 0 {
        return Err(wrong("WebSocket: a server must not mask its frames"));
    }
    let (len, from) = match second {
        126 => match rest.first_chunk::<2>() {
            Some(len) => (u64::from(u16::from_be_bytes(*len)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(len) => (u64::from_be_bytes(*len), 10),
            None => return Ok(None),
        },
        len => (u64::from(len), 2),
    };
    if len > MAX_FRAME {
        return Err(wrong("WebSocket: a frame too large"));
    }
    let to = from + len as usize;
    Ok((bytes.len() >= to).then_some((first & 0x0f, from, to)))
}

/// What a server must answer to a key (RFC 6455 §4.2.2).
fn accept_of(key: &str) -> String {
    use sha1::Digest as _;
    let digest = sha1::Sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11"));
    base64::engine::general_purpose::STANDARD.encode(digest)
}

/// The host of an address, as TLS and HTTP want it.
pub(crate) fn host_of(target: &str, resolved: SocketAddr) -> String {
    let host = target.rsplit_once(':').map_or(target, |(host, _)| host).trim_matches(['[', ']']);
    if host.is_empty() { resolved.ip().to_string() } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_is_the_one_of_the_rfc() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_are_read_in_pieces_and_written_masked() {
        let mut websocket =
            WebSocket { upgraded: true, held: Vec::new(), tail: Vec::new(), mask: 1, accept: String::new() };
        let mut wire = vec![0x82, 3, 1, 2, 3, 0x89, 1, 9, 0x02, 126, 1, 0];
        wire.extend([7; 256]);
        wire.extend([0x80, 1, 8]);
        let (mut into, mut out) = (Vec::new(), Vec::new());
        for byte in &wire {
            websocket.take(&[*byte], &mut into, &mut out).unwrap();
        }
        assert_eq!(into, [&[1, 2, 3][..], &[7; 256], &[8]].concat());
        // The pong.
        assert_eq!((out[0], out[1], out.len()), (0x8a, 0x81, 7));
        assert_eq!(out[6] ^ out[2], 9);
        assert!(websocket.take(&[0x82, 0x81], &mut into, &mut out).is_err(), "masked by a server");
    }
}
