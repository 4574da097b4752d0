//! The durable log, its recovery, and the cursors of its sinks.
//!
//! # Constraints
//!
//! - What [`Durable::get`] has reached survives a crash of the process or the machine; nothing else is ever said to be stored.
//! - An append costs a copy: it never waits for the disk, and what it may add to memory is bounded.
//! - After a write or sync has failed nothing is stored any more. It is not tried again: the kernel may have dropped the pages.
//! - Nothing that was stored is skipped in silence: damage is kept, counted, and said.
//!
//! It relies on the file system and the disk for two things: what `fdatasync` has confirmed stays, and writing a sector anew does
//! not take away the bytes in it that do not change.
//!
//! # Format
//!
//! | in the data directory | what |
//! |---|---|
//! | `log/<first>-<epoch>.seg` | a segment: see [`mod@format`] |
//! | `log/*.pre` | allocated for the next segments; holds nothing |
//! | `log/quarantine/` | damaged files as they were found |
//! | `log/lock` | locked by the process that writes |
//! | `cursors/<sink>` | how far a sink has come |
//!
//! # Operation
//!
//! A front end encodes the records of one pass into its [`Batch`] and hands it over with [`Appender::append`], which gives them sequence
//! numbers. The log thread writes what has gathered as one frame, syncs it, moves `durable`, and calls the hooks
//! ([`Durable::on_move`]); the front end sends the acks at or below it. A second thread, the keeper, has segments allocated ahead and
//! removes those that are not needed. [`Log::open`] checks all there is before anything is written, and starts a new epoch.
//!
//! A [`Sink`] follows the log with a [`Reader`] and moves its [`Cursor`]; [`sink::spawn`] runs it.
//!
//! # Refusals
//!
//! [`Appender::pressure`] says beforehand what [`Appender::append`] would: records are refused while too much waits for the disk, the
//! disk is nearly full, or a sink keeps the log at its bound. Each ends by itself, but for a failure. A cursor file
//! whose sink is not configured holds its segments while there is room, and not against new records.

mod batch;
mod commit;
mod config;
mod cursor;
mod error;
pub mod format;
mod frames;
mod keeper;
mod log;
mod metrics;
mod reader;
mod recovery;
mod segment;
mod shared;
pub mod sink;
pub mod storage;

pub use batch::Batch;
pub use config::{LogConfig, MAX_RECORD_BYTES, MIN_SEGMENT_BYTES};
pub use cursor::Cursor;
pub use error::{CursorError, OpenError, Pressure, ReadError, Refused, SinkError};
pub use log::{Appender, Durable, Log, Quarantined, Recovered, Stopped};
pub use reader::{Entry, Reader};
pub use sink::{Sink, SinkHandle, SinkStopped};
pub use tidegate_durable::Failure;

#[cfg(test)]
mod tests;
