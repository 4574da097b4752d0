//! Keys of simulated devices: computed and never stored, so that a million of them cost nothing to keep.
//!
//! A device's pre-shared key is the first 16 bytes of HMAC-SHA-256 over its identity, under a seed. Whoever has the seed has all keys:
//! they are for load tests.

use std::io::{self, Write};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tidegate_dtls::{Credentials, Key, MAX_IDENTITY_LEN, MAX_KEY_LEN};

use crate::audit::device_name;

/// Bytes of a computed key, as TLS_PSK_WITH_AES_128_CCM_8 has use for.
pub const PSK_LEN: usize = 16;

/// The seed unless another is given.
pub const DEFAULT_SEED: &str = "tidegate-bench";

/// Where the keys of simulated devices come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// Each device has a key of its own, computed from its identity.
    Seed(String),
    /// All devices share a key.
    Shared(Vec<u8>),
}

impl Default for Keys {
    fn default() -> Keys {
        Keys::Seed(DEFAULT_SEED.to_owned())
    }
}

/// A key that DTLS cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither `hex:…` nor text.
    #[error("a key after hex: must be pairs of hexadecimal digits")]
    NotHex,
    /// Empty, or longer than DTLS takes.
    #[error("a key must be 1 to {MAX_KEY_LEN} bytes")]
    Length,
}

impl Keys {
    /// One key for all, as people write it: text, or `hex:` and hexadecimal digits.
    ///
    /// # Errors
    ///
    /// It is not hexadecimal, or no key.
    pub fn shared(text: &str) -> Result<Keys, KeyError> {
        let bytes = match text.strip_prefix("hex:") {
            Some(digits) => from_hex(digits).ok_or(KeyError::NotHex)?,
            None => text.as_bytes().to_vec(),
        };
        if Key::new(&bytes).is_none() {
            return Err(KeyError::Length);
        }
        Ok(Keys::Shared(bytes))
    }

    /// The key of an identity.
    #[must_use]
    pub fn psk(&self, identity: &[u8]) -> Vec<u8> {
        match self {
            Keys::Shared(key) => key.clone(),
            Keys::Seed(seed) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(seed.as_bytes()).expect("HMAC takes keys of any length");
                mac.update(identity);
                mac.finalize().into_bytes()[..PSK_LEN].to_vec()
            }
        }
    }

    /// What a device presents, if its identity is short enough.
    #[must_use]
    pub fn credentials(&self, identity: &str) -> Option<Credentials> {
        Credentials::new(identity.as_bytes(), Key::new(&self.psk(identity.as_bytes()))?)
    }
}

/// Longest prefix of device names: an identity has the digits as well.
pub const MAX_PREFIX_LEN: usize = MAX_IDENTITY_LEN - crate::audit::DEVICE_DIGITS;

/// Writes a registry of devices `first..first + count` as lines `identity,key,device,tenant`, the key in hexadecimal.
///
/// # Errors
///
/// It cannot be written.
pub fn write_registry(
    out: &mut impl Write,
    keys: &Keys,
    prefix: &str,
    first: u32,
    count: u32,
    tenant: &str,
) -> io::Result<()> {
    for index in first..first.saturating_add(count) {
        let name = device_name(prefix, index);
        write!(out, "{name},")?;
        for byte in keys.psk(name.as_bytes()) {
            write!(out, "{byte:02x}")?;
        }
        writeln!(out, ",{name},{tenant}")?;
    }
    Ok(())
}

fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let digits = digits.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    digits.chunks(2).map(|pair| Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_has_a_key_of_its_own_that_the_seed_decides() {
        let keys = Keys::default();
        let mut csv = Vec::new();
        write_registry(&mut csv, &keys, "bench-", 7, 3, "acme").unwrap();
        let csv = String::from_utf8(csv).unwrap();
        let lines: Vec<_> = csv.lines().collect();
        // printf bench-00000007 | openssl dgst -sha256 -hmac tidegate-bench
        assert_eq!(lines[0], "bench-00000007,698520e3d690148ea08820917734ebc6,bench-00000007,acme");
        assert_eq!(lines.len(), 3);
        assert_ne!(keys.psk(b"a"), keys.psk(b"b"));
        assert_ne!(keys.psk(b"a"), Keys::Seed("other".to_owned()).psk(b"a"));
    }

    #[test]
    fn a_shared_key_is_text_or_hexadecimal() {
        assert_eq!(Keys::shared("secret").unwrap().psk(b"any"), b"secret");
        assert_eq!(Keys::shared("hex:00ff").unwrap().psk(b"any"), [0, 0xff]);
        assert_eq!(Keys::shared("hex:0"), Err(KeyError::NotHex));
        assert_eq!(Keys::shared("hex:0g"), Err(KeyError::NotHex));
        assert_eq!(Keys::shared(""), Err(KeyError::Length));
        assert_eq!(Keys::shared(&"x".repeat(65)), Err(KeyError::Length));
    }
}
