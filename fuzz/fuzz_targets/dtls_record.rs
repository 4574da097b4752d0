//! Any bytes, as a datagram, to both roles in every state.
#![no_main]

#[path = "../../crates/dtls/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::datagram(bytes));
