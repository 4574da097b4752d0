//! An association: what is left of a handshake, in few bytes, and its exported form.
//!
//! # Exported form
//!
//! [`EXPORT_LEN`] bytes; integers are big-endian. It holds keys: store it as one stores keys.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | format, 1 |
//! | 1 | 1 | bit 0 has a CID; bit 1 address validated; bit 2 opened by a full handshake; bits 4–6 code of RFC 6066 §4, or 0 |
//! | 2 | 4 | slot |
//! | 6 | 1 | generation |
//! | 7 | 6 | random bytes of the CID |
//! | 13 | 20 | key and salt for writing |
//! | 33 | 20 | key and salt for reading |
//! | 53 | 16 | owner |
//! | 69 | 1 + 16 | length of the peer's CID, and the CID |
//! | 86 | 23 | path: IPv6 or mapped IPv4, port, scope, local |
//! | 109 | 8 | one past the highest sequence number received |
//! | 117 | 8 | `sequence_end`: numbers below are or may be used by the incarnation that exported it |
//! | 125 | 4 | that incarnation |
//! | 129 | 4 | seconds of its creation |
//! | 133 | 4 | seconds of its last use |
//! | 137 | 4 | sequence number of the next unprotected record |
//! | 141 | 2 | `message_seq` of our `Finished` |
//! | 143 | 12 | verify data of our `Finished` |
//!
//! # Why no nonce comes twice
//!
//! Incarnation *m* uses numbers below its `sequence_end` alone, since it sends nothing that the caller has not confirmed as
//! durable. Incarnation *n* > *m* that takes the export starts at `sequence_end + (n − m − 1) × B`, with *B* =
//! [`SEQUENCE_BLOCK`], and until it has exported anew it stops *B* further. So incarnations that follow one another over the
//! same export use neighbouring blocks, without a write for each restart.

use std::fmt;

use zeroize::Zeroize;

use crate::cid::{AssociationId, ConnectionId, MAX_PEER_CID_LEN, RANDOM_LEN, Tag};
use crate::crypto::{DIRECTION_KEY_LEN, DirectionKey, VERIFY_DATA_LEN};
use crate::environment::Owner;
use crate::handshake::codec::fragment_limit;
use crate::handshake::{MESSAGE_HEADER_LEN, message, message_header};
use crate::path::{COMPACT_PATH_LEN, CompactPath};
use crate::protection::{Protection, sealed_len};
use crate::record::{self, ContentType, MAX_PLAINTEXT, MAX_SEQUENCE};
use crate::replay::ReplayWindow;
use crate::server::{AddressChanges, Moved, Room, SealError};
use crate::time::Timestamp;

/// Bytes of an exported association.
pub const EXPORT_LEN: usize = 155;

/// Sequence numbers reserved at a time: a device that hears from us once a minute needs a new export each month and a
/// half, and 2³² blocks fit into the 48 bits of a sequence number.
pub const SEQUENCE_BLOCK: u64 = 1 << 16;

const FORMAT: u8 = 1;

const HAS_CID: u8 = 1 << 0;
const VALIDATED: u8 = 1 << 1;
const FULL: u8 = 1 << 2;
const LIMIT_SHIFT: u8 = 4;
const KNOWN_FLAGS: u8 = HAS_CID | VALIDATED | FULL | 7 << LIMIT_SHIFT;

/// What a server keeps of a peer.
pub(crate) struct Association {
    pub(crate) protection: Protection,
    /// Sequence numbers below may be used: `protection.next_write <= reserved`.
    reserved: u64,
    pub(crate) created: u32,
    pub(crate) last_used: u32,
    /// Bytes that may still be sent to an address that is not validated.
    allowance: u32,
    /// Second up to which the bucket of address changes was refilled.
    refilled: u32,
    plain_next: u32,
    finished_sequence: u16,
    finished: [u8; VERIFY_DATA_LEN],
    pub(crate) path: CompactPath,
    pub(crate) owner: Owner,
    pub(crate) random: [u8; RANDOM_LEN],
    peer_cid: ConnectionId,
    changes_left: u8,
    /// See [`fragment_limit`]; 0 for none.
    fragment_code: u8,
    pub(crate) has_cid: bool,
    validated: bool,
    /// Since an import, nothing has shown that what it receives is new: records of before may come again.
    doubted: bool,
    /// The peer was asked to show that it receives at `path`.
    pub(crate) asked: bool,
    /// Opened by a full handshake, whose last flight is ours: a repeated `Finished` of the peer asks for it again.
    full: bool,
    /// Our `Finished` waits until the export is durable.
    pub(crate) held: bool,
    reserving: bool,
}

