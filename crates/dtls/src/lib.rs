//! DTLS 1.2 PSK with Connection ID, sans-IO.
