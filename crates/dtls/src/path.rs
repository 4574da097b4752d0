//! Where a peer is, in few bytes.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A peer's address, and by which of our own it reached us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    /// The peer's address.
    pub peer: SocketAddr,
    /// Which of the caller's sockets or local addresses; carried and compared, never looked into. A multi-homed server
    /// needs it to answer from the address that was asked.
    pub local: u8,
}

impl Path {
    /// The path of `peer` over the local address number `local`.
    #[must_use]
    pub fn new(peer: SocketAddr, local: u8) -> Path {
        Path { peer, local }
    }
}

impl From<SocketAddr> for Path {
    fn from(peer: SocketAddr) -> Path {
        Path { peer, local: 0 }
    }
}

/// Bytes of a [`CompactPath`] in an export.
pub(crate) const COMPACT_PATH_LEN: usize = 23;

/// A [`Path`] as an association keeps it: IPv4 is mapped into IPv6, the flow label is dropped, the scope is kept since a
/// link-local address means nothing without it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CompactPath {
    ip: [u8; 16],
    port: [u8; 2],
    scope: [u8; 4],
    local: u8,
}

/// The addresses that somebody who has one of them may have, too: one of IPv4, a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix([u8; 16]);

impl CompactPath {
    pub(crate) fn prefix(&self) -> Prefix {
        let mut prefix = Prefix(self.ip);
        if Ipv6Addr::from(self.ip).to_ipv4_mapped().is_none() {
            prefix.0[8..].fill(0);
        }
        prefix
    }

    pub(crate) fn to_bytes(self) -> [u8; COMPACT_PATH_LEN] {
        let mut out = [0; COMPACT_PATH_LEN];
        out[..16].copy_from_slice(&self.ip);
        out[16..18].copy_from_slice(&self.port);
        out[18..22].copy_from_slice(&self.scope);
        out[22] = self.local;
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8; COMPACT_PATH_LEN]) -> CompactPath {
        let mut path = CompactPath { ip: [0; 16], port: [0; 2], scope: [0; 4], local: bytes[22] };
        path.ip.copy_from_slice(&bytes[..16]);
        path.port.copy_from_slice(&bytes[16..18]);
        path.scope.copy_from_slice(&bytes[18..22]);
        path
    }
}

impl From<Path> for CompactPath {
    fn from(path: Path) -> CompactPath {
        let (ip, scope) = match path.peer {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped().octets(), 0),
            SocketAddr::V6(v6) => (v6.ip().octets(), v6.scope_id()),
        };
        CompactPath { ip, port: path.peer.port().to_be_bytes(), scope: scope.to_be_bytes(), local: path.local }
    }
}

impl From<CompactPath> for Path {
    fn from(path: CompactPath) -> Path {
        let ip = Ipv6Addr::from(path.ip);
        let port = u16::from_be_bytes(path.port);
        let peer = match ip.to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
            None => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, u32::from_be_bytes(path.scope))),
        };
        Path { peer, local: path.local }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_one_address_or_64_bits_of_them() {
        let prefix = |text: &str| CompactPath::from(Path::new(text.parse().unwrap(), 0)).prefix();
        assert_eq!(prefix("192.0.2.1:1"), prefix("192.0.2.1:2"));
        assert_ne!(prefix("192.0.2.1:1"), prefix("192.0.2.2:1"));
        assert_eq!(prefix("[2001:db8::1]:1"), prefix("[2001:db8::ffff:ffff:ffff:ffff]:2"));
        assert_ne!(prefix("[2001:db8::1]:1"), prefix("[2001:db8:0:1::1]:1"));
    }

    #[test]
    fn a_path_survives_its_compact_form() {
        for text in ["127.0.0.1:5684", "[2001:db8::1]:1", "[fe80::1%7]:65535", "0.0.0.0:0"] {
            let path = Path::new(text.parse().unwrap(), 9);
            let compact = CompactPath::from(path);
            assert_eq!(Path::from(compact), path);
            assert_eq!(Path::from(CompactPath::from_bytes(&compact.to_bytes())), path);
        }
    }
}
