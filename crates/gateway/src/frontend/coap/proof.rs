//! Proof that a device receives where it says it is (RFC 9175 §2.4), asked for when `coaps.echo_on_address_change` is set.
//!
//! A record from a new address proves who wrote it and not who sent it: whoever copies the newest record of a device and delivers it first
//! has our answers sent where they like (RFC 9146 §6). The first request from a new address is therefore answered 4.01 with
//! an Echo option, and nothing comes of it; the device sends it again with the option, and its address is believed.

use tidegate_coap::{Code, Request, Response, Seconds};

use super::server::Server;
use super::transport::{Endpoint, Message};
use crate::frontend::Now;

/// Seconds for which an Echo value is good: a device with a slow radio answers within them.
const MAX_AGE: u32 = 120;

impl Server {
    /// Asks a device at a new address for proof, unless the request brings it. True if nothing else is to be done.
    pub(super) fn must_prove_address(&mut self, request: &Request<'_>, message: &Message<'_>, now: Now) -> bool {
        let Endpoint::Secure(id) = message.from else { return false };
        if !self.shared.config.coaps.echo_on_address_change {
            return false;
        }
        let Some(associations) = self.shared.associations.clone() else { return false };
        let Some(path) = associations.unproven(id) else { return false };
        let peer = format!("{id:?} {}", path.peer);
        let now = Seconds(now.seconds());
        let challenger = associations.challenger();
        if request.echo.is_some_and(|value| challenger.is_fresh(peer.as_bytes(), value, now, MAX_AGE)) {
            associations.proven(id, path);
            return false;
        }
        let value = challenger.make(peer.as_bytes(), now);
        let response = Response { echo: &value, ..Response::new(Code::UNAUTHORIZED) };
        self.front(message.from).refused("address_unproven");
        self.answer(&request.reply_to(), message, &response);
        true
    }
}
