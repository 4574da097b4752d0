//! The durable log, its recovery, and the cursors of its sinks.
