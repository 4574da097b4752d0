//! The session table: one entry a device.
