//! The ceiling: a server that does nothing but receive, turn each confirmable request into an acknowledgement, and send.
//!
//! It answers a CON with an ACK 2.04 and a NON with a NON 2.04, of the same message ID and token, through the same batched system
//! calls as a gateway would, on as many threads and `SO_REUSEPORT` sockets. What a server achieves beside it, in the same run and with the
//! same generator, is a ratio that does not depend on the machine.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::thread::JoinHandle;

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tidegate_net::{BATCH, Options, Receiver, Sender, UdpSocket};

use super::wire::{Answer, Type, empty};

/// Longest request: an Ethernet frame's worth, as a gateway would allow for.
pub(super) const REQUEST_BYTES: usize = 1_500;

/// The kernel's queue of requests, as a gateway would set it: it rides out a stall of 50 ms at 200,000 requests/s.
const RECEIVE_BUFFER: usize = 8 << 20;

/// 2.04 Changed
const CHANGED: u8 = 0x44;

/// A running echo server.
#[derive(Debug)]
pub struct Echo {
    local: SocketAddr,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Echo {
    /// Starts `threads` threads that serve until the process ends.
    ///
    /// # Errors
    ///
    /// The address is in use or not of this host.
    pub fn start(listen: SocketAddr, threads: usize) -> anyhow::Result<Echo> {
        Echo::serving(listen, threads, |_| |socket| serve(&socket))
    }

    /// Starts threads that each do with a socket of its own what `serve` gives for its number.
    pub(super) fn serving<S>(listen: SocketAddr, threads: usize, serve: impl Fn(u32) -> S) -> anyhow::Result<Echo>
    where
        S: FnOnce(UdpSocket) -> anyhow::Result<()> + Send + 'static,
    {
        let options = Options { reuse_port: true, receive_buffer: Some(RECEIVE_BUFFER), ..Options::default() };
        let bind = |addr| UdpSocket::bind(addr, &options).with_context(|| format!("cannot listen on udp {addr}"));
        let first = bind(listen)?;
        let local = first.local_addr();
        let mut sockets = vec![first];
        for _ in 1..threads {
            sockets.push(bind(local)?);
        }
        let start = |(thread, socket)| {
            let serve = serve(thread);
            std::thread::spawn(move || serve(socket))
        };
        Ok(Echo { local, threads: (0..).zip(sockets).map(start).collect() })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits for a thread to fail.
    ///
    /// # Errors
    ///
    /// Why it did.
    pub fn join(self) -> anyhow::Result<()> {
        for thread in self.threads {
            thread.join().expect("an echo thread panicked")?;
        }
        Ok(())
    }
}

fn serve(socket: &UdpSocket) -> anyhow::Result<()> {
    let mut receiver = Receiver::new(socket, BATCH, REQUEST_BYTES);
    let mut sender = Sender::new();
    loop {
        match receiver.recv(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error).context("cannot wait for requests"),
                }
            }
            Err(error) => return Err(error).context("cannot receive requests"),
        }
        for datagram in receiver.datagrams() {
            let Some(request) = Answer::parse(datagram.bytes) else { continue };
            sender.push(datagram.peer, datagram.local, |out| answer(&request, out));
        }
        sender.flush(socket).context("cannot send")?;
    }
}

/// What a bare server says to a request.
pub(crate) fn answer(request: &Answer<'_>, out: &mut Vec<u8>) {
    if request.code == 0 {
        // A ping (RFC 7252 §4.3).
        out.extend_from_slice(&empty(Type::Reset, request.mid));
        return;
    }
    let ty = if request.ty == Type::Confirmable { Type::Acknowledgement } else { Type::NonConfirmable };
    let [first, _, high, low] = empty(ty, request.mid);
    out.extend_from_slice(&[first | request.token.len() as u8, CHANGED, high, low]);
    out.extend_from_slice(request.token);
}
