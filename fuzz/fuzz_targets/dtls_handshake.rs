//! Any order of deliveries, losses, changes, waits, moves and crashes between a client and a server.
#![no_main]

#[path = "../../crates/dtls/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::sequence(bytes));
