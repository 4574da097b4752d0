//! The tables of the database. Keys and values are bytes; whoever owns a table says what they mean.

use redb::TableDefinition;

/// One table of the database. Its owner is named with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Table {
    /// What describes the database itself: the version of its format, the installation's key.
    Meta,
    /// Devices by name (the registry).
    Devices,
    /// MQTT credentials by username (the registry).
    Users,
    /// DTLS pre-shared keys by identity (the registry).
    Identities,
    /// Names of devices by number (the registry).
    Numbers,
    /// DTLS associations by connection ID (the CoAPS front end).
    Associations,
    /// MQTT sessions by client identifier (the MQTT front end).
    Sessions,
    /// Subscriptions by client identifier and filter (the MQTT front end).
    Subscriptions,
    /// Messages that wait for a client (the MQTT front end).
    Queues,
    /// Packet identifiers of QoS 2 publishes that are not released (the MQTT front end).
    Inflight,
    /// Retained messages by topic (the MQTT front end).
    Retained,
    /// Wills of clients that are away (the MQTT front end).
    Wills,
}

impl Table {
    /// Every table, in the order of its number.
    pub const ALL: [Table; 12] = [
        Table::Meta,
        Table::Devices,
        Table::Users,
        Table::Identities,
        Table::Numbers,
        Table::Associations,
        Table::Sessions,
        Table::Subscriptions,
        Table::Queues,
        Table::Inflight,
        Table::Retained,
        Table::Wills,
    ];

    /// Its name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Devices => "devices",
            Table::Users => "users",
            Table::Identities => "identities",
            Table::Numbers => "numbers",
            Table::Associations => "associations",
            Table::Sessions => "sessions",
            Table::Subscriptions => "subscriptions",
            Table::Queues => "queues",
            Table::Inflight => "inflight",
            Table::Retained => "retained",
            Table::Wills => "wills",
        }
    }

    pub(crate) const fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }

    pub(crate) fn from_number(number: u8) -> Option<Table> {
        Table::ALL.get(usize::from(number)).copied()
    }
}
