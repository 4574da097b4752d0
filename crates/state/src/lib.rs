//! What is looked up by key and must survive: devices and their keys, sessions, associations, retained messages.
//!
//! # Constraints
//!
//! - What [`Durable::get`] has reached survives a crash of the process or the machine; nothing else is ever said to be stored.
//! - The changes of one submission are stored all or none, and submissions in the order in which they were made.
//! - A submission costs a copy: it never waits for the disk, and what it may add to memory is bounded.
//! - After a write or sync has failed nothing is stored any more, and the process must end, as it must for the log.
//! - Keys and secrets are in the file, so only its owner may read it.
//!
//! # Format
//!
//! `state.redb` in the data directory is a [redb](https://docs.rs/redb) database: a copy-on-write B-tree a [`Table`], with a checksum in
//! every page. A commit writes the changed pages and the root, and syncs once; whether a root is whole is seen by its checksum, so a
//! torn commit is the state before it. One process has it open at a time.
//!
//! # Operation
//!
//! A front end gathers [`Changes`] and hands them over with [`Writer::submit`], which gives them a [`Ticket`]. The state thread takes all
//! that has gathered into one transaction, commits it, moves `durable`, and calls the hooks ([`Durable::on_move`]); there is no linger
//! timer. [`Reader`] sees what is committed: one snapshot is shared by all reads between two commits, and let go with the next, so that
//! the pages it kept are used again.

mod changes;
mod commit;
mod error;
mod metrics;
mod reader;
pub mod registry;
mod shared;
mod store;
mod table;

pub use changes::Changes;
pub use error::{OpenError, ReadError, Refused};
pub use reader::Reader;
pub use store::{Config, Durable, Stopped, Store, Ticket, Writer};
pub use table::Table;
pub use tidegate_durable::Failure;

#[cfg(test)]
mod tests;
