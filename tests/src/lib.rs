//! What the end-to-end tests share: the real gateway in a process of its own, raw clients for the edges, foreign clients
//! for everything else, and faults.
//!
//! - [`Gateway`] starts the binary on free ports with a data directory of its own, and kills, stops and restarts it.
//! - [`coap`] and [`mqtt`] speak the protocols byte by byte. They share no code with the gateway, so that a misreading of an
//!   RFC cannot hide in both ends.
//! - [`dtls`] speaks DTLS with the client of `crates/dtls`, which the gateway does not use.
//! - [`foreign`] runs libcoap's, mosquitto's, aiocoap's, paho's and DuckDB's own programs.
//! - [`Shim`] makes the disk slow or faulty, [`SmallDisk`] makes it full.
//! - [`in_own_network`] runs a test in a network namespace, where [`Capture`] sees what is on the wire.
//! - [`Load`] is many devices at once, and a ledger of what was acknowledged to them.
//!
//! Nothing here sleeps for a while and hopes: [`until`] waits for a condition, and fails with its name at a deadline. That
//! something does *not* happen is shown by an order: what would have come first did not, and what was sent later came.

mod capture;
pub mod coap;
mod disk;
pub mod dtls;
pub mod foreign;
mod gateway;
pub mod link;
mod load;
mod metrics;
pub mod mqtt;
mod network;
mod pki;
mod random;
pub mod repo;
mod stored;
mod wait;

pub use capture::{Capture, Packet};
pub use disk::{Shim, SmallDisk};
pub use gateway::{Exited, Gateway, Setup, http_get, tidegate};
pub use load::{Ledger, Load, audit};
pub use metrics::Metrics;
pub use network::{in_own_network, path_with_daemons};
pub use pki::Pki;
pub use random::Random;
pub use stored::Stored;
pub use wait::{DEADLINE, until};
