//! Batched datagram I/O and socket set-up: what every listener and load generator of Tidegate stands on.
//!
//! # Constraints
//!
//! - A datagram must cost little more than the kernel's own work on it: one `recvmmsg(2)` or `sendmmsg(2)` moves up to
//!   [`BATCH`] datagrams, nothing is allocated a datagram once the buffers have grown, and bytes are read where the
//!   kernel wrote them.
//! - A reply leaves from the address that was asked. A socket bound to a wildcard learns that address from `IP_PKTINFO` or
//!   `IPV6_PKTINFO` (RFC 3542 §6) and sends from it; otherwise a host with two addresses answers from the wrong one and
//!   the client, which matches answers by endpoint (RFC 7252 §5.3.2), drops them.
//! - One peer's error is that peer's: a datagram that cannot be sent is counted and skipped, and never delays the others.
//!
//! # Operation
//!
//! Sockets are non-blocking. Wait until one is readable, call [`Receiver::recv`] until it says `WouldBlock`, look at
//! [`Receiver::datagrams`] after each call, put answers into a [`Sender`], and [`Sender::flush`] it once a batch:
//!
//! ```
//! use tidegate_net::{Options, Receiver, Sender, UdpSocket};
//!
//! # fn main() -> std::io::Result<()> {
//! let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), &Options::default())?;
//! let mut receiver = Receiver::new(&socket, 64, 1_500);
//! let mut sender = Sender::new();
//! # let peer = std::net::UdpSocket::bind("127.0.0.1:0")?;
//! # peer.send_to(b"hello", socket.local_addr())?;
//! let received = receiver.recv(&socket)?;
//! assert_eq!(received, 1);
//! for datagram in receiver.datagrams() {
//!     sender.push(datagram.peer, datagram.local, |bytes| bytes.extend_from_slice(datagram.bytes));
//! }
//! let sent = sender.flush(&socket)?;
//! assert_eq!((sent.sent, sent.failed, sent.blocked), (1, 0, false));
//! # Ok(())
//! # }
//! ```
//!
//! [`Receiver`] holds the kernel's message headers, which point at themselves, so it stays on the thread that made it.

mod receiver;
mod sender;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub use receiver::{Datagram, Datagrams, Receiver};
pub use sender::{Sender, Sent};
pub use tcp::{TcpOptions, accept_queue, probe_idle, tcp_listener};
pub use udp::{Options, UdpSocket};

/// Most datagrams in one system call.
///
/// The cost of entering the kernel is below 2 % of the cost of a datagram from about 32 on; at 64 the receive buffers of
/// ordinary datagrams (64 × 1.5 kB) still fit a core's second-level cache.
pub const BATCH: usize = 64;
