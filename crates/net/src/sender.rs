//! Batched send.

use std::array;
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, sendmmsg};

use crate::{BATCH, UdpSocket};

/// Collects datagrams and sends them in batches.
///
/// Datagrams lie one after another in one buffer, which is kept from flush to flush; so in steady state nothing is allocated.
#[derive(Debug, Default)]
pub struct Sender {
    bytes: Vec<u8>,
    queue: Vec<Departure>,
    /// Datagrams of `queue` that are done; zero except within `flush`.
    done: usize,
    headers: Option<Headers>,
}

/// One queued datagram: `bytes[start..end]` of the sender.
#[derive(Debug, Clone, Copy)]
struct Departure {
    start: usize,
    /// `start <= end <= bytes.len()`
    end: usize,
    peer: SocketAddr,
    source: Option<IpAddr>,
}

/// What [`Sender::flush`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub sent: usize,
    /// Datagrams that it refused for a reason of their own (`ECONNREFUSED`, `EPERM`, `ENETUNREACH`, `EMSGSIZE`, `EINVAL` …);
    /// they are gone, as the network loses datagrams.
    pub failed: usize,
    /// What it said of the last of those, as an error number.
    pub error: Option<i32>,
    /// The kernel's queue is full: [`Sender::pending`] datagrams are kept for when the socket is writable.
    pub blocked: bool,
}

/// The kernel's headers, by family and by whether a source address goes with each datagram: an empty control message is not the
/// same as none.
#[derive(Debug)]
enum Headers {
    V4 { plain: MultiHeaders<SockaddrIn>, with_source: MultiHeaders<SockaddrIn> },
    V6 { plain: MultiHeaders<SockaddrIn6>, with_source: MultiHeaders<SockaddrIn6> },
}

impl Headers {
    fn new(v4: bool) -> Headers {
        if v4 {
            Headers::V4 {
                plain: MultiHeaders::preallocate(BATCH, None),
                with_source: MultiHeaders::preallocate(BATCH, Some(nix::cmsg_space!(libc::in_pktinfo))),
            }
        } else {
            Headers::V6 {
                plain: MultiHeaders::preallocate(BATCH, None),
                with_source: MultiHeaders::preallocate(BATCH, Some(nix::cmsg_space!(libc::in6_pktinfo))),
            }
        }
    }

    fn is_v4(&self) -> bool {
        matches!(self, Headers::V4 { .. })
    }
}

impl Sender {
    /// An empty sender. It serves any socket, best always sockets of one family.
    #[must_use]
    pub fn new() -> Sender {
        Sender::default()
    }

    /// Queues a datagram that `write` appends to the buffer it is given (which holds other datagrams: append only), to leave from
    /// `source` if there is one. Gives back what `write` returned.
    #[inline]
    pub fn push<R>(&mut self, peer: SocketAddr, source: Option<IpAddr>, write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let start = self.bytes.len();
        let result = write(&mut self.bytes);
        debug_assert!(self.bytes.len() >= start, "a datagram is appended");
        self.queue.push(Departure { start, end: self.bytes.len(), peer, source });
        result
    }

    /// Datagrams that wait to be sent.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.queue.len() - self.done
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Sends what is queued, in order, until all is sent or the kernel's queue is full.
    ///
    /// # Errors
    ///
    /// Only what makes the socket unusable (`EBADF`, `ENOTSOCK`); everything is kept then.
    pub fn flush(&mut self, socket: &UdpSocket) -> io::Result<Sent> {
        let mut sent = Sent::default();
        if self.queue.is_empty() {
            return Ok(sent);
        }
        let headers = match &mut self.headers {
            Some(headers) if headers.is_v4() == socket.local_addr().is_ipv4() => headers,
            headers => headers.insert(Headers::new(socket.local_addr().is_ipv4())),
        };
        while self.done < self.queue.len() {
            let rest = &self.queue[self.done..];
            // One call sends datagrams that either all name a source or all do not.
            let sourced = rest[0].source.is_some();
            let batch = rest.iter().take(BATCH).take_while(|departure| departure.source.is_some() == sourced).count();
            let mut result = send(socket.as_raw_fd(), headers, &self.bytes, &rest[..batch]);
            if result == Err(Errno::EMSGSIZE)
                && let Some(again) = socket.in_fragments(|| send(socket.as_raw_fd(), headers, &self.bytes, &rest[..1]))
            {
                result = again;
            }
            match result {
                Ok(count) => {
                    self.done += count;
                    sent.sent += count;
                }
                // An error is of the first datagram: of a later one, the call would have said how many it sent.
                Err(Errno::EAGAIN) => {
                    sent.blocked = true;
                    break;
                }
                Err(Errno::EINTR) => {}
                Err(error @ (Errno::EBADF | Errno::ENOTSOCK)) => {
                    self.forget_done();
                    return Err(error.into());
                }
                Err(error) => {
                    self.done += 1;
                    sent.failed += 1;
                    sent.error = Some(error as i32);
                }
            }
        }
        self.forget_done();
        Ok(sent)
    }

    /// As if the kernel had taken the first `n` datagrams and then blocked.
    #[cfg(test)]
    pub(crate) fn done(&mut self, n: usize) {
        self.done = n;
        self.forget_done();
    }

