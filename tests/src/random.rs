//! Random numbers that can be had again.

/// A xorshift64* generator. Good enough to mutate messages; nothing here needs more.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded by the environment variable `TIDEGATE_SEED`, else by `default`; says by what.
    #[must_use]
    pub fn seeded(default: u64) -> Random {
        let seed = std::env::var("TIDEGATE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(default);
        println!("seed {seed}: TIDEGATE_SEED={seed} repeats this");
        // Zero would stay zero.
        Random(seed.max(1))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_u64() >> 32).expect("32 bits fit") % bound
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.next_u64().to_be_bytes()[0]
    }
}
