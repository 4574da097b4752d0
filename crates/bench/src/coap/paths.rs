//! Where devices send from: source addresses, ports, and how a NAT changes them.
//!
//! A socket bound to a wildcard sends each datagram from the address of its device, `base + index`. Behind a NAT that forgets, a device
//! is given another one: the addresses of a run repeat in blocks, and generation `g` of device `i` is `base + i + g × devices`,
//! through socket `g mod` [`PORTS`], so that both address and port are new. Which device an address belongs to is arithmetic.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::str::FromStr;

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tidegate_net::{Options, Sender, UdpSocket};

use crate::payload::mix;
use crate::scenario::Impairment;

/// The addresses that devices may send from: `base` and those that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceNet {
    base: Ipv4Addr,
    /// How many there are, at least 1.
    span: u32,
}

impl SourceNet {
    /// 127.0.0.0/8 without 127.0.0.0/16, which is left to servers, and without its broadcast address. Linux sends from any of them.
    pub const LOOPBACK: SourceNet = SourceNet { base: Ipv4Addr::new(127, 1, 0, 0), span: 0x7fff_ffff - 0x7f01_0000 };

    /// How many addresses there are.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.span
    }

    /// Never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.span == 0
    }
}

/// Text that is no network of at least four addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a network like 10.64.0.0/10, with a prefix of 1 to 30 bits")]
pub struct NotANet;

impl FromStr for SourceNet {
    type Err = NotANet;

    /// A network in CIDR notation, whose own and broadcast addresses are left out.
    fn from_str(text: &str) -> Result<SourceNet, NotANet> {
        let (address, bits) = text.split_once('/').ok_or(NotANet)?;
        let (address, bits) = (address.parse::<Ipv4Addr>(), bits.parse::<u32>());
        let (Ok(address), Ok(bits @ 1..=30)) = (address, bits) else { return Err(NotANet) };
        let hosts = u32::MAX >> bits;
        let network = u32::from(address) & !hosts;
        Ok(SourceNet { base: Ipv4Addr::from(network + 1), span: hosts - 1 })
    }
}

/// Source ports of devices behind a NAT that forgets.
const PORTS: usize = 2;

/// The kernel's queue of answers, each of which counts with about 800 B: some 80,000 wait there while the generator is not
/// scheduled.
const RECEIVE_BUFFER: usize = 64 << 20;

/// How the NAT in front of devices forgets them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rebinding {
    /// When.
    pub every: Rebind,
    /// Share of the devices that are behind one, `0.0..=1.0`.
    pub share: f64,
}

/// When a device is given a new source address and port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebind {
    /// Before every so many messages, at least 1.
    Messages(u32),
    /// After so many nanoseconds, at least 1.
    Nanoseconds(u64),
}

/// The source addresses of a whole run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    /// Where they are.
    pub(crate) net: SourceNet,
    /// Devices of the run: `1..=net.len()`.
    pub(crate) devices: u32,
}

impl Addresses {
    /// The address of device `index` in its `generation`.
    fn of(self, index: u32, generation: u32) -> IpAddr {
        let blocks = self.net.span / self.devices;
        IpAddr::V4(Ipv4Addr::from(u32::from(self.net.base) + generation % blocks * self.devices + index))
    }

    /// Whether it is the address of device `index` in its `generation`.
    fn is_of(self, address: IpAddr, index: u32, generation: u32) -> bool {
        self.of(index, generation) == address
    }

    /// The device whose address it is, in whichever generation.
    fn index(self, address: IpAddr) -> Option<u32> {
        let IpAddr::V4(address) = address else { return None };
        let offset = u32::from(address).checked_sub(u32::from(self.net.base))?;
        (offset < self.net.span / self.devices * self.devices).then_some(offset % self.devices)
    }
}

/// The sockets of one thread, and who sends from where.
pub(crate) struct Paths {
    ports: Vec<(UdpSocket, Sender)>,
    layout: Layout,
    impaired: Option<Box<Impaired>>,
}

/// Faults that the client adds to a network without any.
struct Impaired {
    impairment: Impairment,
    random: u64,
    lost: u64,
    /// Datagrams under way, the first to leave first: all wait equally long.
    delayed: VecDeque<Departure>,
    /// Where a datagram is written that is delayed or lost.
    scratch: Vec<u8>,
}

