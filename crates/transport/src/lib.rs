//! What may stand between a TCP stream and MQTT: the PROXY protocol of a load balancer, TLS, WebSocket.
//!
//! # Constraints
//!
//! - A million connections must fit: a layer owns no buffer while it is idle. What cannot be decoded yet (the beginning of a
//!   record, a frame header) is kept, and let go as soon as the rest of it comes; what could not be sent is kept until it is.
//! - Nothing here reads a socket or a clock. Handshakes have no deadline of their own: whoever drives them has one.
//! - What comes before the layers are [open](Transport::is_open) comes from strangers. Every length in it is bounded.
//!
//! # Operation
//!
//! A connection over plain TCP needs none of this and should have no [`Transport`]. Others are driven like this: feed what
//! was read ([`Transport::receive`]), act on the bytes that it appends, wrap what is to be sent ([`Transport::seal`]); after
//! each of them, write [`Transport::unsent`] and say how much of it was taken ([`Transport::mark_sent`]). A [`Fault`] ends the
//! connection, once `unsent`, which tells the peer why where its protocol has words for it, is sent.

use std::net::SocketAddr;
use std::sync::Arc;

mod certificate;
mod client_auth;
pub mod proxy;
pub mod tls;
pub mod websocket;

#[cfg(test)]
mod tests;

use tls::Tls;
pub use tls::{Handshake, ServerConfig};
use websocket::WebSocket;

/// Which layers a connection has.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// A PROXY protocol header comes first.
    pub proxy: bool,
    /// TLS, with this certificate.
    pub tls: Option<ServerConfig>,
    /// WebSocket, at this path.
    pub websocket: Option<Arc<str>>,
}

/// The layers of one connection.
#[derive(Debug)]
pub struct Transport {
    /// Reads the header; `None` if there is none to come.
    proxy: Option<proxy::Reader>,
    tls: Option<Tls>,
    websocket: Option<WebSocket>,
    /// Whom the PROXY protocol header named.
    source: Option<SocketAddr>,
    /// Sealed, and not taken by the socket yet.
    wire: Vec<u8>,
    /// Bytes of `wire` that were taken: `sent <= wire.len()`.
    sent: usize,
    fault: Option<Fault>,
}

/// What the peer did wrong, or was told that it did.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// No or a broken PROXY protocol header.
    #[error(transparent)]
    Proxy(#[from] proxy::Fault),
    /// A broken TLS handshake or record.
    #[error(transparent)]
    Tls(#[from] tls::Fault),
    /// A bad request for a WebSocket, or a broken frame.
    #[error(transparent)]
    WebSocket(#[from] websocket::Fault),
}

impl Fault {
    /// For counters: one of a few dozen names.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Proxy(fault) => fault.name(),
            Fault::Tls(fault) => fault.name(),
            Fault::WebSocket(fault) => fault.name(),
        }
    }
}

impl Transport {
    /// The layers of a connection that has just been accepted; `None` if TLS cannot begin, which is then no reason to go on
    /// without.
    #[must_use]
    pub fn new(layers: &Layers) -> Option<Transport> {
        let tls = match &layers.tls {
            Some(config) => Some(Tls::new(config)?),
            None => None,
        };
        Some(Transport {
            proxy: layers.proxy.then(proxy::Reader::default),
            tls,
            websocket: layers.websocket.clone().map(WebSocket::new),
            source: None,
            wire: Vec::new(),
            sent: 0,
            fault: None,
        })
    }

