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

pub mod proxy;

/// Which layers a connection has.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// A PROXY protocol header comes first.
    pub proxy: bool,
}

/// The layers of one connection.
#[derive(Debug)]
pub struct Transport {
    /// Reads the header; `None` if there is none to come.
    proxy: Option<proxy::Reader>,
    /// Whom the header named.
    source: Option<SocketAddr>,
    /// Sealed, and not taken by the socket yet.
    wire: Vec<u8>,
    /// Bytes of `wire` that were taken: `sent <= wire.len()`.
    sent: usize,
    fault: Option<Fault>,
}

/// What the peer did wrong, or was told that it did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No or a broken PROXY protocol header.
    #[error(transparent)]
    Proxy(#[from] proxy::Fault),
}

impl Fault {
    /// For counters: one of a few dozen names.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Fault::Proxy(fault) => fault.name(),
        }
    }
}

impl Transport {
    /// The layers of a connection that has just been accepted.
    #[must_use]
    pub fn new(layers: &Layers) -> Transport {
        Transport {
            proxy: layers.proxy.then(proxy::Reader::default),
            source: None,
            wire: Vec::new(),
            sent: 0,
            fault: None,
        }
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
        let Some(reader) = &mut self.proxy else {
            out.extend_from_slice(input);
            return Ok(());
        };
        if let Some(header) = reader.receive(input)? {
            self.proxy = None;
            self.source = header.source;
            out.extend_from_slice(&header.rest);
        }
        Ok(())
    }

    /// Wraps `plain` and appends it to what is to be sent.
    pub fn seal(&mut self, plain: &[u8]) {
        self.wire.extend_from_slice(plain);
    }

    /// Appends what tells the peer that nothing more comes.
    pub fn close(&mut self) {}

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
    }

    /// Whether the peer has said that nothing more comes.
    #[must_use]
    pub fn is_over(&self) -> bool {
        false
    }

    /// Why the stream is broken, if it is.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Who the peer is according to the load balancer.
    #[must_use]
    pub fn source(&self) -> Option<SocketAddr> {
        self.source
    }
}
