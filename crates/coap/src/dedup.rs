//! Recognises a message that comes twice (RFC 7252 §4.5), within one device's session.
//!
//! # Constraints
//!
//! There is one [`Ring`] a device, and a million devices: an empty one is 8 bytes inline and nothing else, one that remembers
//! something takes 16 bytes a message and 16 once. It grows when it must, up to [`Policy::capacity`].
//!
//! # Operation
//!
//! [`Ring::lookup`] first. A new message that is to be stored is [inserted](Ring::insert) before the next one is looked up,
//! with the sequence number of its record, or with [`Seq::NONE`] while it stands in a batch that has none yet; then
//! [`Ring::assign`] gives it, or [`Ring::forget`] drops it if the batch was refused. What stores nothing (an error, an
//! overload) is not inserted: its duplicate is judged afresh, which RFC 7252 §4.5 allows for idempotent answers.
//!
//! A duplicate gets the first answer once the record that it waits for is durable; nothing is stored twice.
//!
//! # When the ring is full
//!
//! Entries whose lifetime is over are overwritten first. If there is none, the oldest goes, and the caller is told to count
//! it: a retransmission of that message would be stored a second time (never lost). Retransmissions end MAX_TRANSMIT_SPAN
//! (45 s) after the first transmission, so this takes a device that sends more than `capacity` messages in that time.

use std::net::{IpAddr, SocketAddr};

use thin_vec::ThinVec;
use tidegate_record::Seq;

use crate::code::{Code, Type};
use crate::timing::{Seconds, Timing};

/// How long and how many messages are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Messages remembered for one device, at least 1. Default: [`DEFAULT_CAPACITY`].
    pub capacity: u16,
    /// Seconds that a confirmable message is remembered: EXCHANGE_LIFETIME.
    pub exchange_lifetime: u32,
    /// Seconds that a non-confirmable message is remembered: NON_LIFETIME.
    pub non_lifetime: u32,
}

/// A device that reports every 8 s stays within it for all of EXCHANGE_LIFETIME (247 s); at most 528 bytes a device.
pub const DEFAULT_CAPACITY: u16 = 32;

/// Longest lifetime, in seconds: times are kept in 23 bits, and half of that range is the past.
pub const MAX_LIFETIME: u32 = 1 << 22;

impl Policy {
    /// The lifetimes that follow from `timing`, rounded up to seconds and cut to [`MAX_LIFETIME`].
    #[must_use]
    pub fn new(timing: &Timing, capacity: u16) -> Policy {
        let seconds = |d: std::time::Duration| {
            let up = d.as_secs().saturating_add(u64::from(d.subsec_nanos() > 0));
            u32::try_from(up).unwrap_or(MAX_LIFETIME).min(MAX_LIFETIME)
        };
        Policy {
            capacity: capacity.max(1),
            exchange_lifetime: seconds(timing.exchange_lifetime()),
            non_lifetime: seconds(timing.non_lifetime()),
        }
    }
}

impl Default for Policy {
    fn default() -> Policy {
        Policy::new(&Timing::RFC7252, DEFAULT_CAPACITY)
    }
}

/// What tells a message apart, besides its message ID, for a sender without a secure association: its address and port, and the
/// whole datagram.
///
/// RFC 7252 §4.5 has the endpoint only. But a device that lost power counts its message IDs from the start again, within the
/// lifetime and often from the same port; what it sends is a new reading, and taking it for a duplicate would acknowledge a
/// reading that is not stored. A retransmission repeats the message byte for byte (§4.2), and so is told from it.
///
/// The value is stable across versions and platforms: it is stored as the scope of a record's key.
#[inline]
#[must_use]
pub fn scope(peer: SocketAddr, datagram: &[u8]) -> u64 {
    let port = u64::from(peer.port());
    let seed = match peer.ip().to_canonical() {
        IpAddr::V4(ip) => mix(port << 32 | u64::from(ip.to_bits())),
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            mix(mix(mix(!port) ^ bits as u64) ^ (bits >> 64) as u64)
        }
    };
    scope_in(seed, datagram)
}

