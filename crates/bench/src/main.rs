//! Simulated devices, ceilings and audits for IoT gateways.

fn main() {}