// The issue is a million of them: what an association takes is a promise.
const _: () = assert!(size_of::<Association>() <= 184);

/// What a handshake hands over.
pub(crate) struct Agreed {
    pub(crate) protection: Protection,
    pub(crate) path: CompactPath,
    pub(crate) owner: Owner,
    pub(crate) random: [u8; RANDOM_LEN],
    /// The peer's CID, if CIDs were agreed on.
    pub(crate) peer_cid: Option<ConnectionId>,
    pub(crate) fragment_code: u8,
    pub(crate) plain_next: u32,
    /// `message_seq` and verify data of our `Finished`, if it is still to be sent.
    pub(crate) finished: Option<(u16, [u8; VERIFY_DATA_LEN])>,
}

/// An association in its exported form; overwritten when dropped, never printed.
#[derive(Clone)]
pub struct Export {
    bytes: [u8; EXPORT_LEN],
    sequence_end: u64,
}

impl Export {
    /// What to store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; EXPORT_LEN] {
        &self.bytes
    }

    /// What [`crate::Server::persisted`] wants to hear once the bytes are durable.
    #[must_use]
    pub fn sequence_end(&self) -> u64 {
        self.sequence_end
    }

    /// The association that `bytes` are an export of, as far as their outside tells.
    #[must_use]
    pub fn id_of(bytes: &[u8]) -> Option<AssociationId> {
        let bytes: &[u8; EXPORT_LEN] = bytes.try_into().ok()?;
        (bytes[0] == FORMAT).then(|| AssociationId::new(tag_of(bytes)))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("id", &Export::id_of(&self.bytes)).finish_non_exhaustive()
    }
}

/// Bytes that are not taken as an association.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// Another length or format, or a field out of its range: the store is damaged or of another version.
    #[error("not an exported association of this version")]
    Malformed,
    /// It was exported by this incarnation or a later one: the caller did not count its starts.
    #[error("exported by incarnation {exported}, which is not before {current}")]
    Incarnation {
        /// The incarnation that exported it.
        exported: u32,
        /// The one that imports it.
        current: u32,
    },
    /// Its slot belongs to another shard.
    #[error("the slot belongs to another shard")]
    Shard,
    /// Its slot lies outside the table, or all places are taken: the limits were lowered.
    #[error("no room within the limits")]
    Full,
    /// Its slot is taken.
    #[error("the slot is taken")]
    Occupied,
    /// Its sequence numbers are used up.
    #[error("no sequence numbers left")]
    Exhausted,
}

impl Association {
    pub(crate) fn new(agreed: Agreed, persist: bool, changes: AddressChanges, now: Timestamp) -> Association {
        let (finished_sequence, finished) = agreed.finished.unwrap_or_default();
        Association {
            protection: agreed.protection,
            reserved: if persist { 0 } else { MAX_SEQUENCE + 1 },
            created: now.seconds(),
            last_used: now.seconds(),
            allowance: 0,
            refilled: now.seconds(),
            plain_next: agreed.plain_next,
            finished_sequence,
            finished,
            path: agreed.path,
            owner: agreed.owner,
            random: agreed.random,
            peer_cid: agreed.peer_cid.unwrap_or_default(),
            changes_left: changes.burst,
            fragment_code: agreed.fragment_code,
            has_cid: agreed.peer_cid.is_some(),
            // The cookie and the Finished came from there.
            validated: true,
            doubted: false,
            asked: false,
            full: agreed.finished.is_some(),
            held: persist,
            reserving: persist,
        }
    }

