//! What a server grants its peers.

/// Longest time without a CONNECT, in milliseconds: three retransmissions of a SYN-ACKed peer's first segment on a bad
/// NB-IoT link fit.
const CONNECT_TIMEOUT_MS: u64 = 20_000;

/// Bounds and features that a server grants. One value serves all connections, so it is passed in rather than held.
///
/// What it grants is what a CONNACK of MQTT 5 tells (§3.2.2.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Milliseconds from the start of a connection within which its CONNECT must be complete.
    pub connect_timeout_ms: u64,
    /// Largest packet accepted, fixed header included. It bounds the tail that a driver keeps of one connection.
    pub max_packet: u32,
    /// Largest CONNECT accepted: a peer that is not known yet gets less.
    pub max_connect: u32,
    /// Publishes of QoS 1 and 2 that a peer may have unacknowledged (MQTT 5 §3.3.4); a 3.1.1 peer beyond it is read no
    /// further until some are acknowledged. At least 1.
    pub receive_maximum: u16,
    /// QoS 2 publishes of one session that may be stored and not released. A 3.1.1 peer has no receive maximum, and one of
    /// 5.0 has it anew with each connection.
    pub max_unreleased: u16,
    /// Topic aliases that a peer may set; 0 for none.
    pub topic_alias_maximum: u16,
    /// Bytes of the topics that one peer has set aliases to. What is used towards it is bounded likewise.
    pub max_alias_bytes: u32,
    /// Topic aliases used towards one peer, if it grants as many; 0 for none.
    pub topic_aliases_out: u16,
    /// Publishes of QoS 1 and 2 in flight towards one peer, if it grants as many. At least 1.
    pub max_inflight_out: u16,
    /// Messages queued for one session beyond those in flight.
    pub max_queued_messages: u32,
    /// Bytes of the messages queued for one session, and of those in flight, but for the last that fits.
    pub max_queued_bytes: u32,
    /// Longest session expiry granted, in seconds; `u32::MAX` is without end (MQTT 5 §3.1.2.11.2). A 3.1.1 session that is
    /// not clean gets this much.
    pub session_expiry_max: u32,
    /// Keep-alive imposed on MQTT 5 peers that ask for a longer one or for none (§3.2.2.3.14), in seconds; 0 for none.
    pub server_keep_alive: u16,
    /// Whether retained messages are served.
    pub retain_available: bool,
    /// Whether `$share/…` filters are served.
    pub shared_subscriptions: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect_timeout_ms: CONNECT_TIMEOUT_MS,
            max_packet: 256 * 1024,
            // A will with the largest payload fits, beside what else is of ordinary length.
            max_connect: 80 * 1024,
            receive_maximum: 1024,
            // 48 KiB of a session at most; eight windows of what a 5.0 peer may have outstanding.
            max_unreleased: 8192,
            topic_alias_maximum: 16,
            // The longest topic fits. A peer may make the driver keep a tail of as much and more.
            max_alias_bytes: 64 * 1024,
            topic_aliases_out: 16,
            max_inflight_out: 128,
            max_queued_messages: 1000,
            max_queued_bytes: 1024 * 1024,
            session_expiry_max: 7 * 24 * 3600,
            server_keep_alive: 0,
            retain_available: true,
            shared_subscriptions: true,
        }
    }
}
