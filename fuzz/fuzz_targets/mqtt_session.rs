//! Bytes as operations on a client's session over several connections: flow control and packet identifiers keep their rules.
#![no_main]

#[path = "../../crates/mqtt/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::operations(bytes));