struct Departure {
    /// When it leaves; 0 until the time is known, at the next flush.
    at: u64,
    port: usize,
    target: SocketAddr,
    source: Option<IpAddr>,
    bytes: Box<[u8]>,
}

/// How devices share addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Layout {
    /// All devices of the thread send from the socket's own address.
    One,
    /// The devices of the thread share so many addresses in turn.
    Shared { net: SourceNet, sources: u32 },
    /// Each device has its own; that of device 0 of the thread is number `first` of the run.
    Own { addresses: Addresses, first: u32 },
}

impl Paths {
    /// Opens the sockets of a thread, which may be another one.
    pub(crate) fn open(target: SocketAddr, rebinding: bool) -> anyhow::Result<Vec<UdpSocket>> {
        let any = match target {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        let options = Options { receive_buffer: Some(RECEIVE_BUFFER), whole: true, ..Options::default() };
        let open = |_| UdpSocket::bind((any, 0).into(), &options).context("cannot open a UDP socket");
        (0..if rebinding { PORTS } else { 1 }).map(open).collect()
    }

    /// Sends through sockets that were opened before.
    pub(crate) fn new(sockets: Vec<UdpSocket>, layout: Layout, impairment: Impairment) -> Paths {
        let impaired = (!impairment.is_none()).then(|| {
            let random = mix(sockets.first().map_or(0, |socket| u64::from(socket.local_addr().port())));
            Box::new(Impaired { impairment, random, lost: 0, delayed: VecDeque::new(), scratch: Vec::new() })
        });
        Paths { ports: sockets.into_iter().map(|socket| (socket, Sender::new())).collect(), layout, impaired }
    }

    /// Whether the next datagram is one that the client loses.
    pub(crate) fn loses(&mut self) -> bool {
        self.impaired.as_mut().is_some_and(|impaired| impaired.loses())
    }

    /// Datagrams that it lost on their way out since it was last asked.
    pub(crate) fn take_lost(&mut self) -> u64 {
        self.impaired.as_mut().map_or(0, |impaired| std::mem::take(&mut impaired.lost))
    }

    /// Whether datagrams wait before they are sent.
    pub(crate) fn is_delayed(&self) -> bool {
        self.impaired.is_some()
    }

    /// When the next of them leaves.
    pub(crate) fn next_departure(&self) -> Option<u64> {
        self.impaired.as_ref()?.delayed.front().map(|departure| departure.at)
    }

    /// The sockets.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &UdpSocket> {
        self.ports.iter().map(|(socket, _)| socket)
    }

    /// A socket, `0..sockets().count()`.
    pub(crate) fn socket(&self, port: usize) -> &UdpSocket {
        &self.ports[port].0
    }

    /// How many endpoints the `devices` of the thread are.
    pub(crate) fn endpoints(&self, devices: usize) -> usize {
        match self.layout {
            Layout::One => 1,
            Layout::Shared { sources, .. } => sources as usize,
            Layout::Own { .. } => devices,
        }
    }

    /// The endpoint that device `i` of the thread is at, whatever its generation.
    #[inline]
    pub(crate) fn endpoint(&self, i: usize) -> usize {
        match self.layout {
            Layout::One => 0,
            Layout::Shared { sources, .. } => i % sources as usize,
            Layout::Own { .. } => i,
        }
    }

    /// The endpoint that a datagram came to. Without addresses of their own all devices are at the one.
    #[inline]
    pub(crate) fn endpoint_at(&self, local: Option<IpAddr>) -> Option<usize> {
        match (self.layout, local) {
            (Layout::One, _) => Some(0),
            (Layout::Shared { net, sources }, Some(IpAddr::V4(local))) => {
                let endpoint = u32::from(local).checked_sub(u32::from(net.base))?;
                (endpoint < sources).then_some(endpoint as usize)
            }
            (Layout::Own { addresses, first }, Some(local)) => {
                Some(addresses.index(local)?.checked_sub(first)? as usize)
            }
            _ => None,
        }
    }

    /// Whether an address is where device `i` is in its `generation`, and not one that a NAT gave it before.
    pub(crate) fn is_at(&self, i: usize, generation: u32, local: Option<IpAddr>) -> bool {
        match (self.layout, local) {
            (Layout::Own { addresses, first }, Some(local)) => addresses.is_of(local, first + i as u32, generation),
            _ => true,
        }
    }

