//! Secrets: keys, generated tokens, passwords, and what passwords are compared with.
//!
//! # The choice of the hash
//!
//! A token that was generated has 256 bits that nobody guesses, so one keyed hash (HMAC-SHA256 with the installation's key) is enough: a
//! storm of logins costs under a microsecond each. A password that somebody chose is found by trying, so each try must be dear:
//! argon2id (RFC 9106) with 19 MiB and two passes. The choice is stored with the entry.

use std::fmt;
use std::io;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::text::MAX_KEY_LEN;

/// Bytes that a key or a password is; overwritten when dropped, never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<[u8]>>);

impl Secret {
    /// A copy of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Secret {
        Secret(Zeroizing::new(bytes.into()))
    }

    /// What it is.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A text that is no pre-shared key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Neither of the two notations.
    #[error("not a key; allowed: hex or base64, or either with `hex:` or `base64:` before it")]
    Notation,
    /// Too short or too long.
    #[error("a key of {0} bytes; allowed: 1 to {MAX_KEY_LEN}")]
    Length(usize),
}

/// Reads a pre-shared key: hex if it is an even number of hex digits, base64 (either alphabet, padded or not) otherwise; `hex:` or `base64:`
/// before it says which.
pub fn parse_key(text: &str) -> Result<Secret, KeyError> {
    let text = text.trim();
    let bytes = if let Some(text) = text.strip_prefix("hex:") {
        hex(text)
    } else if let Some(text) = text.strip_prefix("base64:") {
        base64(text)
    } else {
        hex(text).or_else(|| base64(text))
    };
    let bytes = Zeroizing::new(bytes.ok_or(KeyError::Notation)?);
    if bytes.is_empty() || bytes.len() > MAX_KEY_LEN {
        return Err(KeyError::Length(bytes.len()));
    }
    Ok(Secret::new(&bytes))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let engine = if text.contains(['-', '_']) { URL_SAFE_NO_PAD } else { STANDARD_NO_PAD };
    engine.decode(text).ok()
}

/// What a password is compared with.
#[derive(Clone, PartialEq, Eq)]
pub enum Hash {
    /// HMAC-SHA256 with the installation's key, of username, zero byte and password. For generated ones.
    Keyed {
        /// What comes of it.
        digest: [u8; 32],
    },
    /// Argon2id (RFC 9106) with one lane. For those that people chose.
    Argon2id {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
        /// Random, of this entry alone.
        salt: [u8; 16],
        /// What comes of it.
        digest: [u8; 32],
    },
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Hash {
    /// How `show` calls it.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Hash::Keyed { .. } => "hmac-sha256",
            Hash::Argon2id { .. } => "argon2id",
        }
    }
}

/// The key of this installation: hashes of one are worth nothing in another.
#[derive(Clone)]
pub(crate) struct InstallationKey(Hmac<Sha256>);

impl InstallationKey {
    pub(crate) const LEN: usize = 32;

    pub(crate) fn new(key: &[u8]) -> InstallationKey {
        InstallationKey(Hmac::new_from_slice(key).expect("HMAC takes keys of any length"))
    }

    pub(crate) fn digest(&self, username: &str, password: &[u8]) -> [u8; 32] {
        let mut mac = self.0.clone();
        mac.update(username.as_bytes());
        mac.update(&[0]);
        mac.update(password);
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for InstallationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InstallationKey(…)")
    }
}

/// Memory of argon2id in KiB, and passes over it: the first choice of RFC 9106 for memory-bound machines is far more; this is the least
/// that OWASP recommends, because a gateway has logins by the thousand.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;

/// Most memory and passes that an entry may ask for: a database from elsewhere must not take more than this.
const MOST_MEMORY_KIB: u32 = 64 * 1024;
const MOST_PASSES: u32 = 16;

/// What argon2id works in; it is kept from one password to the next.
#[derive(Default)]
pub struct Scratch(Vec<Block>);

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({} blocks)", self.0.len())
    }
}

