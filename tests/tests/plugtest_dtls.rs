//! The cases of `plugtest.rs` over DTLS.

#[path = "plugtest.rs"]
mod cases;
