//! What brings CoAP messages and takes them back: the requests are handled alike, whichever it is.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tidegate_coap::dedup;
use tidegate_dtls::{AssociationId, Path, Room};
use tidegate_net::{Datagram, Sender, UdpSocket};
use tidegate_record::{DeviceId, MessageKey, Protocol};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use super::secure::Secure;
use crate::frontend::associations::{self, Associations, Elsewhere, UNBOUNDED};
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
    /// A DTLS association, from whichever address.
    Secure(AssociationId),
}

/// Who sent a message, as its association proves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Proven<'a> {
    pub(super) device: &'a DeviceId,
    /// The number of the record that brought it.
    pub(super) sequence: u64,
    /// Where it came from, if that is not where the device was, and if it may be of before the start.
    pub(super) doubted: Option<Elsewhere>,
}

impl Endpoint {
    /// The address, if nothing proves that it is the sender's.
    pub(super) fn unproven(self) -> Option<SocketAddr> {
        match self {
            Endpoint::Plain { peer, .. } => Some(peer),
            Endpoint::Secure(_) => None,
        }
    }

    /// As it is recorded.
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Endpoint::Plain { .. } => Protocol::Coap,
            Endpoint::Secure(_) => Protocol::Coaps,
        }
    }

    /// What is counted of its transport.
    pub(super) fn front(self, metrics: &Metrics) -> &Frontend {
        match self {
            Endpoint::Plain { .. } => &metrics.coap,
            Endpoint::Secure(_) => &metrics.coaps,
        }
    }
}

/// A CoAP message as it came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) bytes: &'a [u8],
    /// It was sent to a group of hosts (RFC 7252 §8).
    pub(super) is_group: bool,
    pub(super) from: Endpoint,
    /// Present if it came by an association.
    pub(super) proven: Option<Proven<'a>>,
}

impl<'a> Message<'a> {
    /// A message that nothing protects.
    pub(super) fn plain(datagram: &Datagram<'a>) -> Message<'a> {
        Message {
            bytes: datagram.bytes,
            is_group: datagram.group,
            from: Endpoint::Plain { peer: datagram.peer, local: datagram.local },
            proven: None,
        }
    }

    /// What tells it apart in its device's ring, besides its message ID ([`dedup`]).
    pub(super) fn scope(&self) -> u64 {
        match self.from {
            Endpoint::Plain { peer, .. } => dedup::scope(peer, self.bytes),
            Endpoint::Secure(id) => associations::scope(id, self.bytes),
        }
    }

    /// The key of the reading that it carries: its scope and a number whose lower 16 bits are its message ID.
    pub(super) fn key(&self, scope: u64, mid: u16) -> MessageKey {
        match self.proven {
            None => MessageKey { scope, number: u64::from(mid) },
            Some(Proven { sequence, .. }) => associations::key(scope, sequence, mid),
        }
    }
}

/// Messages that wait to be sent.
#[derive(Default)]
pub(super) struct Outgoing {
    plain: Sender,
    pub(super) secure: Option<Secure>,
}

impl Outgoing {
    pub(super) fn new(associations: Option<Arc<Associations>>) -> Outgoing {
        Outgoing { plain: Sender::new(), secure: associations.map(Secure::new) }
    }

    /// Queues a message that `write` appends to the buffer it is given (which may hold others: append only).
    #[inline]
    pub(super) fn push<R>(&mut self, to: Endpoint, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        match (to, &mut self.secure) {
            (Endpoint::Plain { peer, local }, _) => self.plain.push(peer, local, write),
            (Endpoint::Secure(id), Some(secure)) => secure.push(id, write),
            (Endpoint::Secure(_), None) => write(&mut Vec::new()),
        }
    }

    /// Queues a message to where a record came from that may be of before the start.
    pub(super) fn push_elsewhere(&mut self, to: AssociationId, path: Path, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(secure) = &mut self.secure {
            secure.push_elsewhere(to, path, write);
        }
    }

    /// How long a message may be.
    pub(super) fn room(&self, to: Endpoint) -> Room {
        match (to, &self.secure) {
            (Endpoint::Secure(id), Some(secure)) => secure.associations.room(id),
            _ => UNBOUNDED,
        }
    }

    /// A confirmable message is under way no more; see [`Secure::ended`].
    pub(super) fn ended(&mut self, to: Endpoint, mid: u16, answered: bool) {
        if let (Endpoint::Secure(id), Some(secure)) = (to, &mut self.secure) {
            secure.ended(id, mid, answered);
        }
    }

    /// Sends all that is queued.
    pub(super) async fn send(&mut self, sockets: &Listening, metrics: &Metrics) -> io::Result<()> {
        if let Some(socket) = &sockets.plain {
            let (sent, failed) = flush(&mut self.plain, socket).await?;
            metrics.datagrams_sent.inc_by(sent);
            metrics.datagrams_failed.inc_by(failed);
        }
        if let (Some(socket), Some(secure)) = (&sockets.secure, &mut self.secure) {
            let (sent, failed) = flush(secure.departing(), socket).await?;
            let metrics = secure.associations.metrics();
            metrics.datagrams_sent.inc_by(sent);
            metrics.datagrams_failed.inc_by(failed);
        }
        Ok(())
    }
}

/// Sends what is queued by `socket`: how many datagrams it took, and how many it refused.
async fn flush(sender: &mut Sender, socket: &AsyncFd<UdpSocket>) -> io::Result<(u64, u64)> {
    let (mut taken, mut failed) = (0, 0);
    while sender.pending() > 0 {
        let sent = sender.flush(socket.get_ref())?;
        taken += sent.sent as u64;
        failed += sent.failed as u64;
        if sent.blocked {
            // Answers are worth waiting for: new requests wait in the socket meanwhile.
            socket.writable().await?.clear_ready();
        }
    }
    Ok((taken, failed))
}

/// A worker's sockets.
pub(super) struct Listening {
    pub(super) plain: Option<AsyncFd<UdpSocket>>,
    pub(super) secure: Option<AsyncFd<UdpSocket>>,
}

/// Waits until `socket` is readable; for ever, if there is none.
pub(super) async fn readable(socket: Option<&AsyncFd<UdpSocket>>) -> io::Result<AsyncFdReadyGuard<'_, UdpSocket>> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}
