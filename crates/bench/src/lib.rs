//! The load harness `tidegate-bench`: simulated devices, ceilings, and an audit of every acknowledged message.
//!
//! # Constraints
//!
//! - Numbers are honest. In open loop, latency counts from when a message was due ([`schedule`]); messages without an answer count
//!   with the time they waited; the ramp is left out; and a run in which the generator itself was late is void.
//! - Every acknowledgement is matched to its message, and what is late, duplicate, wrong or malformed is counted by kind.
//! - Every acknowledged message is looked for in what the server stored ([`audit`]). One that is missing fails the run.
//! - Packets are built and read by code of its own, which shares no mistake with the server's.
//!
//! # Operation
//!
//! ```text
//! tidegate-bench coap --target 127.0.0.1:5683 --devices 1000000 --rate 30000 --duration 60 --server-pid PID --audit DIR
//! tidegate-bench mqtt --target 127.0.0.1:1883 --connections 1000 --qos 1 --window 8 --payload 256
//! tidegate-bench ceiling coap --devices 1000 --window 256
//! ```
//!
//! The exit code is 0 if the run counts and nothing promised is missing, 1 if it failed or is void, 2 if it could not be done.
//! `--json FILE` writes a [`report::Report`].

pub mod audit;
pub mod ceilings;
pub mod cli;
pub mod clock;
pub mod coap;
pub mod compare;
mod connect;
pub mod credentials;
pub mod html;
pub mod join;
pub mod ledger;
mod live;
pub mod meter;
pub mod mqtt;
pub mod pattern;
pub mod payload;
pub mod process;
pub mod report;
pub mod run;
pub mod scenario;
pub mod schedule;
mod server;
pub mod slo;
pub mod timer;