/// Hashes a password that somebody chose.
pub(crate) fn slow_hash(password: &[u8], scratch: &mut Scratch) -> io::Result<Hash> {
    let salt = random()?;
    let digest = argon2id(password, &salt, MEMORY_KIB, PASSES, scratch)
        .ok_or_else(|| io::Error::other("the parameters of argon2id are out of bounds"))?;
    Ok(Hash::Argon2id { memory_kib: MEMORY_KIB, passes: PASSES, salt, digest })
}

/// Takes as long as it takes to verify a password that somebody chose, and says no.
pub(crate) fn slow_refusal(password: &[u8], scratch: &mut Scratch) {
    std::hint::black_box(argon2id(password, &[0; 16], MEMORY_KIB, PASSES, scratch));
}

/// `None` if the parameters are out of bounds.
pub(crate) fn argon2id(
    password: &[u8],
    salt: &[u8; 16],
    memory_kib: u32,
    passes: u32,
    scratch: &mut Scratch,
) -> Option<[u8; 32]> {
    if memory_kib > MOST_MEMORY_KIB || passes > MOST_PASSES {
        return None;
    }
    let params = Params::new(memory_kib, passes, 1, Some(32)).ok()?;
    scratch.0.resize(params.block_count(), Block::default());
    let mut digest = [0; 32];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into_with_memory(password, salt, &mut digest, &mut scratch.0).ok()?;
    Some(digest)
}

/// Whether two digests are the same, in constant time.
pub(crate) fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

/// `N` bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Letters of a generated token: 32 bytes in base64 without padding.
pub(crate) const TOKEN_LEN: usize = 43;

/// A token of 256 random bits, as `TOKEN_LEN` letters, digits, `-` and `_`.
pub fn generate_token() -> io::Result<Zeroizing<String>> {
    Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(Zeroizing::new(random::<32>()?).as_slice())))
}

/// A pre-shared key of 128 random bits: what the cipher suites of constrained devices use.
pub fn generate_key() -> io::Result<Secret> {
    Ok(Secret::new(Zeroizing::new(random::<16>()?).as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_both_notations() {
        let key = |text: &str| parse_key(text).map(|key| key.bytes().to_vec());
        assert_eq!(key("00ff10Ab"), Ok(vec![0, 255, 16, 0xab]));
        assert_eq!(key(" c2VjcmV0UFNL \n"), Ok(b"secretPSK".to_vec()));
        assert_eq!(key("AP8Q"), Ok(vec![0, 255, 16]));
        assert_eq!(key("+/8="), key("-_8"), "both alphabets, padded or not");
        // Eight hex digits are hex, unless said otherwise.
        assert_eq!(key("abcdabcd").unwrap().len(), 4);
        assert_eq!(key("base64:abcdabcd").unwrap().len(), 6);
        assert_eq!(key("hex:zz"), Err(KeyError::Notation));
        assert_eq!(key("not a key!"), Err(KeyError::Notation));
        assert_eq!(key("é"), Err(KeyError::Notation));
        assert_eq!(key(""), Err(KeyError::Length(0)));
        assert_eq!(key(&"0".repeat(128)).unwrap().len(), 64);
        assert_eq!(key(&"0".repeat(130)), Err(KeyError::Length(65)));
    }

    #[test]
    fn nothing_secret_is_printed() {
        let hash = Hash::Keyed { digest: [0xab; 32] };
        let shown = format!("{:?} {hash:?} {:?}", Secret::new(b"hunter2"), InstallationKey::new(b"hunter2"));
        assert_eq!(shown, "Secret(…) hmac-sha256 InstallationKey(…)");
    }

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, other) = (generate_token().unwrap(), generate_token().unwrap());
        assert_ne!(one, other);
        assert_eq!((one.len(), generate_key().unwrap().bytes().len()), (43, 16));
    }

    #[test]
    fn a_digest_is_of_one_user_and_one_installation() {
        let key = InstallationKey::new(b"k");
        assert_eq!(key.digest("a", b"b"), key.digest("a", b"b"));
        assert_ne!(key.digest("a", b"b"), key.digest("ab", b""));
        assert_ne!(key.digest("a", b"b"), InstallationKey::new(b"l").digest("a", b"b"));
    }
}
