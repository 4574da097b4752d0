//! Any bytes: the server's decision is well-formed and its answer belongs to the request.
#![no_main]

#[path = "../../crates/coap/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| {
    checks::request(&checks::rules(), datagram, &mut String::new(), &mut Vec::new());
});
