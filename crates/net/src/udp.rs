//! A non-blocking datagram socket.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use socket2::{Domain, Protocol, Socket, Type};

/// How a [`UdpSocket`] is set up.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Several sockets share the address and the kernel spreads the peers over them by a hash of their address
    /// (`SO_REUSEPORT`): one socket a core.
    pub reuse_port: bool,
    /// Bytes of the kernel's receive queue; `None` keeps the system's default. Raised beyond `net.core.rmem_max` where the
    /// process may (`CAP_NET_ADMIN`); [`UdpSocket::receive_buffer`] tells what was granted.
    pub receive_buffer: Option<usize>,
    /// Bytes of the kernel's send queue, likewise.
    pub send_buffer: Option<usize>,
    /// An IPv6 socket refuses IPv4 peers. Without it, they appear under their IPv4 addresses.
    pub v6_only: bool,
    /// IPv4 datagrams leave whole. A packet that nobody may fragment needs no identification (RFC 6864 §4.1), and choosing one,
    /// in a table that all processors share, is a twentieth of what the kernel does for a datagram. [`Sender`](crate::Sender)
    /// sends the datagrams that are too long for their path in fragments all the same.
    pub whole: bool,
}

/// A bound, non-blocking datagram socket. One bound to a wildcard reports the local address of each datagram.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    whole: bool,
}

impl UdpSocket {
    /// Binds a socket; port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// What the system says: the address is in use or not of this host, or a limit is reached.
    pub fn bind(addr: SocketAddr, options: &Options) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        // A port that the system chooses must be nobody else's: asked by a socket that shares, it may give one that another process of
        // the same user shares already. Those that join are let in as well if it is said afterwards.
        if options.reuse_port && addr.port() != 0 {
            socket.set_reuse_port(true)?;
        }
        if addr.is_ipv6() {
            socket.set_only_v6(options.v6_only)?;
        }
        if let Some(bytes) = options.receive_buffer {
            // Half of it: the kernel doubles what it is told, to account for its own headers.
            if setsockopt(&socket, sockopt::RcvBufForce, &(bytes / 2)).is_err() {
                socket.set_recv_buffer_size(bytes / 2)?;
            }
        }
        if let Some(bytes) = options.send_buffer
            && setsockopt(&socket, sockopt::SndBufForce, &(bytes / 2)).is_err()
        {
            socket.set_send_buffer_size(bytes / 2)?;
        }
        if options.whole && addr.is_ipv4() {
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
        }
        // Before bind: a datagram that arrives first would carry no local address.
        match addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            IpAddr::V6(ip) if ip.is_unspecified() => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            _ => {}
        }
        socket.bind(&addr.into())?;
        if options.reuse_port && addr.port() == 0 {
            socket.set_reuse_port(true)?;
        }
        let local = socket.local_addr()?.as_socket().expect("bound to an IP address");
        Ok(UdpSocket { socket, local, whole: options.whole && addr.is_ipv4() })
    }

    /// The address it is bound to, with the port that was given.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Bytes of the receive queue, as the kernel counts them (each datagram counts with its kernel header).
    ///
    /// # Errors
    ///
    /// What `getsockopt(2)` says.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        self.socket.recv_buffer_size()
    }

    /// Runs `send` while the kernel may fragment what is longer than its path takes; `None` if it always may.
    pub(crate) fn in_fragments<R>(&self, send: impl FnOnce() -> R) -> Option<R> {
        if !self.whole || set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::WANT).is_err() {
            return None;
        }
        let result = send();
        // What was allowed a moment ago; and if not, datagrams leave as they do from every other socket.
        let _ = set_ip_mtu_discover(&self.socket, Ipv4PathMtuDiscovery::DO);
        Some(result)
    }

    /// Whether datagrams carry the local address they came to.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.local.ip().is_unspecified()
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
