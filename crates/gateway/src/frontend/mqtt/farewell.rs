//! Connections that are over for us and not yet for their peers.
//!
//! # Constraints
//!
//! A peer is told why its connection ends, and the answers before that must reach it. A socket that is simply closed while the
//! peer still sends answers that with a reset, which throws away what the peer has not read yet; and a slow peer needs time
//! to take what is there. Meanwhile its session must be free: what is published for it is queued, and it may come back.
//!
//! # Operation
//!
//! So the session ends or is parked at once, and the socket alone stays here: what is left is sent, the sending half is shut
//! down, and what the peer still sends is thrown away, until it closes its half or [`LINGER_MS`] have passed. They are looked at every
//! tick, without epoll. Their number is bounded; beyond it a socket is closed as it is.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use socket2::Socket;

/// Milliseconds that a peer may take to be told and to close its half.
const LINGER_MS: u64 = 5_000;

/// Sockets of a worker that linger: their descriptors are taken from those that the limit of open files reserves.
const MAX_LINGERING: usize = 64;

/// Bytes thrown away at a time: a peer that goes on sending gets no more of our time than this each tick.
const THROWN_AWAY: usize = 64 * 1024;

/// One socket that lingers.
struct Farewell {
    socket: Socket,
    out: Vec<u8>,
    /// Bytes of `out` that are sent: `sent <= out.len()`.
    sent: usize,
    /// Our half is shut down.
    shut: bool,
    until: u64,
}

/// Those of a worker, in the order of their ends.
#[derive(Default)]
pub(super) struct Farewells(Vec<Farewell>);

impl Farewells {
    /// Lets `socket` linger, which is in no epoll set any more, with `out[sent..]` still to be sent.
    pub(super) fn add(&mut self, socket: Socket, out: Vec<u8>, sent: usize, now: u64) {
        let mut farewell = Farewell { socket, out, sent, shut: false, until: now + LINGER_MS };
        if farewell.proceed(&mut [0; 4096]) && self.0.len() < MAX_LINGERING {
            self.0.push(farewell);
        }
    }

    /// Gets on with all of them. `buffer` is scratch.
    pub(super) fn tick(&mut self, buffer: &mut [u8], now: u64) {
        let most = buffer.len().min(THROWN_AWAY);
        self.0.retain_mut(|farewell| now < farewell.until && farewell.proceed(&mut buffer[..most]));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Farewell {
    /// Does what can be done now; false once there is nothing left to wait for.
    fn proceed(&mut self, buffer: &mut [u8]) -> bool {
        let socket = self.socket.as_raw_fd();
        while self.sent < self.out.len() {
            match send(socket, &self.out[self.sent..], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Ok(sent) => self.sent += sent,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return false,
            }
        }
        if self.sent == self.out.len() && !self.shut {
            self.out = Vec::new();
            self.sent = 0;
            self.shut = true;
            if shutdown(socket, Shutdown::Write).is_err() {
                return false;
            }
        }
        !matches!(recv(socket, buffer, MsgFlags::MSG_DONTWAIT), Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener.accept().unwrap().0.into(), peer)
    }

    #[test]
    fn a_peer_that_still_sends_reads_what_it_is_told() {
        let (socket, mut peer) = pair();
        peer.write_all(&[7; 1000]).unwrap();
        let mut farewells = Farewells::default();
        farewells.add(socket, b"bye".to_vec(), 0, 0);
        peer.write_all(&[7; 1000]).unwrap();
        let mut said = Vec::new();
        peer.read_to_end(&mut said).unwrap();
        assert_eq!(said, b"bye");
        farewells.tick(&mut [0; 4096], 1);
        assert!(!farewells.is_empty(), "it may send more");
        drop(peer);
        while !farewells.is_empty() {
            farewells.tick(&mut [0; 4096], 1);
        }
    }

    #[test]
    fn a_peer_that_does_not_end_is_waited_for_in_vain_and_not_long() {
        let (socket, _peer) = pair();
        let mut farewells = Farewells::default();
        farewells.add(socket, vec![1; 100], 0, 10);
        farewells.tick(&mut [0; 64], 10 + LINGER_MS - 1);
        assert!(!farewells.is_empty());
        farewells.tick(&mut [0; 64], 10 + LINGER_MS);
        assert!(farewells.is_empty());
    }

    #[test]
    fn no_more_than_so_many_linger() {
        let mut farewells = Farewells::default();
        let mut peers = Vec::new();
        for _ in 0..MAX_LINGERING + 5 {
            let (socket, peer) = pair();
            farewells.add(socket, Vec::new(), 0, 0);
            peers.push(peer);
        }
        assert_eq!(farewells.0.len(), MAX_LINGERING);
    }
}
