//! What is on the wire: a packet socket on the loopback interface of a network namespace.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use crate::wait::until;

/// The link header that loopback puts before each packet.
const LINK_HEADER: usize = 14;

/// `PACKET_OUTGOING` of `packet(7)`: loopback shows each packet twice, as it leaves and as it arrives.
const OUTGOING: u8 = 4;

const TCP: u8 = 6;

/// Most bytes of a packet: what Ethernet carries.
const MTU: usize = 1500;

/// An IPv4 packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Its length, headers of IP and UDP or TCP included.
    pub len: usize,
    /// It goes to the port that is watched.
    pub to_server: bool,
    /// It carries something: not an acknowledgement of TCP alone.
    pub carries: bool,
    /// It ends a TCP connection's direction.
    pub fin: bool,
}

/// A capture of one port.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
    port: u16,
    packets: Vec<Packet>,
}

impl Capture {
    /// Begins to watch a port of loopback, as whoever may capture in this network.
    #[must_use]
    pub fn of(port: u16) -> Capture {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
            .expect("a packet socket in a network of one's own");
        setsockopt(&socket, sockopt::RcvBuf, &(1 << 20)).expect("a buffer for some hundred packets");
        Capture { socket, port, packets: Vec::new() }
    }

    /// What was captured so far.
    pub fn packets(&mut self) -> &[Packet] {
        let mut frame = vec![0; 1 << 16];
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut frame) {
                Ok((len, Some(from))) if from.pkttype() == OUTGOING => {
                    self.packets.extend(packet(&frame[LINK_HEADER.min(len)..len], self.port));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return &self.packets,
                Err(error) => panic!("the capture ended: {error}"),
            }
        }
    }

    /// Waits until both directions of a TCP connection have ended.
    pub fn until_closed(&mut self) {
        until("both ends say FIN and hear of it", || {
            let packets = self.packets();
            let ends = packets.iter().filter(|packet| packet.fin).count();
            (ends == 2 && packets.last().is_some_and(|packet| !packet.carries)).then_some(())
        });
    }

    /// Bytes of all packets, both ways.
    pub fn bytes(&mut self) -> usize {
        self.packets().iter().map(|packet| packet.len).sum()
    }

    /// How often the client had to wait for the server: something went to it, and something came back.
    pub fn round_trips(&mut self) -> usize {
        let carrying: Vec<_> = self.packets().iter().filter(|packet| packet.carries).collect();
        carrying.windows(2).filter(|two| two[0].to_server && !two[1].to_server).count()
    }
}

/// The IPv4 packet in `bytes`, if it goes to or comes from `port`.
fn packet(bytes: &[u8], port: u16) -> Option<Packet> {
    let (&first, protocol) = (bytes.first()?, *bytes.get(9)?);
    (first >> 4 == 4).then_some(())?;
    let at = usize::from(first & 0xF) * 4;
    let number = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let len = usize::from(number(2)?);
    let (from, to) = (number(at)?, number(at + 2)?);
    (from == port || to == port).then_some(())?;
    assert!(len <= MTU, "a packet of {len} bytes would be several with headers of their own");
    let tcp = (protocol == TCP).then(|| bytes.get(at + 12..at + 14)).flatten();
    let (fin, syn, header) = match tcp {
        Some(&[offset, flags]) => (flags & 1 != 0, flags & 2 != 0, usize::from(offset >> 4) * 4),
        _ => (false, false, 8),
    };
    Some(Packet { len, to_server: to == port, carries: syn || len > at + header, fin })
}