    /// Takes what was read from the socket and appends to `out` what is in it for the layer above.
    ///
    /// # Errors
    ///
    /// The stream is over; what was appended to `out` before the fault is good. Later calls say the same.
    pub fn receive(&mut self, input: &mut [u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let result = self.unwrap(input, out);
        if let Err(fault) = &result {
            self.fault = Some(fault.clone());
        }
        result
    }

    fn unwrap(&mut self, input: &mut [u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        let mut behind_header;
        let mut input = input;
        if let Some(reader) = &mut self.proxy {
            let Some(header) = reader.receive(input)? else { return Ok(()) };
            self.proxy = None;
            self.source = header.source;
            behind_header = header.rest;
            input = &mut behind_header;
        }
        let start = out.len();
        // What TLS decrypted before a fault is good for the layer above.
        let decrypted = match &mut self.tls {
            Some(tls) => tls.receive(input, out, &mut self.wire),
            None => {
                out.extend_from_slice(input);
                Ok(())
            }
        };
        if let Some(websocket) = &mut self.websocket
            && out.len() > start
        {
            match &mut self.tls {
                None => {
                    let unsent = self.wire.len() - self.sent;
                    websocket.receive(out, start, &mut self.wire, unsent)?;
                }
                Some(tls) => {
                    let mut answers = Vec::new();
                    let result = websocket.receive(out, start, &mut answers, self.wire.len() - self.sent);
                    if !answers.is_empty() {
                        tls.seal(&answers, &mut self.wire);
                    }
                    result?;
                }
            }
        }
        Ok(decrypted?)
    }

    /// Wraps `plain` and appends it to what is to be sent.
    pub fn seal(&mut self, plain: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        match (&mut self.tls, &self.websocket) {
            (None, None) => self.wire.extend_from_slice(plain),
            (Some(tls), None) => tls.seal(plain, &mut self.wire),
            (None, Some(websocket)) => {
                if websocket.seal(plain.len(), &mut self.wire) {
                    self.wire.extend_from_slice(plain);
                }
            }
            (Some(tls), Some(websocket)) => {
                let mut frame = Vec::with_capacity(websocket::MAX_SERVER_HEADER + plain.len());
                if websocket.seal(plain.len(), &mut frame) {
                    frame.extend_from_slice(plain);
                    tls.seal(&frame, &mut self.wire);
                }
            }
        }
    }

    /// Appends what tells the peer that nothing more comes.
    pub fn close(&mut self) {
        if self.fault.is_some() {
            return;
        }
        if let Some(websocket) = &mut self.websocket {
            let mut frame = Vec::new();
            websocket.finish(&mut frame);
            match &mut self.tls {
                Some(tls) if !frame.is_empty() => tls.seal(&frame, &mut self.wire),
                _ => self.wire.append(&mut frame),
            }
        }
        if let Some(tls) = &mut self.tls {
            tls.finish(&mut self.wire);
        }
    }

    /// What is to be written to the socket.
    #[must_use]
    pub fn unsent(&self) -> &[u8] {
        &self.wire[self.sent..]
    }

    /// The socket took so many bytes of [`unsent`](Self::unsent).
    pub fn mark_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        debug_assert!(self.sent <= self.wire.len());
        if self.sent >= self.wire.len() {
            self.wire = Vec::new();
            self.sent = 0;
        }
    }

    /// Whether every handshake is done.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.proxy.is_none()
            && self.tls.as_ref().is_none_or(Tls::is_open)
            && self.websocket.as_ref().is_none_or(WebSocket::is_open)
    }

    /// Whether the peer has said that nothing more comes.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.tls.as_ref().is_some_and(Tls::is_over) || self.websocket.as_ref().is_some_and(WebSocket::is_over)
    }

    /// Why the stream is broken, if it is.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// How the TLS handshake went, if there is TLS.
    #[must_use]
    pub fn handshake(&self) -> Option<Handshake> {
        self.tls.as_ref().map(Tls::handshake)
    }

    /// The name in the client's certificate, which has been verified: its first DNS name or URI, else its common name. `None` if it
    /// presented none.
    #[must_use]
    pub fn client_name(&self) -> Option<String> {
        self.tls.as_ref()?.client_name()
    }

    /// Who the peer is according to the load balancer.
    #[must_use]
    pub fn source(&self) -> Option<SocketAddr> {
        self.source
    }
}
