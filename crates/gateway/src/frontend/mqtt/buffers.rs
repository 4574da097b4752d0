//! Output buffers that clients use one after the other: who has nothing to send owns none.
//!
//! Bytes that wait to be sent are bounded, and counted by their number. So a buffer that is much larger than what it holds goes back when the
//! client's socket takes no more, and the rest waits in one of its own size.

/// Small buffers kept, and the largest of them.
const SMALL_BUFFERS: usize = 1024;
pub(super) const SMALL_BYTES: usize = 4096;

/// Larger ones that are kept, for those who subscribe to much, and the largest of them: what a commit of some thousand readings is to one.
const LARGE_BUFFERS: usize = 2;
const LARGE_BYTES: usize = 2 << 20;

/// Buffers of a worker that nobody uses; all are empty.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

impl Buffers {
    /// Appends `bytes` to what a client is to be sent, in a buffer from here if its own is too small.
    pub(super) fn append(&mut self, out: &mut Vec<u8>, bytes: &[u8]) {
        let need = out.len() + bytes.len();
        if need > out.capacity() {
            let kept = if need <= SMALL_BYTES { &mut self.small } else { &mut self.large };
            if let Some(mut buffer) = kept.pop_if(|buffer| buffer.capacity() >= need) {
                buffer.extend_from_slice(out);
                self.keep(std::mem::replace(out, buffer));
            }
        }
        out.extend_from_slice(bytes);
    }

    /// Takes a buffer back; what it holds is sent.
    pub(super) fn keep(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        let (kept, most) = match buffer.capacity() {
            1..=SMALL_BYTES => (&mut self.small, SMALL_BUFFERS),
            capacity if capacity > SMALL_BYTES && capacity <= LARGE_BYTES => (&mut self.large, LARGE_BUFFERS),
            _ => return,
        };
        if kept.len() < most {
            kept.push(buffer);
        }
    }

    /// Takes a buffer back of which the client's socket leaves little: `sent` of its bytes are sent.
    pub(super) fn reclaim(&mut self, out: &mut Vec<u8>, sent: &mut usize) {
        let rest = &out[*sent..];
        if out.capacity() > SMALL_BYTES && rest.len() <= out.capacity() / 4 {
            let rest = rest.to_vec();
            *sent = 0;
            self.keep(std::mem::replace(out, rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_used_again_by_who_needs_their_size() {
        let mut buffers = Buffers::default();
        let (mut small, mut large) = (Vec::with_capacity(SMALL_BYTES), Vec::with_capacity(LARGE_BYTES));
        buffers.keep(std::mem::take(&mut small));
        buffers.keep(std::mem::take(&mut large));
        buffers.keep(Vec::with_capacity(LARGE_BYTES + 1));
        let mut out = Vec::new();
        buffers.append(&mut out, b"a");
        assert_eq!((out.capacity(), buffers.small.len(), buffers.large.len()), (SMALL_BYTES, 0, 1));
        buffers.append(&mut out, &[b'b'; SMALL_BYTES]);
        assert_eq!((out.capacity(), buffers.small.len(), buffers.large.len()), (LARGE_BYTES, 1, 0));
        assert!(out.len() == 1 + SMALL_BYTES && out[0] == b'a' && out[1..].iter().all(|b| *b == b'b'));
    }

    #[test]
    fn a_client_that_reads_slowly_keeps_no_buffer_that_is_much_larger_than_what_it_is_to_be_sent() {
        let mut buffers = Buffers::default();
        let mut out = Vec::with_capacity(LARGE_BYTES);
        out.extend_from_slice(&[b'x'; 10_000]);
        let mut sent = 4_000;
        buffers.reclaim(&mut out, &mut sent);
        assert_eq!((out.len(), sent, buffers.large.len()), (6_000, 0, 1));
        assert!(out.capacity() < 4 * 6_000);
        // One that is filled stays.
        let mut out = vec![b'x'; 1 << 20];
        buffers.reclaim(&mut out, &mut sent);
        assert_eq!(out.len(), 1 << 20);
    }

    #[test]
    fn few_are_kept() {
        let mut buffers = Buffers::default();
        for _ in 0..2 * SMALL_BUFFERS {
            buffers.keep(Vec::with_capacity(100));
            buffers.keep(Vec::with_capacity(SMALL_BYTES + 1));
        }
        assert_eq!((buffers.small.len(), buffers.large.len()), (SMALL_BUFFERS, LARGE_BUFFERS));
    }
}