/// The same for a sender within a secure association, whose address may change: `association` tells associations apart.
#[inline]
#[must_use]
pub fn scope_in(association: u64, message: &[u8]) -> u64 {
    let mut hash = mix(association ^ message.len() as u64);
    for chunk in message.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..chunk.len()].copy_from_slice(chunk);
        hash = mix(hash ^ u64::from_le_bytes(bytes));
    }
    hash
}

/// The finalizer of SplitMix64: a bijection whose every output bit depends on every input bit.
#[inline]
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ value >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ value >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ value >> 31
}

/// A message to be remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remembered {
    /// Where `mid` is unique: [`scope`] or [`scope_in`].
    pub scope: u64,
    /// The message ID.
    pub mid: u16,
    /// [`Type::Con`] or [`Type::Non`].
    pub kind: Type,
    /// When it was received.
    pub received: Seconds,
    /// Its record, below 2⁴⁸; [`Seq::NONE`] until it is known.
    pub seq: Seq,
    /// The code that it was, or will be, answered with.
    pub code: Code,
}

/// What is known about a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It did not come before.
    New,
    /// It came before.
    Duplicate {
        /// Its record, which must be durable before it is answered. [`Seq::NONE`]: the record is in a batch that is not
        /// appended yet, so that the first answer is still to come, and the duplicate needs none.
        seq: Seq,
        /// The code of the first answer. [`Code::EMPTY`]: the request got an empty acknowledgement, gets another one now, and
        /// its response as a message of its own (RFC 7252 §5.2.2).
        code: Code,
    },
}

/// Whether a young entry had to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an evicted message is to be counted"]
pub enum Inserted {
    /// There was room.
    Fits,
    /// The oldest entry went before its time.
    Evicted,
}

/// The messages that one device sent lately.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    /// No two young ones with the same scope and message ID.
    entries: ThinVec<Entry>,
}

const _: () = assert!(size_of::<Ring>() == 8 && size_of::<Entry>() == 16);

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The lower half of the scope. Two scopes of one device that share it, and their message ID, meet once in 2³² pairs.
    scope: u32,
    mid: u16,
    /// The lower 48 bits, least significant first: 89 years at 100,000 records a second.
    seq: [u16; 3],
    stamp: Stamp,
    code: u8,
}

/// When a message was received and whether it is non-confirmable: 23 bits of seconds (97 days) and one bit.
///
/// A time up to 2²² s (48 days) ahead of `now` is from a clock that was set back, and counts as now; so a ring has to be
/// [shrunk](Ring::shrink) at least that often, as a sweep of the sessions does.
#[derive(Debug, Clone, Copy)]
struct Stamp([u8; 3]);

impl Stamp {
    const MASK: u32 = (1 << 23) - 1;

    #[inline]
    fn new(at: Seconds, kind: Type) -> Stamp {
        let bits = (at.0 & Self::MASK) << 1 | u32::from(kind == Type::Non);
        let [a, b, c, _] = bits.to_le_bytes();
        Stamp([a, b, c])
    }

    #[inline]
    fn bits(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }

    #[inline]
    fn age(self, now: Seconds) -> u32 {
        let age = now.0.wrapping_sub(self.bits() >> 1) & Self::MASK;
        if age > MAX_LIFETIME { 0 } else { age }
    }

    #[inline]
    fn is_over(self, now: Seconds, policy: &Policy) -> bool {
        let lifetime = if self.bits() & 1 == 0 { policy.exchange_lifetime } else { policy.non_lifetime };
        self.age(now) >= lifetime
    }
}

impl Entry {
    #[inline]
    fn new(message: &Remembered) -> Entry {
        let mut entry = Entry {
            scope: message.scope as u32,
            mid: message.mid,
            seq: [0; 3],
            stamp: Stamp::new(message.received, message.kind),
            code: message.code.0,
        };
        entry.set_seq(message.seq);
        entry
    }

    #[inline]
    fn is(&self, scope: u64, mid: u16) -> bool {
        self.mid == mid && self.scope == scope as u32
    }

    #[inline]
    fn set_seq(&mut self, seq: Seq) {
        debug_assert!(seq.0 < 1 << 48);
        self.seq = [seq.0 as u16, (seq.0 >> 16) as u16, (seq.0 >> 32) as u16];
    }

