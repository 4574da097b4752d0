//! The handshake protocol.
/// Longest handshake message accepted.
pub(crate) const MAX_MESSAGE_LEN: usize = 2048;