    /// Notes that an authentic record of `len` bytes came by `path`, and follows the peer there if RFC 9146 §6 and the
    /// bounds on it allow.
    pub(crate) fn arrived(
        &mut self,
        path: CompactPath,
        len: usize,
        newest: bool,
        now: Timestamp,
        changes: AddressChanges,
        amplification: u8,
    ) -> Moved {
        let earned = (len as u32).saturating_mul(u32::from(amplification));
        if path == self.path {
            if !self.validated {
                self.allowance = self.allowance.saturating_add(earned);
            }
            return Moved::No;
        }
        if !newest {
            return Moved::Late;
        }
        if self.doubted {
            return Moved::Doubted;
        }
        if !self.take_change(now, changes) {
            return Moved::Refused;
        }
        let from = self.path.into();
        self.move_to(path, earned, amplification);
        Moved::Yes { from }
    }

    fn move_to(&mut self, path: CompactPath, earned: u32, amplification: u8) {
        self.path = path;
        self.validated = amplification == 0;
        self.asked = false;
        self.allowance = earned;
    }

    /// Takes the last record for new, after an import. If it was not followed, it had so many bytes and came by that path.
    pub(crate) fn trust(&mut self, doubted: Option<(CompactPath, usize)>, amplification: u8) {
        if std::mem::take(&mut self.doubted)
            && let Some((path, len)) = doubted
        {
            self.move_to(path, (len as u32).saturating_mul(u32::from(amplification)), amplification);
        }
    }

    fn take_change(&mut self, now: Timestamp, changes: AddressChanges) -> bool {
        let every = u32::try_from(changes.every.as_secs()).unwrap_or(u32::MAX).max(1);
        let earned = now.seconds().saturating_sub(self.refilled) / every;
        if earned > 0 {
            let left = u32::from(self.changes_left).saturating_add(earned).min(u32::from(changes.burst));
            self.changes_left = left as u8;
            // What has not made a whole one counts on, unless the bucket is full.
            self.refilled = if left == u32::from(changes.burst) {
                now.seconds()
            } else {
                self.refilled.saturating_add(earned.saturating_mul(every))
            };
        }
        let Some(left) = self.changes_left.checked_sub(1) else { return false };
        self.changes_left = left;
        true
    }

    /// Whether the peer was shown to receive at `path`.
    pub(crate) fn is_validated(&self) -> bool {
        self.validated
    }

    pub(crate) fn validate(&mut self, path: CompactPath) -> bool {
        // Whoever is in doubt has not been followed there.
        if std::mem::take(&mut self.doubted) {
            self.path = path;
        }
        let same = self.path == path;
        self.validated |= same;
        same
    }

    /// Appends a protected record that asks a peer in doubt for proof, to be sent where it may have moved.
    pub(crate) fn seal_elsewhere(&mut self, out: &mut Vec<u8>, text: &[u8], pad_to: u16) -> Result<(), SealError> {
        let validated = std::mem::replace(&mut self.validated, true);
        let sealed = self.seal(out, ContentType::Application, text, pad_to);
        self.validated = validated;
        sealed
    }

    /// The longest text that the peer takes.
    fn limit(&self) -> usize {
        fragment_limit(self.fragment_code).unwrap_or(MAX_PLAINTEXT)
    }

    /// How long a text may be.
    pub(crate) fn room(&self, pad_to: u16) -> Room {
        let limit = self.limit();
        if self.validated {
            return Room { limit, now: limit };
        }
        // The longest padding is less than `pad_to`.
        let around = sealed_len(0, self.peer_cid.as_bytes().len(), 0) + usize::from(pad_to.saturating_sub(1));
        Room { limit, now: limit.min((self.allowance as usize).saturating_sub(around)) }
    }

