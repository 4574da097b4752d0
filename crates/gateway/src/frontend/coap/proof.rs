//! Proof that a device receives where it says it is (RFC 9175 §2.4).
//!
//! A record from a new address proves who wrote it and not who sent it: whoever copies the newest record of a device and delivers it first
//! has our answers sent where they like (RFC 9146 §6). So little is sent to a new address (`coaps.amplification`) until the device is
//! shown to receive there:
//!
//! - A response that is too long for that is put off: the request is answered 4.01 with an Echo option, and the device sends it again with
//!   the option. With `coaps.echo_on_address_change`, every first request from a new address is answered so, and nothing comes of it.
//! - Whoever does not know the option is sent an empty confirmable message, which every device answers by a Reset (RFC 7252 §4.3).
//!   That is as good, and so is the answer to any other confirmable message that went to the new address.
//! - One that was asked and asks again without proof is given blocks as small as may be sent.
//! - After a start, a record may be one of before it that is sent again, if it brought nothing that the log knows. So a device is answered
//!   where it was until something shows that it speaks now: a reading that the log does not have, or the same proof, which is asked for where
//!   the record came from.
//! - Before a notification that is too long goes the same empty message, and with the answer to that the notification.

use tidegate_coap::{Block, Code, Method, Request, Response, Seconds, build};
use tidegate_dtls::{AssociationId, Path};
use tidegate_record::DeviceId;

use super::server::Server;
use super::transport::{Endpoint, Message};
use crate::frontend::Now;

/// Seconds for which an Echo value is good: a device with a slow radio answers within them.
const MAX_AGE: u32 = 120;

/// Most bytes of a response or notification beside token and payload: header, marker, length of a long token, ETag, Observe,
/// Content-Format, Block2 and Size2.
const AROUND: usize = 4 + 1 + 2 + 9 + 4 + 3 + 4 + 5;

/// The largest blocks that fit into messages of `room` bytes (RFC 7959 §2.2); the smallest, if none do.
pub(super) fn largest_szx(room: usize, token: usize) -> u8 {
    let fits = |szx: &u8| (16 << szx) + token + AROUND <= room;
    (0..=6).rev().find(fits).unwrap_or(0)
}

impl Server {
    /// Believes the address of a request that brings proof; asks for it, if it must be there before anything comes of the request. True
    /// if nothing else is to be done.
    pub(super) fn must_prove_address(&mut self, request: &Request<'_>, message: &Message<'_>, now: Now) -> bool {
        let Endpoint::Secure(id) = message.from else { return false };
        let doubted = message.proven.and_then(|proven| proven.doubted);
        // A reading that is new to the log shows that itself.
        let is_reading = request.block1.is_none() && request.method != Method::Get && request.method != Method::Fetch;
        let is_needed = self.shared.config.coaps.echo_on_address_change || doubted.is_some() && !is_reading;
        if !is_needed && request.echo.is_none() {
            return false;
        }
        let Some(associations) = self.shared.associations.clone() else { return false };
        let at = doubted.map(|elsewhere| elsewhere.path);
        let Some(path) = at.or_else(|| associations.unproven(id).map(|peer| peer.path)) else { return false };
        let seconds = Seconds(now.seconds());
        let of = name(id, path);
        let is_fresh = |value: &[u8]| associations.challenger().is_fresh(of.as_bytes(), value, seconds, MAX_AGE);
        if request.echo.is_some_and(is_fresh) {
            associations.proven(id, path);
            return false;
        }
        if is_needed {
            let value = associations.challenger().make(of.as_bytes(), seconds);
            self.front(message.from).refused("address_unproven");
            let (to, response) = (request.reply_to(), Response { echo: &value, ..Response::new(Code::UNAUTHORIZED) });
            if at.is_some() && to.is_told(response.code) {
                let mid = self.mid_after(message.from, to.mid);
                self.out.push_elsewhere(id, path, |bytes| {
                    response.write(bytes, &to, mid);
                });
                self.ping_elsewhere(message, now);
            } else if at.is_none() {
                self.answer(&to, message, &response);
            }
        }
        is_needed
    }

    /// Asks a device for proof whose message came from elsewhere and may be of before the start: what answers a message of now is of now.
    pub(super) fn ping_elsewhere(&mut self, message: &Message<'_>, now: Now) {
        let (Endpoint::Secure(id), Some(proven)) = (message.from, message.proven) else { return };
        let Some(elsewhere) = proven.doubted else { return };
        let Some(mid) = self.mid_to(message.from, Some(proven.device), proven.sequence as u16, now) else { return };
        self.out.push_elsewhere(id, elsewhere.path, |bytes| build::ping(bytes, mid));
    }

    /// The Echo value for a device whose address needs proof, which is asked for by a ping too.
    pub(super) fn ask_for_proof(
        &mut self,
        id: AssociationId,
        device: Option<&DeviceId>,
        mid: u16,
        now: Now,
    ) -> Option<[u8; tidegate_coap::echo::ECHO_LEN]> {
        let associations = self.shared.associations.clone()?;
        let peer = associations.unproven(id)?;
        self.front(Endpoint::Secure(id)).refused("address_unproven");
        if !peer.asked {
            associations.asked(id, peer.path);
            self.ping(Endpoint::Secure(id), device, mid, now);
        }
        Some(associations.challenger().make(name(id, peer.path).as_bytes(), Seconds(now.seconds())))
    }

    /// The largest blocks that a response to `from` may have.
    pub(super) fn block_szx(&self, from: Endpoint, token: usize) -> u8 {
        let room = self.out.room(from);
        let was_asked = || match (from, &self.shared.associations) {
            (Endpoint::Secure(id), Some(associations)) => associations.unproven(id).is_some_and(|peer| peer.asked),
            _ => false,
        };
        let room = if room.now < room.limit && was_asked() { room.now } else { room.limit };
        largest_szx(room, token).min(self.shared.config.coap.block_bytes)
    }
}

/// The block that a request wants, in blocks of at most 2^(`szx` + 4) bytes; `full` is what it gets where nothing bounds it.
pub(super) fn asked_within(asked: Option<Block>, szx: u8, full: u8) -> Option<Block> {
    match asked {
        Some(block) if block.szx > szx => Some(Block { num: block.num << (block.szx - szx), szx, ..block }),
        None if szx < full => Some(Block { num: 0, more: false, szx }),
        asked => asked,
    }
}

/// What an Echo value is made for.
fn name(id: AssociationId, path: Path) -> String {
    format!("{id:?} {}", path.peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_as_large_as_fit() {
        let of = |room| largest_szx(room, 2);
        assert_eq!([usize::MAX, 4096, 1058, 1057, 512, 90, 0].map(of), [6, 6, 6, 5, 4, 1, 0]);
    }

    #[test]
    fn a_block_keeps_its_place_in_smaller_ones() {
        let block = |num, szx| Block { num, more: false, szx };
        assert_eq!(asked_within(Some(block(3, 6)), 4, 6), Some(block(12, 4)));
        assert_eq!(asked_within(Some(block(3, 2)), 4, 6), Some(block(3, 2)));
        assert_eq!((asked_within(None, 6, 6), asked_within(None, 4, 6)), (None, Some(block(0, 4))));
    }
}
