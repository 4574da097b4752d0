//! Micro-benchmarks, peers and rigs.