    /// Appends a protected record, if sequence numbers, length and address allow.
    pub(crate) fn seal(
        &mut self,
        out: &mut Vec<u8>,
        content_type: ContentType,
        text: &[u8],
        pad_to: u16,
    ) -> Result<(), SealError> {
        let max = self.limit();
        if text.len() > max {
            return Err(SealError::TooLong { len: text.len(), max });
        }
        let next = self.protection.next_write;
        if next > MAX_SEQUENCE {
            return Err(SealError::Exhausted);
        }
        if next >= self.reserved {
            return Err(SealError::Unreserved);
        }
        // A record that the peer must be able to take whole: padding stays within its limit, too.
        let pad_to = if usize::from(pad_to) > max { 0 } else { pad_to };
        if !self.validated {
            let len = u32::try_from(sealed_len(text.len(), self.peer_cid.as_bytes().len(), pad_to)).unwrap_or(u32::MAX);
            self.allowance = self.allowance.checked_sub(len).ok_or(SealError::Unvalidated)?;
        }
        self.protection
            .seal(out, content_type, text, self.peer_cid.as_bytes(), pad_to)
            .map_err(|_| SealError::Exhausted)
    }

    /// Appends our last flight of a full handshake: `ChangeCipherSpec`, `Finished`.
    pub(crate) fn send_finished(&mut self, out: &mut Vec<u8>) -> Result<(), SealError> {
        if !self.full {
            return Ok(());
        }
        let start = out.len();
        record::write_header(out, ContentType::ChangeCipherSpec, 0, u64::from(self.plain_next), &[], 1);
        out.push(1);
        let len = VERIFY_DATA_LEN;
        let mut text = [0; MESSAGE_HEADER_LEN + VERIFY_DATA_LEN];
        text[..MESSAGE_HEADER_LEN].copy_from_slice(&message_header(
            message::FINISHED,
            len,
            self.finished_sequence,
            0,
            len,
        ));
        text[MESSAGE_HEADER_LEN..].copy_from_slice(&self.finished);
        let sealed = self.seal(out, ContentType::Handshake, &text, 0);
        match sealed {
            Ok(()) => self.plain_next = self.plain_next.saturating_add(1),
            Err(_) => out.truncate(start),
        }
        sealed
    }

    /// Whether it is time to reserve more sequence numbers; said once for each block.
    pub(crate) fn wants_reserve(&mut self) -> bool {
        let due = !self.reserving
            && self.reserved <= MAX_SEQUENCE
            && self.protection.next_write + SEQUENCE_BLOCK / 2 >= self.reserved;
        self.reserving |= due;
        due
    }

    /// Takes note that numbers up to `end` are reserved for good.
    pub(crate) fn reserve(&mut self, end: u64) {
        self.reserved = self.reserved.max(end.min(MAX_SEQUENCE + 1));
        self.reserving = false;
    }

    pub(crate) fn tag(&self, slot: u32, generation: u8) -> Tag {
        Tag { slot, generation, random: self.random }
    }

