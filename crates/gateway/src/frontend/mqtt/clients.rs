//! A worker's clients: connected, or away with a session that waits for them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv, send};
use slab::Slab;
use socket2::Socket;
use tidegate_mqtt::{Connection, Session, Will};
use tidegate_record::DeviceId;
use tidegate_transport::Transport;

use super::READS;
use super::access::Author;
use super::kept::Kept;
use super::listeners::Kind;
use crate::frontend::access::Principal;
use crate::frontend::router::{Arrival, SessionId, Subscriber};

/// Sealed at once: what a socket takes in one call, so that little is kept of what it does not take.
const SEALED_BYTES: usize = 64 * 1024;

const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);

/// Where a client is in the worker's slab.
pub(super) type Slot = usize;

/// One client. There may be a million, hence the test of its size.
pub(super) struct Client {
    /// Tells this client from others that had its slot before.
    pub(super) id: SessionId,
    /// Who it is, once its CONNECT was accepted.
    pub(super) device: Option<DeviceId>,
    /// Who it was found to be, where that is asked for.
    pub(super) principal: Option<Box<Principal>>,
    /// `None` while it is away.
    pub(super) socket: Option<Socket>,
    /// What is between the socket and MQTT; `None` if nothing is.
    pub(super) transport: Option<Box<Transport>>,
    /// What kind of listener it came from last.
    pub(super) kind: Kind,
    pub(super) connection: Connection,
    /// What was read and is not a whole packet yet, or must wait.
    pub(super) tail: Vec<u8>,
    /// What is to be sent.
    pub(super) out: Vec<u8>,
    /// Bytes of `out` that are sent: `sent <= out.len()`.
    pub(super) sent: usize,
    /// Tells its connections apart: a session has one after the other.
    pub(super) connection_number: u32,
    /// Unsent bytes that are counted against the bound of the worker.
    pub(super) accounted: usize,
    /// Subscriptions held in the trie.
    pub(super) subscriptions: u32,
    pub(super) flags: Flags,
    /// The session outlives a restart.
    pub(super) kept: Option<Box<Kept>>,
    /// The second that it is filed for in the deadline wheel, low 32 bits; 0 if it is not. Entries for other seconds are stale.
    pub(super) filed: u32,
    /// What waits for its return.
    pub(super) parked: Option<Box<Parked>>,
}

/// Where a client stands with the worker's lists.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Flags {
    /// In the list of those to be flushed.
    pub(super) dirty: bool,
    /// Epoll is asked whether it can be written to.
    pub(super) wants_write: bool,
    /// Epoll is not asked whether it can be read from.
    pub(super) deaf: bool,
    /// In the list of those that are not read until the log takes readings again.
    pub(super) paused: bool,
    /// It has had a shared subscription, so that the trie is to know whether it is there.
    pub(super) shares: bool,
    /// What is to be sent to it waits for the database.
    pub(super) gated: bool,
    /// Rows were written that what it is sent next must wait for.
    pub(super) changed: bool,
    /// So much waits to be sent to it that messages which may wait do.
    pub(super) congested: bool,
    /// It is behind, and acknowledgements wait for it.
    pub(super) awaited: bool,
    /// It was behind and too slow.
    pub(super) left_behind: bool,
    /// Its handshake is under way: it is in the epoll instance for those.
    pub(super) shaking_hands: bool,
    /// More connect than are admitted: it is to be told so.
    pub(super) turned_away: bool,
    /// Its CONNECT waits for its password to be verified.
    pub(super) verifying: bool,
}

/// What is left of a client that is away.
pub(super) struct Parked {
    /// Flows and queued messages; `None` if there are none.
    pub(super) session: Option<Box<Session>>,
    /// When the session ends, in milliseconds of the steady clock; `None` for never.
    pub(super) expires: Option<u64>,
    /// A will that is not published yet, and when it will be.
    pub(super) will: Option<(Box<Will>, u64)>,
    /// Bytes of its queue that are counted against the bound of the worker.
    pub(super) accounted: usize,
}

