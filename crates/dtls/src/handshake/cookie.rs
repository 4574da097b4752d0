//! The cookie of a `HelloVerifyRequest`, which proves that a client receives at the address it sends from
//! (RFC 6347 §4.2.1).
//!
//! `generation (1) ‖ HMAC-SHA256(secret, path ‖ parameters) (16 of 32)`. The parameters are the version, the random and the session
//! identifier: of those that RFC 6347 names, the ones that lie in the first fragment of any hello. A client that cuts its hello
//! into fragments cuts the one with a cookie elsewhere, or only that one, so suites and compression methods are left out; the
//! random alone ties a cookie to one hello, and `Finished` covers the rest. Nothing is stored: the secret of the generation makes the
//! cookie again.

use std::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::codec::HelloStart;
use crate::crypto::hmac_sha256;
use crate::environment::Random;
use crate::path::CompactPath;
use crate::time::Timestamp;

/// Length of a cookie. Its `HelloVerifyRequest` is 45 bytes; the shortest start of a `ClientHello` is 61.
pub(crate) const COOKIE_LEN: usize = 1 + MAC_LEN;

const MAC_LEN: usize = 16;

const SECRET_LEN: usize = 32;

/// The two secrets that count.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Cookies {
    current: [u8; SECRET_LEN],
    previous: [u8; SECRET_LEN],
    generation: u8,
    #[zeroize(skip)]
    rotate_at: Option<Timestamp>,
    #[zeroize(skip)]
    period: Duration,
}

impl Cookies {
    pub(crate) fn new(period: Duration, random: &mut dyn Random) -> Cookies {
        let mut cookies =
            Cookies { current: [0; SECRET_LEN], previous: [0; SECRET_LEN], generation: 0, rotate_at: None, period };
        random.fill(&mut cookies.current);
        random.fill(&mut cookies.previous);
        cookies
    }

    /// Draws a new secret when the time has come; after two periods without a call the old one is gone too.
    pub(crate) fn rotate(&mut self, now: Timestamp, random: &mut dyn Random) {
        let Some(due) = self.rotate_at else {
            self.rotate_at = Some(now.plus(self.period));
            return;
        };
        if now < due {
            return;
        }
        self.previous = self.current;
        random.fill(&mut self.current);
        if now >= due.plus(self.period) {
            random.fill(&mut self.previous);
        }
        self.generation = self.generation.wrapping_add(1);
        self.rotate_at = Some(now.plus(self.period));
    }

    /// The cookie for this hello from there.
    pub(crate) fn make(&self, path: CompactPath, hello: &HelloStart<'_>) -> [u8; COOKIE_LEN] {
        cookie(self.generation, &self.current, path, hello)
    }

    /// Whether the cookie that the hello carries was made for it.
    pub(crate) fn check(&self, path: CompactPath, hello: &HelloStart<'_>) -> bool {
        let Some(&generation) = hello.cookie.first() else { return false };
        let secret = if generation == self.generation {
            &self.current
        } else if generation == self.generation.wrapping_sub(1) {
            &self.previous
        } else {
            return false;
        };
        cookie(generation, secret, path, hello).ct_eq(hello.cookie).into()
    }
}

fn cookie(generation: u8, secret: &[u8], path: CompactPath, hello: &HelloStart<'_>) -> [u8; COOKIE_LEN] {
    // Only the last part varies in length, so no two hellos give one input.
    let mac = hmac_sha256(secret, &[&path.to_bytes(), &hello.version, hello.random, hello.session_id]);
    let mut out = [0; COOKIE_LEN];
    out[0] = generation;
    out[1..].copy_from_slice(&mac[..MAC_LEN]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Path;

    fn path(port: u16, local: u8) -> CompactPath {
        Path::new(([192, 0, 2, 1], port).into(), local).into()
    }

    fn hello<'a>(random: &'a [u8; 32], session_id: &'a [u8], cookie: &'a [u8]) -> HelloStart<'a> {
        HelloStart { version: [254, 253], random, session_id, cookie }
    }

    #[test]
    fn a_cookie_is_good_for_one_address_and_one_hello_and_two_generations() {
        let mut counter = 0u8;
        let mut random = |out: &mut [u8]| {
            counter += 1;
            out.fill(counter);
        };
        let period = Duration::from_secs(60);
        let mut cookies = Cookies::new(period, &mut random);
        cookies.rotate(Timestamp(0), &mut random);
        let session = [0xc0, 0xa8];
        let made = cookies.make(path(1, 0), &hello(&[1; 32], &session, &[]));
        let check = |cookies: &Cookies, path, random: &[u8; 32], session: &[u8], cookie: &[u8]| {
            cookies.check(path, &hello(random, session, cookie))
        };
        assert!(check(&cookies, path(1, 0), &[1; 32], &session, &made));
        assert!(!check(&cookies, path(2, 0), &[1; 32], &session, &made));
        assert!(!check(&cookies, path(1, 1), &[1; 32], &session, &made));
        assert!(!check(&cookies, path(1, 0), &[2; 32], &session, &made));
        assert!(!check(&cookies, path(1, 0), &[1; 32], &[0xc0, 0xa8, 0, 0xff], &made));
        assert!(!check(&cookies, path(1, 0), &[1; 32], &session, &made[..16]));
        assert!(!check(&cookies, path(1, 0), &[1; 32], &session, &[]));
        let mut bent = made;
        bent[16] ^= 1;
        assert!(!check(&cookies, path(1, 0), &[1; 32], &session, &bent));
        cookies.rotate(Timestamp(59_999), &mut random);
        assert_eq!(cookies.generation, 0);
        cookies.rotate(Timestamp(60_000), &mut random);
        assert!(check(&cookies, path(1, 0), &[1; 32], &session, &made), "the secret before still counts");
        cookies.rotate(Timestamp(120_000), &mut random);
        assert!(!check(&cookies, path(1, 0), &[1; 32], &session, &made));
    }

    #[test]
    fn after_a_long_silence_no_old_secret_counts() {
        let mut counter = 0u8;
        let mut random = |out: &mut [u8]| {
            counter += 1;
            out.fill(counter);
        };
        let mut cookies = Cookies::new(Duration::from_secs(60), &mut random);
        cookies.rotate(Timestamp(0), &mut random);
        let made = cookies.make(path(1, 0), &hello(&[1; 32], &[0xc0, 0xa8], &[]));
        cookies.rotate(Timestamp(3_600_000), &mut random);
        assert!(!cookies.check(path(1, 0), &hello(&[1; 32], &[0xc0, 0xa8], &made)));
    }
}
