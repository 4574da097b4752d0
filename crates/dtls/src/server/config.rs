//! What an operator may set, and the bounds that hold whatever is set.

use std::time::Duration;

use crate::cid::CidFormat;
use crate::handshake::MAX_MESSAGE_LEN;

/// When an unanswered flight is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmission {
    /// The first wait; it doubles each time. RFC 7925 §11 asks for 9 s where a radio such as NB-IoT answers in seconds.
    pub first: Duration,
    /// The longest wait. RFC 7925 §11 asks for no less than 60 s.
    pub longest: Duration,
    /// How often a flight is sent at most, the first time included.
    pub transmissions: u8,
}

impl Default for Retransmission {
    fn default() -> Self {
        Retransmission { first: Duration::from_secs(9), longest: Duration::from_secs(60), transmissions: 5 }
    }
}

impl Retransmission {
    /// The wait after the `sent`-th transmission; none if that was the last.
    pub(crate) fn wait(&self, sent: u8) -> Duration {
        let doublings = u32::from(sent.saturating_sub(1)).min(16);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }
}

/// What a server is told at its start.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Length and node of the connection IDs; none if they are not to be used.
    pub cid: Option<CidFormat>,
    /// How many servers share the work, each a shard with a lock or a worker of its own.
    pub shards: u32,
    /// Which of them this one is, below [`ServerConfig::shards`].
    pub shard: u32,
    /// Counts the starts of the server over one set of exports: strictly greater than at any earlier start, and durable
    /// before the first datagram is handled. No nonce is used twice across restarts as long as this holds.
    pub incarnation: u32,
    /// Whether `Finished` waits for [`crate::Server::persisted`], so that a peer which considers itself connected is one
    /// that survives our crash. Without it sequence numbers are not reserved either.
    pub persist: bool,
    /// A hint that clients may use to choose their identity (RFC 4279 §5.2); nothing is sent if it is empty.
    pub identity_hint: Vec<u8>,
    /// Whether peers without extended master secret are refused. RFC 7627 §5.3 allows it; some old stacks lack it.
    pub require_extended_master_secret: bool,
    /// Largest datagram of a handshake. The default crosses any IPv6 path.
    pub mtu: usize,
    /// When a flight is sent again.
    pub retransmission: Retransmission,
    /// How long a handshake may take from the verified `ClientHello` to the client's `Finished`.
    pub handshake_lifetime: Duration,
    /// Handshakes at a time; each takes at most [`crate::MAX_PENDING_BYTES`]. The oldest of the
    /// address that has most of them makes room for a new one; a /64 of IPv6 counts as one.
    pub max_handshakes: usize,
    /// Associations at a time; the one unused for longest makes room for a new one.
    pub max_associations: usize,
    /// An association unused for so long ends.
    pub idle_lifetime: Duration,
    /// An association so old ends, in use or not: its keys are meant to be replaced some day.
    pub lifetime: Duration,
    /// After this time a new cookie secret is drawn; cookies of the one before stay valid for as long again.
    pub cookie_rotation: Duration,
    /// How often in a row a peer's address may change, and the time after which it may once more. It is what an attacker who
    /// races copied records can make us write elsewhere.
    pub address_changes: AddressChanges,
    /// Until an address is validated, at most this many bytes are sent there for each byte that came from it with a valid
    /// record (RFC 9146 §6 warns of amplification; the value is QUIC's, RFC 9000 §8). Zero: no bound.
    pub amplification: u8,
    /// Pads what is sent with a CID to a multiple of so many bytes, which hides true lengths; 0 for none.
    pub pad_to: u16,
}

/// A token bucket over the changes of one peer's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressChanges {
    /// Changes allowed at once.
    pub burst: u8,
    /// Time that brings one more; whole seconds count.
    pub every: Duration,
}

