//! MQTT 3.1.1 and 5.0, the server's side and what a load generator needs of the client's: sans-IO.
//!
//! Bytes and `now` come in as arguments; bytes and events go out. Nothing here owns a socket, a clock, a thread or a task.
//!
//! # Constraints
//!
//! - An idle connection owns no buffer. Input is a slice of whatever the driver read into; events borrow from it.
//! - [`Connection`] is small and holds nothing that most connections lack: in-flight state, aliases and the will are
//!   boxed and made when first needed.
//! - An acknowledgement is never written by itself: the driver says when a publish is stored ([`Connection::stored`]).
//! - A peer can make it hold only what [`Limits`] allows.
//!
//! # Operation
//!
//! The drain contract, for each chunk of bytes of one connection:
//!
//! ```text
//! let mut input = chunk;                       // kept tail + what was read
//! loop {
//!     match conn.next(&limits, &mut input, now, &mut out) {
//!         Ok(Some(event)) => …                 // act on it, answer with conn.accept / suback / … into `out`
//!         Ok(None) => break,                   // `input` is an unfinished packet, or must wait: keep it as the tail
//!         Err(violation) => close after `out`, // the farewell that the version asks for is in `out` already
//!     }
//! }
//! send `out`                                   // in full and in order, or close the connection
//! ```
//!
//! [`Ok(None)`](Connection::next) with [`Connection::is_paused`] means that the rest of `input` is not looked at before
//! the driver has answered: a CONNECT that is still being decided, or a 3.1.1 peer with too many publishes unacknowledged.
//!
//! `now` is in milliseconds since the Unix epoch on a clock that never goes back (the wall clock at start plus a monotonic
//! one), so that the same number serves keep-alive and the expiry of messages that are kept across restarts.
//!
//! # Format
//!
//! Packets are read by a strict walk of our own ([`packet`]): `rumqttd::protocol` panics on packets that only a server
//! sends, takes a password for text, knows no AUTH, counts the bytes of subscription identifiers wrongly, and accepts much that
//! the specifications tell a server to reject. What is written rarely (CONNACK, SUBACK, UNSUBACK; a client's CONNECT,
//! SUBSCRIBE, UNSUBSCRIBE) is encoded by that codec, and it is the oracle in tests.
//!
//! `CONFORMANCE.md` maps each statement that the specifications make of a server to the test that holds it.

mod alias;
pub mod client;
mod codec;
mod connection;
mod encode;
mod limits;
mod message;
pub mod packet;
mod property;
mod reason;
mod retained;
mod session;
pub mod topic;
mod tree;
pub mod trie;
mod violation;
mod wire;

pub use connection::{Accept, Connection, Delivered, Delivery, Dropped, Ended, Event};
pub use limits::Limits;
pub use message::{Message, Will};
pub use packet::{Connect, Password, Publish, QoS, Subscribe, SubscribeOptions, TopicName, Unsubscribe, Version};
pub use property::{Properties, Property};
pub use reason::Reason;
pub use retained::{Found, Replay, Retained, Retention};
pub use session::{Change, Corrupt, Session, Shared, Stored};
pub use violation::Violation;
pub use wire::frame_len;