impl Parked {
    /// Its flows and queue, made if there are none.
    pub(super) fn session_mut(&mut self) -> &mut Session {
        self.session.get_or_insert_with(|| {
            let mut session = Box::new(Session::new());
            // Every session that outlives its connection is kept.
            session.keep_journal();
            session
        })
    }
}

impl Client {
    fn new(id: SessionId, arrival: Option<Arrival>, connection_number: u32, now: u64) -> Client {
        let turned_away = arrival.as_ref().is_some_and(|arrival| arrival.turned_away);
        let (socket, transport, kind, principal) = match arrival {
            Some(Arrival { socket, transport, kind, principal, .. }) => (Some(socket), transport, kind, principal),
            None => (None, None, Kind::Tcp, None),
        };
        Client {
            id,
            device: None,
            socket,
            transport,
            kind,
            principal,
            connection: Connection::new(now),
            tail: Vec::new(),
            out: Vec::new(),
            sent: 0,
            accounted: 0,
            connection_number,
            subscriptions: 0,
            flags: Flags { turned_away, ..Flags::default() },
            kept: None,
            filed: 0,
            parked: None,
        }
    }

    /// Its name in the subscription trie.
    pub(super) fn subscriber(&self) -> Subscriber {
        self.id.subscriber(self.kept.is_some())
    }

    /// Who it is, for what is published on its behalf.
    pub(super) fn author(&self) -> Author {
        let owner = self.kept.as_ref().and_then(|kept| kept.owner.clone());
        Author { name: self.device.clone(), owner, principal: self.principal.clone() }
    }

    /// The incarnation of its session, if that is kept.
    pub(super) fn incarnation(&self) -> Option<u64> {
        self.kept.as_ref().map(|kept| kept.incarnation)
    }

    /// The device that its readings are from, and whose that is.
    pub(super) fn origin(&self) -> (&str, &str) {
        match (&self.principal, &self.device) {
            (Some(principal), _) => (principal.device.as_str(), &principal.tenant),
            (None, Some(device)) => (device.as_str(), ""),
            (None, None) => ("", ""),
        }
    }

    /// Bytes that wait to be sent.
    pub(super) fn unsent(&self) -> usize {
        self.out.len() - self.sent + self.transport.as_ref().map_or(0, |transport| transport.unsent().len())
    }

    /// What epoll is to tell of it. Of an open connection it tells edges: one that was read dry is not asked again whether it is ready, which
    /// would be half of what epoll costs. So whoever reads leaves nothing unread, or remembers ([`Reactor`](super::reactor::Reactor)).
    pub(super) fn interest(&self) -> EpollEvent {
        let mut flags = EpollFlags::empty();
        flags.set(READS, !self.flags.deaf);
        flags.set(EpollFlags::EPOLLOUT, self.flags.wants_write);
        flags.set(EpollFlags::EPOLLET, !self.flags.shaking_hands);
        EpollEvent::new(flags, self.id.bits())
    }

    /// When somebody has to look at it, in milliseconds of the steady clock.
    pub(super) fn deadline(&self, limits: &tidegate_mqtt::Limits) -> Option<u64> {
        match &self.parked {
            // A client that is not read cannot be blamed for its silence.
            None if self.flags.paused => None,
            None => self.connection.deadline(limits),
            Some(parked) => {
                let will = parked.will.as_ref().map(|(_, at)| *at);
                let message = parked.session.as_ref().and_then(|session| session.next_expiry());
                [parked.expires, will, message].into_iter().flatten().min()
            }
        }
    }