    /// Drops the first `done` datagrams and moves the others to the front of the buffer.
    fn forget_done(&mut self) {
        match self.queue.get(self.done) {
            None => {
                self.queue.clear();
                self.bytes.clear();
            }
            Some(&Departure { start, .. }) => {
                self.queue.drain(..self.done);
                self.bytes.drain(..start);
                for departure in &mut self.queue {
                    departure.start -= start;
                    departure.end -= start;
                }
            }
        }
        self.done = 0;
    }
}

/// Sends `batch`, of which all or none name a source, and says how many datagrams the kernel took.
fn send(fd: RawFd, headers: &mut Headers, bytes: &[u8], batch: &[Departure]) -> Result<usize, Errno> {
    let slices: [[IoSlice<'_>; 1]; BATCH] = array::from_fn(|i| {
        [IoSlice::new(batch.get(i).map_or(&[], |departure| &bytes[departure.start..departure.end]))]
    });
    let slices = &slices[..batch.len()];
    let sourced = batch[0].source.is_some();
    match headers {
        Headers::V4 { plain, with_source } => {
            let peers: [Option<SockaddrIn>; BATCH] = array::from_fn(|i| batch.get(i).and_then(|d| peer_v4(d.peer)));
            let peers = &peers[..batch.len()];
            if !sourced {
                return call(fd, plain, slices, peers, &[]);
            }
            let infos: [libc::in_pktinfo; BATCH] = array::from_fn(|i| source_v4(batch.get(i).and_then(|d| d.source)));
            let sources: [ControlMessage<'_>; BATCH] = array::from_fn(|i| ControlMessage::Ipv4PacketInfo(&infos[i]));
            call(fd, with_source, slices, peers, &sources[..batch.len()])
        }
        Headers::V6 { plain, with_source } => {
            let peers: [Option<SockaddrIn6>; BATCH] =
                array::from_fn(|i| batch.get(i).map(|d| SockaddrIn6::from(peer_v6(d.peer))));
            let peers = &peers[..batch.len()];
            if !sourced {
                return call(fd, plain, slices, peers, &[]);
            }
            let infos: [libc::in6_pktinfo; BATCH] = array::from_fn(|i| source_v6(batch.get(i).and_then(|d| d.source)));
            let sources: [ControlMessage<'_>; BATCH] = array::from_fn(|i| ControlMessage::Ipv6PacketInfo(&infos[i]));
            call(fd, with_source, slices, peers, &sources[..batch.len()])
        }
    }
}

/// One `sendmmsg(2)`. `sources` holds one control message a datagram, or is empty.
fn call<'a, S: SockaddrLike + Copy + 'a>(
    fd: RawFd,
    headers: &'a mut MultiHeaders<S>,
    slices: &'a [[IoSlice<'a>; 1]],
    peers: &[Option<S>],
    sources: &'a [ControlMessage<'a>],
) -> Result<usize, Errno> {
    let taken = Cell::new(0);
    let sources = OneEach { sources, taken: &taken };
    let sent = sendmmsg(fd, headers, slices, peers, sources, MsgFlags::empty())?.count();
    Ok(sent)
}

/// Control messages for `sendmmsg`, which `nix` takes as one list for all datagrams of a call, but asks for anew for each
/// datagram: the n-th time, this is the n-th source alone.
///
/// A batch may therefore leave from as many addresses as it has datagrams. Were the list asked for but once, all would leave from
/// the first address; [`OneEach::as_ref`] counts, and a test sends from different addresses in one batch.
struct OneEach<'a, 'c> {
    sources: &'a [ControlMessage<'a>],
    /// `taken <= sources.len()`
    taken: &'c Cell<usize>,
}

impl<'a> AsRef<[ControlMessage<'a>]> for OneEach<'a, '_> {
    #[inline]
    fn as_ref(&self) -> &[ControlMessage<'a>] {
        let n = self.taken.get();
        self.taken.set(n + 1);
        self.sources.get(n..=n).unwrap_or_default()
    }
}

/// An address for an IPv4 socket; none, which the kernel refuses (`EDESTADDRREQ`), for an IPv6 peer.
fn peer_v4(peer: SocketAddr) -> Option<SockaddrIn> {
    match peer {
        SocketAddr::V4(peer) => Some(peer.into()),
        SocketAddr::V6(_) => None,
    }
}

/// An address for an IPv6 socket, which reaches IPv4 peers by mapped addresses (RFC 4291 §2.5.5.2).
fn peer_v6(peer: SocketAddr) -> SocketAddrV6 {
    match peer {
        SocketAddr::V6(peer) => peer,
        SocketAddr::V4(peer) => SocketAddrV6::new(peer.ip().to_ipv6_mapped(), peer.port(), 0, 0),
    }
}

/// `ipi_spec_dst` is the address to send from; the unspecified one lets the kernel choose.
fn source_v4(source: Option<IpAddr>) -> libc::in_pktinfo {
    let source = match source {
        Some(IpAddr::V4(source)) => source,
        _ => Ipv4Addr::UNSPECIFIED,
    };
    let address = libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) };
    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: libc::in_addr { s_addr: 0 } }
}

fn source_v6(source: Option<IpAddr>) -> libc::in6_pktinfo {
    let source = match source {
        Some(IpAddr::V6(source)) => source,
        Some(IpAddr::V4(source)) => source.to_ipv6_mapped(),
        None => Ipv6Addr::UNSPECIFIED,
    };
    libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 }
}
