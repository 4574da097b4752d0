//! Listening stream sockets.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{GetSockOpt, SetSockOpt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Probes without an answer after which a peer is gone.
const PROBES: u32 = 4;

sockopt_impl!(
    /// `tcp(7)`: a connection is accepted when its first bytes are there.
    DeferAccept,
    Both,
    libc::IPPROTO_TCP,
    libc::TCP_DEFER_ACCEPT,
    u32
);

sockopt_impl!(
    /// What the kernel knows of a TCP socket.
    Info,
    GetOnly,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    libc::tcp_info
);

/// Connections that wait to be accepted.
///
/// # Errors
///
/// What `getsockopt(2)` says.
pub fn accept_queue(listener: &TcpListener) -> io::Result<u32> {
    // Of a listener, this field is the length of its queue (Linux, `tcp_get_info`).
    Ok(Info.get(listener)?.tcpi_unacked)
}

/// How [`tcp_listener`] sets a socket up.
#[derive(Debug, Clone)]
pub struct TcpOptions {
    /// Several listeners share the address and the kernel spreads connections over them (`SO_REUSEPORT`).
    pub reuse_port: bool,
    /// Connections that wait to be accepted. The kernel caps it at `net.core.somaxconn`.
    pub backlog: i32,
    /// An IPv6 listener refuses IPv4 peers.
    pub v6_only: bool,
    /// A connection is accepted when its first bytes are there, or this many seconds have passed (`TCP_DEFER_ACCEPT`): of use
    /// where the client speaks first. One that stays silent is then the kernel's, at less than it costs a server. 0 accepts at
    /// once.
    pub defer_seconds: u32,
}

impl Default for TcpOptions {
    fn default() -> TcpOptions {
        // 4,096 is the kernel's own cap (`net.core.somaxconn`) since Linux 5.4. A fleet that reconnects at once waits there
        // and not in retransmitted SYNs, which take a second each.
        TcpOptions { reuse_port: false, backlog: 4_096, v6_only: false, defer_seconds: 0 }
    }
}

/// A bound, listening, non-blocking socket. `SO_REUSEADDR` is on, so a restarted server need not wait for the connections of
/// the one before it to leave TIME-WAIT (RFC 9293 §3.6.1).
///
/// # Errors
///
/// What the system says: the address is in use or not of this host, or a limit is reached.
pub fn tcp_listener(addr: SocketAddr, options: &TcpOptions) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(options.v6_only)?;
    }
    // It is inherited by accepted sockets (Linux), which so cost no system call each. An answer is written whole: to hold a small
    // one back for the peer's acknowledgement (RFC 896) would add that much to its latency.
    socket.set_tcp_nodelay(true)?;
    if options.defer_seconds > 0 {
        DeferAccept.set(&socket, &options.defer_seconds)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(options.backlog)?;
    Ok(socket.into())
}

/// Has the kernel ask an idle peer for a sign of life (`SO_KEEPALIVE`), where the protocol above does not: one that is gone without a word is
/// noticed within half an hour, and one that reports every ten minutes is never asked.
///
/// When, and how soon again, differs with `spread`, which is any number. The kernel's timers of many connections that fell idle together
/// fire together, and over loopback or between containers what of such a burst is above `net.core.netdev_max_backlog` is lost; were all
/// asked again together, most would be lost again, and in the end so would connections that are well.
///
/// # Errors
///
/// What `setsockopt(2)` says.
pub fn probe_idle(socket: &impl AsFd, spread: u64) -> io::Result<()> {
    // Neighbours differ in both.
    let spread = spread.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(600 + spread % 600))
        .with_interval(Duration::from_secs(30 + spread % 61))
        .with_retries(PROBES);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}
