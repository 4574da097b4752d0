//! Batched receive.

use std::array;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::slice;

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, MultiHeaders, RecvMsg, SockaddrIn, SockaddrIn6, recvmmsg};

use crate::{BATCH, UdpSocket};

/// Buffers start on a cache line, so that parsing one datagram does not share a line with the next.
const ALIGN: usize = 64;

/// A received datagram, in the receiver's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// What was received; the beginning, if `truncated`.
    pub bytes: &'a [u8],
    /// Who sent it.
    pub peer: SocketAddr,
    /// The address of this host that an answer must leave from: the one that it was sent to, unless that is a group's. `None`
    /// if the socket is bound to one address, or the datagram was sent to an IPv6 group.
    pub local: Option<IpAddr>,
    /// It was sent to a group of hosts: multicast or broadcast.
    pub group: bool,
    /// It was longer than the buffer.
    pub truncated: bool,
}

/// Receives datagrams in batches into buffers of its own.
#[derive(Debug)]
pub struct Receiver {
    headers: Headers,
    with_local: bool,
    buffer: Box<[u8]>,
    /// Distance between two buffers; `datagram_bytes <= stride`.
    stride: usize,
    datagram_bytes: usize,
    /// `1..=BATCH`
    batch: usize,
    arrived: Vec<Arrival>,
}

/// What the kernel told about one datagram; its bytes are in the buffer of the same index.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    /// `<= datagram_bytes`
    len: usize,
    truncated: bool,
    peer: SocketAddr,
    local: Option<IpAddr>,
    group: bool,
}

/// The kernel's headers, by family: an address of the exact size is copied, not the 128 bytes of a generic one.
#[derive(Debug)]
enum Headers {
    V4(MultiHeaders<SockaddrIn>),
    V6(MultiHeaders<SockaddrIn6>),
}

impl Headers {
    fn new(v4: bool, batch: usize, with_local: bool) -> Headers {
        if v4 {
            Headers::V4(MultiHeaders::preallocate(batch, with_local.then(|| nix::cmsg_space!(libc::in_pktinfo))))
        } else {
            Headers::V6(MultiHeaders::preallocate(batch, with_local.then(|| nix::cmsg_space!(libc::in6_pktinfo))))
        }
    }
}

impl Receiver {
    /// Buffers for `batch` (at most [`BATCH`]) datagrams of up to `datagram_bytes` each, to be used with `socket` and others of
    /// its family and kind.
    ///
    /// # Panics
    ///
    /// If `batch` or `datagram_bytes` is zero.
    #[must_use]
    pub fn new(socket: &UdpSocket, batch: usize, datagram_bytes: usize) -> Receiver {
        assert!(batch > 0 && datagram_bytes > 0, "a receiver needs room for a datagram");
        let batch = batch.min(BATCH);
        // An odd number of cache lines, so that the beginnings of datagrams do not compete for the same places of a cache.
        let stride = (datagram_bytes.div_ceil(ALIGN) | 1) * ALIGN;
        let with_local = socket.is_wildcard();
        Receiver {
            headers: Headers::new(socket.local_addr().is_ipv4(), batch, with_local),
            with_local,
            buffer: vec![0; stride * batch].into_boxed_slice(),
            stride,
            datagram_bytes,
            batch,
            arrived: Vec::with_capacity(batch),
        }
    }

    /// Receives what has arrived, up to a batch, and says how many. What was received before is gone.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if nothing is there; otherwise what the system says.
    pub fn recv(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.arrived.clear();
        let mut chunks = self.buffer.chunks_exact_mut(self.stride);
        let datagram_bytes = self.datagram_bytes;
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            array::from_fn(|_| [IoSliceMut::new(chunks.next().map_or(&mut [], |chunk| &mut chunk[..datagram_bytes]))]);
        let slices = slices[..self.batch].iter_mut();
        let fd = socket.as_raw_fd();
        let with_local = self.with_local;
        let mut complete = true;
        match &mut self.headers {
            Headers::V4(headers) => {
                for message in recvmmsg(fd, headers, slices, MsgFlags::empty(), None)? {
                    let Some(peer) = message.address else { continue };
                    let local = if with_local { local_of(&message, &mut complete) } else { (None, false) };
                    self.arrived.push(Arrival::new(&message, SocketAddr::V4(peer.into()), local));
                }
            }
            Headers::V6(headers) => {
                for message in recvmmsg(fd, headers, slices, MsgFlags::empty(), None)? {
                    let Some(peer) = message.address else { continue };
                    let local = if with_local { local_of(&message, &mut complete) } else { (None, false) };
                    self.arrived.push(Arrival::new(&message, canonical(peer.into()), local));
                }
            }
        }
        if !complete {
            // `recvmmsg` leaves in each header the control length that the kernel found, and takes it for the room there is the
            // next time. One datagram without its address would cost that slot's addresses for ever.
            self.headers = Headers::new(socket.local_addr().is_ipv4(), self.batch, self.with_local);
        }
        Ok(self.arrived.len())
    }

    /// What the last [`Receiver::recv`] received, in order of arrival.
    #[must_use]
    pub fn datagrams(&self) -> Datagrams<'_> {
        Datagrams { arrived: self.arrived.iter(), buffers: self.buffer.chunks_exact(self.stride) }
    }
}

impl Arrival {
    fn new<S>(message: &RecvMsg<'_, '_, S>, peer: SocketAddr, (local, group): (Option<IpAddr>, bool)) -> Arrival {
        Arrival { len: message.bytes, truncated: message.flags.contains(MsgFlags::MSG_TRUNC), peer, local, group }
    }
}

/// The address of ours that a datagram was sent to, and whether that is a group's, from its control message; clears `complete` if there is none.
fn local_of<S>(message: &RecvMsg<'_, '_, S>, complete: &mut bool) -> (Option<IpAddr>, bool) {
    match message.cmsgs().ok().and_then(|mut messages| messages.next()) {
        // `ipi_spec_dst` and not `ipi_addr`: of a datagram to a group, it is the address of ours to answer from.
        Some(ControlMessageOwned::Ipv4PacketInfo(info)) => {
            let to = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes());
            let ours = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
            (Some(IpAddr::V4(ours)), to.is_multicast() || to.is_broadcast())
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(info)) => {
            let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            // An IPv4 group on a socket of both families comes as a mapped address.
            let group = address.is_multicast() || address.to_canonical().is_multicast();
            ((!group).then(|| address.to_canonical()), group)
        }
        _ => {
            *complete = false;
            (None, false)
        }
    }
}

/// An IPv4 peer of an IPv6 socket under its IPv4 address.
fn canonical(address: SocketAddrV6) -> SocketAddr {
    match address.ip().to_ipv4_mapped() {
        Some(ip) => SocketAddr::V4(SocketAddrV4::new(ip, address.port())),
        None => SocketAddr::V6(address),
    }
}

/// Iterates over what was received; see [`Receiver::datagrams`].
#[derive(Debug, Clone)]
pub struct Datagrams<'a> {
    arrived: slice::Iter<'a, Arrival>,
    buffers: slice::ChunksExact<'a, u8>,
}

impl<'a> Iterator for Datagrams<'a> {
    type Item = Datagram<'a>;

    #[inline]
    fn next(&mut self) -> Option<Datagram<'a>> {
        let arrival = self.arrived.next()?;
        let buffer = self.buffers.next()?;
        Some(Datagram {
            bytes: &buffer[..arrival.len],
            peer: arrival.peer,
            local: arrival.local,
            group: arrival.group,
            truncated: arrival.truncated,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.arrived.size_hint()
    }
}

impl ExactSizeIterator for Datagrams<'_> {}
