//! The primitives as TLS 1.2 composes them: its pseudo-random function, the key block, and AES-128-CCM-8.
//!
//! Directions are kept as the raw key (16 B) and the salt of the nonce (4 B); the key schedule is expanded for each
//! record. With AES instructions that takes some 65 ns; kept expanded, the cipher of the `aes` crate would take 704 B for each
//! direction of each association.

use ccm::aead::generic_array::GenericArray;
use ccm::aead::{AeadInPlace, KeyInit};
use ccm::consts::{U8, U12};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::session::MASTER_SECRET_LEN;

type Aes128Ccm8 = ccm::Ccm<aes::Aes128Enc, U8, U12>;
type HmacSha256 = Hmac<Sha256>;

/// Length of the tag of AES-128-CCM-8 (RFC 6655 §3).
pub(crate) const TAG_LEN: usize = 8;

/// Length of the part of the nonce that each record carries (RFC 6655 §3).
pub(crate) const EXPLICIT_NONCE_LEN: usize = 8;

/// Length of the part of the nonce that is derived from the master secret.
const SALT_LEN: usize = 4;

const KEY_LEN: usize = 16;

/// Length of a SHA-256 hash.
pub(crate) const HASH_LEN: usize = 32;

/// Length of the verify data of a `Finished` (RFC 5246 §7.4.9).
pub(crate) const VERIFY_DATA_LEN: usize = 12;

/// A record that is not what its sender wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forged;

/// What protects the records of one direction.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct DirectionKey {
    key: [u8; KEY_LEN],
    salt: [u8; SALT_LEN],
}

/// Bytes of a [`DirectionKey`] in an export.
pub(crate) const DIRECTION_KEY_LEN: usize = KEY_LEN + SALT_LEN;

impl DirectionKey {
    pub(crate) fn new(key: [u8; KEY_LEN], salt: [u8; SALT_LEN]) -> DirectionKey {
        DirectionKey { key, salt }
    }

    /// One that is none yet.
    pub(crate) fn blank() -> DirectionKey {
        DirectionKey::new([0; KEY_LEN], [0; SALT_LEN])
    }

    /// Takes the place of `other`, which is overwritten where it lies.
    pub(crate) fn take(&mut self, other: &mut DirectionKey) {
        self.key.copy_from_slice(&other.key);
        self.salt.copy_from_slice(&other.salt);
        other.zeroize();
    }

    pub(crate) fn write(&self, out: &mut [u8; DIRECTION_KEY_LEN]) {
        out[..KEY_LEN].copy_from_slice(&self.key);
        out[KEY_LEN..].copy_from_slice(&self.salt);
    }

    pub(crate) fn read(bytes: &[u8; DIRECTION_KEY_LEN]) -> DirectionKey {
        let mut key = DirectionKey::blank();
        key.key.copy_from_slice(&bytes[..KEY_LEN]);
        key.salt.copy_from_slice(&bytes[KEY_LEN..]);
        key
    }

    fn nonce(&self, explicit: [u8; EXPLICIT_NONCE_LEN]) -> [u8; SALT_LEN + EXPLICIT_NONCE_LEN] {
        let mut nonce = [0; SALT_LEN + EXPLICIT_NONCE_LEN];
        nonce[..SALT_LEN].copy_from_slice(&self.salt);
        nonce[SALT_LEN..].copy_from_slice(&explicit);
        nonce
    }

    fn cipher(&self) -> Aes128Ccm8 {
        Aes128Ccm8::new(GenericArray::from_slice(&self.key))
    }

    /// Encrypts `text` in place and gives its tag. `explicit` must never come twice under one key.
    pub(crate) fn seal(&self, explicit: [u8; EXPLICIT_NONCE_LEN], additional: &[u8], text: &mut [u8]) -> [u8; TAG_LEN] {
        self.cipher()
            .encrypt_in_place_detached(GenericArray::from_slice(&self.nonce(explicit)), additional, text)
            .expect("a record is shorter than the 16 MiB that CCM takes with a length field of three bytes")
            .into()
    }

