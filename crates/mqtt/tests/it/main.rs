//! The rules of MQTT 3.1.1 and 5.0 that a server must keep, one test each; `CONFORMANCE.md` maps statements to them.

#[path = "../checks/mod.rs"]
mod checks;
mod conformance;
mod connect;
mod corpus;
mod inbound;
mod mutation;
mod oracle;
mod outbound;
mod retained;
mod session;
mod strict;
mod subscribe;
mod support;
mod trie_model;
