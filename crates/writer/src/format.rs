//! Format.
/// Bytes before the first frame of a segment.
pub const HEADER_LEN: usize = 4096;
/// Bytes of a frame before its records.
pub const FRAME_HEADER_LEN: usize = 20;
/// Longest node name.
pub const MAX_NODE_LEN: usize = 64;
