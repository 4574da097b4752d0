//! The durable log, its recovery, and the cursors of its sinks.

mod batch;
mod config;
mod cursor;
mod error;
pub mod format;
mod log;
mod reader;
pub mod sink;
pub mod storage;

pub use batch::Batch;
pub use config::{LogConfig, MAX_RECORD_BYTES, MIN_SEGMENT_BYTES};
pub use cursor::Cursor;
pub use error::{CursorError, Failure, OpenError, Pressure, ReadError, Refused, SinkError};
pub use log::{Appender, Durable, Log, Quarantined, Recovered, Stopped};
pub use reader::{Entry, Reader};
pub use sink::{Sink, SinkHandle, SinkStopped};
