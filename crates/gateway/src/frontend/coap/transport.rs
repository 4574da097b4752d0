//! What brings CoAP messages and takes them back: the requests are handled alike, whichever it is.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tidegate_coap::dedup;
use tidegate_net::{Datagram, Sender, UdpSocket};
use tidegate_record::{MessageKey, Protocol};
use tokio::io::unix::AsyncFd;

use crate::metrics::{Frontend, Metrics};

/// Who sent a message: where an answer goes, and within what message IDs are unique (RFC 7252 §4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    /// An address, which anybody may claim to have.
    Plain {
        peer: SocketAddr,
        /// The address of ours that it knows, if the socket has several.
        local: Option<IpAddr>,
    },
}

impl Endpoint {
    /// As it is recorded.
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Endpoint::Plain { .. } => Protocol::Coap,
        }
    }

    /// What is counted of its transport.
    pub(super) fn front(self, metrics: &Metrics) -> &Frontend {
        match self {
            Endpoint::Plain { .. } => &metrics.coap,
        }
    }
}

/// A CoAP message as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    /// The message; its beginning, if `truncated`.
    pub(super) bytes: &'a [u8],
    /// It was longer than the buffer.
    pub(super) truncated: bool,
    /// It was sent to a group of hosts (RFC 7252 §8).
    pub(super) is_group: bool,
    pub(super) from: Endpoint,
}

impl<'a> Message<'a> {
    /// A message that nothing protects.
    pub(super) fn plain(datagram: &Datagram<'a>) -> Message<'a> {
        Message {
            bytes: datagram.bytes,
            truncated: datagram.truncated,
            is_group: datagram.local.is_some_and(|local| local.is_multicast()),
            from: Endpoint::Plain { peer: datagram.peer, local: datagram.local },
        }
    }

    /// What tells it apart in its device's ring, besides its message ID ([`dedup`]).
    pub(super) fn scope(&self) -> u64 {
        match self.from {
            Endpoint::Plain { peer, .. } => dedup::scope(peer, self.bytes),
        }
    }

    /// The key of the reading that it carries: its scope and a number whose lower 16 bits are its message ID.
    pub(super) fn key(&self, scope: u64, mid: u16) -> MessageKey {
        match self.from {
            Endpoint::Plain { .. } => MessageKey { scope, number: u64::from(mid) },
        }
    }
}

/// Messages that wait to be sent.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    plain: Sender,
}

impl Outgoing {
    pub(super) fn new() -> Outgoing {
        Outgoing::default()
    }

    /// Queues a message that `write` appends to the buffer it is given (which may hold others: append only).
    #[inline]
    pub(super) fn push<R>(&mut self, to: Endpoint, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        match to {
            Endpoint::Plain { peer, local } => self.plain.push(peer, local, write),
        }
    }

    /// Sends all that is queued.
    pub(super) async fn send(&mut self, socket: &AsyncFd<UdpSocket>, metrics: &Metrics) -> io::Result<()> {
        while self.plain.pending() > 0 {
            let sent = self.plain.flush(socket.get_ref())?;
            metrics.datagrams_sent.inc_by(sent.sent as u64);
            if sent.failed > 0 {
                metrics.datagrams_failed.inc_by(sent.failed as u64);
            }
            if sent.blocked {
                // Answers are worth waiting for: new requests wait in the socket meanwhile.
                socket.writable().await?.clear_ready();
            }
        }
        Ok(())
    }
}
