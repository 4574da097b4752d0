//! End-to-end, foreign-client, fault and simulation tests.