    /// Queues what `write` appends, from device `i` in its `generation` to `target`.
    #[inline]
    pub(crate) fn push(&mut self, i: usize, generation: u32, target: SocketAddr, write: impl FnOnce(&mut Vec<u8>)) {
        let source = match self.layout {
            Layout::One => None,
            Layout::Shared { net, sources } => {
                Some(IpAddr::V4(Ipv4Addr::from(u32::from(net.base) + i as u32 % sources)))
            }
            Layout::Own { addresses, first } => Some(addresses.of(first + i as u32, generation)),
        };
        let port = generation as usize % self.ports.len();
        match &mut self.impaired {
            None => self.ports[port].1.push(target, source, write),
            Some(impaired) => {
                impaired.scratch.clear();
                write(&mut impaired.scratch);
                if impaired.loses() {
                    impaired.lost += 1;
                } else {
                    let bytes = impaired.scratch[..].into();
                    impaired.delayed.push_back(Departure { at: 0, port, target, source, bytes });
                }
            }
        }
    }

    /// Sends what is queued and need not wait any more; gives the number of datagrams that the kernel refused.
    pub(crate) fn flush(&mut self, now: u64) -> anyhow::Result<u64> {
        if let Some(impaired) = &mut self.impaired {
            let at = now + impaired.impairment.delay;
            impaired
                .delayed
                .iter_mut()
                .rev()
                .take_while(|departure| departure.at == 0)
                .for_each(|departure| departure.at = at);
            while let Some(departure) = impaired.delayed.pop_front_if(|departure| departure.at <= now) {
                let Departure { port, target, source, bytes, .. } = departure;
                self.ports[port].1.push(target, source, |out| out.extend_from_slice(&bytes));
            }
        }
        let mut failed = 0;
        for (socket, sender) in &mut self.ports {
            failed += sender.flush(socket).context("cannot send")?.failed as u64;
        }
        Ok(failed)
    }

    /// Sleeps until something arrives, what is queued can be sent, or the time is over.
    pub(crate) fn wait(&self, wait: std::time::Duration) -> anyhow::Result<()> {
        let polled = |fds: &mut [PollFd<'_>]| match ppoll(fds, Some(TimeSpec::from(wait)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for answers"),
        };
        let interest = |(_, sender): &(UdpSocket, Sender)| {
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, sender.pending() > 0);
            events
        };
        match &self.ports[..] {
            [only] => polled(&mut [PollFd::new(only.0.as_fd(), interest(only))]),
            ports => {
                polled(&mut ports.iter().map(|port| PollFd::new(port.0.as_fd(), interest(port))).collect::<Vec<_>>())
            }
        }
    }
}

impl Impaired {
    fn loses(&mut self) -> bool {
        self.random = mix(self.random);
        f64::from(self.random as u32) < self.impairment.loss * f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_at_each_of_its_addresses_and_no_other_is_there() {
        let net = SourceNet::LOOPBACK;
        for devices in [1, 3, 1_000_000, net.len()] {
            let addresses = Addresses { net, devices };
            let mut seen = std::collections::HashMap::new();
            for generation in [0, 1, 2, 14, 15, 16, 1_000_003] {
                for index in [0, 1, devices / 2, devices - 1] {
                    let index = index.min(devices - 1);
                    let address = addresses.of(index, generation);
                    assert_eq!(addresses.index(address), Some(index), "{devices} devices, generation {generation}");
                    assert_eq!(*seen.entry(address).or_insert(index), index);
                    assert!(address < IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255)));
                }
            }
            assert_eq!(addresses.index(IpAddr::V4(Ipv4Addr::new(127, 0, 255, 255))), None);
        }
        let addresses = Addresses { net, devices: 1_000_000 };
        assert_ne!(addresses.of(5, 0), addresses.of(5, 1));
    }

    #[test]
    fn a_network_is_read_without_its_own_and_broadcast_addresses() {
        let net: SourceNet = "10.64.7.9/30".parse().unwrap();
        assert_eq!((net.base, net.len()), (Ipv4Addr::new(10, 64, 7, 9), 2));
        let net: SourceNet = "10.64.0.0/10".parse().unwrap();
        assert_eq!((net.base, net.len()), (Ipv4Addr::new(10, 64, 0, 1), (1 << 22) - 2));
        for bad in ["", "10.0.0.0", "10.0.0.0/0", "10.0.0.0/31", "::/8", "10.0.0/8"] {
            assert_eq!(bad.parse::<SourceNet>(), Err(NotANet), "{bad}");
        }
    }
}
