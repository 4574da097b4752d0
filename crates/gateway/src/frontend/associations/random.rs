//! Randomness for handshakes.

use tidegate_dtls::Random;
use zeroize::Zeroize;

/// Bytes that are drawn from the system at a time: some forty handshakes' worth.
const POOL: usize = 4096;

/// The system's randomness, drawn in bulk: a system call costs as much as a hash of the handshake. What was given out is
/// overwritten.
pub(crate) struct SystemRandom {
    pool: [u8; POOL],
    /// `pool[used..]` was not given out: `used <= POOL`.
    used: usize,
}

impl SystemRandom {
    pub(crate) fn new() -> SystemRandom {
        SystemRandom { pool: [0; POOL], used: POOL }
    }
}

impl Random for SystemRandom {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(POOL) {
            if POOL - self.used < chunk.len() {
                // Without randomness there are no keys, and this worker's end is the gateway's.
                getrandom::fill(&mut self.pool).expect("the system gives randomness");
                self.used = 0;
            }
            let given = &mut self.pool[self.used..self.used + chunk.len()];
            chunk.copy_from_slice(given);
            given.zeroize();
            self.used += chunk.len();
        }
    }
}

impl Drop for SystemRandom {
    fn drop(&mut self) {
        self.pool.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_given_out_twice() {
        let mut random = SystemRandom::new();
        let mut seen = std::collections::HashSet::new();
        for len in [16, 32, 300, 16, POOL - 1, POOL, 16] {
            let mut out = vec![0; len];
            random.fill(&mut out);
            for part in out.chunks_exact(16) {
                assert!(seen.insert(part.to_vec()), "sixteen bytes came twice");
            }
        }
        let mut long = vec![0; 3 * POOL + 5];
        random.fill(&mut long);
        assert!(long.chunks(32).all(|part| part.iter().any(|&byte| byte != 0)));
        assert!(random.pool[..random.used].iter().all(|&byte| byte == 0), "what was given out is overwritten");
    }
}
