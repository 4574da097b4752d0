//! Where readings go after the log.
