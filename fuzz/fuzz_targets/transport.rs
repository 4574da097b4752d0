//! Any bytes on a connection with a PROXY protocol header, TLS, WebSocket or several of them: no panic, and the same comes of
//! them however they are cut.
#![no_main]

#[path = "../../crates/transport/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::stream(bytes));
