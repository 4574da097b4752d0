//! Batched datagram I/O and socket set-up.
