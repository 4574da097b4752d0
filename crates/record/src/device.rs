//! The name of a device.

use std::borrow::Borrow;
use std::fmt;

use ecow::EcoString;

/// Longest device name in bytes: an `urn:dev:` name or a DTLS PSK identity of the length that RFC 4279 §5.3 asks servers to
/// accept fits.
pub const MAX_DEVICE_ID_LEN: usize = 128;

/// The name of a device: 1 to [`MAX_DEVICE_ID_LEN`] bytes of UTF-8 without control characters.
///
/// It takes 16 bytes, and up to 15 of text are held within them, so an IMEI needs no allocation. A clone of a longer one
/// shares its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(EcoString);

/// Text that cannot name a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceIdError {
    /// It is empty.
    #[error("a device name must not be empty")]
    Empty,
    /// It is longer than [`MAX_DEVICE_ID_LEN`].
    #[error("a device name of {0} bytes: at most {MAX_DEVICE_ID_LEN} are allowed")]
    TooLong(usize),
    /// It has a control character, which would break a log line or a terminal.
    #[error("a device name must not have control characters")]
    Control,
}

impl DeviceId {
    /// Checks that `text` can name a device, without making one.
    pub fn check(text: &str) -> Result<(), DeviceIdError> {
        if text.is_empty() {
            return Err(DeviceIdError::Empty);
        }
        if text.len() > MAX_DEVICE_ID_LEN {
            return Err(DeviceIdError::TooLong(text.len()));
        }
        if text.chars().any(char::is_control) {
            return Err(DeviceIdError::Control);
        }
        Ok(())
    }

    /// The device named `text`.
    pub fn new(text: &str) -> Result<DeviceId, DeviceIdError> {
        Self::check(text)?;
        Ok(DeviceId(EcoString::from(text)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_their_edges() {
        assert_eq!(DeviceId::new(""), Err(DeviceIdError::Empty));
        assert_eq!(DeviceId::new("a\0b"), Err(DeviceIdError::Control));
        assert_eq!(DeviceId::new(&"d".repeat(MAX_DEVICE_ID_LEN + 1)), Err(DeviceIdError::TooLong(129)));
        let longest = "d".repeat(MAX_DEVICE_ID_LEN);
        assert_eq!(DeviceId::new(&longest).unwrap().as_str(), longest);
    }

    #[test]
    fn an_imei_needs_no_allocation_beyond_sixteen_bytes() {
        assert_eq!(size_of::<DeviceId>(), 16);
    }

    #[test]
    fn a_text_finds_the_device_it_names_in_a_map() {
        let map = std::collections::HashMap::from([(DeviceId::new("meter-1").unwrap(), 1)]);
        assert_eq!(map.get("meter-1"), Some(&1));
    }
}