    /// Reads once into `buffer`: `Ok(0)` is the end of the stream, `None` that nothing is there.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(socket) = &self.socket else { return Ok(None) };
        loop {
            match recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(read) => return Ok(Some(read)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether something can be read from it.
    pub(super) fn has_input(&self) -> bool {
        let mut byte = [0];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK;
        self.socket.as_ref().is_some_and(|socket| recv(socket.as_raw_fd(), &mut byte, flags).is_ok_and(|read| read > 0))
    }

    /// The name in its certificate, which was verified, if it came with one.
    pub(super) fn certificate_name(&self) -> Option<String> {
        self.transport.as_ref()?.client_name()
    }

    /// Where it is: according to the load balancer, if there is one, else to the kernel.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        let source = self.transport.as_ref().and_then(|transport| transport.source());
        source.or_else(|| self.socket.as_ref()?.peer_addr().ok()?.as_socket())
    }

    /// Sends what waits: true once all of it is sent.
    pub(super) fn write(&mut self) -> io::Result<bool> {
        let Some(socket) = &self.socket else { return Ok(true) };
        loop {
            if let Some(transport) = &mut self.transport {
                if !write_sealed(socket, transport)? {
                    return Ok(false);
                }
                let end = self.out.len().min(self.sent + SEALED_BYTES);
                if self.sent == end {
                    break;
                }
                transport.seal(&self.out[self.sent..end]);
                self.sent = end;
                continue;
            }
            if self.sent == self.out.len() {
                break;
            }
            match send(socket.as_raw_fd(), &self.out[self.sent..], SEND) {
                Ok(sent) => self.sent += sent,
                Err(Errno::EAGAIN) => {
                    // What is sent is let go once it is the better part: each byte is moved at most once.
                    if self.sent * 2 >= self.out.len() {
                        self.out.drain(..self.sent);
                        self.sent = 0;
                    }
                    return Ok(false);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(true)
    }

    /// Takes what is left to be sent, with the transport's own farewell behind it: the bytes, and how many of them are sent.
    pub(super) fn take_unsent(&mut self) -> (Vec<u8>, usize) {
        let (out, sent) = (std::mem::take(&mut self.out), std::mem::take(&mut self.sent));
        let Some(mut transport) = self.transport.take() else { return (out, sent) };
        if sent < out.len() {
            transport.seal(&out[sent..]);
        }
        transport.close();
        (transport.unsent().to_vec(), 0)
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }
}

/// Sends what the transport has sealed: true once all of it is sent.
fn write_sealed(socket: &Socket, transport: &mut Transport) -> io::Result<bool> {
    while !transport.unsent().is_empty() {
        match send(socket.as_raw_fd(), transport.unsent(), SEND) {
            Ok(sent) => transport.mark_sent(sent),
            Err(Errno::EAGAIN) => return Ok(false),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// All clients of a worker.
pub(crate) struct Clients {
    slab: Slab<Client>,
    worker: usize,
    generation: u32,
}

impl Clients {
    pub(super) fn new(worker: usize) -> Clients {
        Clients { slab: Slab::new(), worker, generation: 0 }
    }

    pub(super) fn insert(&mut self, arrival: Arrival, now: u64) -> Slot {
        self.add(Some(arrival), now)
    }

    /// Adds a client that is away.
    pub(super) fn insert_away(&mut self, device: DeviceId, kept: Kept, parked: Parked, now: u64) -> Slot {
        let slot = self.add(None, now);
        if let Some(client) = self.slab.get_mut(slot) {
            client.device = Some(device);
            client.kept = Some(Box::new(kept));
            client.parked = Some(Box::new(parked));
        }
        slot
    }

    fn add(&mut self, arrival: Option<Arrival>, now: u64) -> Slot {
        self.generation = self.generation.wrapping_add(1);
        let entry = self.slab.vacant_entry();
        let slot = entry.key();
        let id = SessionId::new(self.worker, self.generation, slot);
        entry.insert(Client::new(id, arrival, self.generation, now));
        slot
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Client> {
        self.slab.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Client> {
        self.slab.get_mut(slot)
    }

    /// The client that `id` names, unless it is gone.
    pub(super) fn by_id(&mut self, id: SessionId) -> Option<(Slot, &mut Client)> {
        let slot = id.slot();
        self.slab.get_mut(slot).filter(|client| client.id == id).map(|client| (slot, client))
    }

    pub(super) fn remove(&mut self, slot: Slot) -> Option<Client> {
        self.slab.try_remove(slot)
    }

    /// All slots in use are below it.
    pub(super) fn span(&self) -> usize {
        self.slab.capacity()
    }

    /// Slots in use.
    pub(super) fn slots(&self) -> Vec<Slot> {
        self.slab.iter().map(|(slot, _)| slot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_small() {
        assert!(size_of::<Client>() <= 248, "{} bytes", size_of::<Client>());
    }
}
