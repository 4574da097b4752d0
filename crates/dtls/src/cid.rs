//! Connection IDs: the peer's, which are opaque, and the server's, which say where an association lies.
//!
//! # The server's format
//!
//! All CIDs of a server have one length (RFC 9146 §3 leaves it to the receiver to know it), between [`MIN_CID_LEN`] and
//! [`MAX_CID_LEN`]:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | `node`: which server; a load balancer routes by this byte |
//! | 1 | 4 | `slot`, big-endian: place in the table; `slot mod shards` is the shard, `slot div shards` the index in it |
//! | 5 | 1 | `generation`: how often the place was taken, modulo 256 |
//! | 6 | … | `random`: makes a stale or guessed CID miss without a cryptographic operation |
//!
//! Nothing of it is secret and nothing is trusted: a record is only what its MAC says.

use std::fmt;
use std::hash::BuildHasher;

use crate::environment::Random;
use crate::path::{CompactPath, Path};
use crate::record::{self, ContentType};

/// Shortest CID of a server: one random byte.
pub const MIN_CID_LEN: usize = 7;

/// Longest CID of a server: each byte is paid in every record, and six random ones are past what any attacker can use.
pub const MAX_CID_LEN: usize = 6 + RANDOM_LEN;

/// Random bytes kept of a CID; a shorter CID carries the first of them.
pub(crate) const RANDOM_LEN: usize = 6;

/// Longest CID accepted from a peer. One that wants a longer one gets an association without CIDs.
pub const MAX_PEER_CID_LEN: usize = 16;

/// A connection ID chosen by a peer, or by a client for itself: 0 to [`MAX_PEER_CID_LEN`] opaque bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionId {
    bytes: [u8; MAX_PEER_CID_LEN],
    len: u8,
}

impl ConnectionId {
    /// The CID of no bytes: its owner takes records without one (RFC 9146 §3).
    pub const EMPTY: ConnectionId = ConnectionId { bytes: [0; MAX_PEER_CID_LEN], len: 0 };

    /// The CID `bytes`, unless it is too long.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<ConnectionId> {
        if bytes.len() > MAX_PEER_CID_LEN {
            return None;
        }
        let mut cid = ConnectionId { bytes: [0; MAX_PEER_CID_LEN], len: bytes.len() as u8 };
        cid.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(cid)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Names an association, also across restarts: its slot (32 bits), generation (8) and the first random bytes of its CID
/// (24). The log may name the association of a record by this number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssociationId(pub u64);

impl AssociationId {
    pub(crate) fn new(tag: Tag) -> AssociationId {
        let random = u64::from_be_bytes([0, 0, 0, 0, 0, tag.random[0], tag.random[1], tag.random[2]]);
        AssociationId(u64::from(tag.slot) << 32 | u64::from(tag.generation) << 24 | random)
    }

    /// The slot that it lies in.
    #[must_use]
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Which of `shards` it belongs to.
    #[must_use]
    pub fn shard(self, shards: u32) -> u32 {
        self.slot() % shards.max(1)
    }
}

impl fmt::Debug for AssociationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What is particular to one association in the CID that names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tag {
    pub(crate) slot: u32,
    pub(crate) generation: u8,
    pub(crate) random: [u8; RANDOM_LEN],
}

impl Tag {
    /// Writes the CID; `len` is in the range that [`CidFormat::new`] checks.
    pub(crate) fn write(&self, format: CidFormat) -> ServerCid {
        let mut bytes = [0; MAX_CID_LEN];
        bytes[0] = format.node;
        bytes[1..5].copy_from_slice(&self.slot.to_be_bytes());
        bytes[5] = self.generation;
        bytes[6..].copy_from_slice(&self.random);
        ServerCid { bytes, len: format.len }
    }
}

/// A CID of ours, written out.
#[derive(Clone, Copy)]
pub(crate) struct ServerCid {
    bytes: [u8; MAX_CID_LEN],
    len: u8,
}

impl ServerCid {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// Length and node of the CIDs of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CidFormat {
    node: u8,
    len: u8,
}

impl CidFormat {
    /// CIDs of `len` bytes that name `node`; none if `len` is not within [`MIN_CID_LEN`] and [`MAX_CID_LEN`].
    #[must_use]
    pub fn new(node: u8, len: usize) -> Option<CidFormat> {
        (MIN_CID_LEN..=MAX_CID_LEN).contains(&len).then_some(CidFormat { node, len: len as u8 })
    }

    /// Bytes of each CID.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "it is never zero")]
    pub fn len(self) -> usize {
        usize::from(self.len)
    }

    /// The node that all of them name.
    #[must_use]
    pub fn node(self) -> u8 {
        self.node
    }

