//! The server role.

mod config;
mod event;

pub use config::{AddressChanges, ConfigError, MAX_SLOTS, MIN_MTU, Retransmission, ServerConfig};
pub use event::{CloseReason, DropReason, Event, HandshakeFailure, Moved, SealError};
