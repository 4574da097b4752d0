//! The Tidegate gateway.

fn main() {}