    /// The slot that `cid` names, if it has our length and names our node.
    pub(crate) fn slot(self, cid: &[u8]) -> Option<u32> {
        let (&node, rest) = cid.split_first()?;
        let slot = rest.first_chunk()?;
        (node == self.node && cid.len() == self.len()).then(|| u32::from_be_bytes(*slot))
    }
}

impl Default for CidFormat {
    /// Node 0 and nine bytes: three random ones.
    fn default() -> Self {
        CidFormat { node: 0, len: 9 }
    }
}

/// Says which shard of a server a datagram belongs to, without a lock and without looking at keys.
///
/// A record with a CID goes where its association lies; any other goes by a keyed hash of its path, which is also where a
/// handshake from that path takes its slot. So one shard sees all of an association, from wherever it comes.
#[derive(Debug, Clone)]
pub struct Router {
    format: CidFormat,
    shards: u32,
    hasher: foldhash::quality::FixedState,
}

impl Router {
    /// A router over `shards` shards (at least one is assumed), as many as the servers are told of in
    /// [`crate::ServerConfig::shards`].
    ///
    /// `seed` is random, secret and kept with the exported associations: one without a CID is found again after a restart
    /// only if seed and number of shards are what they were.
    #[must_use]
    pub fn new(format: CidFormat, shards: u32, seed: u64) -> Router {
        Router { format, shards: shards.max(1), hasher: foldhash::quality::FixedState::with_seed(seed) }
    }

    /// The shard of a datagram that came by `path`.
    #[must_use]
    pub fn shard(&self, datagram: &[u8], path: Path) -> u32 {
        if datagram.first() == Some(&(ContentType::Cid as u8)) {
            let cid = datagram.get(record::CID_OFFSET..record::CID_OFFSET + self.format.len());
            if let Some(slot) = cid.and_then(|cid| self.format.slot(cid)) {
                return slot % self.shards;
            }
        }
        // The high bits: the tables of the shards use the low ones of a hash of their own.
        ((self.hasher.hash_one(CompactPath::from(path)) >> 32) % u64::from(self.shards)) as u32
    }

    /// The node that the CID of a datagram names, if it has one: what a load balancer needs. `len` is the length of
    /// CIDs that all nodes agree on.
    #[must_use]
    pub fn node(datagram: &[u8], len: usize) -> Option<u8> {
        let carries_cid = datagram.first() == Some(&(ContentType::Cid as u8));
        let whole = datagram.len() >= record::CID_OFFSET + len + 2;
        (carries_cid && whole && len > 0).then(|| datagram[record::CID_OFFSET])
    }
}

/// A hash that peers cannot aim at, since they do not know its seed.
pub(crate) fn hash_state(random: &mut dyn Random) -> foldhash::quality::FixedState {
    let mut seed = [0; 8];
    random.fill(&mut seed);
    foldhash::quality::FixedState::with_seed(u64::from_ne_bytes(seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag() -> Tag {
        Tag { slot: 0x0102_0304, generation: 5, random: [6, 7, 8, 9, 10, 11] }
    }

    #[test]
    fn a_cid_is_laid_out_as_documented() {
        let format = CidFormat::new(0xee, 9).unwrap();
        assert_eq!(tag().write(format).as_bytes(), [0xee, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(format.slot(tag().write(format).as_bytes()), Some(0x0102_0304));
        assert_eq!(format.slot(&[0xee, 1, 2, 3, 4, 5, 6, 7]), None, "another length");
        assert_eq!(format.slot(&[0xef, 1, 2, 3, 4, 5, 6, 7, 8]), None, "another node");
        assert_eq!(AssociationId::new(tag()).0, 0x0102_0304_0506_0708);
        assert_eq!(AssociationId::new(tag()).slot(), 0x0102_0304);
        assert!(CidFormat::new(0, MIN_CID_LEN - 1).is_none() && CidFormat::new(0, MAX_CID_LEN + 1).is_none());
    }

    #[test]
    fn a_datagram_is_routed_by_its_cid_and_else_by_its_path() {
        let format = CidFormat::new(3, 9).unwrap();
        let router = Router::new(format, 16, 1);
        let mut datagram = vec![25, 254, 253, 0, 1, 0, 0, 0, 0, 0, 9];
        datagram.extend_from_slice(tag().write(format).as_bytes());
        datagram.extend_from_slice(&[0, 0]);
        let paths = (1..=200).map(|port| Path::new(([127, 0, 0, 1], port).into(), 0));
        let mut by_path = std::collections::HashSet::new();
        for path in paths {
            assert_eq!(router.shard(&datagram, path), 4);
            by_path.insert(router.shard(&[22, 254, 253], path));
            assert_eq!(router.shard(&[22, 254, 253], path), router.shard(&datagram[..12], path));
        }
        assert_eq!(by_path.len(), 16, "paths are spread over all shards");
        assert_eq!(Router::node(&datagram, 9), Some(3));
        assert_eq!(Router::node(&datagram, 10), None, "too short for a CID of ten bytes");
    }
}
