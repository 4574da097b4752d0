//! DTLS 1.2 with pre-shared keys and Connection ID, without I/O.
//!
//! One cipher suite, `TLS_PSK_WITH_AES_128_CCM_8` (RFC 6655), the one that every constrained device has; DTLS 1.2 (RFC 6347), extended
//! master secret (RFC 7627), Connection ID (RFC 9146), maximum fragment length (RFC 6066 §4), resumption by session
//! identifier. Renegotiation is refused.
//!
//! # The drain contract
//!
//! A [`Server`] or [`Client`] owns no clock, socket, thread or randomness. Feed it one input ([`Server::handle`] with one
//! datagram, [`Server::handle_timeout`] once [`Server::poll_timeout`] has passed), then take all outputs: send and clear
//! the [`Outbox`], read and clear the events. Then feed the next.
//!
//! # Many threads
//!
//! A server has `shards` [`Server`]s, each behind a lock of its own (or owned by a worker that others hand datagrams to);
//! a few times more shards than workers keep the locks free. Any worker asks the [`Router`], which needs no lock, for the
//! shard of a datagram. A record with a CID goes to the shard that its CID names, any other to the one its address hashes to;
//! a handshake takes its CID from the shard that its address hashes to, so one shard sees all of an association, from
//! whichever address and through whichever socket it comes. [`AssociationId::shard`] finds it again.
//!
//! # Surviving a crash
//!
//! With [`ServerConfig::persist`], the order is: [`Event::Established`] → [`Server::export`] → the caller makes the bytes
//! durable → [`Server::persisted`], which sends `Finished`. Sequence numbers for sending are reserved in blocks; at
//! [`Event::Reserve`] the same three steps reserve the next. After a crash [`Server::import`] takes the exports, and
//! [`Server::seen`] whatever the log knows of received records. What is sent from then on lies above all that can have been
//! sent before.

#[cfg(test)]
extern crate self as tidegate_dtls;

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

mod alert;
mod association;
mod cid;
mod client;
mod crypto;
mod environment;
mod handshake;
mod outbox;
mod path;
mod protection;
mod record;
mod replay;
mod server;
mod session;
mod shares;
mod table;
mod time;

pub use alert::Alert;
pub use association::{EXPORT_LEN, Export, ImportError, SEQUENCE_BLOCK};
pub use cid::{AssociationId, CidFormat, ConnectionId, MAX_CID_LEN, MAX_PEER_CID_LEN, MIN_CID_LEN, Router};
pub use client::{CLIENT_LEN, Client, ClientConfig, ClientEvent, Credentials};
pub use environment::{Environment, Key, MAX_IDENTITY_LEN, MAX_KEY_LEN, Owner, Psk, Psks, Random};
pub use outbox::Outbox;
pub use path::Path;
pub use record::MAX_PLAINTEXT;
pub use server::{
    About, AddressChanges, CloseReason, ConfigError, DropReason, Event, HandshakeFailure, LAST_USED_GRAIN,
    MAX_PARTIAL_BYTES, MAX_PENDING_BYTES, MAX_RECORDS, MAX_SLOTS, MIN_MTU, Moved, Peer, Retransmission, Room,
    SealError, Server, ServerConfig,
};
pub use session::{SESSION_ID_LEN, Session, SessionCache, SessionId, Sessions};
pub use time::Timestamp;