    #[inline]
    fn seq(&self) -> Seq {
        let [a, b, c] = self.seq.map(u64::from);
        Seq(a | b << 16 | c << 32)
    }
}

impl Ring {
    /// Remembers nothing.
    #[inline]
    #[must_use]
    pub fn new() -> Ring {
        Ring::default()
    }

    /// What is known about the message `mid` from `scope`.
    #[inline]
    #[must_use]
    pub fn lookup(&self, scope: u64, mid: u16, now: Seconds, policy: &Policy) -> Lookup {
        match self.entries.iter().find(|e| e.is(scope, mid)) {
            Some(entry) if !entry.stamp.is_over(now, policy) => {
                Lookup::Duplicate { seq: entry.seq(), code: Code(entry.code) }
            }
            _ => Lookup::New,
        }
    }

    /// Remembers a message, in place of what was known about it. Also used to restore what the log knows: in the order of the
    /// records.
    #[inline]
    pub fn insert(&mut self, message: &Remembered, policy: &Policy) -> Inserted {
        let entry = Entry::new(message);
        let now = message.received;
        let (mut oldest, mut oldest_age) = (0, 0);
        let mut free = None;
        for (i, known) in self.entries.iter().enumerate() {
            if known.is(message.scope, message.mid) {
                free = Some(i);
                break;
            }
            if free.is_none() && known.stamp.is_over(now, policy) {
                free = Some(i);
            }
            let age = known.stamp.age(now);
            if age > oldest_age {
                (oldest, oldest_age) = (i, age);
            }
        }
        if let Some(i) = free {
            self.entries[i] = entry;
            return Inserted::Fits;
        }
        let len = self.entries.len();
        if len < usize::from(policy.capacity.max(1)) {
            if len == self.entries.capacity() {
                // Half as much again: an allocator's slack and ours stay below 20 bytes a message together.
                let room = usize::from(policy.capacity.max(1)) - len;
                self.entries.reserve_exact((len / 2).clamp(1, room));
            }
            self.entries.push(entry);
            return Inserted::Fits;
        }
        self.entries[oldest] = entry;
        Inserted::Evicted
    }

    /// Gives the message its record, once that has a sequence number. False if it is not remembered any more.
    #[inline]
    pub fn assign(&mut self, scope: u64, mid: u16, seq: Seq) -> bool {
        let entry = self.entries.iter_mut().find(|e| e.is(scope, mid));
        entry.map(|e| e.set_seq(seq)).is_some()
    }

    /// Notes with which code the message was answered after all: another one than it was inserted with, or [`Code::EMPTY`] once
    /// it got an empty acknowledgement. False if it is not remembered any more.
    pub fn answered(&mut self, scope: u64, mid: u16, code: Code) -> bool {
        let entry = self.entries.iter_mut().find(|e| e.is(scope, mid));
        entry.map(|e| e.code = code.0).is_some()
    }

    /// Forgets the message: its record was refused. False if it was not remembered.
    pub fn forget(&mut self, scope: u64, mid: u16) -> bool {
        let Some(i) = self.entries.iter().position(|e| e.is(scope, mid)) else {
            return false;
        };
        self.entries.swap_remove(i);
        if self.entries.is_empty() {
            self.entries = ThinVec::new();
        }
        true
    }

    /// Forgets what is over and gives its memory back.
    pub fn shrink(&mut self, now: Seconds, policy: &Policy) {
        self.entries.retain(|e| !e.stamp.is_over(now, policy));
        if self.entries.is_empty() {
            self.entries = ThinVec::new();
        } else if self.entries.len() <= self.entries.capacity() / 2 {
            self.entries.shrink_to_fit();
        }
    }

    /// Messages held, those included whose lifetime is over.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes on the heap, without what the allocator adds.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match self.entries.capacity() {
            0 => 0,
            // ThinVec keeps its length and capacity in front of the entries.
            capacity => 2 * size_of::<usize>() + capacity * size_of::<Entry>(),
        }
    }
}

#[cfg(test)]
mod tests;
