//! Any operations: uploads are put together as a model allows, within their bounds.
#![no_main]

#[path = "../../crates/coap/tests/operations/mod.rs"]
mod operations;

libfuzzer_sys::fuzz_target!(|script: &[u8]| operations::uploads(script));