impl Default for AddressChanges {
    /// Enough for a device whose NAT forgets it before each of its readings, one every ten seconds.
    fn default() -> Self {
        AddressChanges { burst: 16, every: Duration::from_secs(10) }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            cid: Some(CidFormat::default()),
            shards: 1,
            shard: 0,
            incarnation: 1,
            persist: false,
            identity_hint: Vec::new(),
            require_extended_master_secret: false,
            mtu: 1200,
            retransmission: Retransmission::default(),
            // Three of the default waits and their answers: 9 + 18 + 36 s.
            handshake_lifetime: Duration::from_secs(75),
            max_handshakes: 16_384,
            max_associations: 1 << 20,
            idle_lifetime: Duration::from_secs(30 * 86_400),
            lifetime: Duration::from_secs(365 * 86_400),
            cookie_rotation: Duration::from_secs(120),
            address_changes: AddressChanges::default(),
            amplification: 3,
            pad_to: 0,
        }
    }
}

/// Smallest [`ServerConfig::mtu`]: the protection of a record and a CID leave room for some bytes of a message.
pub const MIN_MTU: usize = 96;

/// Most associations and handshakes that one shard takes: an index has 32 bits and must not meet the mark for none.
pub const MAX_SLOTS: u64 = 1 << 31;

/// A configuration that contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The shard is not one of the shards.
    #[error("shard {shard} is not one of {shards}")]
    Shard {
        /// The shard named.
        shard: u32,
        /// How many there are.
        shards: u32,
    },
    /// Datagrams too small for a handshake.
    #[error("an mtu of {0} bytes: at least {MIN_MTU} are needed")]
    Mtu(usize),
    /// More places than an index can name.
    #[error("{0} associations and handshakes over all shards: at most {MAX_SLOTS} are possible")]
    Slots(u64),
    /// No room for any.
    #[error("max_associations and max_handshakes must not be zero")]
    NoRoom,
    /// A hint that does not fit a message.
    #[error("an identity hint of {0} bytes: at most 128 are allowed")]
    Hint(usize),
}

/// Longest identity hint: as long as an identity.
const MAX_HINT_LEN: usize = crate::environment::MAX_IDENTITY_LEN;

const _: () = assert!(MAX_HINT_LEN + 2 <= MAX_MESSAGE_LEN);

impl ServerConfig {
    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.shard >= self.shards {
            return Err(ConfigError::Shard { shard: self.shard, shards: self.shards });
        }
        if self.mtu < MIN_MTU {
            return Err(ConfigError::Mtu(self.mtu));
        }
        if self.max_associations == 0 || self.max_handshakes == 0 {
            return Err(ConfigError::NoRoom);
        }
        let slots = (self.max_associations as u64)
            .saturating_add(self.max_handshakes as u64)
            .saturating_mul(u64::from(self.shards));
        if slots > MAX_SLOTS {
            return Err(ConfigError::Slots(slots));
        }
        if self.identity_hint.len() > MAX_HINT_LEN {
            return Err(ConfigError::Hint(self.identity_hint.len()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_nine_seconds_to_sixty() {
        let seconds: Vec<u64> = (1..=5).map(|sent| Retransmission::default().wait(sent).as_secs()).collect();
        assert_eq!(seconds, [9, 18, 36, 60, 60]);
    }

    #[test]
    fn contradictions_are_named() {
        let check = |change: fn(&mut ServerConfig)| {
            let mut config = ServerConfig::default();
            change(&mut config);
            config.check()
        };
        assert_eq!(check(|_| ()), Ok(()));
        assert_eq!(check(|c| c.shard = 1), Err(ConfigError::Shard { shard: 1, shards: 1 }));
        assert_eq!(check(|c| c.mtu = 95), Err(ConfigError::Mtu(95)));
        assert_eq!(check(|c| c.max_associations = 0), Err(ConfigError::NoRoom));
        assert!(matches!(check(|c| c.shards = 1 << 20), Err(ConfigError::Slots(_))));
        assert_eq!(check(|c| c.identity_hint = vec![0; 129]), Err(ConfigError::Hint(129)));
    }
}
