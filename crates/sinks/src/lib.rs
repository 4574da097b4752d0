//! Where readings go after the log.
//!
//! A sink is a cursor over the log that stands on its own: a slow or dead one never delays an acknowledgement, it only grows the
//! backlog. Every sink here implements [`tidegate_writer::Sink`] and is driven by the runner of that crate on a thread of its own.
//!
//! | module | what it writes |
//! |---|---|
//! | [`parquet`] | columnar files, partitioned by hour, for DuckDB and everything else that reads Parquet |

pub mod parquet;
