//! CoAP for a server that takes readings from devices, and for the clients that test it: bytes and `now` come in, bytes
//! and decisions go out. The crate owns no socket, clock, thread or task.
//!
//! # Constraints
//!
//! - A datagram is read where it lies; a reading is classified, deduplicated and answered without an allocation.
//! - RFC 7252 decides what is well-formed; nothing lenient stands behind the parser. What is not well-formed carries the
//!   answer that the RFC asks for and a [`Reason`] for a counter.
//! - What is kept for a device is its [`dedup::Ring`] (8 bytes while idle), a [`mid::Sequence`] (6 bytes) if the server starts
//!   messages to it, and its [`observe::Relations`] (8 bytes while there are none) if it may observe. What takes more, exchanges
//!   and uploads under way, is bounded as a whole.
//!
//! # Format
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +---+---+-------+---------------+-------------------------------+
//! |Ver| T |  TKL  |     Code      |          Message ID           |   RFC 7252 §3
//! +---+---+-------+---------------+-------------------------------+
//! |  Token length (RFC 8974, if TKL is 13 or 14), Token …         |
//! |  Options …                                                    |
//! |  0xFF, then Payload of one byte or more, or neither           |
//! +---------------------------------------------------------------+
//! ```
//!
//! # Operation
//!
//! Feed one datagram, do what the answer says, repeat:
//!
//! ```text
//! Rules::classify(datagram, &mut topic) ─► Outcome
//!     Request   ─► Ring::lookup ─► New:        push the record, Ring::insert; when durable: Response::write
//!                               └► Duplicate:  when its record is durable: Response::write with the first code
//!     Answer    ─► Answer::write               (an error, or nothing stored)
//!     Reset     ─► build::reset                (also the reply to a ping)
//!     Acknowledged, Refused ─► Exchanges::{acknowledged, refused}
//!     Ignored   ─► count it
//! ```
//!
//! Messages that the server starts (separate responses, notifications) go through [`exchange::Exchanges`]: after each
//! input and at [`Exchanges::next_deadline`](exchange::Exchanges::next_deadline), drain
//! [`Exchanges::poll`](exchange::Exchanges::poll) until it is empty.

pub mod block;
pub mod build;
pub mod client;
pub mod code;
pub mod dedup;
pub mod echo;
pub mod exchange;
pub mod link;
pub mod message;
pub mod mid;
pub mod observe;
pub mod option;
mod reason;
pub mod server;
pub mod timing;
pub mod token;
pub mod topic;

pub use build::{ReplyTo, Response, Written};
pub use code::{Code, Method, Type};
pub use message::{Malformed, Message, Reject};
pub use option::{Block, NoResponse};
pub use reason::Reason;
pub use server::{Answer, Outcome, Request, Reserved, Rules, Target};
pub use timing::{Seconds, Timing};
pub use token::Token;
