//! What a server reports.

use std::ops::Range;

use crate::alert::Alert;
use crate::cid::AssociationId;
use crate::environment::Owner;
use crate::path::Path;

/// What became of a record, or of an association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A handshake is complete. An owner may have several associations, for a device that lost its state leaves one behind: the
    /// caller that wants one a device closes the one before, and so keeps a stolen key from filling the table. With [`crate::ServerConfig::persist`], its export is due now; `Finished` waits for
    /// [`crate::Server::persisted`].
    Established {
        /// The association.
        id: AssociationId,
        /// Whose it is.
        owner: Owner,
        /// The identity that it was opened with.
        identity: Box<[u8]>,
        /// The [number](crate::Psk::number) that the identity had when its key was looked up, now or for the session.
        number: u64,
        /// Whether it resumes a session.
        resumed: bool,
    },
    /// Data of the application, decrypted where it lay in the datagram.
    Application {
        /// The association.
        id: AssociationId,
        /// Whose it is.
        owner: Owner,
        /// Where the text lies in the datagram.
        range: Range<usize>,
        /// The record's sequence number: with the association it names the record, also after a restart.
        sequence: u64,
        /// Whether it is newer than all records before it.
        newest: bool,
        /// What it did to the peer's address.
        moved: Moved,
    },
    /// Half of the reserved sequence numbers are used: [`crate::Server::export`] and persist, or sending will stop.
    Reserve {
        /// The association.
        id: AssociationId,
    },
    /// An association is gone. What is stored of it should go too.
    Closed {
        /// The association.
        id: AssociationId,
        /// Whose it was.
        owner: Owner,
        /// Why.
        reason: CloseReason,
    },
    /// A record or the rest of a datagram was dropped; nothing came of it.
    Drop(DropReason),
    /// A handshake ended without an association.
    Failed(HandshakeFailure),
}

/// What a record did to the address that we answer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// It came from where the peer was.
    No,
    /// The peer is there now.
    Yes {
        /// Where it was.
        from: Path,
    },
    /// It came from elsewhere, but since the association was imported nothing has shown that it is not one of before: nothing changed. See
    /// [`crate::Server::trust`].
    Doubted,
    /// It came from elsewhere, but is not newer than all before (RFC 9146 §6): nothing changed.
    Late,
    /// The address changed too often of late: nothing changed, answers go where they went.
    Refused,
}

/// Why an association ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer said goodbye.
    CloseNotify,
    /// The peer sent a fatal alert.
    Alert(Alert),
    /// The caller closed it.
    Local,
    /// It was unused for too long.
    Idle,
    /// It reached the end of its life.
    Lifetime,
    /// It was unused for longest, and another needed its place.
    Evicted,
    /// The same address, which is all that names an association without a CID, made a new one.
    Superseded,
}

/// Why a record was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// It ends within a record.
    Truncated,
    /// It is no DTLS record or one of an unknown type, or a handshake message that cannot be parsed.
    Malformed,
    /// Its CID or address names nobody.
    UnknownAssociation,
    /// It was seen before, or is too old to tell.
    Replayed,
    /// Its MAC does not fit.
    BadRecordMac,
    /// It is authentic, yet not allowed where it came: plain where protection is due, an unknown inner type, a message out
    /// of place.
    Unexpected,
    /// A `ClientHello` without a valid cookie that was answered by a `HelloVerifyRequest`; counted as it is how every
    /// handshake begins.
    CookieRequested,
    /// A fragment of a `ClientHello` that carries no cookie and follows none, or a hello that is smaller than its answer would be.
    UnverifiableHello,
    /// A message of the handshake that was seen before.
    Duplicate,
    /// A message too long, or too far ahead.
    OutOfBounds,
}

impl DropReason {
    /// Every reason.
    pub const ALL: [DropReason; 10] = [
        DropReason::Truncated,
        DropReason::Malformed,
        DropReason::UnknownAssociation,
        DropReason::Replayed,
        DropReason::BadRecordMac,
        DropReason::Unexpected,
        DropReason::CookieRequested,
        DropReason::UnverifiableHello,
        DropReason::Duplicate,
        DropReason::OutOfBounds,
    ];

    /// A name for a label of a metric.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DropReason::Truncated => "truncated",
            DropReason::Malformed => "malformed",
            DropReason::UnknownAssociation => "unknown_association",
            DropReason::Replayed => "replayed",
            DropReason::BadRecordMac => "bad_record_mac",
            DropReason::Unexpected => "unexpected",
            DropReason::CookieRequested => "cookie_requested",
            DropReason::UnverifiableHello => "unverifiable_hello",
            DropReason::Duplicate => "duplicate",
            DropReason::OutOfBounds => "out_of_bounds",
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    /// We sent this alert. [`Alert::BAD_RECORD_MAC`] is a wrong key or an unknown identity, which look alike from outside
    /// and in here.
    Sent(Alert),
    /// The peer sent this alert.
    Received(Alert),
    /// It took too long, or a flight went unanswered.
    TimedOut,
    /// It was the oldest of the address that had most of them (IPv6: of the /64), and another needed its place.
    Evicted,
    /// The same address began another.
    Superseded,
}

/// Why nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no such association.
    #[error("no such association")]
    Unknown,
    /// The text is longer than a record of this association may be.
    #[error("{len} bytes of plaintext: this association takes {max}")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes possible.
        max: usize,
    },
    /// The reserved sequence numbers are used up; [`crate::Server::export`] and persist first.
    #[error("the reserved sequence numbers are used up")]
    Unreserved,
    /// The address is new, not validated, and was sent its share.
    #[error("the peer's new address is not validated and was sent as much as is allowed")]
    Unvalidated,
    /// All sequence numbers are used up: a new handshake is due.
    #[error("all sequence numbers of the association are used up")]
    Exhausted,
}
