//! CoAP in DTLS: what a worker's secure socket brings, and what leaves by it.

use std::collections::HashMap;
use std::sync::Arc;

use tidegate_dtls::{AssociationId, Path};
use tidegate_net::{Datagram, Sender};
use tidegate_session::Table;
use tidegate_state::Ticket;

use super::transport::{Endpoint, Message, Proven};
use crate::frontend::associations::{Associations, Desk, Received};
use crate::frontend::{Device, Now};

/// Bytes of a datagram that are read: the longest text of a record (RFC 5246 §6.2.1) and what protects it. The excess of a
/// longer one cannot be authenticated without it, so such a datagram is dropped.
pub(super) const DATAGRAM: usize = tidegate_dtls::MAX_PLAINTEXT + 64;

/// A worker's end of the associations.
pub(super) struct Secure {
    pub(super) associations: Arc<Associations>,
    pub(super) desk: Desk,
    /// The datagram at hand, decrypted where it lies.
    datagram: Vec<u8>,
    /// The message that is being written.
    text: Vec<u8>,
    sender: Sender,
    /// Confirmable messages under way, by their IDs, to addresses of which nothing shows yet that their devices receive there: an answer
    /// does.
    unproven: HashMap<(AssociationId, u16), Path>,
}

/// Most messages of which it is remembered where they went. At the bound they are
/// forgotten, and the next one sent does as well.
const MAX_UNPROVEN: usize = 16_384;

/// The ID of a confirmable message (RFC 7252 §3).
fn confirmable(message: &[u8]) -> Option<u16> {
    match *message {
        [first, _, high, low, ..] if first & 0x30 == 0 => Some(u16::from_be_bytes([high, low])),
        _ => None,
    }
}

/// What a datagram brought, taken out of [`Secure`] for the time that its messages are handled.
pub(super) struct Opened {
    datagram: Vec<u8>,
    received: Vec<Received>,
}

impl Secure {
    pub(super) fn new(associations: Arc<Associations>) -> Secure {
        Secure {
            associations,
            desk: Desk::new(),
            datagram: Vec::new(),
            text: Vec::new(),
            sender: Sender::new(),
            unproven: HashMap::new(),
        }
    }

    /// Takes a datagram.
    pub(super) fn open(&mut self, datagram: &Datagram<'_>, now: Now, devices: &Table<Device>) -> Opened {
        let Secure { associations, desk, datagram: bytes, .. } = self;
        bytes.clear();
        bytes.extend_from_slice(datagram.bytes);
        let path = Path::new(datagram.peer, associations.locals().number(datagram.local));
        associations.receive(bytes, path, now, devices, desk);
        Opened { datagram: std::mem::take(&mut self.datagram), received: std::mem::take(&mut self.desk.received) }
    }

    /// Gives back what [`open`](Self::open) took out.
    pub(super) fn done(&mut self, opened: Opened) {
        self.datagram = opened.datagram;
        self.desk.received = opened.received;
    }

    /// Seals a message that `write` writes.
    pub(super) fn push<R>(&mut self, to: AssociationId, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.text.clear();
        let result = write(&mut self.text);
        if self.associations.send(to, &self.text, &mut self.desk)
            && let Some(mid) = confirmable(&self.text)
            && let Some(peer) = self.associations.unproven(to)
        {
            self.note(to, mid, peer.path);
        }
        result
    }

    /// Seals a message that `write` writes, to where a record came from that may be of before the start.
    pub(super) fn push_elsewhere(&mut self, to: AssociationId, path: Path, write: impl FnOnce(&mut Vec<u8>)) {
        self.text.clear();
        write(&mut self.text);
        if self.associations.send_elsewhere(to, path, &self.text, &mut self.desk)
            && let Some(mid) = confirmable(&self.text)
        {
            self.note(to, mid, path);
        }
    }

    fn note(&mut self, to: AssociationId, mid: u16, path: Path) {
        if self.unproven.len() >= MAX_UNPROVEN {
            self.unproven.clear();
        }
        self.unproven.insert((to, mid), path);
    }

    /// The confirmable message `mid` is under way no more; with `answered`, its device has it.
    pub(super) fn ended(&mut self, to: AssociationId, mid: u16, answered: bool) {
        if let Some(path) = self.unproven.remove(&(to, mid))
            && answered
        {
            self.associations.proven(to, path);
        }
    }

    /// Finishes the handshakes that are stored up to `durable`.
    pub(super) fn stored(&mut self, durable: Ticket) {
        self.associations.stored(durable, &mut self.desk);
    }

    /// Moves what waits into the sender, which is given.
    pub(super) fn departing(&mut self) -> &mut Sender {
        for (path, bytes) in self.desk.outbox.iter() {
            let source = self.associations.locals().address(path.local);
            self.sender.push(path.peer, source, |out| out.extend_from_slice(bytes));
        }
        self.desk.outbox.clear();
        &mut self.sender
    }
}

impl Opened {
    /// The messages, each with who sent it.
    pub(super) fn messages(&self, associations: &Associations, mut each: impl FnMut(&Message<'_>)) {
        for Received { id, owner, range, sequence, doubted } in &self.received {
            let Some(device) = associations.name_of(owner) else { continue };
            each(&Message {
                bytes: &self.datagram[range.clone()],
                is_group: false,
                from: Endpoint::Secure(*id),
                proven: Some(Proven { device: &device, sequence: *sequence, doubted: *doubted }),
            });
        }
    }
}
