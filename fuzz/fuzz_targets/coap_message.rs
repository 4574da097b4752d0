//! Any bytes: the parser does not panic, agrees with coap-lite but for named differences, and reads what it writes.
#![no_main]

#[path = "../../crates/coap/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|datagram: &[u8]| {
    checks::compare(datagram);
    checks::rewritten(datagram);
});