    pub(crate) fn export(&self, tag: Tag, incarnation: u32) -> Export {
        let sequence_end =
            self.reserved.min(MAX_SEQUENCE + 1).max(self.protection.next_write.saturating_add(SEQUENCE_BLOCK));
        let mut export = Export { bytes: [0; EXPORT_LEN], sequence_end };
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let flags = flag(self.has_cid, HAS_CID)
            | flag(self.validated, VALIDATED)
            | flag(self.full, FULL)
            | (self.fragment_code << LIMIT_SHIFT);
        let (write_key, read_key) = self.protection.keys();
        let mut keys = [[0; DIRECTION_KEY_LEN]; 2];
        write_key.write(&mut keys[0]);
        read_key.write(&mut keys[1]);
        let mut peer_cid = [0; 1 + MAX_PEER_CID_LEN];
        peer_cid[0] = self.peer_cid.as_bytes().len() as u8;
        peer_cid[1..1 + self.peer_cid.as_bytes().len()].copy_from_slice(self.peer_cid.as_bytes());
        let parts: [&[u8]; 17] = [
            &[FORMAT, flags],
            &tag.slot.to_be_bytes(),
            &[tag.generation],
            &tag.random,
            &keys[0],
            &keys[1],
            &self.owner,
            &peer_cid,
            &self.path.to_bytes(),
            &self.protection.window.next().to_be_bytes(),
            &sequence_end.to_be_bytes(),
            &incarnation.to_be_bytes(),
            &self.created.to_be_bytes(),
            &self.last_used.to_be_bytes(),
            &self.plain_next.to_be_bytes(),
            &self.finished_sequence.to_be_bytes(),
            &self.finished,
        ];
        let mut at = 0;
        for part in parts {
            export.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        debug_assert_eq!(at, EXPORT_LEN);
        keys.zeroize();
        export
    }

    /// The association that was exported as `bytes`, and what names it.
    pub(crate) fn import(
        bytes: &[u8],
        incarnation: u32,
        persist: bool,
        changes: AddressChanges,
    ) -> Result<(Tag, Association), ImportError> {
        let bytes: &[u8; EXPORT_LEN] = bytes.try_into().map_err(|_| ImportError::Malformed)?;
        let flags = bytes[1];
        let peer_cid_len = usize::from(bytes[69]);
        let fragment_code = flags >> LIMIT_SHIFT;
        let code_fits = fragment_code == 0 || fragment_limit(fragment_code).is_some();
        if bytes[0] != FORMAT || flags & !KNOWN_FLAGS != 0 || peer_cid_len > MAX_PEER_CID_LEN || !code_fits {
            return Err(ImportError::Malformed);
        }
        let exported = u32::from_be_bytes(array(bytes, 125));
        if exported >= incarnation {
            return Err(ImportError::Incarnation { exported, current: incarnation });
        }
        let received = u64::from_be_bytes(array(bytes, 109));
        let sequence_end = u64::from_be_bytes(array(bytes, 117));
        let skipped = u64::from(incarnation - exported - 1).saturating_mul(SEQUENCE_BLOCK);
        let next_write = sequence_end.saturating_add(skipped);
        if received > MAX_SEQUENCE + 1 {
            return Err(ImportError::Malformed);
        }
        if next_write > MAX_SEQUENCE {
            return Err(ImportError::Exhausted);
        }
        let reserved = if persist { (next_write + SEQUENCE_BLOCK).min(MAX_SEQUENCE + 1) } else { MAX_SEQUENCE + 1 };
        let protection = Protection::resumed(
            DirectionKey::read(&array(bytes, 13)),
            DirectionKey::read(&array(bytes, 33)),
            next_write,
            ReplayWindow::starting_at(received),
        );
        let last_used = u32::from_be_bytes(array(bytes, 133));
        let association = Association {
            protection,
            reserved,
            created: u32::from_be_bytes(array(bytes, 129)),
            last_used,
            allowance: 0,
            refilled: last_used,
            // Unprotected records of the last flight may have been sent since: their numbers must differ, too.
            plain_next: u32::from_be_bytes(array(bytes, 137)).saturating_add(64),
            finished_sequence: u16::from_be_bytes(array(bytes, 141)),
            finished: array(bytes, 143),
            path: CompactPath::from_bytes(&array::<COMPACT_PATH_LEN>(bytes, 86)),
            owner: array(bytes, 53),
            random: array(bytes, 7),
            peer_cid: ConnectionId::new(&bytes[70..70 + peer_cid_len]).ok_or(ImportError::Malformed)?,
            changes_left: changes.burst,
            fragment_code,
            has_cid: flags & HAS_CID != 0,
            validated: flags & VALIDATED != 0,
            doubted: true,
            asked: false,
            full: flags & FULL != 0,
            held: false,
            reserving: false,
        };
        Ok((tag_of(bytes), association))
    }
}

fn tag_of(bytes: &[u8; EXPORT_LEN]) -> Tag {
    Tag { slot: u32::from_be_bytes(array(bytes, 2)), generation: bytes[6], random: array(bytes, 7) }
}

fn array<const N: usize>(bytes: &[u8; EXPORT_LEN], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
