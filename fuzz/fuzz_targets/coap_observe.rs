//! Any operations: observers are told as a model allows, and end with the last state.
#![no_main]

#[path = "../../crates/coap/tests/operations/mod.rs"]
mod operations;

libfuzzer_sys::fuzz_target!(|script: &[u8]| operations::observations(script));
