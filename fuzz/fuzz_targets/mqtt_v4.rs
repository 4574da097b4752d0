//! Any bytes on a 3.1.1 connection, before its CONNECT and after: no panic, clean closes, and nothing accepted that the
//! codec rejects.
#![no_main]

#[path = "../../crates/mqtt/tests/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    checks::stream(tidegate_mqtt::Version::V4, bytes);
    checks::first_packets(bytes);
});