    /// Decrypts `text` in place, if the tag fits.
    pub(crate) fn open(
        &self,
        explicit: [u8; EXPLICIT_NONCE_LEN],
        additional: &[u8],
        text: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Forged> {
        self.cipher()
            .decrypt_in_place_detached(
                GenericArray::from_slice(&self.nonce(explicit)),
                additional,
                text,
                GenericArray::from_slice(tag),
            )
            .map_err(|_| Forged)
    }
}

/// The pseudo-random function of TLS 1.2 with SHA-256 (RFC 5246 §5); the seed comes in parts.
pub(crate) fn prf(secret: &[u8], label: &[u8], seeds: [&[u8]; 2], out: &mut [u8]) {
    // Keyed once: each further HMAC starts from a copy of this state.
    let keyed = <HmacSha256 as KeyInit>::new_from_slice(secret).expect("HMAC takes keys of any length");
    let feed = |mac: &mut HmacSha256| {
        mac.update(label);
        mac.update(seeds[0]);
        mac.update(seeds[1]);
    };
    let mut a = keyed.clone();
    feed(&mut a);
    let mut a = a.finalize().into_bytes();
    let mut chunks = out.chunks_mut(HASH_LEN).peekable();
    while let Some(chunk) = chunks.next() {
        let mut mac = keyed.clone();
        mac.update(&a);
        feed(&mut mac);
        let mut block = mac.finalize().into_bytes();
        chunk.copy_from_slice(&block[..chunk.len()]);
        block.as_mut_slice().zeroize();
        if chunks.peek().is_some() {
            let mut next = keyed.clone();
            next.update(&a);
            a = next.finalize().into_bytes();
        }
    }
    a.as_mut_slice().zeroize();
}

/// A master secret; overwritten when dropped.
pub(crate) type MasterSecret = Zeroizing<[u8; MASTER_SECRET_LEN]>;

/// The premaster secret of plain PSK (RFC 4279 §2): a zero of the key's length, then the key, each with its length.
fn premaster(psk: &[u8]) -> Zeroizing<Vec<u8>> {
    let length = (psk.len() as u16).to_be_bytes();
    let mut secret = Zeroizing::new(Vec::with_capacity(2 * (2 + psk.len())));
    secret.extend_from_slice(&length);
    secret.resize(2 + psk.len(), 0);
    secret.extend_from_slice(&length);
    secret.extend_from_slice(psk);
    secret
}

/// Makes the master secret that is bound to the handshake so far (RFC 7627 §4), where it is to stay.
pub(crate) fn extended_master_secret(psk: &[u8], session_hash: &[u8; HASH_LEN], master: &mut MasterSecret) {
    prf(&premaster(psk), b"extended master secret", [session_hash, &[]], master.as_mut());
}

/// Makes the master secret that is bound to the randoms alone (RFC 5246 §8.1), where it is to stay.
pub(crate) fn master_secret(psk: &[u8], client_random: &[u8; 32], server_random: &[u8; 32], master: &mut MasterSecret) {
    prf(&premaster(psk), b"master secret", [client_random, server_random], master.as_mut());
}

/// Where the keys of both directions are to stay.
pub(crate) struct KeyBlock<'a> {
    pub(crate) client: &'a mut DirectionKey,
    pub(crate) server: &'a mut DirectionKey,
}

impl KeyBlock<'_> {
    /// Derives them (RFC 5246 §6.3): two keys, then two salts; AEAD ciphers have no MAC keys.
    pub(crate) fn derive(self, master: &[u8; MASTER_SECRET_LEN], client_random: &[u8; 32], server_random: &[u8; 32]) {
        let mut block = Zeroizing::new([0; 2 * (KEY_LEN + SALT_LEN)]);
        prf(master, b"key expansion", [server_random, client_random], block.as_mut());
        self.client.key.copy_from_slice(&block[..16]);
        self.server.key.copy_from_slice(&block[16..32]);
        self.client.salt.copy_from_slice(&block[32..36]);
        self.server.salt.copy_from_slice(&block[36..40]);
    }
}

/// Words of the stack that [`wipe_stack`] overwrites: twice what deriving keys and opening a record take.
const WIPED_WORDS: usize = 1024;

/// Overwrites the stack below its caller. The ciphers and hashes keep keys there while they work, in copies that nobody can name; what calls them
/// from the same frame and then this leaves none behind.
#[inline(never)]
pub(crate) fn wipe_stack() {
    let mut below = [0u64; WIPED_WORDS];
    below.zeroize();
}

/// Who sent a `Finished`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Server,
}

/// The content of a `Finished` (RFC 5246 §7.4.9).
pub(crate) fn verify_data(
    master: &[u8; MASTER_SECRET_LEN],
    sender: Sender,
    transcript: &[u8; HASH_LEN],
) -> [u8; VERIFY_DATA_LEN] {
    let label: &[u8] = match sender {
        Sender::Client => b"client finished",
        Sender::Server => b"server finished",
    };
    let mut out = [0; VERIFY_DATA_LEN];
    prf(master, label, [transcript, &[]], &mut out);
    out
}

/// HMAC-SHA256 of the parts, one after the other.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; HASH_LEN] {
    let mut mac = <HmacSha256 as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests;
